"""The same model on NumPy, which computes with whole arrays at once.

    python examples/engines/numpy_engine.py                    # microgpt.py, but faster
    python examples/engines/numpy_engine.py poems.txt --n-embd 128 --n-layer 4
    python examples/engines/numpy_engine.py --dtype float32    # less exact, faster

Options and saved files are those of microgpt.py, so a training run that began in one
can continue in the other (--resume). As a library: microgpt.Trainer(...,
engine=NumpyEngine()).

The model is microgpt's own. Its layers are redefined here, as functions of arrays that
return (output, rule). Chapter 10 of microgpt.py explains the rules.
"""

import argparse
import math
import os
import sys
from functools import lru_cache, partial

try:
    import numpy as np
except ImportError:
    kind = SystemExit if __name__ == "__main__" else ImportError
    raise kind("numpy_engine: it takes NumPy: python -m pip install numpy") from None

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))

import microgpt
from microgpt import (
    GPT,
    AdamW,
    PackedGPT,
    Tensor,
    ValueEngine,
    is_linear_weight,
    parameter_shapes,
)


class Array(Tensor):
    """A Tensor whose data and gradient are arrays."""

    __slots__ = ()

    def collect(self, grad):
        """Add a share to the gradient. The share is a list if it comes from t[i][j]."""
        grad = np.asarray(grad, self.data.dtype)
        self.grad = grad if isinstance(self.grad, float) else self.grad + grad


differentiable = partial(microgpt.differentiable, plain=np.ndarray, node=Array)


@lru_cache(64)
def row_of(number, n, dtype):
    """Multiplying by such a row is NumPy's fastest way to sum narrow arrays."""
    return np.full(n, number, dtype)


def mean(x):
    """The mean of each row: [T, C] -> [T, 1]."""
    return (x @ row_of(1 / x.shape[1], x.shape[1], x.dtype))[:, None]


def total(x):
    """The sum of all rows: [T, C] -> [C]."""
    return row_of(1, len(x), x.dtype) @ x


@differentiable(microgpt.embedding)
def embedding(table, ids):
    if min(ids) < 0 or max(ids) >= len(table):
        microgpt.embedding(range(len(table)), ids)  # raises, and names the id
    ids = np.asarray(ids)

    def embedding_rule(dy):
        d_table = np.zeros_like(table)
        np.add.at(d_table, ids, dy)
        return [d_table]

    return table[ids], embedding_rule


@differentiable(microgpt.add)
def add(x, y):
    def add_rule(dz):
        return dz, dz

    return x + y, add_rule


@differentiable(microgpt.linear)
def linear(x, weight, bias=None):
    def linear_rule(dy):
        return dy @ weight, dy.T @ x, total(dy)

    y = x @ weight.T
    return y if bias is None else y + bias, linear_rule


@differentiable(microgpt.layernorm)
def layernorm(x, gain, bias, eps=1e-5):
    centred = x - mean(x)
    scale = (mean(centred * centred) + eps) ** -0.5
    normal = centred * scale

    def layernorm_rule(dy):
        u = dy * gain
        dx = scale * (u - mean(u) - normal * mean(u * normal))
        return dx, total(dy * normal), total(dy)

    return normal * gain + bias, layernorm_rule


@differentiable(microgpt.gelu)
def gelu(x):
    c = math.sqrt(2 / math.pi)
    square = 0.044715 * x * x
    h = 0.5 + 0.5 * np.tanh(c * x * (1 + square))

    def gelu_rule(dy):
        return [dy * (h + 2 * c * x * h * (1 - h) * (1 + 3 * square))]

    return x * h, gelu_rule


@differentiable(microgpt.cross_entropy)
def cross_entropy(logits, targets):
    places = np.arange(len(targets)), np.asarray(targets)
    shifted = logits - logits.max(1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(1, keepdims=True)

    def cross_entropy_rule(d_loss):
        d_logits = powers / sums
        d_logits[places] -= 1
        return [d_logits * (d_loss / len(targets))]

    return (np.log(sums[:, 0]) - shifted[places]).mean(), cross_entropy_rule


@lru_cache(8)
def causal_mask(n, dtype):
    """[n, n]: minus infinity where a token would look ahead, 0 elsewhere."""
    return np.triu(np.full((n, n), -np.inf, dtype), 1)


def cut_into_heads(x, n_head):
    """[..., T, 3C] -> its queries, keys and values, [..., n_head, T, d] each."""
    parts = x.reshape(*x.shape[:-1], 3, n_head, -1)
    return [parts[..., i, :, :].swapaxes(-3, -2) for i in range(3)]


def join_heads(y):
    """[..., n_head, T, d] -> [..., T, C]."""
    y = y.swapaxes(-3, -2)
    return y.reshape(*y.shape[:-2], -1)


def attention_weights(q, k):
    """softmax(q k^T / sqrt(d)), for the last tokens of those that have keys."""
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    scores += causal_mask(k.shape[-2], q.dtype)[-q.shape[-2] :]
    A = np.exp(scores - scores.max(-1, keepdims=True))
    A /= (A @ row_of(1, A.shape[-1], A.dtype))[..., None]
    return A


@differentiable(microgpt.attention)
def attention(x, n_head):
    """On one window, [T, 3C], or on several side by side, [B, T, 3C]."""
    q, k, v = cut_into_heads(x, n_head)
    A = attention_weights(q, k)

    def attention_rule(dy):
        dO = dy.reshape(*dy.shape[:-1], n_head, -1).swapaxes(-3, -2)
        dA = dO @ v.swapaxes(-1, -2)
        dS = A * (dA - np.einsum("...i,...i", A, dA)[..., None]) * q.shape[-1] ** -0.5
        dx = np.empty(x.shape, x.dtype)
        dq, dk, dv = cut_into_heads(dx, n_head)  # views of dx, to fill in
        dq[:] = dS @ k
        dk[:] = dS.swapaxes(-1, -2) @ q
        dv[:] = A.swapaxes(-1, -2) @ dO
        return [dx]

    return join_heads(A @ v), attention_rule


@differentiable(microgpt.packed_attention)
def packed_attention(x, n_head, lengths):
    """Short windows are padded at their ends, where none of their tokens looks."""
    if len(lengths) == 1:
        return attention(x, n_head)
    in_use = np.arange(max(lengths)) < np.array(lengths)[:, None]  # [B, T]

    def side_by_side(rows):
        batch = np.zeros((*in_use.shape, rows.shape[1]), rows.dtype)
        batch[in_use] = rows
        return batch

    y, rule = attention(side_by_side(x), n_head)

    def packed_attention_rule(dy):
        return [rule(side_by_side(dy))[0][in_use]]

    return y[in_use], packed_attention_rule


@microgpt.attention_with_past.register(np.ndarray)
def attention_with_past(x, n_head, past):
    past.extend(x)
    q, _, _ = cut_into_heads(x, n_head)
    _, k, v = cut_into_heads(np.array(past), n_head)
    return join_heads(attention_weights(q, k) @ v)


class Flat(dict):
    """{name: array}, where all arrays are parts of a single long one, `whole`."""

    def __init__(self, tables, dtype):
        whole = np.concatenate([np.ravel(x) for x in tables.values()])
        self.whole = whole.astype(dtype)
        stop = 0
        for name, x in tables.items():
            start = stop
            stop += np.size(x)
            self[name] = self.whole[start:stop].reshape(np.shape(x))


class FlatAdamW(AdamW):
    """AdamW in a few operations on long arrays. The gradient is a long array, too."""

    def __init__(self, params, weight_decay=0.0):
        super().__init__(params, weight_decay=weight_decay)
        zeros = {name: np.zeros_like(x) for name, x in params.items()}
        self.restore(0, zeros, zeros)

    def restore(self, t, m, v):
        """Continue after t steps, with the averages from a checkpoint."""
        self.t = t
        self.m = Flat(m, self.params.whole.dtype)
        self.v = Flat(v, self.params.whole.dtype)

    def step(self, gradient, lr, factor=1.0):
        """Update every parameter once, with its gradient times the factor."""
        self.t += 1
        root = math.sqrt(1 - self.beta2**self.t)
        rate = lr * root / (1 - self.beta1**self.t)
        if self.weight_decay:
            for name in filter(is_linear_weight, self.params):
                self.params[name] *= 1 - lr * self.weight_decay
        m = self.m.whole
        v = self.v.whole
        m *= self.beta1
        m += (1 - self.beta1) * factor * gradient
        v *= self.beta2
        v += (1 - self.beta2) * factor * factor * gradient * gradient
        self.params.whole -= rate * m / (np.sqrt(v) + self.eps * root)


class ArrayGPT(GPT):
    """A GPT with arrays for parameters, for evaluation and generation."""

    can_be_cached = True  # so a CachedGPT may take its place

    def loss(self, windows):
        """The mean loss of windows, which are read together."""
        return PackedGPT(self.config, self.params).loss(windows)


def to_arrays(model, dtype="float64"):
    """The same model on arrays."""
    params = {name: model.params[name] for name in parameter_shapes(model.config)}
    return ArrayGPT(model.config, Flat(params, dtype))


class NumpyEngine(ValueEngine):
    """Computes on Arrays. The gradients of a batch are one long array."""

    name = "numpy"

    def __init__(self, dtype="float64"):
        self.dtype = dtype

    def convert(self, x):
        return Array(np.asarray(x, self.dtype))

    def gradient(self, x):
        return np.zeros_like(x.data) if isinstance(x.grad, float) else x.grad

    def prepare(self, model):
        return to_arrays(model, self.dtype)

    def gradients(self, model, batch):
        loss, gradients = super().gradients(model, batch)
        return loss, np.concatenate([x.ravel() for x in gradients.values()])

    def norm(self, gradients):
        return math.sqrt(gradients @ gradients)

    def optimizer(self, model, weight_decay):
        return FlatAdamW(model.params, weight_decay)

    def about(self):
        return f"NumPy engine, {self.dtype}"


def main(argv=None):
    """microgpt's command line, with --dtype."""
    parser = argparse.ArgumentParser(
        prog="numpy_engine",
        usage="numpy_engine.py [--dtype float32|float64] [FILE] [options]",
        description="Do what microgpt.py does on NumPy, many times as fast: the "
        "defaults take a few seconds. All other options are those of microgpt.py:",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float64",
        help="float32 is less exact, and faster. (float64)",
    )
    ours, rest = parser.parse_known_args(argv)
    if "--help" in rest or "-h" in rest:
        parser.print_help()
    return microgpt.main(rest, NumpyEngine(ours.dtype))


if __name__ == "__main__":
    sys.exit(main())
