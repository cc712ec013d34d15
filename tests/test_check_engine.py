"""examples/engines/check_engine.py: right engines pass; of wrong ones it says what is wrong."""

import math
import os
import re
import subprocess
import sys

import pytest

import microgpt
from microgpt import Tensor, Value

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.join(ROOT, "examples", "engines")
sys.path.insert(0, HERE)

from check_engine import check_engine  # noqa: E402

LAYERS = {  # and the inputs for which they have gradients, as check_engine calls them
    "cross_entropy": ["x"],
    "linear": ["x", "w", "b"],
    "add": ["x", "y"],
    "embedding": ["table"],
    "layernorm": ["x", "gain", "bias"],
    "gelu": ["x"],
    "attention": ["x"],
}
INPUTS = [(name, i) for name, inputs in LAYERS.items() for i in range(len(inputs))]
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}


def each(function, x):
    """The function of every number of a number, a row or rows."""
    return (
        [each(function, y) for y in x] if isinstance(x, (list, tuple)) else function(x)
    )


def engine(name, forward=None, backward=lambda rule, dy: rule(dy)):
    """Tensor, but one layer has another forward pass, of floats, or does other things with its
    right rule, from the gradient of its output to those of its inputs."""
    layer = getattr(microgpt, name)

    class Faulty(Tensor):
        __slots__ = ()

    @layer.register(Faulty)
    def _(*inputs, **options):
        y = layer.dispatch(Tensor)(*inputs, **options)
        if forward:
            y.data = forward(*(x.data if isinstance(x, Tensor) else x for x in inputs))
        rule = y.local_grads
        y.local_grads = lambda dy: backward(rule, dy)
        return y

    return Faulty


def spoiled(i, fault):
    """A backward pass of which the i-th gradient, where there is one, has a fault."""

    def backward(rule, dy):
        gradients = [each(float, x) for x in rule(dy)]  # copies
        return [fault(x) if n == i else x for n, x in enumerate(gradients)]

    return backward


@pytest.mark.parametrize("number", [Value, Tensor, "numpy"])
def test_right_engines_pass_in_every_layer(number):
    if number == "numpy":
        pytest.importorskip("numpy")
        number = __import__("numpy_engine").Array
    differences = check_engine(number)
    assert list(differences) == [*LAYERS, "GPT"]
    assert all(0 <= x < 1e-12 for x in differences.values())
    assert any(differences.values()) == (number is not Value)


# Faults of gradients

FAULTS = {
    "doubled": lambda x: each(lambda a: 2 * a, x),
    "forgotten": lambda x: each(lambda a: 0.0, x),
    "not a number": lambda x: each(lambda a: math.nan, x),
    "transposed": lambda x: microgpt.transpose(x) if isinstance(x[0], list) else x[1:],
    "longer by a row": lambda x: [*x, x[-1]],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name, i", INPUTS)
def test_a_wrong_gradient_is_found_and_named_with_its_layer(name, i, fault):
    with pytest.raises(
        ArithmeticError, match=f"^{name}, gradient of {LAYERS[name][i]}"
    ) as error:
        check_engine(engine(name, backward=spoiled(i, FAULTS[fault])))
    shape = fault in ("transposed", "longer by a row")
    assert ("is not of the shape of" in str(error.value)) == shape


@pytest.mark.parametrize("name, i", INPUTS)
def test_a_single_number_that_is_off_is_named_by_its_place(name, i):
    place = []

    def fault(x):
        row = x[-1] if isinstance(x[0], list) else x
        row[-1] += 1e-6
        place[:] = [len(x) - 1, len(row) - 1][: 1 + (row is not x)]
        return x

    with pytest.raises(ArithmeticError) as error:
        check_engine(engine(name, backward=spoiled(i, fault)))
    where = f"{name}, gradient of {LAYERS[name][i]}{''.join(f'[{n}]' for n in place)}: "
    assert str(error.value).startswith(where)


@pytest.mark.parametrize("name", ["gelu", "linear"])
def test_a_gradient_of_too_many_dimensions_is_of_the_wrong_shape(name):
    deep = engine(name, backward=spoiled(0, lambda x: each(lambda a: [a], x)))
    with pytest.raises(ArithmeticError, match=f"^{name}, gradient of x.* shape"):
        check_engine(deep)


def test_gradients_must_be_added_up_not_set():
    class Forgetful(Tensor):
        __slots__ = ()

        def hand_on(self):
            for child, grad in zip(self.children, self.local_grads(self.grad)):
                child.grad = grad

    @microgpt.add.register(Forgetful)
    def _(x, y):
        right = microgpt.add.dispatch(Tensor)(x, y)
        return Forgetful(right.data, right.children, right.local_grads)

    with pytest.raises(ArithmeticError, match="^add, gradient of x"):
        check_engine(Forgetful)


def test_a_fault_that_shows_only_in_a_whole_model_is_found_too():
    def backward(rule, dy):  # in the check of the layer, the table has 5 rows
        return [x if len(x) == 5 else each(lambda a: 0.0, x) for x in rule(dy)]

    with pytest.raises(ArithmeticError, match=r"^GPT, gradient of w[tp]e\.weight\[\d"):
        check_engine(engine("embedding", backward=backward))


def test_a_loss_that_takes_no_heed_of_what_is_made_of_it_is_found():
    with pytest.raises(
        ArithmeticError, match="^cross_entropy"
    ):  # workers take shares of it
        check_engine(engine("cross_entropy", backward=lambda rule, dy: rule(1.0)))


# Faults of the forward pass


def mean(row):
    return sum(row) / len(row)


def cross_entropy_of_sums(logits, targets):
    return microgpt.cross_entropy(logits, targets) * len(targets)


def cross_entropy_that_overflows(logits, targets):
    def power(x):
        return math.exp(x) if x < 700 else math.inf

    return mean(
        [
            math.log(sum(map(power, row)) or 1e-300) - row[target]
            for row, target in zip(logits, targets)
        ]
    )


def layernorm_of_a_sample(x, gain, bias):
    wider = [[a * math.sqrt((len(row) - 1) / len(row)) for a in row] for row in x]
    return microgpt.layernorm(wider, gain, bias)


def attention_ahead(x, positions, n_head):
    """Each token sees all of its window."""
    n, out = len(x[0]) // 3, []
    starts = [t - position for t, position in enumerate(positions)]
    for row, start in zip(x, starts):
        others = [y for y, other in zip(x, starts) if other == start and y is not row]
        past = [y[n : 2 * n] for y in others], [y[2 * n :] for y in others]
        out += microgpt.attention([row], [len(others)], n_head, past)
    return out


WRONG = [
    ("cross_entropy", "of sums", cross_entropy_of_sums),
    ("cross_entropy", "that overflows", cross_entropy_that_overflows),
    (
        "cross_entropy",
        "of token 0",
        lambda x, at: microgpt.cross_entropy(x, [0] * len(at)),
    ),
    ("add", "of one", lambda x, y: x),
    ("embedding", "counted from 1", lambda table, ids: [table[i - 1] for i in ids]),
    ("linear", "without bias", lambda x, w, b=None: microgpt.linear(x, w)),
    (
        "linear",
        "with a bias of its own",
        lambda x, w, b=None: microgpt.linear(x, w, b or range(len(w))),
    ),
    ("layernorm", "without eps", lambda *x: microgpt.layernorm(*x, eps=0.0)),
    ("layernorm", "of a sample", layernorm_of_a_sample),
    (
        "gelu",
        "by erf",
        lambda x: each(lambda a: a * (1 + math.erf(a / math.sqrt(2))) / 2, x),
    ),
    (
        "attention",
        "across windows",
        lambda x, at, n: microgpt.attention(x, range(len(at)), n),
    ),
    ("attention", "ahead", attention_ahead),
    ("attention", "with one head", lambda x, at, n: microgpt.attention(x, at, 1)),
]


@pytest.mark.parametrize(
    "name, fault, forward", WRONG, ids=[f"{x} {y}" for x, y, _ in WRONG]
)
def test_a_wrong_forward_pass_is_found_and_named_with_its_layer(name, fault, forward):
    with pytest.raises(
        ArithmeticError, match=f"^{name}, loss: .* by the scalar engine$"
    ):
        check_engine(engine(name, forward))


def attention_that_overflows(
    x, positions, n_head
):  # at scores of 40 * 40 * d / sqrt(d)
    y = microgpt.attention(x, positions, n_head)
    return y if max(map(max, x)) < 40 else each(lambda a: math.nan, y)


@pytest.mark.parametrize(
    "name, forward",
    [
        ("attention", attention_that_overflows),
        ("gelu", lambda x: each(lambda a: a + 1, microgpt.gelu(x))),
        ("linear", lambda *x: each(lambda a: a + 1, microgpt.linear(*x))),
    ],
    ids=["attention that overflows", "gelu with 1 too much", "linear with 1 too much"],
)
def test_faults_that_cross_entropy_alone_would_not_find(name, forward):
    with pytest.raises(ArithmeticError, match=f"^{name}"):
        check_engine(engine(name, forward))


# What it takes and gives


def test_the_tolerance_decides_and_the_largest_difference_is_reported():
    off = engine("cross_entropy", lambda *x: microgpt.cross_entropy(*x) * (1 + 1e-6))
    differences = check_engine(off, tolerance=1.1e-6)
    assert differences["cross_entropy"] == pytest.approx(1e-6, rel=1e-3)
    assert max(x for name, x in differences.items() if name != "cross_entropy") < 1e-12
    with pytest.raises(ArithmeticError, match="^cross_entropy, loss"):
        check_engine(off, tolerance=0.9e-6)


def test_only_some_layers_may_be_checked():
    off = engine("gelu", lambda x: x)
    assert list(check_engine(off, only=["linear", "cross_entropy"])) == [
        "cross_entropy",
        "linear",
    ]
    with pytest.raises(ArithmeticError, match="^gelu, loss"):
        check_engine(off, only=["gelu"])


@pytest.mark.parametrize("i, within", [(-1, max), (5, min)])
def test_an_embedding_that_takes_an_id_out_of_range_is_found(i, within):
    class Faulty(Tensor):
        __slots__ = ()

    @microgpt.embedding.register(Faulty)
    def _(table, ids):
        bound = 0 if within is max else len(table.data) - 1
        return microgpt.embedding.dispatch(Tensor)(
            table, [within(n, bound) for n in ids]
        )

    with pytest.raises(
        ArithmeticError, match=f"^embedding: takes id {i} of a table of 5 rows"
    ):
        check_engine(Faulty)


def test_layers_that_are_not_written_yet_are_named():
    class Bare(Value):
        __slots__ = ()
        lift = classmethod(lambda cls, x: cls(x))

    with pytest.raises(
        ArithmeticError,
        match="^cross_entropy: nothing is registered for Bare with "
        "cross_entropy, linear, add, embedding, layernorm, gelu, attention$",
    ):
        check_engine(Bare)


def test_a_layer_that_does_not_exist_does_not_pass():
    with pytest.raises(ValueError, match="gellu"):
        check_engine(Tensor, only=["gellu"])


def test_the_seed_decides_what_is_checked():
    def seen(seed):
        class Recorder(Tensor):
            __slots__ = ()
            lift = classmethod(lambda cls, x: lifted.append(repr(x)) or cls(x))

        lifted = []
        return check_engine(Recorder, seed=seed), lifted

    assert seen(1) == seen(1)
    assert (
        len(set(seen(1)[1]) & set(seen(2)[1])) <= 3
    )  # of some nothing is left to chance


# Command line

MINE = """import microgpt
class Mine(microgpt.Tensor):
    __slots__ = ()
microgpt.ENGINES["mine"] = Mine
"""
WRONG_GELU = MINE + "microgpt.gelu.register(Mine, lambda x: x)"


def command(*args, path=()):
    env = {**ENV, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, os.path.join(HERE, "check_engine.py"), *map(str, args)],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env=env,
    )


def layers_of(engine, stdout):
    """The layers that the command found to be equal."""
    found = [
        re.fullmatch(r"(\w+) +(\w+) +equal, but for (0|10\^-\d\d)", line)
        for line in stdout.splitlines()
    ]
    assert all(found) and {match[1] for match in found} == {engine}
    return [match[2] for match in found]


def test_the_command_prints_a_line_for_each_layer(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    for engine, modules in (("tensor", []), ("mine", [tmp_path / "mine.py"])):
        result = command(*modules)
        assert (result.returncode, result.stderr) == (0, "")
        assert layers_of(engine, result.stdout) == [*LAYERS, "GPT"]


def test_the_command_knows_the_engines_beside_it_by_name():
    pytest.importorskip("numpy")
    result = command("numpy_engine")
    assert (result.returncode, layers_of("numpy", result.stdout)) == (
        0,
        [*LAYERS, "GPT"],
    )


@pytest.mark.parametrize(
    "text, message",
    [
        (WRONG_GELU, r"mine: gelu, loss: .* by the scalar engine"),
        (None, r".*there is no such module, here or .*"),
        ("import missing_library", r".*: No module named 'missing_library'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, message):
    if text:
        (tmp_path / "mine.py").write_text(text)
    result = command(tmp_path / "mine.py")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(f"check_engine: {message}\n", result.stderr)


def test_a_missing_numpy_is_one_line_with_what_to_do(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError")
    result = command("numpy_engine", path=[tmp_path])
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        "check_engine: numpy_engine: .*pip install numpy\n", result.stderr
    )


@pytest.mark.parametrize(
    "file, text",
    [("mine.py", "x = 1"), ("tokenize.py", WRONG_GELU), ("nowhere/json.py", None)],
)
def test_a_module_without_an_engine_does_not_pass(tmp_path, file, text):
    if text:
        (tmp_path / file).write_text(text)
    result = command(tmp_path / file)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch("check_engine: .*\n", result.stderr)
