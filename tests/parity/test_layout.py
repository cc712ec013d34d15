"""Chapter 15's files, loaded and saved again by the reference libraries: same bytes."""

import json

import pytest
from helpers import shaken

import microgpt
from microgpt import END, GPT, BPETokenizer, CharTokenizer, Config, save_model

pytest.importorskip("numpy")
pytest.importorskip("safetensors")
tokenizers = pytest.importorskip("tokenizers")

from safetensors.numpy import load, save  # noqa: E402

MODEL = "model.safetensors"
SHAPES = [(5, 8, 2, 2, 8), (2, 1, 12, 3, 3), (7, 4, 1, 1, 1), (1, 1, 3, 1, 2)]
TEXTS = [
    "low lower slow",
    '"\\/\n\t\r\b\f\0\x1f\x7f',
    "é 天 🙂 \u2028\ue000\u0301",
    END,
]
TOKENIZERS = {
    "characters": CharTokenizer(TEXTS[:-1]),
    "one character": CharTokenizer(["a"]),
    "no character": CharTokenizer([""]),
    "bytes": BPETokenizer.train(["a"], 257),
    "bytes and merges": BPETokenizer.train([*TEXTS, "naïve naïve 天天"], 275),
}


def metadata_apart(raw):
    """A file -> (its metadata, all its other bytes). Their order is by chance there."""
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].decode()
    start = '{"__metadata__":'
    assert header.startswith(start)
    metadata, stop = json.JSONDecoder().raw_decode(header, len(start))
    return metadata, raw[:8] + header[stop:].encode() + raw[8 + length :]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_model_saved_again_has_the_same_bytes(tmp_path, monkeypatch, shape, dtype):
    if dtype == "float32":
        monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1)  # so it counts as large
    save_model(shaken(GPT(Config(*shape), seed=1)), tmp_path)
    raw = (tmp_path / MODEL).read_bytes()
    assert save(load(raw), {"format": "pt"}) == raw
    assert int.from_bytes(raw[:8], "little") % 8 == 0


@pytest.mark.parametrize("steps", [0, 2])
def test_a_training_saved_again_has_the_same_bytes(tmp_path, steps):
    documents = ["ab", "ba", "aé"]
    tokenizer = CharTokenizer(documents)
    model = GPT(Config(tokenizer.vocab_size, 3, 1, 2, 4))
    options = microgpt.TrainConfig(steps=4, batch_size=1)
    trainer = microgpt.Trainer(model, tokenizer, documents, options)
    for _ in range(steps):
        next(trainer)
    microgpt.save_training(trainer, tmp_path)
    for name in (MODEL, "trainer.safetensors"):
        raw = (tmp_path / name).read_bytes()
        metadata, _ = metadata_apart(raw)
        again = save(load(raw), metadata)
        assert metadata_apart(again) == metadata_apart(raw)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_saved_again_has_the_same_bytes(tmp_path, name):
    tokenizer = TOKENIZERS[name]
    save_model(GPT(Config(tokenizer.vocab_size, 4, 1, 1, 2)), tmp_path, tokenizer)
    path = tmp_path / "tokenizer.json"
    raw = path.read_bytes()
    there = tokenizers.Tokenizer.from_file(str(path))
    assert there.to_str(pretty=True).encode() == raw
    there.save(str(path))
    assert path.read_bytes() == raw
