"""The ladder: from a die to a GPT in eleven small programs, each of which adds one idea.

    python microgpt.py ladder                   # the steps, and the question that each answers
    python microgpt.py ladder attention         # run one, by name or number
    python microgpt.py ladder --all             # run all (a minute), and print README's table
    python examples/ladder.py --readme          # the same, and put it into README.md

The programs are in examples/ladder/ and run by themselves too, as examples/ladder/08_attention.py.
All learn from the bundled names and are measured on the same 500 others: results can be compared.
"""

import argparse
import ast
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEAD = (
    "| step | the question it answers | parameters | held-out loss | seconds |\n"
    "|---|---|--:|--:|--:|\n"
)


def steps():
    """{name: (path, question)}, in order."""
    found = {}
    for path in sorted((HERE / "ladder").glob("[0-9][0-9]_*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        found[path.stem[3:]] = path, re.match(r"Step \d+, [^.]+\. (.+)\n", doc)[1]
    return found


def result(name, output):
    """What a step's last line says -> (parameters, held-out loss), as printed."""
    return re.search(
        rf"^{name}: ([\d,]+) parameters, held-out loss (\d+\.\d+)\n\Z",
        output,
        re.MULTILINE,
    ).groups()


def run_all(say=print):
    """Run every step -> README's table."""
    table = HEAD
    for name, (path, question) in steps().items():
        say(f"{path.stem} ...", end=" ", flush=True)
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, str(path)],
            check=True,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        seconds = time.perf_counter() - started
        parameters, loss = result(name, run.stdout)
        say(
            f"{parameters} parameters, held-out loss {loss}, {seconds:.1f} seconds",
            flush=True,
        )
        link = f"[{name}](examples/ladder/{path.name})"
        table += f"| {link} | {question} | {parameters} | {loss} | {seconds:.1f} |\n"
    return table


def main(argv=None):
    parser = argparse.ArgumentParser(prog="ladder", description=__doc__.split("\n")[0])
    parser.add_argument(
        "step", nargs="?", help="its name or number; without it, all are listed"
    )
    parser.add_argument(
        "--all", action="store_true", help="run all, and print README's table"
    )
    parser.add_argument(
        "--readme", action="store_true", help="put the table into README.md"
    )
    args = parser.parse_args(argv)
    known = steps()
    if args.all or args.readme:
        try:
            table = run_all()
        except subprocess.CalledProcessError as error:
            print(f"\nladder: {error.cmd[-1]} has failed", file=sys.stderr)
            return 1
        print(f"\n{table}")
        if args.readme:
            readme = HERE.parent / "README.md"
            text = readme.read_bytes().decode("utf-8")
            before, head, after = text.partition(HEAD)
            if not head:
                print("ladder: README.md has no table to replace", file=sys.stderr)
                return 1
            rest = after[re.match(r"(\|.*\n)*", after).end() :]
            readme.write_bytes((before + table + rest).encode("utf-8"))
        return 0
    if args.step is None:
        for number, (name, (_, question)) in enumerate(known.items(), start=1):
            print(f"{number:2}  {name:10}  {question}")
        print("To run one: python microgpt.py ladder die")
        return 0
    numbers = {str(number): name for number, name in enumerate(known, start=1)}
    name = numbers.get(args.step, args.step)
    if name not in known:
        print(
            f"ladder: there is no step {args.step!r}: 1 to {len(known)}, or {', '.join(known)}",
            file=sys.stderr,
        )
        return 1
    return subprocess.run([sys.executable, str(known[name][0])]).returncode


if __name__ == "__main__":
    sys.exit(main())
