"""examples/engines/torch_engine.py: what is PyTorch's own. See also test_engines.py."""

from array import array

import pytest
from helpers import close, flat, shaken
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import GPT, Config, TensorEngine

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch_engine import TensorGPT, TorchLayers, side_by_side, to_tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")  # float(loss)
without_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"
)
every_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=without_gpu)]
)
BATCH = [[3, 1, 4, 1, 5], [0, 2], [6, 5, 4, 3, 2, 1, 0]]


def model_of(n_layer=2):
    shape = Config(vocab_size=7, block_size=8, n_layer=n_layer, n_head=2, n_embd=8)
    return shaken(GPT(shape), by=0.3)


def converted(model, engine):
    """The model on tensors that want a gradient."""
    params = {name: engine.convert(x) for name, x in model.params.items()}
    return TensorGPT(model.config, params)


def loss_of(model, tokens, targets):
    return microgpt.cross_entropy(model(tokens), targets)


def gradients_of(model):
    return [x.grad for x in model.params.values()]


def test_side_by_side_fills_up_with_tokens_and_targets_that_do_not_count():
    tokens, targets = side_by_side([[1, 2, 3], [4, 5]], 3, "cpu")
    assert tokens.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert targets.tolist() == [[2, 3, -1], [5, -1, -1]]


WINDOWS = st.lists(st.integers(0, 6), min_size=2, max_size=7)


@every_device
@settings(max_examples=20)
@given(
    batch=st.lists(WINDOWS, min_size=1, max_size=4),
    spare=st.integers(0, 2),
    filling=st.integers(0, 6),
)
def test_windows_side_by_side_are_those_one_by_one(device, batch, spare, filling):
    model = model_of(n_layer=1)
    expected, slopes = TensorEngine().gradients(model, batch)
    length = max(map(len, batch)) - 1 + spare
    tokens, targets = side_by_side(batch, length, device)
    tokens[targets == -1] = filling  # it must not matter
    tensors = converted(model, TorchLayers(device))
    logits = tensors(tokens)
    assert logits.shape == (len(batch), length, 7)
    for window, rows in zip(batch, logits):
        assert flat(rows[: len(window) - 1]) == close(model(window[:-1]), 1e-10)
    loss = microgpt.cross_entropy(logits, targets)
    assert flat(loss) == close(expected, 1e-10)
    loss.backward()
    assert flat(gradients_of(tensors)) == close(slopes, 1e-10)


def test_softmax_is_that_of_its_rows():
    rows = [[3.0, -1.0, 0.5], [800.0, -800.0, 799.0]]
    found = microgpt.softmax(torch.tensor(rows, dtype=torch.float64))
    assert flat(found) == close([microgpt.softmax(row) for row in rows])


def test_every_layer_has_a_version_for_tensors():
    names = "embedding add linear layernorm gelu softmax attention packed_attention"
    for name in [*names.split(), "attention_with_past", "cross_entropy"]:
        layer = getattr(microgpt, name)
        assert layer.dispatch(torch.Tensor) is not layer.dispatch(object), name


ROW = [0.5, -1.25, 2.0**-40]
ROWS = {
    "list": ROW,
    "lists": [ROW, ROW],
    "array": array("f", ROW),
    "arrays": [array("d", ROW)] * 2,
    "tensor": torch.tensor(ROW, dtype=torch.float64),
}


@every_device
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS)
def test_rows_of_any_kind_become_tensors_and_are_not_changed(device, x):
    kept = repr(x)
    engine = TorchLayers(device)
    tensor = engine.convert(x)
    assert flat(tensor) == flat(x) and len(tensor) == len(x)
    assert tensor.dtype == torch.float64
    assert tensor.device.type == device and tensor.requires_grad
    assert engine.gradient(tensor) == (tensor * 0).tolist()
    with torch.no_grad():
        tensor.fill_(9.0)
    assert repr(x) == kept


def test_a_model_to_write_with_is_of_float32_and_wants_no_gradient():
    params = to_tensors(model_of()).params.values()
    assert {(x.dtype, x.requires_grad) for x in params} == {(torch.float32, False)}


@every_device
def test_bfloat16_is_near_float32(device):
    rows = side_by_side(BATCH, 6, device)
    results = []
    for enabled in (False, True):
        tensors = converted(model_of(), TorchLayers(device, torch.float32))
        with torch.autocast(device, torch.bfloat16, enabled):
            loss = loss_of(tensors, *rows)
        loss.backward()
        slopes = gradients_of(tensors)
        assert {x.dtype for x in [loss, *slopes]} == {torch.float32}
        results.append((float(loss), torch.cat([x.flatten() for x in slopes])))
    (loss, slopes), (rough, rough_slopes) = results
    assert rough == pytest.approx(loss, rel=0.02) and rough != loss
    assert (rough_slopes - slopes).norm() < 0.05 * slopes.norm()


@every_device
def test_compiled_as_one_graph_it_gives_the_same(device):
    torch.compiler.reset()
    rows = side_by_side(BATCH, 6, device)
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss_of, compiled):  # this backend takes no compiler
        tensors = converted(model_of(n_layer=1), TorchLayers(device))
        loss = function(tensors, *rows)
        loss.backward()
        results.append(flat([loss, *gradients_of(tensors)]))
    assert results[0] == close(results[1], 1e-10)
