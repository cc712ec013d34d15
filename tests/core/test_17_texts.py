"""Chapter 17: texts as they are, as documents."""

import io
import os
import sys
import unicodedata
from types import SimpleNamespace

import pytest
from helpers import ROOT, TINY, works

import microgpt
from microgpt import CharTokenizer, cut_documents, load_documents

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


def test_a_missing_file_is_an_oserror_that_names_it(tmp_path):
    name = "missing.txt"
    with pytest.raises(OSError) as error:
        load_documents(tmp_path / name)
    assert str(error.value.filename) == str(tmp_path / name)


# --- what a document is ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text, lines, paragraphs",
    [
        ("a\n\nb", ["a", "b"], ["a", "b"]),
        ("a\nb", ["a", "b"], ["a\nb"]),
        ("\n\na\nb\n \t\n\n  c\n", ["a", "b", "  c"], ["a\nb", "  c"]),
        ("  a \n\n\n\n b ", ["  a ", " b "], ["  a ", " b "]),
        ("a\u2028\n\x85b", ["a\u2028", "\x85b"], ["a\u2028\n\x85b"]),
        (" \n ", [], []),
    ],
)
def test_a_text_is_cut_into_documents(text, lines, paragraphs):
    assert cut_documents(text, "line") == lines
    assert cut_documents(text, "paragraph") == paragraphs
    assert cut_documents(text, "file") == [text] * bool(lines)


def test_files_folders_and_standard_input_are_one_corpus(tmp_path, monkeypatch):
    for name in ("b.txt", "a/z.txt", "a/b/c.py", ".hidden", "a/.git/config"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name}\r\nof {name}\r\n".encode())
    (tmp_path / "a" / "picture.png").write_bytes(b"\x89PNG\0")
    raw = io.BytesIO(BOM + b"typed\n")
    stdin = SimpleNamespace(buffer=raw, isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.chdir(tmp_path)
    assert load_documents("b.txt", "a", "-", document="paragraph") == [
        *("b.txt\nof b.txt", "a/z.txt\nof a/z.txt"),
        *("a/b/c.py\nof a/b/c.py", "typed"),
    ]
    texts, left_out = microgpt.read_texts(["a"])
    assert len(texts) == 2 and left_out == [os.path.join("a", "picture.png")]


@pytest.mark.parametrize(
    "files, says",
    [
        ({}, "folder is a folder without files"),
        ({".hidden": b"a"}, "folder is a folder without files"),
        (
            {"a.png": b"\0", "b.png": b"\xff"},
            r"a\.png and all other files .* not UTF-8",
        ),
        ({"a.txt": b" \n"}, "folder is empty"),
    ],
)
def test_a_folder_without_texts_is_refused(tmp_path, monkeypatch, files, says):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    for name, raw in files.items():
        (tmp_path / "folder" / name).write_bytes(raw)
    with pytest.raises(ValueError, match=says):
        load_documents("folder")


# --- accents --------------------------------------------------------------------------


@pytest.mark.parametrize("known, given", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_that_is_spelled_in_another_way_is_named_with_what_helps(
    known, given
):
    tokenizer = CharTokenizer([unicodedata.normalize(known, "chère Zoé")])
    text = unicodedata.normalize(given, "é")
    with pytest.raises(ValueError, match=rf"\(U\+0.*; all .* \(form {known}\)$"):
        microgpt.encode_text(tokenizer, text)
    with pytest.raises(ValueError, match=r"^'x' \(U\+0078\) is not in ' Zceh.*'$"):
        microgpt.encode_text(tokenizer, "x")


def test_a_line_end_that_the_shell_did_not_make_is_named_with_what_helps():
    tokenizer = CharTokenizer(["a\nb"])
    with pytest.raises(ValueError, match=r"all would be known with line ends for \\n"):
        microgpt.encode_text(tokenizer, r"a\nb")
    with pytest.raises(ValueError, match=r"is not in '\\nab'$"):
        microgpt.encode_text(tokenizer, r"a\nc")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_person_who_is_to_type_a_text_is_told(monkeypatch, capsys, is_terminal):
    stdin = SimpleNamespace(buffer=io.BytesIO(b"a"), isatty=lambda: is_terminal)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert load_documents("-") == ["a"]
    assert ("Ctrl-D" in capsys.readouterr().err) is is_terminal
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="no standard input"):
        load_documents("-")
