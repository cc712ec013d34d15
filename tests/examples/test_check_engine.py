"""examples/engines/check_engine.py: right engines pass, and wrong ones are told why."""

import math
import re

import pytest
from check_engine import CHECKS, check_engine
from helpers import ENGINES, command, program, works

import microgpt
from microgpt import FastAdamW, Tensor, TensorEngine, for_each

INPUTS = """
    cross_entropy-x linear-x linear-weight linear-bias add-x add-y embedding-table
    layernorm-x layernorm-gain layernorm-bias gelu-x attention-x packed_attention-x
""".split()


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


@pytest.mark.parametrize("name", microgpt.ENGINES)
@pytest.mark.parametrize("as_object", [False, True])
def test_right_engines_pass_every_check(name, as_object):
    engine = microgpt.ENGINES[name]
    differences = check_engine(engine() if as_object else engine)
    assert list(differences) == CHECKS
    assert all(0 <= x < 1e-12 for x in differences.values())
    assert any(differences.values()) == (name != "value")


# --- wrong gradients ---


def off_in_the_last(x):
    row = x[-1] if isinstance(x[0], list) else x
    row[-1] += 1e-6
    return x


def transposed(x):
    return microgpt.transpose(x) if isinstance(x[0], list) else x[1:]


FAULTS = {  # and what is said
    "doubled": (lambda x: for_each(lambda a: 2 * a, x), ": .* by the scalar engine"),
    "forgotten": (lambda x: for_each(lambda a: 0.0, x), ": .* by the scalar engine"),
    "not a number": (lambda x: for_each(lambda a: math.nan, x), ": nan, and "),
    "off": (off_in_the_last, ": .* by the scalar engine"),
    "transposed": (transposed, " is not of the shape"),
    "longer": (lambda x: [*x, x[-1]], " is not of the shape"),
    "deeper": (lambda x: for_each(lambda a: [a], x), " is not of the shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", INPUTS)
def test_a_wrong_gradient_is_found_and_named_with_its_layer(where, fault):
    name, input_name = where.split("-")
    n = [x for x in INPUTS if x.startswith(f"{name}-")].index(where)
    change, message = FAULTS[fault]
    places = []

    def backward(rule, dy):
        gradients = [for_each(float, x) for x in rule(dy)]  # copies
        if n < len(gradients):
            x = gradients[n]
            rows = isinstance(x[0], list)
            places.append(f"[{len(x) - 1}]" + (f"[{len(x[-1]) - 1}]" if rows else ""))
            gradients[n] = change(x)
        return gradients

    with pytest.raises(ArithmeticError) as error:
        check_engine(faulty(name, backward=backward))
    place = re.escape(places[-1]) if fault == "off" else r"(\[\d+\])*"
    start = f"{name}, gradient of {input_name}{place}"
    assert re.match(start + message, str(error.value))


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
    wrong = faulty("cross_entropy", backward=lambda rule, dy: rule(1.0))
    with pytest.raises(ArithmeticError, match="^cross_entropy"):
        check_engine(wrong)


# --- wrong forward passes ---


def overflowing(logits, targets):
    losses = []
    for row, target in zip(logits, targets):
        powers = [math.exp(x) if x < 700 else math.inf for x in row]
        losses.append(math.log(sum(powers) or 1e-300) - row[target])
    return sum(losses) / len(losses)


def looking_ahead(x, n_head):
    """Each token sees all others, as if it were the last one."""
    out = []
    for t in range(len(x)):
        others = x[:t] + x[t + 1 :]
        out.append(microgpt.attention([*others, x[t]], n_head)[-1])
    return out


def without_large_scores(x, n_head):  # of 40 * 40 * d / sqrt(d)
    y = microgpt.attention(x, n_head)
    return y if max(map(max, x)) < 40 else for_each(lambda a: math.nan, y)


def of_equal_lengths(x, n_head, lengths):
    equal = [len(x) // len(lengths)] * len(lengths)
    equal[-1] += len(x) - sum(equal)
    return microgpt.packed_attention(x, n_head, equal)


def of_a_sample(x, gain, bias):
    """Divided by n - 1 instead of n."""
    wider = [[a * math.sqrt((len(row) - 1) / len(row)) for a in row] for row in x]
    return microgpt.layernorm(wider, gain, bias)


def by_erf(x):
    return for_each(lambda a: a * (1 + math.erf(a / math.sqrt(2))) / 2, x)


def plus_1(y):
    return for_each(lambda a: a + 1, y)


M = microgpt
WRONG = {
    "cross_entropy: sums": lambda x, t: M.cross_entropy(x, t) * len(t),
    "cross_entropy: overflows": overflowing,
    "cross_entropy: of token 0": lambda x, t: M.cross_entropy(x, [0] * len(t)),
    "add: of one": lambda x, y: x,
    "embedding: counted from 1": lambda table, ids: [table[i - 1] for i in ids],
    "linear: without bias": lambda x, weight, bias=None: M.linear(x, weight),
    "linear: with a bias of its own": lambda x, weight, bias=None: M.linear(
        x, weight, bias or list(range(len(weight)))
    ),
    "layernorm: without eps": lambda *x: M.layernorm(*x, eps=0.0),
    "layernorm: of a sample": of_a_sample,
    "gelu: by erf": by_erf,
    "attention: ahead": looking_ahead,
    "attention: with one head": lambda x, n_head: M.attention(x, 1),
    "packed_attention: across windows": lambda x, n, lengths: M.attention(x, n),
    "packed_attention: of equal lengths": of_equal_lengths,
    # These three cross_entropy alone would not find.
    "linear: plus 1": lambda *x: plus_1(M.linear(*x)),
    "gelu: plus 1": lambda x: plus_1(M.gelu(x)),
    "attention: overflows": without_large_scores,
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_forward_pass_is_found_and_named_with_its_layer(what):
    name = what.split(":")[0]
    with pytest.raises(ArithmeticError, match=f"^{name}, ") as error:
        check_engine(faulty(name, WRONG[what]))
    loss = re.search(", loss: .* by the scalar engine$", str(error.value))
    assert loss or "plus 1" in what


# --- wrong in other ways ---


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


class EvaluatesNothing(TensorEngine):
    def prepare(self, model):
        class Wrong(microgpt.GPT):
            def loss(self, windows):
                return super().loss(windows) if len(windows) > 1 else 1.0

        return Wrong(model.config, model.params)


@pytest.mark.parametrize(
    "engine, where",
    [
        (ForgetsToDecay, "loss of step 2"),
        (ClipsTwice, "loss of step 2"),
        (SharesNothing, "loss of step 1"),
        (PreparesAnother, "loss of step 1"),
        (EvaluatesNothing, "held-out loss after step 2"),
    ],
)
def test_a_fault_in_another_part_of_an_engine_shows_in_a_training(engine, where):
    with pytest.raises(ArithmeticError, match=f"^Trainer, {where}"):
        check_engine(engine)
    assert list(check_engine(engine, only=CHECKS[:-1])) == CHECKS[:-1]


def test_a_fault_that_shows_only_in_reading_with_a_past_is_found():
    np = pytest.importorskip("numpy")
    import numpy_engine

    right = numpy_engine.attention_with_past

    def wrong(x, n_head, past):
        return right(x, n_head, [])

    microgpt.attention_with_past.register(np.ndarray, wrong)
    try:
        with pytest.raises(ArithmeticError, match="^Trainer, logits of"):
            check_engine(numpy_engine.NumpyEngine)
    finally:
        microgpt.attention_with_past.register(np.ndarray, right)
    assert check_engine(numpy_engine.NumpyEngine)


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

    names = ", ".join(CHECKS[:-2])
    message = f"^cross_entropy: nothing is registered for Bare with {names}$"
    with pytest.raises(ArithmeticError, match=message):
        check_engine(engine_of(Bare))


# --- options, and the command ---


def test_the_tolerance_decides_and_the_largest_difference_is_reported():
    def a_little_more(logits, targets):
        return microgpt.cross_entropy(logits, targets) * (1 + 1e-6)

    off = faulty("cross_entropy", a_little_more)
    differences = check_engine(off, tolerance=1.1e-6)
    assert differences.pop("cross_entropy") == pytest.approx(1e-6, rel=1e-3)
    assert max(differences[name] for name in CHECKS[1:-2]) < 1e-12
    with pytest.raises(ArithmeticError, match="^cross_entropy, loss"):
        check_engine(off, tolerance=0.9e-6)


def test_only_some_layers_may_be_checked():
    off = faulty("gelu", lambda x: x)
    only = ["linear", "cross_entropy"]
    assert list(check_engine(off, only=only)) == ["cross_entropy", "linear"]
    with pytest.raises(ArithmeticError, match="^gelu, loss"):
        check_engine(off, only=["gelu"])
    with pytest.raises(ValueError, match="gellu"):
        check_engine(off, only=["gellu"])


def test_the_seed_decides_what_is_checked():
    def seen(seed):
        class Recorder(TensorEngine):
            def convert(self, x):
                converted.append(repr(x))
                return super().convert(x)

        converted = []
        check_engine(Recorder, seed=seed)
        return converted

    one = seen(1)
    assert one == seen(1)
    assert len(set(one) & set(seen(2))) <= 4  # some inputs leave nothing to chance


SCRIPT = program("check_engine", ENGINES)
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


@pytest.mark.parametrize("name", ["tensor", "mine", "numpy"])
def test_the_command_prints_a_line_for_each_check(tmp_path, name):
    words = {"tensor": [], "mine": [tmp_path / "mine.py"], "numpy": ["numpy_engine"]}
    if name == "numpy":
        pytest.importorskip("numpy")
    (tmp_path / "mine.py").write_text(MINE)
    lines = works(*words[name], script=SCRIPT).splitlines()
    line = rf"{name} +(\w+) +equal, but for (?:0|10\^-\d\d)"
    assert [re.fullmatch(line, x)[1] for x in lines] == CHECKS


NO_MODULE = "there is no such module, here or .*"
NO_CLASS = "has no class that .*"


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("mine.py", WRONG_GELU, "mine: gelu.*"),
        ("tokenize.py", WRONG_GELU, "mine: gelu.*"),
        ("mine.py", "import missing", ".*mine.py: No module named 'missing'"),
        ("mine.py", "x = 1", f".*mine.py: .*mine.py {NO_CLASS}"),
        ("mine.py", NOT_MINE, f".*mine.py: .*mine.py {NO_CLASS}"),
        ("mine.py", None, f".*mine.py: {NO_MODULE}"),
        ("nowhere/json.py", None, f".*json.py: {NO_MODULE}"),
        ("mine.txt", "x = 1", f".*mine.txt: {NO_MODULE}"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, file, text, message):
    if text:
        (tmp_path / file).write_text(text)
    result = command(tmp_path / file, script=SCRIPT)
    assert result.returncode == 1
    assert re.fullmatch(f"check_engine: {message}\n", result.stderr)
    assert "gelu" not in result.stdout


def test_a_missing_numpy_is_one_line_with_what_to_do(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError")
    env = {"PYTHONPATH": str(tmp_path)}
    result = command("numpy_engine", script=SCRIPT, env=env)
    assert (result.returncode, result.stdout) == (1, "")
    message = "check_engine: numpy_engine: .*pip install numpy\n"
    assert re.fullmatch(message, result.stderr)
