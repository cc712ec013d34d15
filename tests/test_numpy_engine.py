"""examples/engines/numpy_engine.py: what floats, Values and microgpt.Trainer give, NumPy gives."""

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
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    batch_gradients,
    generate,
)

np = pytest.importorskip("numpy")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.join(ROOT, "examples", "engines")
sys.path.insert(0, HERE)

from numpy_engine import Array, NumpyTrainer, to_arrays  # noqa: E402

ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
DOCUMENTS = [
    "ada",
    "bob",
    "abba",
    "dada",
    "cab",
    "bad",
    "dab",
    "cad",
    "abcabcabcabc",
    "d",
]
# There are 9 windows: 7 steps of 3 go through more than two epochs. Biases of keys change nothing,
# so their gradients are rounding alone, of which AdamW makes steps, not small ones if lr is large.
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
    return np.concatenate(
        [np.ravel(y) for y in (x.values() if isinstance(x, dict) else x)]
    )


def shaken(config, seed):
    """A model in which no gain is 1 and no bias 0, so that every number counts."""
    model, rng = GPT(config, seed=seed), random.Random(seed)
    for name, x in model.params.items():
        rows = x if isinstance(x[0], list) else [x]
        rows = [[number + rng.gauss(0, 0.3) for number in row] for row in rows]
        model.params[name] = rows if isinstance(x[0], list) else rows[0]
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
    window = st.lists(
        st.integers(0, config.vocab_size - 1),
        min_size=2,
        max_size=config.block_size + 1,
    )
    return shaken(config, draw(st.integers(0, 999))), draw(
        st.lists(window, min_size=1, max_size=4)
    )


@settings(max_examples=30)
@given(models_and_batches(), st.sampled_from([1.0, 0.25]))
def test_losses_and_gradients_are_the_scalar_engines_to_1e_10(model_and_batch, share):
    model, batch = model_and_batch
    loss, gradients = batch_gradients(model, batch, "value", share)
    found, arrays = batch_gradients(model, batch, "numpy", share)
    assert found == near(loss) and arrays.keys() == gradients.keys()
    for name, x in gradients.items():
        assert np.shape(arrays[name]) == np.shape(x), name
        assert flat(arrays[name]) == near(flat(x)), name


@settings(max_examples=30)
@given(models_and_batches())
def test_bare_arrays_give_the_logits_and_traces_of_floats(model_and_batch):
    model, batch = model_and_batch
    expected, found = {}, {}
    assert to_arrays(model).loss(batch, found) == near(model.loss(batch, expected))
    assert list(found) == list(expected)
    for name, x in expected.items():
        if name.endswith(".attn"):  # heads, of a list of weights for each token
            assert [list(map(len, head)) for head in found[name]] == [
                list(map(len, head)) for head in x
            ]
            x, found[name] = (
                [w for head in heads for w in head] for heads in (x, found[name])
            )
        assert flat(found[name]) == near(flat(x)), name


@settings(max_examples=20)
@given(models_and_batches(), st.integers(1, 4))
def test_with_a_cache_tokens_may_come_in_pieces(model_and_batch, n):
    model, ((*tokens, _), *_) = model_and_batch
    caches, arrays = (model.new_cache(), model.new_cache()), to_arrays(model)
    for piece in (tokens[i : i + n] for i in range(0, len(tokens), n)):
        expected, found = {}, {}
        logits = model(piece, cache=caches[0], trace=expected)
        assert flat(arrays(piece, cache=caches[1], trace=found)) == near(flat(logits))
        weights, others = (sum(trace["h.0.attn"], []) for trace in (expected, found))
        assert [*map(len, others)] == [*map(len, weights)] and flat(others) == near(
            flat(weights)
        )
    assert [flat(x) for x in caches[1][-1]] == [near(flat(x)) for x in caches[0][-1]]


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 3}]
)
def test_arrays_write_what_floats_write(tokenizer, options):
    model = shaken(
        Config(tokenizer.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=4), 3
    )
    models = model, to_arrays(model)
    one, other = (
        generate(x, tokenizer, "ab", max_tokens=30, **options) for x in models
    )
    assert one == other
    one, other = (microgpt.score(x, tokenizer, "abecedocebla") for x in models)
    assert [x.loss for x in one] == near([x.loss for x in other])
    assert [x.probability for x in one] == near([x.probability for x in other])


def test_scores_of_any_size_do_not_overflow():
    model = shaken(Config(vocab_size=4, block_size=4, n_head=1, n_embd=4), seed=0)
    for name in ("wte.weight", "h.0.attn.c_attn.weight"):
        model.params[name] = [[3000 * x for x in row] for row in model.params[name]]
    loss, gradients = batch_gradients(model, [[0, 1, 2, 3], [2, 2]], "value")
    found, arrays = batch_gradients(model, [[0, 1, 2, 3], [2, 2]], "numpy")
    assert found == near(loss, 1e-6) and loss > 1000
    for name, x in gradients.items():
        assert flat(arrays[name]) == near(flat(x), 1e-6), name


@pytest.mark.parametrize(
    "tokens", [[0, 5], [0, -1], [-6], [0, 1, 2, 3, 4, 0, 1, 9], [0] * 9]
)
def test_a_token_or_position_outside_the_table_is_refused_as_by_floats(tokens):
    model = GPT(Config(vocab_size=5, block_size=8))
    with pytest.raises(ValueError) as expected:
        model(tokens)
    for arrays in (to_arrays(model), model.lift(Array)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(expected.value))}$"):
            arrays(tokens)


# Training


def new_trainer(cls, **options):
    tokenizer = CharTokenizer(DOCUMENTS)
    model = shaken(
        Config(tokenizer.vocab_size, block_size=6, n_head=2, n_embd=4), seed=1
    )
    config = TrainConfig(
        **{"steps": 7, "batch_size": 3, "warmup": 2, "seed": 7, **options}
    )
    return cls(model, tokenizer, DOCUMENTS, config)


def run(trainer, steps=1000):
    """What the steps report, but for their speed, as rows of numbers."""
    return [
        [step.step, step.loss, step.learning_rate, step.val_loss or 0.0]
        for _, step in zip(range(steps), trainer)
    ]


def state(trainer):
    return [
        flat(trainer.model.params),
        flat(trainer.optimizer.m),
        flat(trainer.optimizer.v),
    ]


def assert_same(a, b, tolerance=1e-10):
    assert a.step == b.step and a.model.params.keys() == b.model.params.keys()
    for x, y in zip(state(a), state(b)):
        assert np.isfinite(x).all() and y == near(x, tolerance)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_a_training_takes_the_steps_of_microgpts_own(options):
    trainers = [new_trainer(cls, **options) for cls in (Trainer, NumpyTrainer)]
    before = flat(trainers[0].model.params)
    expected, found = map(run, trainers)
    assert flat(found) == near(flat(expected)) and len(found) == 7
    assert_same(*trainers)
    assert np.abs(flat(trainers[1].model.params) - before).max() > 1e-4


@pytest.mark.parametrize(
    "first, second", [(Trainer, NumpyTrainer), (NumpyTrainer, Trainer)]
)
def test_a_training_begun_in_the_one_goes_on_in_the_other(tmp_path, first, second):
    options = {"weight_decay": 0.1, "clip": 0.5, "eval_every": 3}
    whole, begun = new_trainer(first, **options), new_trainer(first, **options)
    expected, found = run(whole), run(begun, 4)
    begun.save(tmp_path)
    resumed = second.load(tmp_path, DOCUMENTS)
    assert flat(found + run(resumed)) == near(flat(expected))
    assert_same(whole, resumed)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_resumed_training_is_to_the_bit_one_that_never_stopped(
    tmp_path, monkeypatch, dtype
):
    monkeypatch.setattr(NumpyTrainer, "dtype", dtype)
    whole, begun = new_trainer(NumpyTrainer), new_trainer(NumpyTrainer)
    expected, found = run(whole), run(begun, 4)
    begun.save(tmp_path)
    resumed = NumpyTrainer.load(tmp_path, DOCUMENTS)
    assert found + run(resumed) == expected
    assert [x.tobytes() for x in state(resumed)] == [x.tobytes() for x in state(whole)]
    assert {x.dtype for x in state(resumed)} == {np.dtype(dtype)}
    assert flat(expected) == near(flat(run(new_trainer(Trainer))), 1e-3)


def test_what_it_saves_opens_in_plain_floats(tmp_path):
    trainer = new_trainer(NumpyTrainer)
    run(trainer)
    trainer.save(tmp_path)
    model = GPT.load(tmp_path)
    assert {
        type(x) for x in sum(model.params["wte.weight"], model.params["ln_f.bias"])
    } == {float}
    assert (flat(model.params) == flat(trainer.model.params)).all()
    assert generate(model, trainer.tokenizer, seed=1) == generate(
        trainer.model, trainer.tokenizer, seed=1
    )


def test_float32_is_float32_throughout_and_near_float64():
    batch, seen = [[0, 1, 2, 0, 3], [2, 2]], {}
    model = shaken(Config(vocab_size=4, block_size=4, n_head=2, n_embd=4), seed=5)
    arrays = to_arrays(model, "float32")
    arrays.loss(batch, seen)
    loss, gradients = batch_gradients(model, batch, "value")
    lifted = arrays.lift(Array)
    found = lifted.loss(batch)
    found.backward()
    assert {
        x.dtype
        for x in [
            *arrays.params.values(),
            found.data,
            *(x.grad for x in lifted.params.values()),
            *(x for name, x in seen.items() if not name.endswith(".attn")),
        ]
    } == {np.dtype("float32")}
    assert float(found) == near(loss, 1e-4)
    for name, x in gradients.items():
        assert flat(Array.gradient(lifted.params[name])) == near(flat(x), 1e-4), name


def test_an_input_that_is_not_lifted_leaves_the_gradients_of_the_others_as_they_are():
    weight, found = np.array([[1.0, 2.0], [3.0, 5.0]]), []
    for w in (Array.lift(weight), weight):
        x, b = Array.lift([[1.0, -2.0]]), Array.lift([0.5, 0.25])
        microgpt.cross_entropy(microgpt.linear(x, w, b), [0]).backward()
        found.append([Array.gradient(x), Array.gradient(b)])
    assert found[0] == found[1]


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
    options = (
        file,
        "--steps",
        20,
        "--eval-every",
        5,
        "--n-layer",
        2,
        "--samples",
        5,
        "--seed",
        -3,
    )
    results = [command("microgpt.py", *options), engine(*options)]
    assert [(x.returncode, x.stderr) for x in results] == [(0, "")] * 2
    expected, found = [
        re.sub(r"[\d,]+ tokens/s  .* left", "", x.stdout) for x in results
    ]
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


def test_a_training_with_engine_numpy_goes_on_in_microgpt_too(file, tmp_path):
    options = (file, "--steps", 2, "--samples", 0, "--save", tmp_path / "kept")
    if (
        engine(*options, "--engine", "numpy").returncode == 0
    ):  # or it is refused at once
        again = (
            file,
            "--resume",
            tmp_path / "kept",
            "--steps",
            3,
            "--engine",
            "tensor",
        )
        assert command("microgpt.py", *again).stderr == ""


def test_help_names_its_own_option_and_all_of_microgpts():
    result, whole = engine("--help"), command("microgpt.py", "--help").stdout
    assert (result.returncode, result.stderr) == (0, "")
    assert "--dtype float32|float64" in result.stdout and whole in result.stdout


@pytest.mark.parametrize(
    "options, message",
    [
        (("--workers", 2), "workers is 2: "),
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
