"""Byte-pair encoding, compared with the tokenizers library, which is written in Rust.

Both learn an encoding from a megabyte of text, one document a line, and then encode
it. The text is the beginning of the standard library's source, so it is the same for
everyone with the same Python. The library runs in its usual way, on several processors.
"""

import glob
import os
import sysconfig
from functools import partial

from rounds import in_rounds, row, rows, stretch

from microgpt import BPETokenizer


def source_lines(size):
    """So many characters of the standard library's source, one document a line."""
    folder = sysconfig.get_paths()["stdlib"]
    text = ""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "[a-z]*.py"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            text += file.read(size - len(text))
    if not text:
        raise ValueError(f"there is no source of the standard library in {folder}")
    return [line for line in text.split("\n") if line.strip()]


class Ours:
    """microgpt's tokenizer."""

    def train(self, documents, size):
        self.tokenizer = BPETokenizer.train(documents, size)

    def encode(self, documents):
        return [self.tokenizer.encode(document) for document in documents]


class Library:
    """The library's. It leaves a place for <|endoftext|>, which ours has at its end."""

    def __init__(self):
        import tokenizers

        self.tokenizer = tokenizers.ByteLevelBPETokenizer()

    def train(self, documents, size):
        self.tokenizer.train_from_iterator(
            documents, size - 1, min_frequency=1, show_progress=False
        )

    def encode(self, documents):
        encodings = self.tokenizer.encode_batch(documents)
        return [encoding.ids for encoding in encodings]


def bpe(plan):
    """Rows on byte-pair encoding."""
    documents = source_lines(20_000 if plan.quick else 10**6)
    size = 300 if plan.quick else 2000
    kinds = {"microgpt": Ours, "library": Library}
    try:
        Library()
    except ImportError:
        row("BPE, library", "tokenizers not installed")
        del kinds["library"]
    trained = {name: [] for name in kinds}  # a new one for each round
    ids = {}

    def train(name):
        tokenizer = kinds[name]()
        trained[name].append(tokenizer)
        return stretch(lambda: tokenizer.train(documents, size), 0)

    def encode(name):
        tokenizer = trained[name].pop()  # it remembers nothing yet

        def once():
            ids[name] = tokenizer.encode(documents)

        return stretch(once, 0)

    for title, measure in [("BPE training", train), ("BPE encoding", encode)]:
        measures = {name: partial(measure, name) for name in kinds}
        rows(title, in_rounds(title, measures), "s", to="microgpt")
    if "library" in ids:
        same = ids["library"] == ids["microgpt"]
        row("BPE, the same tokens", "yes" if same else "no")
