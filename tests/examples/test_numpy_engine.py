"""examples/engines/numpy_engine.py: NumPy gives what floats and Values give."""

import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import (
    GPT,
    CachedGPT,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    ValueEngine,
    generate,
)

np = pytest.importorskip("numpy")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.join(ROOT, "examples", "engines")

from numpy_engine import Array, NumpyEngine, to_arrays  # noqa: E402

ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
DOCUMENTS = "ada bob abba dada cab bad dab cad abcabcabcabc d".split()
# There are 9 windows: 7 steps of 3 go through more than two epochs. Biases of keys
# change nothing, so their gradients are rounding alone. AdamW makes steps of them,
# which are not small if lr is large.
SETTINGS = {
    "plain": {},
    "clip": {"clip": 1e-3, "seed": 1},
    "no clip, decay": {"clip": 0, "weight_decay": 0.5, "seed": -3},
    "long warmup": {"warmup": 100, "batch_size": 5},
    "held out": {"eval_every": 2, "val_fraction": 0.3, "seed": 2},
}


def near(x, tolerance=1e-10):
    return pytest.approx(x, rel=tolerance, abs=tolerance)


def flat(x):
    """All numbers of a table, of several in a list, or of several by name."""
    tables = x.values() if isinstance(x, dict) else x
    return np.concatenate([np.ravel(table) for table in tables])


def shaken(config, seed):
    """A model in which no gain is 1 and no bias 0, so that every number counts."""
    model = GPT(config, seed=seed)
    rng = random.Random(seed)
    for name, x in model.params.items():
        model.params[name] = microgpt.for_each(lambda p: p + rng.gauss(0, 0.3), x)
    return model


@st.composite
def models_and_batches(draw):
    n_head = draw(st.integers(1, 3))
    config = Config(
        vocab_size=draw(st.integers(1, 6)),
        block_size=draw(st.integers(1, 6)),
        n_layer=draw(st.integers(1, 2)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(1, 3)),
    )
    token = st.integers(0, config.vocab_size - 1)
    window = st.lists(token, min_size=2, max_size=config.block_size + 1)
    batch = draw(st.lists(window, min_size=1, max_size=4))
    return shaken(config, draw(st.integers(0, 999))), batch


def assert_gradients_near(model, batch, engine, tolerance=1e-10):
    """The engine's loss and gradients, table by table, are those of Values."""
    loss, gradients = ValueEngine().gradients(model, batch)
    found, arrays = engine.backward(model, batch)
    assert found == near(loss, tolerance)
    assert arrays.keys() == gradients.keys()
    for name, x in gradients.items():
        assert np.shape(arrays[name]) == np.shape(x), name
        assert flat(arrays[name]) == near(flat(x), tolerance), name
    return arrays


@settings(max_examples=30)
@given(models_and_batches())
def test_losses_and_gradients_are_the_scalar_engines_to_1e_10(model_and_batch):
    model, batch = model_and_batch
    assert_gradients_near(model, batch, NumpyEngine())


def test_a_batch_has_one_long_gradient_in_the_order_of_the_parameters():
    model = shaken(Config(vocab_size=4, block_size=4, n_head=2, n_embd=4), seed=5)
    model.params = dict(sorted(model.params.items()))  # another order than usual
    engine = NumpyEngine()
    batch = [[0, 1, 2, 0, 3], [2, 2]]
    tables = assert_gradients_near(model, batch, engine)
    prepared = engine.prepare(model)
    loss, gradient = engine.gradients(prepared, batch)
    assert loss == near(model.loss(batch))
    assert (gradient == flat([tables[name] for name in prepared.params])).all()
    assert engine.norm(gradient) == near(ValueEngine().norm(tables))
    assert list(prepared.params) == list(microgpt.parameter_shapes(model.config))


@settings(max_examples=30)
@given(models_and_batches())
def test_arrays_give_the_logits_and_losses_of_floats(model_and_batch):
    model, batch = model_and_batch
    arrays = to_arrays(model)
    assert arrays.loss(batch) == near(model.loss(batch))
    for window in batch:
        assert flat(arrays(window[:-1])) == near(flat(model(window[:-1])))


@settings(max_examples=20)
@given(models_and_batches(), st.integers(1, 4))
def test_tokens_may_be_read_in_pieces(model_and_batch, n):
    model, ((*tokens, _), *_) = model_and_batch
    readers = [CachedGPT(model), CachedGPT(to_arrays(model))]
    for start in range(0, len(tokens), n):
        expected, found = (read(tokens[start : start + n]) for read in readers)
        assert flat(found) == near(flat(expected))
    expected, found = (reader.past for reader in readers)
    assert list(found) == list(expected)
    for name, rows in expected.items():
        assert len(found[name]) == len(rows) == len(tokens)
        assert flat(found[name]) == near(flat(rows))


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 3}]
)
def test_arrays_write_what_floats_write(tokenizer, options):
    shape = Config(tokenizer.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=4)
    model = shaken(shape, seed=3)
    models = [model, to_arrays(model)]
    texts = [generate(x, tokenizer, "ab", max_tokens=30, **options) for x in models]
    assert texts[0] == texts[1]
    one, other = (microgpt.score(x, tokenizer, "abecedocebla") for x in models)
    assert [x.loss for x in one] == near([x.loss for x in other])
    assert [x.probability for x in one] == near([x.probability for x in other])


def test_writing_reads_each_token_once(monkeypatch):
    class Counting(CachedGPT):
        def __call__(self, tokens):
            counts.append(len(tokens))
            return super().__call__(tokens)

    counts = []
    monkeypatch.setattr(microgpt, "CachedGPT", Counting)
    model = to_arrays(shaken(Config(vocab_size=4, block_size=8), seed=0))
    assert len(list(microgpt.stream(model, [0, 1], end=99, max_tokens=5))) == 5
    assert counts == [2, 1, 1, 1, 1]


def test_scores_of_any_size_do_not_overflow():
    model = shaken(Config(vocab_size=4, block_size=4, n_head=1, n_embd=4), seed=0)
    for name in ("wte.weight", "h.0.attn.c_attn.weight"):
        model.params[name] = [[3000 * x for x in row] for row in model.params[name]]
    batch = [[0, 1, 2, 3], [2, 2]]
    assert model.loss(batch) > 1000
    assert_gradients_near(model, batch, NumpyEngine(), tolerance=1e-6)


@pytest.mark.parametrize(
    "tokens", [[0, 5], [0, -1], [-6], [0, 1, 2, 3, 4, 0, 1, 9], [0] * 9]
)
def test_a_token_or_position_outside_the_table_is_refused_as_by_floats(tokens):
    model = GPT(Config(vocab_size=5, block_size=8))
    with pytest.raises(ValueError) as expected:
        model(tokens)
    converted = {name: NumpyEngine().convert(x) for name, x in model.params.items()}
    for arrays in (to_arrays(model), GPT(model.config, converted)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(expected.value))}$"):
            arrays(tokens)


def test_an_input_that_is_not_a_node_leaves_the_gradients_of_the_others_alone():
    weight = np.array([[1.0, 2.0], [3.0, 5.0]])
    found = []
    for w in (Array(weight), weight):
        x = Array(np.array([[1.0, -2.0]]))
        b = Array(np.array([0.5, 0.25]))
        microgpt.cross_entropy(microgpt.linear(x, w, bias=b), [0]).backward()
        found.append([x.grad.tolist(), b.grad.tolist()])
    assert found[0] == found[1]


def test_single_numbers_of_an_array_take_part_in_formulas():
    def f(p):
        y = microgpt.linear(p["x"], p["w"])
        return microgpt.cross_entropy(y, [1, 0]) + y[0][1] * p["x"][1][0] + p["w"][1][1]

    params = {"x": [[1.0, -2.0], [0.5, 3.0]], "w": [[0.1, 0.2], [-0.4, 0.6]]}
    assert microgpt.gradcheck(f, params, NumpyEngine()) < 1e-8
    nodes = {name: NumpyEngine("float32").convert(x) for name, x in params.items()}
    f(nodes).backward()
    assert {x.grad.dtype for x in nodes.values()} == {np.dtype("float32")}


def test_float32_is_float32_throughout_and_near_float64():
    batch = [[0, 1, 2, 0, 3], [2, 2]]
    model = shaken(Config(vocab_size=4, block_size=4, n_head=2, n_embd=4), seed=5)
    engine = NumpyEngine("float32")
    arrays = engine.prepare(model)
    gradients = assert_gradients_near(model, batch, engine, tolerance=1e-4)
    kinds = {x.dtype for x in [*arrays.params.values(), *gradients.values()]}
    kinds |= {arrays.loss(batch).dtype, arrays([0, 1]).dtype}
    kinds |= {CachedGPT(arrays)([0, 1]).dtype, engine.gradients(arrays, batch)[1].dtype}
    assert kinds == {np.dtype("float32")}


# Training


def new_trainer(engine=None, **options):
    tokenizer = CharTokenizer(DOCUMENTS)
    shape = Config(tokenizer.vocab_size, block_size=6, n_head=2, n_embd=4)
    options = {"steps": 7, "batch_size": 3, "warmup": 2, "seed": 7, **options}
    return Trainer(
        shaken(shape, seed=1), tokenizer, DOCUMENTS, TrainConfig(**options), engine
    )


def run(trainer, steps=1000):
    """What the steps report, but for their speed, as rows of numbers."""
    return [
        [step.step, step.loss, step.learning_rate, step.val_loss or 0.0]
        for _, step in zip(range(steps), trainer)
    ]


def state(trainer):
    """Parameters, m and v."""
    tables = [trainer.model.params, trainer.optimizer.m, trainer.optimizer.v]
    return [flat(x) for x in tables]


def assert_same(a, b, tolerance=1e-10):
    assert a.step == b.step and a.model.params.keys() == b.model.params.keys()
    for x, y in zip(state(a), state(b)):
        assert np.isfinite(x).all() and y == near(x, tolerance)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_a_training_takes_the_steps_of_microgpts_own(options):
    trainers = [new_trainer(engine, **options) for engine in (None, NumpyEngine())]
    before = flat(trainers[0].model.params)
    expected, found = map(run, trainers)
    assert flat(found) == near(flat(expected)) and len(found) == 7
    assert_same(*trainers)
    assert np.abs(flat(trainers[1].model.params) - before).max() > 1e-4


@pytest.mark.parametrize("engines", [(None, NumpyEngine()), (NumpyEngine(), None)])
@pytest.mark.parametrize("steps", [0, 4])
def test_a_training_begun_in_the_one_goes_on_in_the_other(tmp_path, engines, steps):
    options = {"weight_decay": 0.1, "clip": 0.5, "eval_every": 3}
    whole, begun = (new_trainer(engines[0], **options) for _ in range(2))
    expected = run(whole)
    found = run(begun, steps)
    microgpt.save_training(begun, tmp_path)
    resumed = microgpt.load_training(tmp_path, DOCUMENTS, engines[1])
    assert flat(found + run(resumed)) == near(flat(expected))
    assert_same(whole, resumed)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_resumed_training_is_to_the_bit_one_that_never_stopped(tmp_path, dtype):
    whole, begun = (new_trainer(NumpyEngine(dtype)) for _ in range(2))
    expected = run(whole)
    found = run(begun, 4)
    microgpt.save_training(begun, tmp_path)
    resumed = microgpt.load_training(tmp_path, DOCUMENTS, NumpyEngine(dtype))
    assert found + run(resumed) == expected
    assert [x.tobytes() for x in state(resumed)] == [x.tobytes() for x in state(whole)]
    assert {x.dtype for x in state(resumed)} == {np.dtype(dtype)}
    assert flat(expected) == near(flat(run(new_trainer())), 1e-3)


def test_what_it_saves_opens_in_plain_floats(tmp_path):
    trainer = new_trainer(NumpyEngine())
    run(trainer)
    microgpt.save_training(trainer, tmp_path)
    model = microgpt.load_model(tmp_path)
    numbers = sum(model.params["wte.weight"], model.params["ln_f.bias"])
    assert {type(x) for x in numbers} == {float}
    assert (flat(model.params) == flat(trainer.model.params)).all()
    texts = [generate(x, trainer.tokenizer, seed=1) for x in (model, trainer.model)]
    assert texts[0] == texts[1]


# Command line


def command(script, *args, path=(), **options):
    env = {
        **ENV,
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, script), *map(str, args)],
        env=env,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        **options,
    )


def engine(*args, **options):
    return command("examples/engines/numpy_engine.py", *args, **options)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture
def without_numpy(tmp_path):
    """A folder that, first on the path, makes Python one without NumPy."""
    (tmp_path / "numpy.py").write_text("raise ImportError(\"No module named 'numpy'\")")
    return [tmp_path]


def test_the_command_prints_what_microgpts_own_does_but_for_speeds_and_its_name(file):
    options = [file, *"--steps 20 --eval-every 5 --n-layer 2".split()]
    options += ["--samples", 5, "--seed", -3]
    results = [command("microgpt.py", *options), engine(*options)]
    assert [(x.returncode, x.stderr) for x in results] == [(0, "")] * 2
    speed = r"[\d,]+ tokens/s  .* left"
    expected, found = (re.sub(speed, "", x.stdout) for x in results)
    assert found.replace("NumPy engine, float64", "tensor engine") == expected
    assert found.count("  loss ") == 10 and "NumPy engine, float64" in found


def test_options_may_stand_anywhere_and_what_is_saved_goes_on_in_microgpt(
    file, tmp_path
):
    short = ("--steps", 2, "--samples", 1)
    first = engine(*short, "--dtype", "float32", file, "--save", tmp_path / "kept")
    assert first.returncode == 0 and "NumPy engine, float32" in first.stdout
    more = command(
        "microgpt.py", file, "--resume", tmp_path / "kept", "--steps", 4, "--quiet"
    )
    again = engine(
        "--dtype=float64", file, "--resume", tmp_path / "kept", "--steps", 6, "--quiet"
    )
    written = command("microgpt.py", "sample", tmp_path / "kept", "--n", 1)
    assert [(x.returncode, x.stderr) for x in (more, again, written)] == [(0, "")] * 3


def test_help_names_its_own_option_and_all_of_microgpts():
    result = engine("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--dtype float32|float64" in result.stdout
    whole = command("microgpt.py", "--help").stdout
    rest = re.sub(r"^  --(engine|workers) .*\n( {10}.*\n)*", "", whole, flags=re.M)
    assert len(rest) < len(whole) and rest in result.stdout


@pytest.mark.parametrize(
    "options, message",
    [
        (("--workers", 2), "--workers"),
        (("--engine", "tensor"), "--engine"),
        (("--dtype", "float16"), "'float16'"),
        (("--dtype",), "--dtype"),
        (("--dtpye", "float32"), "--dtpye"),
        (("--steps", 0), "steps is 0"),
    ],
)
def test_bad_options_end_in_one_line(file, options, message):
    result = engine(file, *options)
    assert result.returncode != 0 and result.stdout == "" and message in result.stderr
    lines = result.stderr.splitlines()
    assert len([line for line in lines if not line.startswith("usage: ")]) == 1


def test_a_missing_numpy_is_one_line_with_what_to_do(without_numpy):
    result = engine("--steps", 2, path=without_numpy)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch("numpy_engine: .*pip install numpy\n", result.stderr)


def test_importing_it_without_numpy_is_an_import_error_with_what_to_do(
    without_numpy, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(
        "try:\n    import numpy_engine\nexcept ImportError as error:\n"
        "    print(error, error.__suppress_context__)"
    )
    result = command(script, path=[*without_numpy, HERE])
    assert re.fullmatch("numpy_engine: .*pip install numpy True\n", result.stdout), (
        result.stderr
    )
