"""Part I of microgpt.py stands alone, and prints what it says that it prints."""

import builtins
import contextlib
import doctest
import inspect
import io
import os
import random
import re
import types

import pytest

import microgpt
from microgpt import (
    CharTokenizer,
    Config,
    PackedGPT,
    Tensor,
    Value,
    baselines,
    cut_windows,
    load_documents,
    read_documents,
    topological_order,
)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NAMES = os.path.join(ROOT, "data", "names.txt")
with open(os.path.join(ROOT, "microgpt.py"), encoding="utf-8") as file:
    SOURCE = file.read()
PART_ONE = SOURCE[: SOURCE.index("# === 9. Tensor ==")]


def load(name, source):
    """The module that a source makes by itself."""
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return module


@pytest.fixture(scope="session")
def part_one():
    return load("part_one", PART_ONE)


@pytest.fixture(scope="session")
def tutorial_lines(part_one):
    """What tutorial() prints, which takes about a minute."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        part_one.tutorial(NAMES)
    return printed.getvalue().splitlines()


def promised_lines():
    """What tutorial's docstring says that it prints: all of the second paragraph."""
    paragraphs = inspect.getdoc(microgpt.tutorial).split("\n\n")
    assert paragraphs[0].endswith("prints:")
    return paragraphs[1].splitlines()


def test_the_tutorial_prints_what_its_docstring_shows(tutorial_lines):
    assert tutorial_lines == promised_lines()
    assert len(tutorial_lines) == 7


def test_the_tutorial_learns(tutorial_lines):
    losses = [float(x) for x in re.findall(r"loss (\d\.\d\d)", str(tutorial_lines))]
    before, *training, after = losses
    assert training == sorted(training, reverse=True)
    assert before > 3.30 > after


def global_names(table):
    """All names that a piece of a program looks up among the globals."""
    names = {s.get_name() for s in table.get_symbols() if s.is_global()}
    for child in table.get_children():
        names |= global_names(child)
    return names


def test_nothing_in_part_one_needs_what_comes_after(part_one):
    """Not even in the branches and functions that no test of it runs."""
    symtable = pytest.importorskip("symtable")  # PyPy lacks a part of it
    names = global_names(symtable.symtable(PART_ONE, "microgpt.py", "exec"))
    assert "topological_order" in names
    defined = {*vars(part_one), *vars(builtins)}
    assert names - defined == set()


def test_part_one_prints_nothing_and_does_nothing_by_itself(capsys):
    load("part_one", PART_ONE)
    assert capsys.readouterr().out == ""


def run_examples(module):
    """Run the examples in all docstrings of a module -> (how many, how many failed)."""
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner()
    for name, thing in list(vars(module).items()):
        if getattr(thing, "__module__", None) == module.__name__:
            for test in finder.find(inspect.unwrap(thing), name, globs=vars(module)):
                runner.run(test)
    return runner.tries, runner.failures


@pytest.mark.parametrize(
    "source", [PART_ONE, SOURCE], ids=["part one", "the whole file"]
)
def test_all_examples_in_the_docstrings_are_true(source):
    module = load("alone", source)
    n_examples = len(re.findall(r"^ *>>> ", source, re.M))
    assert run_examples(module) == (n_examples, 0)
    assert n_examples >= 25


# --- what the text of Part I says -----------------------------------------------------


@pytest.fixture(scope="module")
def tutorial_windows():
    """The windows of tutorial() -> (to train on, held out, vocab_size)."""
    documents = read_documents(NAMES)
    random.Random(1).shuffle(documents)
    tokenizer = CharTokenizer(documents)
    windows = []
    for document in documents:
        windows += cut_windows(document, tokenizer, Config(27).block_size)
    return windows[200:], windows[:200], tokenizer.vocab_size


def test_the_losses_to_compare_with_are_those_of_models_that_count(tutorial_windows):
    text = inspect.getdoc(microgpt.tutorial)
    losses = baselines(*tutorial_windows)
    for name in "knows nothing", "frequencies", "pairs":
        assert f" {losses[name]:.2f}" in text, name


def test_both_ways_to_read_the_names_agree():
    assert read_documents(NAMES) == load_documents(NAMES)


def test_the_graph_of_emma_has_as_many_nodes_as_chapter_9_says():
    tokenizer = CharTokenizer(load_documents(NAMES))
    model = microgpt.GPT(Config(tokenizer.vocab_size))
    windows = cut_windows("emma", tokenizer, 16)
    params = {name: Tensor(x) for name, x in model.params.items()}
    on_values = model.convert(Value).loss(windows)
    on_tensors = PackedGPT(model.config, params).loss(windows)
    chapter = SOURCE[SOURCE.index("# === 9. Tensor") : SOURCE.index("class Tensor")]
    assert f"{len(topological_order(on_values)):,} nodes" in chapter
    assert f"{len(topological_order(on_tensors)):,} nodes" in chapter
