"""Chapter 15: what clones and downloads leave in the place of a file is named."""

import gzip
import io
import pickle
import re
import zipfile

import pytest

import microgpt
from microgpt import GPT, CharTokenizer, Config, load_model, load_tokenizer

FILES = {
    "config.json": load_model,
    "model.safetensors": load_model,
    "tokenizer.json": load_tokenizer,
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 548105171\n"
ANNEX = "/annex/objects/SHA256E-s548105171--{}.safetensors\n"
HASH = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
PAGE = "<html lang='en'>\n<head><title>gpt2 at main</title></head>\n</html>\n"


def zipped(raw):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
    return file.getvalue()


INSTEAD = {  # what is made of the file, and what the message must say
    "a Git LFS pointer": (lambda raw: LFS.format(HASH).encode(), r"\bGit LFS\b"),
    "... with CRLF": (
        lambda raw: LFS.format(HASH).replace("\n", "\r\n").encode(),
        r"\bGit LFS\b",
    ),
    "a git-annex pointer": (lambda raw: ANNEX.format(HASH).encode(), r"\bgit-annex\b"),
    "a page": (lambda raw: PAGE.encode(), r"\bHTML\b"),
    "a page with a type": (
        lambda raw: f"\n<!doctype html>\n{PAGE}".encode(),
        r"\bHTML\b",
    ),
    "a long page": (lambda raw: f"<!DOCTYPE html>{PAGE * 999}".encode(), r"\bHTML\b"),
    "no entry": (lambda raw: b"Entry not found", "Entry not found"),
    "no page": (lambda raw: b"404: Not Found", "404: Not Found"),
    "nothing": (lambda raw: b"", r"\bempty\b"),
    "half of it": (lambda raw: raw[: len(raw) // 2], r"\bcut off\b"),
    "one byte less": (lambda raw: raw.rstrip(b"\n")[:-1], r"\bcut off\b"),
    "one byte": (lambda raw: raw[:1], r"\bcut off\b"),
    "a zip": (zipped, r"\bzip\b"),
    "a pickle": (lambda raw: pickle.dumps({"a": raw}, 2), r"\bpickle\b"),
    "gzip": (gzip.compress, r"\bgzip\b"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_in_the_place_of_a_file_is_named(tmp_path, name, file):
    tokenizer = CharTokenizer(["ab"])
    model = GPT(Config(tokenizer.vocab_size, 3, 1, 2, 4))
    microgpt.save_model(model, str(tmp_path), tokenizer)
    path = tmp_path / file
    replace, says = INSTEAD[name]
    path.write_bytes(replace(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        FILES[file](tmp_path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    assert message.startswith(str(path))
    assert re.search(says, message[len(str(path)) :], re.IGNORECASE), message
