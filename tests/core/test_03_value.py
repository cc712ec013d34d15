"""Chapter 3: Value, against finite differences and by hand."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
from microgpt import Value, exp, gradcheck, log, slope, topological_order

numbers = st.floats(-3, 3).filter(lambda x: abs(x) > 0.05)
positive = st.floats(0.1, 3)


def relu(x):
    """An operation that microgpt does not have, made as a user would make it."""
    if not isinstance(x, Value):
        return max(0.0, x)
    return Value(max(0.0, x.data), (x,), (1.0 if x.data > 0 else 0.0,))


def compute(formula, variables):
    """What a formula, given as text, makes of these variables."""
    return eval(formula, {**vars(microgpt), "relu": relu}, variables)


@pytest.mark.parametrize("formula", ["a + b", "a - b", "a * b", "a / b"])
@given(a=numbers, b=numbers)
def test_binary_operations_have_the_right_value_and_derivatives(formula, a, b):
    on_values = compute(formula, {"a": Value(a), "b": Value(b)})
    on_floats = compute(formula, {"a": a, "b": b})
    assert on_values.data == pytest.approx(on_floats, rel=1e-14)
    gradcheck(partial(compute, formula), {"a": a, "b": b})


@pytest.mark.parametrize(
    "formula",
    [
        "2 + a",
        "2 - a",
        "3 * a",
        "2 / a",
        "a + 2",
        "a - 2",
        "a * 3",
        "a / 2",
        "-a",
        "a ** 3",
        "a ** -2",
        "a ** 1",
        "a ** 0",
        "2.5 ** a",
        "exp(a)",
        "tanh(a)",
        "relu(a)",
    ],
)
@given(a=numbers)
def test_unary_and_mixed_operations_have_the_right_value_and_derivative(formula, a):
    on_values = compute(formula, {"a": Value(a)})
    assert on_values.data == pytest.approx(compute(formula, {"a": a}), rel=1e-14)
    gradcheck(partial(compute, formula), {"a": a})


@given(a=positive, b=numbers)
def test_value_to_the_power_of_a_value_log_and_roots(a, b):
    gradcheck(partial(compute, "a**b"), {"a": a, "b": b})
    gradcheck(partial(compute, "log(a) * a**0.5"), {"a": a})
    assert (Value(a) ** Value(b)).data == a**b


@pytest.mark.parametrize("a, b", [(-2.0, 0.5), (-2.0, Value(2.0)), (0.0, Value(1.0))])
def test_powers_without_real_derivatives_are_refused(a, b):
    with pytest.raises(ValueError, match=r"\*\*"):
        Value(a) ** b


def test_zero_to_the_power_of_zero_has_slope_zero():
    a = Value(0.0)
    (a**0).backward()
    assert a.grad == 0.0


def test_a_topological_order_is_needed_and_used():
    a = Value(3.0)
    b = a + a
    c = b + b
    d = b + c
    d.backward()
    assert (a.grad, b.grad, c.grad) == (6.0, 3.0, 1.0)
    a = Value(3.0)
    b = a + a
    c = b + b
    c.backward()
    assert (a.grad, b.grad) == (4.0, 2.0)


def test_in_a_topological_order_children_come_before_parents_and_each_node_once():
    a = Value(3.0)
    b = a + a
    c = b * a
    d = b + c
    order = topological_order(d * c)
    places = {node: i for i, node in enumerate(order)}
    assert len(places) == len(order) == 4
    for node in order:
        for child in node.children:
            assert child is a or places[child] < places[node]


def test_diamonds_of_unequal_depth():
    a = Value(2.0)
    deep = log(exp(a * 3)) * a  # 3a * a
    (deep + a).backward()
    assert a.grad == pytest.approx(6 * 2.0 + 1)


def test_a_second_call_adds_to_the_leaves_and_not_to_what_lies_between():
    a = Value(2.0)
    b = Value(5.0)
    c = a * b
    d = c * c
    for n in (1, 2, 3):
        d.backward()
        assert (a.grad, b.grad) == (n * 100.0, n * 40.0)
        assert (c.grad, d.grad) == (20.0, 1.0)


def test_gradients_of_two_losses_add_up_in_the_leaves():
    a = Value(3.0)
    (a * 2).backward()
    (a * a).backward()
    assert a.grad == 2 + 6


def test_backward_of_a_leaf_adds_one():
    a = Value(3.0)
    a.backward()
    a.backward()
    assert a.grad == 2.0


def test_depth_is_no_limit():
    a = Value(1.0)
    x = a
    for _ in range(100_000):
        x = x + a
    x.backward()
    assert a.grad == 100_001.0


def test_graph_is_data_without_cycles():
    a = Value(2.0)
    b = Value(3.0)
    c = a * b
    assert c.children == (a, b)
    assert c.local_grads == (3.0, 2.0)
    assert a.children == ()


def test_repr_shows_data_and_grad():
    assert repr(Value(1.5)) == "Value(data=1.5, grad=0.0)"


def test_gradcheck_names_the_parameter_that_is_off():
    def wrong(p):  # data 3 w, but a gradient of 2
        w = p["w"][1][0]
        return Value(3 * w.data, (w,), (2.0,)) + p["ok"]

    with pytest.raises(ArithmeticError, match=r"w\[1\]\[0\].*2\.0.*(3\.0|2\.99)"):
        gradcheck(wrong, {"ok": 1.0, "w": [[1.0, 2.0], [3.0, 4.0]]})


def test_gradcheck_does_not_take_nan_for_right():
    def wrong(p):
        return Value(p["w"].data, (p["w"],), (math.nan,))

    with pytest.raises(ArithmeticError, match="w: .*nan"):
        gradcheck(wrong, {"w": 1.0})


def test_gradcheck_returns_the_largest_difference():
    def slightly_wrong(p):  # by 4e-8 of 4
        return p["a"] * 2 + Value(4 * p["b"].data, (p["b"],), (4 + 4e-8,))

    params = {"a": 1.0, "b": 1.0}
    assert gradcheck(slightly_wrong, params) == pytest.approx(1e-8, rel=0.01)
    with pytest.raises(ArithmeticError, match="^b: "):
        gradcheck(slightly_wrong, params, tolerance=5e-9)


def test_gradcheck_leaves_the_parameters_as_they_were():
    def product(p):
        return p["a"][0] * p["a"][1]

    params = {"a": [1.0, 2.0]}
    gradcheck(product, params)
    assert params == {"a": [1.0, 2.0]}


@pytest.mark.parametrize("name", ["exp", "log", "tanh"])
def test_exp_log_tanh_take_floats_and_values(name):
    function = getattr(microgpt, name)
    known = getattr(math, name)
    assert function(0.7) == known(0.7) == function(Value(0.7)).data
    assert type(function(0.7)) is float


@given(positive)
def test_slope_measures_a_derivative(x):
    assert slope(log, x) == pytest.approx(1 / x, rel=1e-6)
    assert slope(exp, x) == pytest.approx(math.exp(x), rel=1e-6)
