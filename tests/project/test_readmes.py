"""What the file and the READMEs say is true: examples, contents, commands, links."""

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

ROOT = Path(__file__).parent.parent.parent
SOURCE = (ROOT / "microgpt.py").read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
FOLDERS = [
    "",
    "data",
    "tests",
    "examples",
    "examples/ladder",
    "examples/engines",
    "examples/playground",
]
READMES = {
    folder: (ROOT / folder / "README.md").read_text(encoding="utf-8")
    for folder in FOLDERS
}

# (number, title, steps of the ladder) of every chapter
HEADERS = re.findall(
    r"^# === (\d+)\. ([^=]+?) =+(?: ladder: ([a-z, ]+) ===)?$", SOURCE, re.M
)


# --- the file -------------------------------------------------------------------------


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(microgpt)
    assert result.failed == 0
    assert result.attempted > 40


def test_the_table_of_contents_spells_the_chapters_as_their_headers_do():
    contents = re.findall(r"(\d+\. \w+(?: \w+)*)(?:  |$)", microgpt.__doc__, re.M)
    assert contents == [f"{number}. {title}" for number, title, _ in HEADERS]
    assert len(HEADERS) == 17


def chapters_that_a_step_names(path):
    """The titles after "In microgpt.py:" in the docstring of a step of the ladder."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    pointer = re.search(r"^In microgpt\.py: .*", doc, re.M | re.S)[0]
    return re.findall('"([^"]+)"', pointer.split("Before:")[0])


def test_chapters_and_steps_of_the_ladder_name_each_other():
    from_chapters = set()
    for _, title, steps in HEADERS:
        from_chapters |= {(title, step) for step in steps.split(", ") if step}
    from_steps = set()
    for path in (ROOT / "examples" / "ladder").glob("[0-9]*.py"):
        titles = chapters_that_a_step_names(path)
        from_steps |= {(title, path.stem[3:]) for title in titles}
    assert from_chapters == from_steps
    assert len({step for _, step in from_steps}) == 11


def test_it_imports_nothing_but_the_standard_library():
    modules = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert len(modules) > 10
    known = getattr(sys, "stdlib_module_names", modules)  # from Python 3.10 on
    assert modules <= set(known)


def test_a_gpt_has_been_trained_and_has_written_by_line_830():
    (tutorial,) = (
        node for node in TREE.body if getattr(node, "name", "") == "tutorial"
    )
    assert tutorial.end_lineno <= 830


# What its readers stumbled over once: {habit: how many of them there may be}.
FUNCTIONS = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(
    "habit, lines, most",
    [
        (
            "functions of more than 40 lines",
            [f.lineno for f in FUNCTIONS if f.end_lineno - f.lineno >= 40],
            0,
        ),
        (
            "definitions in one line",
            [f.lineno for f in FUNCTIONS if f.body[0].lineno == f.lineno],
            0,
        ),
        (
            "lambdas",
            [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.Lambda)],
            5,
        ),
        (
            "tuples assigned to tuples",
            [
                node.lineno
                for node in ast.walk(TREE)
                if isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Tuple)
                and isinstance(node.targets[0], ast.Tuple)
            ],
            5,
        ),
        (
            "methods put on classes from outside",
            [
                node.lineno
                for node in TREE.body
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Attribute)
            ],
            0,
        ),
    ],
)
def test_habits_that_readers_stumble_over_stay_rare(habit, lines, most):
    assert len(lines) <= most, f"{habit}: lines {lines}"


def test_every_public_name_exists_and_is_documented():
    assert len(set(microgpt.__all__)) == len(microgpt.__all__) > 60
    for name in microgpt.__all__:
        thing = getattr(microgpt, name)
        if callable(thing):
            assert thing.__doc__, name


def test_every_function_of_the_file_is_documented():
    bare = [
        f.name
        for f in FUNCTIONS
        if not ast.get_docstring(f)
        and not f.name.startswith("__")
        and not f.name.endswith("_rule")
    ]
    inner = {
        "register",
        "on_plain_rows_or_nodes",
        "converted",
        "age_of",
        "reject_duplicates",
        "to_row",
        "say",
        "stop",
    }
    assert set(bare) <= inner


# --- the READMEs ----------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(READMES[""].splitlines()) <= 300


def test_the_readmes_map_names_every_chapter():
    for number, title, _ in HEADERS:
        assert f"| {number}. {title} |" in READMES[""], title


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_lead_to_files_that_are_there(folder):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", READMES[folder])
    for link in links:
        if not link.startswith("https://"):
            assert (ROOT / folder / link).exists(), link


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the READMEs are followed, from their first command to their last."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("microgpt.py", "data", "examples"):
        (folder / name).symlink_to(ROOT / name)
    text = "to be or not to be\nthat is the question\n" * 9
    (folder / "poems.txt").write_text(text, encoding="utf-8")
    tokenizer = microgpt.BPETokenizer.train(["Hello, world", "The old man"], 260)
    model = microgpt.GPT(microgpt.Config(260, n_embd=4))
    microgpt.save_model(model, folder / "gpt2", tokenizer)
    return folder


# Commands and Python code, in the order in which they stand.
STEPS = re.findall(
    r"^\$ (python microgpt\.py[^\n]*|[^\n]*examples/engines[^\n]*)"
    r"|^```python\n(.*?)^```",
    "\n".join(READMES.values()),
    re.M | re.S,
)
NEEDS = {
    "numpy_engine.py": ["numpy"],
    "train_torch.py": ["torch", "numpy", "safetensors"],
}


def installed(*modules):
    return all(map(importlib.util.find_spec, modules))


def as_run_here(command):
    """A README's command -> (Python's arguments, the words after the script).

    Where its library is not installed, microgpt.py itself takes its place.
    """
    words = shlex.split(command)
    i = next(i for i, word in enumerate(words) if word.endswith(".py"))
    if not installed(*NEEDS.get(words[i].split("/")[-1], [])):
        words[: i + 1] = ["python", "microgpt.py"]
        i = 1
    launcher = ["-m", "torch.distributed.run"] if words[0] == "torchrun" else []
    return launcher + words[1:], words[i + 1 :]


def shortened(command):
    """The same with few steps and one sample, if it trains or writes."""
    arguments, words = as_run_here(command)
    if words[:1] == ["sample"]:
        return [*arguments, "--samples", "1"]
    if not words or words[0].endswith(".txt") or words[0].startswith("--"):
        steps = "3" if "--resume" in words else "2"
        return [*arguments, "--samples", "1", "--steps", steps]
    return arguments


def test_the_readmes_can_be_followed_from_the_first_command_to_the_last(
    folder, monkeypatch
):
    """With few steps, and with a tiny GPT-2 for the real one."""
    monkeypatch.chdir(folder)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # or torchrun warns
    for command, code in STEPS:
        if command:
            words = [sys.executable, *shortened(command)]
            run = subprocess.run(words, capture_output=True, encoding="utf-8", env=env)
            assert run.returncode == 0, (command, run.stderr)
            assert run.stderr == "", command
        else:
            needed = [name for name in ("transformers", "numpy") if f"{name} " in code]
            if installed(*needed):
                exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert len(STEPS) > 20


# --- the data -------------------------------------------------------------------------


def test_the_bundled_names_are_distinct_plain_and_in_no_order():
    names = (ROOT / "data" / "names.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(names) == len(set(names)) >= 4000
    assert all(re.fullmatch("[a-z]{2,15}", name) for name in names)
    rising = sum(a < b for a, b in zip(names, names[1:])) / len(names)
    assert 0.47 < rising < 0.53
