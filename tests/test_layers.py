"""Chapters 4 and 7: every layer by hand, against finite differences, and engine against engine."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import (
    GPT,
    Config,
    Tensor,
    Value,
    add,
    attention,
    batch_gradients,
    cross_entropy,
    dot,
    embedding,
    gelu,
    gradcheck,
    gradients,
    layernorm,
    linear,
    matmul,
    softmax,
    transpose,
)


def rows(n, m, seed=0, scale=1.0):
    rng = random.Random(seed)
    return [[rng.gauss(0, scale) for _ in range(m)] for _ in range(n)]


def weighted_sum(y):
    """A number that depends on every number of y, each with a different weight."""
    weights = [
        [math.sin(3 * t + i + 1) for i in range(len(y[t]))] for t in range(len(y))
    ]
    total = 0.0
    for t in range(len(y)):
        total = dot(y[t], weights[t]) + total
    return total


# name -> (layer of lifted params, params)
LAYERS = {
    "embedding": (lambda p: embedding(p["table"], [1, 0, 1]), {"table": rows(3, 4)}),
    "add": (lambda p: add(p["x"], p["y"]), {"x": rows(3, 4), "y": rows(3, 4, 1)}),
    "add to itself": (lambda p: add(p["x"], p["x"]), {"x": rows(3, 4)}),
    "linear": (
        lambda p: linear(p["x"], p["w"], p["b"]),
        {"x": rows(3, 4), "w": rows(5, 4, 1), "b": rows(1, 5, 2)[0]},
    ),
    "linear, no bias": (
        lambda p: linear(p["x"], p["w"]),
        {"x": rows(3, 4), "w": rows(5, 4, 1)},
    ),
    "linear, wide": (
        lambda p: linear(p["x"], p["w"]),
        {"x": rows(1, 70), "w": rows(2, 70, 1)},
    ),
    "linear, width 1": (
        lambda p: linear(p["x"], p["w"]),
        {"x": rows(2, 1), "w": rows(2, 1, 1)},
    ),
    "layernorm": (
        lambda p: layernorm(p["x"], p["g"], p["b"]),
        {"x": rows(3, 4), "g": rows(1, 4, 1)[0], "b": rows(1, 4, 2)[0]},
    ),
    "gelu": (lambda p: gelu(p["x"]), {"x": rows(3, 4, scale=2.0)}),
    "attention": (lambda p: attention(p["x"], [0, 1, 2, 3], 2), {"x": rows(4, 12)}),
    "attention, one head": (
        lambda p: attention(p["x"], [0, 1, 2], 1),
        {"x": rows(3, 6)},
    ),
    "attention, packed": (
        lambda p: attention(p["x"], [0, 1, 2, 0, 0, 1], 2),
        {"x": rows(6, 12)},
    ),
}


@pytest.mark.parametrize("number", [Value, Tensor])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_derivatives_equal_finite_differences(name, number):
    layer, params = LAYERS[name]
    gradcheck(lambda p: weighted_sum(layer(p)), params, number)


@pytest.mark.parametrize("number", [Value, Tensor])
def test_cross_entropy_derivatives_equal_finite_differences(number):
    gradcheck(lambda p: cross_entropy(p["x"], [2, 0, 1]), {"x": rows(3, 4)}, number)


@pytest.mark.parametrize("name", LAYERS)
def test_floats_values_and_tensors_agree(name):
    layer, params = LAYERS[name]
    on_floats = layer(params)
    on_values = layer({name: Value.lift(x) for name, x in params.items()})
    on_tensors = layer({name: Tensor.lift(x) for name, x in params.items()}).data
    for a, b, c in zip(on_floats, on_values, on_tensors):
        assert list(map(float, b)) == pytest.approx(a, rel=1e-13, abs=1e-13)
        assert list(c) == pytest.approx(a, rel=1e-13, abs=1e-13)


def test_floats_give_floats_and_record_nothing():
    for name, (layer, params) in LAYERS.items():
        assert all(type(number) is float for row in layer(params) for number in row), (
            name
        )
    assert type(cross_entropy([[1.0, 2.0]], [0])) is float


def test_dot_is_one_node_with_2n_children():
    a, b = Value.lift([1.0, 2.0, 3.0]), Value.lift([4.0, 5.0, 6.0])
    y = dot(a, b)
    assert y.data == 32.0 and len(y.children) == 6
    y.backward()
    assert [v.grad for v in a] == [4.0, 5.0, 6.0] and [v.grad for v in b] == [
        1.0,
        2.0,
        3.0,
    ]


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
    gradcheck(lambda p: dot(p["a"], p["a"]), {"a": [1.0, -2.0, 0.5]})


def test_softmax_sums_to_one_and_survives_huge_scores():
    for row in ([1.0, 2.0, 3.0], [1e4, -1e4, 0.0], [-1e300, -1e300], [1, 2]):
        assert sum(softmax(row)) == pytest.approx(1.0)
    assert softmax([1000.0, 1000.0]) == [0.5, 0.5]
    gradcheck(lambda p: dot(softmax(p["x"]), [1.0, -2.0, 0.3]), {"x": [0.3, -1.0, 2.0]})


@pytest.mark.parametrize("number", [float, Value, Tensor])
def test_cross_entropy_is_finite_for_huge_logits(number):
    logits = [[1e4, -1e4], [-1e4, -1e4]]
    if number is not float:
        logits = number.lift(logits)
    assert float(cross_entropy(logits, [1, 0])) == pytest.approx(
        (2e4 + math.log(2)) / 2
    )


def test_layernorm_by_hand():
    (row,) = layernorm([[1.0, 3.0]], [2.0, 2.0], [1.0, 1.0], eps=0.0)
    assert row == [-1.0, 3.0]


def test_gelu_by_hand():
    (row,) = gelu([[0.0, 100.0, -100.0, 1.0]])
    assert row == [0.0, 100.0, 0.0, pytest.approx(0.841191990608)]


def test_attention_sees_neither_the_future_nor_another_document():
    x = rows(5, 12)
    before = attention(x, [0, 1, 2, 0, 1], 2)
    for changed in range(5):
        y = [row[:] for row in x]
        y[changed] = [v + 1 for v in y[changed]]
        after = attention(y, [0, 1, 2, 0, 1], 2)
        seers = {t for t in range(5) if after[t] != before[t]}
        document = range(0, 3) if changed < 3 else range(3, 5)
        assert seers == {t for t in document if t >= changed}


def test_attention_of_the_first_token_is_its_own_value():
    (out,) = attention([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], [0], 2)
    assert out == [5.0, 6.0]


def test_attention_averages_equal_keys():
    x = [[0.0, 0.0, 7.0], [0.0, 0.0, 1.0]]  # query and key 0: all weights are equal
    assert attention(x, [0, 1], 1) == [[7.0], [4.0]]


def test_attention_continues_from_past_keys_and_values():
    x, past = rows(5, 12), ([], [])
    whole = attention(x, range(5), 2)
    parts = attention(x[:2], [0, 1], 2, past) + attention(x[2:], [2, 3, 4], 2, past)
    assert parts == whole
    assert len(past[0]) == len(past[1]) == 5


def test_attention_of_tensors_refuses_a_cache():
    with pytest.raises(ValueError, match="floats"):
        attention(Tensor(rows(1, 6)), [0], 1, ([], []))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 130), st.integers(1, 4), st.integers(0, 99))
def test_matmul_equals_the_sums_at_any_width(n, k, m, seed):
    A, B = rows(n, k, seed), rows(m, k, seed + 1)
    for row, a in zip(matmul(A, B), A):
        assert row == pytest.approx(
            [sum(p * q for p, q in zip(a, b)) for b in B], abs=1e-12
        )
    assert transpose(transpose(A)) == [tuple(a) for a in A]


def test_a_layer_without_a_rule_runs_on_tensors_by_plain_arithmetic():
    def swish(x):
        return [[v / ((v * -1.0).exp() + 1.0) for v in row] for row in x]

    params = {"x": rows(2, 3), "w": rows(4, 3, 1), "b": [0.1, 0.2, 0.3, 0.4]}

    def loss(p):
        return cross_entropy(swish(linear(p["x"], p["w"], p["b"])), [1, 3])

    gradcheck(loss, params, Tensor)
    results = []
    for number in (Value, Tensor):
        lifted = {name: number.lift(x) for name, x in params.items()}
        value = loss(lifted)
        value.backward()
        results.append((float(value), gradients(lifted)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-14)
    assert results[0][1]["b"] == pytest.approx(results[1][1]["b"], rel=1e-12)


def test_tensor_taken_apart_puts_gradients_in_their_places():
    t = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    row = t[1]
    (row[0] * 10 + row[1:][1] * t[0][0] + t[0][0]).backward()
    assert t.grad == [[7.0, 0.0, 0.0], [10.0, 0.0, 1.0]]
    assert len(t) == 2 and len(row) == 3 and float(t[0][2]) == 3.0


def test_a_plain_layer_in_the_middle_of_the_model_trains_on_every_engine(monkeypatch):
    monkeypatch.setattr(
        "microgpt.gelu", lambda x: [[v * v * 0.5 for v in row] for row in x]
    )
    model = GPT(
        Config(vocab_size=4, n_layer=2, n_head=2, n_embd=4, block_size=4), seed=2
    )
    loss, grads = batch_gradients(model, [[3, 0, 1, 3], [2, 2]], "value")
    fused_loss, fused_grads = batch_gradients(model, [[3, 0, 1, 3], [2, 2]], "tensor")
    assert fused_loss == pytest.approx(loss, rel=1e-13)
    for row, other in zip(
        grads["h.0.mlp.c_fc.weight"], fused_grads["h.0.mlp.c_fc.weight"]
    ):
        assert other == pytest.approx(row, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("data", [[1.0, 2.0], [[1.0, 2.0]]])
def test_tensors_of_many_numbers_refuse_arithmetic(data):
    for operation in (
        lambda t: t + t,
        lambda t: t * 2,
        lambda t: 2 * t,
        lambda t: t - t,
        lambda t: t / 2,
        lambda t: t**2,
        lambda t: -t,
    ):
        with pytest.raises(TypeError):
            operation(Tensor(data))


@pytest.mark.parametrize("number", [Value, Tensor])
def test_parameters_that_the_loss_does_not_use_have_gradient_zero(number):
    params = {"x": [[1.0, 2.0]], "unused": [[1.0, 2.0], [3.0, 4.0]]}
    assert gradcheck(lambda p: cross_entropy(p["x"], [0]), params, number) < 1e-6


def test_backward_of_tensors_twice_adds_to_the_leaves_only():
    x, w = Tensor(rows(2, 3)), Tensor(rows(4, 3, 1))
    loss = cross_entropy(linear(x, w), [0, 3])
    loss.backward()
    once = [row[:] for row in w.grad]
    loss.backward()
    for row, row2 in zip(once, w.grad):
        assert row2 == pytest.approx([2 * g for g in row], rel=1e-14)


def test_loss_of_tensors_takes_part_in_scalar_arithmetic():
    x = Tensor([[0.0, 0.0]])
    loss = cross_entropy(x, [0])
    (2 * loss + loss * loss).backward()
    assert x.grad[0] == pytest.approx(
        [-0.5 * (2 + 2 * math.log(2)), 0.5 * (2 + 2 * math.log(2))]
    )
