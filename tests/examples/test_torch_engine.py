"""examples/engines/torch_engine.py: PyTorch computes what floats and Values do."""

import os
import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import GPT, CachedGPT, CharTokenizer, Config, ValueEngine, stream

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from check_engine import CHECKS, check_engine  # noqa: E402
from torch_engine import (  # noqa: E402
    TensorGPT,
    TorchLayers,
    side_by_side,
    to_tensors,
)

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")  # float(loss)
without_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"
)
DEVICES = ["cpu", pytest.param("cuda", marks=without_gpu)]
LAYERS = (
    "softmax",
    "embedding",
    "add",
    "linear",
    "layernorm",
    "gelu",
    "attention",
    "packed_attention",
    "attention_with_past",
    "cross_entropy",
)
TOKENIZER = CharTokenizer(["abcdef"])
BATCH = [[3, 1, 4, 1, 5], [0, 2], [6, 5, 4, 3, 2, 1, 0]]


def make(config, seed):
    """A model whose gains and biases are not 1 and 0."""
    model = GPT(config, seed=seed)
    rng = random.Random(seed)
    for name, x in model.params.items():
        if isinstance(x[0], float):
            model.params[name] = [value + rng.gauss(0, 0.5) for value in x]
    return model


def small(seed=1, n_layer=2):
    vocab_size = TOKENIZER.vocab_size
    return make(Config(vocab_size, 6, n_layer=n_layer, n_head=2, n_embd=8), seed)


@st.composite
def cases(draw):
    """A model and a batch of windows of several lengths."""
    n_head = draw(st.integers(1, 3))
    config = Config(
        vocab_size=draw(st.integers(1, 9)),
        block_size=draw(st.integers(1, 6)),
        n_layer=draw(st.integers(1, 2)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(1, 3)),
    )
    token = st.integers(0, config.vocab_size - 1)
    window = st.lists(token, min_size=2, max_size=config.block_size + 1)
    batch = draw(st.lists(window, min_size=1, max_size=4))
    return make(config, draw(st.integers(0, 99))), batch


def converted(model, engine):
    """The model on tensors that want a gradient."""
    params = {name: engine.convert(x) for name, x in model.params.items()}
    return TensorGPT(model.config, params)


def loss_of(model, tokens, targets):
    return microgpt.cross_entropy(model(tokens), targets)


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
    expected, slopes = ValueEngine().gradients(model, batch)
    length = min(model.config.block_size, max(map(len, batch)) - 1 + spare)
    tokens, targets = side_by_side(batch, length, device)
    tokens[targets == -1] = filling % model.config.vocab_size  # it must not matter
    engine = TorchLayers(device)
    packed, packed_slopes = engine.gradients(model, batch)
    tensors = converted(model, engine)
    side = loss_of(tensors, tokens, targets)
    side.backward()
    side_slopes = {name: engine.gradient(x) for name, x in tensors.params.items()}
    assert close(packed, expected) and close(side.detach(), expected)
    assert slopes.keys() == packed_slopes.keys() == side_slopes.keys()
    for name, x in slopes.items():
        assert close(packed_slopes[name], x) and close(side_slopes[name], x), name


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=20)
@given(case=cases())
def test_logits_and_losses_are_those_of_floats(device, case):
    model, batch = case
    tensors = to_tensors(model, device, torch.float64)
    assert close(tensors.loss(batch), model.loss(batch))
    length = max(map(len, batch)) - 1
    tokens, _ = side_by_side(batch, length, device)
    rows = tensors(tokens)
    assert rows.shape == (len(batch), length, model.config.vocab_size)
    for window, row in zip(batch, rows):
        expected = model(window[:-1])
        assert close(tensors(window[:-1]).tolist(), expected)
        assert close(row[: len(window) - 1].tolist(), expected)


def test_side_by_side_fills_up_with_tokens_and_targets_that_do_not_count():
    tokens, targets = side_by_side([[1, 2, 3], [4, 5]], 3, "cpu")
    assert tokens.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert targets.tolist() == [[2, 3, -1], [5, -1, -1]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 3, "top_p": 0.9}, {}]
)
def test_tensors_write_what_floats_write(device, options):
    models = [small(), to_tensors(small(), device, torch.float64)]
    sampling = microgpt.Sampling(**options)
    for prompt in ([3], [0, 1, 2, 3, 4, 5, 0, 1, 2]):  # that is longer than a window
        texts = []
        for model in models:
            new = stream(model, prompt, sampling, random.Random(5), 99, max_tokens=40)
            texts.append(list(new))
        assert texts[0] == texts[1] and len(texts[0]) == 40
    scores = [microgpt.score(model, TOKENIZER, "abcdefabc") for model in models]
    for one, other in zip(*scores):
        assert close(other.loss, one.loss)
        assert close(other.probability, one.probability)


def test_writing_reads_each_token_once(monkeypatch):
    class Counting(CachedGPT):
        def __call__(self, tokens):
            counts.append(len(tokens))
            return super().__call__(tokens)

    counts = []
    monkeypatch.setattr(microgpt, "CachedGPT", Counting)
    model = to_tensors(small())
    assert len(list(microgpt.stream(model, [0, 1], end=99, max_tokens=5))) == 5
    assert counts == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_window_read_in_two_parts_has_the_logits_of_one_read_at_once(device, cut):
    model = small()
    tokens = [3, 1, 4, 1, 5, 2]
    expected = model(tokens)
    reader = CachedGPT(to_tensors(model, device, torch.float64))
    assert close(reader(tokens[:cut]).tolist(), expected[cut - 1 : cut])
    assert close(reader(tokens[cut:]).tolist(), expected[-1:])


@pytest.mark.parametrize("tokens", [[7], [0, 99, 100], [0, -1], [0] * 7])
def test_ids_out_of_range_are_refused_as_by_the_definition(tokens):
    model = small()
    messages = set()
    for kind in (model, to_tensors(model), converted(model, TorchLayers())):
        with pytest.raises(ValueError, match="no token or position") as error:
            kind(tokens)
        messages.add(str(error.value))
    assert len(messages) == 1


def test_every_layer_has_a_rule_and_softmax_is_that_of_its_rows():
    for name in LAYERS:
        layer = getattr(microgpt, name)
        assert layer.dispatch(torch.Tensor) is not layer.dispatch(object), name
    rows = [[3.0, -1.0, 0.5], [800.0, -800.0, 799.0]]
    found = microgpt.softmax(torch.tensor(rows).double())
    assert close(found.tolist(), [microgpt.softmax(row) for row in rows])


ROWS = [[0.5, -1.25], [3.0, 2.0**-40], [0.0, 7.0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "x",
    [
        ROWS,
        [array("d", row) for row in ROWS],
        [array("f", row) for row in ROWS],
        ROWS[1],
        array("d", ROWS[1]),
    ],
)
def test_lists_and_arrays_become_tensors_alike_and_are_not_changed(device, x):
    engine = TorchLayers(device)
    kept = repr(x)
    tensor = engine.convert(x)
    assert tensor.tolist() == [list(r) if hasattr(r, "__len__") else r for r in x]
    assert (tensor.device.type, tensor.dtype) == (device, torch.float64)
    assert tensor.requires_grad and engine.gradient(tensor) == (tensor * 0).tolist()
    with torch.no_grad():
        tensor.fill_(9.0)
    assert repr(x) == kept


def test_a_model_to_write_with_is_of_float32_and_wants_no_gradient():
    params = to_tensors(small()).params.values()
    assert {(x.dtype, x.requires_grad) for x in params} == {(torch.float32, False)}


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_near_float32(device):
    rows = side_by_side(BATCH, 6, device)
    results = []
    for enabled in (False, True):
        tensors = converted(small(), TorchLayers(device, torch.float32))
        with torch.autocast(device, torch.bfloat16, enabled):
            loss = loss_of(tensors, *rows)
        loss.backward()
        slopes = [x.grad for x in tensors.params.values()]
        assert {loss.dtype, *[x.dtype for x in slopes]} == {torch.float32}
        results.append((float(loss), torch.cat([x.flatten() for x in slopes])))
    (loss, slopes), (rough, rough_slopes) = results
    assert rough == pytest.approx(loss, rel=0.02) and rough != loss
    assert (rough_slopes - slopes).norm() < 0.05 * slopes.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])  # they take no compiler
def test_compiled_as_one_graph_it_gives_the_same(device, backend):
    torch.compiler.reset()
    rows = side_by_side(BATCH, 6, device)
    results = []
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    for function in (loss_of, compiled):
        tensors = converted(small(n_layer=1), TorchLayers(device))
        loss = function(tensors, *rows)
        loss.backward()
        results.append([float(loss), *[x.grad for x in tensors.params.values()]])
    assert all(close(x, y) for x, y in zip(*results))


@pytest.mark.parametrize("device", DEVICES)
def test_check_engine_agrees(device):
    differences = check_engine(TorchLayers(device))
    assert list(differences) == CHECKS and max(differences.values()) <= 1e-10
