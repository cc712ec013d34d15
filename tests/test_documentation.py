"""What the file and the README say is true: examples, table of contents, commands."""

import ast
import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import microgpt

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "microgpt.py").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(microgpt)
    assert result.failed == 0 and result.attempted > 20


def test_the_table_of_contents_spells_the_chapters_as_their_headers_do():
    contents = re.findall(r"^    (\d+\. \w+(?: \w+)*)", microgpt.__doc__, re.M)
    headers = re.findall(r"^# === (\d+\. .+?) =+$", SOURCE, re.M)
    assert contents == headers and len(headers) > 8


def test_the_file_keeps_to_its_size_and_to_the_standard_library():
    lines = SOURCE.splitlines()
    assert len(lines) <= 1500 and max(map(len, lines)) <= 100
    part_two = next(i for i, line in enumerate(lines) if line.startswith("# === 10."))
    part_one = next(i for i, line in enumerate(lines) if line.startswith("# === 1."))
    assert part_two - part_one <= 900
    modules = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    known = getattr(sys, "stdlib_module_names", modules)       # Python 3.10 and later know
    assert modules <= set(known)


def test_every_public_name_exists_and_is_documented():
    for name in microgpt.__all__:
        thing = getattr(microgpt, name)
        assert thing.__doc__ or name in ("exp", "log", "tanh", "transpose"), name
    assert len(set(microgpt.__all__)) == len(microgpt.__all__)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_readmes_python_runs(code, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


COMMANDS = [line[2:] for block in blocks("console") for line in block.splitlines()
            if line.startswith("$ python microgpt.py")]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readmes_commands_run(command, tmp_path):
    """With a few steps only, and with any text for a file that the reader is to bring."""
    words = shlex.split(command, comments=True)[2:]
    for i, word in enumerate(words):
        if word.endswith(".txt") and not (ROOT / word).exists():
            words[i] = str(tmp_path / word)
            (tmp_path / word).write_text("to be or not to be\nthat is the question\n" * 9,
                                         encoding="utf-8")
    run = subprocess.run([sys.executable, "microgpt.py", *words, "--steps", "2", "--samples", "1"],
                         cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0 and not run.stderr, run.stderr


def test_the_readmes_map_names_every_chapter():
    for header in re.findall(r"^# === \d+\. (.+?) =+$", SOURCE, re.M):
        assert header in README, header


def test_the_bundled_names_are_distinct_plain_and_in_no_order():
    names = (ROOT / "data" / "names.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(names) == len(set(names)) >= 4000
    assert all(re.fullmatch("[a-z]{2,15}", name) for name in names)
    rising = sum(a < b for a, b in zip(names, names[1:])) / len(names)
    assert 0.47 < rising < 0.53
