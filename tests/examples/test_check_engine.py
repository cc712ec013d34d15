"""examples/engines/check_engine.py: right engines pass, and wrong ones are told why."""

import math
import os
import re
import subprocess
import sys

import pytest

import microgpt
from microgpt import FastAdamW, Tensor, TensorEngine, for_each

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.join(ROOT, "examples", "engines")

from check_engine import CHECKS, check_engine  # noqa: E402

LAYERS = {  # and the inputs for which they have gradients, as check_engine calls them
    "cross_entropy": ["x"],
    "linear": ["x", "weight", "bias"],
    "add": ["x", "y"],
    "embedding": ["table"],
    "layernorm": ["x", "gain", "bias"],
    "gelu": ["x"],
    "attention": ["x"],
    "packed_attention": ["x"],
}
INPUTS = [(name, i) for name, inputs in LAYERS.items() for i in range(len(inputs))]
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}


def engine_of(kind):
    """An engine that converts to this kind of Tensor."""

    class Engine(TensorEngine):
        def convert(self, x):
            return kind(x)

    return Engine


def faulty(name, forward=None, backward=None):
    """An engine with a layer that has another forward pass, of floats, or does
    something else with its right rule: backward(rule, gradient of the output)."""
    layer = getattr(microgpt, name)
    on_tensors = layer.dispatch(Tensor)

    class Faulty(Tensor):
        __slots__ = ()

    def on_faulty(*inputs, **options):
        y = on_tensors(*inputs, **options)
        if forward:
            y.data = forward(*[x.data if isinstance(x, Tensor) else x for x in inputs])
        if backward:
            rule = y.rule
            y.rule = lambda dy: backward(rule, dy)
        return y

    layer.register(Faulty, on_faulty)
    return engine_of(Faulty)


def spoiled(i, fault):
    """A backward pass of which the i-th gradient, where there is one, has a fault."""

    def backward(rule, dy):
        gradients = [for_each(float, x) for x in rule(dy)]  # copies
        return [fault(x) if n == i else x for n, x in enumerate(gradients)]

    return backward


@pytest.mark.parametrize("name", ["value", "tensor", "numpy"])
@pytest.mark.parametrize("as_object", [False, True])
def test_right_engines_pass_every_check(name, as_object):
    if name == "numpy":
        pytest.importorskip("numpy")
        engine = __import__("numpy_engine").NumpyEngine
    else:
        engine = microgpt.ENGINES[name]
    differences = check_engine(engine() if as_object else engine)
    assert list(differences) == CHECKS == [*LAYERS, "GPT", "Trainer"]
    assert all(0 <= x < 1e-12 for x in differences.values())
    assert any(differences.values()) == (name != "value")


# Faults of gradients


def transposed(x):
    return microgpt.transpose(x) if isinstance(x[0], list) else x[1:]


FAULTS = {
    "doubled": lambda x: for_each(lambda a: 2 * a, x),
    "forgotten": lambda x: for_each(lambda a: 0.0, x),
    "not a number": lambda x: for_each(lambda a: math.nan, x),
    "transposed": transposed,
    "longer by a row": lambda x: [*x, x[-1]],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name, i", INPUTS)
def test_a_wrong_gradient_is_found_and_named_with_its_layer(name, i, fault):
    where = f"^{name}, gradient of {LAYERS[name][i]}"
    with pytest.raises(ArithmeticError, match=where) as error:
        check_engine(faulty(name, backward=spoiled(i, FAULTS[fault])))
    is_shape = fault in ("transposed", "longer by a row")
    assert ("is not of the shape of" in str(error.value)) == is_shape


@pytest.mark.parametrize("name, i", INPUTS)
def test_a_single_number_that_is_off_is_named_by_its_place(name, i):
    place = []

    def fault(x):
        row = x[-1] if isinstance(x[0], list) else x
        row[-1] += 1e-6
        place[:] = [len(x) - 1, len(row) - 1] if row is not x else [len(x) - 1]
        return x

    with pytest.raises(ArithmeticError) as error:
        check_engine(faulty(name, backward=spoiled(i, fault)))
    where = "".join(f"[{n}]" for n in place)
    assert str(error.value).startswith(
        f"{name}, gradient of {LAYERS[name][i]}{where}: "
    )


@pytest.mark.parametrize("name", ["gelu", "linear"])
def test_a_gradient_of_too_many_dimensions_is_of_the_wrong_shape(name):
    deep = spoiled(0, lambda x: for_each(lambda a: [a], x))
    with pytest.raises(ArithmeticError, match=f"^{name}, gradient of x.* shape"):
        check_engine(faulty(name, backward=deep))


def test_gradients_must_be_added_up_not_set():
    class Forgetful(Tensor):
        __slots__ = ()

        def collect(self, grad):
            self.grad = grad

    with pytest.raises(ArithmeticError, match="^add, gradient of x"):
        check_engine(engine_of(Forgetful))


def test_a_fault_that_shows_only_in_a_whole_model_is_found_too():
    def backward(rule, dy):  # in the check of the layer, the table has 5 rows
        return [x if len(x) == 5 else for_each(lambda a: 0.0, x) for x in rule(dy)]

    with pytest.raises(ArithmeticError, match=r"^GPT, gradient of w[tp]e\.weight\[\d"):
        check_engine(faulty("embedding", backward=backward))


def test_a_loss_that_takes_no_heed_of_what_is_made_of_it_is_found():
    def backward(rule, dy):
        return rule(1.0)

    with pytest.raises(ArithmeticError, match="^cross_entropy"):
        check_engine(faulty("cross_entropy", backward=backward))


# Faults of the forward pass


def cross_entropy_of_sums(logits, targets):
    return microgpt.cross_entropy(logits, targets) * len(targets)


def cross_entropy_that_overflows(logits, targets):
    def power(x):
        return math.exp(x) if x < 700 else math.inf

    losses = []
    for row, target in zip(logits, targets):
        losses.append(math.log(sum(map(power, row)) or 1e-300) - row[target])
    return sum(losses) / len(losses)


def cross_entropy_of_token_0(logits, targets):
    return microgpt.cross_entropy(logits, [0] * len(targets))


def add_of_one(x, y):
    return x


def embedding_counted_from_1(table, ids):
    return [table[i - 1] for i in ids]


def linear_without_bias(x, weight, bias=None):
    return microgpt.linear(x, weight)


def linear_with_a_bias_of_its_own(x, weight, bias=None):
    return microgpt.linear(x, weight, bias or list(range(len(weight))))


def linear_with_1_too_much(*inputs):
    return for_each(lambda a: a + 1, microgpt.linear(*inputs))


def layernorm_without_eps(*inputs):
    return microgpt.layernorm(*inputs, eps=0.0)


def layernorm_of_a_sample(x, gain, bias):
    wider = [[a * math.sqrt((len(row) - 1) / len(row)) for a in row] for row in x]
    return microgpt.layernorm(wider, gain, bias)


def gelu_by_erf(x):
    return for_each(lambda a: a * (1 + math.erf(a / math.sqrt(2))) / 2, x)


def gelu_with_1_too_much(x):
    return for_each(lambda a: a + 1, microgpt.gelu(x))


def attention_ahead(x, n_head):
    """Each token sees all others, as if it were the last one."""
    out = []
    for t in range(len(x)):
        others = x[:t] + x[t + 1 :]
        out.append(microgpt.attention([*others, x[t]], n_head)[-1])
    return out


def attention_with_one_head(x, n_head):
    return microgpt.attention(x, 1)


def attention_that_overflows(x, n_head):  # at scores of 40 * 40 * d / sqrt(d)
    y = microgpt.attention(x, n_head)
    return y if max(map(max, x)) < 40 else for_each(lambda a: math.nan, y)


def packed_attention_across_windows(x, n_head, lengths):
    return microgpt.attention(x, n_head)


def packed_attention_of_equal_lengths(x, n_head, lengths):
    equal = [len(x) // len(lengths)] * len(lengths)
    equal[-1] += len(x) - sum(equal)
    return microgpt.packed_attention(x, n_head, equal)


WRONG = {
    cross_entropy_of_sums: "cross_entropy",
    cross_entropy_that_overflows: "cross_entropy",
    cross_entropy_of_token_0: "cross_entropy",
    add_of_one: "add",
    embedding_counted_from_1: "embedding",
    linear_without_bias: "linear",
    linear_with_a_bias_of_its_own: "linear",
    layernorm_without_eps: "layernorm",
    layernorm_of_a_sample: "layernorm",
    gelu_by_erf: "gelu",
    attention_ahead: "attention",
    attention_with_one_head: "attention",
    packed_attention_across_windows: "packed_attention",
    packed_attention_of_equal_lengths: "packed_attention",
    # These three cross_entropy alone would not find.
    linear_with_1_too_much: "linear",
    gelu_with_1_too_much: "gelu",
    attention_that_overflows: "attention",
}


@pytest.mark.parametrize("forward", WRONG, ids=lambda forward: forward.__name__)
def test_a_wrong_forward_pass_is_found_and_named_with_its_layer(forward):
    where = f"^{WRONG[forward]}, "
    with pytest.raises(ArithmeticError, match=where) as error:
        check_engine(faulty(WRONG[forward], forward))
    if "1_too_much" not in forward.__name__:
        assert re.search(", loss: .* by the scalar engine$", str(error.value))


# Faults of the rest of an engine


class ForgetsToDecay(TensorEngine):
    def optimizer(self, model, weight_decay):
        return FastAdamW(model.params)


class ClipsTwice(TensorEngine):
    def norm(self, gradients):
        return 2 * super().norm(gradients)


class SharesNothing(TensorEngine):
    def gradients(self, model, batch):
        return super().gradients(model, batch[:-1])


class PreparesAnother(TensorEngine):
    def prepare(self, model):
        return microgpt.GPT(model.config, seed=99)


@pytest.mark.parametrize(
    "engine, where",
    [
        (ForgetsToDecay, "loss of step 2"),
        (ClipsTwice, "loss of step 2"),
        (SharesNothing, "loss of step 1"),
        (PreparesAnother, "loss of step 1"),
    ],
)
def test_a_fault_in_another_part_of_an_engine_shows_in_a_training(engine, where):
    with pytest.raises(ArithmeticError, match=f"^Trainer, {where}"):
        check_engine(engine)
    assert check_engine(engine, only=[*LAYERS, "GPT"])


def test_a_fault_that_shows_only_in_reading_with_a_past_is_found():
    np = pytest.importorskip("numpy")
    import numpy_engine

    right = numpy_engine.attention_with_past

    def without_a_past(x, n_head, past):
        return right(x, n_head, [])

    microgpt.attention_with_past.register(np.ndarray, without_a_past)
    try:
        with pytest.raises(ArithmeticError, match="^Trainer, logits of"):
            check_engine(numpy_engine.NumpyEngine)
    finally:
        microgpt.attention_with_past.register(np.ndarray, right)
    assert check_engine(numpy_engine.NumpyEngine)


# What it takes and gives


def test_the_tolerance_decides_and_the_largest_difference_is_reported():
    def a_little_more(logits, targets):
        return microgpt.cross_entropy(logits, targets) * (1 + 1e-6)

    off = faulty("cross_entropy", a_little_more)
    differences = check_engine(off, tolerance=1.1e-6)
    assert differences["cross_entropy"] == pytest.approx(1e-6, rel=1e-3)
    others = set(LAYERS) - {"cross_entropy"}
    assert max(differences[name] for name in others) < 1e-12
    with pytest.raises(ArithmeticError, match="^cross_entropy, loss"):
        check_engine(off, tolerance=0.9e-6)


def test_only_some_layers_may_be_checked():
    off = faulty("gelu", lambda x: x)
    only = ["linear", "cross_entropy"]
    assert list(check_engine(off, only=only)) == ["cross_entropy", "linear"]
    with pytest.raises(ArithmeticError, match="^gelu, loss"):
        check_engine(off, only=["gelu"])


@pytest.mark.parametrize("i", [-1, 5])
def test_an_embedding_that_takes_an_id_out_of_range_is_found(i):
    class Faulty(Tensor):
        __slots__ = ()

    def embedding(table, ids):
        last = len(table.data) - 1
        ids = [max(n, 0) if i < 0 else min(n, last) for n in ids]
        return microgpt.embedding.dispatch(Tensor)(table, ids)

    microgpt.embedding.register(Faulty, embedding)
    where = f"^embedding: takes id {i} of a table of 5 rows"
    with pytest.raises(ArithmeticError, match=where):
        check_engine(engine_of(Faulty))


def test_layers_that_are_not_written_yet_are_named():
    class Bare:
        def __init__(self, x):
            self.x = x

    message = (
        "^cross_entropy: nothing is registered for Bare with cross_entropy, linear, "
        "add, embedding, layernorm, gelu, attention, packed_attention$"
    )
    with pytest.raises(ArithmeticError, match=message):
        check_engine(engine_of(Bare))


def test_a_layer_that_does_not_exist_does_not_pass():
    with pytest.raises(ValueError, match="gellu"):
        check_engine(TensorEngine, only=["gellu"])


def test_the_seed_decides_what_is_checked():
    def seen(seed):
        class Recorder(TensorEngine):
            def convert(self, x):
                converted.append(repr(x))
                return super().convert(x)

        converted = []
        return check_engine(Recorder, seed=seed), converted

    assert seen(1) == seen(1)
    both = set(seen(1)[1]) & set(seen(2)[1])
    assert len(both) <= 4  # some inputs leave nothing to chance


# Command line

MINE = """import microgpt
class Mine(microgpt.Tensor):
    __slots__ = ()
class MyEngine(microgpt.ValueEngine):
    name = "mine"
    def convert(self, x):
        return Mine(x)
    def gradient(self, x):
        return x.grad
"""
WRONG_GELU = MINE + "microgpt.gelu.register(Mine, lambda x: x)"
NOT_MINE = "from microgpt import TensorEngine"


def command(*args, path=()):
    env = {**ENV, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, os.path.join(HERE, "check_engine.py"), *map(str, args)],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env=env,
    )


def checks_of(engine, stdout):
    """What the command found to be equal."""
    line = r"(\w+) +(\w+) +equal, but for (0|10\^-\d\d)"
    found = [re.fullmatch(line, x) for x in stdout.splitlines()]
    assert all(found) and {match[1] for match in found} == {engine}
    return [match[2] for match in found]


def test_the_command_prints_a_line_for_each_check(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    for engine, modules in (("tensor", []), ("mine", [tmp_path / "mine.py"])):
        result = command(*modules)
        assert (result.returncode, result.stderr) == (0, "")
        assert checks_of(engine, result.stdout) == CHECKS


def test_the_command_knows_the_engines_beside_it_by_name():
    pytest.importorskip("numpy")
    result = command("numpy_engine")
    assert (result.returncode, result.stderr) == (0, "")
    assert checks_of("numpy", result.stdout) == CHECKS


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("mine.py", WRONG_GELU, "mine: .*"),
        ("tokenize.py", WRONG_GELU, "mine: .*"),
        ("mine.py", None, ".*there is no such module, here or .*"),
        ("nowhere/json.py", None, ".*there is no such module, here or .*"),
        ("mine.txt", "x = 1", ".*there is no such module, here or .*"),
        ("mine.py", "import missing_library", ".*: No module named 'missing_library'"),
        ("mine.py", "x = 1", ".*mine.py: .*mine.py has no class that .*"),
        ("mine.py", NOT_MINE, ".*mine.py: .*mine.py has no class that .*"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, file, text, message):
    if text:
        (tmp_path / file).write_text(text)
    result = command(tmp_path / file)
    assert result.returncode == 1
    assert re.fullmatch(f"check_engine: {message}\n", result.stderr)
    assert "gelu" not in result.stdout


def test_a_missing_numpy_is_one_line_with_what_to_do(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError")
    result = command("numpy_engine", path=[tmp_path])
    assert (result.returncode, result.stdout) == (1, "")
    message = "check_engine: numpy_engine: .*pip install numpy\n"
    assert re.fullmatch(message, result.stderr)
