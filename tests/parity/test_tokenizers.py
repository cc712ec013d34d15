"""Chapters 14 and 15 and the tokenizers library: same merges, ids, text and files.

Characters that this Python does not know yet are left out. The library's Unicode may be
newer, and may call letters what are none here.
"""

import base64
import json
import random
import sys
import unicodedata

import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from microgpt import (
    END,
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    load_tokenizer,
    read_documents,
    save_model,
)

tokenizers = pytest.importorskip("tokenizers")

LANGUAGES = """
The quick brown fox isn't lazy; it's 25½ years old, and they've seen we'll jump.
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.
Dès Noël, où un zéphyr haï me vêt de glaçons würmiens, je dîne d’exquis rôtis de bœuf.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.
いろはにほへと ちりぬるを
天地玄黃　宇宙洪荒
키스의 고유조건은 입술끼리
नहीं नजर किसी की बुरी नहीं ४२
דג סקרן שט בים
صِف خَلقَ خَودِ ٣٤
""".strip().split("\n")
LANGUAGES += [
    "👩\u200d👩\u200d👧 🙂🙂 ❤\ufe0f",
    "e\u0301 n\u0303  \t\n\r\n x_1 __init__ \x1c\x1f \xa0\u3000\u2028\u200b\ufeff.",
]
SAMPLES = [*LANGUAGES, "", " ", " two  spaces ", "\n\t low\r\n"]
SAMPLES += [END, END * 3, f"a{END}", f"{END}a", f" {END} ", f"a  {END}  b", f"<{END}>"]
SAMPLES += [f"\n{END}\n{END}", END[1:] + END[:-1], END + END[:-1], END.upper()]
SAMPLES += [f"don{END}'t", f"e{END}\u0301"]


def known(character):
    return unicodedata.category(character) not in ("Cn", "Cs")


def rich_pool():
    """Some characters of every category, and those that the pattern is about."""
    rng = random.Random(0)
    kinds = {}
    for character in filter(known, map(chr, range(sys.maxunicode + 1))):
        kinds.setdefault(unicodedata.category(character), []).append(character)
    pool = list("aZ09 _'½Ⅻ\t\n\r\x1c\x85\xa0" * 5)
    pool += ["'s", "'re", " the", "  ", END, "<|"] * 10
    for part in kinds.values():
        pool += rng.sample(part, min(len(part), 20))
    return pool


POOL = rich_pool()
TEXTS = st.text().map(lambda text: "".join(filter(known, text)))
TEXTS |= st.lists(st.sampled_from(POOL), max_size=30).map("".join)
CODE = (ROOT / "microgpt.py").read_text(encoding="utf-8").replace(END, "")
NAMES = read_documents(ROOT / "data" / "names.txt")


def library(documents, vocab_size, end=True):
    """What the library learns, with <|endoftext|> added as the last token."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=byte_level.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    if end:
        tokenizer.add_special_tokens([END])
    return tokenizer


def merges(theirs):
    return [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]


def assert_same_tokens(ours, theirs):
    assert ours.vocab == theirs.get_vocab()
    assert ours.merges == merges(theirs)


def assert_same_ids(ours, theirs, samples):
    for text in samples:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text


def opened(directory, ours):
    """A tokenizer, as it is saved with a model, in the library."""
    config = Config(ours.vocab_size, 2, n_layer=1, n_head=1, n_embd=1)
    save_model(GPT(config), directory, ours)
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module", params=["trained", "saved"])
def pair(request, tmp_path_factory):
    """Our tokenizer, and the library's, trained on the same or opened from our file."""
    ours = BPETokenizer.train(LANGUAGES * 2, 600)
    if request.param == "trained":
        return ours, library(LANGUAGES * 2, 600)
    return ours, opened(tmp_path_factory.mktemp("saved"), ours)


RNG = random.Random(3)
IDEOGRAPHS = [chr(i) for i in range(0x4E00, 0x4E00 + 1000)]
RUNS = {  # without white space
    "dna": "".join(RNG.choices("ACGT", k=20000)),
    "ideographs": "".join(RNG.choices(IDEOGRAPHS, range(1000, 0, -1), k=6000)),
    "base64": base64.b64encode(RNG.randbytes(20000)).decode(),
    "aaa": "a" * 20001,
    "abab": "ab" * 10000,
}
TRAINING = {
    **{name: ([run], 1000) for name, run in RUNS.items()},
    "languages": (LANGUAGES, 400),
    "all": (LANGUAGES, 5000),
    "code": ([CODE], 1500),
    "lines": (CODE.splitlines(), 400),
    "names": (NAMES, 500),
    "none": ([], 300),
    "empty": ([""], 300),
    "a": (["a"], 300),
}


@pytest.mark.parametrize("documents, size", TRAINING.values(), ids=TRAINING)
def test_the_same_texts_give_the_same_tokens(documents, size):
    ours = BPETokenizer.train(documents, size)
    theirs = library(documents, size)
    assert_same_tokens(ours, theirs)
    assert_same_ids(ours, theirs, ["".join(documents), *RUNS.values()])


@pytest.mark.parametrize("alphabet", "ab|ab |ab c|aé |a \n|a1.|abcdefgh".split("|"))
@pytest.mark.parametrize("size", [257, 260, 270, 2000])
def test_texts_of_few_characters_give_the_same_tokens(alphabet, size):
    rng = random.Random(alphabet)
    for n in range(12):
        documents = []
        for _ in range(n):
            words = rng.choices(alphabet, k=rng.randrange(30))
            documents.append("".join(c * rng.choice([1, 1, 1, 2, 5]) for c in words))
        ours = BPETokenizer.train(documents, size)
        theirs = library(documents, size)
        assert_same_tokens(ours, theirs)
        assert_same_ids(
            ours, theirs, [*documents, "".join(rng.choices(alphabet, k=50))]
        )


def test_every_character_is_of_the_same_kind():
    """A character's first byte is merged with what comes before, if they are a piece.

    Of a long row of like characters, such as the ideographs, every 16th will do.
    """
    plain = library([], 257, end=False).get_vocab()
    bytewise = sorted(plain, key=plain.get)
    pairs = []
    for i in BPETokenizer.train([], 257).encode("a1.' \n"):
        pairs += [(bytewise[i], token) for token in bytewise]
    tokens = [*bytewise, *map("".join, pairs), END]
    vocab = {token: i for i, token in enumerate(tokens)}
    ours = BPETokenizer(vocab, pairs)
    theirs = library([], 257)
    theirs.model = tokenizers.models.BPE(vocab, pairs)
    characters = [chr(i) for i in range(sys.maxunicode + 1)]
    kinds = [None, *map(unicodedata.category, characters), None]
    for start in range(0, sys.maxunicode + 1, 256):
        text = ""
        for i in range(start, start + 256):
            c = characters[i]
            inside = kinds[i] == kinds[i + 1] == kinds[i + 2] and not c.isnumeric()
            if known(c) and not (inside and i % 16):
                text += f"a{c}1{c}.{c}'{c} {c}\n{c}s"
        assert ours.encode(text) == theirs.encode(text).ids, hex(start)


@given(TEXTS)
def test_the_same_text_has_the_same_ids_and_they_the_same_text(pair, text):
    assert_same_ids(*pair, [text])
    ids = pair[0].encode(text)
    assert pair[1].decode(ids, skip_special_tokens=False) == text


@given(st.lists(st.integers(0, 599) | st.integers(94, 187), max_size=40))
def test_any_ids_have_the_same_text(pair, ids):
    expected = pair[1].decode(ids, skip_special_tokens=False)
    assert pair[0].decode(ids) == expected


def test_given_texts_have_the_same_ids(pair):
    rng = random.Random(2)
    long = ["".join(rng.choices(POOL, k=20000)), "".join(rng.choices("acgt", k=3000))]
    long += [c * 3000 for c in " aé"]
    ours, theirs = pair
    assert_same_tokens(ours, theirs)
    assert_same_ids(ours, theirs, [*SAMPLES, *long, CODE])
    assert theirs.decode([ours.end, *ours.encode("low"), ours.end]) == "low"


TEXT_OF_CHARACTERS = [["ada", "bob"], ["Ġ Ċ"], ["<|>"], ['a"b\\c\0\x1c\u2028'], [""]]


@pytest.mark.parametrize("documents", [SAMPLES, *TEXT_OF_CHARACTERS])
def test_the_library_opens_what_is_saved_with_characters(tmp_path, documents):
    ours = CharTokenizer(documents)
    theirs = opened(tmp_path, ours)
    assert theirs.get_vocab() == ours.vocab
    assert_same_ids(ours, theirs, [*documents, END * 2, END.join(documents)])


def end_first():
    """A tokenizer of the library whose first token is <|endoftext|>."""
    theirs = tokenizers.ByteLevelBPETokenizer()
    options = {"special_tokens": [END], "show_progress": False}
    theirs.train_from_iterator(LANGUAGES * 2, 500, **options)
    return theirs


def assert_reads(directory, theirs):
    ours = load_tokenizer(directory)
    assert type(ours) is BPETokenizer and ours.end == theirs.token_to_id(END)
    assert_same_tokens(ours, theirs)
    assert_same_ids(ours, theirs, SAMPLES)


@pytest.mark.parametrize("make", [end_first, lambda: library(LANGUAGES, 500)])
@pytest.mark.parametrize("join", [list, " ".join], ids=["pairs", "strings"])
def test_what_the_library_saves_is_read(tmp_path, make, join):
    theirs = make()
    contents = json.loads(theirs.to_str())
    contents["model"]["merges"] = [join(pair) for pair in merges(theirs)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    assert_reads(tmp_path, theirs)


def test_vocab_json_and_merges_txt_are_read(tmp_path):
    theirs = end_first()
    theirs.save_model(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    assert_reads(tmp_path, theirs)


CHANGES = {
    "use_regex": lambda x: x["pre_tokenizer"].update(use_regex=False),
    "add_prefix_space": lambda x: x["pre_tokenizer"].update(add_prefix_space=True),
    "ignore_merges": lambda x: x["model"].update(ignore_merges=True, merges=[]),
    "lstrip": lambda x: x["added_tokens"][0].update(lstrip=True),
    "rstrip": lambda x: x["added_tokens"][0].update(rstrip=True),
    "single_word": lambda x: x["added_tokens"][0].update(single_word=True),
    "no end": lambda x: x["added_tokens"].clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tokenizer_that_would_give_other_ids_is_refused(tmp_path, change):
    right = library(LANGUAGES, 400)
    contents = json.loads(right.to_str())
    change(contents)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(contents))
    text = "".join([f"x {END} don't{END}y ", *LANGUAGES, CODE])
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert theirs.encode(text).ids != right.encode(text).ids
    with pytest.raises(ValueError):
        load_tokenizer(tmp_path)
