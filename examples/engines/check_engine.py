"""Check an engine against the scalar one, layer by layer and as a whole.

    python examples/engines/check_engine.py                          # microgpt's own
    python examples/engines/check_engine.py numpy_engine             # beside this file
    python examples/engines/check_engine.py path/to/your_engine.py   # yours

The command loads modules and checks every class in them that is a microgpt.ValueEngine.
In a test:

    from check_engine import check_engine
    check_engine(MyEngine)   # raises ArithmeticError that names the first difference
    check_engine(MyEngine, only=["cross_entropy", "linear"])   # only these

For the layers, an engine's convert(x) makes its own numbers from a row or rows of
floats. They go through microgpt's layers into a loss, which must support backward(),
float() and * 0.5. Then gradient(x) returns the gradient, in the same shape. The last
check, "Trainer", uses the whole engine: it trains a model and then runs it.
"""

import importlib.util
import math
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))

import microgpt
from microgpt import GPT, Config, TrainConfig, Trainer, ValueEngine, cross_entropy

LAYERS = ["cross_entropy", "linear", "add", "embedding", "layernorm", "gelu"]
LAYERS += ["attention", "packed_attention"]
CHECKS = LAYERS + ["GPT", "Trainer"]


def check_engine(engine, tolerance=1e-10, seed=0, only=()):
    """Compare an engine, or a class of engines, with the scalar one.

    -> {what: the largest difference}, relative to the larger of two numbers or to 1.
    Raises ArithmeticError for a difference beyond the tolerance, or for any other
    error. `only` names some of CHECKS. All of them need cross_entropy and linear.
    """
    if not set(only) <= set(CHECKS):
        raise ValueError(f"only is {only!r}: must be a list of some of {CHECKS}")
    if isinstance(engine, type):
        engine = engine()
    differences = {}
    for what, compute in all_cases(seed):
        if only and what not in only:
            continue
        expected = compute(ValueEngine())
        try:
            found = compute(engine)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            why = say_missing(engine) or why
            raise ArithmeticError(f"{what}: {why}") from error
        for name, x in expected.items():
            difference = compare(x, found[name], f"{what}, {name}", tolerance)
            differences[what] = max(difference, differences.get(what, 0.0))
    if "embedding" in differences:
        must_refuse(engine, -1)
        must_refuse(engine, 5)
    return differences


def must_refuse(engine, i):
    """A table of 5 rows has no row i. An engine might use other numbers instead."""
    try:
        microgpt.embedding(engine.convert([[0.5]] * 5), [i])
    except (ValueError, IndexError):
        return
    raise ArithmeticError(
        f"embedding: takes id {i} of a table of 5 rows, but must refuse it"
    )


def say_missing(engine):
    """The message about layers that do not support the engine's kind of numbers."""
    kind = type(engine.convert([[1.0]]))
    names = []
    for name in LAYERS:
        layer = getattr(microgpt, name)
        if layer.dispatch(kind) is layer.dispatch(object):
            names.append(name)
    if not names:
        return ""
    return f"nothing is registered for {kind.__name__} with {', '.join(names)}"


def compare(x, y, what, tolerance):
    """The largest difference between two numbers, rows or lists of rows."""
    if hasattr(y, "tolist"):  # an array, or PyTorch's tensor
        y = y.tolist()
    n = count_parts(x)
    if count_parts(y) != n:
        shapes = f"{count_parts(y)}, not {n}"
        raise ArithmeticError(f"{what} is not of the shape of the scalar one: {shapes}")
    if hasattr(x, "__len__"):
        pairs = enumerate(zip(x, y))
        return max(compare(a, b, f"{what}[{i}]", tolerance) for i, (a, b) in pairs)
    difference = abs(x - y) / max(1.0, abs(x), abs(y))
    if not difference <= tolerance:  # nan is not
        raise ArithmeticError(f"{what}: {y!r}, and {x!r} by the scalar engine")
    return difference


def count_parts(x):
    """A shape in words, for compare."""
    return f"{len(x)} parts" if hasattr(x, "__len__") else "a number"


def all_cases(seed):
    """(what is checked, a function: engine -> {name: floats}), from random numbers."""
    for what, loss, params in [*layer_cases(seed), *model_cases(seed)]:
        yield what, loss_and_gradients(loss, params)
    yield "Trainer", train_and_read(seed)


def loss_and_gradients(loss, params):
    """A function: engine -> a share of a loss, and the gradients of its parameters."""

    def compute(engine):
        converted = {name: engine.convert(x) for name, x in params.items()}
        result = loss(converted) * 0.5
        result.backward()
        found = {"loss": float(result)}
        for name, x in converted.items():
            found[f"gradient of {name}"] = engine.gradient(x)
        return found

    return compute


def random_rows(rng, n, m):
    """n rows of m numbers."""
    return [[rng.gauss(0, 1) for _ in range(m)] for _ in range(n)]


def layer_cases(seed):
    """(name, loss of parameters, parameters) for each layer, with several inputs."""
    rng = random.Random(seed)
    x = random_rows(rng, 5, 3)
    row = x[0]
    weight = random_rows(rng, 4, 3)
    bias = random_rows(rng, 1, 4)[0]
    qkv = random_rows(rng, 7, 18)
    large = [[40 * number for number in row[:6]] for row in qkv]  # scores beyond e^709
    largest = [[800.0, -800.0, 1.0], [-1e4, 1e4, 3.0]]
    for name, inputs, more in [
        ("cross_entropy", {"x": x}, [[0, 2, 1, 1, 2]]),
        ("cross_entropy", {"x": largest}, [[1, 2]]),
        ("cross_entropy", {"x": [[0.5]]}, [[0]]),
        ("linear", {"x": x, "weight": weight}, []),
        ("linear", {"x": x, "weight": weight, "bias": bias}, []),
        ("add", {"x": x, "y": random_rows(rng, 5, 3)}, []),
        ("embedding", {"table": x}, [[2, 0, 2, 2, 3]]),
        ("layernorm", {"x": x, "gain": row, "bias": weight[0]}, []),
        ("gelu", {"x": x}, []),
        ("gelu", {"x": [[-30.0, 0.0, 30.0]]}, []),
        ("attention", {"x": qkv[:1]}, [1]),
        ("attention", {"x": qkv[:3]}, [2]),
        ("attention", {"x": large}, [1]),
        ("packed_attention", {"x": qkv}, [3, [1, 4, 2]]),
        ("packed_attention", {"x": qkv[:3]}, [1, [2, 1]]),
    ]:
        yield layer_case(name, getattr(microgpt, name), inputs, more, rng)

    def add_to_itself(x):
        return microgpt.add(x, x)

    yield layer_case("add", add_to_itself, {"x": x}, [], rng)


def layer_case(name, layer, inputs, more, rng):
    """One of these cases. A linear layer and cross_entropy turn the output into a loss.

    With cross_entropy alone, an output that is off by a constant would go unnoticed.
    """
    if name == "cross_entropy":
        return name, lambda p: layer(p["x"], *more), inputs
    y = layer(*inputs.values(), *more)
    targets = [rng.randrange(len(row)) for row in y]
    weight = random_rows(rng, len(y[0]), len(y[0]))

    def loss(p):
        y = layer(*[p[input_name] for input_name in inputs], *more)
        return cross_entropy(microgpt.linear(y, p["weight after it"]), targets)

    return name, loss, {**inputs, "weight after it": weight}


def random_model(rng, vocab_size, block_size):
    """A model of a random shape, in which no gain is 1 and no bias is 0."""
    n_head = rng.randint(1, 3)
    config = Config(
        vocab_size,
        block_size,
        n_layer=rng.randint(1, 2),
        tie_word_embeddings=rng.random() < 0.7,
        n_head=n_head,
        n_embd=n_head * rng.randint(1, 3),
    )
    model = GPT(config, seed=rng.random())
    for name, x in model.params.items():
        if isinstance(x[0], float):
            model.params[name] = [number + rng.gauss(0, 0.5) for number in x]
    return model


def model_cases(seed):
    """(name, loss of parameters, parameters) for whole models and several windows."""
    rng = random.Random(seed)
    for _ in range(4):
        model = random_model(rng, rng.randint(2, 9), rng.randint(2, 7))
        config = model.config
        batch = []
        for _ in range(rng.randint(1, 4)):
            length = rng.randint(2, config.block_size + 1)
            batch.append([rng.randrange(config.vocab_size) for _ in range(length)])

        def loss(p, config=config, batch=batch):
            return microgpt.PackedGPT(config, p).loss(batch)

        yield "GPT", loss, model.params


def train_and_read(seed):
    """A function: engine -> the results of training and of reading in pieces."""
    documents = ["ada", "bob", "abba", "dada", "cab", "abcabcabcabc", "d"]
    tokenizer = microgpt.CharTokenizer(documents)
    options = TrainConfig(
        steps=4,
        batch_size=3,
        warmup=2,
        weight_decay=0.5,
        val_fraction=0.3,
        eval_every=2,
    )

    def compute(engine):
        model = random_model(random.Random(seed), tokenizer.vocab_size, 6)
        trainer = Trainer(model, tokenizer, documents, options, engine)
        found = {}
        for step in trainer:
            found[f"loss of step {step.step}"] = step.loss
            found[f"held-out loss after step {step.step}"] = step.val_loss or 0.0
        for name in model.params:
            found[f"m of {name}"] = trainer.optimizer.m[name]
            found[f"v of {name}"] = trainer.optimizer.v[name]
        reader = microgpt.CachedGPT(trainer.model)
        for tokens in ([4], [0, 1]):
            found[f"logits of {tokens}"] = reader(tokens)[-1]
        return found

    return compute


def load(module):
    """Load a module by its path, or one beside this file by its name -> its engines."""
    here = os.path.dirname(os.path.abspath(__file__))
    beside = os.path.join(here, f"{module}.py")
    path = beside if os.path.isfile(beside) else module
    if not path.endswith(".py") or not os.path.isfile(path):
        raise ImportError("there is no such module, here or beside check_engine.py")
    sys.path[:0] = [here, os.path.dirname(os.path.abspath(path))]  # for what it imports
    name = os.path.basename(path)[: -len(".py")]
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    engines = []
    for x in vars(loaded).values():
        if isinstance(x, type) and issubclass(x, ValueEngine) and x.__module__ == name:
            engines.append(x)
    if not engines:
        raise ImportError(f"{module} has no class that is a microgpt.ValueEngine")
    return engines


def check_all(options):
    """Check the engines of the modules that are named, or microgpt's own."""
    from _common import paragraph

    engines = [] if options.modules else [microgpt.TensorEngine]
    what = ""
    try:
        for what in options.modules:
            engines += load(what)
        for engine in engines:
            what = engine.name
            for layer, difference in check_engine(engine).items():
                digits = f"10^{math.log10(difference):.0f}" if difference else "0"
                line = f"{what:10} {layer:16} equal, but for {digits}"
                print(paragraph(line), flush=True)
    except BrokenPipeError:
        raise
    except Exception as error:  # a module may raise anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what}: {why}") from error


def main(argv=None):
    """The command; returns the exit status."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from _common import make_parser, run_command

    takes = "It takes a second or two for each."
    parser = make_parser("check_engine", __doc__, takes)
    parser.add_argument(
        "modules",
        metavar="MODULE",
        nargs="*",
        help="A module by its path, or one beside this file by its name. Without any, "
        "microgpt's own engine.",
    )
    return run_command("check_engine", check_all, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
