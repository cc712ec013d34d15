"""Chapter 15: what is saved comes back, and what is read is checked first.

These tests have a reader and a writer of .safetensors files of their own.
"""

import json
import math
import os
import shutil
import struct
import sys
import tempfile
from array import array
from contextlib import suppress
from dataclasses import asdict
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import (
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    TensorEngine,
    TrainConfig,
    Trainer,
    generate,
    load_model,
    load_tokenizer,
    load_training,
    parameter_shapes,
    save_model,
    save_training,
)

try:
    import tracemalloc
except ImportError:  # PyPy has none
    tracemalloc = None

END = "<|endoftext|>"
DOCUMENTS = ["ab", "ba", "aab", "abba", "b"]
SHAPES = [
    (3, 8, 2, 2, 8),
    (260, 5, 1, 1, 4),
    (2, 1, 3, 3, 3),
    (7, 4, 1, 4, 4),
    (1, 1, 1, 1, 1),
]
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1}
NAN = math.nan
INFINITY = math.inf


# --- helpers: files -------------------------------------------------------------------


def parts(path):
    """A .safetensors file -> its header, its data."""
    raw = path.read_bytes()
    stop = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:stop]), raw[stop:]


def write_file(path, header, data):
    """A header, which may be bytes that are none, and data -> a .safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def unpack(dtype, raw):
    if dtype == "BF16":
        raw = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2))
    return list(
        struct.unpack(
            f"<{len(raw) // SIZES[dtype]}{'e' if dtype == 'F16' else 'd'}"
            if dtype in ("F64", "F16")
            else f"<{len(raw) // 4}f",
            raw,
        )
    )


def pack(dtype, numbers):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", x)[2:] for x in numbers)
    code = {"F64": "d", "F32": "f", "F16": "e", "BOOL": "?", "U8": "B"}[dtype]
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def rows(shape, numbers):
    """Numbers one after the other -> a row or rows."""
    width = shape[-1]
    split = [list(numbers[i : i + width]) for i in range(0, len(numbers), width)]
    return split if len(shape) == 2 else split[0]


def transposed(x):
    return [list(row) for row in zip(*x)]


def is_linear(name):
    return ".c_" in name and name.endswith("weight")


def as_in_file(params):
    """Parameters -> {name: (shape, numbers in a row)}, as GPT-2's files have them."""
    there = {}
    for name, x in params.items():
        x = transposed(x) if is_linear(name) else x
        flat = (
            list(x)
            if isinstance(x[0], float)
            else [number for row in x for number in row]
        )
        there[name] = [len(flat)] if flat == list(x) else [len(x), len(x[0])], flat
    return there


def write_tensors(path, tensors):
    """{name: (dtype, shape, bytes)} -> a .safetensors file, in this order."""
    header = {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    write_file(path, header, data)


def write_config(directory, config, **others):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(
        json.dumps(
            {
                "vocab_size": config.vocab_size,
                "n_positions": config.block_size,
                "n_layer": config.n_layer,
                "n_head": config.n_head,
                "n_embd": config.n_embd,
                **others,
            }
        )
    )


def at(x, place):
    """What is in a JSON value at this place, a row of keys."""
    for key in place:
        x = x[key]
    return x


def put(*place, **values):
    """An edit: give these values to the object at a place."""

    def edit(whole):
        at(whole, place).update(values)

    return edit


def drop(*place):
    """An edit: delete what is at a place."""

    def edit(whole):
        del at(whole, place[:-1])[place[-1]]

    return edit


def change_json(path, edit):
    contents = json.loads(path.read_bytes())
    edit(contents)
    path.write_text(json.dumps(contents))


def change_header(path, edit):
    header, data = parts(path)
    edit(header)
    write_file(path, header, data)


def change_metadata(path, **changes):
    """Set what is not None in a file's metadata, and delete what is."""
    header, data = parts(path)
    metadata = {**header["__metadata__"], **changes}
    header["__metadata__"] = {name: x for name, x in metadata.items() if x is not None}
    write_file(path, header, data)


def change_text(path, old, new):
    """Replace a piece of a JSON file, or of a header."""
    raw = path.read_bytes()
    is_tensors = path.suffix == ".safetensors"
    stop = 8 + struct.unpack("<Q", raw[:8])[0] if is_tensors else len(raw)
    text = raw[8:stop] if is_tensors else raw
    assert text.count(old.encode()) >= 1
    text = text.replace(old.encode(), new.encode(), 1)
    path.write_bytes(
        struct.pack("<Q", len(text)) + text + raw[stop:] if is_tensors else text
    )


# --- helpers: what is to be seen ------------------------------------------------------


def random_model(shape, seed=1):
    """A model none of whose parameters is as it would be unset, biases included."""
    model = GPT(Config(*shape), seed=seed)
    for k, x in enumerate(model.params.values()):
        if isinstance(x[0], float):
            x[:] = [value + (k + i + 1) / 64 for i, value in enumerate(x)]
    return model


def same_bits(a, b):
    """Equal, and -0.0 is not 0.0: the repr of a float says it all."""
    return repr(a) == repr(b)


def logits(model):
    size = model.config.vocab_size
    n = model.config.block_size
    return model([(3 * i + 1) % size for i in range(n)])


def sound(error, *names):
    """A message of one line that people can read, and that says where."""
    message = str(error)
    assert message.isprintable() and len(message) < 1000, ascii(message[:2000])
    assert any(os.path.basename(str(name)) in message for name in names), message


def refused(load, directory, *names, memory=4e6):
    """It is a ValueError that names one of these, and has not cost much memory."""
    traced = tracemalloc and memory < INFINITY
    if traced:
        tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            load(directory)
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
    finally:
        if traced:
            tracemalloc.stop()
    sound(caught.value, *names)
    assert peak < memory
    return str(caught.value)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Trainings after two steps, with either tokenizer, as saved: {kind: directory}."""
    directories = {}
    for kind, tokenizer in (
        ("characters", CharTokenizer(DOCUMENTS)),
        ("bytes", BPETokenizer.train(DOCUMENTS, 259)),
    ):
        directories[kind] = tmp_path_factory.mktemp("originals") / kind
        model = GPT(
            Config(tokenizer.vocab_size, block_size=3, n_head=2, n_embd=4), seed=2
        )
        trainer = Trainer(
            model, tokenizer, DOCUMENTS, TrainConfig(steps=4, batch_size=2)
        )
        next(trainer), next(trainer)
        save_training(trainer, directories[kind])
    return directories


@pytest.fixture
def char(originals, tmp_path):
    """A sound checkpoint of a training on characters, to be spoiled."""
    shutil.copytree(originals["characters"], tmp_path / "spoiled-c")
    return tmp_path / "spoiled-c"


@pytest.fixture
def bpe(originals, tmp_path):
    """A sound checkpoint of a training on bytes, to be spoiled."""
    shutil.copytree(originals["bytes"], tmp_path / "spoiled-b")
    return tmp_path / "spoiled-b"


def load_the_training(directory):
    return load_training(directory, DOCUMENTS)


def spoiled_model(directory, name="model.safetensors", **options):
    return refused(load_model, directory, name, **options)


def spoiled_trainer(directory, name="trainer.safetensors"):
    return refused(load_the_training, directory, name)


def spoiled_tokenizer(directory, name="tokenizer.json"):
    return refused(load_tokenizer, directory, name)


# --- save, then load ------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_comes_back_with_the_same_bits_and_says_the_same(tmp_path, shape):
    model = random_model(shape)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert same_bits(loaded.params, model.params)
    assert same_bits(logits(loaded), logits(model))


def test_directories_are_made_and_may_be_given_as_text(tmp_path):
    model = random_model(SHAPES[0])
    directory = os.path.join(str(tmp_path), "a", "b")
    save_model(model, directory)
    assert same_bits(load_model(directory).params, model.params)


@pytest.mark.parametrize(
    "number", [-0.0, 5e-324, -2.2e-308, 1e300, -1e300, 0.1, 2.0**-1074]
)
def test_extreme_numbers_come_back(tmp_path, number):
    model = random_model(SHAPES[0])
    for x in model.params.values():
        (x if isinstance(x[0], float) else x[0])[-1] = number
    save_model(model, tmp_path)
    assert same_bits(load_model(tmp_path).params, model.params)


@pytest.mark.parametrize("number", [sys.float_info.max, -sys.float_info.max])
def test_the_largest_numbers_come_back_though_their_sum_is_too_large(tmp_path, number):
    model = random_model(SHAPES[0])
    model.params["ln_f.bias"][:] = [number] * 8
    save_model(model, tmp_path)
    assert same_bits(load_model(tmp_path).params, model.params)


@settings(max_examples=30)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_whatever_numbers_come_back(numbers):
    model = random_model(SHAPES[2])
    for x in model.params.values():
        for row in [x] if isinstance(x[0], float) else x:
            row[:] = [numbers[i % len(numbers)] for i in range(len(row))]
            numbers = numbers[1:] + numbers[:1]
    with tempfile.TemporaryDirectory() as directory:
        save_model(model, directory)
        assert same_bits(load_model(directory).params, model.params)


@pytest.mark.parametrize(
    "documents",
    [
        DOCUMENTS,
        ["a"],
        [""],
        ['\n \0\x85\u2028"\\'],
        ["søren", "東京", "🙂"],
        ["<|endoftext|>"],
        ["\ud800"],
        ["Ġ"],
    ],
    ids=[
        "ab",
        "one character",
        "none",
        "blanks",
        "beyond ASCII",
        "end",
        "surrogate",
        "byte",
    ],
)
def test_a_tokenizer_of_characters_comes_back(tmp_path, documents):
    tokenizer = CharTokenizer(documents)
    save_model(
        random_model((tokenizer.vocab_size, *SHAPES[0][1:])), tmp_path, tokenizer
    )
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is CharTokenizer
    assert (loaded.vocab, loaded.end, loaded.vocab_size) == (
        tokenizer.vocab,
        tokenizer.end,
        tokenizer.vocab_size,
    )
    for text in [*documents, END, END.join(documents)]:
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == ids and loaded.decode(ids) == tokenizer.decode(
            ids
        )


@pytest.mark.parametrize("size", [257, 258, 300])
def test_a_tokenizer_of_bytes_comes_back(tmp_path, size):
    tokenizer = BPETokenizer.train(["low lower lowest", "a b c d", "東京 東京"], size)
    save_model(
        random_model((tokenizer.vocab_size, *SHAPES[0][1:])), tmp_path, tokenizer
    )
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is BPETokenizer
    assert (loaded.vocab, loaded.end, loaded.merges) == (
        tokenizer.vocab,
        tokenizer.end,
        tokenizer.merges,
    )
    for text in [
        "",
        "slow lower",
        f"a{END}b{END}",
        "東京\r\n🙂",
        "".join(map(chr, range(256))),
    ]:
        ids = tokenizer.encode(text)
        assert (
            loaded.encode(text) == ids
            and loaded.decode(ids) == tokenizer.decode(ids) == text
        )


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_training_goes_on_as_if_it_had_never_stopped(originals, tmp_path, kind):
    stopped = load_training(originals[kind], DOCUMENTS)
    tokenizer = stopped.tokenizer
    model = GPT(stopped.model.config, seed=2)
    whole = Trainer(model, tokenizer, DOCUMENTS, TrainConfig(steps=4, batch_size=2))
    losses = [step.loss for step in whole]
    assert stopped.config == whole.config and stopped.step == 2
    assert [step.loss for step in stopped] == losses[2:]
    assert same_bits(stopped.model.params, whole.model.params)
    save_training(whole, tmp_path)
    assert same_bits(
        load_training(tmp_path, DOCUMENTS).optimizer.v, stopped.optimizer.v
    )


def test_a_training_goes_on_exactly_however_many_numbers_its_averages_are(
    char, monkeypatch
):
    exact = [step.loss for step in load_training(char, DOCUMENTS)]
    count = microgpt.parameter_count(load_model(char).config)
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", count)
    assert [step.loss for step in load_training(char, DOCUMENTS)] == exact


def fresh_trainer(engine=None):
    tokenizer = CharTokenizer(DOCUMENTS)
    config = Config(tokenizer.vocab_size, block_size=3, n_head=2, n_embd=4)
    options = TrainConfig(steps=4, batch_size=2)
    return Trainer(GPT(config, seed=2), tokenizer, DOCUMENTS, options, engine)


class Noted(TensorEngine):
    """It notes what it is asked to write, and can be one that does not lead."""

    def __init__(self, leads=True):
        self.leads = leads
        self.written = []

    def write_tensors(self, tensors, dtype="F64", **metadata):
        self.written.append((set(tensors), metadata["step"]))
        return super().write_tensors(tensors, dtype, **metadata)


def test_a_training_is_written_by_its_engine(originals, tmp_path):
    trainer = fresh_trainer(Noted())
    for _ in range(2):
        next(trainer)
    save_training(trainer, tmp_path / "saved")
    names = set(parameter_shapes(trainer.model.config))
    moments = {f"{kind}.{name}" for kind in "mv" for name in names}
    assert sorted(trainer.engine.written, key=str) == sorted(
        [(names, "2"), (moments, "2")], key=str
    )
    for name in ("model.safetensors", "trainer.safetensors"):
        there = (tmp_path / "saved" / name).read_bytes()
        assert there == (originals["characters"] / name).read_bytes()


def test_an_engine_that_does_not_lead_saves_nothing(tmp_path):
    trainer = fresh_trainer(Noted(leads=False))
    save_training(trainer, tmp_path / "saved")
    assert trainer.engine.written == [] and not (tmp_path / "saved").exists()


@pytest.mark.parametrize("engine", ["tensor", "value", TensorEngine(), Noted()])
def test_a_training_goes_on_with_the_engine_that_is_given(char, engine):
    losses = [step.loss for step in load_training(char, DOCUMENTS)]
    trainer = load_training(char, DOCUMENTS, engine)
    if isinstance(engine, str):
        assert trainer.engine.name == trainer.config.engine == engine
    else:
        assert trainer.engine is engine
    assert [step.loss for step in trainer] == pytest.approx(losses, rel=1e-12)


def test_a_training_goes_on_with_what_is_changed_in_its_config(char):
    trainer = load_training(char, DOCUMENTS, steps=9, lr=0.5, weight_decay=0.25)
    config = TrainConfig(steps=9, batch_size=2, lr=0.5, weight_decay=0.25)
    assert trainer.config == config
    assert trainer.optimizer.weight_decay == 0.25 and trainer.optimizer.t == 2
    assert [step.step for step in trainer] == [3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="lr is -1"):
        load_training(char, DOCUMENTS, lr=-1)


# --- what is written ------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_file_is_a_sound_safetensors_file_in_the_layout_of_gpt2(tmp_path, shape):
    model = random_model(shape)
    save_model(model, tmp_path)
    header, data = parts(tmp_path / "model.safetensors")
    assert header.pop("__metadata__") == {"format": "pt"}
    stops = [0]
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        assert start == stops[-1] and stop - start == 8 * math.prod(entry["shape"])
        stops.append(stop)
    assert stops[-1] == len(data)
    V = model.config.vocab_size
    T = model.config.block_size
    C = model.config.n_embd
    block = {
        "ln_1.weight": [C],
        "ln_1.bias": [C],
        "ln_2.weight": [C],
        "ln_2.bias": [C],
        "attn.c_attn.weight": [C, 3 * C],
        "attn.c_attn.bias": [3 * C],
        "attn.c_proj.weight": [C, C],
        "attn.c_proj.bias": [C],
        "mlp.c_fc.weight": [C, 4 * C],
        "mlp.c_fc.bias": [4 * C],
        "mlp.c_proj.weight": [4 * C, C],
        "mlp.c_proj.bias": [C],
    }
    assert {name: entry["shape"] for name, entry in header.items()} == {
        "wte.weight": [V, C],
        "wpe.weight": [T, C],
        "ln_f.weight": [C],
        "ln_f.bias": [C],
        **{
            f"h.{i}.{name}": size
            for i in range(model.config.n_layer)
            for name, size in block.items()
        },
    }
    for name, entry in header.items():
        assert entry["dtype"] == "F64"
        there = rows(entry["shape"], unpack("F64", data[slice(*entry["data_offsets"])]))
        assert same_bits(
            transposed(there) if is_linear(name) else there, model.params[name]
        )


@pytest.mark.parametrize("end", [2, 0])
def test_the_config_is_that_of_gpt2(tmp_path, end):
    tokenizer = BPETokenizer.train([], 257) if end == 0 else CharTokenizer(["ab"])
    if end == 0:  # not always the last
        tokenizer = BPETokenizer(
            {token: (i + 1) % 257 for token, i in tokenizer.vocab.items()}, []
        )
    save_model(random_model((tokenizer.vocab_size, 7, 2, 3, 6)), tmp_path, tokenizer)
    config = json.loads((tmp_path / "config.json").read_bytes())
    expected = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": tokenizer.vocab_size,
        "n_positions": 7,
        "n_layer": 2,
        "n_head": 3,
        "n_embd": 6,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    assert {name: config.get(name) for name in expected} == expected
    assert load_tokenizer(tmp_path).end == end


def test_a_saved_training_says_where_it_is_and_how_it_goes_on(char):
    header, _ = parts(char / "model.safetensors")
    assert header["__metadata__"] == {"format": "pt", "step": "2"}
    header, _ = parts(char / "trainer.safetensors")
    metadata = header["__metadata__"]
    assert json.loads(metadata.pop("config")) == asdict(TrainConfig(4, 2))
    assert metadata.pop("documents").isdigit()
    version = microgpt.__version__
    assert metadata == {"format": "pt", "step": "2", "version": version}
    assert microgpt.read_model(char)[1] == {"format": "pt", "step": "2"}


def test_more_files_and_metadata_are_saved_with_a_model(tmp_path):
    more = {"notes.txt": [b"a ", b"note"]}
    save_model(random_model(SHAPES[0]), tmp_path, also=more, author="me", year="2025")
    assert (tmp_path / "notes.txt").read_bytes() == b"a note"
    _, metadata = microgpt.read_model(tmp_path)
    assert metadata == {"format": "pt", "author": "me", "year": "2025"}


def test_a_model_is_saved_without_a_tokenizer(tmp_path):
    save_model(random_model(SHAPES[0]), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert (
        config["eos_token_id"] == config["bos_token_id"] == 2
    )  # `stream` ends at the last
    with pytest.raises(OSError) as caught:
        load_tokenizer(tmp_path)
    sound(caught.value, tmp_path)


def test_nothing_but_the_checkpoint_is_left_behind(originals):
    for directory in originals.values():
        assert sorted(os.listdir(directory)) == [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "trainer.safetensors",
        ]


@pytest.mark.parametrize("old", SHAPES)
@pytest.mark.parametrize("new", SHAPES[:2])
def test_an_older_checkpoint_is_replaced_whatever_its_shape(tmp_path, old, new):
    (tmp_path / "notes.txt").write_text("kept")
    save_model(random_model(old, seed=5), tmp_path)
    model = random_model(new, seed=6)
    save_model(model, tmp_path)
    assert load_model(tmp_path).config == model.config
    assert same_bits(load_model(tmp_path).params, model.params)
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_an_older_tokenizer_is_replaced(tmp_path):
    for tokenizer in (
        BPETokenizer.train(DOCUMENTS, 258),
        CharTokenizer(DOCUMENTS),
        CharTokenizer(["xyz"]),
        BPETokenizer.train(DOCUMENTS, 257),
    ):
        save_model(
            random_model((tokenizer.vocab_size, 3, 1, 1, 2)), tmp_path, tokenizer
        )
        loaded = load_tokenizer(tmp_path)
        assert type(loaded) is type(tokenizer) and loaded.vocab == tokenizer.vocab


def test_an_older_tokenizer_does_not_pass_for_that_of_another_model(char):
    save_model(random_model(SHAPES[1]), char)
    spoiled_tokenizer(char, char)


def test_an_older_training_does_not_pass_for_that_of_another_model(char):
    model = load_model(char)
    tokenizer = load_tokenizer(char)
    save_model(model, char, tokenizer)
    spoiled_trainer(char)


@pytest.mark.parametrize("number", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("name", ["wte.weight", "h.0.mlp.c_fc.weight", "ln_f.bias"])
def test_a_model_with_numbers_that_are_none_is_not_saved_and_the_older_one_kept(
    char, number, name
):
    before = {path.name: path.read_bytes() for path in char.iterdir()}
    model = random_model(SHAPES[0])
    x = model.params[name]
    (x if isinstance(x[0], float) else x[-1])[-1] = number
    with pytest.raises(ValueError, match=name):
        save_model(model, char)
    assert {path.name: path.read_bytes() for path in char.iterdir()} == before


# --- what others have written ---------------------------------------------------------

PATTERNS = {  # bits: value
    "F64": {
        0x3FF0000000000000: 1.0,
        0xC000000000000000: -2.0,
        0x8000000000000000: -0.0,
        0x0000000000000001: 5e-324,
        0x3FD5555555555555: 1 / 3,
    },
    "F32": {
        0x3F800000: 1.0,
        0xC0000000: -2.0,
        0x80000000: -0.0,
        0x00000001: 2.0**-149,
        0x7F7FFFFF: (2 - 2.0**-23) * 2.0**127,
        0x3EAAAAAB: 11184811 * 2.0**-25,
    },
    "F16": {
        0x3C00: 1.0,
        0xC000: -2.0,
        0x8000: -0.0,
        0x0001: 2.0**-24,
        0x03FF: 1023 * 2.0**-24,
        0x7BFF: 65504.0,
        0x3555: 1365 * 2.0**-12,
    },
    "BF16": {
        0x3F80: 1.0,
        0xC000: -2.0,
        0x8000: -0.0,
        0x0001: 2.0**-133,
        0x7F7F: 255 * 2.0**120,
        0x3EAB: 171 * 2.0**-9,
    },
}


@pytest.mark.parametrize("dtype", PATTERNS)
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("mask", [None, "BOOL", "U8", "F32"])
def test_files_of_others_are_read_to_the_bit(tmp_path, dtype, prefix, order, mask):
    config = Config(3, 5, 2, 2, 4)
    bits, values = zip(*PATTERNS[dtype].items())
    tensors = {}
    expected = {}
    for k, (name, shape) in enumerate(parameter_shapes(config).items()):
        in_file = shape[::-1] if is_linear(name) else shape
        chosen = [(i * i + k) % len(bits) for i in range(math.prod(shape))]
        raw = b"".join(bits[i].to_bytes(SIZES[dtype], "little") for i in chosen)
        tensors[prefix + name] = dtype, in_file, raw
        there = rows(in_file, [values[i] for i in chosen])
        expected[name] = transposed(there) if is_linear(name) else there
    for i in range(2 if mask else 0):
        ones = [int(a >= b) for a in range(5) for b in range(5)]
        tensors[f"{prefix}h.{i}.attn.bias"] = mask, (1, 1, 5, 5), pack(mask, ones)
        tensors[f"{prefix}h.{i}.attn.masked_bias"] = "F32", (), pack("F32", [-1e4])
    write_config(tmp_path, config, model_type="gpt2", n_ctx=5)
    write_tensors(
        tmp_path / "model.safetensors", dict(sorted(tensors.items())[::order])
    )
    loaded = load_model(tmp_path)
    assert loaded.config == config
    assert same_bits(loaded.params, expected)


def test_the_order_of_the_header_need_not_be_that_of_the_data(char):
    before = load_model(char).params
    header, data = parts(char / "model.safetensors")
    write_file(
        char / "model.safetensors", dict(sorted(header.items(), reverse=True)), data
    )
    assert same_bits(load_model(char).params, before)


def test_a_header_may_be_padded_with_blanks_and_have_no_metadata(char):
    before = load_model(char).params
    header, data = parts(char / "model.safetensors")
    del header["__metadata__"]
    write_file(char / "model.safetensors", json.dumps(header).encode() + b"     ", data)
    assert same_bits(load_model(char).params, before)


def test_tensors_may_differ_in_dtype(char):
    config = load_model(char).config
    expected = {}
    tensors = {}
    for k, (name, shape) in enumerate(parameter_shapes(config).items()):
        in_file = shape[::-1] if is_linear(name) else shape
        numbers = [(i - k) / 8 for i in range(math.prod(shape))]
        numbers = [x % 8 for x in numbers]  # 6 bits: exact in every dtype
        tensors[name] = (
            list(PATTERNS)[k % 4],
            in_file,
            pack(list(PATTERNS)[k % 4], numbers),
        )
        there = rows(in_file, numbers)
        expected[name] = transposed(there) if is_linear(name) else there
    write_tensors(char / "model.safetensors", tensors)
    assert same_bits(load_model(char).params, expected)


@pytest.mark.parametrize("inner", [None, 16])
def test_an_inner_width_that_is_the_usual_one_may_be_given(char, inner):
    change_json(char / "config.json", put(n_inner=inner))
    assert load_model(char).config.n_embd == 4


def as_gpt2(directory, vocab, lines):
    """Put GPT-2's two older files in the place of tokenizer.json."""
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_bytes("\n".join(lines).encode())


@pytest.mark.parametrize("first", [["#version: 0.2"], []])
@pytest.mark.parametrize("last", [[""], []])
def test_a_tokenizer_is_read_from_the_two_older_files_of_gpt2(bpe, first, last):
    tokenizer = load_tokenizer(bpe)
    as_gpt2(bpe, tokenizer.vocab, [*first, *map(" ".join, tokenizer.merges), *last])
    loaded = load_tokenizer(bpe)
    text = f"abba {END} aab"
    assert type(loaded) is BPETokenizer
    assert (loaded.vocab, loaded.merges) == (tokenizer.vocab, tokenizer.merges)
    assert loaded.encode(text) == tokenizer.encode(text)


def test_merges_may_be_pairs(bpe):
    before = load_tokenizer(bpe)
    change_json(
        bpe / "tokenizer.json",
        lambda whole: whole["model"].update(
            merges=[pair.split(" ") for pair in whole["model"]["merges"]]
        ),
    )
    assert load_tokenizer(bpe).merges == before.merges


# --- large models ---------------------------------------------------------------------


def compact(directory, monkeypatch):
    """Load a model as if it were large."""
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 10)
    return load_model(directory)


def in_f32(x):
    return (
        [in_f32(y) for y in x]
        if isinstance(x, (list, array))
        else struct.unpack("<f", struct.pack("<f", x))[0]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_model_has_rows_of_4_byte_floats(tmp_path, monkeypatch, shape):
    model = random_model(shape)
    save_model(model, tmp_path)
    loaded = compact(tmp_path, monkeypatch)
    for name, x in loaded.params.items():
        for row in x if isinstance(x, list) else [x]:
            assert isinstance(row, array) and row.typecode == "f"
        assert same_bits(in_f32(x), in_f32(model.params[name]))
    rounded = GPT(model.config, {name: in_f32(x) for name, x in model.params.items()})
    assert logits(loaded) == logits(rounded)


def test_a_large_model_writes_what_its_numbers_say(char, monkeypatch):
    model = load_model(char)
    tokenizer = load_tokenizer(char)
    rounded = GPT(model.config, {name: in_f32(x) for name, x in model.params.items()})
    loaded = compact(char, monkeypatch)
    for seed in range(5):
        assert generate(loaded, tokenizer, "a", max_tokens=9, seed=seed) == generate(
            rounded, tokenizer, "a", max_tokens=9, seed=seed
        )


def test_a_large_model_is_saved_in_4_byte_floats_and_comes_back(tmp_path, monkeypatch):
    model = random_model(SHAPES[0])
    save_model(model, tmp_path / "wide")
    loaded = compact(tmp_path / "wide", monkeypatch)
    save_model(loaded, tmp_path / "narrow")
    header, data = parts(tmp_path / "narrow" / "model.safetensors")
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {name: entry["shape"] for name, entry in header.items()} == {
        name: shape for name, (shape, _) in as_in_file(model.params).items()
    }
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        numbers = unpack("F32", data[slice(*entry["data_offsets"])])
        assert same_bits(numbers, in_f32(as_in_file(model.params)[name][1]))
    assert same_bits(load_model(tmp_path / "narrow").params, loaded.params)
    monkeypatch.undo()
    again = load_model(tmp_path / "narrow")
    assert same_bits(
        again.params, {name: in_f32(x) for name, x in model.params.items()}
    )


def test_numbers_too_large_for_4_byte_floats_are_refused(tmp_path, monkeypatch):
    model = random_model(SHAPES[0])
    model.params["ln_f.bias"][3] = 1e39
    save_model(model, tmp_path)
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 10)
    assert "ln_f.bias" in spoiled_model(tmp_path)


# --- hostile: files and JSON ----------------------------------------------------------


def cuts(raw):
    """Lengths short of the whole: in the size, in the header, in the data."""
    data = 8 + struct.unpack("<Q", raw[:8])[0]
    return [
        0,
        1,
        7,
        8,
        9,
        data // 2,
        data - 1,
        data,
        data + 1,
        (data + len(raw)) // 2,
        len(raw) - 8,
        len(raw) - 1,
    ]


@pytest.mark.parametrize("i", range(12))
def test_a_file_that_is_cut_off_is_refused(char, i):
    for name, spoiled in (
        ("trainer.safetensors", spoiled_trainer),
        ("model.safetensors", spoiled_model),
    ):
        raw = (char / name).read_bytes()
        (char / name).write_bytes(raw[: cuts(raw)[i]])
        spoiled(char)


@pytest.mark.parametrize(
    "name, load",
    [
        ("config.json", load_model),
        ("tokenizer.json", load_tokenizer),
        ("config.json", load_tokenizer),
    ],
)
def test_a_json_file_that_is_cut_off_is_refused(char, name, load):
    raw = (char / name).read_bytes()
    for n in (0, 1, 2, len(raw) // 2, len(raw) - 1):
        (char / name).write_bytes(raw[:n])
        refused(load, char, name)


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 8, b"more"])
def test_bytes_too_many_are_refused(char, extra):
    with open(char / "model.safetensors", "ab") as file:
        file.write(extra)
    spoiled_model(char)


@pytest.mark.parametrize("size", [0, 1, 10**8, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
def test_a_header_of_another_size_is_refused(char, size):
    raw = (char / "model.safetensors").read_bytes()
    for rest in (raw[8:], b"", raw[8:20]):
        (char / "model.safetensors").write_bytes(struct.pack("<Q", size) + rest)
        spoiled_model(char)


DEEP = 100_000
NOT_OBJECTS = {
    "pairs": b'[["a", 1], ["a", 2]]',
    "empty list": b"[]",
    "empty text": b'""',
    "blank": b"   \n\t ",
    "zeros": b"\0" * 9,
    "not JSON": b"tensors",
    "a list": b"[1, 2]",
    "a number": b"7",
    "text": b'"text"',
    "null": b"null",
    "not UTF-8": b'{"a": "\xff"}',
    "not closed": b'{"a": 1',
    "two": b"{} {}",
    "no name": b"{1: 2}",
    "NaN": b"NaN",
    "-Infinity": b"-Infinity",
    "control character": b'{"a": "\n"}',
    "empty": b"{}",
    "deep list": b"[" * DEEP + b"]" * DEEP,
    "deep and open": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP + b"0" + b"}" * DEEP,
    "deep within": b'{"a":' + b"[" * DEEP,
}


@pytest.mark.parametrize("text", NOT_OBJECTS.values(), ids=NOT_OBJECTS)
def test_what_is_not_a_json_object_is_refused(char, bpe, text):
    _, data = parts(char / "model.safetensors")
    write_file(char / "model.safetensors", text, data)
    spoiled_model(char)
    as_gpt2(bpe, {}, [])
    (bpe / "vocab.json").write_bytes(text)
    refused(load_tokenizer, bpe, "vocab.json", "merges.txt")
    (char / "tokenizer.json").write_bytes(text)
    spoiled_tokenizer(char)
    (char / "config.json").write_bytes(text)
    spoiled_model(char, "config.json")


def test_pairs_do_not_pass_for_an_object(char):
    config = json.loads((char / "config.json").read_bytes())
    (char / "config.json").write_text(json.dumps([["n_layer", 2], *config.items()]))
    spoiled_model(char, "config.json")


@pytest.mark.parametrize(
    "old, new",
    [
        ('"n_layer"', '"n_layer": 1, "n_layer"'),
        ('"n_layer"', '"x": 1, "x": 2, "n_layer"'),
        ('"n_layer"', '"x": {"y": 1, "y": 1}, "n_layer"'),
        ('"n_layer"', '"x": [[{"y": 1, "y": 1}]], "n_layer"'),
        ('"n_layer"', r'"n\u005flayer": 1, "n_layer"'),
    ],
)
def test_a_config_that_says_a_thing_twice_is_refused(char, old, new):
    change_text(char / "config.json", old, new)
    spoiled_model(char, "config.json")


@pytest.mark.parametrize(
    "old, new",
    [
        ('"__metadata__"', '"__metadata__": {}, "__metadata__"'),
        ('"format"', '"format": "pt", "format"'),
        ('"dtype"', '"dtype": "F64", "dtype"'),
        ('"shape"', '"shape": [4], "shape"'),
        ('"data_offsets"', '"data_offsets": 0, "data_offsets"'),
        (
            '"ln_f.bias"',
            '"ln_f.bias": {"dtype": "F64", "shape": [4], "data_offsets": [0, 32]}, '
            '"ln_f.bias"',
        ),
    ],
)
def test_a_header_that_says_a_thing_twice_is_refused(char, old, new):
    change_text(char / "model.safetensors", old, new)
    spoiled_model(char)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"version"', '"version": "1.0", "version"'),
        ('"a"', '"a": 0, "a"'),
        ('"vocab"', '"vocab": {}, "vocab"'),
        ('"content"', '"content": "b", "content"'),
    ],
)
def test_a_tokenizer_that_says_a_thing_twice_is_refused(char, old, new):
    change_text(char / "tokenizer.json", old, new)
    spoiled_tokenizer(char)


@pytest.mark.parametrize(
    "load",
    [load_model, load_tokenizer, load_the_training],
    ids=["model", "tokenizer", "training"],
)
def test_what_is_not_there_is_an_oserror_that_names_it(char, load):
    shutil.copytree(char, char.parent / "whole")
    for path in sorted(char.iterdir()):
        if path.name == "tokenizer_config.json" or (
            load is not load_tokenizer and path.name == "config.json"
        ):
            continue
        shutil.rmtree(char)
        shutil.copytree(char.parent / "whole", char)
        path.unlink()
        try:
            load(char)
        except OSError as error:
            sound(error, char)
        else:
            needed = {
                load_model: {"model.safetensors"},
                load_tokenizer: {"tokenizer.json"},
            }
            assert load in needed and path.name not in needed[load]
    shutil.rmtree(char)
    for _ in range(2):  # no directory, then a file in its place
        with pytest.raises(OSError) as caught:
            load(char)
        sound(caught.value, char)
        char.write_text("{}")


def test_directories_in_the_place_of_files_are_oserrors(char):
    for name, load in (
        ("tokenizer.json", load_tokenizer),
        ("model.safetensors", load_model),
        ("config.json", load_model),
    ):
        (char / name).unlink()
        (char / name).mkdir()
        with pytest.raises(OSError) as caught:
            load(char)
        sound(caught.value, name)


# --- hostile: config.json -------------------------------------------------------------

SIZED = ["vocab_size", "n_positions", "n_layer", "n_head", "n_embd"]
NO_SIZES = [
    0,
    -1,
    -(10**30),
    10**9,
    10**30,
    2**63,
    1.0,
    4.0,
    1e300,
    NAN,
    INFINITY,
    -INFINITY,
    True,
    False,
    None,
    "1",
    "4",
    "",
    [],
    [4],
    {},
    {"4": 4},
    "\n\ud800",
]


@pytest.mark.parametrize("size", NO_SIZES, ids=ascii)
@pytest.mark.parametrize("name", SIZED)
def test_a_size_that_is_none_is_refused(char, name, size):
    change_json(char / "config.json", put(**{name: size}))
    spoiled_model(char, "config.json")
    if name == "vocab_size":
        spoiled_tokenizer(char, "config.json")
    refused(load_the_training, char, "config.json")


@pytest.mark.parametrize("name", SIZED)
def test_a_size_that_is_missing_is_refused(char, name):
    change_json(char / "config.json", drop(name))
    assert name in spoiled_model(char, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"n_embd": 5},
        {"n_head": 3},
        {"activation_function": "gelu"},
        {"activation_function": None},
        {"activation_function": "relu"},
        {"activation_function": ["gelu_new"]},
        {"layer_norm_epsilon": 1e-6},
        {"layer_norm_epsilon": "1e-5"},
        {"layer_norm_epsilon": NAN},
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": "no\n"},
        {"n_inner": 15},
        {"n_inner": 4},
        {"n_inner": 0},
        {"n_inner": False},
        {"n_inner": ""},
        {"n_inner": "16"},
        {"n_inner": [16]},
        {"model_type": "llama"},
        {"model_type": None},
        {"model_type": {}},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=ascii,
)
def test_a_model_of_another_kind_is_refused_by_name(char, change):
    change_json(char / "config.json", put(**change))
    assert next(iter(change)) in spoiled_model(char, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 10**6, "n_embd": 10**6},
        {"n_layer": 999},
        {"n_layer": 2},
        {"n_positions": 10**6},
        {"n_positions": 2},
        {"vocab_size": 2},
        {"n_embd": 8},
        {"n_embd": 2},
        {"vocab_size": 10**6, "n_embd": 10**6, "n_layer": 999, "n_positions": 10**6},
    ],
    ids=str,
)
def test_a_config_that_the_tensors_do_not_fit_is_refused_before_it_costs_memory(
    char, change
):
    change_json(char / "config.json", put(**change))
    spoiled_model(char, memory=2e7 if change.get("n_layer") == 999 else 4e6)


# --- hostile: .safetensors ------------------------------------------------------------


def move(start, stop):
    """An edit of an entry: its data start and stop so many bytes later."""

    def edit(entry):
        old_start, old_stop = entry["data_offsets"]
        entry["data_offsets"] = [old_start + start, old_stop + stop]

    return edit


def no_data(entry):
    entry["data_offsets"] = [entry["data_offsets"][0]] * 2


def one_more_offset(entry):
    entry["data_offsets"].append(0)


def reverse_offsets(entry):
    entry["data_offsets"].reverse()


def reshape(function):
    """An edit of an entry: its shape becomes what a function makes of it."""

    def edit(entry):
        entry["shape"] = function(entry["shape"])

    return edit


def in_a_list(x):
    return [x]


def each(function):
    """Apply a function to each size of a shape."""

    def change_shape(shape):
        return list(map(function, shape))

    return change_shape


def reversed_and_longer(shape):
    return [*shape[::-1], 1]


def longer(shape):
    return [2, *shape]


def of_more_rows(shape):
    return [shape[0] + 1, *shape[1:]]


def as_dict(shape):
    return {n: n for n in shape}


def huge(shape):
    return [10**18] * len(shape)


def huge_all_over(entry):
    entry.update(shape=[10**9] * len(entry["shape"]), data_offsets=[0, 8 * 10**18])


ENTRIES = {
    "no dtype": drop("dtype"),
    "no shape": drop("shape"),
    "no offsets": drop("data_offsets"),
    "one offset": drop("data_offsets", 1),
    "three offsets": one_more_offset,
    "reversed": reverse_offsets,
    "longer": move(0, 8),
    "shorter": move(0, -8),
    "later": move(8, 8),
    "earlier": move(-8, -8),
    "empty": no_data,
    "far": move(10**18, 10**18),
    "everything": put(data_offsets=[0, 10**18]),
    "shape empty": put(shape=[]),
    "shape reversed and longer": reshape(reversed_and_longer),
    "shape flat": reshape(longer),
    "shape another": reshape(of_more_rows),
    "shape of floats": reshape(each(float)),
    "shape of texts": reshape(each(str)),
    "shape of lists": reshape(each(in_a_list)),
    "shape a dict": reshape(as_dict),
    "shape huge": reshape(huge),
    "huge all over": huge_all_over,
}


@pytest.mark.parametrize("edit", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("name", ["wte.weight", "h.0.attn.c_attn.weight", "ln_f.bias"])
def test_a_tensor_that_is_not_what_it_says_is_refused(char, name, edit):
    change_header(char / "model.safetensors", lambda header: edit(header[name]))
    spoiled_model(char)


@pytest.mark.parametrize("value", [*NO_SIZES, 0.0, -0.0, 32.0], ids=ascii)
@pytest.mark.parametrize(
    "edit",
    [
        lambda entry, x: entry.update(shape=x),
        lambda entry, x: entry.update(shape=[x]),
        lambda entry, x: entry.update(data_offsets=x),
        lambda entry, x: entry.update(data_offsets=[x, entry["data_offsets"][1]]),
        lambda entry, x: entry.update(data_offsets=[entry["data_offsets"][0], x]),
        lambda entry, x: entry.update(data_offsets=[x, x]),
    ],
    ids=["shape", "in the shape", "offsets", "start", "stop", "both"],
)
def test_a_place_or_shape_that_is_none_is_refused(char, edit, value):
    header, data = parts(char / "model.safetensors")
    for name in (
        min(
            header.keys() - {"__metadata__"},
            key=lambda name: header[name]["data_offsets"],
        ),
        "ln_f.bias",
    ):
        spoiled = json.loads(json.dumps(header))
        edit(spoiled[name], value)
        if not same_bits(spoiled, header):  # [4] is the shape of one of them
            write_file(char / "model.safetensors", spoiled, data)
            spoiled_model(char)


def test_a_shape_of_truth_is_refused(tmp_path):
    save_model(random_model((1, 1, 1, 1, 1)), tmp_path)
    change_header(
        tmp_path / "model.safetensors",
        put("ln_f.bias", shape=[True]),
    )
    spoiled_model(tmp_path)


def test_a_shape_of_a_million_sizes_is_refused_in_few_words(char):
    for sizes in [1] * 10**6, [4] + [1] * 10**6, [0] * 10**6:
        change_header(
            char / "model.safetensors",
            lambda header, sizes=sizes: header["ln_f.bias"].update(shape=sizes),
        )
        spoiled_model(char, memory=INFINITY)  # that of the header itself


@pytest.mark.parametrize(
    "dtype",
    [
        "F8_E4M3",
        "I64",
        "I8",
        "BOOL",
        "C64",
        "f64",
        "F",
        "F6",
        "",
        "64",
        "B64",
        "F64\n",
        None,
        64,
        8.0,
        True,
        [],
        ["F64"],
        {},
        {"F64": 8},
        "F32",
    ],
    ids=ascii,
)
def test_a_dtype_that_is_not_of_floats_or_does_not_fit_is_refused(char, dtype):
    change_header(
        char / "model.safetensors",
        put("ln_f.bias", dtype=dtype),
    )
    spoiled_model(char)


@pytest.mark.parametrize(
    "entry", [None, [], {}, 7, "F64", True, [0, 8], {"x": {}}], ids=str
)
def test_an_entry_that_is_not_one_is_refused(char, entry):
    change_header(char / "model.safetensors", put(**{"ln_f.bias": entry}))
    spoiled_model(char)


def test_a_tensor_that_is_missing_is_refused_by_name(char):
    header, data = parts(char / "model.safetensors")
    tensors = {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    for name in tensors:
        write_tensors(
            char / "model.safetensors",
            {other: tensor for other, tensor in tensors.items() if other != name},
        )
        assert repr(name) in spoiled_model(char)


@pytest.mark.parametrize(
    "extra",
    [
        "lm_head.weight2",
        "h.1.ln_1.bias",
        "transformer",
        "",
        "transformer.",
        "h.0.attn.c_attn",
        "transformer.transformer.ln_f.bias",
        "h.0.attn.bias2",
        "\n",
        "\ud800",
        "wte.weight ",
        "h.0.attn.bias\n",
    ],
    ids=ascii,
)
def test_a_tensor_that_is_unknown_is_refused(char, extra):
    change_header(
        char / "model.safetensors",
        put(**{extra: {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}}),
    )
    spoiled_model(char)


def test_a_tensor_under_two_names_is_refused(char):
    header, data = parts(char / "model.safetensors")
    raw = pack("F64", [1.0, 2.0, 3.0, 4.0])
    for entry in (
        {"shape": [4], "data_offsets": [len(data), len(data) + 32]},
        {"shape": [0], "data_offsets": [0, 0]},
    ):
        write_file(
            char / "model.safetensors",
            {**header, "transformer.ln_f.bias": {"dtype": "F64", **entry}},
            data + raw * (entry["shape"] == [4]),
        )
        assert "ln_f.bias" in spoiled_model(char)


def swap(header, a, b):
    header[a]["data_offsets"], header[b]["data_offsets"] = (
        header[b]["data_offsets"],
        header[a]["data_offsets"],
    )


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["ln_f.bias"].update(
            data_offsets=header["ln_f.weight"]["data_offsets"]
        ),
        lambda header: header["ln_f.weight"].update(
            data_offsets=header["ln_f.bias"]["data_offsets"]
        ),
        lambda header: swap(header, "ln_f.bias", "wte.weight"),
        lambda header: swap(header, "h.0.attn.c_attn.bias", "h.0.mlp.c_fc.bias"),
    ],
    ids=["twice the one", "twice the other", "places swapped", "biases swapped"],
)
def test_tensors_that_overlap_or_lie_in_each_others_places_are_refused(char, edit):
    change_header(char / "model.safetensors", edit)
    spoiled_model(char)


def test_a_gap_is_refused(char):
    header, data = parts(char / "model.safetensors")
    middle = header["ln_f.weight"]["data_offsets"][0]
    for entry in header.values():
        if entry.get("data_offsets", [0])[0] >= middle:
            entry["data_offsets"] = [place + 8 for place in entry["data_offsets"]]
    write_file(
        char / "model.safetensors", header, data[:middle] + b"\0" * 8 + data[middle:]
    )
    spoiled_model(char)


@pytest.mark.parametrize("name", ["h.0.attn.bias", "transformer.h.0.attn.masked_bias"])
def test_a_mask_that_runs_backwards_does_not_hide_that_the_data_are_cut_off(char, name):
    header, data = parts(char / "model.safetensors")
    for cut in (8, 32, 40, len(data)):
        mask = {
            "dtype": "F32",
            "shape": [2],
            "data_offsets": [len(data), len(data) - cut],
        }
        write_file(
            char / "model.safetensors", {**header, name: mask}, data[: len(data) - cut]
        )
        spoiled_model(char)


@pytest.mark.parametrize(
    "dtype, bits",
    [
        ("F64", 0x7FF0000000000000),
        ("F64", 0xFFF0000000000000),
        ("F64", 0x7FF8000000000000),
        ("F64", 0x7FF0000000000001),
        ("F32", 0x7F800000),
        ("F32", 0xFF800000),
        ("F32", 0x7FC00000),
        ("F16", 0x7C00),
        ("F16", 0xFC00),
        ("F16", 0x7E00),
        ("BF16", 0x7F80),
        ("BF16", 0xFF80),
        ("BF16", 0x7FC0),
    ],
)
@pytest.mark.parametrize("most", [10**7, 10])
def test_numbers_that_are_none_are_refused_by_the_name_of_their_tensor(
    char, monkeypatch, dtype, bits, most
):
    there = as_in_file(load_model(char).params)
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", most)
    for name in ("wte.weight", "h.0.mlp.c_proj.weight", "ln_f.bias"):
        tensors = {n: (dtype, shape, pack(dtype, x)) for n, (shape, x) in there.items()}
        raw = tensors[name][2][: -SIZES[dtype]] + bits.to_bytes(SIZES[dtype], "little")
        tensors[name] = (*tensors[name][:2], raw)
        write_tensors(char / "model.safetensors", tensors)
        assert name in spoiled_model(char)


# --- hostile: tokenizers --------------------------------------------------------------


def vocab_of(whole):
    return whole["model"]["vocab"]


def without_end(whole):
    return vocab_of(whole).pop(END), whole.update(added_tokens=[])


def rename(old, new):
    """An edit: give a token of the vocabulary another text."""

    def edit(whole):
        vocab_of(whole)[new] = vocab_of(whole).pop(old)

    return edit


def rename_end(whole):
    rename(END, "<|end|>")(whole)
    whole["added_tokens"][0].update(content="<|end|>")


def add_token(content):
    """An edit: one more special token."""

    def edit(whole):
        token = {"content": content, "id": len(vocab_of(whole))}
        whole["added_tokens"].append(token)

    return edit


def change_id(function):
    """An edit: the id of a becomes what a function makes of it."""

    def edit(whole):
        vocab_of(whole)["a"] = function(vocab_of(whole)["a"])

    return edit


def replace_id(i, other):
    """An edit: an id becomes something that is equal to it, and no whole number."""

    def edit(whole):
        for token in [token for token, x in vocab_of(whole).items() if x == i]:
            vocab_of(whole)[token] = other

    return edit


def replace_vocab(function):
    """An edit: the vocabulary becomes what a function makes of it."""

    def edit(whole):
        whole["model"]["vocab"] = function(vocab_of(whole))

    return edit


def item_pairs(vocab):
    return list(vocab.items())


def id_of_b(whole):
    vocab_of(whole)["a"] = vocab_of(whole)["b"]


def id_after_all(whole):
    vocab_of(whole)["a"] = len(vocab_of(whole))


WHOLES = {
    "WordPiece": put("model", type="WordPiece"),
    "Unigram": put("model", type="Unigram"),
    "type a list": put("model", type=["BPE"]),
    "no model": drop("model"),
    "model a list": put(model=[]),
    "model null": put(model=None),
    "normalizer": put(normalizer={"type": "Lowercase"}),
    "normalizer a text": put(normalizer="NFC"),
    "Whitespace": put(pre_tokenizer={"type": "Whitespace"}),
    "Sequence": put(pre_tokenizer={"type": "Sequence", "pretokenizers": []}),
    "add_prefix_space": put(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}
    ),
    "no add_prefix_space": put(pre_tokenizer={"type": "ByteLevel"}),
    "dropout": put("model", dropout=0.1),
    "ignore_merges": put("model", ignore_merges=True),
    "prefix": put("model", continuing_subword_prefix="##"),
    "suffix": put("model", end_of_word_suffix="</w>"),
    "single_word": put("added_tokens", 0, single_word=True),
    "lstrip": put("added_tokens", 0, lstrip=True),
    "rstrip": put("added_tokens", 0, rstrip=True),
    "end twice": add_token(END),
    "no regex": put(
        pre_tokenizer={
            "type": "ByteLevel",
            "add_prefix_space": False,
            "use_regex": False,
        }
    ),
    "pre_tokenizer a text": put(pre_tokenizer="ByteLevel"),
    "pre_tokenizer true": put(pre_tokenizer=True),
    "vocab a list": replace_vocab(list),
    "vocab pairs": replace_vocab(item_pairs),
    "vocab null": put("model", vocab=None),
    "vocab empty": put("model", vocab={}),
    "no vocab": drop("model", "vocab"),
    "no merges": drop("model", "merges"),
    "merges a number": put("model", merges=7),
    "merges a text": put("model", merges="a b"),
    "no added tokens": drop("added_tokens"),
    "added tokens null": put(added_tokens=None),
    "added tokens a dict": put(added_tokens={END: 3}),
    "added tokens texts": put(added_tokens=[END]),
    "added token without id": drop("added_tokens", 0, "id"),
    "added token without content": drop("added_tokens", 0, "content"),
    "added token null": put("added_tokens", 0, content=None),
    "added token a list": put("added_tokens", 0, content=[END]),
    "added token elsewhere": put("added_tokens", 0, id=0),
    "added token far off": put("added_tokens", 0, id=10**9),
    "added token of no text": add_token(""),
    "one more added token": add_token("ba"),
    "no end": without_end,
    "end renamed": rename_end,
    "a gap": id_after_all,
    "twice": id_of_b,
    "negative": put("model", "vocab", a=-1),
    "a float": change_id(float),
    "a text": change_id(str),
    "a list": change_id(in_a_list),
    "null": put("model", "vocab", a=None),
    "NaN": put("model", "vocab", a=NAN),
    "false": replace_id(0, False),
    "true": replace_id(1, True),
    "huge": put("model", "vocab", a=10**30),
    "merge of unknown tokens": put("model", merges=["x zzz"]),
    "merge into an unknown token": put("model", merges=["z z"]),
    "merge of three": put("model", merges=["a b a"]),
    "merge of three listed": put("model", merges=[["a", "b", "a"]]),
    "merge of one": put("model", merges=["a"]),
    "merge of nothing": put("model", merges=[""]),
    "merge of none": put("model", merges=[[]]),
    "merge of numbers": put("model", merges=[[1, 2]]),
    "merge a number": put("model", merges=[5]),
    "merge null": put("model", merges=[None]),
    "merge of lists": put("model", merges=[[["a"], ["b"]]]),
    "merge a dict": put("model", merges=[{"a": 1}]),
    "merge of a line": put("model", merges=["a\n\ud800 b"]),
    "a long merge": put("model", merges=["a" * 10**5]),
}


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("edit", WHOLES.values(), ids=WHOLES)
def test_a_tokenizer_that_is_not_sound_is_refused(originals, tmp_path, kind, edit):
    shutil.copytree(originals[kind], tmp_path / "tokens")
    (tmp_path / "tokens" / "config.json").unlink()  # that could only hide a flaw
    assert load_tokenizer(tmp_path / "tokens")
    change_json(tmp_path / "tokens" / "tokenizer.json", edit)
    spoiled_tokenizer(tmp_path / "tokens")


def test_a_tokenizer_that_lacks_a_letter_of_the_training_is_named_with_its_directory(
    char,
):
    change_json(char / "tokenizer.json", rename("a", "0"))
    assert load_tokenizer(char)  # sound by itself
    with pytest.raises(ValueError, match="'a' is not one of") as caught:
        load_training(char, DOCUMENTS)
    sound(caught.value, char)


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_an_older_tokenizer_does_not_say_that_it_is_a_bpe(originals, tmp_path, kind):
    """The tokenizers library reads it, too, as what it is."""
    shutil.copytree(originals[kind], tmp_path / "tokens")
    change_json(tmp_path / "tokens" / "tokenizer.json", drop("model", "type"))
    assert (
        load_tokenizer(tmp_path / "tokens").vocab
        == load_tokenizer(originals[kind]).vocab
    )


@pytest.mark.parametrize(
    "edit",
    [
        rename("a", "aa"),
        rename("a", ""),
        put("model", "vocab", a=1, b=0),
        put("model", merges=["a b"]),
        put(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False}),
    ],
    ids=["two characters", "no character", "not sorted", "merges", "not all bytes"],
)
def test_characters_that_are_none_are_refused(char, edit):
    (char / "config.json").unlink()
    change_json(char / "tokenizer.json", edit)
    spoiled_tokenizer(char)


@pytest.mark.parametrize(
    "edit",
    [
        rename("z", "☃"),
        rename("z", "z☃"),
        rename("z", " "),
        rename("z", "zz"),
        rename("z", ""),
        rename("z", "\ud800"),
        rename("a", "aa"),
    ],
    ids=[
        "snowman",
        "snowman within",
        "space",
        "byte missing",
        "no text",
        "surrogate",
        "byte of merges missing",
    ],
)
def test_tokens_that_are_not_made_of_all_the_bytes_are_refused(bpe, edit):
    (bpe / "config.json").unlink()
    change_json(bpe / "tokenizer.json", edit)
    spoiled_tokenizer(bpe)


def test_an_end_that_is_not_among_the_added_tokens_is_refused_or_read_as_one_token(
    bpe, char
):
    for directory in bpe, char:
        before = load_tokenizer(directory)
        change_json(directory / "tokenizer.json", put(added_tokens=[]))
        try:
            loaded = load_tokenizer(directory)
        except ValueError as error:
            sound(error, "tokenizer.json")
        else:
            for text in "abba", f"ab{END}ab":
                assert loaded.encode(text) == before.encode(text)


@pytest.mark.parametrize("vocab", [["a", "b"], [], None, 7, "ab"], ids=str)
def test_an_older_vocabulary_that_is_none_is_refused(bpe, vocab):
    as_gpt2(bpe, vocab, [])
    spoiled_tokenizer(bpe, "vocab.json")


@pytest.mark.parametrize(
    "lines",
    [
        b"\xff\xfe",
        b"a b\n\xc3",
        b"a b c",
        b"ab",
        b"x zzz",
        b"a b\r\na",
        b"a\tb",
        b"a  b",
        b"\0",
    ],
    ids=str,
)
def test_older_merges_that_are_none_are_refused(bpe, lines):
    as_gpt2(bpe, load_tokenizer(bpe).vocab, [])
    (bpe / "merges.txt").write_bytes(lines)
    spoiled_tokenizer(bpe, "merges.txt")


def test_older_merges_that_are_missing_are_an_oserror(bpe):
    as_gpt2(bpe, load_tokenizer(bpe).vocab, [])
    (bpe / "merges.txt").unlink()
    with pytest.raises(OSError) as caught:
        load_tokenizer(bpe)
    sound(caught.value, "merges.txt")


def test_a_vocabulary_of_another_size_than_the_models_is_refused(char, bpe):
    shutil.copy(bpe / "tokenizer.json", char / "tokenizer.json")
    assert str(load_tokenizer(bpe).vocab_size) in spoiled_tokenizer(char, char)
    refused(load_the_training, char, char)


def test_a_tokenizer_that_lacks_a_documents_characters_is_refused(char):
    (char / "tokenizer.json").write_text(
        (char / "tokenizer.json").read_text().replace('"a"', '"A"')
    )
    refused(load_the_training, char, "'a' is not one of the characters")


# --- hostile: trainings ---------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"engine": []},
        {"engine": ["tensor"]},
        {"engine": "gpu"},
        {"engine": None},
        {"engine": {}},
        {"steps": "4"},
        {"steps": 4.0},
        {"steps": True},
        {"steps": 0},
        {"steps": None},
        {"steps": []},
        {"batch_size": "2"},
        {"batch_size": 0},
        {"batch_size": 10**30},
        {"workers": 0},
        {"workers": 3},
        {"workers": "1"},
        {"lr": "fast"},
        {"lr": NAN},
        {"lr": INFINITY},
        {"lr": -1},
        {"lr": [0.1]},
        {"seed": 1.5},
        {"seed": "7"},
        {"seed": None},
        {"seed": NAN},
        {"clip": {}},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
        {"eval_every": -1},
        {"speed": 7},
        {"": 0},
        {"self": 0},
        {"config": 0},
        {"a\nb": 0},
        {"\ud800": 0},
        {"\x1b[31m": 0},
        {"x" * 9999: 0},
    ],
    ids=lambda x: ascii(x)[:30],
)
def test_a_training_configured_to_what_cannot_be_is_refused(char, change):
    header, _ = parts(char / "trainer.safetensors")
    config = {**json.loads(header["__metadata__"]["config"]), **change}
    change_metadata(char / "trainer.safetensors", config=json.dumps(config))
    spoiled_trainer(char)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "x",
        "[]",
        "7",
        "null",
        "{",
        '"text"',
        "NaN",
        '[["steps", 4]]',
        "\n",
        "[" * DEEP,
        '{"steps": 4, "steps": 5}',
        7,
        True,
        [],
        {},
        {"steps": 4},
    ],
    ids=lambda x: ascii(x)[:30],
)
def test_a_training_without_a_configuration_is_refused(char, config):
    change_metadata(char / "trainer.safetensors", config=config)
    spoiled_trainer(char)


@pytest.mark.parametrize("name", ["step", "documents", "config"])
def test_a_training_that_lacks_what_it_needs_is_refused(char, name):
    change_metadata(char / "trainer.safetensors", **{name: None})
    if name == "step":
        change_metadata(char / "model.safetensors", step=None)
    refused(load_the_training, char, "trainer.safetensors", char)


@pytest.mark.parametrize("documents", ["", "x", 7, [], {}, "0" * 64])
def test_a_training_of_other_documents_is_refused(char, documents):
    change_metadata(char / "trainer.safetensors", documents=documents)
    refused(load_the_training, char, "trainer.safetensors", char)


@pytest.mark.parametrize(
    "documents",
    [DOCUMENTS[:-1], DOCUMENTS[::-1], [*DOCUMENTS, "a"], ["ab"], [], ["xyz", "a"]],
    ids=str,
)
def test_a_training_does_not_go_on_with_other_documents(char, documents):
    refused(
        partial(load_training, documents=documents),
        char,
        char,
        "is not one of the characters",
        "single document",
    )


@pytest.mark.parametrize(
    "step",
    [
        "x",
        "-1",
        "",
        "2.0",
        "\n",
        "0x2",
        "1e3",
        "--2",
        "NaN",
        "9" * 9999,
        [],
        [2],
        {},
        INFINITY,
        -INFINITY,
        NAN,
        1.5,
        -1,
        True,
    ],
    ids=lambda x: ascii(x)[:20],
)
def test_a_step_that_is_none_is_refused_though_both_files_say_so(char, step):
    for name in "model.safetensors", "trainer.safetensors":
        change_metadata(char / name, step=step)
    spoiled_trainer(char)


@pytest.mark.parametrize("step", ["1", "3", "02", "-2", None, 2, "two"])
@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors"])
def test_a_step_that_is_not_the_models_is_refused(char, name, step):
    change_metadata(char / name, step=step)
    spoiled_trainer(char)


@pytest.mark.parametrize(
    "metadata", [None, [], {}, 7, "step", True, [["step", "2"]]], ids=str
)
@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors"])
def test_metadata_that_are_none_are_refused(char, name, metadata):
    change_header(char / name, put(__metadata__=metadata))
    spoiled_trainer(char, "safetensors")


def test_no_metadata_at_all_are_refused(char):
    change_header(char / "trainer.safetensors", drop("__metadata__"))
    spoiled_trainer(char)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.update({"m.x": header["m.ln_f.bias"]}),
        put("m.ln_f.bias", shape=[5]),
        put("v.ln_f.bias", dtype="F16"),
        lambda header: header.update({"ln_f.bias": header.pop("m.ln_f.bias")}),
    ],
    ids=["twice", "shape", "dtype", "name"],
)
def test_averages_that_do_not_fit_the_model_are_refused(char, edit):
    change_header(char / "trainer.safetensors", edit)
    spoiled_trainer(char)


@pytest.mark.parametrize(
    "name, number",
    [("m.ln_f.bias", NAN), ("v.ln_f.bias", INFINITY), ("v.ln_f.bias", -1.0)],
)
def test_averages_that_cannot_be_are_refused(char, name, number):
    header, data = parts(char / "trainer.safetensors")
    start = header[name]["data_offsets"][0]
    write_file(
        char / "trainer.safetensors",
        header,
        data[:start] + struct.pack("<d", number) + data[start + 8 :],
    )
    assert name in refused(load_the_training, char, "trainer.safetensors", char)


# --- hostile: whatever comes ----------------------------------------------------------


def edit_bytes(raw, kind, place, extra):
    """Raw bytes, a little spoiled."""
    place %= len(raw) + 1
    n = 0 if kind == "insert" else len(extra)
    return {
        "cut": raw[:place],
        "flip": raw[:place]
        + bytes(a ^ b for a, b in zip(raw[place : place + n], extra))
        + raw[place + n :],
        "delete": raw[:place] + raw[place + n :],
    }.get(kind, raw[:place] + extra + raw[place + n :])


def nodes(x, path=()):
    """The paths to everything in a JSON value."""
    below = (
        x.items()
        if isinstance(x, dict)
        else enumerate(x)
        if isinstance(x, list)
        else ()
    )
    return [path, *(found for key, y in below for found in nodes(y, (*path, key)))]


def edit_value(x, kind, place, other, value, key):
    """A JSON value, a node of it replaced, copied from another, deleted or renamed."""
    there = nodes(x)
    path = there[place % len(there)]
    value = at(x, there[other % len(there)]) if kind == "copy" else value
    if not path:
        return value
    x = json.loads(json.dumps(x))
    parent = at(x, path[:-1])
    if kind == "delete":
        del parent[path[-1]]
    elif kind == "rename" and isinstance(parent, dict):
        parent[key] = parent.pop(path[-1])
    else:
        parent[path[-1]] = value
    return x


def edit_json(name, raw, *edit):
    """Spoil a file's JSON a little: in .safetensors, the header or the config in it."""
    if not name.endswith(".safetensors"):
        return json.dumps(edit_value(json.loads(raw), *edit)).encode()
    stop = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:stop])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if (
        isinstance(metadata, dict)
        and isinstance(metadata.get("config"), str)
        and edit[1] % 2
    ):
        metadata["config"] = json.dumps(
            edit_value(json.loads(metadata["config"]), *edit)
        )
    else:
        header = edit_value(header, *edit)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[stop:]


def survives(files):
    """All in a directory of these files is loaded, or refused with a sound message."""
    with tempfile.TemporaryDirectory() as directory:
        for name, raw in files.items():
            with open(os.path.join(directory, name), "wb") as file:
                file.write(raw)
        for load in (
            load_model,
            load_tokenizer,
            load_the_training,
        ):
            try:
                loaded = load(directory)
            except (ValueError, OSError) as error:
                assert type(error) is ValueError or isinstance(error, OSError)
                sound(error, directory)
            else:
                if isinstance(loaded, BPETokenizer):
                    for text in (f"abba {END}", "zß\n\0"):
                        assert loaded.decode(loaded.encode(text)) == text


FILES = ["config.json", "model.safetensors", "tokenizer.json", "trainer.safetensors"]
PLACES = st.integers(0, 10**5)
KEYS = st.one_of(
    st.text(max_size=3), st.sampled_from([END, "a", "aa", "n_inner", "step", "ln_f"])
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 40),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.sampled_from(
            [10**30, "F32", "BF16", "BPE", END, "transformer.ln_f.bias", "1", "tensor"]
        ),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=4,
)
BYTE_EDITS = st.tuples(
    st.sampled_from(["flip", "insert", "delete", "replace", "cut"]),
    PLACES,
    st.one_of(
        st.binary(min_size=1, max_size=4),
        st.sampled_from([b'"', b"{", b"1", b"-", b"e9", b"\\u"]),
    ),
)
JSON_EDITS = st.tuples(
    st.sampled_from(["replace", "copy", "delete", "rename"]),
    PLACES,
    PLACES,
    VALUES,
    KEYS,
)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(FILES), BYTE_EDITS), min_size=1, max_size=3))
def test_any_bytes_are_loaded_or_refused(originals, kind, edits):
    files = contents(originals[kind])
    for name, edit in edits:
        files[name] = edit_bytes(files[name], *edit)
    survives(files)


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(FILES), JSON_EDITS), min_size=1, max_size=2))
def test_any_json_is_loaded_or_refused(originals, kind, edits):
    files = contents(originals[kind])
    for name, edit in edits:
        with suppress(ValueError, TypeError):  # the first may leave nothing to edit
            files[name] = edit_json(name, files[name], *edit)
    survives(files)


def test_files_that_were_not_spoiled_are_loaded(originals):
    for directory in originals.values():
        survives(contents(directory))
        assert load_training(directory, DOCUMENTS).step == 2
