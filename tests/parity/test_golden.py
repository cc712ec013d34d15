"""microgpt agrees with PyTorch, with which make_golden.py has computed golden.json."""

import copy
import json
import math
import os
import subprocess
import sys

import pytest

import microgpt

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "golden.json"), encoding="utf-8") as file:
    GOLDEN = json.load(file)

every_case = pytest.mark.parametrize(
    "case", GOLDEN, ids=["one window", "several windows"]
)
every_engine = pytest.mark.parametrize(
    "engine", [kind() for kind in microgpt.ENGINES.values()], ids=microgpt.ENGINES
)


def model_of(case):
    """A microgpt model with a copy of the case's parameters."""
    shape = {name: case[name] for name in microgpt.Config.__dataclass_fields__}
    params = copy.deepcopy(case["params"])
    return microgpt.GPT(microgpt.Config(**shape), params)


def differences(ours, golden, where="", tolerance=1e-9):
    """What differs between numbers, rows or dicts of them: [(where, ours, golden)]."""
    if isinstance(golden, dict):
        assert list(ours) == list(golden), where
        places = {name: f"{where} {name}" for name in golden}
    elif isinstance(golden, list):
        assert len(ours) == len(golden), where
        places = {i: f"{where}[{i}]" for i in range(len(golden))}
    elif math.isclose(ours, golden, rel_tol=tolerance, abs_tol=tolerance):
        return []
    else:
        return [(where, ours, golden)]
    found = []
    for key, place in places.items():
        found += differences(ours[key], golden[key], place, tolerance)
    return found


def plain(x):
    """Values, rows of them, or a Tensor -> floats in the same shape."""
    x = getattr(x, "data", x)
    return [plain(part) for part in x] if isinstance(x, list) else x


def without_key_biases(params):
    """Parameters without those that have no effect.

    A bias of the keys moves all scores alike. Its gradient is 0 but for rounding, which
    Adam, dividing by eps, makes 10^8 times larger. So these differ in the tenth digit
    from one machine to the next, PyTorch's too.
    """
    others = {}
    for name, x in params.items():
        if name.endswith("c_attn.bias"):
            third = len(x) // 3
            x = x[:third] + x[2 * third :]
        others[name] = x
    return others


@every_case
def test_shapes(case):
    """The parameters have PyTorch's names and shapes."""
    shapes = {}
    for name, x in case["params"].items():
        shapes[name] = (len(x), len(x[0])) if isinstance(x[0], list) else (len(x),)
    assert microgpt.parameter_shapes(model_of(case).config) == shapes


@every_case
@pytest.mark.parametrize("number", ["float", *microgpt.ENGINES])
def test_logits_and_loss(case, number):
    """The logits and the loss are PyTorch's, on floats, Values and Tensors."""
    model = model_of(case)
    params = model.params
    if number != "float":
        engine = microgpt.ENGINES[number]()
        params = {name: engine.convert(x) for name, x in params.items()}
    logits = []
    plain_model = microgpt.GPT(model.config, params)
    for window in case["windows"]:
        logits += plain(plain_model(window[:-1]))
    assert differences(logits, case["logits"]) == []
    packed = microgpt.PackedGPT(model.config, params)
    for kind_of_model in plain_model, packed:
        loss = float(kind_of_model.loss(case["windows"]))
        assert differences(loss, case["loss"]) == []
    tokens, _ = microgpt.pack(case["windows"])
    packed.lengths = [len(window) - 1 for window in case["windows"]]
    assert differences(plain(packed(tokens)), case["logits"]) == []


@every_case
def test_windows_one_by_one(case):
    """A window's logits are PyTorch's, read at once, or token by token with a cache."""
    model = model_of(case)
    n = 0
    for window in case["windows"]:
        tokens = window[:-1]
        golden = case["logits"][n : n + len(tokens)]
        assert differences(model(tokens), golden) == []
        reader = microgpt.CachedGPT(model)
        assert differences([reader([token])[0] for token in tokens], golden) == []
        n += len(tokens)
    assert differences(microgpt.evaluate(model, case["windows"]), case["loss"]) == []


@every_case
@every_engine
def test_gradients(case, engine):
    """The gradients of all parameters are PyTorch's."""
    loss, gradients = engine.gradients(model_of(case), case["windows"])
    assert differences(loss, case["loss"]) == []
    assert differences(gradients, case["gradients"]) == []


def step_plainly(optimizer, gradients, lr, factor):
    """A step of the tutorial's AdamW, with gradients that are shortened beforehand."""
    shorter = {}
    for name, x in gradients.items():
        shorter[name] = microgpt.for_each(factor.__mul__, x)
    optimizer.step(shorter, lr)


@every_case
@every_engine
@pytest.mark.parametrize(
    "kind, take_step",
    [
        (microgpt.AdamW, step_plainly),
        (microgpt.FastAdamW, microgpt.FastAdamW.step),
    ],
    ids=["AdamW", "FastAdamW"],
)
def test_three_steps(case, engine, kind, take_step):
    """Losses, clipping and parameters are PyTorch's through three steps of AdamW."""
    model = model_of(case)
    options = dict(case["optimizer"])
    lr = options.pop("lr")
    steps = options.pop("steps")
    optimizer = kind(model.params, **options)
    losses = []
    factors = []
    for _ in range(steps):
        loss, gradients = engine.gradients(model, case["windows"])
        factor = microgpt.clip_factor(engine.norm(gradients), case["limit"])
        take_step(optimizer, gradients, lr, factor)
        losses.append(loss)
        factors.append(factor)
    assert min(factors) < 1  # it really was clipped
    assert differences(losses, case["losses"]) == []
    assert differences(factors, case["factors"]) == []
    trained = without_key_biases(model.params)
    assert differences(trained, without_key_biases(case["trained"])) == []
    assert differences(model.params, case["trained"], tolerance=1e-8) == []


def test_both_sides_of_the_limit():
    """Among the golden steps are some that clip and some that do not."""
    factors = [factor for case in GOLDEN for factor in case["factors"]]
    assert min(factors) < 1 == max(factors)


def test_golden_is_reproducible(tmp_path):
    """PyTorch, where there is one, writes the golden numbers again."""
    pytest.importorskip("torch")
    path = tmp_path / "golden.json"
    program = os.path.join(HERE, "make_golden.py")
    subprocess.run([sys.executable, program, str(path)], check=True)
    answers = json.loads(path.read_text(encoding="utf-8"))
    for again, case in zip(answers, copy.deepcopy(GOLDEN)):
        assert differences(again["trained"], case["trained"], tolerance=1e-8) == []
        for answer in again, case:
            answer["trained"] = without_key_biases(answer["trained"])
        assert differences(again, case, tolerance=1e-12) == []
