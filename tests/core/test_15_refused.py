"""Chapter 15: what is read from a file is checked before it is believed.

A file that is not sound is a ValueError of one line that names it, and costs no memory.
"""

import json
import math
import os
import random
import shutil
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers import parts, write_parts, write_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import END, GPT, BPETokenizer, Config, load_model, load_tokenizer

try:
    import tracemalloc
except ImportError:  # PyPy has none
    tracemalloc = None

DOCUMENTS = ["ab", "ba", "aab", "abba", "b"]
CONFIG = "config.json"
MODEL = "model.safetensors"
TOKENIZER = "tokenizer.json"
TRAINER = "trainer.safetensors"
FILES = [CONFIG, MODEL, TOKENIZER, TRAINER]
TABLES = ["wte.weight", "h.0.mlp.c_proj.weight", "ln_f.bias"]
NAN = math.nan
INFINITY = math.inf
DEEP = 100_000
LONG = "x" * 9999


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Trainings after two steps: {"characters" or "bytes": directory}."""
    directories = {}
    for kind in ("characters", "bytes"):
        tokenizer = microgpt.CharTokenizer(DOCUMENTS)
        if kind == "bytes":
            tokenizer = BPETokenizer.train(DOCUMENTS, 259)
        model = GPT(Config(tokenizer.vocab_size, block_size=3, n_head=2, n_embd=4))
        config = microgpt.TrainConfig(steps=2, batch_size=2)
        trainer = microgpt.Trainer(model, tokenizer, DOCUMENTS, config)
        assert len(list(trainer)) == 2
        directories[kind] = tmp_path_factory.mktemp(kind)
        microgpt.save_training(trainer, directories[kind])
    return directories


@pytest.fixture
def char(originals, tmp_path):
    """The training on characters, to be spoiled."""
    return Path(shutil.copytree(originals["characters"], tmp_path / "characters"))


@pytest.fixture
def bpe(originals, tmp_path):
    """The training on bytes, to be spoiled."""
    return Path(shutil.copytree(originals["bytes"], tmp_path / "bytes"))


def load_the_training(directory):
    return microgpt.load_training(directory, DOCUMENTS)


LOADERS = dict(zip(FILES, [load_model, load_model, load_tokenizer, load_the_training]))


def is_sound(message):
    return message.isprintable() and len(message) < 1000


def refused(directory, name, *words, load=None, memory=4e6):
    """A file is refused by its path and with these words, and costs little memory."""
    if tracemalloc:
        tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            (load or LOADERS[name])(directory)
        peak = tracemalloc.get_traced_memory()[1] if tracemalloc else 0
    finally:
        if tracemalloc:
            tracemalloc.stop()
    message = str(caught.value)
    assert is_sound(message), ascii(message[:2000])
    for word in [str(directory / name), *words]:
        assert word in message
    assert peak < memory


# --- edits of what is in JSON ---------------------------------------------------------


def at(x, place):
    """What is in a JSON value at this place, a row of keys."""
    for key in place:
        x = x[key]
    return x


def put(*place, **values):
    """An edit: give these values to the object at a place."""
    return lambda whole: at(whole, place).update(values)


def drop(*place):
    """An edit: delete what is at a place."""
    return lambda whole: at(whole, place[:-1]).pop(place[-1])


def alter(*place, by):
    """An edit: what is at a place becomes what a function makes of it."""
    return lambda whole: put(*place[:-1], **{place[-1]: by(at(whole, place))})(whole)


def rename(old, new):
    """An edit of a tokenizer: a token of the vocabulary becomes another one."""

    def edit(whole):
        vocab = whole["model"]["vocab"]
        vocab[new] = vocab.pop(old)

    return edit


def change(path, edit):
    """Edit a JSON file, or the header of a .safetensors file."""
    if path.suffix == ".safetensors":
        header, data = parts(path)
        edit(header)
        write_parts(path, header, data)
    else:
        whole = json.loads(path.read_bytes())
        edit(whole)
        path.write_text(json.dumps(whole))


# --- files and JSON -------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_refused(char, name):
    raw = (char / name).read_bytes()
    if name == CONFIG:
        raw = raw.rstrip()
    data = 8 + int.from_bytes(raw[:8], "little")
    places = [0, 1, 7, 8, 9, len(raw) // 2, len(raw) - 1]
    if name in (MODEL, TRAINER):
        places += [data - 1, data, data + 1, len(raw) - 8]
    for place in places:
        (char / name).write_bytes(raw[:place])
        refused(char, name)


def test_bytes_that_are_missing_or_too_many_are_counted(char):
    header, data = parts(char / MODEL)
    n = len(data)
    write_parts(char / MODEL, header, data[:-8])
    refused(char, MODEL, f"ends at {n:,}, but there are {n - 8:,} bytes")
    write_parts(char / MODEL, header, data + b"\0")
    refused(char, MODEL, f"its tensors end at {n:,} of {n + 1:,} bytes")
    write_parts(char / MODEL, header, b"")
    refused(char, MODEL, "but there are 0 bytes")


@pytest.mark.parametrize("length", [0, 13, 10**8 + 1, 2**62, 2**64 - 1])
def test_a_header_that_cannot_be_so_long_is_refused(char, length):
    size = 20 if length < 10**8 else 2 * 10**8
    (char / MODEL).write_bytes(length.to_bytes(8, "little") + b" " * 12)
    os.truncate(char / MODEL, size)  # or, mostly, make it longer: a file with a hole
    refused(char, MODEL, f"its {size:,} bytes cannot have a header of {length:,}")


def test_8_terabytes_are_not_read_if_a_file_only_says_that_it_has_them(char):
    change(char / CONFIG, put(vocab_size=10**6, n_embd=10**6))
    write_tensors(char / MODEL, {"wte.weight": ("F64", [10**6, 10**6], b"")})
    change(char / MODEL, put("wte.weight", data_offsets=[0, 8 * 10**12]))
    says = "'wte.weight' ends at 8,000,000,000,000, but there are 0 bytes"
    refused(char, MODEL, says)


def as_gpt2(directory, vocab=b"{}", merges=b""):
    """Put GPT-2's two older files in the place of tokenizer.json."""
    (directory / TOKENIZER).unlink()
    (directory / "vocab.json").write_bytes(vocab)
    (directory / "merges.txt").write_bytes(merges)


OTHER_JSON = [b"[]", b'[["a", 1], ["a", 2]]', b"7", b"null", b"NaN"]
NO_JSON = [b" \n\t ", b"\0" * 9, b"tensors", b'{"a": "\xff"}', b"{} {}", b"{1: 2}"]
NO_JSON += [b'{"a": "\n"}', b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP]


@pytest.mark.parametrize("text", OTHER_JSON + NO_JSON, ids=lambda text: str(text[:20]))
def test_what_is_not_a_json_object_is_refused(char, text):
    says = "it is not a JSON object" if text in OTHER_JSON else ""
    for name in (TRAINER, MODEL):
        _, data = parts(char / name)
        write_parts(char / name, text, data)
        refused(char, name, says)
    (char / TOKENIZER).write_bytes(text)
    refused(char, TOKENIZER, says)
    as_gpt2(char, vocab=text)
    refused(char, "vocab.json", says, load=load_tokenizer)
    (char / CONFIG).write_bytes(text)
    refused(char, CONFIG, says)


TWICE = [
    (CONFIG, '"n_layer"', '"n_layer": 1, "n_layer"'),
    (CONFIG, '"n_layer"', '"x": [[{"y": 1, "y": 1}]], "n_layer"'),
    (CONFIG, '"n_layer"', r'"n\u005flayer": 1, "n_layer"'),
    (MODEL, '"format"', '"a": "", "format": "", "format"'),
    (MODEL, '"ln_f.bias"', '"ln_f.bias": {}, "ln_f.bias"'),
    (TOKENIZER, '"a"', '"a": 0, "a"'),
    (TOKENIZER, '"content"', '"content": "b", "content"'),
]


@pytest.mark.parametrize("name, old, new", TWICE)
def test_what_is_said_twice_is_refused(char, name, old, new):
    raw = (char / name).read_bytes()
    assert old.encode() in raw
    raw = raw.replace(old.encode(), new.encode(), 1)
    if name == MODEL:
        length = int.from_bytes(raw[:8], "little") + len(new) - len(old)
        raw = length.to_bytes(8, "little") + raw[8:]
    (char / name).write_bytes(raw)
    refused(char, name, "a key appears twice")


NEEDS = [(load_model, name) for name in (CONFIG, MODEL)]
NEEDS += [(load_tokenizer, TOKENIZER)]
NEEDS += [(load_the_training, name) for name in FILES]


@pytest.mark.parametrize("load, name", NEEDS)
def test_what_is_not_there_or_a_folder_is_an_oserror_that_names_it(char, load, name):
    (char / name).unlink()
    for _ in ("not there", "a folder"):
        with pytest.raises(OSError) as caught:
            load(char)
        assert caught.value.filename == str(char / name)
        (char / name).mkdir(exist_ok=True)
    for place in (char / "nowhere", char / "tokenizer_config.json"):
        with pytest.raises(OSError, match=place.name):
            load(place)


def test_nothing_else_is_needed(char):
    (char / "tokenizer_config.json").unlink()
    load_the_training(char)
    (char / TRAINER).unlink()
    load_model(char)
    (char / CONFIG).unlink()
    (char / MODEL).unlink()
    load_tokenizer(char)


# --- config.json ----------------------------------------------------------------------


@pytest.mark.parametrize("name", "vocab_size n_positions n_layer n_head n_embd".split())
def test_a_size_that_is_none_is_refused_and_one_that_is_missing_is_gpt2s(char, name):
    field = "block_size" if name == "n_positions" else name
    for size in [0, -1, 10**30, 1.0, 4.0, NAN, True, None, "4", [], {"4": 4}, "\ud800"]:
        change(char / CONFIG, put(**{name: size}))
        refused(char, CONFIG, f"{field} is ")
        refused(char, CONFIG, load=load_the_training)
    change(char / CONFIG, drop(name))
    says = "n_embd is 4: must be a multiple of n_head, which is 12"
    refused(
        char, CONFIG if name == "n_head" else MODEL, says if name == "n_head" else ""
    )


OTHER_KINDS = [
    ({"n_embd": 5}, "n_embd is 5: must be a multiple of n_head, which is 2"),
    ({"activation_function": "gelu"}, "'gelu': must be 'gelu_new'"),
    ({"activation_function": None}, "None: must be 'gelu_new'"),
    ({"layer_norm_epsilon": 1e-6}, "1e-06: must be 1e-05"),
    ({"tie_word_embeddings": None}, "None: must be True"),
    ({"tie_word_embeddings": 1}, "1: must be True"),
    ({"n_inner": 15}, "n_inner is 15: must be 16"),
    ({"n_inner": 0}, "n_inner is 0: must be 16"),
    ({"n_inner": [16]}, "n_inner is [16]: must be 16"),
    ({"model_type": "llama"}, "'llama': must be 'gpt2'"),
    ({"scale_attn_weights": False}, "False: must be True"),
    ({"scale_attn_by_inverse_layer_idx": True}, "True: must be False"),
]


@pytest.mark.parametrize("changes, says", OTHER_KINDS, ids=ascii)
def test_a_model_of_another_kind_is_refused(char, changes, says):
    change(char / CONFIG, put(**changes))
    refused(char, CONFIG, *changes, says)


OTHER_SHAPES = [
    ({"vocab_size": 2}, "'wte.weight'", "[2, 4]"),
    ({"vocab_size": 10**6, "n_embd": 10**6}, "c_attn.bias'", "[3000000]"),
    ({"n_positions": 2}, "'wpe.weight'", "[2, 4]"),
    ({"n_embd": 2}, "c_attn.bias'", "[6]"),
    ({"n_layer": 2}, "'h.1.ln_1.weight'", "missing"),
    ({"n_layer": 999, "n_embd": 10**6}, "c_attn.bias'", "[3000000]"),
]


@pytest.mark.parametrize("changes, name, says", OTHER_SHAPES, ids=str)
def test_a_model_of_another_shape_is_refused_before_it_costs_memory(
    char, changes, name, says
):
    change(char / CONFIG, put(**changes))
    memory = 2e7 if "n_layer" in changes else 4e6  # for the names of all the layers
    refused(char, MODEL, name, says, memory=memory)


# --- model.safetensors ----------------------------------------------------------------


def offsets(by):
    return alter("data_offsets", by=by)


def shape(by):
    return alter("shape", by=by)


ENTRIES = {
    "no dtype": drop("dtype"),
    "no offsets": drop("data_offsets"),
    "one key more": put(more=0),
    "other dtype": put(dtype="F32"),
    "three offsets": offsets(lambda x: [*x, 0]),
    "longer": offsets(lambda x: [x[0], x[1] + 8]),
    "shorter": offsets(lambda x: [x[0], x[1] - 8]),
    "later": offsets(lambda x: [x[0] + 8, x[1] + 8]),
    "earlier": offsets(lambda x: [x[0] - 8, x[1] - 8]),
    "begins at minus": offsets(lambda x: [x[0] - 10**9, x[1]]),
    "of floats": offsets(lambda x: [*map(float, x)]),
    "shape longer": shape(lambda x: [x[0] + 1, *x[1:]]),
    "shape of floats": shape(lambda x: [*map(float, x)]),
    "shape of thousands": shape(lambda x: x + [1] * 10**4),
}


@pytest.mark.parametrize("edit", ENTRIES.values(), ids=ENTRIES)
def test_a_tensor_that_is_not_what_it_says_is_refused(char, edit):
    raw = (char / MODEL).read_bytes()
    for name in TABLES:
        change(char / MODEL, lambda header, name=name: edit(header[name]))
        refused(char, MODEL)
        (char / MODEL).write_bytes(raw)


def test_a_shape_of_true_is_refused(tmp_path):
    microgpt.save_model(GPT(Config(1, 1, 1, 1, 1)), tmp_path)
    change(tmp_path / MODEL, put("ln_f.bias", shape=[True]))
    refused(tmp_path, MODEL, "'ln_f.bias'", "[True]", "[1]")


DTYPES = ["F8_E4M3", "I64", "BOOL", "C64", "f64", "F", "", "F64\n", None, 8.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=ascii)
def test_a_dtype_that_is_not_of_floats_is_refused(char, dtype):
    change(char / MODEL, put("ln_f.bias", dtype=dtype))
    refused(char, MODEL, "'ln_f.bias'", "must be one of ['F64', 'F32', 'F16', 'BF16']")


def ones(config, dtype):
    """A file's tensors, of which all numbers are 1: {name: (dtype, shape, bytes)}."""
    one = {"F64": "3ff0000000000000", "F32": "3f800000", "F16": "3c00", "BF16": "3f80"}
    raw = bytes.fromhex(one[dtype])[::-1]
    tensors = {}
    for name, x in microgpt.parameter_shapes(config).items():
        in_file = list(x[::-1] if ".c_" in name else x)
        tensors[name] = (dtype, in_file, raw * math.prod(x))
    return tensors


def test_a_tensor_that_is_missing_or_there_twice_is_refused_by_name(char):
    tensors = ones(load_model(char).config, "F64")
    write_tensors(char / MODEL, tensors)
    load_model(char)
    for name in tensors:
        write_tensors(char / MODEL, {x: tensors[x] for x in tensors if x != name})
        refused(char, MODEL, f"{name!r} is missing")


def test_a_model_without_its_head_is_refused(char):
    change(char / CONFIG, put(tie_word_embeddings=False))
    refused(char, MODEL, "lm_head.weight is missing", "tie_word_embeddings")


UNKNOWN = ["h.1.ln_1.bias", "transformer.", "transformer.transformer.ln_f.bias", ""]
UNKNOWN += ["h.0.attn.bias2", "h.x.attn.bias", "h.0.attn.bias\n", "\ud800"]


@pytest.mark.parametrize("name", UNKNOWN, ids=ascii)
def test_a_tensor_that_is_unknown_is_of_no_use_but_refused_in_a_training(char, name):
    before = load_model(char)
    entry = {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}
    change(char / MODEL, put(**{name: entry}))
    assert repr(load_model(char).params) == repr(before.params)
    change(char / TRAINER, put(**{name: entry}))
    refused(char, TRAINER, "is not one of a model of this shape")


def test_a_gap_is_refused_though_all_else_fits(char):
    header, data = parts(char / MODEL)
    middle = header["ln_f.weight"]["data_offsets"][0]
    for entry in header.values():
        if entry.get("data_offsets", [0])[0] >= middle:
            entry["data_offsets"] = [place + 8 for place in entry["data_offsets"]]
    write_parts(char / MODEL, header, data[:middle] + b"\0" * 8 + data[middle:])
    refused(char, MODEL, "'ln_f.weight'")


@pytest.mark.parametrize("name", ["h.0.attn.bias", "transformer.h.0.attn.masked_bias"])
@pytest.mark.parametrize("start, stop", [(0, -8), (0, 9), (8, 8), (-8, 0), (-8, -8)])
def test_a_mask_that_is_not_in_a_place_of_its_own_is_refused(char, name, start, stop):
    header, data = parts(char / MODEL)
    place = [len(data) + start, len(data) + stop]
    mask = {"dtype": "F32", "shape": [2], "data_offsets": place}
    data = data[: len(data) + stop] if stop < 0 else data + b"\0" * 8
    write_parts(char / MODEL, {**header, name: mask}, data)
    refused(char, MODEL)


NOT_FINITE = {  # the bits of infinity, minus infinity and no number
    "F64": "7ff0000000000000 fff0000000000000 7ff8000000000000 7ff0000000000001",
    "F32": "7f800000 ff800000 7fc00000",
    "F16": "7c00 fc00 7e00",
    "BF16": "7f80 ff80 7fc0",
}


@pytest.mark.parametrize("dtype", NOT_FINITE)
@pytest.mark.parametrize("most", [10**7, 10])
def test_numbers_that_are_none_are_refused_by_the_name_of_their_tensor(
    char, monkeypatch, dtype, most
):
    tensors = ones(load_model(char).config, dtype)
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", most)
    write_tensors(char / MODEL, tensors)
    load_model(char)
    for bits in NOT_FINITE[dtype].split():
        number = bytes.fromhex(bits)[::-1]
        for name in TABLES:
            _, sizes, raw = tensors[name]
            spoiled = (dtype, sizes, raw[: -len(number)] + number)
            write_tensors(char / MODEL, {**tensors, name: spoiled})
            refused(char, MODEL, f"{name!r} has numbers that are not finite")


# --- tokenizers -----------------------------------------------------------------------


def without_end(whole):
    whole["added_tokens"] = []
    del whole["model"]["vocab"][END]


def pre_tokenizer(**settings):
    usual = {"type": "ByteLevel", "add_prefix_space": False}
    return put(pre_tokenizer={**usual, **settings})


NOT_OURS = [  # and the setting that is to blame
    (put("model", type="WordPiece"), "a model that is not BPE"),
    (put(normalizer={"type": "Lowercase"}), "normalizer"),
    (pre_tokenizer(type="Whitespace"), "a pre-tokenizer that is not ByteLevel"),
    (pre_tokenizer(add_prefix_space=True), "add_prefix_space"),
    (put(pre_tokenizer={"type": "ByteLevel"}), "add_prefix_space"),
    (pre_tokenizer(use_regex=False), "use_regex: false"),
    (put("model", dropout=0.1), "dropout"),
    (put("model", ignore_merges=True), "ignore_merges"),
    (put("model", continuing_subword_prefix="##"), "continuing_subword_prefix"),
    (put("model", end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (put("added_tokens", 0, single_word=True), "single_word"),
    (put("added_tokens", 0, lstrip=True), "lstrip"),
    (put("added_tokens", 0, rstrip=True), "rstrip"),
]
UNSOUND = [(edit, f"it has {setting}") for edit, setting in NOT_OURS]
UNSOUND += [
    (drop("model"), "'model' is missing"),
    (drop("model", "vocab"), "'vocab' is missing"),
    (drop("model", "merges"), "'merges' is missing"),
    (drop("added_tokens"), "'added_tokens' is missing"),
    (drop("added_tokens", 0, "content"), "'content' is missing"),
    (without_end, "it has no token <|endoftext|>"),
    (put("model", "vocab", a=-1), "its ids are not 0, 1, 2"),
    (put("model", "vocab", a=10**30), "its ids are not 0, 1, 2"),
    (put("model", "vocab", a=1), "its ids are not 0, 1, 2"),
    (put("model", "vocab", a=0.0), "its ids are not whole numbers"),
    (put("model", "vocab", a="0"), "its ids are not whole numbers"),
    (put("model", "vocab", a=False), "its ids are not whole numbers"),
    (put("model", merges=7), ""),
    (put(pre_tokenizer="ByteLevel"), ""),
]
MERGES = ["x zzz", "z z", "a b a", "a", "", "a\n\ud800 b", "a" * 10**5]
MERGES += [["a", "b", "a"], [], [1, 2], 5, None, [["a"], ["b"]], {"a": 1}]
UNSOUND += [(put("model", merges=[merge]), "") for merge in MERGES]


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("edit, says", UNSOUND)
def test_a_tokenizer_that_is_not_sound_is_refused(
    originals, tmp_path, kind, edit, says
):
    shutil.copy(originals[kind] / TOKENIZER, tmp_path)
    load_tokenizer(tmp_path)
    change(tmp_path / TOKENIZER, edit)
    refused(tmp_path, TOKENIZER, says)


NOT_CHARACTERS = [{"vocab": {"b": 0, "a": 1}}, {"vocab": {"aa": 0, "b": 1}}]
NOT_CHARACTERS += [{"vocab": {"": 0, "b": 1}}, {"merges": ["a b"]}]


@pytest.mark.parametrize("changes", NOT_CHARACTERS)
def test_characters_that_are_none_merge_or_are_not_in_order_are_refused(char, changes):
    change(char / TOKENIZER, put("model", **changes))
    refused(char, TOKENIZER, "its tokens are not characters in order")


@pytest.mark.parametrize("token", ["☃", "z☃", " ", "zz", "", "\ud800"], ids=ascii)
def test_tokens_that_are_not_made_of_all_the_bytes_are_refused(bpe, token):
    change(bpe / TOKENIZER, rename("z", token))
    refused(bpe, TOKENIZER, "all 256 bytes")


def test_a_tokenizer_of_another_model_is_refused(char, bpe):
    shutil.copy(bpe / TOKENIZER, char)
    says = "the model has 3 tokens, the tokenizer beside it 259"
    refused(char, CONFIG, says, load=load_tokenizer)
    refused(char, CONFIG, says, load=load_the_training)


@pytest.mark.parametrize("i", [1, -1, 0.0, False, None, "0"])
def test_an_older_vocabulary_that_is_none_is_refused(bpe, i):
    as_gpt2(bpe, json.dumps({"a": i}).encode())
    refused(bpe, "vocab.json", "its ids ", load=load_tokenizer)


OLDER_MERGES = [b"\xff\xfe", b"a b\n\xc3", b"a b c", b"ab", b"x zzz", b"a  b", b"\0"]


@pytest.mark.parametrize("lines", OLDER_MERGES, ids=str)
def test_older_merges_that_are_none_or_missing_are_refused(bpe, lines):
    as_gpt2(bpe, json.dumps(load_tokenizer(bpe).vocab).encode(), lines)
    refused(bpe, "merges.txt", load=load_tokenizer)
    (bpe / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="merges.txt"):
        load_tokenizer(bpe)


# --- trainings ------------------------------------------------------------------------


def metadata(**changes):
    """An edit: set what is not None in a file's metadata, and delete what is."""

    def changed(old):
        return {name: x for name, x in {**old, **changes}.items() if x is not None}

    return alter("__metadata__", by=changed)


def configured(**changes):
    def changed(config):
        return json.dumps({**json.loads(config), **changes})

    return alter("__metadata__", "config", by=changed)


def renamed(old, new):
    return lambda header: header.update({new: header.pop(old)})


OTHER_STEP = "it is not of the model that is saved here"
BAD_TRAININGS = [
    (configured(engine=[]), "engine is []"),
    (configured(steps=4.0), "steps is 4.0"),
    (configured(steps=True), "steps is True"),
    (configured(workers=3), "workers is 3"),  # more are in the tests of TrainConfig
    (configured(lr=NAN), "lr is nan"),
    (configured(speed=7), "speed"),
    (configured(**{"a\nb": 0}), ""),
    (configured(**{"\x1b[31m\ud800": 0}), ""),
    (configured(**{LONG: 0}), ""),
    (metadata(config='{"steps": 4, "steps": 5}'), "a key appears twice"),
    (metadata(config=None), "'config' is missing"),
    (metadata(step=None), "'step' is missing"),
    (metadata(step="1"), OTHER_STEP),
    (metadata(step="02"), OTHER_STEP),
    (metadata(step=2), OTHER_STEP),
    (drop("__metadata__"), ""),
    (drop("v.wte.weight"), "its tensors end at"),
    (renamed("m.ln_f.bias", "m.x"), "'m.x' is not one"),
    (renamed("m.ln_f.bias", "ln_f.bias"), "'ln_f.bias' is not one"),
]
for config in ("", "[]", "7", "{", '[["steps", 4]]', "[" * DEEP, 7, [], {}):
    BAD_TRAININGS.append((metadata(config=config), ""))


@pytest.mark.parametrize("edit, says", BAD_TRAININGS)
def test_a_training_that_is_not_sound_is_refused(char, edit, says):
    change(char / TRAINER, edit)
    refused(char, TRAINER, says)


@pytest.mark.parametrize("documents", [None, "", "x", 7, [], "0" * 64])
def test_a_training_of_other_documents_is_refused(char, documents):
    change(char / TRAINER, metadata(documents=documents))
    says = f"the text is not the one that {char} was trained on"
    refused(char, "", says, load=load_the_training)


NOT_STEPS = ["x", "-1", "", "2.0", "2\n", "0x2", "٢", "9" * 11, [], 1.5, 2, True]


@pytest.mark.parametrize("step", NOT_STEPS, ids=ascii)
def test_a_step_that_is_none_is_refused_though_both_files_say_so(char, step):
    change(char / MODEL, metadata(step=step))
    refused(char, TRAINER, OTHER_STEP)
    change(char / TRAINER, metadata(step=step))
    refused(char, TRAINER)


@pytest.mark.parametrize("value", [None, [], {}, 7, "step", True, [["step", "2"]]])
@pytest.mark.parametrize("name", [MODEL, TRAINER])
def test_metadata_that_are_none_are_refused(char, name, value):
    change(char / name, put(__metadata__=value))
    refused(char, "", load=load_the_training)


BAD_AVERAGES = [("m", NAN), ("v", INFINITY), ("v", -1.0), ("v", -5e-324)]


@pytest.mark.parametrize("kind, number", BAD_AVERAGES)
def test_averages_that_cannot_be_are_refused_by_name(char, kind, number):
    header, data = parts(char / TRAINER)
    for name in TABLES:
        _, stop = header[f"{kind}.{name}"]["data_offsets"]
        spoiled = data[: stop - 8] + struct.pack("<d", number) + data[stop:]
        write_parts(char / TRAINER, header, spoiled)
        refused(char, TRAINER, f"{kind}.{name}")


# --- whatever comes -------------------------------------------------------------------

VALUES = [None, True, 0, 1, -1, 3, 10**30, 0.5, NAN, INFINITY, "", "a", "F32", "1", END]
VALUES += ["BF16", "tensor", "\ud800", "ab", [], [[]], [1, 2], {}, {"a": 0}, {END: 3}]
KEYS = ["", "a", "ab", "\ud800", END, "n_inner", "step", "ln_f.bias", "m.ln_f.bias"]
PIECES = [b'"', b"{", b"1", b"-", b"e9", b"\\u", b"\0", b"\xff", b"[["]


def spoil_bytes(raw, rng):
    """Cut bytes off, or put others in the place of some or between them."""
    place = rng.randrange(len(raw) + 1)
    if rng.random() < 0.1:
        return raw[:place]
    piece = rng.choice([*PIECES, rng.randbytes(3), b""])
    return raw[:place] + piece + raw[place + rng.randrange(5) :]


def places_in(x, place=()):
    """The places of everything in a JSON value."""
    found = [place]
    if isinstance(x, (dict, list)):
        for key, y in x.items() if isinstance(x, dict) else enumerate(x):
            found += places_in(y, (*place, key))
    return found


def spoil_value(x, rng):
    """Replace something in a JSON value, copy another, delete or rename it."""
    places = places_in(x)
    place = rng.choice(places)
    there = at(x, place)
    value = rng.choice([*VALUES, at(x, rng.choice(places))])
    if isinstance(there, str) and there.startswith("{"):  # JSON in JSON
        value = json.dumps(spoil_value(json.loads(there), rng))
    if not place:
        return value
    x = json.loads(json.dumps(x))
    parent = at(x, place[:-1])
    action = rng.choice(["replace", "replace", "delete", "rename"])
    if action != "replace":
        del parent[place[-1]]
    if action == "rename" and isinstance(parent, dict):
        parent[rng.choice(KEYS)] = there
    if action == "replace":
        parent[place[-1]] = value
    return x


def spoil(path, rng):
    """Spoil a file in one of these two ways."""
    raw = path.read_bytes()
    if rng.random() < 0.4:
        path.write_bytes(spoil_bytes(raw, rng))
    elif path.suffix == ".safetensors":
        header, data = parts(path)
        write_parts(path, spoil_value(header, rng), data)
    else:
        path.write_text(json.dumps(spoil_value(json.loads(raw), rng)))


@settings(max_examples=600)
@given(st.sampled_from(["characters", "bytes"]), st.integers(0, 10**9))
def test_whatever_is_in_the_files_is_loaded_or_refused(originals, kind, seed):
    rng = random.Random(seed)
    with TemporaryDirectory() as parent:
        directory = Path(shutil.copytree(originals[kind], Path(parent, "spoiled")))
        names = rng.sample(FILES, rng.choice([1, 1, 2]))
        for name in names:
            spoil(directory / name, rng)
        load = rng.choice([LOADERS[names[0]], load_tokenizer, load_the_training])
        try:
            loaded = load(directory)
        except ValueError as error:
            assert type(error) is ValueError and is_sound(str(error))
            assert str(directory) in str(error)
        else:
            if isinstance(loaded, BPETokenizer):
                text = f"abba {END}zß\n\0"
                assert loaded.decode(loaded.encode(text)) == text
