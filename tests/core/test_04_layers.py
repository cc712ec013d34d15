"""Chapter 4: the layers, by hand and by nudging. (As definitions: test_10.)"""

import math

import pytest
from helpers import LAYERS, close, defaults, flat, row, rows, weighted_sum

from microgpt import (
    ENGINES,
    Value,
    add,
    attention,
    attention_head,
    cross_entropy,
    dot,
    embedding,
    for_each,
    gelu,
    gradcheck,
    layernorm,
    linear,
    packed_attention,
    softmax,
)

KINDS = [list, *(kind().convert for kind in ENGINES.values())]
every_kind = pytest.mark.parametrize("convert", KINDS, ids=["floats", *ENGINES])
every_engine = pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)


@every_engine
@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_layer_derivatives_equal_finite_differences(case, kind):
    gradcheck(lambda inputs: weighted_sum(case(inputs)), case.inputs, kind())


def test_dot_of_values_is_one_node():
    a = for_each(Value, [1.0, 2.0, 3.0])
    b = for_each(Value, [4.0, 5.0, 6.0])
    y = dot(a, b)
    assert (y.data, len(y.children)) == (32.0, 6)
    gradcheck(lambda p: dot(p["a"], p["a"]), {"a": [1.0, -2.0, 0.5]})


@pytest.mark.parametrize("on_values", ["1000", "0100", "1100", "1010", "0001", "1111"])
def test_dot_of_mixed_rows_is_right_too(on_values):
    numbers = []
    for number, on_value in zip([1.0, 2.0, 3.0, 4.0], on_values):
        numbers.append(Value(number) if on_value == "1" else number)
    y = dot(numbers[:2], numbers[2:])
    y.backward()
    assert y.data == 11.0
    for number, slope in zip(numbers, [3.0, 4.0, 1.0, 2.0]):
        assert getattr(number, "grad", slope) == slope


# --- by hand ---


def test_small_layers_by_hand():
    assert add([[1.0, 2.0]], [[10.0, 20.0]]) == [[11.0, 22.0]]
    weight = [[1.0, 10.0], [0.0, -1.0]]
    definition = linear.dispatch(object)
    assert definition([[2.0, 3.0]], weight, [0.5, 0.25]) == [[32.5, -2.75]]
    assert definition([[2.0, 3.0]], weight) == [[32.0, -3.0]]
    (y,) = gelu.dispatch(object)([[0.0, 100.0, -100.0, 1.0]])
    assert y == [0.0, 100.0, 0.0, pytest.approx(0.841191990608)]


@every_kind
def test_embedding_refuses_a_row_that_is_not_there_by_its_number(convert):
    table = convert(rows(3, 2))
    assert flat(embedding(table, [2, 0])) == flat([rows(3, 2)[2], rows(3, 2)[0]])
    for i in (3, -1):
        with pytest.raises(ValueError, match=f"{i} is not in 0 to 2"):
            embedding(table, [0, i])


@every_kind
def test_layernorm_by_hand(convert):
    x = convert([[1.0, 3.0], [7.0, 7.0]])
    (y, equal) = layernorm(x, [1.0, 2.0], [0.0, 5.0])
    scale = (1 + 1e-5) ** -0.5
    assert flat(y) == close([-scale, 2 * scale + 5])
    assert flat(equal) == [0.0, 5.0]  # equal numbers become the bias
    assert flat(layernorm(x, [1.0, 2.0], [0.0, 5.0], eps=0.25)[0]) == close(
        [-(1.25**-0.5), 2 * 1.25**-0.5 + 5]
    )
    assert defaults(layernorm) == {"eps": 1e-5}


def test_softmax_adds_up_to_1_and_survives_huge_scores():
    for scores in ([1.0, 2.0, 3.0], [1e4, -1e4, 0.0], [-1e300, -1e300], [1, 2]):
        assert sum(softmax(scores)) == pytest.approx(1.0)
    assert softmax([1000.0, 1000.0]) == [0.5, 0.5]
    assert softmax([math.log(1), math.log(3)]) == pytest.approx([0.25, 0.75])


@every_kind
def test_cross_entropy_by_hand_even_of_huge_logits(convert):
    logits = convert([[1e4, -1e4], [-1e4, -1e4]])
    loss = float(cross_entropy(logits, [1, 0]))
    assert loss == pytest.approx((2e4 + math.log(2)) / 2)
    logits = convert([[math.log(1), math.log(3)]])
    assert float(cross_entropy(logits, [0])) == pytest.approx(math.log(4))


def test_an_attention_head_by_hand():
    queries = [[9.0, 9.0], [2.0, 2.0]]
    keys = [[1.0, 0.0], [0.0, 2.0]]
    values = [[1.0, 0.0], [0.0, 1.0]]
    # The second query's scores are 2 / sqrt(2) and 4 / sqrt(2).
    share = 1 / (1 + math.exp(2 / math.sqrt(2)))
    first, second = attention_head(queries, keys, values)
    assert first == [1.0, 0.0]
    assert second == pytest.approx([share, 1 - share])


@every_kind
def test_each_head_has_its_own_part_of_queries_keys_and_values(convert):
    x = rows(3, 12)

    def head(start):
        parts = [[r[i + start : i + start + 2] for r in x] for i in (0, 4, 8)]
        return attention_head(*parts)

    side_by_side = [a + b for a, b in zip(head(0), head(2))]
    assert flat(attention(convert(x), 2)) == close(side_by_side)


ATTENTIONS = {
    "fused": (lambda x: attention(x, 2), [5]),
    "definition": (lambda x: attention.dispatch(object)(x, 2), [5]),
    "packed": (lambda x: packed_attention(x, 2, [3, 2]), [3, 2]),
}


@pytest.mark.parametrize("attend, lengths", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize("changed", range(5))
def test_attention_sees_neither_the_future_nor_another_window(attend, lengths, changed):
    x = rows(5, 12)
    before = attend(x)
    x[changed] = row(12, seed=1)
    after = attend(x)
    seers = [t for t in range(5) if after[t] != before[t]]
    stop = lengths[0] if changed < lengths[0] else 5
    assert seers == list(range(changed, stop))
