"""examples/engines/numpy_engine.py: what is NumPy's own. See also test_engines.py."""

import os
import re

import pytest
from helpers import ENGINES, NAMES, close, command, fails, flat, program, shaken, works

import microgpt
from microgpt import GPT, CachedGPT, Config, ValueEngine

np = pytest.importorskip("numpy")

from numpy_engine import Array, NumpyEngine  # noqa: E402

ENGINE = program("numpy_engine", ENGINES)
BATCH = [[0, 1, 2, 0, 3], [2, 2]]
MODEL = shaken(GPT(Config(vocab_size=4, block_size=4, n_head=2, n_embd=4)), by=0.3)


def test_a_batch_has_one_long_gradient_in_the_order_of_the_parameters():
    params = dict(sorted(MODEL.params.items()))  # another order than usual
    engine = NumpyEngine()
    prepared = engine.prepare(GPT(MODEL.config, params))
    assert list(prepared.params) == list(microgpt.parameter_shapes(MODEL.config))
    loss, gradients = ValueEngine().gradients(MODEL, BATCH)
    found, gradient = engine.gradients(prepared, BATCH)
    assert flat(found) == close(loss)
    assert gradient.ndim == 1 and flat(gradient) == close(gradients)
    assert engine.norm(gradient) == pytest.approx(ValueEngine().norm(gradients))


def test_float32_is_float32_throughout_and_near_float64():
    engine = NumpyEngine("float32")
    model = engine.prepare(MODEL)
    loss, gradients = engine.backward(model, BATCH)
    expected, slopes = NumpyEngine().backward(MODEL, BATCH)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert flat(gradients) == close(slopes, 1e-4)
    arrays = [*model.params.values(), *gradients.values(), model.loss(BATCH)]
    arrays += [model([0, 1]), CachedGPT(model)([0, 1])]
    arrays += [engine.gradients(model, BATCH)[1]]
    assert {x.dtype for x in arrays} == {np.dtype("float32")}


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


# --- the command ---


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path


def test_the_command_prints_what_microgpts_own_does_but_for_speeds_and_its_name(folder):
    words = "names.txt --steps 20 --eval-every 5 --n-layer 2 --samples 5 --seed -3"
    speed = r"[\d,]+ tokens/s  .* left"
    expected = re.sub(speed, "", works(*words.split(), cwd=folder))
    found = re.sub(speed, "", works(*words.split(), script=ENGINE, cwd=folder))
    assert found.replace("NumPy engine, float64", "tensor engine") == expected
    assert found.count("  loss ") == 10 and "NumPy engine, float64" in found


def test_options_may_stand_anywhere_and_what_is_saved_goes_on_in_microgpt(folder):
    short = "--steps 2 --samples 1 --dtype float32 names.txt --save kept".split()
    shown = works(*short, script=ENGINE, cwd=folder)
    assert "NumPy engine, float32" in shown
    more = "names.txt --resume kept --quiet --steps".split()
    works(*more, 4, cwd=folder)
    works("--dtype=float64", *more, 6, script=ENGINE, cwd=folder)
    assert microgpt.read_model(folder / "kept")[1]["step"] == "6"


def test_help_names_its_own_option_and_all_of_microgpts():
    shown = works("--help", script=ENGINE)
    assert "--dtype float32|float64" in shown
    whole = works("--help")
    rest = re.sub(r"^  --(engine|workers) .*\n( {10}.*\n)*", "", whole, flags=re.M)
    assert len(rest) < len(whole) and rest in shown


@pytest.mark.parametrize(
    "options, word",
    [
        ("--workers 2", "--workers"),
        ("--engine tensor", "--engine"),
        ("--dtpye float32", "--dtpye"),
        ("--steps 0", "steps is 0"),
    ],
)
def test_bad_options_end_in_one_line(folder, options, word):
    fails(["names.txt", *options.split()], word, script=ENGINE, cwd=folder)


@pytest.mark.parametrize("options", ["--dtype float16", "--dtype"])
def test_a_bad_dtype_is_named(options):
    result = command(*options.split(), script=ENGINE)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch("usage: .*\nnumpy_engine: error: .*--dtype.*\n", result.stderr)


@pytest.mark.parametrize(
    "words, start",
    [([ENGINE], ""), (["-c", "import numpy_engine"], "ImportError: ")],
    ids=["run", "imported"],
)
def test_a_missing_numpy_is_one_line_with_what_to_do(tmp_path, words, start):
    (tmp_path / "numpy.py").write_text("raise ImportError")
    script, *words = words
    path = f"{tmp_path}{os.pathsep}{ENGINES}"
    result = command(*words, script=script, env={"PYTHONPATH": path})
    assert result.returncode == 1 and result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert re.fullmatch(f"{start}numpy_engine: .*pip install numpy", last)
    assert (before == []) == (start == "") and "During handling" not in result.stderr
