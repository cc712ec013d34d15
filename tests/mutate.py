"""Do the tests notice when microgpt.py is wrong? Change it at random and see.

    python tests/mutate.py                              # 340 changes: 20 a chapter
    python tests/mutate.py --chapters 3 18 --number 40  # 20 in each of two chapters
    python tests/mutate.py --chapters 3 --near          # by the tests of chapter 3 only
    python tests/mutate.py --list                       # show the changes, run nothing
    python tests/mutate.py --pick 12 31                 # only these of the list

A change swaps an operator, moves a number, negates a condition, or drops a statement or
an argument. Each is made alone, in a copy of the project. The tests of its chapter run
first, and if they all pass, the others. The result is the share of the changes that
some test noticed, by chapter, and a list of those that no test noticed.

Some changes make no difference to anybody. equivalent_changes.txt names them, each with
the reason, and they are not counted. A change after which the file cannot be imported
is not counted either. The same seed draws the same changes as long as microgpt.py stays
the same. All 340 take about twenty minutes on two cores.
"""

import argparse
import ast
import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent_changes.txt")
SLOWEST = 600  # seconds: what takes longer than this hangs, and that is noticed
LEFT_OUT = {  # they are slow, or about other things than what microgpt.py computes
    "test_benchmark",
    "test_habits",
    "test_install",
    "test_page",
    "test_readmes",
    "test_train_torch",
}

# A place in the program, in bytes, and what to write there. `name` says the same in
# words: the function, the lines as they are and as they become.
Change = namedtuple("Change", "chapter line name start end text")

EITHER = {"min", "max", "dot", "add"}  # it makes no difference which argument is first

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def changed(node, **fields):
    """A copy of a syntax node with other fields."""
    other = copy.copy(node)
    for name, x in fields.items():
        setattr(other, name, x)
    return other


def without(items, i):
    return items[:i] + items[i + 1 :]


def variants(node):
    """Every way to change one node, as syntax."""
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        if type(node.op) in OPERATORS:
            yield changed(node, op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield changed(node, ops=[OPERATORS[type(node.ops[0])]()])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield changed(node, value=not node.value)
        elif isinstance(node.value, int):
            yield changed(node, value=node.value + 1)
        elif isinstance(node.value, float):
            yield changed(node, value=node.value * 1.5 or 1.0)
    elif isinstance(node, ast.Return) and node.value is not None:
        if ast.unparse(node.value) != "None":
            yield changed(node, value=None)
    elif isinstance(node, (ast.Raise, ast.Break, ast.Continue)):
        yield ast.Pass()
    elif isinstance(node, ast.Expr):
        if not isinstance(node.value, ast.Constant):  # which would be a docstring
            yield ast.Pass()
    elif isinstance(node, ast.Assign):
        if isinstance(node.targets[0], (ast.Attribute, ast.Subscript)):
            yield ast.Pass()
    elif isinstance(node, ast.Call):
        for i in range(len(node.keywords)):
            yield changed(node, keywords=without(node.keywords, i))
        starred = any(isinstance(x, ast.Starred) for x in node.args)
        if len(node.args) == 2 and not starred and ast.unparse(node.func) not in EITHER:
            yield changed(node, args=node.args[::-1])


def in_order(tree, function="the file"):
    """Every node that has a place, with the name of the function that it is in."""
    for child in ast.iter_child_nodes(tree):
        name = function
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            name = child.name if function == "the file" else f"{function}.{child.name}"
        if hasattr(child, "end_col_offset"):
            yield child, name
        yield from in_order(child, name)


def one_line(text):
    return " ".join(text.split())


def chapters_by_line(lines):
    """The chapter that each line is in, from line 1 on; 0 stands before the first."""
    chapter = 0
    chapters = [None]
    for line in lines:
        header = re.match(rb"# === (\d+)\. ", line)
        chapter = int(header[1]) if header else chapter
        chapters.append(chapter)
    return chapters


def all_changes(source):
    """All changes of a program, in the order of its text."""
    lines = source.splitlines(keepends=True)
    chapters = chapters_by_line(lines)
    starts = [None, 0]  # where each line begins, from line 1 on
    for line in lines:
        starts.append(starts[-1] + len(line))

    changes = []
    for node, function in in_order(ast.parse(source)):
        last = node.test if isinstance(node, (ast.If, ast.While)) else node
        start = starts[node.lineno] + node.col_offset
        end = starts[last.end_lineno] + last.end_col_offset
        old = source[start:end].decode()
        before = source[starts[node.lineno] : start].decode()
        after = source[end : starts[last.end_lineno + 1]].decode()
        if last is node and not says(old, node):
            continue  # before Python 3.12, places in an f-string are wrong
        for other in variants(node):
            new = written(other, old)
            old_lines = one_line(before + old + after)
            new_lines = one_line(before + new + after)
            name = f"{function}: {old_lines} -> {new_lines}"
            chapter = chapters[node.lineno]
            change = Change(chapter, node.lineno, name, start, end, new.encode())
            changes.append(change)
    return changes


def says(text, node):
    """Is this the text of the node?"""
    is_expression = isinstance(node, ast.expr)
    try:
        parsed = ast.parse(f"({text})" if is_expression else text).body[0]
    except SyntaxError:
        return False
    if is_expression:
        parsed = getattr(parsed, "value", None)
    return parsed is not None and ast.dump(parsed) == ast.dump(node)


def written(node, old):
    """The text of a changed node, with as many lines as the old text."""
    if isinstance(node, (ast.If, ast.While)):  # what it does stays where it is
        node = changed(node, body=[ast.Pass()], orelse=[])
        header = ast.unparse(node).split(":\n")[0]
        return "el" + header if old.startswith("elif") else header
    text = ast.unparse(node)
    if isinstance(node, ast.expr):
        text = "(" + text + "\n" * old.count("\n") + ")"
    return text


def draw(changes, chapters, number, seed):
    """As many changes of each chapter, or all that it has."""
    rng = random.Random(seed)
    drawn = []
    for chapter in chapters:
        candidates = [change for change in changes if change.chapter == chapter]
        count = min(round(number / len(chapters)), len(candidates))
        drawn += sorted(rng.sample(candidates, count))
    return drawn


def equivalent_changes():
    """The names of the changes that make no difference, {name: reason}."""
    reasons = {}
    name = None
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            reasons[name] = f"{reasons[name]} {line.strip()}".strip()
        elif line and not line.startswith("#"):
            name = line
            reasons[name] = ""
    return reasons


def tests_for(chapter, near_only):
    """Which tests to run, one list after the other: the chapter's, then all others."""
    core = sorted(ROOT.glob("tests/core/test_*.py"))
    numbers = {path: int(path.name.split("_")[1]) for path in core}
    nearest = max(number for number in numbers.values() if number <= chapter)
    near = [path for path in core if numbers[path] == nearest]
    if near_only:
        return [near]
    far = [path for path in core if numbers[path] != nearest]
    others = [*ROOT.glob("tests/examples/test_*.py"), *ROOT.glob("tests/p*/test_*.py")]
    others = [path for path in sorted(others) if path.stem not in LEFT_OUT]
    return [near, far, others]


def run(command, folder):
    """Did a command end well? It is ended, with its children, if it hangs."""
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "quick", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    child = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return child.wait(SLOWEST) == 0
    except subprocess.TimeoutExpired:
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        return False


def pass_in(folder, lists):
    """Do all tests pass in a copy of the project? The lists run one after the other."""
    for paths in lists:
        names = [str(path.relative_to(ROOT)) for path in paths]
        if not run(
            ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *names], folder
        ):
            return False
    return True


def try_change(change, source, folder, near):
    """Make a change in a copy of the project -> "noticed", "survived" or "broken"."""
    text = source[: change.start] + change.text + source[change.end :]
    (folder / "microgpt.py").write_bytes(text)
    if not run(["-c", "import microgpt"], folder):
        return "broken"
    return "survived" if pass_in(folder, tests_for(change.chapter, near)) else "noticed"


def make_copies(scratch, number):
    leave = shutil.ignore_patterns(".git", "__pycache__", "build", ".[a-z]*_cache")
    copies = [scratch / str(i) for i in range(number)]
    for folder in copies:
        shutil.copytree(ROOT, folder, ignore=leave)
    return copies


def check_unchanged(drawn, folder, near):
    """The tests must pass before anything is changed."""
    chapters = {change.chapter for change in drawn.values()}
    needed = {path for x in chapters for paths in tests_for(x, near) for path in paths}
    if not pass_in(folder, [sorted(needed)]):
        sys.exit("mutate.py: some of these tests fail without any change")


def try_all(drawn, source, jobs, near):
    """Try the changes, some side by side -> {number: result}."""
    free = Queue()

    def try_one(number):
        folder = free.get()
        result = try_change(drawn[number], source, folder, near)
        free.put(folder)
        print(f"{number:4} {result:8} {describe(drawn[number])}", flush=True)
        return result

    with tempfile.TemporaryDirectory(prefix="mutate-") as scratch:
        for folder in make_copies(Path(scratch), jobs):
            free.put(folder)
        check_unchanged(drawn, folder, near)
        pool = ThreadPoolExecutor(jobs)
        try:
            return dict(zip(drawn, pool.map(try_one, drawn)))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, start no more


def describe(change):
    return f"ch. {change.chapter}, line {change.line}: {change.name}"


def report(drawn, results, reasons):
    """Print the share noticed by chapter, and what survived -> the survivors."""
    counted = defaultdict(int)
    noticed = defaultdict(int)
    survivors = []
    for number, change in drawn.items():
        if results[number] == "broken" or change.name in reasons:
            continue
        counted[change.chapter] += 1
        if results[number] == "noticed":
            noticed[change.chapter] += 1
        else:
            survivors.append(number)
    print("\nchapter  noticed     of")
    for chapter, count in sorted(counted.items()):
        print(f"{chapter:7}  {noticed[chapter]:7}  {count:5}")
    total = sum(counted.values())
    share = sum(noticed.values()) / max(1, total)
    print(f"    all  {sum(noticed.values()):7}  {total:5}  {share:.1%}")
    for number in survivors:
        print(f"\n{number:4} survived: {describe(drawn[number])}")
    return survivors


def main():
    name = "tests/mutate.py"
    parser = argparse.ArgumentParser(
        name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    all_chapters = list(range(1, 19))
    parser.add_argument("--chapters", type=int, nargs="+", default=all_chapters)
    parser.add_argument("--number", type=int, default=340, help="of changes, 340")
    parser.add_argument("--seed", type=int, default=1, help="of the draw, 1")
    parser.add_argument("--jobs", type=int, default=2, help="side by side, 2")
    parser.add_argument("--list", action="store_true", help="show the changes only")
    parser.add_argument("--pick", type=int, nargs="+", help="try only these numbers")
    parser.add_argument("--near", action="store_true", help="the chapter's tests only")
    options = parser.parse_args()

    source = (ROOT / "microgpt.py").read_bytes()
    changes = all_changes(source)
    drawn = draw(changes, options.chapters, options.number, options.seed)
    drawn = dict(enumerate(drawn, start=1))
    if options.pick:
        drawn = {number: drawn[number] for number in options.pick}
    if options.list:
        for number, change in drawn.items():
            print(f"{number:4} {describe(change)}")
        return 0
    results = try_all(drawn, source, options.jobs, options.near)
    return 1 if report(drawn, results, equivalent_changes()) else 0


if __name__ == "__main__":
    sys.exit(main())
