"""Chapter 15: models and tokenizers that are saved come back, as do those of others.

Files are compared with GPT-2's format as it is written down here, not with microgpt.
"""

import json
import math
import os
import shutil
import struct
import sys
from array import array
from itertools import cycle
from tempfile import TemporaryDirectory

import pytest
from helpers import ABC, flat, parts, shaken, write_tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import (
    END,
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    load_model,
    load_tokenizer,
    save_model,
)

CONFIG = Config(vocab_size=7, block_size=5, n_layer=2, n_head=1, n_embd=3)
CONFIGS = [
    CONFIG,
    Config(260, 5, 1, 1, 4),
    Config(2, 1, 3, 2, 2),
    Config(1, 1, 1, 1, 1),
]
LAYOUT = """
    wte.weight 7 3
    wpe.weight 5 3
    h.{i}.ln_1.weight 3
    h.{i}.ln_1.bias 3
    h.{i}.attn.c_attn.weight 3 9
    h.{i}.attn.c_attn.bias 9
    h.{i}.attn.c_proj.weight 3 3
    h.{i}.attn.c_proj.bias 3
    h.{i}.ln_2.weight 3
    h.{i}.ln_2.bias 3
    h.{i}.mlp.c_fc.weight 3 12
    h.{i}.mlp.c_fc.bias 12
    h.{i}.mlp.c_proj.weight 12 3
    h.{i}.mlp.c_proj.bias 3
    ln_f.weight 3
    ln_f.bias 3
"""
SHAPES = {}  # of CONFIG's tensors in GPT-2's files
for i in (0, 1):
    for line in LAYOUT.format(i=i).strip().splitlines():
        name, *sizes = line.split()
        SHAPES[name] = [int(size) for size in sizes]
FORMATS = {"F64": "d", "F32": "f", "F16": "e", "BOOL": "?", "U8": "B"}


def random_model(config=CONFIG):
    return shaken(GPT(config, seed=1))


def same_bits(a, b):
    """Equal, and -0.0 is not 0.0: the repr of a float says it all."""
    return repr(a) == repr(b)


def transposed(x):
    return [list(row) for row in zip(*x)]


def in_file_order(name, x):
    """A parameter's numbers in the order that they have in GPT-2's files."""
    return flat(transposed(x) if ".c_" in name and "weight" in name else x)


def tensors_of(path):
    """A file whose tensors leave no gap -> {name: (dtype, shape, numbers)}"""
    header, data = parts(path)
    header.pop("__metadata__", None)
    tensors = {}
    place = 0
    for name, entry in sorted(header.items(), key=lambda x: x[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        assert start == place
        place = stop
        format = f"<{math.prod(entry['shape'])}{FORMATS[entry['dtype']]}"
        numbers = list(struct.unpack(format, data[start:stop]))
        tensors[name] = (entry["dtype"], entry["shape"], numbers)
    assert place == len(data)
    return tensors


def in_f32(x):
    """The nearest numbers that 4 bytes can hold, in lists."""
    if hasattr(x, "__len__"):
        return [in_f32(y) for y in x]
    return struct.unpack("<f", struct.pack("<f", x))[0]


def rounded(model):
    params = {name: in_f32(x) for name, x in model.params.items()}
    return GPT(model.config, params)


def logits(model):
    return model(list(range(CONFIG.block_size)))


# --- what is saved --------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.sampled_from(CONFIGS),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
)
@example(CONFIG, [sys.float_info.max])  # the sum of these is not finite
@example(CONFIG, [-sys.float_info.max])
@example(CONFIG, [0.1, -0.0, 5e-324, -2.2e-308])
def test_a_model_comes_back_to_the_last_bit(config, numbers):
    supply = cycle(numbers)
    params = {}
    for name, x in GPT(config).params.items():
        params[name] = microgpt.for_each(lambda _: next(supply), x)
    with TemporaryDirectory() as directory:
        save_model(GPT(config, params), directory)
        loaded = load_model(directory)
    assert loaded.config == config
    assert same_bits(loaded.params, params)


def test_the_file_has_the_layout_of_gpt2(tmp_path):
    model = random_model()
    save_model(model, tmp_path)
    expected = {}
    for name, shape in SHAPES.items():
        expected[name] = ("F64", shape, in_file_order(name, model.params[name]))
    assert tensors_of(tmp_path / "model.safetensors") == expected
    header, _ = parts(tmp_path / "model.safetensors")
    assert header["__metadata__"] == {"format": "pt"}


GPT2_CONFIG = """{
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "dtype": "float64",
    "n_positions": 7, "n_layer": 2, "n_head": 3, "n_embd": 6,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": true
}"""


def end_first():
    vocab = BPETokenizer.train([], 257).vocab
    return BPETokenizer({token: (i + 1) % 257 for token, i in vocab.items()}, [])


@pytest.mark.parametrize(
    "tokenizer, end, size",
    [(None, 2, 3), (CharTokenizer(["ab"]), 2, 3), (end_first(), 0, 257)],
)
def test_the_config_is_that_of_gpt2(tmp_path, tokenizer, end, size):
    save_model(random_model(Config(size, 7, 2, 3, 6)), tmp_path, tokenizer)
    expected = json.loads(GPT2_CONFIG)
    expected.update(vocab_size=size, bos_token_id=end, eos_token_id=end)
    found = json.loads((tmp_path / "config.json").read_bytes())
    assert expected.items() <= found.items()
    assert found.get("n_inner") is None


TOKENIZER = """{
    "version": "1.0", "pre_tokenizer": null, "decoder": {"type": "Fuse"},
    "added_tokens": [{"id": 3, "content": "<|endoftext|>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
    "model": {"type": "BPE", "merges": [],
        "vocab": {"a": 0, "b": 1, "c": 2, "<|endoftext|>": 3}}
}"""
TOKENIZER_CONFIG = """{
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>", "clean_up_tokenization_spaces": false,
    "model_input_names": ["input_ids", "attention_mask"]
}"""
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTE_LEVEL.update(use_regex=True)


def without_what_is_off(found):
    """A tokenizer without the settings that are written to say that they are off."""
    off = "truncation padding normalizer post_processor dropout unk_token fuse_unk"
    off += " continuing_subword_prefix end_of_word_suffix byte_fallback ignore_merges"
    for part in (found, found["model"]):
        for name in set(off.split()) & set(part):
            assert not part.pop(name)
    return found


def test_the_tokenizer_is_one_of_the_tokenizers_library(tmp_path):
    save_model(random_model(Config(4)), tmp_path, ABC)
    found = json.loads((tmp_path / "tokenizer.json").read_bytes())
    assert without_what_is_off(found) == json.loads(TOKENIZER)
    found = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert found == json.loads(TOKENIZER_CONFIG)
    save_model(random_model(Config(257)), tmp_path, end_first())
    found = json.loads((tmp_path / "tokenizer.json").read_bytes())
    assert found["pre_tokenizer"] == found["decoder"] == BYTE_LEVEL


def test_more_files_and_metadata_are_saved_with_a_model(tmp_path):
    directory = os.path.join(str(tmp_path), "made", "for it")
    more = {"notes.txt": [b"a ", b"note"]}
    save_model(random_model(), directory, also=more, author="me", year="2025")
    names = ["config.json", "model.safetensors", "notes.txt"]
    assert sorted(os.listdir(directory)) == names
    assert (tmp_path / "made" / "for it" / "notes.txt").read_bytes() == b"a note"
    _, metadata = microgpt.read_model(directory)
    assert metadata == {"format": "pt", "author": "me", "year": "2025"}


def test_a_model_replaces_the_one_before_it_and_no_other_file(tmp_path):
    (tmp_path / "notes.txt").write_text("kept")
    for documents, size in [("ab", 258), ("ab", 0), ("xyz", 0), ("", 257)]:
        tokenizer = CharTokenizer(documents)
        if size:
            tokenizer = BPETokenizer.train([documents], size)
        model = random_model(Config(tokenizer.vocab_size, 3, 1, 1, 2))
        save_model(model, tmp_path, tokenizer)
        assert load_model(tmp_path).config == model.config
        assert same_bits(load_model(tmp_path).params, model.params)
        loaded = load_tokenizer(tmp_path)
        assert (type(loaded), loaded.vocab) == (type(tokenizer), tokenizer.vocab)
    assert (tmp_path / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize(
    "documents",
    [[""], ["ab", "b"], ['\n \0\x85\u2028"\\'], ["ø", "京🙂"], [END], ["\ud800Ġ"]],
    ids=ascii,
)
def test_a_tokenizer_of_characters_comes_back(tmp_path, documents):
    tokenizer = CharTokenizer(documents)
    save_model(random_model(Config(tokenizer.vocab_size)), tmp_path, tokenizer)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is CharTokenizer
    assert vars(loaded) == vars(tokenizer)


@pytest.mark.parametrize("size", [257, 258, 300])
def test_a_tokenizer_of_bytes_comes_back(tmp_path, size):
    tokenizer = BPETokenizer.train(["low lower lowest", "a b c d", "東京 東京"], size)
    save_model(random_model(Config(tokenizer.vocab_size)), tmp_path, tokenizer)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is BPETokenizer
    assert (loaded.vocab, loaded.merges) == (tokenizer.vocab, tokenizer.merges)
    text = f"slow lower{END}東京\r\n🙂" + "".join(map(chr, range(256)))
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


# --- what others have saved -----------------------------------------------------------

BITS = {  # and the values that they stand for
    "F64": {
        0x3FF0000000000000: 1.0,
        0x8000000000000000: -0.0,
        0x0000000000000001: 5e-324,
        0x3FD5555555555555: 1 / 3,
    },
    "F32": {
        0xC0000000: -2.0,
        0x80000000: -0.0,
        0x00000001: 2.0**-149,
        0x7F7FFFFF: (2 - 2.0**-23) * 2.0**127,
        0x3EAAAAAB: 11184811 * 2.0**-25,
    },
    "F16": {
        0xC000: -2.0,
        0x8000: -0.0,
        0x0001: 2.0**-24,
        0x03FF: 1023 * 2.0**-24,
        0x7BFF: 65504.0,
        0x3555: 1365 * 2.0**-12,
    },
    "BF16": {
        0xC000: -2.0,
        0x8000: -0.0,
        0x0001: 2.0**-133,
        0x7F7F: 255 * 2.0**120,
        0x3EAB: 171 * 2.0**-9,
    },
}
N_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def in_bits(dtype, bits):
    return b"".join(x.to_bytes(N_BYTES[dtype], "little") for x in bits)


def write_config(directory, config, **more):
    sizes = {"n_positions": config.block_size, **vars(config)}
    del sizes["block_size"]
    (directory / "config.json").write_text(json.dumps({**sizes, **more}))


@pytest.mark.parametrize(
    "prefix, mask, order, more",
    [
        ("", None, 1, {}),
        ("transformer.", "BOOL", -1, {"model_type": "gpt2", "n_inner": None}),
        ("transformer.", "F32", 1, {"n_ctx": 5}),
        ("", "U8", -1, {"n_inner": 12, "scale_attn_weights": True}),
    ],
)
@pytest.mark.parametrize("dtypes", [["F64"], ["F32"], ["F16"], ["BF16"], [*BITS]])
def test_files_of_others_are_read_to_the_bit(
    tmp_path, dtypes, prefix, mask, order, more
):
    tensors = {}
    expected = {}
    for k, (name, shape) in enumerate(SHAPES.items()):
        dtype = dtypes[k % len(dtypes)]
        bits, values = zip(*BITS[dtype].items())
        chosen = [(i * i + k) % len(bits) for i in range(math.prod(shape))]
        tensors[prefix + name] = dtype, shape, in_bits(dtype, [bits[i] for i in chosen])
        expected[name] = [values[i] for i in chosen]
    if mask:
        raw = struct.pack(f"<25{FORMATS[mask]}", *[1] * 25)
        for i in range(CONFIG.n_layer):
            tensors[f"{prefix}h.{i}.attn.bias"] = mask, [1, 1, 5, 5], raw
            tensors[f"{prefix}h.{i}.attn.masked_bias"] = "F32", [], b"\0" * 4
    write_config(tmp_path, CONFIG, **more)
    file = tmp_path / "model.safetensors"
    write_tensors(file, dict(list(tensors.items())[::order]), padding=b"  "[::order])
    loaded = load_model(tmp_path)
    assert loaded.config == CONFIG
    for name, x in loaded.params.items():
        assert same_bits(in_file_order(name, x), expected[name])
    shapes = microgpt.parameter_shapes(CONFIG)
    assert list(loaded.params) == list(shapes)
    for name, shape in shapes.items():
        assert len(loaded.params[name]) == shape[0]


def as_gpt2(directory, vocab, lines):
    """Put GPT-2's two older files in the place of tokenizer.json."""
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("\n".join(lines))


@pytest.fixture
def saved(tmp_path):
    """A directory with a model and a tokenizer of bytes, which has merges."""
    tokenizer = BPETokenizer.train(["abba", "aab"], 259)
    save_model(random_model(Config(259, 3, 1, 1, 2)), tmp_path, tokenizer)
    return tmp_path


def change_tokenizer(directory, change):
    found = json.loads((directory / "tokenizer.json").read_bytes())
    change(found)
    (directory / "tokenizer.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    "lines",
    [["#version: 0.2", "{0}", "{1}", ""], ["{0}", "{1}"]],
    ids=["with a first and a last line", "without"],
)
def test_the_two_older_files_of_gpt2_are_a_tokenizer(saved, lines):
    tokenizer = load_tokenizer(saved)
    merges = [" ".join(pair) for pair in tokenizer.merges]
    as_gpt2(saved, tokenizer.vocab, [line.format(*merges) for line in lines])
    loaded = load_tokenizer(saved)
    assert type(loaded) is BPETokenizer
    assert (loaded.vocab, loaded.merges) == (tokenizer.vocab, tokenizer.merges)


def merges_as_strings(found):
    found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]


def end_among_added_tokens_only(found):
    del found["model"]["vocab"][END]


def no_type(found):
    del found["model"]["type"]


def settings_that_are_off(found):
    found["model"].update(dropout=None, ignore_merges=False, unk_token=None)
    found["normalizer"] = None


def use_regex(found):
    found["pre_tokenizer"].update(use_regex=True)


@pytest.mark.parametrize(
    "change",
    [merges_as_strings, end_among_added_tokens_only, no_type, settings_that_are_off]
    + [use_regex],
)
def test_a_tokenizer_may_be_written_in_other_ways(saved, change):
    before = load_tokenizer(saved)
    change_tokenizer(saved, change)
    loaded = load_tokenizer(saved)
    assert (loaded.vocab, loaded.merges) == (before.vocab, before.merges)


# --- large models ---------------------------------------------------------------------


def test_ten_million_parameters_are_not_large():
    assert microgpt.MOST_PARAMETERS == 10_000_000


@pytest.fixture
def limit(monkeypatch):
    """Models of more than this many parameters more than CONFIG has are large now."""

    def set_limit(more):
        most = microgpt.parameter_count(CONFIG) + more
        monkeypatch.setattr(microgpt, "MOST_PARAMETERS", most)

    return set_limit


@pytest.mark.parametrize("more, dtype", [(0, "F64"), (-1, "F32")])
def test_only_a_model_of_more_parameters_is_saved_in_4_byte_floats(
    tmp_path, limit, more, dtype
):
    model = random_model()
    limit(more)
    save_model(model, tmp_path)
    saved = model if dtype == "F64" else rounded(model)
    expected = {}
    for name, shape in SHAPES.items():
        expected[name] = (dtype, shape, in_file_order(name, saved.params[name]))
    assert tensors_of(tmp_path / "model.safetensors") == expected
    found = json.loads((tmp_path / "config.json").read_bytes())
    assert found["dtype"] == dtype.replace("F", "float")
    limit(0)  # and one of just as many is read into lists
    assert same_bits(load_model(tmp_path).params, saved.params)


@pytest.mark.parametrize("dtype", ["F64", "F32"])
def test_a_model_of_one_more_is_kept_in_4_byte_floats(tmp_path, limit, dtype):
    model = random_model()
    limit(0 if dtype == "F64" else -1)
    save_model(model, tmp_path)
    limit(-1)
    loaded = load_model(tmp_path)
    for name, x in loaded.params.items():
        for row in x if isinstance(x, list) else [x]:
            assert isinstance(row, array) and row.typecode == "f"
        assert same_bits(flat(x), in_f32(flat(model.params[name])))
    assert logits(loaded) == logits(rounded(model))
    save_model(loaded, tmp_path / "again")
    assert load_model(tmp_path / "again").params == loaded.params


def test_the_largest_4_byte_float_is_saved_in_a_large_model(tmp_path, limit):
    model = random_model()
    limit(-1)
    largest = (2 - 2.0**-23) * 2.0**127
    model.params["ln_f.bias"][:] = [largest, -largest, 0.0]
    save_model(model, tmp_path)
    assert flat(load_model(tmp_path).params["ln_f.bias"]) == [largest, -largest, 0.0]


@pytest.mark.parametrize("number", [1e39, -1e39])
def test_a_number_too_large_for_4_bytes_is_not_saved_and_not_read(
    tmp_path, limit, number
):
    model = random_model()
    save_model(model, tmp_path / "sound")
    model.params["ln_f.bias"][1] = number
    save_model(model, tmp_path / "spoiled")
    shutil.copytree(tmp_path / "sound", tmp_path / "before")
    limit(-1)
    with pytest.raises(ValueError, match="ln_f.bias"):
        load_model(tmp_path / "spoiled")
    with pytest.raises(ValueError, match="ln_f.bias has a number that is too large"):
        save_model(model, tmp_path / "sound")
    assert (
        load_model(tmp_path / "sound").params == load_model(tmp_path / "before").params
    )
    assert sorted(os.listdir(tmp_path / "sound")) == [
        "config.json",
        "model.safetensors",
    ]
