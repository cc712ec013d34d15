"""Chapters 4, 9 and 10: layers by hand, by nudging, and on numbers of every kind."""

import math

import pytest
from helpers import LAYERS, close, flat, rows, weighted_sum
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import (
    ENGINES,
    GPT,
    Config,
    Tensor,
    TensorEngine,
    Value,
    add,
    attention,
    attention_head,
    attention_with_past,
    cross_entropy,
    dot,
    embedding,
    exp,
    for_each,
    gelu,
    gradcheck,
    layernorm,
    linear,
    log,
    matmul,
    multiplier,
    multiply_wide,
    packed_attention,
    softmax,
    tanh,
    transpose,
)

every_layer = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
every_engine = pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)


@every_engine
@every_layer
def test_layer_derivatives_equal_finite_differences(case, kind):
    def loss(inputs):
        return weighted_sum(case(inputs))

    gradcheck(loss, case.inputs, kind())


@every_layer
def test_floats_values_and_tensors_agree(case):
    on_floats = case(case.inputs)
    for kind in ENGINES.values():
        inputs = {name: kind().convert(x) for name, x in case.inputs.items()}
        assert flat(case(inputs)) == close(on_floats, 1e-13)


@every_layer
def test_floats_give_floats_and_record_nothing(case):
    y = case(case.inputs)
    numbers = [y] if type(y) is float else sum(y, [])
    assert {type(number) for number in numbers} == {float}


def test_dot_is_one_node_with_2n_children():
    a = for_each(Value, [1.0, 2.0, 3.0])
    b = for_each(Value, [4.0, 5.0, 6.0])
    y = dot(a, b)
    assert y.data == 32.0
    assert len(y.children) == 6
    y.backward()
    assert [v.grad for v in a] == [4.0, 5.0, 6.0]
    assert [v.grad for v in b] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "a, b",
    [
        ([Value(1.0), 2.0], [3.0, 4.0]),
        ([1.0, Value(2.0)], [3.0, 4.0]),
        ([Value(1.0), Value(2.0)], [3.0, 4.0]),
        ([Value(1.0), 2.0], [Value(3.0), 4.0]),
        ([1.0, 2.0], [3.0, Value(4.0)]),
    ],
)
def test_dot_of_mixed_rows_is_right_too(a, b):
    y = dot(a, b)
    assert float(y) == 11.0
    y.backward()
    for x, other in [*zip(a, b), *zip(b, a)]:
        if isinstance(x, Value):
            assert x.grad == float(other)


def test_dot_of_a_row_with_itself():
    def square(p):
        return dot(p["a"], p["a"])

    gradcheck(square, {"a": [1.0, -2.0, 0.5]})


def test_softmax_sums_to_one_and_survives_huge_scores():
    for row in ([1.0, 2.0, 3.0], [1e4, -1e4, 0.0], [-1e300, -1e300], [1, 2]):
        assert sum(softmax(row)) == pytest.approx(1.0)
    assert softmax([1000.0, 1000.0]) == [0.5, 0.5]


@every_engine
def test_softmax_has_the_right_derivatives(kind):
    def loss(p):
        return dot(softmax(p["x"]), [1.0, -2.0, 0.3])

    gradcheck(loss, {"x": [0.3, -1.0, 2.0]}, kind())


@pytest.mark.parametrize(
    "convert", [list, *(kind().convert for kind in ENGINES.values())]
)
def test_cross_entropy_is_finite_for_huge_logits(convert):
    logits = convert([[1e4, -1e4], [-1e4, -1e4]])
    loss = float(cross_entropy(logits, [1, 0]))
    assert loss == pytest.approx((2e4 + math.log(2)) / 2)


def test_layernorm_by_hand():
    (row,) = layernorm([[1.0, 3.0]], [2.0, 2.0], [1.0, 1.0], eps=0.0)
    assert row == [-1.0, 3.0]


@every_engine
def test_layernorm_of_equal_numbers_is_the_bias(kind):
    x = kind().convert([[7.0, 7.0]])
    assert flat(layernorm(x, [2.0, 2.0], [1.0, 3.0])) == [1.0, 3.0]


def test_gelu_by_hand():
    (row,) = gelu([[0.0, 100.0, -100.0, 1.0]])
    assert row == [0.0, 100.0, 0.0, pytest.approx(0.841191990608)]


def seers(attend, changed):
    """The rows of the output that change if this row of the input does."""
    x = rows(5, 12)
    before = attend(x)
    x[changed] = [number + 1 for number in x[changed]]
    after = attend(x)
    return {t for t in range(5) if after[t] != before[t]}


@pytest.mark.parametrize("changed", range(5))
def test_attention_does_not_see_the_future(changed):
    def attend(x):
        return attention(x, 2)

    def attend_by_definition(x):
        return attention.dispatch(object)(x, 2)

    assert seers(attend, changed) == set(range(changed, 5))
    assert seers(attend_by_definition, changed) == set(range(changed, 5))


@pytest.mark.parametrize("changed", range(5))
def test_attention_sees_neither_the_future_nor_another_document(changed):
    def attend(x):
        return packed_attention(x, 2, [3, 2])

    stop = 3 if changed < 3 else 5
    assert seers(attend, changed) == set(range(changed, stop))


def test_attention_of_the_first_token_is_its_own_value():
    (out,) = attention([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], 2)
    assert out == [5.0, 6.0]


def test_attention_averages_equal_keys():
    x = [[0.0, 0.0, 7.0], [0.0, 0.0, 1.0]]  # query and key 0: all weights are equal
    assert attention(x, 1) == [[7.0], [4.0]]


def test_an_attention_head_by_hand():
    queries = [[9.0, 9.0], [2.0, 2.0]]
    keys = [[1.0, 0.0], [0.0, 2.0]]
    values = [[1.0, 0.0], [0.0, 1.0]]
    (first, second) = attention_head(queries, keys, values)
    # The second query's scores are 2 / sqrt(2) and 4 / sqrt(2).
    share = 1 / (1 + math.exp(2 / math.sqrt(2)))
    assert first == [1.0, 0.0]
    assert second == pytest.approx([share, 1 - share])


@pytest.mark.parametrize("cut", range(1, 5))
def test_attention_continues_from_past_rows(cut):
    x = rows(5, 12)
    past = []
    parts = attention_with_past(x[:cut], 2, past)
    parts += attention_with_past(x[cut:], 2, past)
    assert flat(parts) == close(attention(x, 2), 1e-13)
    assert past == x


def test_attention_of_tensors_refuses_past_rows():
    with pytest.raises((TypeError, ValueError)):
        attention_with_past(Tensor(rows(2, 6)), 1, [])


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 130), st.integers(1, 4), st.integers(0, 99))
def test_matmul_equals_the_sums_at_any_width(n, k, m, seed):
    A = rows(n, k, seed)
    B = rows(m, k, seed + 1)
    sums = [[sum(p * q for p, q in zip(a, b)) for b in B] for a in A]
    for multiply in matmul, multiply_wide, multiplier(k):
        assert flat(multiply(A, B)) == close(sums)
    assert transpose(transpose(A)) == [tuple(a) for a in A]


def swish(x):
    """A layer that microgpt does not have."""
    return [[v / (exp(v * -1.0) + 1.0) for v in row] for row in x]


def test_a_layer_without_a_rule_runs_on_tensors_by_plain_arithmetic():
    params = {"x": rows(2, 3), "w": rows(4, 3, 1), "b": [0.1, 0.2, 0.3, 0.4]}

    def loss(p):
        return cross_entropy(swish(linear(p["x"], p["w"], p["b"])), [1, 3])

    gradcheck(loss, params, TensorEngine())
    losses = []
    gradients = []
    for kind in ENGINES.values():
        engine = kind()
        converted = {name: engine.convert(x) for name, x in params.items()}
        value = loss(converted)
        value.backward()
        losses.append(float(value))
        gradients.append({name: engine.gradient(x) for name, x in converted.items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-14)
    assert flat(gradients[0]) == close(gradients[1])


def test_tensor_taken_apart_puts_gradients_in_their_places():
    t = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    row = t[1]
    (row[0] * 10 + row[1:][1] * t[0][0] + t[0][0]).backward()
    assert t.grad == [[7.0, 0.0, 0.0], [10.0, 0.0, 1.0]]
    assert len(t) == 2
    assert len(row) == 3
    assert float(t[0][2]) == 3.0


def half_square(x):
    """A layer in the place of gelu, which has no rule."""
    return [[v * v * 0.5 for v in row] for row in x]


def test_a_plain_layer_in_the_middle_of_the_model_trains_on_every_engine(monkeypatch):
    monkeypatch.setattr("microgpt.gelu", half_square)
    model = GPT(
        Config(vocab_size=4, n_layer=2, n_head=2, n_embd=4, block_size=4), seed=2
    )
    batch = [[3, 0, 1, 3], [2, 2]]
    loss, gradients = ENGINES["value"]().gradients(model, batch)
    fused_loss, fused_gradients = ENGINES["tensor"]().gradients(model, batch)
    assert fused_loss == pytest.approx(loss, rel=1e-13)
    assert flat(fused_gradients) == close(gradients)


@pytest.mark.parametrize("data", [[1.0, 2.0], [[1.0, 2.0]]])
@pytest.mark.parametrize(
    "operation",
    [
        lambda t: t + t,
        lambda t: t * 2,
        lambda t: 2 * t,
        lambda t: t - t,
        lambda t: t / 2,
        lambda t: t**2,
        lambda t: -t,
        exp,
        log,
        tanh,
        float,
    ],
)
def test_tensors_of_many_numbers_refuse_arithmetic(data, operation):
    with pytest.raises(TypeError):
        operation(Tensor(data))


@every_engine
def test_parameters_that_the_loss_does_not_use_have_gradient_zero(kind):
    def loss(p):
        return cross_entropy(p["x"], [0])

    params = {"x": [[1.0, 2.0]], "unused": [[1.0, 2.0], [3.0, 4.0]]}
    assert gradcheck(loss, params, kind()) < 1e-6


def test_backward_of_tensors_twice_adds_to_the_leaves_only():
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


def test_loss_of_tensors_takes_part_in_scalar_arithmetic():
    x = Tensor([[0.0, 0.0]])
    loss = cross_entropy(x, [0])
    (2 * loss + loss * loss).backward()
    slope = 0.5 * (2 + 2 * math.log(2))
    assert x.grad[0] == pytest.approx([-slope, slope])


@every_engine
def test_a_row_that_is_not_there_is_refused_by_its_number(kind):
    table = kind().convert(rows(3, 2))
    for i in (3, -1):
        with pytest.raises(ValueError, match=f"{i} is not in 0 to 2"):
            embedding(table, [0, i])


def test_add_is_number_by_number():
    assert add([[1.0, 2.0]], [[10.0, 20.0]]) == [[11.0, 22.0]]
