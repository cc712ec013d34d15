"""Chapters 14 and 15 and the tokenizers library: same merges, ids, text and files.

Characters that this Python does not know yet are left out. The library's Unicode may be
newer, and may call letters what are none here.
"""

import json
import os
import random
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt import (
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    load_documents,
    load_tokenizer,
    save_model,
)

tokenizers = pytest.importorskip("tokenizers")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
END = "<|endoftext|>"
LANGUAGES = [
    "The quick brown fox isn't lazy; it's 25½ years old, and they've seen we'll jump.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Dès Noël, où un zéphyr haï me vêt de glaçons würmiens, "
    "je dîne d’exquis rôtis de bœuf.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを",
    "天地玄黃　宇宙洪荒",
    "키스의 고유조건은 입술끼리",
    "नहीं नजर किसी की बुरी नहीं ४२",
    "דג סקרן שט בים",
    "صِف خَلقَ خَودِ ٣٤",
    "👩\u200d👩\u200d👧 🙂🙂 ❤\ufe0f",
    "e\u0301 n\u0303  \t\n\r\n x_1 __init__ \x1c\x1f \xa0\u3000\u2028\u200b\ufeff.",
]
TEXTS = st.text().map(lambda text: "".join(filter(known, text)))


def known(character):
    return unicodedata.category(character) not in ("Cn", "Cs")


def rich_pool():
    """Some characters of every category, and those that the pattern is about."""
    rng = random.Random(0)
    pool = {}
    for character in filter(known, map(chr, range(sys.maxunicode + 1))):
        pool.setdefault(unicodedata.category(character), []).append(character)
    some = [c for part in pool.values() for c in rng.sample(part, min(len(part), 20))]
    return [
        *some,
        *"aZ09 _'½Ⅻ\t\n\r\x1c\x85\xa0" * 5,
        *["'s", "'re", " the", "  ", END, "<|"] * 10,
    ]


POOL = rich_pool()
RICH = st.lists(st.sampled_from(POOL), max_size=30).map("".join)


def library(documents, vocab_size, end=True):
    """What the library learns, with <|endoftext|> added as the last token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            special_tokens=[],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if end:
        tokenizer.add_special_tokens([END])
    return tokenizer


def merges(theirs):
    return [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]


def ids(theirs, text):
    return theirs.encode(text).ids


def text(theirs, ids):
    return theirs.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def pair():
    """Our tokenizer and the library's, trained on the same texts."""
    return BPETokenizer.train(LANGUAGES * 2, 600), library(LANGUAGES * 2, 600)


def saved(directory, tokenizer):
    """A tokenizer as a model's directory has it, opened by the library."""
    config = Config(tokenizer.vocab_size, 2, n_layer=1, n_head=1, n_embd=1)
    save_model(GPT(config), directory, tokenizer)
    return tokenizers.Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))


# --- training -------------------------------------------------------------------------

# Ours does not learn from <|endoftext|> in a text. The library would, as used here.


def whole(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return [file.read().replace(END, "")]


def lines(name):
    return [line.replace(END, "") for line in load_documents(os.path.join(ROOT, name))]


@pytest.mark.parametrize(
    "documents, size",
    [
        (LANGUAGES, 400),
        (LANGUAGES * 3, 700),
        (LANGUAGES, 5000),
        (whole("README.md"), 600),
        (lines("README.md"), 900),
        (whole("microgpt.py"), 1500),
        (lines("microgpt.py"), 400),
        (lines("data/names.txt"), 500),
        ([], 300),
        ([""], 300),
        (["a"], 300),
    ],
    ids=[
        "languages",
        "many",
        "all",
        "README",
        "its lines",
        "code",
        "its lines",
        "names",
        "none",
        "empty",
        "a",
    ],
)
def test_the_same_texts_give_the_same_tokens(documents, size):
    ours = BPETokenizer.train(documents, size)
    theirs = library(documents, size)
    assert ours.merges == merges(theirs)
    assert ours.vocab == theirs.get_vocab()


@pytest.mark.parametrize(
    "alphabet", ["ab", "ab ", "ab c", "aé ", "a \n", "a1.", "abcdefgh"]
)
def test_texts_of_few_characters_give_the_same_tokens(alphabet):
    rng = random.Random(alphabet)
    for _ in range(60):
        documents = [
            "".join(
                rng.choice(alphabet) * rng.choice([1, 1, 1, 2, 5])
                for _ in range(rng.randrange(30))
            )
            for _ in range(rng.randrange(12))
        ]
        documents *= rng.choice([1, 2])
        size = rng.choice([257, 260, 270, 300, 2000])
        ours = BPETokenizer.train(documents, size)
        theirs = library(documents, size)
        assert (documents, ours.merges) == (documents, merges(theirs))
        assert ours.vocab == theirs.get_vocab()
        other = "".join(rng.choices(alphabet, k=50))
        for part in [*documents, other]:
            assert ours.encode(part) == ids(theirs, part)


# --- ids and text ---------------------------------------------------------------------


def test_every_character_is_of_the_same_kind():
    # A character's first byte is merged with what stands before it, if they are in one
    # piece.
    before = "a1.' \n"
    plain = library([], 257, end=False).get_vocab()
    bytewise = [token for token, _ in sorted(plain.items(), key=lambda item: item[1])]
    pairs = [
        (bytewise[i], token)
        for i in BPETokenizer.train([], 257).encode(before)
        for token in bytewise
    ]
    vocab = {token: i for i, token in enumerate([*bytewise, *map("".join, pairs), END])}
    ours = BPETokenizer(vocab, pairs)
    theirs = library([], 257)
    theirs.model = tokenizers.models.BPE(vocab, pairs)
    # Of a long row of like characters, such as the ideographs, every 16th will do.
    kinds = [
        None,
        *map(unicodedata.category, map(chr, range(sys.maxunicode + 1))),
        None,
    ]
    for start in range(0, sys.maxunicode + 1, 256):
        some = [
            chr(i)
            for i in range(start, start + 256)
            if i % 16 == 0
            or chr(i).isnumeric()
            or not kinds[i] == kinds[i + 1] == kinds[i + 2]
        ]
        sample = "".join(f"a{c}1{c}.{c}'{c} {c}\n{c}s" for c in filter(known, some))
        assert ours.encode(sample) == ids(theirs, sample), hex(start)


@given(TEXTS | RICH)
def test_the_same_text_has_the_same_ids_and_they_the_same_text(pair, sample):
    ours, theirs = pair
    numbers = ours.encode(sample)
    assert numbers == ids(theirs, sample)
    assert ours.decode(numbers) == text(theirs, numbers) == sample


@pytest.mark.parametrize(
    "sample",
    [
        END,
        END * 3,
        f"a{END}",
        f"{END}a",
        f" {END} ",
        f"a  {END}  b",
        f"\n{END}\n{END}",
        f"<{END}>",
        END[1:] + END[:-1],
        END + END[:-1],
        "<|endoftext",
        END.upper(),
        f"don{END}'t",
        f"e{END}\u0301",
    ],
)
def test_the_special_token_is_found_in_the_same_places(pair, sample):
    ours, theirs = pair
    assert ours.encode(sample) == ids(theirs, sample)


@pytest.mark.parametrize("sample", [*LANGUAGES, *lines("README.md")[:40]])
def test_written_languages_have_the_same_ids(pair, sample):
    assert pair[0].encode(sample) == ids(pair[1], sample)


def test_long_texts_have_the_same_ids(pair):
    rng = random.Random(2)
    for sample in [
        "".join(rng.choices(POOL, k=20000)),
        "".join(rng.choices("acgt", k=3000)),
        " " * 3000,
        "a" * 3000,
        "é" * 3000,
        *whole("microgpt.py"),
    ]:
        assert pair[0].encode(sample) == ids(pair[1], sample)


@given(st.lists(st.integers(0, 599) | st.integers(94, 187), max_size=40))
def test_any_ids_have_the_same_text(pair, numbers):
    assert pair[0].vocab_size == 600
    assert pair[0].decode(numbers) == text(pair[1], numbers)


# --- files ----------------------------------------------------------------------------

SAMPLES = [
    "",
    " ",
    "low",
    " two  spaces ",
    "naïve café",
    "e\u0301",
    "🙂 👩\u200d👩",
    "don't 12½",
    f"{END}low{END}{END} a",
    "\n\t low\r\n",
    "<|endo",
    "天地",
]


@pytest.mark.parametrize(
    "documents, size",
    [(LANGUAGES, 500), (["low lower"], 260), ([], 257)],
    ids=["languages", "low", "none"],
)
def test_the_library_opens_what_is_saved_with_subword_tokens(tmp_path, documents, size):
    ours = BPETokenizer.train(documents, size)
    theirs = saved(tmp_path, ours)
    assert theirs.get_vocab() == ours.vocab and merges(theirs) == ours.merges
    for sample in [*SAMPLES, *documents]:
        numbers = ours.encode(sample)
        assert ids(theirs, sample) == numbers and text(theirs, numbers) == sample
    assert theirs.decode([ours.end, *ours.encode("low"), ours.end]) == "low"


@given(sample=TEXTS | RICH)
def test_what_is_saved_gives_the_same_ids(opened, sample):
    ours, theirs = opened
    assert ids(theirs, sample) == ours.encode(sample)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    ours = BPETokenizer.train(LANGUAGES * 2, 500)
    return ours, saved(tmp_path_factory.mktemp("saved"), ours)


@pytest.mark.parametrize(
    "documents",
    [
        SAMPLES,
        ["ada", "bob"],
        LANGUAGES,
        ["a b  c"],
        ["Ġ Ċ"],
        ["<|>"],
        ['a"b\\c\0\x1c\u2028'],
        [""],
    ],
    ids=[
        "samples",
        "names",
        "languages",
        "spaces",
        "bytes",
        "signs",
        "escapes",
        "none",
    ],
)
def test_the_library_opens_what_is_saved_with_characters(tmp_path, documents):
    ours = CharTokenizer(documents)
    theirs = saved(tmp_path, ours)
    assert theirs.get_vocab() == ours.vocab
    for sample in [*documents, END, END.join(documents), END * 2 + documents[0]]:
        numbers = ours.encode(sample)
        assert ids(theirs, sample) == numbers and text(theirs, numbers) == sample


def rewrite(path, change):
    contents = json.loads(path.read_text(encoding="utf-8"))
    change(contents)
    path.write_text(json.dumps(contents), encoding="utf-8")


@pytest.mark.parametrize("style", ["pairs", "strings"])
def test_what_the_library_saves_is_read(tmp_path, pair, style):
    path = tmp_path / "tokenizer.json"
    theirs = pair[1]
    theirs.save(str(path))
    rewrite(
        path,
        lambda contents: contents["model"].update(
            merges=[
                list(two) if style == "pairs" else " ".join(two)
                for two in merges(theirs)
            ]
        ),
    )
    ours = load_tokenizer(tmp_path)
    assert type(ours) is BPETokenizer
    assert (ours.vocab, ours.merges, ours.end) == (
        theirs.get_vocab(),
        merges(theirs),
        599,
    )
    for sample in [*SAMPLES, *LANGUAGES]:
        assert ours.encode(sample) == ids(theirs, sample)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_a_tokenizer_whose_special_token_comes_first_is_read(tmp_path, files):
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(
        LANGUAGES * 2, 500, special_tokens=[END], show_progress=False
    )
    if files == "tokenizer.json":
        theirs.save(str(tmp_path / files))
    else:
        theirs.save_model(str(tmp_path))
        assert sorted(os.listdir(tmp_path)) == ["merges.txt", "vocab.json"]
    ours = load_tokenizer(tmp_path)
    assert (
        type(ours) is BPETokenizer
        and ours.end == 0
        and ours.vocab == theirs.get_vocab()
    )
    for sample in [*SAMPLES, *LANGUAGES]:
        numbers = ours.encode(sample)
        assert numbers == ids(theirs, sample) and ours.decode(numbers) == sample


def test_a_tokenizer_without_the_special_token_is_refused(tmp_path):
    library(LANGUAGES, 400, end=False).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="endoftext"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_with_one_more_special_token_is_refused(tmp_path, pair):
    theirs = tokenizers.Tokenizer.from_str(pair[1].to_str())
    theirs.add_special_tokens(["<pad>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="special token.*<pad>"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        ("pre_tokenizer", "use_regex", False),
        ("pre_tokenizer", "add_prefix_space", True),
        ("model", "ignore_merges", True),
        ("added_tokens", "lstrip", True),
        ("added_tokens", "rstrip", True),
        ("added_tokens", "single_word", True),
    ],
    ids=lambda setting: setting[1],
)
def test_a_tokenizer_with_a_setting_that_is_not_known_here_is_refused(
    tmp_path, pair, setting
):
    where, name, value = setting
    path = tmp_path / "tokenizer.json"
    pair[1].save(str(path))

    def change(contents):
        part = contents[where][0] if where == "added_tokens" else contents[where]
        part[name] = value
        if name == "ignore_merges":  # it matters to tokens that no merge makes
            contents["model"]["merges"].clear()

    rewrite(path, change)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    sample = "".join([f"x {END} don't{END}y ", *LANGUAGES, *whole("microgpt.py")])
    try:
        ours = load_tokenizer(tmp_path)
    except ValueError:
        assert ids(theirs, sample) != ids(pair[1], sample)
    else:
        assert ours.encode(sample) == ids(theirs, sample)
