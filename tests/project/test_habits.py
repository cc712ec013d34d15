"""What readers of microgpt.py can count on: contents, docstrings, habits."""

import ast
import doctest
import re
import sys
from pathlib import Path

import pytest
from helpers import EXAMPLES, SCRIPT

import microgpt

SOURCE = Path(SCRIPT).read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
NODES = list(ast.walk(TREE))
FUNCTIONS = [node for node in NODES if isinstance(node, ast.FunctionDef)]

# (number, title, steps of the ladder) of every chapter
HEADERS = re.findall(
    r"^# === (\d+)\. ([^=]+?) =+(?: ladder: ([a-z, ]+) ===)?$", SOURCE, re.M
)


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(microgpt)
    assert result.failed == 0
    assert result.attempted > 40


def test_the_table_of_contents_spells_the_chapters_as_their_headers_do():
    contents = re.findall(r"(\d+\. \w+(?: \w+)*)(?:  |$)", microgpt.__doc__, re.M)
    assert contents == [f"{number}. {title}" for number, title, _ in HEADERS]
    assert len(HEADERS) == 18


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
    for path in EXAMPLES.glob("ladder/[0-9]*.py"):
        titles = chapters_that_a_step_names(path)
        from_steps |= {(title, path.stem[3:]) for title in titles}
    assert from_chapters == from_steps
    assert len({step for _, step in from_steps}) == 11


def test_it_imports_nothing_but_the_standard_library():
    modules = set()
    for node in NODES:
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert len(modules) > 10
    known = getattr(sys, "stdlib_module_names", modules)  # from Python 3.10 on
    assert modules <= set(known)


def test_a_gpt_has_been_trained_and_has_written_by_line_830():
    (tutorial,) = [f for f in FUNCTIONS if f.name == "tutorial"]
    assert tutorial.end_lineno <= 830


def assigned_to(kind, nodes):
    """The assignments whose target is of this kind."""
    assignments = [node for node in nodes if isinstance(node, ast.Assign)]
    return [node for node in assignments if isinstance(node.targets[0], kind)]


TO_TUPLES = [x for x in assigned_to(ast.Tuple, NODES) if isinstance(x.value, ast.Tuple)]

# What readers stumbled over once: (habit, where it is found, how often it may be).
HABITS = [
    ("over 40 lines", [f for f in FUNCTIONS if f.end_lineno - f.lineno >= 40], 0),
    ("one-line definitions", [f for f in FUNCTIONS if f.body[0].lineno == f.lineno], 0),
    ("lambdas", [node for node in NODES if isinstance(node, ast.Lambda)], 5),
    ("tuples assigned to tuples", TO_TUPLES, 5),
    ("methods put on classes", assigned_to(ast.Attribute, TREE.body), 0),
]


@pytest.mark.parametrize("habit, found, most", HABITS, ids=[row[0] for row in HABITS])
def test_habits_that_readers_stumble_over_stay_rare(habit, found, most):
    assert len(found) <= most, f"{habit}: lines {[node.lineno for node in found]}"


def test_every_public_name_exists_and_is_documented():
    assert len(set(microgpt.__all__)) == len(microgpt.__all__) > 60
    for name in microgpt.__all__:
        thing = getattr(microgpt, name)
        if callable(thing):
            assert thing.__doc__, name


def test_every_function_is_documented_but_for_rules_and_the_small_ones_within():
    inner = """
        register on_plain_rows_or_nodes converted age_of reject_duplicates to_row
        say stop
    """.split()
    for f in FUNCTIONS:
        if not f.name.startswith("__") and not f.name.endswith("_rule"):
            assert ast.get_docstring(f) or f.name in inner, f.name
