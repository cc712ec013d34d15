"""Chapter 6: AdamW and the learning rate. Chapters 11 and 12: FastAdamW and clipping.

(PyTorch's AdamW: see test_golden.py.)
"""

import math
import random

import pytest
from helpers import close, flat, row, rows
from hypothesis import given
from hypothesis import strategies as st

from microgpt import (
    ENGINES,
    AdamW,
    Config,
    FastAdamW,
    ValueEngine,
    Workers,
    clip_factor,
    for_each,
    is_linear_weight,
    learning_rate,
    parameter_shapes,
    to_rows,
)

every_optimizer = pytest.mark.parametrize("kind", [AdamW, FastAdamW])
WEIGHT = "h.0.mlp.c_fc.weight"


@every_optimizer
def test_the_first_step_is_the_learning_rate_whatever_the_gradient(kind):
    params = {"w": [[1.0, 1.0, 1.0]], "b": [1.0]}
    kind(params).step({"w": [[1e-3, -5.0, 100.0]], "b": [0.0]}, lr=0.1)
    assert params["w"][0] == pytest.approx([0.9, 1.1, 0.9], abs=1e-5)
    assert params["b"] == [1.0]


@every_optimizer
def test_steps_follow_the_formula_of_the_paper(kind):
    lr = 0.05
    beta1 = 0.9
    beta2 = 0.95
    eps = 1e-3
    decay = 0.1
    params = {WEIGHT: [[2.0]]}
    optimizer = kind(params, beta1, beta2, eps, decay)
    p = 2.0
    m = v = 0.0
    for t, g in enumerate([0.3, -0.2, 0.5, 0.1], start=1):
        optimizer.step({WEIGHT: [[g]]}, lr)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p -= lr * decay * p
        p -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        assert optimizer.t == t
        assert params[WEIGHT][0][0] == pytest.approx(p, rel=1e-13)
        assert optimizer.m[WEIGHT][0][0] == pytest.approx(m, rel=1e-13)
        assert optimizer.v[WEIGHT][0][0] == pytest.approx(v, rel=1e-13)


@every_optimizer
def test_decay_spares_biases_gains_and_embeddings(kind):
    names = [
        "h.0.attn.c_attn.weight",
        "h.0.mlp.c_proj.weight",
        "wte.weight",
        "wpe.weight",
        "h.0.ln_1.weight",
        "h.0.attn.c_attn.bias",
        "ln_f.bias",
    ]
    params = {name: [1.0] for name in names}
    kind(params, weight_decay=0.5).step({name: [0.0] for name in names}, lr=0.1)
    assert [params[name][0] for name in names] == [0.95, 0.95, 1, 1, 1, 1, 1]


def test_the_linear_weights_are_the_four_of_each_block():
    names = [name for name in parameter_shapes(Config(5)) if is_linear_weight(name)]
    assert names == [
        "h.0.attn.c_attn.weight",
        "h.0.attn.c_proj.weight",
        "h.0.mlp.c_fc.weight",
        "h.0.mlp.c_proj.weight",
    ]


@given(
    st.integers(0, 999),
    st.integers(1, 6),
    st.floats(1e-3, 1),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.floats(1e-4, 1),
)
def test_the_fast_optimizer_takes_the_steps_of_the_plain_one(
    seed, steps, factor, decay, lr
):
    """Parameters, m and v are the same to 1e-12, clipped or not, with decay or not."""
    rng = random.Random(seed)
    options = {
        "beta1": rng.uniform(0.5, 0.99),
        "beta2": rng.uniform(0.9, 0.999),
        "eps": rng.choice([1e-8, 1e-3]),
        "weight_decay": decay,
    }

    def numbers(seed):
        return {
            WEIGHT: rows(3, 4, seed),
            "wte.weight": rows(2, 4, seed),
            "ln_f.bias": row(4, seed),
        }

    plain = AdamW(numbers(seed), **options)
    fast = FastAdamW(numbers(seed), **options)
    for step in range(steps):
        gradients = numbers(seed + step)
        kept = flat(gradients)
        shorter = {name: for_each(factor.__mul__, x) for name, x in gradients.items()}
        plain.step(shorter, lr)
        fast.step(gradients, lr, factor)
        assert flat(gradients) == kept
    assert plain.t == fast.t == steps
    assert flat(fast.params) == close(plain.params)
    assert flat(fast.m) == close(plain.m)
    assert flat(fast.v) == close(plain.v)


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.floats(0.01, 10))
def test_clipping_shortens_the_whole_gradient_to_the_limit(numbers, limit):
    gradients = {"w": [[numbers[0], numbers[1]]], "b": [numbers[2]]}
    norm = math.sqrt(sum(x * x for x in numbers))
    for engine in [*(kind() for kind in ENGINES.values()), Workers(ValueEngine(), 2)]:
        assert engine.norm(gradients) == pytest.approx(norm)
    factor = clip_factor(ValueEngine().norm(gradients), limit)
    assert factor * norm == pytest.approx(min(norm, limit))
    assert clip_factor(norm, 0) == 1.0


def test_gradients_within_the_limit_are_left_as_they_are():
    assert clip_factor(2.0, 2.0) == 1.0
    assert clip_factor(0.0, 2.0) == 1.0
    assert clip_factor(8.0, 2.0) == 0.25


def test_a_factor_scales_the_gradient_of_a_step():
    a = {"w": [[1.0, 2.0]]}
    b = {"w": [[1.0, 2.0]]}
    one = FastAdamW(a, eps=0.1)
    other = FastAdamW(b, eps=0.1)
    for _ in range(3):
        one.step({"w": [[0.4, -0.2]]}, 0.1, factor=0.25)
        other.step({"w": [[0.1, -0.05]]}, 0.1)
    assert a == b


def test_the_learning_rate_rises_and_falls_in_a_line():
    rates = [learning_rate(step, 100, 2.0, warmup=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[99] == pytest.approx(2.0 / 90)
    rises = [b - a for a, b in zip(rates[:9], rates[1:10])]
    falls = [a - b for a, b in zip(rates[10:], rates[11:])]
    assert rises == pytest.approx([0.2] * len(rises))
    assert falls == pytest.approx([2.0 / 90] * len(falls))


@given(st.integers(1, 50), st.integers(0, 80))
def test_the_learning_rate_is_never_above_the_peak_or_below_nothing(steps, warmup):
    for step in range(steps):
        assert 0 < learning_rate(step, steps, 1.0, warmup) <= 1


@every_optimizer
def test_it_descends(kind):
    params = {"w": [[3.0, -2.0]]}
    optimizer = kind(params)
    for step in range(300):
        gradients = {"w": [[2 * x for x in params["w"][0]]]}
        optimizer.step(gradients, learning_rate(step, 300, 0.1))
    assert params["w"][0] == pytest.approx([0.0, 0.0], abs=1e-2)


def test_the_parameters_are_changed_in_place():
    for kind in AdamW, FastAdamW:
        weight = [[1.0]]
        row = weight[0]
        bias = [1.0]
        optimizer = kind({WEIGHT: weight, "ln_f.bias": bias}, weight_decay=0.1)
        optimizer.step({WEIGHT: [[1.0]], "ln_f.bias": [1.0]}, 0.1)
        assert optimizer.params[WEIGHT][0] is row
        assert row[0] < 1.0
        assert bias[0] < 1.0


def test_to_rows_makes_rows_of_a_row_only():
    assert to_rows([1.0, 2.0]) == [[1.0, 2.0]]
    assert to_rows([[1.0], [2.0]]) == [[1.0], [2.0]]
