"""Chapter 3: Value, against finite differences and by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
from microgpt import Value, gradcheck

numbers = st.floats(-3, 3).filter(lambda x: abs(x) > 0.05)
positive = st.floats(0.1, 3)

BINARY = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / b,
}
UNARY = {
    "2 + a": lambda a: 2 + a,
    "2 - a": lambda a: 2 - a,
    "3 * a": lambda a: 3 * a,
    "2 / a": lambda a: 2 / a,
    "a + 2": lambda a: a + 2,
    "a - 2": lambda a: a - 2,
    "a * 3": lambda a: a * 3,
    "a / 2": lambda a: a / 2,
    "-a": lambda a: -a,
    "a ** 3": lambda a: a**3,
    "a ** -2": lambda a: a**-2,
    "a ** 0": lambda a: a**0,
    "2.5 ** a": lambda a: 2.5**a,
    "exp": lambda a: a.exp() if isinstance(a, Value) else math.exp(a),
    "tanh": lambda a: a.tanh() if isinstance(a, Value) else math.tanh(a),
    "relu": lambda a: a.relu() if isinstance(a, Value) else max(0.0, a),
}


@pytest.mark.parametrize("name", BINARY)
@given(a=numbers, b=numbers)
def test_binary_operations_have_the_right_value_and_derivatives(name, a, b):
    f = BINARY[name]
    assert f(Value(a), Value(b)).data == pytest.approx(f(a, b), rel=1e-14)
    gradcheck(lambda p: f(p["a"], p["b"]), {"a": a, "b": b})


@pytest.mark.parametrize("name", UNARY)
@given(a=numbers)
def test_unary_and_mixed_operations_have_the_right_value_and_derivative(name, a):
    f = UNARY[name]
    assert f(Value(a)).data == pytest.approx(f(a), rel=1e-14)
    gradcheck(lambda p: f(p["a"]), {"a": a})


@given(a=positive, b=numbers)
def test_value_to_the_power_of_a_value_log_and_roots(a, b):
    gradcheck(lambda p: p["a"] ** p["b"], {"a": a, "b": b})
    gradcheck(lambda p: p["a"].log() * p["a"] ** 0.5, {"a": a})
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


def test_diamonds_of_unequal_depth():
    a = Value(2.0)
    deep = ((a * 3).exp()).log() * a  # 3a * a
    (deep + a).backward()
    assert a.grad == pytest.approx(6 * 2.0 + 1)


def test_a_second_call_adds_to_the_leaves_and_not_to_what_lies_between():
    a, b = Value(2.0), Value(5.0)
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
    a, b = Value(2.0), Value(3.0)
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


def test_gradcheck_leaves_the_parameters_as_they_were():
    params = {"a": [1.0, 2.0]}
    gradcheck(lambda p: p["a"][0] * p["a"][1], params)
    assert params == {"a": [1.0, 2.0]}


def test_exp_log_tanh_take_floats_and_values():
    for name, f in (("exp", math.exp), ("log", math.log), ("tanh", math.tanh)):
        g = getattr(microgpt, name)
        assert g(0.7) == f(0.7) == g(Value(0.7)).data
