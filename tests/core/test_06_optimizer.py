"""Chapter 6: AdamW and the learning rate. Chapter 11: FastAdamW, which does the same.

(PyTorch's AdamW: see test_golden.py.)
"""

import math
import random

import pytest
from helpers import close, defaults, flat, row, rows
from hypothesis import given
from hypothesis import strategies as st

from microgpt import (
    AdamW,
    Config,
    FastAdamW,
    for_each,
    is_linear_weight,
    learning_rate,
    parameter_shapes,
)

every_optimizer = pytest.mark.parametrize("kind", [AdamW, FastAdamW])
WEIGHT = "h.0.mlp.c_fc.weight"


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
        for x, expected in (params, p), (optimizer.m, m), (optimizer.v, v):
            assert x[WEIGHT][0][0] == pytest.approx(expected, rel=1e-13)


def test_the_defaults_are_those_for_short_runs():
    usual = {"beta1": 0.8, "beta2": 0.97, "eps": 1e-8, "weight_decay": 0.0}
    assert defaults(AdamW) == defaults(FastAdamW) == usual
    assert defaults(FastAdamW.step) == {"factor": 1.0}


@every_optimizer
def test_decay_spares_biases_gains_and_embeddings(kind):
    shapes = parameter_shapes(Config(5))
    params = {name: [1.0] for name in shapes}
    kind(params, weight_decay=0.5).step({name: [0.0] for name in shapes}, lr=0.1)
    shorter = [name for name in shapes if params[name] == [0.95]]
    assert shorter == [name for name in shapes if is_linear_weight(name)]
    layers = "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj".split()
    assert shorter == [f"h.0.{layer}.weight" for layer in layers]
    assert all(params[name] == [1.0] for name in shapes if name not in shorter)


@given(st.integers(0, 999), st.floats(1e-3, 1), st.sampled_from([0.0, 0.01, 0.5]))
def test_the_fast_optimizer_takes_the_steps_of_the_plain_one(seed, factor, decay):
    """Parameters, m and v are the same to 1e-12, clipped or not, with decay or not."""
    rng = random.Random(seed)
    options = [rng.uniform(0.5, 0.99), rng.uniform(0.9, 0.999), 1e-3, decay]

    def numbers(seed):
        weights = {WEIGHT: rows(3, 4, seed), "wte.weight": rows(2, 4, seed)}
        return {**weights, "ln_f.bias": row(4, seed)}

    plain = AdamW(numbers(seed), *options)
    fast = FastAdamW(numbers(seed), *options)
    for step in range(1, 6):
        gradients = numbers(seed + step)
        kept = flat(gradients)
        shorter = {name: for_each(factor.__mul__, x) for name, x in gradients.items()}
        plain.step(shorter, 0.1 * step)
        fast.step(gradients, 0.1 * step, factor)
        assert flat(gradients) == kept
        assert plain.t == fast.t == step
    for name in "params", "m", "v":
        assert flat(getattr(fast, name)) == close(getattr(plain, name))


@every_optimizer
def test_the_parameters_are_changed_in_place(kind):
    weight = [1.0]
    bias = [1.0]
    optimizer = kind({WEIGHT: [weight], "ln_f.bias": bias}, weight_decay=0.1)
    optimizer.step({WEIGHT: [[1.0]], "ln_f.bias": [1.0]}, 0.1)
    assert (weight, bias) == ([pytest.approx(0.89)], [pytest.approx(0.9)])


def test_the_learning_rate_rises_and_falls_in_a_line():
    rates = [learning_rate(step, 100, 2.0, warmup=10) for step in range(100)]
    rising = [0.2 * (step + 1) for step in range(10)]
    falling = [2.0 / 90 * (100 - step) for step in range(10, 100)]
    assert rates == pytest.approx(rising + falling)
    assert learning_rate(0, 100, 2.0) == 2.0  # no warmup unless told


@given(st.integers(1, 50), st.integers(0, 80))
def test_the_learning_rate_is_never_above_the_peak_or_below_nothing(steps, warmup):
    for step in range(steps):
        assert 0 < learning_rate(step, steps, 1.0, warmup) <= 1
