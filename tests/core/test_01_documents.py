"""Chapters 1, 12 and 17: reading documents and holding some out."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt import load_documents, read_documents, split_documents

NAMES = [f"name {i}" for i in range(50)]


@pytest.fixture
def load(tmp_path):
    def load(raw):
        path = tmp_path / "documents.txt"
        path.write_bytes(raw)
        return load_documents(path)

    return load


@pytest.mark.parametrize(
    "raw, documents",
    [
        (b"ada\nbob\n", ["ada", "bob"]),
        (b"ada\nbob", ["ada", "bob"]),
        (b"\xef\xbb\xbfada\nbob\n", ["ada", "bob"]),
        (b"ada\r\nbob\r\n", ["ada", "bob"]),
        (b"ada\rbob\r", ["ada", "bob"]),
        (b"ada\r\rbob\n\rcleo\r\n\ndan", ["ada", "bob", "cleo", "dan"]),
        (b"\n\nada\n  \n\t\nbob\n\n", ["ada", "bob"]),
        (" \u2028 \n\u3000\nada\n".encode(), ["ada"]),
        (b"  ada  \n\tbob\n", ["  ada  ", "\tbob"]),
        (b"ada\nada\n", ["ada", "ada"]),
        ("søren\n東京\n🙂\n".encode(), ["søren", "東京", "🙂"]),
    ],
    ids=[
        "plain",
        "no trailing newline",
        "BOM",
        "CRLF",
        "lone CR",
        "mixed line ends",
        "blank lines",
        "blank by Unicode",
        "space around kept",
        "doubled kept",
        "beyond ASCII",
    ],
)
def test_every_line_with_text_is_a_document(load, raw, documents):
    assert load(raw) == documents


@pytest.mark.parametrize("separator", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
def test_other_unicode_separators_stay_inside_a_document(load, separator):
    document = f"ada{separator}bob"
    assert load(f"{document}\ncleo\n".encode()) == [document, "cleo"]


def test_the_tutorials_way_to_read_is_that_of_plain_files(tmp_path):
    path = tmp_path / "documents.txt"
    text = "  ada \n\n \t\nsøren\nbob"
    path.write_text(text, encoding="utf-8")
    assert read_documents(path) == ["  ada ", "søren", "bob"] == load_documents(path)


def test_a_byte_order_mark_within_the_text_is_kept(load):
    assert load("ada\n\ufeffbob\n".encode()) == ["ada", "\ufeffbob"]


@pytest.mark.parametrize("raw", [b"", b"\n\n", b" \r\n\t", b"\xef\xbb\xbf"])
def test_a_file_without_documents_is_an_error_that_names_it(load, raw):
    with pytest.raises(ValueError, match=r"documents\.txt is empty"):
        load(raw)


@pytest.mark.parametrize(
    "raw, byte, line",
    [
        (b"\xff", "0xff", 1),
        (b"ada\nbob\ns\xf8ren\n", "0xf8", 3),
        (b"ada\r\nbob\r\n\xe9", "0xe9", 3),
        (b"ada\nbob \xe2\x82", "0xe2", 2),
        (b"ada\nb\0b\n", "0x00", 2),
        (b"\0", "0x00", 1),
        (b"\xef\xbb\xbfada\nb\xffb\n", "0xff", 2),
        (b"\xef\xbb\xbfada\n\xffbob\n", "0xff", 2),
        (b"ada\rbob\rs\xf8ren\r", "0xf8", 3),
    ],
    ids=[
        "first byte",
        "Latin-1",
        "CRLF",
        "cut short",
        "zero",
        "zero alone",
        "BOM",
        "BOM and start of line",
        "lone CR",
    ],
)
def test_a_file_that_is_not_utf8_is_an_error_that_names_byte_and_line(
    load, raw, byte, line
):
    message = rf"documents\.txt .*byte {byte} in line {line}\b"
    with pytest.raises(ValueError, match=message):
        load(raw)


def test_a_missing_file_is_an_oserror_that_names_it(tmp_path):
    with pytest.raises(OSError) as error:
        load_documents(tmp_path / "missing.txt")
    assert str(error.value.filename).endswith("missing.txt")


def test_a_directory_is_an_oserror(tmp_path):
    with pytest.raises(OSError):
        load_documents(tmp_path)


@given(st.lists(st.text(max_size=3), min_size=2), st.floats(0, 0.99), st.integers())
def test_a_split_loses_and_doubles_no_document(documents, fraction, seed):
    training, held_out = split_documents(documents, fraction, seed)
    assert Counter(training + held_out) == Counter(documents)


@pytest.mark.parametrize("fraction", [1e-300, 0.01, 0.1, 0.5, 0.75, 0.9, 0.99])
def test_a_split_holds_out_the_fraction_but_leaves_a_document_on_either_side(fraction):
    for n in range(2, 120):
        training, held_out = split_documents(range(n), fraction)
        assert training
        assert held_out
        assert abs(len(held_out) - n * fraction) <= 1


@pytest.mark.parametrize("documents", [NAMES, NAMES[:1]])
def test_fraction_0_holds_out_none(documents):
    training, held_out = split_documents(documents, 0)
    assert sorted(training) == sorted(documents)
    assert held_out == []


def test_a_single_document_cannot_be_split():
    with pytest.raises(ValueError, match="single document"):
        split_documents(["ada"], 0.1)


def test_a_split_depends_on_the_seed_alone():
    random.seed(1)
    first = split_documents(NAMES, 0.2, seed=7)
    random.seed(2)
    assert split_documents(NAMES, 0.2, seed=7) == first
    assert split_documents(NAMES, 0.2, seed=8) != first


def test_a_split_leaves_its_argument_and_the_global_generator_alone():
    documents = list(NAMES)
    state = random.getstate()
    split_documents(documents, 0.2)
    assert documents == NAMES
    assert random.getstate() == state
