"""microgpt agrees with PyTorch, with which make_golden.py has computed golden.json."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import close, flat

import microgpt
from microgpt import CachedGPT, Config, PackedGPT

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))

every_case = pytest.mark.parametrize(
    "case", GOLDEN, ids=["one window", "several windows"]
)
every_engine = pytest.mark.parametrize("engine", microgpt.ENGINES.values())


def golden(x):
    return close(x, tolerance=1e-9)


def model_of(case):
    """A microgpt model with a copy of the case's parameters."""
    shape = {name: case[name] for name in Config.__dataclass_fields__ if name in case}
    return microgpt.GPT(Config(**shape), copy.deepcopy(case["params"]))


def without_key_biases(params):
    """Parameters without those that have no effect.

    A bias of the keys moves all scores alike. Its gradient is 0 but for rounding, which
    Adam, dividing by eps, makes 10^8 times larger. So these differ in the tenth digit
    from one machine to the next, PyTorch's too.
    """
    others = dict(params)
    for name, x in params.items():
        if name.endswith("c_attn.bias"):
            third = len(x) // 3
            others[name] = x[:third] + x[2 * third :]
    return others


@every_case
def test_shapes(case):
    shapes = {}
    for name, x in case["params"].items():
        shapes[name] = (len(x), len(x[0])) if isinstance(x[0], list) else (len(x),)
    expected = microgpt.parameter_shapes(model_of(case).config)
    assert list(shapes.items()) == list(expected.items())


@every_case
@pytest.mark.parametrize("kind", [microgpt.GPT, PackedGPT])
@pytest.mark.parametrize("number", ["float", *microgpt.ENGINES])
def test_logits_and_loss(case, kind, number):
    model = model_of(case)
    params = model.params
    if number != "float":
        engine = microgpt.ENGINES[number]()
        params = {name: engine.convert(x) for name, x in params.items()}
    model = kind(model.config, params)
    assert flat(float(model.loss(case["windows"]))) == golden(case["loss"])
    if kind is PackedGPT:
        model.lengths = [len(window) - 1 for window in case["windows"]]
        logits = model(microgpt.pack(case["windows"])[0])
    else:
        logits = [model(window[:-1]) for window in case["windows"]]
    assert flat(logits) == golden(case["logits"])


@every_case
def test_token_by_token(case):
    model = model_of(case)
    logits = []
    for window in case["windows"]:
        reader = CachedGPT(model)
        logits += [reader([token])[0] for token in window[:-1]]
    assert flat(logits) == golden(case["logits"])
    loss = microgpt.evaluate(model, case["windows"])
    assert flat(loss) == golden(case["loss"])


@every_case
@every_engine
def test_gradients(case, engine):
    loss, gradients = engine().gradients(model_of(case), case["windows"])
    assert flat(loss) == golden(case["loss"])
    assert list(gradients) == list(case["gradients"])
    assert flat(gradients) == golden(case["gradients"])


@every_case
@every_engine
@pytest.mark.parametrize("kind", [microgpt.AdamW, microgpt.FastAdamW])
def test_three_steps(case, engine, kind):
    """Losses, clipping and parameters through three steps of AdamW."""
    model = model_of(case)
    options = dict(case["optimizer"])
    lr = options.pop("lr")
    n_steps = options.pop("steps")
    optimizer = kind(model.params, **options)
    losses = []
    factors = []
    for _ in range(n_steps):
        loss, gradients = engine().gradients(model, case["windows"])
        factor = microgpt.clip_factor(engine().norm(gradients), case["limit"])
        if kind is microgpt.FastAdamW:
            optimizer.step(gradients, lr, factor)
        else:
            shorter = {}
            for name, x in gradients.items():
                shorter[name] = microgpt.for_each(factor.__mul__, x)
            optimizer.step(shorter, lr)
        losses.append(loss)
        factors.append(factor)
    assert losses == golden(case["losses"])
    assert factors == golden(case["factors"])
    assert min(factors) < 1 == max(factors)  # some steps are clipped, and some are not
    expected = without_key_biases(case["trained"])
    assert flat(without_key_biases(model.params)) == golden(expected)
    assert flat(model.params) == close(case["trained"], tolerance=1e-8)


def test_golden_is_reproducible(tmp_path):
    """PyTorch, where there is one, writes the golden numbers again."""
    pytest.importorskip("torch")
    path = tmp_path / "golden.json"
    program = [sys.executable, HERE / "make_golden.py", path]
    subprocess.run(program, check=True)
    again = json.loads(path.read_text(encoding="utf-8"))
    assert len(again) == len(GOLDEN)
    for answer, case in zip(again, copy.deepcopy(GOLDEN)):
        assert flat(answer["trained"]) == close(case["trained"], tolerance=1e-8)
        for x in answer, case:
            x["trained"] = without_key_biases(x["trained"])
        assert list(answer) == list(case) and flat(answer) == close(case)
