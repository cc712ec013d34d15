"""The ladder: eleven small programs, from a die to a GPT. Each adds one idea.

    python microgpt.py ladder                # the steps, and the questions they answer
    python microgpt.py ladder attention      # run one, by its name or number
    python microgpt.py ladder --all          # run all (a minute), and print the table
    python examples/ladder.py --readme       # and put it into the ladder's README.md

The programs are in examples/ladder/. They also run by themselves, such as
`python examples/ladder/08_attention.py`. All of them learn from the bundled names and
are measured on the same 500 other names, so their results can be compared.
"""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _common import make_parser, paragraph, run_command, width

import microgpt

HERE = Path(__file__).resolve().parent
TAKES = "A step takes a few seconds, some of them twenty; all take a minute."
HEAD = (
    "| step | the question it answers | parameters | held-out loss | seconds |\n"
    "|---|---|--:|--:|--:|\n"
)


def steps():
    """{name: (path, question)}, in order."""
    found = {}
    for path in sorted((HERE / "ladder").glob("[0-9][0-9]_*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        question = re.match(r"Step \d+, [^.]+\. (.+)\n", doc)[1]
        found[path.stem[3:]] = path, question
    return found


def result(name, output):
    """What a step's last line says -> (parameters, held-out loss), as printed."""
    last_line = rf"^{name}: ([\d,]+) parameters, held-out loss (\d+\.\d+)\n\Z"
    return re.search(last_line, output, re.MULTILINE).groups()


def run(path, **options):
    """Run a step -> how it ended.

    Its errors are kept back, because a step that is interrupted, or whose reader has
    gone, writes a traceback.
    """
    command = [sys.executable, str(path)]
    return subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", **options)


def run_all():
    """Run every step -> README's table."""
    table = HEAD
    for name, (path, question) in steps().items():
        print(f"{path.stem} ...", end=" ", flush=True)
        started = time.perf_counter()
        ended = run(path, stdout=subprocess.PIPE)
        seconds = time.perf_counter() - started
        if ended.returncode != 0:
            print()
            why = ended.stderr.strip().split("\n")[-1]
            raise ValueError(f"{path} failed: {why}")
        parameters, loss = result(name, ended.stdout)
        print(f"{parameters} parameters, held-out loss {loss}, {seconds:.1f} seconds")
        link = f"[{name}]({path.name})"
        table += f"| {link} | {question} | {parameters} | {loss} | {seconds:.1f} |\n"
    return table


def put_into_readme(table):
    """Replace the table in the README.md of the ladder's folder."""
    readme = HERE / "ladder" / "README.md"
    text = readme.read_bytes().decode("utf-8")
    before, head, after = text.partition(HEAD)
    if not head:
        raise ValueError("README.md has no table to replace")
    old_rows = re.match(r"(\|.*\n)*", after)
    after = after[old_rows.end() :]
    readme.write_bytes((before + table + after).encode("utf-8"))


def list_steps(known):
    """Print every step's number, name and question."""
    for number, (name, (_, question)) in enumerate(known.items(), start=1):
        if width() >= 60:
            print(paragraph(question, f"{number:2}  {name:10}  ", " " * 16))
        else:
            print(f"{number:2}  {name}")
            print(paragraph(question, "    ", "    "))
    print(paragraph(f"To run one: {microgpt.how_to_start()} ladder die"))


def run_step(word, known):
    """Run the step that a word names -> its exit status."""
    numbers = {str(number): name for number, name in enumerate(known, start=1)}
    name = numbers.get(word, word)
    if name not in known:
        names = ", ".join(known)
        raise ValueError(f"there is no step {word!r}: 1 to {len(known)}, or {names}")
    path, _ = known[name]
    ended = run(path)
    closed_or_full = re.search(r"^(\w+): \[Errno \d+\] (.*)\n\Z", ended.stderr, re.M)
    if closed_or_full and closed_or_full[1] == "OSError":
        raise OSError(None, closed_or_full[2])
    if "BrokenPipeError" not in ended.stderr:
        sys.stderr.write(ended.stderr)
    return ended.returncode


def climb(options):
    """List the steps, run one, or run all -> an exit status."""
    known = steps()
    if options.all or options.readme:
        table = run_all()
        print(f"\n{table}")
        if options.readme:
            put_into_readme(table)
        return 0
    if options.step is not None:
        return run_step(options.step, known)
    list_steps(known)
    return 0


def main(argv=None):
    """The command; returns the exit status."""
    parser = make_parser("ladder", __doc__, TAKES)
    parser.add_argument(
        "step",
        nargs="?",
        help="The name or number of the step to run. Without it, list all steps.",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="Run all steps, and print the README's table.",
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="Do the same, and put the table into README.md.",
    )
    return run_command("ladder", climb, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
