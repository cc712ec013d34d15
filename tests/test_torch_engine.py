"""examples/engines/torch_engine.py: what PyTorch computes is what the scalar engine computes."""

import os
import random
import sys
from array import array
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import GPT, CharTokenizer, Config, batch_gradients, cross_entropy, stream

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "examples", "engines"))

from check_engine import check_engine  # noqa: E402
from torch_engine import Torch, to_tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")  # float(loss)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"
        ),
    ),
]
LAYERS = (
    "softmax",
    "embedding",
    "add",
    "linear",
    "layernorm",
    "gelu",
    "attention",
    "cross_entropy",
)
TOKENIZER = CharTokenizer(["abcdef"])


def make(config, seed):
    """A model whose gains and biases are not 1 and 0."""
    model, rng = GPT(config, seed=seed), random.Random(seed)
    for name, x in model.params.items():
        if isinstance(x[0], float):
            model.params[name] = [value + rng.gauss(0, 0.5) for value in x]
    return model


def small(seed=1, n_layer=2):
    return make(
        Config(TOKENIZER.vocab_size, block_size=6, n_layer=n_layer, n_head=2, n_embd=8),
        seed,
    )


@st.composite
def cases(draw):
    """A model and a batch of windows of several lengths."""

    def number(least, most):
        return draw(st.integers(least, most))

    n_head = number(1, 3)
    config = Config(
        number(1, 9), number(1, 6), number(1, 2), n_head, n_head * number(1, 3)
    )
    window = st.lists(
        st.integers(0, config.vocab_size - 1),
        min_size=2,
        max_size=config.block_size + 1,
    )
    return make(config, number(0, 99)), draw(st.lists(window, min_size=1, max_size=4))


def on(device, dtype=torch.float64):
    return mock.patch.multiple(Torch, device=device, dtype=dtype)


def side_by_side(batch, length, device, filling):
    """Tokens and targets [B, T] as torch_engine describes them; what fills up is to be ignored."""

    def filled(row, x):
        return [*row, *[x] * (length - len(row))]

    return (
        torch.tensor([filled(window[:-1], filling) for window in batch], device=device),
        torch.tensor([filled(window[1:], -1) for window in batch], device=device),
    )


def loss_side_by_side(model, tokens, targets):
    return cross_entropy(
        model(tokens, torch.arange(tokens.shape[1], device=tokens.device)), targets
    )


def close(x, y, tolerance=1e-10):
    """Equal numbers, rows or rows of rows of the same shape."""
    x, y = (torch.as_tensor(side, dtype=torch.float64, device="cpu") for side in (x, y))
    assert x.shape == y.shape
    return torch.allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=30)
@given(case=cases(), spare=st.integers(0, 6), filling=st.integers(0, 8))
def test_losses_and_gradients_are_the_scalar_engines(device, case, spare, filling):
    model, batch = case
    expected, slopes = batch_gradients(model, batch, "value")
    length = min(model.config.block_size, max(map(len, batch)) - 1 + spare)
    rows = side_by_side(batch, length, device, filling % model.config.vocab_size)
    with on(device):
        packed, packed_slopes = batch_gradients(model, batch, "torch")
        lifted = model.lift(Torch)
        side = loss_side_by_side(lifted, *rows)
        side.backward()
        side_slopes = microgpt.gradients(lifted.params, Torch)
    assert close(packed, expected) and close(side.detach(), expected)
    assert slopes.keys() == packed_slopes.keys() == side_slopes.keys()
    for name, x in slopes.items():
        assert close(packed_slopes[name], x) and close(side_slopes[name], x), name


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=20)
@given(case=cases())
def test_logits_and_everything_in_a_trace_are_those_of_floats(device, case):
    model, batch = case
    tokens, positions, _ = microgpt.pack(batch)
    expected, found = {}, {}
    logits = model(tokens, positions, trace=expected)
    tensors = to_tensors(model, device, torch.float64)
    assert close(tensors(tokens, positions).tolist(), logits)
    assert close(tensors(tokens, positions, trace=found).tolist(), logits)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if name.endswith(".attn"):  # weights by head, a row as long as what it sees
            assert all(
                close(row, weights)
                for head, rows in zip(found[name], x)
                for row, weights in zip(head, rows)
            )
            assert [list(map(len, head)) for head in found[name]] == [
                [position + 1 for position in positions]
            ] * model.config.n_head
        else:
            assert close(found[name].tolist(), x), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 3, "top_p": 0.9}])
def test_generation_with_past_keys_and_values_draws_the_same_tokens(device, options):
    model = small()
    tensors = to_tensors(model, device, torch.float64)
    for prompt in (
        [3],
        [0, 1, 2, 3, 4, 5, 0, 1, 2],
    ):  # the second is longer than a window
        run = [
            list(stream(kind, prompt, 40, seed=5, end=99, **options))
            for kind in (model, tensors)
        ]
        assert run[0] == run[1] and len(run[0]) == 40


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_window_read_in_two_parts_has_the_logits_of_one_read_at_once(device, cut):
    model, tokens = small(), [3, 1, 4, 1, 5, 2]
    tensors = to_tensors(model, device, torch.float64)
    cache = tensors.new_cache()
    parts = [
        tensors(part, cache=cache).tolist() for part in (tokens[:cut], tokens[cut:])
    ]
    assert close(parts[0] + parts[1], model(tokens))
    last = tensors(tokens, last=True)
    assert isinstance(last[0][0], float) and close(last, model(tokens)[-1:])


@pytest.mark.parametrize(
    "tokens, positions",
    [
        ([7], None),
        ([0, 99, 100], None),
        ([0, -1], None),
        ([0, 1], [0, -1]),
        ([0] * 7, None),
    ],
)
def test_ids_out_of_range_are_refused_as_by_the_definition(tokens, positions):
    model = small()
    messages = []
    for kind in (model, to_tensors(model), model.lift(Torch)):
        with pytest.raises(ValueError, match="no token or position") as error:
            kind(tokens, positions)
        messages.append(str(error.value))
    assert len(set(messages)) == 1


def test_every_layer_has_a_rule_and_softmax_is_that_of_its_rows():
    for name in LAYERS:
        layer = getattr(microgpt, name)
        assert layer.dispatch(torch.Tensor) is not layer.dispatch(object), name
    rows = [[3.0, -1.0, 0.5], [800.0, -800.0, 799.0]]
    assert close(
        microgpt.softmax(torch.tensor(rows).double()).tolist(),
        [microgpt.softmax(row) for row in rows],
    )


@pytest.mark.parametrize("device", DEVICES)
def test_lists_and_rows_of_arrays_lift_alike_and_are_not_changed_through_a_tensor(
    device,
):
    rows = [[0.5, -1.25], [3.0, 2.0**-40], [0.0, 7.0]]
    with on(device):
        for x in (
            rows,
            [array("d", row) for row in rows],
            [array("f", row) for row in rows],
            rows[1],
            array("d", rows[1]),
        ):
            lifted = Torch.lift(x)
            assert lifted.tolist() == [
                list(row) if hasattr(row, "__len__") else row for row in x
            ]
            assert (lifted.device.type, lifted.dtype) == (device, torch.float64)
            assert (
                lifted.requires_grad and Torch.gradient(lifted) == (lifted * 0).tolist()
            )
            kept = repr(x)
            with torch.no_grad():
                lifted.fill_(9.0)
            assert repr(x) == kept
    tensors = to_tensors(small(), device)
    assert not any(x.requires_grad for x in tensors.params.values())
    assert {x.dtype for x in tensors.params.values()} == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_near_float32(device):
    model, batch = small(), [[3, 1, 4, 1, 5], [0, 2], [6, 5, 4, 3, 2, 1, 0]]
    rows, results = side_by_side(batch, 6, device, 0), []
    for enabled in (False, True):
        with on(device, torch.float32):
            lifted = model.lift(Torch)
        with torch.autocast(device, torch.bfloat16, enabled):
            loss = loss_side_by_side(lifted, *rows)
        loss.backward()
        assert loss.dtype == lifted.params["wte.weight"].grad.dtype == torch.float32
        results.append(
            (float(loss), torch.cat([x.grad.flatten() for x in lifted.params.values()]))
        )
    (loss, slopes), (rough, rough_slopes) = results
    assert rough == pytest.approx(loss, rel=0.02) and rough != loss
    assert (rough_slopes - slopes).norm() < 0.05 * slopes.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager"]
)  # which take no C++ compiler
def test_compiled_as_one_graph_it_gives_the_same(device, backend):
    torch.compiler.reset()
    model, batch = small(n_layer=1), [[3, 1, 4, 1, 5], [0, 2], [6, 5, 4, 3, 2, 1, 0]]
    rows, results = side_by_side(batch, 6, device, 0), []
    compiled = torch.compile(loss_side_by_side, fullgraph=True, backend=backend)
    for function in (loss_side_by_side, compiled):
        with on(device):
            lifted = model.lift(Torch)
        loss = function(lifted, *rows)
        loss.backward()
        results.append([float(loss), *[x.grad for x in lifted.params.values()]])
    assert all(close(x, y) for x, y in zip(*results))


@pytest.mark.parametrize("device", DEVICES)
def test_check_engine_agrees(device):
    with on(device):
        differences = check_engine(Torch)
    assert "GPT" in differences and max(differences.values()) <= 1e-10
