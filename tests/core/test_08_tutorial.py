"""Part I of microgpt.py stands alone, and prints what it says that it prints."""

import builtins
import doctest
import inspect
import random
import re
import types

import pytest
from helpers import ROOT, SCRIPT

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

NAMES = str(ROOT / "data" / "names.txt")
with open(SCRIPT, encoding="utf-8") as file:
    SOURCE = file.read()
PART_ONE = SOURCE[: SOURCE.index("# === 9. Tensor ==")]


def load(source):
    """The module that a source makes by itself."""
    module = types.ModuleType("alone")
    exec(compile(source, "alone.py", "exec"), vars(module))
    return module


def test_the_tutorial_prints_what_its_docstring_shows(capsys):
    """This takes a minute."""
    part_one = load(PART_ONE)
    assert capsys.readouterr().out == ""  # it does nothing by itself
    part_one.tutorial(NAMES)
    promised = inspect.getdoc(microgpt.tutorial).split("\n\n")[1].splitlines()
    assert capsys.readouterr().out.splitlines() == promised
    assert len(promised) == 7


def global_names(table):
    """All names that a piece of a program looks up among the globals."""
    names = {s.get_name() for s in table.get_symbols() if s.is_global()}
    return names.union(*map(global_names, table.get_children()))


def test_nothing_in_part_one_needs_what_comes_after():
    """Not even in the branches and functions that no test of it runs."""
    symtable = pytest.importorskip("symtable")  # PyPy lacks a part of it
    names = global_names(symtable.symtable(PART_ONE, "microgpt.py", "exec"))
    assert "topological_order" in names
    assert names - {*vars(load(PART_ONE)), *vars(builtins)} == set()


@pytest.mark.parametrize("source", [PART_ONE, SOURCE], ids=["part one", "whole file"])
def test_all_examples_in_the_docstrings_are_true(source):
    module = load(source)
    runner = doctest.DocTestRunner()
    for name, thing in list(vars(module).items()):
        if getattr(thing, "__module__", None) == "alone":
            thing = inspect.unwrap(thing)
            for test in doctest.DocTestFinder().find(thing, name, globs=vars(module)):
                runner.run(test)
    n_examples = len(re.findall(r"^ *>>> ", source, re.MULTILINE))
    assert (runner.tries, runner.failures) == (n_examples, 0)
    assert n_examples >= 25


# --- what the text says ---


def test_the_losses_to_compare_with_are_those_of_models_that_count():
    documents = read_documents(NAMES)
    assert documents == load_documents(NAMES)
    random.Random(1).shuffle(documents)
    tokenizer = CharTokenizer(documents)
    windows = []
    for document in documents:
        windows += cut_windows(document, tokenizer, Config(27).block_size)
    losses = baselines(windows[200:], windows[:200], tokenizer.vocab_size)
    text = inspect.getdoc(microgpt.tutorial)
    for name in "knows nothing", "frequencies", "pairs":
        assert f" {losses[name]:.2f}" in text, name


def test_the_graph_of_emma_has_as_many_nodes_as_chapter_9_says():
    tokenizer = CharTokenizer(load_documents(NAMES))
    model = microgpt.GPT(Config(tokenizer.vocab_size))
    windows = cut_windows("emma", tokenizer, 16)
    params = {name: Tensor(x) for name, x in model.params.items()}
    on_values = model.convert(Value).loss(windows)
    on_tensors = PackedGPT(model.config, params).loss(windows)
    chapter = SOURCE[SOURCE.index("# === 9. Tensor") : SOURCE.index("class Tensor")]
    for loss in on_values, on_tensors:
        assert f"{len(topological_order(loss)):,} nodes" in chapter
