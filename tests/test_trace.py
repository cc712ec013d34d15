"""Chapters 4, 5 and 7: what a forward pass tells in its `trace`, and attention in its `heads`."""

import gc
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
    attention,
    cross_entropy,
    gradients,
    pack,
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
BATCH = [[4, 0, 1, 2, 4], [4, 3], [2, 2, 0]]  # windows of 4, 1 and 2 predictions
ENGINES = [float, Value, Tensor]


def make(vocab_size=5, block_size=6, n_layer=2, n_head=2, n_embd=4, seed=0):
    """A model whose biases and gains are random too, so that none may be left out."""
    config = Config(vocab_size, block_size, n_layer, n_head, n_embd)
    rng, params = random.Random(seed), {}
    for name, shape in parameter_shapes(config).items():
        rows = [
            [rng.gauss(0, 0.5) for _ in range(shape[-1])]
            for _ in range(math.prod(shape[:-1]))
        ]
        params[name] = rows if len(shape) > 1 else rows[0]
    return GPT(config, params)


MODEL = make()


def lifted(model, number):
    return model if number is float else model.lift(number)


def plain(x):
    """Rows of floats, of Values, or a Tensor -> lists of floats."""
    if isinstance(x, Tensor):
        return plain(x.data)
    return [plain(y) for y in x] if isinstance(x, (list, tuple)) else float(x)


def grads(x):
    """What backward() left in rows of Values or in a Tensor."""
    if isinstance(x, Tensor):
        return x.grad
    return [grads(y) for y in x] if isinstance(x, (list, tuple)) else x.grad


def flat(x):
    return (
        [y for item in x for y in flat(item)] if isinstance(x, (list, tuple)) else [x]
    )


def close(x):
    return pytest.approx(flat(x), rel=1e-12, abs=1e-12)


def trace_of(model, *args, **options):
    trace = {}
    model(*args, trace=trace, **options)
    return {name: plain(x) for name, x in trace.items()}


# GPT-2's formulas for one window, number by number, with nothing from microgpt.


def normal(rows, gain, bias):
    means = [sum(row) / len(row) for row in rows]
    sizes = [
        math.sqrt(sum((a - m) ** 2 for a in row) / len(row) + 1e-5)
        for row, m in zip(rows, means)
    ]
    return [
        [(a - m) / s * g + b for a, g, b in zip(row, gain, bias)]
        for row, m, s in zip(rows, means, sizes)
    ]


def affine(rows, weight, bias):
    return [
        [sum(a * w for a, w in zip(row, out)) + b for out, b in zip(weight, bias)]
        for row in rows
    ]


def bent(rows):
    return [
        [
            a / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
            for a in row
        ]
        for row in rows
    ]


def weights_by_hand(rows, n_head):
    """What c_attn gave one window -> for each head, each token's weights of those it sees."""
    n_embd = len(rows[0]) // 3
    d, heads = n_embd // n_head, []
    for first in range(0, n_embd, d):
        heads.append([])
        for t, row in enumerate(rows):
            scores = [
                sum(row[i] * key[n_embd + i] for i in range(first, first + d))
                / math.sqrt(d)
                for key in rows[: t + 1]
            ]
            exps = [math.exp(score) for score in scores]
            heads[-1].append([e / sum(exps) for e in exps])
    return heads


def gathered(rows, heads):
    """The values of one window, averaged with each head's weights, the heads side by side."""
    n_embd = len(rows[0]) // 3
    d = n_embd // len(heads)
    return [
        [
            sum(w * rows[s][2 * n_embd + i] for s, w in enumerate(heads[i // d][t]))
            for i in range(n_embd)
        ]
        for t in range(len(rows))
    ]


def total(*parts):
    return [[sum(numbers) for numbers in zip(*rows)] for rows in zip(*parts)]


def by_hand(model, tokens, nudge=None):
    """Every activation of one window; (name, path, amount) moves one before the next are made."""
    p, seen = model.params, {}

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

    x = see(
        "embeddings",
        [
            [a + b for a, b in zip(p["wte.weight"][token], p["wpe.weight"][t])]
            for t, token in enumerate(tokens)
        ],
    )
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
    return sum(
        math.log(sum(map(math.exp, row))) - row[target]
        for row, target in zip(logits, window[1:])
    ) / len(logits)


def names(n_layer):
    blocks = [
        name
        for i in range(n_layer)
        for name in [f"h.{i}.{layer}" for layer in LAYERS] + [f"h.{i}"]
    ]
    return ["embeddings", *blocks, "ln_f", "logits"]


@pytest.mark.parametrize("number", ENGINES)
@pytest.mark.parametrize("n_layer", [1, 3])
def test_a_trace_names_all_layers_in_the_order_of_the_forward_pass(number, n_layer):
    trace = {}
    lifted(make(n_layer=n_layer), number)([4, 0, 1], trace=trace)
    assert list(trace) == names(n_layer)
    trace = {}
    lifted(make(n_layer=n_layer), number).loss(BATCH, trace=trace)
    assert list(trace) == names(n_layer)


@pytest.mark.parametrize("number", ENGINES)
def test_every_activation_is_what_the_formulas_give(number):
    trace, expected = (
        trace_of(lifted(MODEL, number), [4, 0, 1, 2]),
        by_hand(MODEL, [4, 0, 1, 2]),
    )
    for name in names(2):
        assert [len(row) for row in trace[name]] == [
            len(row) for row in expected[name]
        ], name
        assert flat(trace[name]) == close(expected[name]), name


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 999))
def test_floats_values_and_tensors_have_the_same_trace(n_layer, n_head, d, seed):
    model = make(n_layer=n_layer, n_head=n_head, n_embd=n_head * d, seed=seed)
    tokens, positions, _ = pack(BATCH)
    expected = trace_of(model, tokens, positions)
    for number in (Value, Tensor):
        trace = trace_of(model.lift(number), tokens, positions)
        assert {name: flat(x) for name, x in trace.items()} == {
            name: close(x) for name, x in expected.items()
        }


@pytest.mark.parametrize("number", ENGINES)
def test_each_window_of_a_batch_has_the_trace_that_it_has_alone(number):
    tokens, positions, _ = pack(BATCH)
    trace = trace_of(lifted(MODEL, number), tokens, positions)
    alone = [by_hand(MODEL, window[:-1]) for window in BATCH]
    for name in names(2):
        if name.endswith(".attn"):
            for head in range(2):
                rows = [row for window in alone for row in window[name][head]]
                assert [len(row) for row in trace[name][head]] == [1, 2, 3, 4, 1, 1, 2]
                assert flat(trace[name][head]) == close(rows), name
        else:
            assert flat(trace[name]) == close([window[name] for window in alone]), name


@pytest.mark.parametrize("number", ENGINES)
def test_a_tokens_attention_weights_are_one_for_each_token_it_sees_and_sum_to_1(number):
    tokens, positions, _ = pack(BATCH)
    trace = trace_of(lifted(MODEL, number), tokens, positions)
    for i in range(2):
        assert len(trace[f"h.{i}.attn"]) == MODEL.config.n_head
        for head in trace[f"h.{i}.attn"]:
            assert [len(row) for row in head] == [
                position + 1 for position in positions
            ]
            assert all(w > 0 for row in head for w in row)
            assert [sum(row) for row in head] == pytest.approx(
                [1.0] * len(tokens), abs=1e-12
            )


@pytest.mark.parametrize("number", ENGINES)
def test_attention_weights_are_those_of_the_queries_and_keys_in_the_trace(number):
    trace = trace_of(lifted(MODEL, number), [4, 0, 1, 2, 3])
    for i in range(2):
        expected = weights_by_hand(trace[f"h.{i}.attn.c_attn"], 2)
        assert flat(trace[f"h.{i}.attn"]) == close(expected)
        first, second = expected
        assert flat(first) != pytest.approx(
            flat(second), rel=0.01
        )  # two heads, two looks


@pytest.mark.parametrize("number", ENGINES)
def test_a_block_adds_what_its_two_projections_gave_to_the_row(number):
    tokens, positions, _ = pack(BATCH)
    trace = trace_of(lifted(MODEL, number), tokens, positions)
    for before, h in (("embeddings", "h.0"), ("h.0", "h.1")):
        parts = trace[before], trace[h + ".attn.c_proj"], trace[h + ".mlp.c_proj"]
        assert flat(trace[h]) == close(total(*parts))


@pytest.mark.parametrize("number", ENGINES)
def test_every_layer_recomputed_from_its_input_in_the_trace_gives_its_output(number):
    trace, p = trace_of(lifted(MODEL, number), [4, 0, 1, 2]), MODEL.params
    steps = []
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
    for function, name, rows in [*steps, (normal, "ln_f", trace["h.1"])]:
        expected = function(rows, p[name + ".weight"], p[name + ".bias"])
        assert flat(trace[name]) == close(expected), name
    assert flat(trace["logits"]) == close(
        affine(trace["ln_f"], p["wte.weight"], [0.0] * 5)
    )


@pytest.mark.parametrize("number", ENGINES)
def test_the_logits_in_the_trace_are_the_ones_returned(number):
    trace, model = {}, lifted(MODEL, number)
    assert model([4, 0, 1], trace=trace) is trace["logits"]
    loss = model.loss(BATCH, trace=trace)
    by_window = (
        sum(loss_by_hand(MODEL, window) * (len(window) - 1) for window in BATCH) / 7
    )
    assert float(loss) == pytest.approx(by_window, rel=1e-12)
    again = cross_entropy(plain(trace["logits"]), pack(BATCH)[2])
    assert float(loss) == pytest.approx(again, rel=1e-14)


@pytest.mark.parametrize("number", ENGINES)
def test_a_changed_token_changes_its_own_and_later_activations_and_no_earlier_ones(
    number,
):
    def places_and_rows(trace):
        for name, x in trace.items():
            for head, part in enumerate(x if name.endswith(".attn") else [x]):
                yield from (((name, head, t), row) for t, row in enumerate(part))

    tokens, model = [4, 0, 1, 2, 3], lifted(MODEL, number)
    before = dict(places_and_rows(trace_of(model, tokens)))
    for changed in range(5):
        others = tokens[:changed] + [(tokens[changed] + 1) % 5] + tokens[changed + 1 :]
        after = dict(places_and_rows(trace_of(model, others)))
        for (name, _, t), row in before.items():
            if t < changed:
                assert after[name, _, t] == row, name
            elif t == changed and not (
                name.endswith(".attn") and t == 0
            ):  # it sees itself alone
                assert after[name, _, t] != row, name


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4], [2], [3, 4]])
def test_with_a_cache_the_trace_has_the_new_tokens_as_in_the_whole(cuts):
    tokens, cache = [4, 0, 1, 2, 3], MODEL.new_cache()
    whole = by_hand(MODEL, tokens)
    for start, stop in zip([0] + cuts, cuts + [5]):
        trace = trace_of(MODEL, tokens[start:stop], cache=cache)
        for name in names(2):
            if name.endswith(".attn"):
                for head in range(2):
                    lengths = [len(row) for row in trace[name][head]]
                    assert lengths == list(range(start + 1, stop + 1))
                    assert flat(trace[name][head]) == close(
                        whole[name][head][start:stop]
                    )
            else:
                assert flat(trace[name]) == close(whole[name][start:stop]), name


@pytest.mark.parametrize("number", ENGINES)
def test_of_a_pass_for_the_last_row_only_the_trace_has_one_row_of_ln_f_and_logits(
    number,
):
    trace, whole = (
        trace_of(lifted(MODEL, number), [4, 0, 1], last=True),
        by_hand(MODEL, [4, 0, 1]),
    )
    for name in names(2):
        expected = whole[name][-1:] if name in ("ln_f", "logits") else whole[name]
        assert len(trace[name]) == len(expected), name
        assert flat(trace[name]) == close(expected), name


def traced_gradients(number, batch):
    """Trace, and gradients of the parameters, after a backward pass."""
    trace, model = {}, MODEL.lift(number)
    model.loss(batch, trace=trace).backward()
    return trace, gradients(model.params)


def test_gradients_of_activations_are_the_same_in_both_engines():
    values, tensors = (
        traced_gradients(Value, BATCH)[0],
        traced_gradients(Tensor, BATCH)[0],
    )
    for name in names(2):
        if not name.endswith(".attn"):  # plain floats, in Tensors
            assert [len(row) for row in tensors[name].grad] == [
                len(row) for row in values[name]
            ]
            assert flat(tensors[name].grad) == close(grads(values[name])), name
            assert any(flat(tensors[name].grad)), name


def places(x, path=()):
    """The path to every number of rows, or of lists of rows."""
    if not isinstance(x, list):
        return [path]
    return [place for i, y in enumerate(x) for place in places(y, (*path, i))]


def test_gradients_of_activations_are_what_nudging_says():
    window, step = [4, 0, 1, 2], 1e-5
    values, tensors = (
        traced_gradients(Value, [window])[0],
        traced_gradients(Tensor, [window])[0],
    )
    for name, x in by_hand(MODEL, window[:-1]).items():
        measured = [
            (
                loss_by_hand(MODEL, window, (name, place, step))
                - loss_by_hand(MODEL, window, (name, place, -step))
            )
            / (2 * step)
            for place in places(x)
        ]
        assert flat(grads(values[name])) == pytest.approx(
            measured, rel=1e-6, abs=1e-8
        ), name
        if not name.endswith(".attn"):
            assert flat(tensors[name].grad) == pytest.approx(
                measured, rel=1e-6, abs=1e-8
            ), name


@pytest.mark.parametrize("number", [Value, Tensor])
def test_a_biass_gradient_is_the_sum_of_those_of_its_layers_rows(number):
    trace, of_params = traced_gradients(number, BATCH)
    for name in names(2):
        if name + ".bias" in of_params:
            sums = [sum(column) for column in zip(*grads(trace[name]))]
            assert of_params[name + ".bias"] == close(sums), name


def test_the_gradient_of_the_logits_is_softmax_less_the_target_by_hand():
    trace, _ = traced_gradients(Tensor, BATCH)
    for row, grad, target in zip(
        trace["logits"].data, trace["logits"].grad, pack(BATCH)[2]
    ):
        exps = [math.exp(x) for x in row]
        expected = [(e / sum(exps) - (i == target)) / 7 for i, e in enumerate(exps)]
        assert list(grad) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("number", ENGINES)
def test_to_be_watched_changes_not_a_bit(number):
    def run(trace):
        model = lifted(MODEL, number)
        logits = plain(model([4, 0, 1, 2], trace=trace))
        loss = model.loss(BATCH, trace=trace)
        if number is float:
            return (
                logits,
                loss,
                plain(model([1, 2], cache=model.new_cache(), trace=trace)),
            )
        loss.backward()
        return logits, float(loss), gradients(model.params)

    assert run(None) == run({})


def test_watching_adds_no_node_to_the_graph():
    def nodes(loss):
        seen, stack = set(), [loss]
        while stack:
            node = stack.pop()
            if id(node) not in seen:
                seen.add(id(node))
                stack += node.children
        return len(seen)

    for number in (Value, Tensor):
        kept = (
            MODEL.lift(number),
            MODEL.lift(number),
        )  # ids stay distinct while they live
        without, with_trace = kept[0].loss(BATCH), kept[1].loss(BATCH, trace={})
        assert nodes(without) == nodes(with_trace)


@pytest.mark.parametrize("number", ENGINES)
def test_a_pass_without_a_trace_leaves_earlier_traces_alone(number):
    model, trace = lifted(MODEL, number), {}
    model([4, 0, 1], trace=trace)
    kept, before = list(trace.values()), {name: plain(x) for name, x in trace.items()}
    model([4, 2, 2, 2])
    model.loss(BATCH)
    assert {name: plain(x) for name, x in trace.items()} == before
    assert all(x is y for x, y in zip(trace.values(), kept))


@pytest.mark.parametrize("number", [Value, Tensor])
def test_a_pass_without_a_trace_keeps_nothing(number):
    def alive():
        gc.collect()
        return sum(issubclass(type(x), Value) for x in gc.get_objects())

    model = MODEL.lift(number)
    before = alive()
    assert before > 20
    model([4, 0, 1])
    model.loss(BATCH)
    assert alive() == before


@pytest.mark.parametrize("number", [Value, Tensor])
def test_what_becomes_of_a_traces_lists_before_backward_changes_no_gradient(number):
    def spoil(x):
        if isinstance(x, list):
            for y in x:
                spoil(y)
            x[:1] = []

    trace, model = {}, MODEL.lift(number)
    loss = model.loss(BATCH, trace=trace)
    for x in trace.values():  # attention weights; of Values, all rows
        spoil(x)
    trace.clear()
    loss.backward()
    assert gradients(model.params) == traced_gradients(number, BATCH)[1]


@pytest.mark.parametrize("number", ENGINES)
def test_a_trace_that_is_used_again_has_the_latest_pass_alone(number):
    model, trace = lifted(MODEL, number), {}
    model([4, 0, 1, 1], trace=trace)
    model([4, 2], trace=trace)
    assert {name: plain(x) for name, x in trace.items()} == trace_of(model, [4, 2])


# attention(..., heads=...) by itself


def rows(n, m, seed=0):
    rng = random.Random(seed)
    return [[rng.gauss(0, 1) for _ in range(m)] for _ in range(n)]


def heads_of(x, positions, n_head, past=None):
    heads = [[] for _ in range(n_head)]
    out = attention(x, positions, n_head, past, heads)
    return plain(out), plain(heads)


@pytest.mark.parametrize("number", ENGINES)
@pytest.mark.parametrize("n_head", [1, 2, 4])
def test_heads_get_the_weights_by_which_values_were_averaged(number, n_head):
    x = rows(4, 12)
    out, heads = heads_of(x if number is float else number.lift(x), range(4), n_head)
    assert flat(heads) == close(weights_by_hand(x, n_head))
    assert flat(out) == close(gathered(x, heads))


@pytest.mark.parametrize("number", ENGINES)
def test_asking_for_heads_changes_not_a_bit_of_what_attention_gives(number):
    x = rows(5, 12) if number is float else number.lift(rows(5, 12))
    out, _ = heads_of(x, [0, 1, 2, 0, 1], 2)
    assert out == plain(attention(x, [0, 1, 2, 0, 1], 2))


@pytest.mark.parametrize("number", ENGINES)
def test_equal_keys_get_equal_weights(number):
    x = [[0.5, 1.0, float(t)] for t in range(4)]  # query, key, value
    _, (head,) = heads_of(x if number is float else number.lift(x), [0, 1, 2, 0], 1)
    assert head == [[1.0], [0.5, 0.5], pytest.approx([1 / 3] * 3, rel=1e-15), [1.0]]


@pytest.mark.parametrize("number", ENGINES)
def test_weights_by_hand_on_a_case_that_can_be_done_in_the_head(number):
    # Width 4: query (log 9, 0, 0, 0), keys (0, ...) and (1, 0, 0, 0); the scores are 0 and
    # log(9) / sqrt(4) = log 3, so the weights are 1/4 and 3/4.
    x = [
        [0.0] * 12,
        [math.log(9), 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 8.0, 0.0, 0.0, 4.0],
    ]
    out, (head,) = heads_of(x if number is float else number.lift(x), [0, 1], 1)
    assert head == [[1.0], pytest.approx([0.25, 0.75], rel=1e-14)]
    assert out[1] == pytest.approx([6.0, 0.0, 0.0, 3.0], rel=1e-14)


def test_heads_see_past_keys_and_gather_over_calls():
    x, past, heads = rows(5, 12), ([], []), [[], []]
    attention(x[:2], [0, 1], 2, past, heads)
    attention(x[2:], [2, 3, 4], 2, past, heads)
    assert [[len(row) for row in head] for head in heads] == [[1, 2, 3, 4, 5]] * 2
    assert flat(heads) == close(weights_by_hand(x, 2))


@pytest.mark.parametrize("number", [Value, Tensor])
@pytest.mark.parametrize("change", ["held before", "emptied after"])
def test_what_else_is_in_the_lists_of_heads_changes_no_gradient(number, change):
    def gradient(heads, emptied=()):
        x = number.lift(rows(3, 12))
        loss = cross_entropy(attention(x, range(3), 2, None, heads), [0, 1, 2])
        for head in emptied:
            head.clear()
        loss.backward()
        return grads(x)

    heads = [[], []]
    if change == "held before":
        attention(number.lift(rows(3, 12, seed=1)), range(3), 2, None, heads)
    assert flat(gradient(heads, heads if change == "emptied after" else ())) == close(
        gradient(None)
    )
