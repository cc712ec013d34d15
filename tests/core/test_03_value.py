"""Chapter 3: Value, against finite differences and by hand."""

import math

import pytest
from helpers import defaults
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import Value, exp, gradcheck, log, slope, topological_order

NUMBERS = st.floats(-3, 3).filter(lambda x: abs(x) > 0.05)
FORMULAS = (
    "a + b, a - b, a * b, a / b, -a, a + 2, a - 2, a * 3, a / 2, "
    "2 + a, 2 - a, 3 * a, 2 / a, a ** 3, a ** -2, a ** 1, a ** 0, 2.5 ** a, "
    "exp(a), tanh(a), log(a * a), (a * a) ** 0.5, (a * a) ** b"
).split(", ")


def compute(formula, variables):
    """What a formula, given as text, makes of these variables."""
    return eval(formula, dict(vars(microgpt)), variables)


@pytest.mark.parametrize("formula", FORMULAS)
@settings(max_examples=30)
@given(a=NUMBERS, b=NUMBERS)
def test_operations_have_the_right_value_and_derivatives(formula, a, b):
    on_values = compute(formula, {"a": Value(a), "b": Value(b)})
    on_floats = compute(formula, {"a": a, "b": b})
    assert on_values.data == pytest.approx(on_floats, rel=1e-14)
    gradcheck(lambda variables: compute(formula, variables), {"a": a, "b": b})


@pytest.mark.parametrize(
    "base, power, slopes",
    [
        (0.0, 0, (0.0, 0.0)),
        (0.0, 1, (1.0, 0.0)),
        (0.0, 1.5, (0.0, 0.0)),
        (-3.0, 2.0, (-6.0, 0.0)),
        (2.0, Value(0.0), (0.0, math.log(2))),
    ],
)
def test_the_slopes_of_a_power_at_special_points(base, power, slopes):
    a = Value(base)
    (a**power).backward()
    assert (a.grad, getattr(power, "grad", 0.0)) == slopes


@pytest.mark.parametrize("a, b", [(-2.0, 0.5), (-2.0, Value(2.0)), (0.0, Value(1.0))])
def test_powers_without_real_derivatives_are_refused(a, b):
    with pytest.raises(ValueError, match=r"\*\*"):
        Value(a) ** b


def test_in_a_topological_order_children_come_first_and_each_node_once():
    a = Value(3.0)
    b = a + a
    c = b * a
    d = b + c
    e = d * c  # 4 a**3 + 4 a**4
    order = topological_order(e)
    assert sorted(map(id, order)) == sorted(map(id, [b, c, d, e]))
    for i, node in enumerate(order):
        for child in node.children:
            assert child is a or child in order[:i]
    e.backward()
    assert a.grad == 12 * 3.0**2 + 16 * 3.0**3


def test_a_second_call_adds_to_the_leaves_and_not_to_what_lies_between():
    a = Value(2.0)
    b = Value(5.0)
    c = a * b
    d = c * c
    for n in (1, 2, 3):
        d.backward()
        a.backward()
        assert (a.grad, b.grad) == (n * 101.0, n * 40.0)
        assert (c.grad, d.grad) == (20.0, 1.0)


def test_depth_is_no_limit():
    a = Value(1.0)
    x = a
    for _ in range(20_000):
        x = x + a
    x.backward()
    assert a.grad == 20_001.0


def test_a_value_shows_its_parts():
    a = Value(2.0)
    b = Value(3.0)
    c = a * b
    assert (c.children, c.local_grads, a.children) == ((a, b), (3.0, 2.0), ())
    assert repr(c) == "Value(data=6.0, grad=0.0)"


@pytest.mark.parametrize("name", ["exp", "log", "tanh"])
def test_exp_log_tanh_take_floats_and_values(name):
    function = getattr(microgpt, name)
    assert function(0.7) == getattr(math, name)(0.7) == function(Value(0.7)).data
    assert type(function(0.7)) is float


@given(st.floats(0.1, 3))
def test_slope_measures_a_derivative(x):
    assert slope(log, x) == pytest.approx(1 / x, rel=1e-6)
    assert slope(exp, x) == pytest.approx(math.exp(x), rel=1e-6)
    assert defaults(slope) == {"step": 1e-5}
