"""examples/tracing.py: what a TracedGPT keeps of a forward pass."""

import gc
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import TracedGPT, weights_by_head

from microgpt import (
    GPT,
    Config,
    Tensor,
    TensorEngine,
    Value,
    ValueEngine,
    attention,
    cross_entropy,
    parameter_shapes,
)

# Of a block, in the order of the forward pass.
LAYERS = [
    "ln_1",
    "attn.c_attn",
    "attn",
    "attn.c_proj",
    "ln_2",
    "mlp.c_fc",
    "mlp.c_proj",
]
WINDOW = [4, 0, 1, 2, 4]
KINDS = ["float", "value", "tensor"]
with_a_graph = pytest.mark.parametrize("kind", ["value", "tensor"])
of_each_kind = pytest.mark.parametrize("kind", KINDS)


def make(vocab_size=5, block_size=6, n_layer=2, n_head=2, n_embd=4, seed=0):
    """A model whose biases and gains are random too, so that none may be left out."""
    config = Config(vocab_size, block_size, n_layer, n_head, n_embd)
    rng = random.Random(seed)
    params = {}
    for name, shape in parameter_shapes(config).items():
        n_rows = shape[0] if len(shape) > 1 else 1
        rows = [[rng.gauss(0, 0.5) for _ in range(shape[-1])] for _ in range(n_rows)]
        params[name] = rows if len(shape) > 1 else rows[0]
    return GPT(config, params)


MODEL = make()


def convert(kind, x):
    """Floats -> the same on another kind of numbers."""
    return {"float": list, "value": ValueEngine().convert, "tensor": Tensor}[kind](x)


def untraced(kind, model=MODEL):
    """A model with these parameters, on another kind of numbers."""
    params = {name: convert(kind, x) for name, x in model.params.items()}
    return GPT(model.config, params)


def model_of(kind, model=MODEL):
    """The same, traced."""
    return TracedGPT(untraced(kind, model))


def plain(x):
    """Rows of floats, of Values, or a Tensor -> lists of floats."""
    if isinstance(x, Tensor):
        return plain(x.data)
    return [plain(y) for y in x] if isinstance(x, (list, tuple)) else float(x)


def grads(x):
    """What backward() left in rows of Values or in a Tensor."""
    if isinstance(x, Tensor):
        return plain(x.grad)
    return [grads(y) for y in x] if isinstance(x, (list, tuple)) else x.grad


def flat(x):
    """All numbers of nested lists, in one row."""
    if not isinstance(x, (list, tuple)):
        return [x]
    return [y for item in x for y in flat(item)]


def close(x):
    return pytest.approx(flat(x), rel=1e-12, abs=1e-12)


def trace_of(kind, tokens, model=MODEL):
    """The trace of one window, as floats."""
    traced = model_of(kind, model)
    traced(tokens)
    return {name: plain(x) for name, x in traced.trace.items()}


# GPT-2's formulas for one window, number by number, with nothing from microgpt.


def normal(rows, gain, bias):
    normal_rows = []
    for row in rows:
        mean = sum(row) / len(row)
        size = math.sqrt(sum((a - mean) ** 2 for a in row) / len(row) + 1e-5)
        normal_rows.append(
            [(a - mean) / size * g + b for a, g, b in zip(row, gain, bias)]
        )
    return normal_rows


def affine(rows, weight, bias):
    out = []
    for row in rows:
        sums = [sum(a * w for a, w in zip(row, weights)) for weights in weight]
        out.append([a + b for a, b in zip(sums, bias)])
    return out


def bent(rows):
    def gelu(a):
        return a / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))

    return [[gelu(a) for a in row] for row in rows]


def weights_by_hand(rows, n_head):
    """What c_attn gave one window -> for each head, each token's weights."""
    n_embd = len(rows[0]) // 3
    d = n_embd // n_head
    heads = []
    for first in range(0, n_embd, d):
        head = []
        for t, row in enumerate(rows):
            exps = []
            for key in rows[: t + 1]:
                score = sum(row[i] * key[n_embd + i] for i in range(first, first + d))
                exps.append(math.exp(score / math.sqrt(d)))
            head.append([e / sum(exps) for e in exps])
        heads.append(head)
    return heads


def gathered(rows, heads):
    """The values of one window, averaged with each head's weights, side by side."""
    n_embd = len(rows[0]) // 3
    d = n_embd // len(heads)
    out = []
    for t in range(len(rows)):
        out.append([])
        for i in range(n_embd):
            weights = heads[i // d][t]
            out[t].append(
                sum(w * rows[s][2 * n_embd + i] for s, w in enumerate(weights))
            )
    return out


def total(*parts):
    return [[sum(numbers) for numbers in zip(*rows)] for rows in zip(*parts)]


def by_hand(model, tokens, nudge=None):
    """Every activation of one window.

    nudge, (name, path, amount), moves one number before the next ones are computed.
    """
    p = model.params
    seen = {}

    def see(name, rows):
        if nudge and nudge[0] == name:
            *path, last = nudge[1]
            place = rows
            for i in path:
                place = place[i]
            place[last] += nudge[2]
        seen[name] = rows
        return rows

    def layer(function, name, rows):
        return see(name, function(rows, p[name + ".weight"], p[name + ".bias"]))

    tables = [p["wte.weight"][token] for token in tokens], p["wpe.weight"]
    x = see("embeddings", total(*tables))
    for i in range(model.config.n_layer):
        a = layer(affine, f"h.{i}.attn.c_attn", layer(normal, f"h.{i}.ln_1", x))
        heads = see(f"h.{i}.attn", weights_by_hand(a, model.config.n_head))
        x = total(x, layer(affine, f"h.{i}.attn.c_proj", gathered(a, heads)))
        m = layer(affine, f"h.{i}.mlp.c_fc", layer(normal, f"h.{i}.ln_2", x))
        x = see(f"h.{i}", total(x, layer(affine, f"h.{i}.mlp.c_proj", bent(m))))
    x = layer(normal, "ln_f", x)
    see("logits", affine(x, p["wte.weight"], [0.0] * model.config.vocab_size))
    return seen


def loss_by_hand(model, window, nudge=None):
    logits = by_hand(model, window[:-1], nudge)["logits"]
    losses = []
    for row, target in zip(logits, window[1:]):
        losses.append(math.log(sum(map(math.exp, row))) - row[target])
    return sum(losses) / len(losses)


def names(n_layer):
    blocks = []
    for i in range(n_layer):
        blocks += [f"h.{i}.{layer}" for layer in LAYERS] + [f"h.{i}"]
    return ["embeddings", *blocks, "ln_f", "logits"]


# What is in a trace


@of_each_kind
@pytest.mark.parametrize("n_layer", [1, 3])
def test_a_trace_names_all_layers_in_the_order_of_the_forward_pass(kind, n_layer):
    traced = model_of(kind, make(n_layer=n_layer))
    assert traced.trace == {}
    traced([4, 0, 1])
    assert list(traced.trace) == names(n_layer)
    traced.loss([WINDOW])
    assert list(traced.trace) == names(n_layer)


@of_each_kind
def test_every_activation_is_what_the_formulas_give(kind):
    trace = trace_of(kind, WINDOW[:-1])
    expected = by_hand(MODEL, WINDOW[:-1])
    for name in names(2):
        lengths = [len(row) for row in expected[name]]
        assert [len(row) for row in trace[name]] == lengths, name
        assert flat(trace[name]) == close(expected[name]), name


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 999))
def test_floats_values_and_tensors_have_the_same_trace(n_layer, n_head, d, seed):
    model = make(n_layer=n_layer, n_head=n_head, n_embd=n_head * d, seed=seed)
    expected = trace_of("float", WINDOW, model)
    for kind in ("value", "tensor"):
        trace = trace_of(kind, WINDOW, model)
        assert {name: flat(x) for name, x in trace.items()} == {
            name: close(x) for name, x in expected.items()
        }


@of_each_kind
@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_tokens_attention_weights_are_one_for_each_token_it_sees_and_sum_to_1(
    kind, n
):
    trace = trace_of(kind, [4, 0, 1, 2, 2, 3][:n])
    for i in range(2):
        assert len(trace[f"h.{i}.attn"]) == MODEL.config.n_head
        for head in trace[f"h.{i}.attn"]:
            assert [len(row) for row in head] == list(range(1, n + 1))
            assert all(w > 0 for row in head for w in row)
            assert [sum(row) for row in head] == pytest.approx([1.0] * n, abs=1e-12)


@of_each_kind
def test_attention_weights_are_those_of_the_queries_and_keys_in_the_trace(kind):
    trace = trace_of(kind, [4, 0, 1, 2, 3])
    for i in range(2):
        expected = weights_by_hand(trace[f"h.{i}.attn.c_attn"], 2)
        assert flat(trace[f"h.{i}.attn"]) == close(expected)
        first, second = expected  # two heads look at different things
        assert flat(first) != pytest.approx(flat(second), rel=0.01)


@of_each_kind
def test_attention_weights_are_floats(kind):
    traced = model_of(kind)
    traced(WINDOW)
    assert {type(w) for w in flat(traced.trace["h.1.attn"])} == {float}


@of_each_kind
def test_a_block_adds_what_its_two_projections_gave_to_the_row(kind):
    trace = trace_of(kind, WINDOW)
    for before, h in (("embeddings", "h.0"), ("h.0", "h.1")):
        parts = trace[before], trace[h + ".attn.c_proj"], trace[h + ".mlp.c_proj"]
        assert flat(trace[h]) == close(total(*parts))


@of_each_kind
def test_every_layer_recomputed_from_its_input_in_the_trace_gives_its_output(kind):
    trace = trace_of(kind, WINDOW[:-1])
    p = MODEL.params
    steps = [(normal, "ln_f", trace["h.1"])]
    for x, h in (("embeddings", "h.0."), ("h.0", "h.1.")):
        a = trace[h + "attn.c_attn"]
        steps += [
            (normal, h + "ln_1", trace[x]),
            (affine, h + "attn.c_attn", trace[h + "ln_1"]),
            (affine, h + "attn.c_proj", gathered(a, trace[h + "attn"])),
            (normal, h + "ln_2", total(trace[x], trace[h + "attn.c_proj"])),
            (affine, h + "mlp.c_fc", trace[h + "ln_2"]),
            (affine, h + "mlp.c_proj", bent(trace[h + "mlp.c_fc"])),
        ]
    for function, name, rows in steps:
        expected = function(rows, p[name + ".weight"], p[name + ".bias"])
        assert flat(trace[name]) == close(expected), name
    logits = affine(trace["ln_f"], p["wte.weight"], [0.0] * 5)
    assert flat(trace["logits"]) == close(logits)


@of_each_kind
def test_the_logits_in_the_trace_are_the_ones_returned(kind):
    traced = model_of(kind)
    assert traced([4, 0, 1]) is traced.trace["logits"]
    loss = float(traced.loss([WINDOW]))
    assert loss == pytest.approx(loss_by_hand(MODEL, WINDOW), rel=1e-12)
    again = cross_entropy(plain(traced.trace["logits"]), WINDOW[1:])
    assert loss == pytest.approx(again, rel=1e-14)


def places_and_rows(trace):
    """{(name, head, token): its row} of a trace."""
    found = {}
    for name, x in trace.items():
        for head, part in enumerate(x if name.endswith(".attn") else [x]):
            for t, row in enumerate(part):
                found[name, head, t] = row
    return found


@of_each_kind
@pytest.mark.parametrize("changed", range(5))
def test_a_changed_token_changes_its_own_and_later_activations_only(kind, changed):
    tokens = [4, 0, 1, 2, 3]
    before = places_and_rows(trace_of(kind, tokens))
    tokens[changed] = (tokens[changed] + 1) % 5
    after = places_and_rows(trace_of(kind, tokens))
    for (name, head, t), row in before.items():
        sees_itself_alone = name.endswith(".attn") and t == 0
        if t < changed:
            assert after[name, head, t] == row, name
        elif t == changed and not sees_itself_alone:
            assert after[name, head, t] != row, name


@of_each_kind
def test_of_several_windows_the_trace_is_that_of_the_last(kind):
    traced = model_of(kind)
    traced.loss([WINDOW, [4, 3], [2, 2, 0]])
    trace = {name: plain(x) for name, x in traced.trace.items()}
    assert trace == trace_of(kind, [2, 2])


# Gradients


def traced_gradients(kind, window=WINDOW):
    """A traced model after a backward pass."""
    traced = model_of(kind)
    traced.loss([window]).backward()
    return traced


def test_gradients_of_activations_are_the_same_on_values_and_tensors():
    values = traced_gradients("value").trace
    tensors = traced_gradients("tensor").trace
    for name in names(2):
        if name.endswith(".attn"):
            continue
        lengths = [len(row) for row in values[name]]
        assert [len(row) for row in tensors[name].grad] == lengths
        assert flat(grads(tensors[name])) == close(grads(values[name])), name
        assert any(flat(grads(tensors[name]))), name


def places(x, path=()):
    """The path to every number of rows, or of lists of rows."""
    if not isinstance(x, list):
        return [path]
    return [place for i, y in enumerate(x) for place in places(y, (*path, i))]


@with_a_graph
def test_gradients_of_activations_are_what_nudging_says(kind):
    step = 1e-5
    trace = traced_gradients(kind).trace
    for name, x in by_hand(MODEL, WINDOW[:-1]).items():
        if name.endswith(".attn"):
            continue
        measured = []
        for place in places(x):
            up = loss_by_hand(MODEL, WINDOW, (name, place, step))
            down = loss_by_hand(MODEL, WINDOW, (name, place, -step))
            measured.append((up - down) / (2 * step))
        expected = pytest.approx(measured, rel=1e-6, abs=1e-8)
        assert flat(grads(trace[name])) == expected, name


@with_a_graph
def test_a_biass_gradient_is_the_sum_of_those_of_its_layers_rows(kind):
    traced = traced_gradients(kind)
    for name in names(2):
        if name + ".bias" in traced.params:
            sums = [sum(column) for column in zip(*grads(traced.trace[name]))]
            assert grads(traced.params[name + ".bias"]) == close(sums), name


@with_a_graph
def test_the_gradient_of_the_logits_is_softmax_less_the_target_by_hand(kind):
    logits = traced_gradients(kind).trace["logits"]
    for row, grad, target in zip(plain(logits), grads(logits), WINDOW[1:]):
        exps = [math.exp(x) for x in row]
        expected = [(e / sum(exps) - (i == target)) / 4 for i, e in enumerate(exps)]
        assert grad == pytest.approx(expected, rel=1e-12, abs=1e-12)


# A trace changes nothing


@of_each_kind
def test_to_be_watched_changes_not_a_bit(kind):
    def results(model):
        logits = plain(model(WINDOW))
        loss = model.loss([WINDOW, [2, 2, 0]])
        if kind == "float":
            return logits, loss
        loss.backward()
        return logits, float(loss), {name: grads(x) for name, x in model.params.items()}

    assert results(model_of(kind)) == results(untraced(kind))


@with_a_graph
def test_watching_adds_no_node_to_the_graph(kind):
    def count(loss):
        seen = {}  # by id, and kept alive, so that no id is used twice
        stack = [loss]
        while stack:
            node = stack.pop()
            if id(node) not in seen:
                seen[id(node)] = node
                stack += node.children
        return len(seen)

    watched = model_of(kind).loss([WINDOW])
    alone = untraced(kind).loss([WINDOW])
    assert count(watched) == count(alone)


@of_each_kind
def test_a_later_pass_leaves_earlier_traces_alone(kind):
    traced = model_of(kind)
    traced([4, 0, 1])
    trace = traced.trace
    kept = list(trace.values())
    before = {name: plain(x) for name, x in trace.items()}
    traced([4, 2, 2, 2])
    traced.loss([WINDOW])
    assert traced.trace is not trace
    assert {name: plain(x) for name, x in trace.items()} == before
    assert all(x is y for x, y in zip(trace.values(), kept))


@with_a_graph
def test_a_trace_that_nobody_holds_is_let_go(kind):
    def alive():
        gc.collect()
        return sum(issubclass(type(x), (Value, Tensor)) for x in gc.get_objects())

    traced = model_of(kind)
    before = alive()
    assert before > 20
    traced(WINDOW)
    assert alive() > before
    traced.trace = {}
    assert alive() == before


@with_a_graph
def test_what_becomes_of_a_traces_lists_before_backward_changes_no_gradient(kind):
    def spoil(x):
        if isinstance(x, list):
            for y in x:
                spoil(y)
            x[:1] = []

    traced = model_of(kind)
    loss = traced.loss([WINDOW])
    for x in traced.trace.values():  # attention's weights; of Values, all rows
        spoil(x)
    traced.trace.clear()
    loss.backward()
    expected = traced_gradients(kind).params
    for name, x in traced.params.items():
        assert grads(x) == grads(expected[name]), name


def test_it_computes_on_the_numbers_of_every_engine():
    for engine in (ValueEngine(), TensorEngine()):
        params = {name: engine.convert(x) for name, x in MODEL.params.items()}
        traced = TracedGPT(GPT(MODEL.config, params))
        traced.loss([WINDOW]).backward()
        gradient = engine.gradient(traced.trace["h.1"])
        assert flat(gradient) == close(grads(traced_gradients("value").trace["h.1"]))


# weights_by_head by itself


def random_rows(n, m, seed=0):
    rng = random.Random(seed)
    return [[rng.gauss(0, 1) for _ in range(m)] for _ in range(n)]


@of_each_kind
@pytest.mark.parametrize("n_head", [1, 2, 4])
def test_weights_are_those_by_which_values_are_averaged(kind, n_head):
    x = random_rows(4, 12)
    heads = weights_by_head(convert(kind, x), n_head)
    assert flat(heads) == close(weights_by_hand(x, n_head))
    out = plain(attention(convert(kind, x), n_head))
    assert flat(out) == close(gathered(x, heads))


@of_each_kind
def test_equal_keys_get_equal_weights(kind):
    x = [[0.5, 1.0, float(t)] for t in range(3)]  # query, key, value
    (head,) = weights_by_head(convert(kind, x), 1)
    assert head == [[1.0], [0.5, 0.5], pytest.approx([1 / 3] * 3, rel=1e-15)]


@of_each_kind
def test_weights_by_hand_on_a_case_that_can_be_done_in_the_head(kind):
    # Width 4: the query is (log 9, 0, 0, 0), the keys are (0, ...) and (1, 0, 0, 0).
    # The scores are 0 and log(9) / sqrt(4) = log 3, so the weights are 1/4 and 3/4.
    x = [[0.0] * 12, [math.log(9), 0, 0, 0, 1.0, 0, 0, 0, 8.0, 0, 0, 4.0]]
    (head,) = weights_by_head(convert(kind, x), 1)
    assert head == [[1.0], pytest.approx([0.25, 0.75], rel=1e-14)]
    out = plain(attention(convert(kind, x), 1))
    assert out[1] == pytest.approx([6.0, 0.0, 0.0, 3.0], rel=1e-14)


@with_a_graph
def test_reading_the_weights_changes_no_gradient(kind):
    def gradient(is_read):
        x = convert(kind, random_rows(3, 12))
        if is_read:
            weights_by_head(x, 2)
        cross_entropy(attention(x, 2), [0, 1, 2]).backward()
        return grads(x)

    assert gradient(True) == gradient(False)
