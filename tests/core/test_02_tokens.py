"""Chapter 2: characters become ids, documents become windows. (Packed: chapter 10.)"""

import pytest
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
    assert tokenizer.tokens == [*characters, "<|endoftext|>"]
    assert tokenizer.encode("".join(characters)) == list(range(len(characters)))
    assert tokenizer.end == len(characters) == tokenizer.vocab_size - 1
    assert tokenizer.decode([tokenizer.end]) == "<|endoftext|>"


def test_the_order_of_documents_does_not_matter():
    one = CharTokenizer(["bob", "ada"])
    other = CharTokenizer(["ada", "bob"])
    assert one.characters == other.characters


def test_endoftext_in_a_text_is_that_token():
    tokenizer = CharTokenizer(["ab"])
    assert tokenizer.encode("<|endoftext|>a<|endoftext|><|endoftext|>") == [2, 0, 2, 2]
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>ab")) == "<|endoftext|>ab"
    spelled = CharTokenizer(["<|endoftext|>\n"])
    text = "<|endoftext|\n"
    assert spelled.encode(text) == [spelled.vocab[c] for c in text]


def test_empty_text_has_no_tokens(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_an_unseen_character_is_an_error_that_names_it_and_shows_the_alphabet(
    tokenizer,
):
    with pytest.raises(ValueError, match="'z' is not .*'abcdelo'"):
        tokenizer.encode("adz")


def test_a_long_alphabet_is_shown_in_part():
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    with pytest.raises(ValueError) as error:
        CharTokenizer([characters]).encode("z")
    assert "'z'" in str(error.value)
    assert characters[:100] in str(error.value)
    assert characters[:101] not in str(error.value)
    assert len(str(error.value)) < 200


def test_the_error_for_an_unseen_character_is_one_printable_line():
    with pytest.raises(ValueError) as error:
        CharTokenizer(["a\n\x0b\x1b[31m\u2028b"]).encode("\r")
    assert str(error.value).isprintable()


@given(st.text("abc", max_size=60), st.integers(1, 70))
def test_every_token_is_predicted_exactly_once(document, block_size):
    tokenizer = CharTokenizer(["abc"])
    pieces = cut_windows(document, tokenizer, block_size)
    tokens = [3] + tokenizer.encode(document) + [3]
    assert pieces[0][0] == tokens[0]
    assert [token for piece in pieces for token in piece[1:]] == tokens[1:]
    assert [token for piece in pieces for token in piece[:-1]] == tokens[:-1]
    assert all(2 <= len(piece) <= block_size + 1 for piece in pieces)


def test_a_huge_document_becomes_full_windows(tokenizer):
    pieces = cut_windows("ada" * 100000, tokenizer, 16)
    assert {len(piece) for piece in pieces[:-1]} == {17}
    assert sum(len(piece) - 1 for piece in pieces) == 300001


def test_windows_of_unseen_characters_are_an_error(tokenizer):
    with pytest.raises(ValueError, match="'z'"):
        cut_windows("zoe", tokenizer, 4)


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=6), min_size=1))
def test_pack_gives_each_token_its_successor(batch):
    tokens, targets = pack(batch)
    steps = []
    for window in batch:
        steps.extend(zip(window, window[1:]))
    assert list(zip(tokens, targets)) == steps
