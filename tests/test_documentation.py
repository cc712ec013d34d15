"""What the file and the README say is true: examples, table of contents, commands."""

import ast
import doctest
import importlib.util
import os
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

# (number, title, steps of the ladder) of every chapter
HEADERS = re.findall(
    r"^# === (\d+)\. ([^=]+?) =+(?: ladder: ([a-z, ]+) ===)?$", SOURCE, re.M
)


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(microgpt)
    assert result.failed == 0 and result.attempted > 20


def test_the_table_of_contents_spells_the_chapters_as_their_headers_do():
    contents = re.findall(r"(\d+\. \w+(?: \w+)*)(?:  |$)", microgpt.__doc__, re.M)
    assert (
        contents == [f"{number}. {title}" for number, title, _ in HEADERS]
        and len(HEADERS) > 8
    )


def test_chapters_and_steps_of_the_ladder_name_each_other():
    from_chapters = {
        (title, step)
        for _, title, steps in HEADERS
        if steps
        for step in steps.split(", ")
    }
    from_steps = set()
    for path in (ROOT / "examples" / "ladder").glob("[0-9]*.py"):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        pointer = re.search(r"^In microgpt\.py: .*", doc, re.M | re.S)[0].split(
            "Before:"
        )[0]
        from_steps |= {
            (title, path.stem[3:]) for title in re.findall('"([^"]+)"', pointer)
        }
    assert from_chapters == from_steps and len({step for _, step in from_steps}) == 11


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
    known = getattr(sys, "stdlib_module_names", modules)  # Python 3.10 and later know
    assert modules <= set(known)


def test_every_public_name_exists_and_is_documented():
    for name in microgpt.__all__:
        thing = getattr(microgpt, name)
        assert thing.__doc__ or name in ("exp", "log", "tanh", "transpose"), name
    assert len(set(microgpt.__all__)) == len(microgpt.__all__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README is followed, from its first command to its last."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("microgpt.py", "data", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "poems.txt").write_text(
        "to be or not to be\nthat is the question\n" * 9, encoding="utf-8"
    )
    tokenizer = microgpt.BPETokenizer.train(["Hello, world", "The old man"], 260)
    microgpt.GPT(microgpt.Config(260, n_embd=4)).save(folder / "gpt2", tokenizer)
    return folder


STEPS = re.findall(
    r"^\$ (python microgpt\.py[^\n]*|[^\n]*examples/engines[^\n]*)"
    r"|^```python\n(.*?)^```",
    README,
    re.M | re.S,
)


def installed(*modules):
    return all(map(importlib.util.find_spec, modules))


def as_run_here(command):
    """A command of the README in words; without its library it is done by microgpt.py itself."""
    words = shlex.split(command)
    i = next(i for i, word in enumerate(words) if word.endswith(".py"))
    needs = {
        "numpy_engine.py": ["numpy"],
        "train_torch.py": ["torch", "numpy", "safetensors"],
    }
    if not installed(*needs.get(words[i].split("/")[-1], [])):
        words[: i + 1] = ["python", "microgpt.py"]
        i = 1
    launcher = ["-m", "torch.distributed.run"] if words[0] == "torchrun" else []
    return launcher + words[1:], words[i + 1 :]


def test_the_readme_can_be_followed_from_its_first_command_to_its_last(
    folder, monkeypatch
):
    """With few steps, and with a tiny GPT-2 for the real one."""
    monkeypatch.chdir(folder)
    for command, code in STEPS:
        if command:
            command, words = as_run_here(command)
            if (
                words[:1] in ([], ["sample"])
                or words[0].endswith(".txt")
                or words[0][:2] == "--"
            ):
                command += [
                    "--samples",
                    "1",
                    "--steps",
                    "3" if "--resume" in words else "2",
                ]
            run = subprocess.run(
                [sys.executable, *command],
                capture_output=True,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # torchrun warns
            assert run.returncode == 0 and not run.stderr, (command, run.stderr)
        elif all(
            installed(name) for name in ("transformers", "numpy") if f"{name} " in code
        ):
            exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert len(STEPS) > 12


def test_the_readmes_map_names_every_chapter():
    for _, title, _ in HEADERS:
        assert f". {title} |" in README, title


def test_the_bundled_names_are_distinct_plain_and_in_no_order():
    names = (ROOT / "data" / "names.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(names) == len(set(names)) >= 4000
    assert all(re.fullmatch("[a-z]{2,15}", name) for name in names)
    rising = sum(a < b for a, b in zip(names, names[1:])) / len(names)
    assert 0.47 < rising < 0.53
