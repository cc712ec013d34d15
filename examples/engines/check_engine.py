"""Does an engine compute what the scalar one does? Layer by layer, and end to end.

    python examples/engines/check_engine.py                             # microgpt's own Tensor
    python examples/engines/check_engine.py numpy_engine torch_engine   # those beside this file
    python examples/engines/check_engine.py path/to/your_engine.py      # yours

A module is imported, and every engine that it adds to microgpt.ENGINES is checked. In a test:

    from check_engine import check_engine
    check_engine(MyNumber)              # raises ArithmeticError, which names the first difference
    check_engine(MyNumber, only=["cross_entropy", "linear"])        # before the others are written

An engine is a class with two functions. `lift(x)` turns floats, a row or rows of them, into its
own kind of number, for which layers are registered; `gradient(x)` gives, after backward(), what has
come back to such a number, or zeros, as floats.
"""

import argparse
import importlib
import math
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import microgpt
from microgpt import GPT, Config, Value


def check_engine(number, tolerance=1e-10, seed=0, only=()):
    """Compare an engine with Value, on random layers and models -> {what: largest difference}, of
    losses and of gradients, relative to the larger of the two or to 1. Raises ArithmeticError for
    a difference beyond the tolerance; what a layer cannot do at all raises what it raises. `only`
    names the layers to check, of those in chapter 4 of microgpt.py, and "GPT"."""
    differences = {}
    for what, loss, params in (*layers(random.Random(seed)), *models(random.Random(seed))):
        if only and what not in only:
            continue
        expected, found = (run(loss, params, kind) for kind in (Value, number))
        difference = max(apart(x, y, f"{what}, {name}", tolerance)
                         for name, x, y in pairs(expected, found))
        differences[what] = max(difference, differences.get(what, 0.0))
    return differences


def run(loss, params, number):
    """A loss of lifted parameters, and its gradients -> {name: floats}."""
    lifted = {name: number.lift(x) for name, x in params.items()}
    result = loss(lifted)
    result.backward()
    gradients = microgpt.gradients(lifted, number)
    return {"loss": float(result), **{f"gradient of {name}": x for name, x in gradients.items()}}


def pairs(expected, found):
    """The two values of every name."""
    return [(name, x, found[name]) for name, x in expected.items()]


def apart(x, y, what, tolerance):
    """The largest difference between two numbers, rows or lists of rows of the same shape."""
    if isinstance(x, list):
        if not hasattr(y, "__len__") or len(x) != len(y):
            raise ArithmeticError(f"{what}: {y!r} is not of the shape of {x!r}")
        return max(apart(a, b, f"{what}[{i}]", tolerance) for i, (a, b) in enumerate(zip(x, y)))
    difference = abs(x - y) / max(1.0, abs(x), abs(y))
    if not difference <= tolerance:                 # nan is not
        raise ArithmeticError(f"{what}: {y!r}, and {x!r} by the scalar engine")
    return difference


def layers(rng):
    """(name, a loss of parameters, random parameters) for every layer of chapter 4. The output of a
    layer becomes a loss by cross_entropy, which is checked first, so that there is a gradient."""
    def rows(n, m):
        return [[rng.gauss(0, 1) for _ in range(m)] for _ in range(n)]

    def case(name, layer, **params):
        shape = layer({key: Value.lift(x) for key, x in params.items()})
        targets = [rng.randrange(len(shape[0])) for _ in shape]
        return name, lambda p: microgpt.cross_entropy(layer(p), targets), params

    m = microgpt
    yield case("cross_entropy", lambda p: p["x"], x=rows(5, 3))
    yield case("cross_entropy", lambda p: p["x"], x=[[800.0, -800.0, 1.0], [-1e4, 1e4, 3.0]])
    yield case("cross_entropy", lambda p: p["x"], x=rows(1, 1))
    yield case("add", lambda p: m.add(p["x"], p["y"]), x=rows(5, 3), y=rows(5, 3))
    yield case("add", lambda p: m.add(p["x"], p["x"]), x=rows(2, 3))
    yield case("embedding", lambda p: m.embedding(p["table"], [2, 0, 2, 2, 3]), table=rows(5, 3))
    yield case("linear", lambda p: m.linear(p["x"], p["w"], p["b"]),
               x=rows(5, 3), w=rows(4, 3), b=rows(1, 4)[0])
    yield case("linear", lambda p: m.linear(p["x"], p["w"]), x=rows(5, 3), w=rows(4, 3))
    yield case("layernorm", lambda p: m.layernorm(p["x"], p["gain"], p["bias"]),
               x=rows(5, 3), gain=rows(1, 3)[0], bias=rows(1, 3)[0])
    yield case("gelu", lambda p: m.gelu(p["x"]), x=rows(5, 3))
    yield case("gelu", lambda p: m.gelu(p["x"]), x=[[-30.0, 0.0, 30.0]])
    for n_head, positions in ((1, [0]), (2, [0, 1, 2]), (3, [0, 0, 1, 2, 3, 0, 1]), (1, [0, 1, 0])):
        yield case("attention", lambda p, n=n_head, at=positions: m.attention(p["x"], at, n),
                   x=rows(len(positions), 3 * 6))


def models(rng):
    """(name, loss, parameters) for whole models: shapes at random, windows of several lengths."""
    for _ in range(4):
        n_head = rng.randint(1, 3)
        config = Config(vocab_size=rng.randint(2, 9), block_size=rng.randint(2, 7),
                        n_layer=rng.randint(1, 2), n_head=n_head, n_embd=n_head * rng.randint(1, 3))
        model = GPT(config, seed=rng.random())
        for name, x in model.params.items():        # gains and biases off 1 and 0
            if isinstance(x[0], float):
                model.params[name] = [value + rng.gauss(0, 0.5) for value in x]
        lengths = [rng.randint(2, config.block_size + 1) for _ in range(rng.randint(1, 4))]
        batch = [[rng.randrange(config.vocab_size) for _ in range(length)] for length in lengths]
        yield "GPT", lambda p, config=config, batch=batch: GPT(config, p).loss(batch), model.params


def main(argv=None):
    """Check the engines of the modules that are named; returns the exit status."""
    parser = argparse.ArgumentParser(prog="check_engine", description=(
        "Compare engines with the scalar one: those that a module adds to microgpt.ENGINES."))
    parser.add_argument("modules", metavar="MODULE", nargs="*")
    args = parser.parse_args(argv)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    own = set(microgpt.ENGINES)
    try:
        for module in args.modules:
            sys.path.insert(0, os.path.dirname(os.path.abspath(module)))
            importlib.import_module(os.path.basename(module).removesuffix(".py"))
        for name in [name for name in microgpt.ENGINES if name not in own] or ["tensor"]:
            for what, difference in check_engine(microgpt.ENGINES[name]).items():
                digits = f"10^{math.log10(difference):.0f}" if difference else "0"
                print(f"{name:10} {what:14} equal, but for {digits}")
    except (ArithmeticError, ImportError) as error:
        return f"check_engine: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
