"""Chapters 1, 12 and 17: reading documents and holding some out."""

import random
import sys
from collections import Counter

import pytest
from helpers import ROOT, TINY, works
from hypothesis import given
from hypothesis import strategies as st

from microgpt import load_documents, read_documents, split_documents

LETTERS = list("abcdefghijklmnopqrst")
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def load(tmp_path):
    """Write these bytes to documents.txt, and load it."""

    def write_and_load(raw):
        path = tmp_path / "documents.txt"
        path.write_bytes(raw)
        return load_documents(path)

    return write_and_load


@pytest.mark.parametrize(
    "raw, documents",
    [
        (b"ada\nbob\n", ["ada", "bob"]),
        (b"ada\nbob", ["ada", "bob"]),
        (BOM + b"ada\nbob\n", ["ada", "bob"]),
        ("ada\n\ufeffbob".encode(), ["ada", "\ufeffbob"]),
        (b"ada\r\nbob\r\n", ["ada", "bob"]),
        (b"ada\rbob\r", ["ada", "bob"]),
        (b"ada\r\rbob\n\rcleo\r\n\ndan", ["ada", "bob", "cleo", "dan"]),
        (b"\n\nada\n  \n\t\nbob\n\n", ["ada", "bob"]),
        (" \u2028 \n\u3000\nada\n".encode(), ["ada"]),
        (b"  ada  \n\tbob\n", ["  ada  ", "\tbob"]),
        (b"ada\nada\n", ["ada", "ada"]),
        ("søren\n東京\n🙂\n".encode(), ["søren", "東京", "🙂"]),
        # What str.splitlines takes for ends of lines, too
        *[
            (f"a{x}b\n".encode(), [f"a{x}b"])
            for x in "\u2028\u2029\x85\v\f\x1c\x1d\x1e"
        ],
    ],
)
def test_every_line_with_text_is_a_document(load, raw, documents):
    assert load(raw) == documents


def test_the_tutorials_way_to_read_is_that_of_plain_files(tmp_path):
    path = tmp_path / "documents.txt"
    path.write_bytes("  ada \n\n \t\nsøren\nbob".encode())
    assert read_documents(path) == ["  ada ", "søren", "bob"] == load_documents(path)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python does not warn yet")
def test_no_file_is_opened_as_the_computer_prefers_it(tmp_path):
    (tmp_path / "names.txt").write_text("søren\nada\nbob\n", encoding="utf-8")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import microgpt
print(microgpt.read_documents(sys.argv[1]))
for words in (["--save", "kept"], ["--resume", "kept", "--steps", "4"]):
    assert microgpt.main([*sys.argv[1:], *words]) == 0
assert microgpt.main(["sample", "kept"]) == 0
"""
    strict = ["-W", "error::EncodingWarning", "-c", code]
    output = works(*strict, *TINY, script="-Xwarn_default_encoding", cwd=tmp_path)
    assert output.startswith("['søren', 'ada', 'bob']\n")


@pytest.mark.parametrize("raw", [b"", b"\n\n", b" \r\n\t", BOM])
def test_a_file_without_documents_is_an_error_that_names_it(load, raw):
    with pytest.raises(ValueError, match=r"documents\.txt is empty"):
        load(raw)


@pytest.mark.parametrize(
    "raw, byte, line",
    [
        (b"\xff", "0xff", 1),
        (b"\0", "0x00", 1),
        (b"ada\nbob\ns\xf8ren\n", "0xf8", 3),
        (b"ada\r\nbob\r\n\xe9", "0xe9", 3),
        (b"ada\rbob\rs\xf8ren\r", "0xf8", 3),
        (b"\nb\xff", "0xff", 2),
        (b"\n\n\xff\n\n", "0xff", 3),
        (b"\r\n \r\n\0", "0x00", 3),
        (b"ada\nbob \xe2\x82", "0xe2", 2),  # it ends within a character
        (b"ada\nb\0b\n", "0x00", 2),
        (BOM + b"ada\nb\xffb\n", "0xff", 2),
        (BOM + b"ada\n\xffbob\n", "0xff", 2),
        (b"\0\n\xff\n", "0x00", 1),  # the first of two
        (b"\xff\n\0\n", "0xff", 1),
    ],
)
def test_a_file_that_is_not_utf8_is_an_error_that_names_byte_and_line(
    load, raw, byte, line
):
    message = rf"documents\.txt .*byte {byte} in line {line}\b"
    with pytest.raises(ValueError, match=message):
        load(raw)


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_cannot_be_read_is_an_oserror_that_names_it(tmp_path, name):
    with pytest.raises(OSError) as error:
        load_documents(tmp_path / name)
    assert str(error.value.filename) == str(tmp_path / name)


@given(st.lists(st.text(max_size=3), min_size=2), st.floats(0, 0.99), st.integers())
def test_a_split_loses_and_doubles_no_document(documents, fraction, seed):
    before = list(documents)
    training, held_out = split_documents(documents, fraction, seed)
    assert Counter(training + held_out) == Counter(documents)
    assert documents == before


@pytest.mark.parametrize(
    "n, fraction, n_held_out",
    [
        (1, 0, 0),
        (20, 0, 0),
        (20, 0.1, 2),
        (50, 0.2, 10),
        (119, 0.99, 118),
        (10, 0.16, 2),  # it is rounded
        (10, 0.14, 1),
        (2, 1e-300, 1),  # but there is at least one on either side
        (99, 1e-300, 1),
        (2, 0.99, 1),
        (3, 0.99, 2),
    ],
)
def test_a_split_holds_out_the_fraction(n, fraction, n_held_out):
    training, held_out = split_documents(range(n), fraction)
    assert (len(training), len(held_out)) == (n - n_held_out, n_held_out)


def test_a_single_document_cannot_be_split():
    with pytest.raises(ValueError, match="single document"):
        split_documents(["ada"], 0.1)


def test_a_split_depends_on_the_seed_alone():
    random.seed(1)
    state = random.getstate()
    first = split_documents(LETTERS, 0.2, seed=7)
    assert random.getstate() == state
    random.seed(2)
    assert split_documents(LETTERS, 0.2, seed=7) == first
    assert split_documents(LETTERS, 0.2, seed=8) != first
    for documents in first:
        assert sorted(documents) != documents
