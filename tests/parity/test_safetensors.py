"""Chapter 15 and the safetensors library: each reads what the other writes."""

import json

import pytest

safetensors = pytest.importorskip("safetensors")
np = pytest.importorskip("numpy")

from safetensors.numpy import load_file, save_file  # noqa: E402

import microgpt  # noqa: E402
from microgpt import (  # noqa: E402
    GPT,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    load_model,
    parameter_shapes,
    save_model,
    save_training,
)

SHAPES = [(5, 8, 2, 2, 8), (2, 1, 3, 3, 3), (7, 4, 1, 4, 4), (1, 1, 1, 1, 1)]
DOCUMENTS = ["ab", "ba", "aab"]


def random_model(shape):
    """A model none of whose parameters is 0 or 1."""
    model = GPT(Config(*shape), seed=3)
    for k, x in enumerate(model.params.values()):
        if isinstance(x[0], float):
            x[:] = [value + (k + i + 1) / 64 for i, value in enumerate(x)]
    return model


def in_file(name, x):
    """A parameter as GPT-2's files have it."""
    x = np.array(x)
    return x.T if ".c_" in name and x.ndim == 2 else x


def equal(a, b):
    """The same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def write_config(directory, config):
    (directory / "config.json").write_text(
        json.dumps(
            {
                "model_type": "gpt2",
                "vocab_size": config.vocab_size,
                "n_positions": config.block_size,
                "n_layer": config.n_layer,
                "n_head": config.n_head,
                "n_embd": config.n_embd,
            }
        )
    )


def loads_as(directory, expected):
    """load_model gives the values of these arrays, as floats, in memory's layout."""
    params = load_model(directory).params
    assert params.keys() == expected.keys()
    for name, x in expected.items():
        assert equal(in_file(name, params[name]), x.astype(np.float64))
    return True


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_is_read_by_the_library(tmp_path, shape):
    model = random_model(shape)
    model.params["wte.weight"][0][0] = -0.0
    model.params["ln_f.bias"][0] = 5e-324
    save_model(model, tmp_path)
    there = load_file(tmp_path / "model.safetensors")
    assert there.keys() == parameter_shapes(model.config).keys()
    for name, x in there.items():
        assert equal(x, in_file(name, model.params[name]))


def test_what_a_large_model_saves_is_read_by_the_library(tmp_path, monkeypatch):
    model = random_model(SHAPES[0])
    save_model(model, tmp_path / "wide")
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 10)
    save_model(load_model(tmp_path / "wide"), tmp_path / "narrow")
    there = load_file(tmp_path / "narrow" / "model.safetensors")
    assert there.keys() == model.params.keys()
    for name, x in there.items():
        assert equal(x, in_file(name, model.params[name]).astype(np.float32))


@pytest.mark.parametrize("steps", [0, 2])
def test_the_library_accepts_every_file_of_a_training_and_its_metadata(tmp_path, steps):
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(Config(tokenizer.vocab_size, block_size=3, n_head=2, n_embd=4))
    trainer = Trainer(model, tokenizer, DOCUMENTS, TrainConfig(steps=4, batch_size=1))
    for _ in range(steps):
        next(trainer)
    save_training(trainer, tmp_path)
    names = set(parameter_shapes(model.config))
    for file, expected in (
        ("model", names),
        ("trainer", {m + n for m in ("m.", "v.") for n in names}),
    ):
        with safetensors.safe_open(tmp_path / f"{file}.safetensors", "np") as opened:
            assert set(opened.keys()) == expected
            metadata = opened.metadata()
            assert metadata["format"] == "pt" and metadata["step"] == str(steps)
            for name in expected:
                *moment, x = (name,) if file == "model" else name.split(".", 1)
                ours = getattr(trainer.optimizer, moment[0]) if moment else model.params
                assert equal(opened.get_tensor(name), in_file(x, ours[x]))
    assert json.loads(metadata["config"])["steps"] == 4


def test_the_library_accepts_a_file_without_more_metadata(tmp_path):
    save_model(random_model(SHAPES[0]), tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("metadata", [None, {"format": "pt", "more": "ünï\n"}])
def test_what_the_library_writes_is_read(tmp_path, shape, dtype, prefix, metadata):
    model = random_model(shape)
    tensors = {
        name: np.ascontiguousarray(in_file(name, x)).astype(dtype)
        for name, x in model.params.items()
    }
    masks = {
        f"{prefix}h.{i}.attn.bias": np.tril(np.ones((1, 1, 4, 4), bool))
        for i in range(model.config.n_layer)
    }
    write_config(tmp_path, model.config)
    save_file(
        {**masks, **{prefix + name: x for name, x in tensors.items()}},
        tmp_path / "model.safetensors",
        metadata,
    )
    assert loads_as(tmp_path, tensors)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_extreme_numbers_that_the_library_writes_are_read(tmp_path, dtype):
    model = random_model(SHAPES[0])
    info = np.finfo(dtype)
    extremes = [
        -0.0,
        info.smallest_subnormal,
        -info.tiny,
        info.max,
        info.min,
        info.eps,
        1 / 3,
        1,
    ]
    model.params["ln_f.bias"] = extremes
    tensors = {
        name: np.ascontiguousarray(in_file(name, x)).astype(dtype)
        for name, x in model.params.items()
    }
    write_config(tmp_path, model.config)
    save_file(tensors, tmp_path / "model.safetensors")
    assert loads_as(tmp_path, tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_what_the_library_writes_from_torch_is_read(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    torch_files = pytest.importorskip("safetensors.torch")
    model = random_model(SHAPES[0])
    tensors = {
        name: torch.tensor(in_file(name, x).tolist(), dtype=torch.float64).to(
            getattr(torch, dtype)
        )
        for name, x in model.params.items()
    }
    write_config(tmp_path, model.config)
    torch_files.save_file(tensors, tmp_path / "model.safetensors")
    assert loads_as(tmp_path, {name: x.double().numpy() for name, x in tensors.items()})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_numbers_that_are_none_are_refused(tmp_path, number, dtype):
    model = random_model(SHAPES[0])
    tensors = {
        name: np.ascontiguousarray(in_file(name, x)).astype(dtype)
        for name, x in model.params.items()
    }
    tensors["h.1.mlp.c_fc.weight"][-1, 0] = number
    write_config(tmp_path, model.config)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.weight"):
        load_model(tmp_path)
