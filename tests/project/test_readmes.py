"""What the READMEs say is true: their commands and code run, their links lead on."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT

import microgpt

FOLDERS = """
    . data tests examples examples/ladder examples/engines examples/speed
    examples/playground
""".split()
READMES = {folder: (ROOT / folder / "README.md") for folder in FOLDERS}
PAGES = [*READMES.values(), *(ROOT / ".github").glob("*.md")]


def text_of(page):
    return page.read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(text_of(READMES["."]).splitlines()) <= 250


def test_the_readmes_map_names_every_chapter():
    headers = re.findall(
        r"^# === (\d+\. [^=]+?) =", text_of(ROOT / "microgpt.py"), re.M
    )
    assert len(headers) == 18
    for header in headers:
        assert f"| {header} |" in text_of(READMES["."])


def anchors(page):
    """What GitHub makes of a page's headings."""
    headings = re.findall("^#+ (.*)", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_what_is_there(page):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the READMEs are followed, from their first command to their last."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("microgpt.py", "data", "examples"):
        (folder / name).symlink_to(ROOT / name)
    text = "to be or not to be\nthat is the question\n" * 9
    for name in ("poems.txt", "novel.txt", "shakespeare.txt"):
        (folder / name).write_text(text, encoding="utf-8")
    tokenizer = microgpt.BPETokenizer.train(["Hello, world", "The old man"], 260)
    model = microgpt.GPT(microgpt.Config(260, n_embd=4))
    microgpt.save_model(model, folder / "gpt2", tokenizer)
    return folder


# Commands and Python code, in the order in which they stand.
STEPS = re.findall(
    r"^\$ (python microgpt\.py[^\n]*|[^\n]*examples/engines[^\n]*)"
    r"|^```python\n(.*?)^```",
    "\n".join(text_of(page) for page in READMES.values()),
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
        few = ["--samples", "1", "--steps", steps]
        if "--n-layer" in words:  # without PyTorch it would take minutes
            few += ["--n-layer", "1", "--batch-size", "1"]
        return [*arguments, *few]
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


def test_the_bundled_names_are_distinct_plain_and_in_no_order():
    names = (ROOT / "data" / "names.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(names) == len(set(names)) >= 4000
    assert all(re.fullmatch("[a-z]{2,15}", name) for name in names)
    rising = sum(a < b for a, b in zip(names, names[1:])) / len(names)
    assert 0.47 < rising < 0.53
