"""microgpt agrees with PyTorch: golden.json is what make_golden.py has computed with it."""

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
every_engine = pytest.mark.parametrize("engine", ["value", "tensor"])


def model_of(case):
    """A microgpt model with a copy of the case's parameters."""
    config = microgpt.Config(
        **{name: case[name] for name in microgpt.Config.__dataclass_fields__}
    )
    return microgpt.GPT(config, copy.deepcopy(case["params"]))


def differences(ours, golden, where="", tolerance=1e-9):
    """What differs between numbers, rows or dicts of them: [(where, ours, golden)]."""
    if isinstance(golden, dict):
        assert list(ours) == list(golden), where
        return sum(
            [
                differences(ours[name], golden[name], f"{where} {name}", tolerance)
                for name in golden
            ],
            [],
        )
    if isinstance(golden, list):
        assert len(ours) == len(golden), where
        return sum(
            [
                differences(a, b, f"{where}[{i}]", tolerance)
                for i, (a, b) in enumerate(zip(ours, golden))
            ],
            [],
        )
    same = math.isclose(ours, golden, rel_tol=tolerance, abs_tol=tolerance)
    return [] if same else [(where, ours, golden)]


def plain(x):
    """Values, rows of them, or a Tensor -> floats in the same shape."""
    return [plain(item) for item in x] if isinstance(x, list) else getattr(x, "data", x)


def without_key_biases(params):
    """Parameters without those that have no effect: a bias of the keys moves all scores alike.

    Their gradient is 0 but for rounding, which Adam, dividing by eps, makes 10^8 times larger; so
    they differ in the tenth digit from one machine to the next, PyTorch's too.
    """
    return {
        name: x[: len(x) // 3] + x[len(x) // 3 * 2 :]
        if name.endswith("c_attn.bias")
        else x
        for name, x in params.items()
    }


@every_case
def test_shapes(case):
    """The parameters have PyTorch's names and shapes."""
    shapes = {
        name: (len(x), len(x[0])) if isinstance(x[0], list) else (len(x),)
        for name, x in case["params"].items()
    }
    assert microgpt.parameter_shapes(model_of(case).config) == shapes


@every_case
@pytest.mark.parametrize("number", [None, microgpt.Value, microgpt.Tensor])
def test_logits_and_loss(case, number):
    """The logits and the loss are PyTorch's, on floats, Values and Tensors."""
    model = model_of(case)
    model = model.lift(number) if number else model
    tokens, positions, _ = microgpt.pack(case["windows"])
    assert differences(plain(model(tokens, positions)), case["logits"]) == []
    assert differences(float(model.loss(case["windows"])), case["loss"]) == []


@every_case
def test_windows_one_by_one(case):
    """A window's logits are PyTorch's when it is alone, and read token by token with a cache."""
    model, n = model_of(case), 0
    for window in case["windows"]:
        tokens, cache = window[:-1], model.new_cache()
        golden = case["logits"][n : n + len(tokens)]
        assert differences(model(tokens), golden) == []
        assert (
            differences([model([token], cache=cache)[0] for token in tokens], golden)
            == []
        )
        n += len(tokens)
    assert differences(microgpt.evaluate(model, case["windows"]), case["loss"]) == []


@every_case
@every_engine
def test_gradients(case, engine):
    """The gradients of all parameters are PyTorch's."""
    loss, gradients = microgpt.batch_gradients(model_of(case), case["windows"], engine)
    assert differences(loss, case["loss"]) == []
    assert differences(gradients, case["gradients"]) == []


@every_case
@every_engine
def test_three_steps(case, engine):
    """Losses, clipping and parameters are PyTorch's through three steps of AdamW."""
    model, options = model_of(case), dict(case["optimizer"])
    lr, steps = options.pop("lr"), options.pop("steps")
    optimizer, losses, factors = microgpt.AdamW(model.params, **options), [], []
    for _ in range(steps):
        loss, gradients = microgpt.batch_gradients(model, case["windows"], engine)
        losses.append(loss)
        factors.append(microgpt.clip_factor(gradients, case["limit"]))
        optimizer.step(gradients, lr, factors[-1])
    assert min(factors) < 1  # it really was clipped
    assert differences(losses, case["losses"]) == []
    assert differences(factors, case["factors"]) == []
    assert (
        differences(
            without_key_biases(model.params), without_key_biases(case["trained"])
        )
        == []
    )
    assert differences(model.params, case["trained"], tolerance=1e-8) == []


def test_both_sides_of_the_limit():
    """Among the golden steps are some that clip and some that do not."""
    factors = [factor for case in GOLDEN for factor in case["factors"]]
    assert min(factors) < 1 == max(factors)


def test_golden_is_reproducible(tmp_path):
    """PyTorch, where there is one, writes the golden numbers again."""
    pytest.importorskip("torch")
    path = tmp_path / "golden.json"
    subprocess.run(
        [sys.executable, os.path.join(HERE, "make_golden.py"), str(path)], check=True
    )
    for again, case in zip(
        json.loads(path.read_text(encoding="utf-8")), copy.deepcopy(GOLDEN)
    ):
        assert differences(again["trained"], case["trained"], tolerance=1e-8) == []
        for answer in again, case:
            answer["trained"] = without_key_biases(answer["trained"])
        assert differences(again, case, tolerance=1e-12) == []
