"""examples/benchmark.py prints its whole table, whatever there is to compare with."""

import os
import re
import statistics
import subprocess
import sys

import benchmark
import pytest

import microgpt

BENCHMARK = benchmark.__file__

ROWS = """
default run, time
default run, peak memory
default run, held-out loss
import microgpt
one document, tensor engine, mean
one document, tensor engine, least
one document, value engine, mean
one document, value engine, least
batch of 32, 1 worker
batch of 32, 2 workers
2 workers to 1
generation
matmul, width 16
matmul, width 64
matmul, width 128
BPE training
BPE encoding
BPE, library
""".strip().split("\n")

LIBRARY_ROWS = """
BPE training
BPE training, library
BPE training to library
BPE encoding
BPE encoding, library
BPE encoding to library
BPE, equal to the library
""".strip().split("\n")

GPT2_ROWS = """
GPT-2 small, load
GPT-2 small, prompt of 8
GPT-2 small, per token
GPT-2 small, peak memory
""".strip().split("\n")

BASELINE_ROWS = """
one document, baseline, mean
one document, baseline, least
tensor engine to baseline
value engine to baseline
generation, baseline
generation to baseline
""".strip().split("\n")

FAKE = """
import time
documents = open("input.txt", encoding="utf-8").read().split()
assert sorted(documents) == ["ada", "bob", "cleo", "zo\\u00eb"]
num_steps = 1_000
for step in range(num_steps):
    time.sleep(0.01)
    print(f"step {step + 1:4d} / {num_steps:4d} | loss 3.3000", end=END)
print("--- samples ---")
for i in range(20):
    time.sleep(0.001)
    print(f"sample {i + 1:2d}: {'x' * i}")
"""

NO_LIBRARY = "raise ImportError('not here')\n"

FAKE_LIBRARY = """
import json
from types import SimpleNamespace
import microgpt
__version__ = "1.2.3"

class ByteLevelBPETokenizer:
    def train_from_iterator(self, documents, vocab_size, **options):
        self.own = microgpt.BPETokenizer.train(documents, vocab_size + 1)
    def add_special_tokens(self, tokens):
        assert list(self.own.vocab)[-len(tokens):] == tokens
    def encode_batch(self, documents):
        return [SimpleNamespace(ids=self.own.encode(text)) for text in documents]
    def get_vocab(self):
        return dict(self.own.vocab)
    def to_str(self):
        return json.dumps({"model": {"merges": list(map(list, self.own.merges))}})
"""


def run(*arguments, path=None):
    """Run the benchmark as a child, with a folder of modules if one is given."""
    env = {**os.environ, "PYTHONPATH": str(path)} if path else None
    return subprocess.run(
        [sys.executable, BENCHMARK, "--quick", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env=env,
    )


def table(child):
    """{label: what stands behind it} of the table that a child has printed."""
    assert child.returncode == 0, child.stderr
    assert max(map(len, child.stdout.split("\n"))) <= 80
    lines = child.stdout.strip().split("\n")[2:]
    return {line[:34].strip(): line[34:].strip() for line in lines}


def number(cell):
    """The number at the beginning of what stands behind a label."""
    return float(cell.split()[0].replace(",", ""))


@pytest.fixture
def names(tmp_path):
    """A small file of documents."""
    path = tmp_path / "names.txt"
    path.write_text("ada\nbob\ncleo\nzo\u00eb\n", encoding="utf-8")
    return path


@pytest.fixture
def no_library(tmp_path):
    """A folder with a tokenizers module that cannot be imported."""
    folder = tmp_path / "absent"
    folder.mkdir()
    (folder / "tokenizers.py").write_text(NO_LIBRARY, encoding="utf-8")
    return folder


def test_table(no_library):
    """Without a comparison: all rows, all numbers above 0 (the import may be noise)."""
    rows = table(run("--gpt2", path=no_library))
    assert list(rows) == ROWS + GPT2_ROWS
    assert rows.pop("BPE, library") == "tokenizers not installed"
    for label, cell in rows.items():
        if label.endswith("peak memory") and sys.platform == "win32":
            assert cell == "not available"
        elif label != "import microgpt":
            assert number(cell) > 0, label


@pytest.mark.parametrize(
    "wrong, answer",
    [
        ("", "yes"),
        ("get_vocab = lambda self: {**self.own.vocab, 'new': 300}", "no"),
        ("to_str = lambda self: json.dumps({'model': {'merges': []}})", "no"),
        (
            "encode_batch = lambda self, all: [SimpleNamespace(ids=[1]) for _ in all]",
            "no",
        ),
    ],
)
def test_library(tmp_path, names, wrong, answer):
    """With a tokenizers library: rows to compare, and whether all is equal."""
    source = FAKE_LIBRARY + "    " + wrong + "\n"
    (tmp_path / "tokenizers.py").write_text(source, encoding="utf-8")
    rows = table(run(names, path=tmp_path))
    assert list(rows) == ROWS[: ROWS.index("BPE training")] + LIBRARY_ROWS
    assert rows.pop("BPE, equal to the library") == answer
    for label in LIBRARY_ROWS[:-1]:
        assert number(rows[label]) > 0, label
    for label in "BPE training", "BPE encoding":
        ratio, low, high = re.fullmatch(
            r"([\d.e+]+) times its time ([\d.e+]+) to ([\d.e+]+)",
            rows[label + " to library"],
        ).groups()
        expected = number(rows[label]) / number(rows[label + ", library"])
        assert float(ratio) == pytest.approx(expected, rel=0.02)
        assert float(low) <= 1.01 * float(ratio) and float(ratio) <= 1.01 * float(high)


def test_real_library(names):
    """The real library has what the benchmark asks of it, and gives what ours gives."""
    pytest.importorskip("tokenizers")
    assert table(run(names))["BPE, equal to the library"] == "yes"


def test_written_model(tmp_path):
    """The model that stands for GPT-2 opens as GPT-2 would, and is as random."""
    benchmark.write_gpt2(
        tmp_path, microgpt.Config(50, block_size=8, n_layer=2, n_head=2, n_embd=8)
    )
    params = microgpt.load_model(tmp_path).params
    assert set(params["h.1.ln_2.weight"]) == {1.0}
    assert set(params["h.1.mlp.c_fc.bias"]) == {0.0}
    for name in (
        "wte.weight",
        "wpe.weight",
        "h.0.attn.c_attn.weight",
        "h.1.mlp.c_proj.weight",
    ):
        assert len(set(map(tuple, params[name]))) > len(params[name]) / 2
        assert 0.01 < statistics.stdev(x for row in params[name] for x in row) < 0.04


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_baseline(tmp_path, names, no_library, end):
    """With a baseline, whose 10 ms a step are measured, however its lines end."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("END", repr(end)), encoding="utf-8")
    rows = table(run(names, "--baseline", script, path=no_library))
    assert set(rows) == {*ROWS, *BASELINE_ROWS}
    for label in BASELINE_ROWS:
        assert number(rows[label]) > 0, label
    for label in (
        "tensor engine to baseline",
        "value engine to baseline",
        "generation to baseline",
    ):
        assert re.search(r"times as fast +[\d.e+]+ to [\d.e+]+$", rows[label])


def test_baseline_without_num_steps(tmp_path, names):
    """A baseline that does not say num_steps has its generation not measured."""
    script = tmp_path / "fake.py"
    script.write_text(
        FAKE.replace("num_steps", "n").replace("END", r"'\n'"), encoding="utf-8"
    )
    rows = table(run(names, "--baseline", script))
    assert (
        rows["generation, baseline"] == rows["generation to baseline"] == "not measured"
    )


def test_bad_input(tmp_path, names):
    """What cannot be measured is said in one line."""
    script = tmp_path / "silent.py"
    script.write_text("print('hello')\n", encoding="utf-8")
    for arguments, message in [
        ([tmp_path / "none.txt"], "none.txt"),
        ([names, "--baseline", tmp_path / "none.py"], "none.py"),
        ([names, "--baseline", script], "step 1 / 1000 | loss"),
        (
            [names, "--baseline", script, "--baseline-python", "no-such-python"],
            "no-such-py",
        ),
    ]:
        child = run(*arguments)
        assert child.returncode == 1 and message in child.stderr
        assert child.stderr.count("\n") == 1 and child.stderr.startswith("benchmark: ")


ENGINE_JOBS = ["batch of 1", "batch of 32", "width 128", "GPT-2 small"]


def test_engines_that_are_installed_take_their_turns(names):
    pytest.importorskip("numpy")
    rows = table(run(names, "--engines", "--gpt2"))
    torch = "PyTorch engine" not in rows
    found = ["NumPy", "NumPy32"] + ["PyTorch"] * torch
    for label in [
        f"one document, {name}, {what}" for name in found for what in ("mean", "least")
    ]:
        assert number(rows[label]) > 0
    for job in ENGINE_JOBS:
        for name in found:
            assert re.search(r"ms/document +[\d,]+ tokens/s", rows[f"{job}, {name}"])
            ratio, low, high = re.fullmatch(
                r"([\d.,e+]+) times as fast +([\d.e+-]+) to ([\d.e+-]+)",
                rows[f"{job}, {name} to tensor"],
            ).groups()
            assert (
                0.99 * float(low) <= float(ratio.replace(",", "")) <= 1.01 * float(high)
            )


def test_an_engine_that_is_not_installed_is_said_to_be_missing(names, tmp_path):
    for module in ("numpy", "torch", "tokenizers"):
        (tmp_path / f"{module}.py").write_text(NO_LIBRARY, encoding="utf-8")
    rows = table(run(names, "--engines", path=tmp_path))
    assert rows["NumPy engine"] == rows["PyTorch engine"] == "not installed"
    assert number(rows["batch of 1, tensor"]) > 0
    assert not any(
        "NumPy" in label or "to tensor" in label
        for label in rows.keys() - {"NumPy engine", "PyTorch engine"}
    )


def test_a_model_in_the_manner_of_nanogpt_takes_its_turns(names, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    (tmp_path / "model.py").write_text(NANO, encoding="utf-8")
    rows = table(run(names, "--engines", "--nanogpt", tmp_path))
    for job in ENGINE_JOBS[:3]:
        assert number(rows[f"{job}, nanoGPT"]) > 0
        assert number(rows[f"{job}, PyTorch to nanoGPT"]) > 0


NANO = """
from collections import namedtuple
import torch
names = "block_size vocab_size n_layer n_head n_embd dropout bias"
GPTConfig = namedtuple("GPTConfig", names)


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        self.config = config

    def configure_optimizers(self, weight_decay, learning_rate, betas, device):
        print("talks")
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas)

    def forward(self, tokens, targets):
        assert tokens.shape == targets.shape
        assert tokens.shape[1] <= self.config.block_size
        assert tokens.min() >= 0
        logits = self.table(tokens)
        loss = torch.nn.functional.cross_entropy(
            logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss
"""
