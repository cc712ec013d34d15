"""examples/tracing.py: what a TracedGPT keeps of a forward pass."""

import math

import pytest
from helpers import close, flat, shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import TracedGPT, weights_by_head

from microgpt import (
    GPT,
    Config,
    Tensor,
    TensorEngine,
    ValueEngine,
    topological_order,
)

WINDOW = [4, 0, 1, 2, 4]
CONVERT = {
    "float": lambda x: x,
    "value": ValueEngine().convert,
    "tensor": TensorEngine().convert,
}
of_each_kind = pytest.mark.parametrize("kind", CONVERT)
with_a_graph = pytest.mark.parametrize("kind", ["value", "tensor"])


def make(n_layer=2, n_head=2, n_embd=4, seed=0):
    """A model whose numbers are all random, so that none may be left out."""
    config = Config(5, 6, n_layer, n_head, n_embd)
    return shaken(GPT(config), by=0.5, seed=seed)


def of_kind(kind, model):
    """The same model on another kind of numbers."""
    params = {name: CONVERT[kind](x) for name, x in model.params.items()}
    return GPT(model.config, params)


def traced(kind, model=None):
    return TracedGPT(of_kind(kind, model or make()))


def plain(x):
    """Rows of floats or Values, or a Tensor -> lists of floats."""
    x = x.data if isinstance(x, Tensor) else x
    return [plain(y) for y in x] if isinstance(x, (list, tuple)) else float(x)


def trace_of(kind, tokens, model=None):
    """The trace of one window, as floats."""
    model = traced(kind, model)
    model(tokens)
    return {name: plain(x) for name, x in model.trace.items()}


def gradients(x):
    """What backward() left in rows of Values or in a Tensor, in one row."""
    if isinstance(x, Tensor):
        return flat(x.grad)
    if isinstance(x, (list, tuple)):
        return [g for y in x for g in gradients(y)]
    return [x.grad]


# --- GPT-2's formulas for one window, number by number, with nothing from microgpt ---


def normal(rows, gain, bias):
    out = []
    for row in rows:
        mean = sum(row) / len(row)
        size = math.sqrt(sum((a - mean) ** 2 for a in row) / len(row) + 1e-5)
        out.append([(a - mean) / size * g + b for a, g, b in zip(row, gain, bias)])
    return out


def affine(rows, weight, bias):
    out = []
    for row in rows:
        sums = [sum(a * w for a, w in zip(row, weights)) for weights in weight]
        out.append([a + b for a, b in zip(sums, bias)])
    return out


def gelu(rows):
    c = math.sqrt(2 / math.pi)
    return [
        [a / 2 * (1 + math.tanh(c * (a + 0.044715 * a**3))) for a in row]
        for row in rows
    ]


def attend(rows, n_head):
    """Each head's weights, and the values averaged with them."""
    n_embd = len(rows[0]) // 3
    d = n_embd // n_head
    heads = []
    averages = [[] for _ in rows]
    for first in range(0, n_embd, d):
        heads.append([])
        for t, row in enumerate(rows):
            exps = []
            for key in rows[: t + 1]:
                score = sum(row[i] * key[n_embd + i] for i in range(first, first + d))
                exps.append(math.exp(score / math.sqrt(d)))
            weights = [e / sum(exps) for e in exps]
            heads[-1].append(weights)
            for i in range(2 * n_embd + first, 2 * n_embd + first + d):
                averages[t].append(sum(w * rows[s][i] for s, w in enumerate(weights)))
    return heads, averages


def add(a, b):
    return [[x + y for x, y in zip(*rows)] for rows in zip(a, b)]


def by_hand(model, tokens, nudged="", place=(0, 0), amount=0.0):
    """Every activation, in order. One number may be nudged before it is used."""
    p = model.params
    seen = {}

    def see(name, rows):
        if name == nudged:
            rows[place[0]][place[1]] += amount
        seen[name] = rows
        return rows

    def layer(formula, name, rows):
        return see(name, formula(rows, p[name + ".weight"], p[name + ".bias"]))

    x = add([p["wte.weight"][token] for token in tokens], p["wpe.weight"])
    x = see("embeddings", x)
    for i in range(model.config.n_layer):
        a = layer(normal, f"h.{i}.ln_1", x)
        a = layer(affine, f"h.{i}.attn.c_attn", a)
        heads, a = attend(a, model.config.n_head)
        see(f"h.{i}.attn", heads)
        x = add(x, layer(affine, f"h.{i}.attn.c_proj", a))
        m = layer(normal, f"h.{i}.ln_2", x)
        m = layer(affine, f"h.{i}.mlp.c_fc", m)
        x = see(f"h.{i}", add(x, layer(affine, f"h.{i}.mlp.c_proj", gelu(m))))
    x = layer(normal, "ln_f", x)
    see("logits", affine(x, p["wte.weight"], [0.0] * len(p["wte.weight"])))
    return seen


def loss_by_hand(model, window, *nudge):
    losses = []
    logits = by_hand(model, window[:-1], *nudge)["logits"]
    for row, target in zip(logits, window[1:]):
        losses.append(math.log(sum(map(math.exp, row))) - row[target])
    return sum(losses) / len(losses)


# --- What is in a trace ---


@settings(max_examples=15)
@given(
    st.sampled_from(list(CONVERT)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
)
def test_it_is_what_the_formulas_give(kind, n_layer, n_head, d, tokens):
    model = make(n_layer, n_head, n_embd=n_head * d, seed=d)
    trace = trace_of(kind, tokens, model)
    expected = by_hand(model, tokens)
    assert list(trace) == list(expected)
    for name, x in expected.items():
        assert [len(row) for row in trace[name]] == [len(row) for row in x], name
        assert flat(trace[name]) == close(x), name


@of_each_kind
def test_attentions_weights_are_floats_a_row_for_each_token(kind):
    model = traced(kind)
    model(WINDOW)
    for head in model.trace["h.1.attn"]:
        assert [len(row) for row in head] == [1, 2, 3, 4, 5]
        assert {type(weight) for row in head for weight in row} == {float}


@of_each_kind
def test_it_is_empty_at_first_and_then_of_the_last_window(kind):
    model = traced(kind)
    assert model.trace == {}
    model.loss([WINDOW, [4, 3], [2, 2, 0]])
    trace = {name: plain(x) for name, x in model.trace.items()}
    assert trace == trace_of(kind, [2, 2])


@of_each_kind
def test_a_later_pass_leaves_it_alone(kind):
    model = traced(kind)
    assert model([4, 0, 1]) is model.trace["logits"]
    trace = model.trace
    model([4, 2, 2, 2])
    assert {name: plain(x) for name, x in trace.items()} == trace_of(kind, [4, 0, 1])


@pytest.mark.parametrize("convert", [list, Tensor])
def test_weights_that_can_be_computed_in_the_head(convert):
    """The scores are 0 and log(9) / sqrt(4) = log(3), so the weights are 1/4, 3/4."""
    x = [[0.0] * 12, [math.log(9), 0, 0, 0, 1.0, 0, 0, 0, 8.0, 0, 0, 4.0]]
    (head,) = weights_by_head(convert(x), 1)
    assert head == [[1.0], pytest.approx([0.25, 0.75], rel=1e-14)]


# --- Gradients, and what tracing must not change ---


@with_a_graph
def test_activations_have_the_gradients_that_nudging_finds(kind):
    model = make()
    watched = traced(kind, model)
    watched.loss([WINDOW]).backward()
    for name, rows in by_hand(model, WINDOW[:-1]).items():
        if name.endswith(".attn"):
            continue
        measured = []
        for place in [(t, i) for t, row in enumerate(rows) for i in range(len(row))]:
            up = loss_by_hand(model, WINDOW, name, place, 1e-5)
            down = loss_by_hand(model, WINDOW, name, place, -1e-5)
            measured.append((up - down) / 2e-5)
        expected = pytest.approx(measured, rel=1e-6, abs=1e-8)
        assert gradients(watched.trace[name]) == expected, name


@of_each_kind
def test_a_traced_model_computes_the_same_to_the_last_bit(kind):
    results = []
    for model in traced(kind), of_kind(kind, make()):
        logits = plain(model(WINDOW))
        loss = model.loss([WINDOW, [2, 2, 0]])
        result = [logits, float(loss)]
        if kind != "float":
            loss.backward()
            result += [gradients(x) for x in model.params.values()]
            result.append(len(topological_order(loss)))
        results.append(result)
    assert results[0] == results[1]
