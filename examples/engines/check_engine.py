"""Does an engine compute what the scalar one does? Layer by layer, and end to end.

    python examples/engines/check_engine.py                             # microgpt's own Tensor
    python examples/engines/check_engine.py numpy_engine torch_engine   # those beside this file
    python examples/engines/check_engine.py path/to/your_engine.py      # yours

A module is loaded, and every engine that it puts into microgpt.ENGINES is checked. In a test:

    from check_engine import check_engine
    check_engine(MyNumber)              # raises ArithmeticError, which names the first difference
    check_engine(MyNumber, only=["cross_entropy", "linear"])        # before the others are written

An engine is a class with two functions. `lift(x)` turns floats, a row or rows of them, into its
own kind of number, for whose type layers are registered; `gradient(x)` gives, after backward(),
what has come back to such a number, or zeros, as floats. A loss has backward(), and takes float()
and * 0.5.
"""

import argparse
import importlib.util
import math
import os
import random
import sys

sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)

import microgpt
from microgpt import GPT, Config, Value

LAYERS = (
    "cross_entropy",
    "linear",
    "add",
    "embedding",
    "layernorm",
    "gelu",
    "attention",
)


def check_engine(number, tolerance=1e-10, seed=0, only=()):
    """Compare an engine with Value, on random layers and models -> {what: largest difference}, of
    losses and of gradients, relative to the larger of the two or to 1. Raises ArithmeticError for
    a difference beyond the tolerance, or for whatever goes wrong. `only` names what to check: of
    the layers that a GPT uses, and "GPT"; all others need "cross_entropy" and "linear"."""
    cases = [*layers(random.Random(seed)), *models(random.Random(seed))]
    differences, names = {}, list(dict.fromkeys(what for what, _, _ in cases))
    if not {*only} <= {*names}:
        raise ValueError(f"only is {only!r}: must be a list of some of {names}")
    for what, loss, params in cases:
        if only and what not in only:
            continue
        expected = run(loss, params, Value)
        try:
            found = run(loss, params, number)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise ArithmeticError(f"{what}: {missing(number) or why}") from error
        difference = max(
            apart(x, found[name], f"{what}, {name}", tolerance)
            for name, x in expected.items()
        )
        differences[what] = max(difference, differences.get(what, 0.0))
    if "embedding" in differences:
        refuse(number, -1)
        refuse(number, 5)
    return differences


def refuse(number, i):
    """A table of 5 rows has no row i, from which an engine could go on with any numbers."""
    try:
        microgpt.embedding(number.lift([[0.5]] * 5), [i])
    except (ValueError, IndexError):
        return
    raise ArithmeticError(
        f"embedding: takes id {i} of a table of 5 rows, and must refuse it"
    )


def missing(number):
    """What to say of layers that have no way with what an engine lifts to."""
    kind = type(number.lift([[1.0]]))
    names = [
        name
        for name in LAYERS
        if getattr(microgpt, name).dispatch(kind)
        is getattr(microgpt, name).dispatch(object)
    ]
    return (
        f"nothing is registered for {kind.__name__} with {', '.join(names)}"
        if names
        else ""
    )


def run(loss, params, number):
    """A share of a loss of lifted parameters, as workers have it, and its gradients -> {name:
    floats}."""
    lifted = {name: number.lift(x) for name, x in params.items()}
    result = loss(lifted) * 0.5
    result.backward()
    gradients = microgpt.gradients(lifted, number)
    return {
        "loss": float(result),
        **{f"gradient of {name}": x for name, x in gradients.items()},
    }


def apart(x, y, what, tolerance):
    """The largest difference between two numbers, rows or lists of rows of the same shape."""
    many = isinstance(x, list)
    if many != hasattr(y, "__len__") or (many and len(x) != len(y)):
        one, two = (
            f"{len(z)} parts" if hasattr(z, "__len__") else "a number" for z in (x, y)
        )
        raise ArithmeticError(
            f"{what} is not of the shape of the scalar one: {two}, not {one}"
        )
    if many:
        return max(
            apart(a, b, f"{what}[{i}]", tolerance) for i, (a, b) in enumerate(zip(x, y))
        )
    difference = abs(x - y) / max(1.0, abs(x), abs(y))
    if not difference <= tolerance:  # nan is not
        raise ArithmeticError(f"{what}: {y!r}, and {x!r} by the scalar engine")
    return difference


def layers(rng):
    """(name, a loss of parameters, random parameters) for every layer that a GPT uses. By linear
    and cross_entropy, which are checked first, its output becomes a loss. (By cross_entropy alone
    it could be off by a constant, unnoticed.)"""

    def rows(n, m):
        return [[rng.gauss(0, 1) for _ in range(m)] for _ in range(n)]

    def case(name, layer, **params):
        shape = layer({key: Value.lift(x) for key, x in params.items()})
        targets = [rng.randrange(len(shape[0])) for _ in shape]
        if name == "cross_entropy":
            return name, lambda p: m.cross_entropy(layer(p), targets), params
        params["weight after it"] = rows(len(shape[0]), len(shape[0]))
        return (
            name,
            lambda p: m.cross_entropy(
                m.linear(layer(p), p["weight after it"]), targets
            ),
            params,
        )

    m = microgpt
    yield case("cross_entropy", lambda p: p["x"], x=rows(5, 3))
    yield case(
        "cross_entropy", lambda p: p["x"], x=[[800.0, -800.0, 1.0], [-1e4, 1e4, 3.0]]
    )
    yield case("cross_entropy", lambda p: p["x"], x=rows(1, 1))
    yield case("linear", lambda p: m.linear(p["x"], p["w"]), x=rows(5, 3), w=rows(4, 3))
    yield case(
        "linear",
        lambda p: m.linear(p["x"], p["w"], p["b"]),
        x=rows(5, 3),
        w=rows(4, 3),
        b=rows(1, 4)[0],
    )
    yield case("add", lambda p: m.add(p["x"], p["y"]), x=rows(5, 3), y=rows(5, 3))
    yield case("add", lambda p: m.add(p["x"], p["x"]), x=rows(2, 3))
    yield case(
        "embedding",
        lambda p: m.embedding(p["table"], [2, 0, 2, 2, 3]),
        table=rows(5, 3),
    )
    yield case(
        "layernorm",
        lambda p: m.layernorm(p["x"], p["gain"], p["bias"]),
        x=rows(5, 3),
        gain=rows(1, 3)[0],
        bias=rows(1, 3)[0],
    )
    yield case("gelu", lambda p: m.gelu(p["x"]), x=rows(5, 3))
    yield case("gelu", lambda p: m.gelu(p["x"]), x=[[-30.0, 0.0, 30.0]])
    for n_head, positions in (
        (1, [0]),
        (2, [0, 1, 2]),
        (3, [0, 0, 1, 2, 3, 0, 1]),
        (1, [0, 1, 0]),
    ):
        yield case(
            "attention",
            lambda p, n=n_head, at=positions: m.attention(p["x"], at, n),
            x=rows(len(positions), 3 * 6),
        )
    large = [
        [40 * value for value in row] for row in rows(3, 3 * 2)
    ]  # scores beyond e^709
    yield case("attention", lambda p: m.attention(p["x"], range(3), 1), x=large)


def models(rng):
    """(name, loss, parameters) for whole models: shapes at random, windows of several lengths."""
    for _ in range(4):
        n_head = rng.randint(1, 3)
        config = Config(
            vocab_size=rng.randint(2, 9),
            block_size=rng.randint(2, 7),
            n_layer=rng.randint(1, 2),
            n_head=n_head,
            n_embd=n_head * rng.randint(1, 3),
        )
        model = GPT(config, seed=rng.random())
        for name, x in model.params.items():  # gains and biases off 1 and 0
            if isinstance(x[0], float):
                model.params[name] = [value + rng.gauss(0, 0.5) for value in x]
        lengths = [
            rng.randint(2, config.block_size + 1) for _ in range(rng.randint(1, 4))
        ]
        batch = [
            [rng.randrange(config.vocab_size) for _ in range(length)]
            for length in lengths
        ]
        yield (
            "GPT",
            lambda p, config=config, batch=batch: GPT(config, p).loss(batch),
            model.params,
        )


def load(module):
    """Load a module by its path, or one beside this file by its name -> the engines that it has
    put into microgpt.ENGINES, {name: engine}."""
    here, before = os.path.dirname(os.path.abspath(__file__)), dict(microgpt.ENGINES)
    path = next(
        filter(os.path.isfile, (os.path.join(here, module + ".py"), module)), ""
    )
    sys.path[:0] = [here, os.path.dirname(os.path.abspath(path))]  # for what it imports
    spec = importlib.util.spec_from_file_location(
        os.path.basename(path).removesuffix(".py"), path
    )
    if not spec:
        raise ImportError("there is no such module, here or beside check_engine.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    found = {
        name: x for name, x in microgpt.ENGINES.items() if before.get(name) is not x
    }
    if not found:
        raise ImportError(f"{module} puts no engine into microgpt.ENGINES")
    return found


def main(argv=None):
    """Check the engines of the modules that are named; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="check_engine",
        description=(
            "Compare engines with the scalar one: those that a module puts into microgpt.ENGINES."
        ),
    )
    parser.add_argument("modules", metavar="MODULE", nargs="*")
    engines = (
        {}
        if (modules := parser.parse_args(argv).modules)
        else {"tensor": microgpt.Tensor}
    )
    what = ""
    try:
        for what in modules:
            engines.update(load(what))
        for what, engine in engines.items():
            for layer, difference in check_engine(engine).items():
                digits = f"10^{math.log10(difference):.0f}" if difference else "0"
                print(f"{what:10} {layer:14} equal, but for {digits}")
    except Exception as error:  # whatever a stranger's module may do
        return f"check_engine: {what}: {' '.join(str(error).split()) or type(error).__name__}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
