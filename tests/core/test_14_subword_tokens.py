"""Chapter 14: byte-pair encoding, against answers by hand and naive programs."""

import math
import random
import re
import sys
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import microgpt
from microgpt import (
    GPT,
    BPETokenizer,
    Config,
    TrainConfig,
    Trainer,
    cut_windows,
    generate,
    learn_merges,
)

END = "<|endoftext|>"
EVERYTHING = 10**4  # a vocab_size that leaves nothing to merge in the short texts here
# GPT-2's ids of the bytes: those that are a visible character first, then the others.
ORDER = [
    *range(33, 127),
    *range(161, 173),
    *range(174, 256),
    *range(33),
    *range(127, 161),
    173,
]
TINY = st.text("ab c", max_size=30)
RUNS = st.lists(st.tuples(st.sampled_from("ab c"), st.integers(1, 9)), max_size=6).map(
    lambda runs: "".join(character * n for character, n in runs)
)
DOCUMENTS = st.lists(TINY | RUNS, max_size=4).flatmap(
    lambda documents: (
        st.lists(st.sampled_from(documents), max_size=12) if documents else st.just([])
    )
)  # the same few texts, some of them many times


# --- helpers: the same things, naively, for texts of "abc" and spaces -----------------


def naive_pieces(text):
    """GPT-2's pattern, for letters and spaces. A space is written as in files."""
    pieces = re.findall(r" ?[a-z]+|\s+(?!\S)|\s+", text)
    return [list(piece.replace(" ", "Ġ")) for piece in pieces]


def naively_merged(tokens, pair):
    """Every place where a pair stands, from the left, merged."""
    merged = []
    i = 0
    while i < len(tokens):
        width = 2 if tuple(tokens[i : i + 2]) == pair else 1
        merged.append("".join(tokens[i : i + width]))
        i += width
    return merged


def naive_training(documents, n_tokens):
    """Merges, and at most n_tokens new tokens in order. It recounts all each time."""
    pieces = [piece for document in documents for piece in naive_pieces(document)]
    alphabet = sorted("abcĠ")
    merges = []
    known = list(alphabet)  # in the order of their ids
    while len(known) < len(alphabet) + n_tokens:
        counts = Counter(pair for piece in pieces for pair in zip(piece, piece[1:]))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], *map(known.index, pair)))
        merges.append(pair)
        if "".join(pair) not in known:
            known.append("".join(pair))
        pieces = [naively_merged(piece, pair) for piece in pieces]
    return merges, known[len(alphabet) :]


def naive_encoding(tokens, merges):
    """Merge the pair that training merged first, where it stands leftmost; repeat."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while True:
        pairs = [ranks.get(pair, math.inf) for pair in zip(tokens, tokens[1:])]
        if min(pairs, default=math.inf) == math.inf:
            return tokens
        i = pairs.index(min(pairs))
        tokens = [*tokens[:i], tokens[i] + tokens[i + 1], *tokens[i + 2 :]]


def pieces(text):
    """The pieces that no token crosses: tokens, once everything in them is merged."""
    tokenizer = BPETokenizer.train([text], EVERYTHING)
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def lines_run(function, *args):
    """How many lines of microgpt.py a call executes: its work, whatever the machine."""
    BPETokenizer.train(["a"], 257)  # now the pattern is made, which happens once
    n = 0
    before = sys.gettrace()

    def trace(frame, event, arg):
        nonlocal n
        n += event == "line"
        return trace if frame.f_code.co_filename == microgpt.__file__ else None

    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return n


# --- training -------------------------------------------------------------------------

# ug is in hug, pug and hugs: 20 times; un is in pun and bun: 16 times. Then hug is
# there 15 times, pun 12 times. Of the rest, p ug and hug s are there 5 times, and p has
# a smaller id than hug. b un comes last.
WORDS = ["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5
MERGES = [
    ("u", "g"),
    ("u", "n"),
    ("h", "ug"),
    ("p", "un"),
    ("p", "ug"),
    ("hug", "s"),
    ("b", "un"),
]


def test_a_training_worked_out_by_hand():
    tokenizer = BPETokenizer.train(WORDS, 262)
    assert tokenizer.merges == MERGES[:5]
    assert list(tokenizer.vocab)[256:] == ["ug", "un", "hug", "pun", "pug", END]
    assert list(tokenizer.vocab.values()) == list(range(262))
    assert tokenizer.vocab_size == 262 and tokenizer.end == 261
    assert tokenizer.encode("bughugs pug") == [65, 256, 258, 82, 220, 260]


def test_of_equally_frequent_pairs_the_smallest_ids_are_merged_first():
    assert BPETokenizer.train(["cd", "ab", "ad", "cb"], EVERYTHING).merges == [
        ("a", "b"),
        ("a", "d"),
        ("c", "b"),
        ("c", "d"),
    ]
    # By then "ca" is a token, with an id after b's.
    assert BPETokenizer.train(["ca", "ca", "cax", "bx"], EVERYTHING).merges == [
        ("c", "a"),
        ("b", "x"),
        ("ca", "x"),
    ]


@pytest.mark.parametrize(
    "n, merges",
    [
        (2, [("a", "a")]),
        (3, [("a", "a"), ("aa", "a")]),
        (
            5,
            [("a", "a"), ("aa", "a"), ("aa", "aaa")],
        ),  # aa aa a: a tie, and a has a smaller id
        (8, [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")]),
    ],
)
def test_a_run_is_merged_from_the_left(n, merges):
    assert BPETokenizer.train(["a" * n], EVERYTHING).merges == merges


@given(DOCUMENTS, st.integers(0, 40))
def test_training_does_what_recounting_everything_does(documents, n_tokens):
    tokenizer = BPETokenizer.train(documents, 257 + n_tokens)
    merges, new = naive_training(documents, n_tokens)
    assert tokenizer.merges == merges
    assert list(tokenizer.vocab)[256:] == [*new, END]


def test_training_does_what_recounting_everything_does_on_longer_texts():
    rng = random.Random(1)
    for _ in range(5):
        documents = [
            "".join(rng.choices("abc ", (5, 4, 3, 2), k=200)) for _ in range(5)
        ]
        assert (
            BPETokenizer.train(documents, EVERYTHING).merges
            == naive_training(documents, EVERYTHING)[0]
        )


@given(DOCUMENTS | st.lists(st.text(), max_size=4), st.integers(0, 40))
def test_the_plain_algorithm_learns_the_same_merges(documents, n_merges):
    words = Counter()
    for document in documents:
        for piece in microgpt.piece_pattern().findall(document):
            words["".join(microgpt.BYTES[b] for b in piece.encode())] += 1
    merges = learn_merges(words, sorted(microgpt.BYTES), n_merges)
    assert merges == BPETokenizer.train(documents, 257 + n_merges).merges


def test_the_plain_algorithm_weighs_words_and_knows_no_border_but_theirs():
    words = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    assert learn_merges(words, sorted("bghnpsu"), 99) == MERGES
    assert learn_merges(words, sorted("bghnpsu"), 3) == MERGES[:3]
    assert learn_merges({"a b": 2, "b": 9}, " ab", 9) == [(" ", "b"), ("a", " b")]
    assert learn_merges({}, "ab", 9) == learn_merges({"a": 5}, "ab", 9) == []


def test_in_the_plain_algorithm_older_tokens_go_first_among_equals():
    words = {"cd": 1, "ab": 1, "ad": 1, "cb": 1}
    assert learn_merges(words, "abcd", 2) == [("a", "b"), ("a", "d")]
    assert learn_merges(words, "dcba", 2) == [("c", "d"), ("c", "b")]
    made = learn_merges({"ca": 2, "cax": 1, "bx": 1}, "abcx", 3)
    assert made == [("c", "a"), ("b", "x"), ("ca", "x")]


def test_training_stops_when_nothing_is_left_to_merge():
    tokenizer = BPETokenizer.train(WORDS, 300)
    assert tokenizer.merges == MERGES
    assert tokenizer.vocab_size == 264 and tokenizer.end == 263


@pytest.mark.parametrize(
    "documents", [[], [""], ["", ""], ["a"], ["a", " ", "b"], [END, END * 2]]
)
def test_without_pairs_there_are_the_bytes_and_the_end_alone(documents):
    tokenizer = BPETokenizer.train(documents, 300)
    assert (
        tokenizer.merges == [] and tokenizer.vocab_size == 257 and tokenizer.end == 256
    )
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("one é")) == "one é"


def test_training_does_not_cross_the_special_token():
    apart = BPETokenizer.train(["ab", " cd"] * 3, EVERYTHING)
    together = BPETokenizer.train([f"ab{END} cd"] * 3, EVERYTHING)
    assert together.vocab == apart.vocab and together.merges == apart.merges != []


def test_documents_may_be_an_iterator():
    assert BPETokenizer.train(iter(WORDS), 262).merges == MERGES[:5]


@pytest.mark.parametrize("size", [256, 1, 0, -5, 300.0, None, "300", True])
def test_a_vocabulary_that_cannot_be_is_an_error_that_names_it(size):
    with pytest.raises(ValueError, match="vocab_size"):
        BPETokenizer.train(["ab ab"], size)


def test_the_smallest_vocabulary_is_the_bytes_and_the_end():
    assert BPETokenizer.train(["ab ab"], 257).vocab_size == 257
    assert BPETokenizer.train(["ab ab"], 258).merges == [("a", "b")]


# --- bytes and pieces -----------------------------------------------------------------


def test_the_bytes_have_gpt2s_ids():
    vocab = BPETokenizer.train([], 257).vocab
    some = {
        "!": 0,
        "A": 32,
        "a": 64,
        "~": 93,
        "¡": 94,
        "¬": 105,
        "®": 106,
        "ÿ": 187,
        "Ā": 188,
        "ĉ": 197,
        "Ċ": 198,
        "č": 201,
        "Ġ": 220,
        "ġ": 221,
        "Ń": 255,
        END: 256,
    }
    assert some.items() <= vocab.items()
    assert len(vocab) == 257 and set(vocab.values()) == set(range(257))


@given(st.text())
def test_without_merges_ids_are_those_of_the_bytes(text):
    assume(END not in text)
    tokenizer = BPETokenizer.train([], 257)
    assert tokenizer.encode(text) == list(map(ORDER.index, text.encode()))


@pytest.mark.parametrize(
    "text",
    [
        "low| lower| lowest",
        "I|'m| he|'ll| we|'ve| they|'re| it|'s| don|'t| I|'d",
        "I|'|M| IT|'|S",
        "'|em| '|tis",
        "'t|is",
        "'''|s",
        "a|'s|ay",
        "'re|d",
        "a|.|b|,| c|...| d|?!",
        "(|a|)| (|b|)",
        "x|=|1|+| y|;",
        "https|://|a|.|b|/",
        "a| | b",
        "a|  | b",
        " | a",
        "a|    ",
        "   ",
        "a",
        " a",
        " ",
        "a|\t|b",
        "a|\t|\t|b",
        "a|\t| b",
        "a| |\t|b",
        "\t| a",
        "a|\t\t",
        "a|\n|b",
        "a|\n|\n|b",
        "a| |\n|b",
        "a|\n| b",
        "a|\r|\n|b",
        "a| \r\n\t ",
        "\n| 1",
        "a|\xa0|b",
        "a| |\xa0|b",
        "a|\xa0| b",
        "a|\u3000|b",
        "a|\x85|b",
        "a|\u2028|b",
        "a|\x0b|\x0c|.",
        "x|1|y|22|z",
        "a| 2024| b|3",
        "1|,|000|.|5",
        " 1| 2",
        "٣४|a",
        "½",
        "1½Ⅻ²|a",
        "a|½",
        " ½| Ⅻ",
        "½|.",
        "①②",
        "ⓐ|a",
        "〇",
        "a|_|b",
        "__|init|__",
        " _|a| _|1",
        "_.|a",
        "a|._",
        "a|\x1c|b",
        "a| \x1c.|b",
        "\x1c\x1d\x1e\x1f|1",
        "\x1c| ",
        "_\x1c",
        " \x1f| |\t|\x1f",
        "a|\0|b",
        "a|\x7f|b",
        "a|\xad|b",
        "a|\u200b|b",
        "a|\u200b| b",
        "a|\u180e|b",
        "東京| です|。",
        "三四|5|六",
        "日本語English| 한국어",
        "ひらがな|１２|カタカナー",
        "hi|🙂🙂| ok",
        "a| 🙂| b",
        "👩\u200d👩\u200d👧",
        "a|❤\ufe0f",
        "e|\u0301|a",
        "naïve| café",
        "न|ि|न",
        " e|\u0301| a",
        "ªºʰ|·|l",
        "\U0010ffff\ue000|a",
        "𝐀|𝟙",
    ],
)
def test_text_is_cut_into_gpt2s_pieces(text):
    assert pieces(text.replace("|", "")) == text.split("|")


def test_a_bar_is_a_piece_too():
    assert pieces("a|b |c||") == ["a", "|", "b", " |", "c", "||"]


@given(TINY)
def test_letters_and_spaces_are_cut_as_the_pattern_says(text):
    assert [piece.replace(" ", "Ġ") for piece in pieces(text)] == [
        "".join(piece) for piece in naive_pieces(text)
    ]


# --- encoding and decoding ------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return BPETokenizer.train(
        [
            "the cat sat on the mat",
            "naïve café\n",
            "aaaaaaaa",
            "  12 ½ 東京 東京 🙂🙂 e\u0301",
        ],
        300,
    )


@given(
    text=st.text()
    | st.text(" \t\nthecatsm12½東京🙂\u0301\x1c'<|endoftext>")
    | st.lists(st.sampled_from([END, "<|", "|>", " ", "the cat", "東京", "\n"])).map(
        "".join
    )
)
def test_decoding_undoes_encoding(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(type(i) is int and 0 <= i < trained.vocab_size for i in ids)


@given(
    documents=DOCUMENTS,
    n_tokens=st.integers(0, 40),
    text=TINY | RUNS,
    mixed=st.none() | st.randoms(use_true_random=False),
)
def test_merges_are_made_by_rank_and_leftmost_first(documents, n_tokens, text, mixed):
    tokenizer = BPETokenizer.train(documents, 257 + n_tokens)
    if mixed:  # another order of the same merges is a tokenizer as well
        waiting = list(tokenizer.merges)
        made = set(microgpt.BYTES)
        merges = []
        while waiting:  # if every merge finds its two tokens made
            merges.append(mixed.choice([pair for pair in waiting if made >= {*pair}]))
            waiting.remove(merges[-1])
            made.add("".join(merges[-1]))
        tokenizer = BPETokenizer(tokenizer.vocab, merges)
    names = {i: token for token, i in tokenizer.vocab.items()}
    for part in [text, *documents]:
        assert [names[i] for i in tokenizer.encode(part)] == [
            token
            for piece in naive_pieces(part)
            for token in naive_encoding(piece, tokenizer.merges)
        ]


def test_a_merge_of_tokens_that_are_made_later_is_refused():
    merges = [("ab", "c"), ("a", "b")]
    vocab = {token: i for i, token in enumerate([*microgpt.BYTES, "ab", "abc", END])}
    with pytest.raises(ValueError, match=re.escape("('ab', 'c')")):
        BPETokenizer(vocab, merges)
    assert BPETokenizer(vocab, merges[::-1]).encode("abc") == [257]


def test_an_earlier_merge_wins_over_a_longer_one():
    ab_first = BPETokenizer.train(["ab", "ab", "bc"], EVERYTHING)
    assert ab_first.merges == [("a", "b"), ("b", "c")]
    assert ab_first.encode("abc") == [256, 66] and ab_first.encode("bcab") == [257, 256]
    bc_first = BPETokenizer.train(["ab", "bc", "bc"], EVERYTHING)
    assert bc_first.encode("abc") == [64, 256]


def test_a_document_of_the_training_is_a_token_when_nothing_is_left_to_merge():
    tokenizer = BPETokenizer.train(WORDS, EVERYTHING)
    assert [len(tokenizer.encode(word)) for word in WORDS] == [1] * len(WORDS)


def test_the_ids_of_a_text_are_the_callers_own(trained):
    ids = trained.encode("the")
    expected = list(ids)
    ids.append(0)
    assert trained.encode("the") == expected


@pytest.mark.parametrize(
    "text, ids",
    [
        (END, [260]),
        (END * 3, [260, 260, 260]),
        (f"{END}low", [260, 257]),
        (f"low{END}", [257, 260]),
        (f"low{END}{END} low{END}", [257, 260, 260, 259, 260]),
        (f" {END} {END}", [220, 260, 220, 260]),
        (f"\n{END}", [198, 260]),
        ("<" + END, [27, 260]),
        (END[:-1], [27, 91, 68, 77, 67, 78, 69, 83, 68, 87, 83, 91]),
        (END.upper(), [27, 91, 36, 45, 35, 46, 37, 51, 36, 55, 51, 91, 29]),
    ],
)
def test_the_special_token_is_found_first(text, ids):
    tokenizer = BPETokenizer.train(["low low er"], 261)
    assert list(tokenizer.vocab)[256:] == ["lo", "low", "er", "Ġlow", END]
    assert tokenizer.encode(text) == ids and tokenizer.decode(ids) == text


def test_a_character_that_is_not_all_there_becomes_a_replacement_character():
    tokenizer = BPETokenizer.train([], 257)
    ids = tokenizer.encode("a€b")
    assert len(ids) == 5
    assert tokenizer.decode(ids[:2]) == tokenizer.decode(ids[:3]) == "a\ufffd"
    assert tokenizer.decode(ids[2:]) == "\ufffd\ufffdb"
    assert tokenizer.decode([*ids[:3], tokenizer.end]) == "a\ufffd" + END


def test_a_token_may_be_the_end_of_a_character_and_the_beginning_of_the_next():
    tokenizer = BPETokenizer.train(["éèêë"], 258)  # C3 A9 C3 A8 C3 AA C3 AB
    assert tokenizer.merges == [("¨", "Ã")]  # A8 has the smallest id
    ids = tokenizer.encode("èê")
    assert ids == [127, 256, 103] and tokenizer.decode(ids) == "èê"
    assert [tokenizer.decode([i]) for i in ids] == ["\ufffd", "\ufffd\ufffd", "\ufffd"]


@given(st.lists(st.integers(0, 256)))
def test_any_ids_decode_as_their_bytes_do(ids):
    raw = b"".join(END.encode() if i == 256 else bytes([ORDER[i]]) for i in ids)
    assert BPETokenizer.train([], 257).decode(ids) == raw.decode("utf-8", "replace")


# --- work, and working together -------------------------------------------------------


def dna(n):
    return "".join(random.Random(n).choices("acgt", k=n))


def lines_of_dna(n):
    return [dna(n)[i : i + 100] for i in range(0, n, 100)]


@pytest.mark.parametrize(
    "documents, size",
    [
        (lambda n: [dna(n)], 300),
        (lambda n: ["a" * n], 300),
        (lambda n: ["ab" * (n // 2)], 300),
        (lambda n: ["a" * n], EVERYTHING),
        (lambda n: ["ab" * (n // 2)], EVERYTHING),
        (lines_of_dna, 300),
        (lines_of_dna, EVERYTHING),
    ],
)
def test_the_work_of_training_grows_with_the_text_no_faster(documents, size):
    """Not so for ever more merges in one unbroken piece: each costs its length."""
    small, large = (
        lines_run(BPETokenizer.train, documents(n), size) for n in (1000, 4000)
    )
    assert small > 1000 and large < 6 * small


@pytest.mark.parametrize(
    "text",
    [dna, lambda n: "a" * n, lambda n: "ab" * (n // 2)],
    ids=["dna", "run", "repeats"],
)
def test_the_work_of_encoding_grows_with_the_text_no_faster(text):
    tokenizer = BPETokenizer.train([text(500)], EVERYTHING)
    small, large = (lines_run(tokenizer.encode, text(n)) for n in (1000, 4000))
    assert small > 1000 and large < 6 * small


def test_the_work_of_training_does_not_grow_with_what_is_repeated():
    words = [dna(20 + i) for i in range(20)]
    once, often = (lines_run(BPETokenizer.train, words * n, 300) for n in (1, 50))
    assert often < 1.5 * once


def test_a_piece_may_be_very_long():
    text = "ab" * 20000
    tokenizer = BPETokenizer.train([text], 260)
    assert tokenizer.merges == [("a", "b"), ("ab", "ab"), ("abab", "abab")]
    assert tokenizer.encode(text) == [258] * 5000


@pytest.mark.parametrize("engine", ["tensor", "value"])
def test_a_model_learns_from_subword_tokens(engine):
    documents = ["low lower", "slow slower", "naïve", f"low{END}er", "🙂"]
    tokenizer = BPETokenizer.train(documents, 265)
    model = GPT(
        Config(tokenizer.vocab_size, block_size=6, n_layer=1, n_head=1, n_embd=2)
    )
    config = TrainConfig(steps=3, batch_size=2, warmup=1, eval_every=3, engine=engine)
    steps = list(Trainer(model, tokenizer, documents, config))
    assert len(steps) == 3 and all(0 < step.loss < 20 for step in steps)
    assert math.isfinite(steps[-1].val_loss)
    text = generate(model, tokenizer, "slow", max_tokens=5, seed=1)
    assert isinstance(text, str)


def test_a_document_of_subword_tokens_has_the_end_on_both_sides():
    tokenizer = BPETokenizer.train(["low low er"], 261)
    assert cut_windows("low lower", tokenizer, 3) == [[260, 257, 259, 258], [258, 260]]
