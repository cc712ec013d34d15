"""Chapter 15 and GPT-2 directories that are not as usual, but open in transformers.

Each begins as a good one and is made odd. Both must then give the same ids, the same
text and the same logits, or ours must say in one line why not.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
from helpers import close, flat

from microgpt import END, load_model, load_tokenizer, save_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

FOUR = transformers.__version__.startswith("4.")
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
DOCUMENTS = [
    "a low lower tower",
    "a slow slower snow, so",
    "  who?  Café Noël!",
    "it's",
]
TEXTS = [
    *DOCUMENTS,
    END,
    f"a{END} low",
    "[PAD]",
    "a low[PAD]",
    "[PAD]a [PAD]  low [PAD]",
]
TEXTS += [
    f"x[PAD][PAD]{END}[PAD]é",
    "[PAD",
    "[pad]",
    "a\n[PAD]\nb",
    "[PAD]'s low[PAD]low",
]
TEXTS += [
    "<sep><sep> <sep>",
    "x<mask>low<mask> z",
    "xbcab abcd",
    "naïve 天 Ġx 🙂",
    "é  é",
]


# --- a good directory, and edits of it ---


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    options = {"special_tokens": [END], "show_progress": False}
    tokenizer.train_from_iterator(DOCUMENTS * 2, 275, **options)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    save_there(directory, 275)
    return directory


@pytest.fixture
def good(original, tmp_path):
    return shutil.copytree(original, tmp_path / "odd")


def save_there(directory, vocab_size, **sizes):
    """A model with random numbers in it everywhere."""
    torch.manual_seed(1)
    sizes = {"n_positions": 24, "n_layer": 2, "n_head": 2, "n_embd": 8, **sizes}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=vocab_size, **sizes, **ends, initializer_range=0.5)
    model = GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for x in model.parameters():
            if x.dim() == 1:
                x += 0.3 * torch.randn_like(x)
    model.save_pretrained(directory)


def configured(*missing, name="config.json", **changes):
    """An edit of config.json, or of another: these are missing, these other values."""

    def edit(directory):
        path = directory / name
        whole = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: whole[k] for k in whole if k not in missing}))

    return edit


def stored(change, name=MODEL, **changes):
    """An edit of {name: tensor}, and of config.json."""

    def edit(directory):
        tensors = {k: x.clone() for k, x in load_file(directory / MODEL).items()}
        tensors = change(tensors) or tensors
        (directory / MODEL).unlink()
        save_file(tensors, directory / name, {"format": "pt"})
        configured(**changes)(directory)

    return edit


def extra(name, x=None, bare=False):
    x = torch.ones(3) if x is None else x
    return stored(lambda tensors: {**(without(tensors) if bare else tensors), name: x})


def without(tensors):
    return {name.replace("transformer.", ""): x for name, x in tensors.items()}


def every_other(tensors):
    """Every other name without "transformer."."""
    bare = zip(sorted(tensors), sorted(without(tensors)))
    return {pair[i % 2]: tensors[pair[0]] for i, pair in enumerate(bare)}


WTE = "transformer.wte.weight"
HEAD = "lm_head.weight"


def another(x):
    return torch.flip(x, [0])


def two_heads(tensors):
    tensors[HEAD] = another(tensors[WTE])


def same_head(tensors):
    tensors[HEAD] = tensors[WTE].clone()


def only_a_head(tensors):
    tensors[HEAD] = tensors.pop(WTE)


def single_numbers(tensors):
    return {k: x.float() if "bias" in k else x for k, x in tensors.items()}


def added_there(*tokens, pad=True, resize=True, multiple=None):
    """Tokens added by the library, which then saves the tokenizer and the model."""

    def edit(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
        if pad:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.add_tokens(list(tokens))
        if resize:
            model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple)
        tokenizer.save_pretrained(directory)
        (directory / MODEL).unlink()
        model.save_pretrained(directory)

    return edit


def added_in_json(*tokens):
    """Tokens written into tokenizer.json: (text, "before" or "after" the others)."""

    def edit(directory):
        path = directory / "tokenizer.json"
        whole = json.loads(path.read_text())
        for i, (text, when) in enumerate(tokens, 275):
            after = when == "after"
            token = {
                "id": i,
                "content": text,
                "normalized": after,
                "special": not after,
            }
            token.update(dict.fromkeys(["single_word", "lstrip", "rstrip"], False))
            whole["added_tokens"].append(token)
        path.write_text(json.dumps(whole))
        save_there(directory, 275 + len(tokens))

    return edit


def older(edit=lambda lines: lines, **files):
    """GPT-2's two older files in the place of tokenizer.json; the lines are edited."""

    def edit_directory(directory):
        path = directory / "tokenizer.json"
        model = json.loads(path.read_text())["model"]
        path.unlink()
        (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
        pairs = [
            pair if type(pair) is str else " ".join(pair) for pair in model["merges"]
        ]
        text = edit("\n".join(["#version: 0.2", *pairs, ""]))
        (directory / "merges.txt").write_bytes(text.encode())
        for name, content in files.items():
            (directory / f"{name}.json").write_text(json.dumps(content))
            if name == "added_tokens":
                save_there(directory, 275 + len(content))

    return edit_directory


def sharded(n, keep=False, left_out=()):
    """The tensors in n files; `keep` leaves the one file, and the shards are others."""

    def edit(directory):
        tensors = {k: x.clone() for k, x in load_file(directory / MODEL).items()}
        places = {}
        for i in range(n):
            name = f"model-{i + 1:05}-of-{n:05}.safetensors"
            part = {k: another(tensors[k]) if keep else tensors[k] for k in tensors}
            part = {k: part[k].contiguous() for k in sorted(tensors)[i::n]}
            save_file(part, directory / name, {"format": "pt"})
            places.update(dict.fromkeys(part.keys() - set(left_out), name))
        if not keep:
            (directory / MODEL).unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index))

    return edit


def all_of(*edits):
    def edit(directory):
        for each in edits:
            each(directory)

    return edit


def by_default(directory):
    """A model of the default sizes, as far as they are small enough for a test."""
    sizes = {"n_layer": 12, "n_head": 12, "n_positions": 1024}
    save_there(directory, 275, n_embd=12, **sizes)
    configured(*sizes, "n_inner", "activation_function")(directory)


def with_crlf(directory):
    path = directory / "config.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def without_metadata(directory):
    tensors = {k: x.clone() for k, x in load_file(directory / MODEL).items()}
    save_file(tensors, directory / MODEL)


# --- those that open ---

LONG = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
LONG["max_position_embeddings"] = 24
SHORT = ("n_embd", "n_layer", "n_head", "n_positions")
NANS = torch.full((3,), float("nan"))
ODD = {
    "[PAD]": added_there(),
    "[PAD], and the model is not resized": added_there(resize=False),
    "[PAD] is the end": configured(name="tokenizer_config.json", pad_token=END),
    "several tokens": added_there("<sep>", "<mask>"),
    "one token is the start of another": added_there("<sep>", "<sep><sep>", pad=False),
    "a token that was there": added_there("low"),
    "tokens that meet": added_in_json(
        ("ab", "before"), ("abc", "before"), ("bc", "before")
    ),
    "those cut out first": added_in_json(("ab", "after"), ("bc", "before")),
    "tokens that are not ASCII": added_there("naïve", "天", "🙂", "Ġx", "é"),
    "a vocabulary made longer": added_there(pad=False, multiple=64),
    "[PAD], and made longer": added_there(multiple=16),
    "older files": older(),
    "older files and nothing beside": all_of(
        older(), lambda directory: (directory / "tokenizer_config.json").unlink()
    ),
    "older files, CRLF": older(lambda text: text.replace("\n", "\r\n")),
    "older files, no final newline": older(lambda text: text[:-1]),
    "older files, no #version": older(lambda text: text.split("\n", 1)[1]),
    "older files, #version twice": older(lambda text: "#version: 0.1\n" + text),
    "older files, added_tokens.json": older(added_tokens={"[PAD]": 275}),
    "older files, added_tokens.json, other order": older(
        added_tokens={"<sep>": 276, "[PAD]": 275}
    ),
    "older files, and [PAD] is special": older(
        added_tokens={"[PAD]": 275}, special_tokens_map={"pad_token": "[PAD]"}
    ),
    "a head that is the table": stored(same_head),
    "a head that is the table, bare": stored(lambda x: without(same_head(x) or x)),
    "a head that is the table, though not tied": stored(
        same_head, tie_word_embeddings=False
    ),
    "a head and no table": stored(only_a_head),
    "two heads": stored(two_heads),
    "not tied": stored(two_heads, tie_word_embeddings=False),
    "long names": configured(*SHORT, **LONG),
    "long names beside": configured(**LONG),
    "long names win": configured(num_attention_heads=4, num_hidden_layers=1),
    "n_ctx": configured(n_ctx=12),
    "n_inner": configured(n_inner=32),
    "no n_inner": configured("n_inner"),
    "fewer layers": configured(n_layer=1),
    "only what has no default": by_default,
    "torch_dtype": configured("dtype", torch_dtype="float16"),
    "another architecture": configured(architectures=["GPT2ForSequenceClassification"]),
    "no architecture": configured("architectures", "transformers_version"),
    "what does not matter": configured(reorder_and_upcast_attn=True, n_special=0),
    "numbers that are none": configured(summary_first_dropout=float("nan")),
    "CRLF": with_crlf,
    "shards": sharded(3),
    "one shard": sharded(1),
    "shards, index not complete": sharded(3, left_out=["transformer.ln_f.bias"]),
    "other shards beside": sharded(2, keep=True),
    "bare names": stored(without),
    "bare names, some": stored(every_other),
    "both names": stored(lambda x: {**x, "wte.weight": another(x[WTE])}),
    "more than one dtype": stored(single_numbers),
    "no metadata": without_metadata,
    "a score": extra("score.weight"),
    "a score, bare": extra("score.weight", bare=True),
    "a value head": extra("v_head.summary.weight"),
    "a bias of the head": extra("lm_head.bias"),
    "one layer more": extra("transformer.h.2.ln_1.weight"),
    "one layer more, bare": extra("h.2.ln_1.weight", bare=True),
    "masks": extra("transformer.h.0.attn.masked_bias", torch.ones(1)),
    "whole numbers": extra("steps", torch.ones(3, dtype=torch.int64)),
    "true and false": extra("h.0.attn.bias", torch.ones(3, dtype=torch.bool), True),
    "extra numbers that are none": extra("score.weight", NANS),
}
for alias in ("gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"):
    ODD[alias] = configured(activation_function=alias)
ONLY_FIVE = """
a head and no table/a head that is the table, bare/older files, no #version
older files, #version twice/older files, no final newline/bare names, some
shards, index not complete/two heads
"""  # version 4 fails, or loses a tensor or a merge


if FOUR:
    for name in re.split("[/\n]", ONLY_FIVE.strip()):
        del ODD[name]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_directory_opens_as_it_does_there(good, name):
    ODD[name](good)
    theirs = AutoModelForCausalLM.from_pretrained(good, dtype=torch.float64).eval()
    there = AutoTokenizer.from_pretrained(good)
    model, tokenizer = load_model(good), load_tokenizer(good)
    vocab_size = theirs.config.vocab_size
    assert (model.config.vocab_size, tokenizer.end) == (vocab_size, there.eos_token_id)
    for text in TEXTS:
        ids = there(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == there.decode(ids), text
    half, other = there.convert_tokens_to_ids(["Ã", "©"])  # the two bytes of é
    for i in range(vocab_size):
        for ids in ([i], [half, i, other]):
            assert tokenizer.decode(ids) == there.decode(ids), ids
    ids = torch.randint(vocab_size, (24,)).tolist()
    ids[:2] = [vocab_size - 1, 0]
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
    assert flat(model(ids)) == close(logits, 1e-9)


# --- those that do not ---


def one_missing(tensors):
    del tensors["transformer.h.1.ln_1.bias"]


def no_table(tensors):
    del tensors[WTE]


def pickled(directory):
    torch.save(load_file(directory / MODEL), directory / "pytorch_model.bin")
    (directory / MODEL).unlink()


REFUSED = {
    "relu": (configured(activation_function="relu"), "activation_function relu"),
    "gelu": (configured(activation_function="gelu"), "activation_function gelu"),
    "eps": (configured(layer_norm_epsilon=1e-6), "layer_norm_epsilon 1e-06"),
    "weights of attention": (
        configured(scale_attn_weights=False),
        "scale_attn_weights",
    ),
    "layers": (
        configured(scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx",
    ),
    "not tied, no head": (configured(tie_word_embeddings=False), "tie_word_embeddings"),
    "one missing": (stored(one_missing), "h.1.ln_1.bias missing"),
    "neither": (stored(no_table), "wte.weight missing"),
    "pickled": (pickled, "pytorch_model.bin python save_pretrained"),
}


def message_of(directory):
    """What load_model says, one line for a terminal that names the directory."""
    with pytest.raises(ValueError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    assert str(directory) in message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_ours_is_refused_with_the_reason(good, name):
    edit, words = REFUSED[name]
    edit(good)
    message = message_of(good)
    for word in words.split():
        assert word in message


def test_the_message_ends_with_a_command_that_converts_a_pickle(good):
    expected = load_model(good).params
    pickled(good)
    message = message_of(good)
    options = re.search("python3? (-c .*)$", message)[1]
    done = subprocess.run(f'"{sys.executable}" {options}', shell=True, cwd=good)
    assert done.returncode == 0
    assert flat(load_model(good).params) == close(flat(expected), 1e-6)


def test_a_shard_that_is_missing_is_named(good):
    sharded(2)(good)
    shard = good / "model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(OSError) as caught:
        load_model(good)
    assert caught.value.filename == str(shard)


# --- ours, saved where another one was ---

LEFT = {
    "generation_config.json": {"eos_token_id": 7, "do_sample": True, "max_length": 5},
    "special_tokens_map.json": {"pad_token": "[PAD]", "eos_token": "low"},
    "added_tokens.json": {"[PAD]": 275},
    "vocab.json": {"a": 0},
    INDEX: {"metadata": {}, "weight_map": {"wte.weight": "gone.safetensors"}},
    "pytorch_model.bin": {},
}


@pytest.mark.parametrize("name", LEFT)
def test_what_another_model_left_does_not_change_ours_there(good, name):
    ours = load_model(good), load_tokenizer(good)
    for path in good.iterdir():
        path.unlink()
    (good / name).write_text(json.dumps(LEFT[name]))
    save_model(ours[0], good, ours[1])
    theirs = AutoModelForCausalLM.from_pretrained(good, dtype=torch.float64).eval()
    there = AutoTokenizer.from_pretrained(good)
    assert len(there) == 275 and there.eos_token == END and there.pad_token is None
    assert theirs.generation_config.eos_token_id == ours[1].end
    assert not theirs.generation_config.do_sample
    for text in TEXTS:
        assert there(text)["input_ids"] == ours[1].encode(text)
    ids = [3, 1, 2]
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
    assert flat(ours[0](ids)) == close(logits, 1e-9)
