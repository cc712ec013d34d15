"""Chapter 15 and the safetensors library: each reads what the other writes."""

import json
import math

import pytest
from helpers import shaken

import microgpt
from microgpt import GPT, CharTokenizer, Config, TrainConfig, Trainer, load_model

safetensors = pytest.importorskip("safetensors")
np = pytest.importorskip("numpy")

from safetensors.numpy import load_file, save_file  # noqa: E402

SHAPES = [(5, 8, 2, 2, 8), (2, 1, 3, 3, 3), (7, 4, 1, 4, 4), (1, 1, 1, 1, 1)]
DTYPES = ["float64", "float32", "float16", "bfloat16"]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def random_model(shape=SHAPES[0]):
    return shaken(GPT(Config(*shape), seed=3))


def in_file(name, x):
    """A parameter as GPT-2's files have it."""
    x = np.array(x)
    return np.ascontiguousarray(x.T) if ".c_" in name else x


def equal(a, b):
    """The same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def write(directory, config, tensors, dtype="float64", metadata=None):
    """What another program saves -> {name: the numbers, rounded to the dtype}"""
    shape = {"model_type": "gpt2", "n_positions": config.block_size, **vars(config)}
    (directory / "config.json").write_text(json.dumps(shape))
    path = directory / "model.safetensors"
    if dtype == "bfloat16":
        torch = pytest.importorskip("torch")
        save = pytest.importorskip("safetensors.torch").save_file
        rounded = {name: torch.tensor(x).bfloat16() for name, x in tensors.items()}
        save(rounded, path, metadata)
        return {name: x.double().numpy() for name, x in rounded.items()}
    rounded = {name: x.astype(dtype) for name, x in tensors.items()}
    save_file(rounded, path, metadata)
    return {name: x.astype("float64") for name, x in rounded.items()}


@every_shape
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_saved_is_read_by_the_library(tmp_path, monkeypatch, shape, dtype):
    model = random_model(shape)
    model.params["wte.weight"][0][0] = -0.0
    model.params["ln_f.bias"][0] = 5e-324
    microgpt.save_model(model, tmp_path)
    if dtype == "float32":
        monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1)  # so it counts as large
        microgpt.save_model(load_model(tmp_path), tmp_path)
    path = tmp_path / "model.safetensors"
    found = load_file(path)
    assert found.keys() == model.params.keys()
    for name, x in found.items():
        assert equal(x, in_file(name, model.params[name]).astype(dtype))
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("steps", [0, 2])
def test_the_library_reads_the_files_of_a_training_and_their_metadata(tmp_path, steps):
    documents = ["ab", "ba", "aab"]
    tokenizer = CharTokenizer(documents)
    model = GPT(Config(tokenizer.vocab_size, block_size=3, n_head=2, n_embd=4))
    trainer = Trainer(model, tokenizer, documents, TrainConfig(steps=4, batch_size=1))
    for _ in range(steps):
        next(trainer)
    microgpt.save_training(trainer, tmp_path)
    moments = {}
    for name in model.params:
        moments[f"m.{name}"] = trainer.optimizer.m[name]
        moments[f"v.{name}"] = trainer.optimizer.v[name]
    for kind, expected in {"model": model.params, "trainer": moments}.items():
        with safetensors.safe_open(tmp_path / f"{kind}.safetensors", "np") as file:
            assert set(file.keys()) == expected.keys()
            for name, x in expected.items():
                assert equal(file.get_tensor(name), in_file(name, x))
            metadata = file.metadata()
        assert (metadata["format"], metadata["step"]) == ("pt", str(steps))
    assert json.loads(metadata["config"])["steps"] == 4


@every_shape
@every_dtype
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_what_the_library_writes_is_read(tmp_path, shape, dtype, old):
    """Old files have a longer name for each tensor, and masks."""
    model = random_model(shape)
    prefix = "transformer." if old else ""
    tensors = {prefix + name: in_file(name, x) for name, x in model.params.items()}
    masks = {}
    for i in range(model.config.n_layer * old):
        masks[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 4, 4)))
    metadata = {"format": "pt", "more": "ünï\n"} if old else None
    expected = write(tmp_path, model.config, {**masks, **tensors}, dtype, metadata)
    params = load_model(tmp_path).params
    assert {prefix + name for name in params} == tensors.keys()
    for name, x in params.items():
        assert equal(in_file(name, x), expected[prefix + name])


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_extreme_numbers_are_read(tmp_path, dtype):
    model = random_model()
    tensors = {name: in_file(name, x) for name, x in model.params.items()}
    x = np.finfo(dtype)
    small = [-0.0, x.smallest_subnormal, -x.tiny, x.eps]
    tensors["ln_f.bias"] = np.array([*small, x.max, x.min, 1 / 3, 1], "float64")
    expected = write(tmp_path, model.config, tensors, dtype)
    found = np.array(load_model(tmp_path).params["ln_f.bias"])
    assert equal(found, expected["ln_f.bias"])


@every_dtype
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, number, dtype):
    model = random_model()
    tensors = {name: in_file(name, x) for name, x in model.params.items()}
    tensors["h.1.mlp.c_fc.weight"][-1, 0] = number
    write(tmp_path, model.config, tensors, dtype)
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.weight"):
        load_model(tmp_path)
