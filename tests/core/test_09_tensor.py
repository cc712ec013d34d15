"""Chapters 9 and 10: Tensors, and every fused layer against its definition."""

import math
from functools import singledispatch
from itertools import product

import pytest
from helpers import LAYERS, close, flat, row, rows, weighted_sum
from hypothesis import given
from hypothesis import strategies as st

from microgpt import (
    Tensor,
    TensorEngine,
    Value,
    ValueEngine,
    add,
    attention,
    cross_entropy,
    differentiable,
    dot,
    exp,
    for_each,
    gelu,
    gradcheck,
    layernorm,
    linear,
    packed_attention,
    softmax,
    topological_order,
)

FUSED = {name: case for name, case in LAYERS.items() if hasattr(case.layer, "dispatch")}
every_fused_layer = pytest.mark.parametrize("case", FUSED.values(), ids=FUSED)


def on_floats(x):
    return x


def on_values(x):
    return for_each(Value, x)


KINDS = {"floats": on_floats, "Values": on_values, "Tensor": Tensor}


def gradient_of(x):
    """What backward() has left in Values or a Tensor, zeros if it came to nothing."""
    engine = TensorEngine() if isinstance(x, Tensor) else ValueEngine()
    return engine.gradient(x)


def convert(inputs, kinds):
    """Each input on numbers of its own kind."""
    return {name: KINDS[kind](x) for (name, x), kind in zip(inputs.items(), kinds)}


def results(case, kinds):
    """The output, and {name: gradient} of all inputs that are not floats."""
    inputs = convert(case.inputs, kinds)
    y = case(inputs)
    output = flat(y)
    total = weighted_sum(y)
    if isinstance(total, Value):
        total.backward()
    gradients = {}
    for (name, x), kind in zip(inputs.items(), kinds):
        if kind != "floats":
            gradients[name] = flat(gradient_of(x))
    return output, gradients


# --- fused layers ---------------------------------------------------------------------


@every_fused_layer
def test_a_fused_layer_computes_on_floats_what_its_definition_does(case):
    assert flat(case(case.inputs)) == close(case.definition()(case.inputs))


@every_fused_layer
def test_any_mixture_of_inputs_gives_the_definitions_output_and_gradients(case):
    """Among the mixtures are Tensors only, floats only and Values only."""
    every_input_as_values = ["Values"] * len(case.inputs)
    expected, expected_gradients = results(case.definition(), every_input_as_values)
    for kinds in product(KINDS, repeat=len(case.inputs)):
        output, gradients = results(case, kinds)
        assert output == close(expected), kinds
        for name, gradient in gradients.items():
            assert gradient == close(expected_gradients[name]), (kinds, name)


@every_fused_layer
def test_the_output_is_of_the_kind_that_the_inputs_call_for(case):
    is_loss = case.layer is cross_entropy
    for kinds in product(KINDS, repeat=len(case.inputs)):
        y = case(convert(case.inputs, kinds))
        number = y
        while hasattr(number, "__len__"):
            number = number[0]
        if set(kinds) == {"floats"}:
            assert type(number) is float
        else:
            assert isinstance(number, Value)
        if not is_loss:
            assert isinstance(y, Tensor) == (
                "Tensor" in kinds and "Values" not in kinds
            )


@every_fused_layer
def test_inputs_may_be_given_by_name(case):
    for kinds in product(KINDS, repeat=len(case.inputs)):
        inputs = convert(case.inputs, kinds)
        y = case.by_name(inputs)
        assert flat(y) == flat(case(inputs))
        assert type(y) is type(case(inputs))


@every_fused_layer
def test_gradients_reach_inputs_that_are_given_by_name(case):
    _, expected = results(case, ["Tensor"] * len(case.inputs))
    inputs = convert(case.inputs, ["Tensor"] * len(case.inputs))
    weighted_sum(case.by_name(inputs)).backward()
    for name, x in inputs.items():
        assert flat(x.grad) == expected[name]


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_is_missing_or_unknown_is_a_type_error(kind):
    x = KINDS[kind](rows(2, 3))
    with pytest.raises(TypeError):
        linear(x, bias=row(2))
    with pytest.raises(TypeError):
        linear(x, rows(2, 3), biass=row(2))


@every_fused_layer
def test_a_layer_makes_one_node_whose_inputs_are_those_that_were_given(case):
    inputs = convert(case.inputs, ["Tensor"] * len(case.inputs))
    y = case(inputs)
    assert list(y.children) == list(inputs.values())
    assert topological_order(y) == [y]
    assert callable(y.rule)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from([1, 2, 3]))
def test_packed_attention_is_attention_on_the_windows_one_by_one(lengths, n_head):
    x = rows(sum(lengths), 18)
    packed = Tensor(x)
    y = packed_attention(packed, n_head, lengths)
    weights = rows(len(x), 6, seed=1)
    total_of_products(y, weights).backward()
    start = 0
    for length in lengths:
        alone = Tensor(x[start : start + length])
        z = attention(alone, n_head)
        part = slice(start, start + length)
        assert flat(y.data[part]) == close(z)
        total_of_products(z, weights[part]).backward()
        assert flat(packed.grad[part]) == close(alone.grad)
        start += length


def total_of_products(x, y):
    """The sum of x times y, number by number."""
    return sum(dot(a, b) for a, b in zip(x, y))


# --- Tensor ---------------------------------------------------------------------------


@pytest.mark.parametrize("r", range(3))
@pytest.mark.parametrize("i", range(2))
def test_each_number_of_a_tensor_hands_its_gradient_to_its_own_place(r, i):
    t = Tensor(rows(3, 2))
    (t[r][i] * 5).backward()
    expected = [[0.0, 0.0] for _ in range(3)]
    expected[r][i] = 5.0
    assert t.grad == expected


def test_a_tensor_is_taken_apart_as_a_list_of_rows_would_be():
    data = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    t = Tensor(data)
    assert len(t) == 3
    assert [flat(x) for x in t] == data
    assert flat(t[-1]) == [5.0, 6.0]
    assert [flat(x) for x in t[1:]] == data[1:]
    with pytest.raises(IndexError):
        t[3]
    assert t[1] is t[1]  # the same Values each time


def test_a_number_that_is_used_twice_gets_both_shares():
    t = Tensor([[3.0]])
    (t[0][0] * t[0][0] + t[0][0]).backward()
    assert t.grad == [[7.0]]


@pytest.mark.parametrize("data", [[2.0, 3.0, 5.0], [[2.0, 3.0, 5.0]]])
def test_a_tensor_of_one_row(data):
    t = Tensor(data)
    numbers = t if data[0] == 2.0 else t[0]
    (numbers[0] * numbers[1] + numbers[2] * 7).backward()
    assert flat(t.grad) == [3.0, 2.0, 7.0]
    assert type(t.grad[0]) is type(data[0])
    assert len(numbers) == 3


def test_a_tensor_of_one_row_is_a_row_to_softmax_and_dot():
    def loss(p):
        return dot(softmax(p["x"]), p["x"])

    gradcheck(loss, {"x": row(4)}, TensorEngine())


class CountingTensor(Tensor):
    """Counts the shares that its gradient is made of."""

    __slots__ = ("n_shares",)

    def __init__(self, data):
        super().__init__(data)
        self.n_shares = 0

    def collect(self, grad):
        self.n_shares += 1
        super().collect(grad)


@pytest.mark.parametrize("n", [1, 10, 100])
def test_to_take_a_tensor_apart_costs_one_node_a_number_and_one_share_in_all(n):
    for data in row(n), rows(n, 1), rows(n, 3):
        t = CountingTensor(data)
        numbers = list(t) if type(data[0]) is float else sum(map(list, t), [])
        total = Value(0.0)
        for number in numbers:
            total = total + number
        # A sum and a number for each, and the copy that they pass their gradients to.
        assert len(topological_order(total)) == 2 * len(numbers) + 1
        total.backward()
        assert t.n_shares == 1
        assert flat(t.grad) == [1.0] * len(numbers)


def test_a_tensor_may_be_taken_apart_and_used_by_layers_as_well():
    def loss(p):
        x = p["x"]
        y = add(x, gelu(x))
        z = linear(y, p["w"])
        return cross_entropy(z, [0, 1]) * y[1][0] + x[0][1] * z[0][1] + x[1][1] ** 2

    params = {"x": rows(2, 3), "w": rows(2, 3, seed=1)}
    gradcheck(loss, params, TensorEngine())


def residual_graph(inputs):
    """Nodes of which most are used twice -> ({name: node}, the loss)."""
    nodes = dict(inputs)
    nodes["twice"] = add(nodes["x"], nodes["x"])
    nodes["sum"] = add(nodes["twice"], nodes["x"])
    nodes["normal"] = layernorm(nodes["sum"], nodes["gain"], nodes["bias"])
    nodes["fc"] = linear(nodes["normal"], nodes["weight"], nodes["bias"])
    nodes["stream"] = add(nodes["sum"], nodes["fc"])
    nodes["bent"] = gelu(nodes["stream"])
    nodes["last"] = add(nodes["stream"], add(nodes["bent"], nodes["stream"]))
    loss = cross_entropy(nodes["last"], [2, 0, 1]) + nodes["stream"][1][1]
    return nodes, loss


def test_gradients_within_a_residual_graph_are_those_of_values():
    """Every node has a gradient of its own, though layers hand on the same lists."""
    inputs = {
        "x": rows(3, 4),
        "gain": row(4, seed=1),
        "bias": row(4, seed=2),
        "weight": rows(4, 4, seed=3),
    }
    gradients = {}
    for kind in "Values", "Tensor":
        nodes, loss = residual_graph(convert(inputs, [kind] * len(inputs)))
        loss.backward()
        gradients[kind] = {name: flat(gradient_of(x)) for name, x in nodes.items()}
    for name, gradient in gradients["Tensor"].items():
        assert gradient == close(gradients["Values"][name]), name


def test_two_losses_of_the_same_tensors_add_up_in_the_leaves():
    x = Tensor(rows(2, 3))
    y = Tensor(rows(2, 3, seed=1))
    cross_entropy(add(x, y), [0, 1]).backward()
    first = flat(x.grad)
    assert flat(y.grad) == first
    cross_entropy(add(x, x), [2, 2]).backward()
    assert flat(y.grad) == first  # y took no part in the second
    other = Tensor(x.data)
    cross_entropy(add(other, other), [2, 2]).backward()
    expected = [a + b for a, b in zip(first, flat(other.grad))]
    assert flat(x.grad) == close(expected)


def test_the_perplexity_of_tensors_is_the_exponential_of_their_loss():
    def perplexity(p):
        return exp(cross_entropy(p["x"], [1, 0]))

    x = rows(2, 3)
    loss = cross_entropy(x, [1, 0])
    assert float(perplexity({"x": Tensor(x)})) == pytest.approx(math.exp(loss))
    gradcheck(perplexity, {"x": x}, TensorEngine())


def test_backward_starts_from_a_single_number_only():
    x = Tensor(rows(2, 3))
    with pytest.raises((AttributeError, TypeError, ValueError)):
        add(x, x).backward()


def test_repr_of_a_tensor_shows_data_and_grad():
    assert repr(Tensor([1.5])) == "Tensor(data=[1.5], grad=0.0)"


# --- layers of one's own --------------------------------------------------------------


def make_doubling():
    """A layer that is not of microgpt, new each time -> the layer."""

    @singledispatch
    def double(x, shift=0.0):
        return [[a * 2 + shift for a in numbers] for numbers in x]

    return double


def fused_double(x, shift=0.0):
    y = [type(numbers)(a * 2 + shift for a in numbers) for numbers in x]

    def double_rule(dy):
        return [[[2 * a for a in numbers] for numbers in dy]]

    return type(x)(y), double_rule


def test_a_layer_of_ones_own_runs_on_tensors_by_its_rule():
    double = make_doubling()
    assert differentiable(double)(fused_double) is fused_double
    x = Tensor(rows(2, 3))
    y = double(x, shift=1.0)
    assert list(y.children) == [x]
    assert flat(y) == close([[a * 2 + 1 for a in numbers] for numbers in x.data])
    assert double([[3.0]], 0.5) == [[6.5]]

    def loss(p):
        return cross_entropy(double(p["x"], 1.0), [0, 2])

    gradcheck(loss, {"x": x.data}, TensorEngine())
    gradcheck(loss, {"x": x.data}, ValueEngine())


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
    double = make_doubling()
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
