"""Chapter 6: AdamW, clipping and the learning rate. (PyTorch's AdamW: see test_golden.py.)"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt import AdamW, clip_factor, learning_rate


def test_the_first_step_is_the_learning_rate_whatever_the_gradient():
    params = {"w": [[1.0, 1.0, 1.0]], "b": [1.0]}
    AdamW(params).step({"w": [[1e-3, -5.0, 100.0]], "b": [0.0]}, lr=0.1)
    assert params["w"][0] == pytest.approx([0.9, 1.1, 0.9], abs=1e-5)
    assert params["b"] == [1.0]


def test_steps_follow_the_formula_of_the_paper():
    gradients, lr, beta1, beta2, eps, decay = (
        [0.3, -0.2, 0.5, 0.1],
        0.05,
        0.9,
        0.95,
        1e-3,
        0.1,
    )
    params = {"h.0.mlp.c_fc.weight": [[2.0]]}
    optimizer = AdamW(params, beta1, beta2, eps, decay)
    p, m, v = 2.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        optimizer.step({"h.0.mlp.c_fc.weight": [[g]]}, lr)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p -= lr * decay * p
        p -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        assert params["h.0.mlp.c_fc.weight"][0][0] == pytest.approx(p, rel=1e-13)


def test_decay_spares_biases_gains_and_embeddings():
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
    AdamW(params, weight_decay=0.5).step({name: [0.0] for name in names}, lr=0.1)
    assert [params[name][0] for name in names] == [0.95, 0.95, 1, 1, 1, 1, 1]


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.floats(0.01, 10))
def test_clipping_shortens_the_whole_gradient_to_the_limit(numbers, limit):
    grads = {"w": [[numbers[0], numbers[1]]], "b": [numbers[2]]}
    factor = clip_factor(grads, limit)
    norm = math.sqrt(sum(x * x for x in numbers))
    assert factor * norm == pytest.approx(min(norm, limit))
    assert clip_factor(grads, 0) == 1.0


def test_a_factor_scales_the_gradient_of_a_step():
    a, b = {"w": [[1.0, 2.0]]}, {"w": [[1.0, 2.0]]}
    one, other = AdamW(a, eps=0.1), AdamW(b, eps=0.1)
    for _ in range(3):
        one.step({"w": [[0.4, -0.2]]}, 0.1, factor=0.25)
        other.step({"w": [[0.1, -0.05]]}, 0.1)
    assert a == b


def test_the_learning_rate_rises_and_falls_in_a_line():
    rates = [learning_rate(step, 100, 2.0, warmup=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[99] == pytest.approx(2.0 / 90)
    assert all(a < b for a, b in zip(rates[:9], rates[1:10]))
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


@given(st.integers(1, 50), st.integers(0, 80))
def test_the_learning_rate_is_never_above_the_peak_or_below_nothing(steps, warmup):
    for step in range(steps):
        assert 0 < learning_rate(step, steps, 1.0, warmup) <= 1


def test_it_descends():
    params = {"w": [[3.0, -2.0]]}
    optimizer = AdamW(params)
    for step in range(300):
        optimizer.step(
            {"w": [[2 * x for x in params["w"][0]]]}, learning_rate(step, 300, 0.1)
        )
    assert params["w"][0] == pytest.approx([0.0, 0.0], abs=1e-2)
