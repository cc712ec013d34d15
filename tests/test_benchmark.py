"""examples/benchmark.py prints its whole table, with and without a baseline."""

import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCHMARK = os.path.join(ROOT, "examples", "benchmark.py")

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


def run(*arguments):
    """Run the benchmark as a child."""
    return subprocess.run([sys.executable, BENCHMARK, "--quick", *map(str, arguments)],
                          capture_output=True, encoding="utf-8")


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


def test_table():
    """Without a baseline: all rows, all numbers above 0 (the import may drown in noise)."""
    rows = table(run())
    assert list(rows) == ROWS
    for label, cell in rows.items():
        if label == "default run, peak memory" and sys.platform == "win32":
            assert cell == "not available"
        elif label != "import microgpt":
            assert number(cell) > 0, label


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_baseline(tmp_path, names, end):
    """With a baseline, whose 10 ms a step are measured, however its lines end."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("END", repr(end)), encoding="utf-8")
    rows = table(run(names, "--baseline", script))
    assert set(rows) == {*ROWS, *BASELINE_ROWS}
    for label in BASELINE_ROWS:
        assert number(rows[label]) > 0, label
    for label in "tensor engine to baseline", "value engine to baseline", "generation to baseline":
        assert re.search(r"times as fast +[\d.e+]+ to [\d.e+]+$", rows[label])


def test_baseline_without_num_steps(tmp_path, names):
    """A baseline that does not say num_steps has its generation not measured."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("num_steps", "n").replace("END", r"'\n'"), encoding="utf-8")
    rows = table(run(names, "--baseline", script))
    assert rows["generation, baseline"] == rows["generation to baseline"] == "not measured"


def test_bad_input(tmp_path, names):
    """What cannot be measured is said in one line."""
    script = tmp_path / "silent.py"
    script.write_text("print('hello')\n", encoding="utf-8")
    for arguments, message in [
            ([tmp_path / "none.txt"], "none.txt"),
            ([names, "--baseline", tmp_path / "none.py"], "none.py"),
            ([names, "--baseline", script], "step 1 / 1000 | loss"),
            ([names, "--baseline", script, "--baseline-python", "no-such-python"], "no-such-py")]:
        child = run(*arguments)
        assert child.returncode == 1 and message in child.stderr
        assert child.stderr.count("\n") == 1 and child.stderr.startswith("benchmark: ")
