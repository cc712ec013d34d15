"""Chapter 9: Tensors, taken apart or not, and layers of one's own on them."""

from functools import singledispatch

import pytest
from helpers import close, flat, row, rows
from hypothesis import given
from hypothesis import strategies as st

from microgpt import (
    ENGINES,
    GPT,
    Config,
    Tensor,
    TensorEngine,
    ValueEngine,
    add,
    cross_entropy,
    differentiable,
    dot,
    exp,
    for_each,
    gelu,
    gradcheck,
    linear,
    log,
    matmul,
    multiplier,
    multiply_wide,
    softmax,
    tanh,
    topological_order,
    transpose,
)


@given(st.integers(1, 5), st.integers(1, 130), st.integers(1, 4), st.integers(0, 99))
def test_matmul_equals_the_sums_at_any_width(n, k, m, seed):
    A = rows(n, k, seed)
    B = rows(m, k, seed + 1)
    sums = [[sum(p * q for p, q in zip(a, b)) for b in B] for a in A]
    for multiply in matmul, multiply_wide, multiplier(k):
        assert flat(multiply(A, B)) == close(sums)
    assert transpose(transpose(A)) == [tuple(a) for a in A]


# --- taken apart ---


@pytest.mark.parametrize("r", range(3))
@pytest.mark.parametrize("i", range(2))
def test_each_number_of_a_tensor_hands_its_gradient_to_its_own_place(r, i):
    t = Tensor(rows(3, 2))
    (t[r][i] * t[r][i] + t[r][i]).backward()
    expected = [[0.0, 0.0] for _ in range(3)]
    expected[r][i] = 2 * t.data[r][i] + 1
    assert t.grad == expected


def test_a_tensor_is_taken_apart_as_a_list_of_rows_would_be():
    t = Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert len(t) == 3
    assert [flat(x) for x in t] == t.data
    assert [flat(x) for x in t[1:]] == t.data[1:]
    assert t[-1] is t[2]  # the same Values each time
    assert repr(Tensor([1.5])) == "Tensor(data=[1.5], grad=0.0)"


def test_a_tensor_of_one_row_is_a_row_of_numbers():
    def loss(p):
        x = p["x"]
        return dot(softmax(x), x) + x[0] * x[1] + x[2] * 7

    gradcheck(loss, {"x": row(4)}, TensorEngine())
    assert len(Tensor(row(4))) == 4


def test_to_take_a_tensor_apart_costs_one_node_a_number():
    t = Tensor(rows(10, 3))
    total = sum(number for numbers in t for number in numbers)
    # A sum and a number for each, and the copy that they pass their gradients to.
    assert len(topological_order(total)) == 2 * 30 + 1


def test_a_tensor_may_be_taken_apart_and_used_by_layers_as_well():
    def loss(p):
        x = p["x"]
        y = add(x, gelu(x))
        z = linear(y, p["w"])
        return cross_entropy(z, [0, 1]) * y[1][0] + x[0][1] * z[0][1] + x[1][1] ** 2

    gradcheck(loss, {"x": rows(2, 3), "w": rows(2, 3, seed=1)}, TensorEngine())


# --- gradients ---


def test_backward_twice_adds_to_the_leaves_only():
    x = Tensor(rows(2, 3))
    w = Tensor(rows(4, 3, 1))
    y = linear(x, w)
    loss = cross_entropy(y, [0, 3])
    loss.backward()
    once = flat(w.grad)
    between = flat(y.grad)
    loss.backward()
    assert flat(w.grad) == close([2 * g for g in once], 1e-14)
    assert flat(y.grad) == between
    with pytest.raises((AttributeError, TypeError, ValueError)):
        y.backward()  # not a single number


def test_nodes_that_are_handed_the_same_gradient_do_not_share_what_follows():
    x = Tensor(rows(2, 3))
    y = Tensor(rows(2, 3, seed=1))
    cross_entropy(add(x, y), [0, 1]).backward()
    once = flat(y.grad)
    assert flat(x.grad) == once
    cross_entropy(x, [2, 2]).backward()
    assert flat(y.grad) == once != flat(x.grad)


def test_a_loss_of_tensors_takes_part_in_scalar_arithmetic():
    def loss(p):
        nats = cross_entropy(p["x"], [1, 0])
        return exp(nats) + 2 * nats + nats * nats

    gradcheck(loss, {"x": rows(2, 3)}, TensorEngine())


@pytest.mark.parametrize("t", [Tensor([1.0, 2.0]), Tensor([[1.0, 2.0]])])
def test_tensors_of_many_numbers_refuse_arithmetic(t):
    for operation in ("t + t", "t * 2", "2 * t", "t - t", "t / 2", "t**2", "-t"):
        with pytest.raises(TypeError):
            eval(operation)
    for function in exp, log, tanh, float:
        with pytest.raises(TypeError):
            function(t)


# --- layers of one's own ---


def swish(x):
    """A layer that microgpt does not have."""
    return [[v / (exp(v * -1.0) + 1.0) for v in numbers] for numbers in x]


def test_a_layer_without_a_rule_runs_on_tensors_by_plain_arithmetic(monkeypatch):
    monkeypatch.setattr("microgpt.gelu", swish)
    model = GPT(Config(4, block_size=4, n_layer=2, n_head=2, n_embd=4), seed=2)
    batch = [[3, 0, 1, 3], [2, 2]]
    loss, gradients = TensorEngine().gradients(model, batch)
    loss_of_values, gradients_of_values = ValueEngine().gradients(model, batch)
    assert loss == pytest.approx(loss_of_values, rel=1e-13)
    assert flat(gradients) == close(gradients_of_values)


def make_doubling():
    """A layer, new each time -> (the layer, its fused form)."""

    @singledispatch
    def double(x, shift=0.0):
        return [[a * 2 + shift for a in numbers] for numbers in x]

    def fused_double(x, shift=0.0):
        def double_rule(dy):
            return [for_each(lambda d: 2 * d, dy)]

        return type(x)([a * 2 + shift for a in numbers] for numbers in x), double_rule

    return double, fused_double


def test_a_layer_of_ones_own_runs_on_tensors_by_its_rule():
    double, fused_double = make_doubling()
    assert differentiable(double)(fused_double) is fused_double
    x = Tensor(rows(2, 3))
    y = double(x, shift=1.0)
    assert y.children == [x]
    assert flat(y) == close([a * 2 + 1 for a in flat(x)])
    assert double([[3.0]], 0.5) == [[6.5]]
    for kind in ENGINES.values():
        gradcheck(
            lambda p: cross_entropy(double(p["x"], 1.0), [0, 2]), {"x": x.data}, kind()
        )


class Matrix(list):
    """Rows of another kind."""

    def tolist(self):
        return list(self)


class Array(Tensor):
    """A Tensor of these rows, which collects in its own way."""

    __slots__ = ()

    def collect(self, grad):
        self.grad = Matrix(grad)


def test_a_layer_may_have_a_rule_for_rows_of_another_kind():
    double, fused_double = make_doubling()
    differentiable(double)(fused_double)
    differentiable(double, plain=Matrix, node=Array)(fused_double)
    assert type(double([[1.0]])) is list
    assert type(double(Tensor([[1.0]]))) is Tensor
    plain = double(Matrix([[1.0]]))
    assert (type(plain), plain) == (Matrix, [[2.0]])
    x = Array(Matrix([[1.0, 2.0]]))
    y = double(x)
    assert (type(y), type(y.data), y.data) == (Array, Matrix, [[2.0, 4.0]])
    (y[0][0] + y[0][1] * 10).backward()
    assert (type(y.grad), y.grad) == (Matrix, [[1.0, 10.0]])
    assert (type(x.grad), x.grad) == (Matrix, [[2.0, 20.0]])
