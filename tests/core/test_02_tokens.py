"""Chapter 2: characters become ids, documents become windows. (Packed: chapter 10.)"""

import pytest
from helpers import ABC, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from microgpt import CharTokenizer, cut_windows, pack

DOCUMENTS = st.lists(st.text(min_size=1), min_size=1)


@given(DOCUMENTS)
def test_decoding_undoes_encoding(documents):
    tokenizer = CharTokenizer(documents)
    for document in documents:
        assert tokenizer.decode(tokenizer.encode(document)) == document


@given(DOCUMENTS)
def test_the_vocabulary_is_the_sorted_characters_and_then_endoftext(documents):
    tokenizer = CharTokenizer(documents)
    characters = sorted(set("".join(documents)))
    assert tokenizer.characters == characters
    assert tokenizer.tokens == [*characters, "<|endoftext|>"]
    assert tokenizer.encode("".join(characters)) == list(range(len(characters)))
    assert tokenizer.end == len(characters) == tokenizer.vocab_size - 1
    assert tokenizer.decode([tokenizer.end]) == "<|endoftext|>"


def test_endoftext_in_a_text_is_that_token():
    ids = [3, 0, 3, 3, 1]
    text = "<|endoftext|>a<|endoftext|><|endoftext|>b"
    assert ABC.encode(text) == ids and ABC.decode(ids) == text
    spelled = CharTokenizer(["<|endoftext|>\n"])
    text = "<|endoftext|\n"
    assert spelled.encode(text) == [spelled.vocab[c] for c in text]


def test_empty_text_has_no_tokens():
    assert ABC.encode("") == [] and ABC.decode([]) == ""


def test_an_unseen_character_is_an_error_that_names_it_and_shows_the_alphabet():
    with pytest.raises(ValueError, match=r"'z' [(]U[+]007A[)] is not in 'abc'"):
        ABC.encode("azb")


def test_a_long_alphabet_is_shown_in_part():
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    with pytest.raises(ValueError, match=f"'z' .*'{characters[:100]}'"):
        CharTokenizer([characters]).encode("z")


def test_the_error_for_an_unseen_character_is_one_printable_line():
    with pytest.raises(ValueError) as error:
        CharTokenizer(["a\n\x0b\x1b[31m\u2028b"]).encode("\r")
    assert str(error.value).isprintable()


@given(st.text("abc", max_size=60), st.integers(1, 70))
def test_every_token_is_predicted_exactly_once(document, block_size):
    windows = cut_windows(document, ABC, block_size)
    tokens = tokens_of(document)
    assert windows[0][0] == tokens[0]
    assert [token for window in windows for token in window[1:]] == tokens[1:]
    assert [token for window in windows for token in window[:-1]] == tokens[:-1]
    assert all(len(window) == block_size + 1 for window in windows[:-1])
    assert 2 <= len(windows[-1]) <= block_size + 1


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=6), min_size=1))
def test_pack_gives_each_token_its_successor(batch):
    tokens, targets = pack(batch)
    steps = []
    for window in batch:
        steps.extend(zip(window, window[1:]))
    assert list(zip(tokens, targets)) == steps
