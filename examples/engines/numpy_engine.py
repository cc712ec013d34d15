"""The same model on NumPy: microgpt's layers for arrays, so that a whole batch is computed at once.

    python examples/engines/numpy_engine.py                     # as microgpt.py, and much faster
    python examples/engines/numpy_engine.py poems.txt --n-embd 128 --n-layer 4 --block-size 128
    python examples/engines/numpy_engine.py --dtype float32 ... # wide models: twice as fast

The options are those of microgpt.py, but for --engine and --workers. What --save keeps is what
microgpt.py keeps: it writes with `python microgpt.py sample DIR`, and a training may go on here or
there (--resume). As a library:

    import microgpt, numpy_engine
    trainer = numpy_engine.NumpyTrainer(model, tokenizer, documents, microgpt.TrainConfig())

The forward pass is microgpt.GPT's own, unchanged. What it runs on is up to the numbers:

    arrays        give an answer and nothing else, as floats do
    Array         also records how the answer came about, as Tensor does: one node a layer

A layer is written once for both, as a function of arrays that returns its output and its rule: what
turns the gradient of the output, dy, into those of the inputs. The formulas stand in chapter 7 of
microgpt.py. Windows of a batch are packed into one long row of tokens, as there; attention alone
has to tell them apart.
"""

import argparse
import inspect
import math
import os
import sys
from dataclasses import replace
from functools import lru_cache
from itertools import compress

try:
    import numpy as np
except ImportError:
    kind = SystemExit if __name__ == "__main__" else ImportError
    raise kind("numpy_engine: it takes NumPy: python -m pip install numpy") from None

sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)

import microgpt
from microgpt import GELU, AdamW, TrainConfig, Trainer, Value


class Array(Value):
    """A Value whose data is a NumPy array; its rule takes the place of local gradients."""

    __slots__ = ()
    lift = classmethod(lambda cls, x: cls(np.asarray(x)))
    gradient = staticmethod(lambda x: (x.grad + np.zeros_like(x.data)).tolist())

    def hand_on(self):
        """The chain rule: add to the gradients of the inputs what the rule makes of one's own."""
        for child, grad in zip(self.children, self.local_grads(self.grad)):
            child.grad = (
                grad if type(child.grad) is float else child.grad + grad
            )  # 0.0: none yet


microgpt.ENGINES["numpy"] = Array


# --- Layers --------------------------------------------------------------------------------------


def layer(definition):
    """Register a function of arrays -> (y, rule) as a layer's way with arrays and with Arrays. The
    rule gives a gradient for every input from the first on; those of Arrays are handed on."""

    def register(function):
        signature = inspect.signature(function)

        @definition.register(np.ndarray)
        def _(*inputs, **options):
            return function(*inputs, **options)[0]

        @definition.register(Array)
        def _(*inputs, **options):
            if options:  # linear(x, weight, bias=bias)
                bound = signature.bind(*inputs, **options)
                bound.apply_defaults()
                inputs = bound.args
            nodes = [isinstance(x, Array) for x in inputs]
            y, rule = function(
                *[x.data if node else x for x, node in zip(inputs, nodes)]
            )
            return Array(
                y, [*compress(inputs, nodes)], lambda dy: compress(rule(dy), nodes)
            )

        return function

    return register


@lru_cache(64)
def row(n, x, dtype):
    """n times x. For narrow arrays a product with such a row is NumPy's quickest sum."""
    return np.full(n, x, dtype)


def mean(x):
    """The mean of each row: [n, m] -> [n, 1]."""
    return (x @ row(x.shape[1], 1 / x.shape[1], x.dtype))[:, None]


def total(x):
    """The sum of all rows: [n, m] -> [m]."""
    return row(len(x), 1, x.dtype) @ x


@layer(microgpt.softmax)
def softmax(x):
    """Over the last dimension, of however many."""
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= (p @ row(x.shape[-1], 1, x.dtype))[..., None]
    return p, lambda dy: [p * (dy - np.einsum("...i,...i", p, dy)[..., None])]


@layer(microgpt.embedding)
def _(table, ids):
    if min(ids) < 0 or max(ids) >= len(table):
        microgpt.embedding(range(len(table)), ids)  # says which, and raises
    ids = np.asarray(ids)

    def rule(dy):
        d_table = np.zeros_like(table)
        np.add.at(d_table, ids, dy)
        return [d_table]

    return table[ids], rule


@layer(microgpt.add)
def _(x, y):
    return x + y, lambda dy: (dy, dy)


@layer(microgpt.linear)
def _(x, weight, bias=None):
    y = x @ weight.T
    return (y if bias is None else y + bias), lambda dy: (
        dy @ weight,
        dy.T @ x,
        total(dy),
    )


@layer(microgpt.layernorm)
def _(x, gain, bias, eps=1e-5):
    centred = x - mean(x)
    s = (mean(centred * centred) + eps) ** -0.5
    n = centred * s

    def rule(dy):
        u = dy * gain
        return s * (u - mean(u) - n * mean(u * n)), total(dy * n), total(dy)

    return n * gain + bias, rule


@layer(microgpt.gelu)
def _(x):
    c, d = GELU
    square = d * x * x
    h = 0.5 + 0.5 * np.tanh(c * x * (1 + square))
    return x * h, lambda dy: [dy * (h + 2 * c * x * h * (1 - h) * (1 + 3 * square))]


@lru_cache(8)
def mask(n, dtype):
    """[n, n]: what is added to the scores, -inf where a token would look ahead."""
    return np.triu(np.full((n, n), -np.inf, dtype), 1)


@layer(microgpt.attention)
def _(x, positions, n_head, past=None, heads=None):
    # The packed rows are spread out, [n, 3C] -> [B, T, 3C] for B windows of at most T tokens, and
    # cut into heads, [B, n_head, T, d]. Rows that a short window leaves empty come after its own,
    # so no token looks at them; their gradients are 0.
    C = x.shape[1] // 3
    start, scale = len(past[0]) if past else 0, (C // n_head) ** -0.5
    place = np.asarray(positions) - start
    window = np.cumsum(place == 0) - 1
    B, T = window[-1] + 1, place.max() + 1

    def spread(rows):
        if B == 1:
            return rows[None]
        padded = np.zeros((B, T, rows.shape[1]), rows.dtype)
        padded[window, place] = rows
        return padded

    def cut(rows):
        return rows.reshape(B, -1, n_head, C // n_head).swapaxes(1, 2)

    def join(*parts):
        rows = np.concatenate(
            [part.swapaxes(1, 2).reshape(B, T, C) for part in parts], 2
        )
        return rows[0] if B == 1 else rows[window, place]

    spread_x = spread(x)
    q, k, v = (spread_x[:, :, i : i + C] for i in (0, C, 2 * C))
    if past:  # the keys and values of earlier calls, and these
        past[0].extend(k[0])
        past[1].extend(v[0])
        k, v = np.array(past[0])[None], np.array(past[1])[None]
    q, k, v = cut(q), cut(k), cut(v)
    A, through_softmax = softmax(
        q @ k.swapaxes(2, 3) * scale + mask(k.shape[2], x.dtype)[start:]
    )
    for i, head in enumerate(heads or ()):
        head += [A[b, i, t, : start + t + 1].tolist() for b, t in zip(window, place)]

    def rule(dy):
        dO = cut(spread(dy))
        dS = through_softmax(dO @ v.swapaxes(2, 3))[0] * scale
        return [join(dS @ k, dS.swapaxes(2, 3) @ q, A.swapaxes(2, 3) @ dO)]

    return join(A @ v), rule


@layer(microgpt.cross_entropy)
def _(logits, targets):
    n, rows = len(logits), np.arange(len(logits))
    shifted = logits - logits.max(1, keepdims=True)
    e = np.exp(shifted)
    sums = e.sum(1, keepdims=True)

    def rule(d_loss):
        d_logits = e / sums
        d_logits[rows, targets] -= 1
        return [d_logits * (d_loss / n)]

    return (np.log(sums[:, 0]) - shifted[rows, targets]).sum() / n, rule


# --- Training ------------------------------------------------------------------------------------


def to_arrays(model, dtype="float64"):
    """The same GPT with arrays for parameters: for answers, as of floats, at NumPy's speed."""
    arrays = {name: np.array(x, dtype) for name, x in model.params.items()}
    return microgpt.GPT(model.config, arrays)


class FlatAdamW(AdamW):
    """microgpt.AdamW, in a few operations on one long array, of which the parameters are parts."""

    def __init__(self, params, **options):
        self.shapes = {name: x.shape for name, x in params.items()}
        self.dtype = params["wte.weight"].dtype
        super().__init__(params, **options)  # sets m and v to 0.0, which is spread out
        self.flat = self._flatten(params)
        params.update(self._parts(self.flat))
        decays = {
            name: np.full(shape, ".c_" in name and "weight" in name)
            for name, shape in self.shapes.items()
        }
        self.decay = self.weight_decay * self._flatten(decays)

    def _flatten(self, tables):
        return np.concatenate(
            [
                np.broadcast_to(np.asarray(tables[name], self.dtype), shape).ravel()
                for name, shape in self.shapes.items()
            ]
        )

    def _parts(self, flat):
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        return {
            name: flat[end - math.prod(shape) : end].reshape(shape)
            for end, (name, shape) in zip(ends, self.shapes.items())
        }

    m = property(
        lambda self: self._parts(self.flat_m),
        lambda self, tables: setattr(self, "flat_m", self._flatten(tables)),
    )
    v = property(
        lambda self: self._parts(self.flat_v),
        lambda self, tables: setattr(self, "flat_v", self._flatten(tables)),
    )

    def step(self, gradient, lr, factor=1.0):
        """Move every parameter once; the gradient is one long array too."""
        self.steps += 1
        beta1, beta2, m, v = self.beta1, self.beta2, self.flat_m, self.flat_v
        root = math.sqrt((1 - beta2**self.steps) / (1 - beta2))
        rate = lr * root * (1 - beta1) / (1 - beta1**self.steps)
        if factor != 1:
            gradient *= factor
        if self.weight_decay:
            self.flat *= 1 - lr * self.decay
        m *= beta1
        m += gradient
        v *= beta2
        v += gradient * gradient
        self.flat -= rate * m / (np.sqrt(v) + self.eps * root)


class NumpyTrainer(Trainer):
    """microgpt.Trainer on arrays; the model's parameters become arrays."""

    dtype = "float64"

    def __init__(self, model, tokenizer, documents, config=None, executor=None):
        config = replace(
            config or TrainConfig(), engine="tensor"
        )  # to be resumed without NumPy
        if config.workers > 1 or executor:
            raise ValueError(
                f"workers is {config.workers}: NumPy has threads of its own; it "
                "must be 1, without an executor"
            )
        model.params = to_arrays(model, self.dtype).params
        super().__init__(model, tokenizer, documents, config)
        self.optimizer = FlatAdamW(model.params, weight_decay=config.weight_decay)

    def gradients(self, batch):
        """The loss of a batch, its gradients as one long array, and the factor that clips them."""
        lifted, limit = self.model.lift(Array), self.config.clip
        loss = lifted.loss(batch)
        loss.backward()
        gradient = np.concatenate([x.grad.ravel() for x in lifted.params.values()])
        factor = limit / max(math.sqrt(gradient @ gradient), limit) if limit else 1.0
        return float(loss), gradient, factor

    def about(self):
        """For the command line."""
        return f"NumPy engine, {self.dtype}"


def main(argv=None):
    """microgpt's command line, and --dtype; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="numpy_engine",
        add_help=False,
        allow_abbrev=False,
        usage="numpy_engine.py [--dtype float32|float64] ..., and:",
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.error = lambda message: sys.exit(f"numpy_engine: {message}")
    ours, rest = parser.parse_known_args(argv)
    NumpyTrainer.dtype = ours.dtype
    if "--help" in rest:
        parser.print_usage()
    return microgpt.main(rest, NumpyTrainer)


if __name__ == "__main__":
    sys.exit(main())
