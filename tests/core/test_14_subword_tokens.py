"""Chapter 14: byte-pair encoding, against answers by hand and naive programs.

(Hugging Face's tokenizers: see test_tokenizers.py.)
"""

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
    BYTES,
    END,
    BPETokenizer,
    PairCounts,
    cut_windows,
    learn_merges,
    piece_pattern,
)

EVERYTHING = 10**4  # a vocab_size that leaves nothing to merge in the short texts here
# GPT-2's ids of the bytes: those that are a visible character first, then the others.
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ORDER = [*VISIBLE, *range(33), *range(127, 161), 173]

RUN = st.tuples(st.sampled_from("ab c"), st.integers(1, 9)).map(
    lambda run: run[0] * run[1]
)
TEXT = st.text("ab c", max_size=30) | st.lists(RUN, max_size=6).map("".join)
# The same few texts, some of them many times.
DOCUMENTS = st.lists(TEXT, min_size=1, max_size=4).flatmap(
    lambda documents: st.lists(st.sampled_from(documents), max_size=12)
)


# --- training -------------------------------------------------------------------------

# ug is in hug, pug and hugs: 20 times; un is in pun and bun: 16 times. Then hug is
# there 15 times, pun 12 times. Of the rest, p ug and hug s are there 5 times, and p has
# a smaller id than hug. b un comes last.
COUNTS = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
WORDS = list(Counter(COUNTS).elements())
MERGES = [
    tuple(pair.split()) for pair in "u g,u n,h ug,p un,p ug,hug s,b un".split(",")
]


def test_a_training_worked_out_by_hand():
    tokenizer = BPETokenizer.train(iter(WORDS), 262)
    assert tokenizer.merges == MERGES[:5]
    assert list(tokenizer.vocab)[256:] == ["ug", "un", "hug", "pun", "pug", END]
    assert list(tokenizer.vocab.values()) == list(range(262))
    assert tokenizer.vocab_size == 262 and tokenizer.end == 261
    assert tokenizer.encode("bughugs pug") == [65, 256, 258, 82, 220, 260]
    whole = BPETokenizer.train(WORDS, EVERYTHING)
    assert (whole.merges, whole.vocab_size, whole.end) == (MERGES, 264, 263)


def test_the_plain_algorithm_weighs_words_and_knows_no_border_but_theirs():
    assert learn_merges(COUNTS, sorted("bghnpsu"), 99) == MERGES
    assert learn_merges(COUNTS, sorted("bghnpsu"), 3) == MERGES[:3]
    assert learn_merges({"a b": 2, "b": 9}, " ab", 9) == [(" ", "b"), ("a", " b")]
    assert learn_merges({}, "ab", 9) == learn_merges({"a": 5}, "ab", 9) == []
    equals = {"cd": 1, "ab": 1, "ad": 1, "cb": 1}
    assert learn_merges(equals, "dcba", 2) == [("c", "d"), ("c", "b")]  # d is older


@pytest.mark.parametrize(
    "documents, merges",
    [
        ("cd ab ad cb", "a b,a d,c b,c d"),  # equally frequent: the smallest ids first
        ("ca ca cax bx", "c a,b x,ca x"),  # ca is a token by then, with an id after b's
        ("aa", "a a"),
        ("aaa", "a a,aa a"),
        ("aaaaa", "a a,aa a,aa aaa"),  # aa aa a: a tie, and a has a smaller id
        ("aaaaaaaa", "a a,aa aa,aaaa aaaa"),
    ],
)
def test_ties_and_runs_by_hand(documents, merges):
    merges = [tuple(pair.split()) for pair in merges.split(",")]
    words = documents.split()
    assert BPETokenizer.train(words, EVERYTHING).merges == merges
    assert learn_merges(Counter(words), "abcdx", 99) == merges


def check_against_the_plain_algorithm(documents, n_merges):
    words = Counter()
    for document in documents:
        for piece in piece_pattern().findall(document):
            words["".join(BYTES[b] for b in piece.encode())] += 1
    merges = learn_merges(words, sorted(BYTES), n_merges)
    tokenizer = BPETokenizer.train(documents, 257 + n_merges)
    assert tokenizer.merges == merges
    assert list(tokenizer.vocab)[:256] == sorted(BYTES)
    assert list(tokenizer.vocab)[256:] == [*map("".join, merges), END]


@given(DOCUMENTS | st.lists(st.text(), max_size=4), st.integers(0, 40))
def test_fast_training_learns_what_the_plain_algorithm_does(documents, n_merges):
    check_against_the_plain_algorithm(documents, n_merges)


def test_fast_training_learns_what_the_plain_algorithm_does_on_longer_texts():
    rng = random.Random(1)
    for _ in range(3):
        texts = ["".join(rng.choices("abc ", (5, 4, 3, 2), k=200)) for _ in range(5)]
        check_against_the_plain_algorithm(texts, 100)


@given(st.dictionaries(st.text("abc", max_size=12) | TEXT, st.integers(1, 3)))
def test_after_each_merge_the_counts_are_those_of_the_words(weights):
    pair_counts = PairCounts(list(weights), list(weights.values()))
    for new in "0123456789":
        pair = pair_counts.pop_most_frequent()
        if pair is None:
            break
        pair_counts.merge(pair, new)
        expected = Counter()
        for word, weight in zip(pair_counts.words, weights.values()):
            for neighbours in zip(word, word[1:]):
                expected["".join(neighbours)] += weight
        assert +pair_counts.counts == expected and pair not in pair_counts.counts


@pytest.mark.parametrize("documents", [[], ["", ""], ["a", " ", "b"], [END, END * 2]])
def test_without_pairs_there_are_the_bytes_and_the_end_alone(documents):
    tokenizer = BPETokenizer.train(documents, 300)
    assert tokenizer.merges == []
    assert (tokenizer.vocab_size, tokenizer.end) == (257, 256)
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_training_does_not_cross_the_special_token():
    apart = BPETokenizer.train(["ab", " cd"] * 3, EVERYTHING)
    together = BPETokenizer.train([f"ab{END} cd"] * 3, EVERYTHING)
    assert together.vocab == apart.vocab and together.merges == apart.merges != []


def test_a_vocabulary_has_its_size_or_is_refused():
    assert BPETokenizer.train(["ab ab"], 257).vocab_size == 257
    assert BPETokenizer.train(["ab ab"], 258).merges == [("a", "b")]
    assert BPETokenizer.train(["ab"], 10**6).vocab_size == 258
    for size in (256, 10**6 + 1, 0, -5, 300.0, None, "300", True):
        with pytest.raises(ValueError, match=f"vocab_size is {size!r}"):
            BPETokenizer.train(["ab ab"], size)


@pytest.mark.parametrize(
    "vocab, merges, message",
    [
        ([*BYTES, "ab", "abc"], [], "all 256 bytes and <"),
        ([*BYTES[1:], "ab", "abc", END], [], "all 256 bytes and <"),
        ([*BYTES, "ab", "\n", END], [], "all 256 bytes and <"),
        ([*BYTES, "ab", "abc", END], [("ab", "c"), ("a", "b")], r"^\('ab', 'c'\) does"),
        ([*BYTES, "abc", END], [("a", "b", "c")], r"^\('a', 'b', 'c'\) does"),
        ([*BYTES, END], [("a", "b")], r"^\('a', 'b'\) does"),
    ],
)
def test_a_vocabulary_or_merge_that_cannot_be_is_refused(vocab, merges, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer({token: i for i, token in enumerate(vocab)}, merges)


# --- bytes and pieces -----------------------------------------------------------------


@given(st.text())
def test_without_merges_ids_are_those_of_the_bytes(text):
    assume(END not in text)
    tokenizer = BPETokenizer.train([], 257)
    assert tokenizer.encode(text) == list(map(ORDER.index, text.encode()))
    names = {"!": 0, "Ā": 188, "Ċ": 198, "Ġ": 220, "Ń": 255, END: 256}
    assert names.items() <= tokenizer.vocab.items()


PIECES = (
    "low| lower| lowest~I|'m| he|'ll| we|'ve| they|'re| it|'s| don|'t| I|'d~"
    "I|'|M| IT|'|S~'|em| '|tis~'t|is~'''|s~a|'s|ay~'re|d~a|.|b|,| c|...| d|?!~"
    "(|a|)| (|b|)~x|=|1|+| y|;~https|://|a|.|b|/~a| | b~a|  | b~ | a~a|    ~   ~a~ a~ ~"
    "a|\t|b~a|\t|\t|b~a|\t| b~a| |\t|b~\t| a~a|\t\t~a|\n|b~a|\n|\n|b~a| |\n|b~a|\n| b~"
    "a|\r|\n|b~a| \r\n\t ~\n| 1~a|\xa0|b~a| |\xa0|b~a|\xa0| b~a|\u3000|b~a|\x85|b~"
    "a|\u2028|b~a|\x0b|\x0c|.~x|1|y|22|z~a| 2024| b|3~1|,|000|.|5~ 1| 2~٣४|a~½~1½Ⅻ²|a~"
    "a|½~ ½| Ⅻ~½|.~①②~ⓐ|a~〇~a|_|b~__|init|__~ _|a| _|1~_.|a~a|._~a|\x1c|b~a| \x1c.|b~"
    "\x1c\x1d\x1e\x1f|1~\x1c| ~_\x1c~ \x1f| |\t|\x1f~a|\0|b~a|\x7f|b~a|\xad|b~"
    "a|\u200b|b~a|\u200b| b~a|\u180e|b~東京| です|。~三四|5|六~日本語English| 한국어~"
    "ひらがな|１２|カタカナー~hi|🙂🙂| ok~a| 🙂| b~👩\u200d👩\u200d👧~a|❤\ufe0f~"
    "e|\u0301|a~naïve| café~न|ि|न~ e|\u0301| a~ªºʰ|·|l~\U0010ffff\ue000|a~𝐀|𝟙"
).split("~")


@pytest.mark.parametrize("pieces", [piece.split("|") for piece in PIECES])
def test_text_is_cut_into_gpt2s_pieces(pieces):
    text = "".join(pieces)
    assert piece_pattern().findall(text) == pieces
    tokenizer = BPETokenizer.train([text], EVERYTHING)  # then each piece is a token
    assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == pieces


# --- encoding and decoding ------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    documents = ["the cat sat on the mat", "naïve café\n", "aaaaaaaa"]
    return BPETokenizer.train([*documents, "  12 ½ 東京 東京 🙂🙂 e\u0301"], 300)


MIXED = st.lists(st.sampled_from([END, "<|", "|>", " ", "the cat", "東京", "\n"]))


@given(
    text=st.text() | st.text(" \t\nthecatsm12½東京🙂\u0301\x1c'") | MIXED.map("".join)
)
def test_decoding_undoes_encoding(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(type(i) is int and 0 <= i < trained.vocab_size for i in ids)
    ids.append(0)  # the list is the caller's own
    assert trained.encode(text) == ids[:-1]


def naive_encoding(tokens, merges):
    """Merge the pair that training merged first, where it stands leftmost; repeat."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while True:
        pairs = [ranks.get(pair, math.inf) for pair in zip(tokens, tokens[1:])]
        if min(pairs, default=math.inf) == math.inf:
            return tokens
        i = pairs.index(min(pairs))
        tokens = [*tokens[:i], tokens[i] + tokens[i + 1], *tokens[i + 2 :]]


def in_another_order(merges, rng):
    """The same merges, each after those that make its two tokens."""
    waiting = list(merges)
    made = set(BYTES)
    merges = []
    while waiting:
        merges.append(rng.choice([pair for pair in waiting if made >= {*pair}]))
        waiting.remove(merges[-1])
        made.add("".join(merges[-1]))
    return merges


@given(DOCUMENTS, st.integers(0, 40), TEXT, st.none() | st.integers(0, 99))
def test_merges_are_made_by_rank_and_leftmost_first(documents, n_tokens, text, seed):
    tokenizer = BPETokenizer.train(documents, 257 + n_tokens)
    if seed is not None:
        merges = in_another_order(tokenizer.merges, random.Random(seed))
        tokenizer = BPETokenizer(tokenizer.vocab, merges)
    for part in [text, *documents]:
        expected = []
        for piece in re.findall(r" ?[a-z]+|\s+(?!\S)|\s+", part):
            tokens = naive_encoding(list(piece.replace(" ", "Ġ")), tokenizer.merges)
            expected += [tokenizer.vocab[token] for token in tokens]
        assert tokenizer.encode(part) == expected


def test_a_new_pair_may_be_older_than_those_that_wait():
    merges = [("b", "c"), ("bc", "d"), ("d", "e")]
    vocab = {token: i for i, token in enumerate([*BYTES, "bc", "bcd", "de", END])}
    tokenizer = BPETokenizer(vocab, merges)
    assert tokenizer.encode("bcdede") == [vocab["bcd"], vocab["e"], vocab["de"]]


@pytest.mark.parametrize(
    "text, ids",
    [
        (END * 3, [260, 260, 260]),
        (f"low{END}{END} low{END}low", [257, 260, 260, 259, 260, 257]),
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
    assert cut_windows("low lower", tokenizer, 3) == [[260, 257, 259, 258], [258, 260]]


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


# --- work -----------------------------------------------------------------------------


def lines_run(function, *args):
    """How many lines of microgpt.py a call executes: its work, whatever the machine."""
    piece_pattern()  # is made now, which happens once
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


def dna(n):
    return "".join(random.Random(n).choices("acgt", k=n))


def lines_of_dna(n):
    return [dna(n)[i : i + 100] for i in range(0, n, 100)]


@pytest.mark.parametrize(
    "documents, size",
    [
        (lambda n: [dna(n)], 300),
        (lambda n: [dna(n)], EVERYTHING),
        (lambda n: ["a" * n], EVERYTHING),
        (lambda n: ["ab" * (n // 2)], EVERYTHING),
        (lines_of_dna, 300),
        (lines_of_dna, EVERYTHING),
    ],
)
def test_the_work_grows_with_the_text_no_faster(documents, size):
    """A longer text may also have more merges. (What Python does in C is not seen.)"""

    def train(n):
        return BPETokenizer.train(documents(n), size)

    jobs = {
        "train": lambda n: lines_run(train, n),
        "encode": lambda n: lines_run(train(n).encode, "".join(documents(n))),
    }
    for name, work in jobs.items():
        small = work(1000)
        assert 500 < small < work(4000) < 6 * small, name
    often = lines_run(BPETokenizer.train, documents(1000) * 50, size)
    assert often < 1.5 * jobs["train"](1000) + 1000
