"""Another script that trains and samples, measured from outside.

It reads documents from input.txt in its working directory. It prints a line
`step N / M | loss X` for each step of one document and, after its steps, lines
`sample N: TEXT`.
"""

import os
import random
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, closing
from time import perf_counter

from rounds import last_line

from microgpt import Config

BLOCK = Config(1).block_size
FIRST_STEPS = 3  # before samples are timed
STEP = re.compile(r"step +\d+ */ *\d+ *\| *loss")
SAMPLE = re.compile(r"sample +\d+: ?(.*)")
NUM_STEPS = re.compile(r"^num_steps *= *[\d_]+", re.MULTILINE)


def write(folder, name, text):
    """Write a text file, with plain ends of lines."""
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


class Baseline:
    """A script and the interpreter that runs it, on documents in ever new orders."""

    def __init__(self, script, python, documents):
        found = shutil.which(python)
        if not found:
            raise ValueError(f"there is no interpreter {python}")
        self.python = os.path.abspath(found)  # as the script runs in another folder
        self.script = script
        self.documents = documents[:]
        self.rng = random.Random(0)
        with open(script, encoding="utf-8") as file:
            self.source = file.read()

    def run(self, source):
        """Run some source until nobody wants more: yields (when, line)."""
        self.rng.shuffle(self.documents)
        beside = os.path.dirname(os.path.abspath(self.script))
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            write(folder, "input.txt", "\n".join(self.documents) + "\n")
            write(folder, "script.py", source)
            errors = stack.enter_context(open(os.path.join(folder, "errors"), "w+"))
            child = subprocess.Popen(
                [self.python, "-u", "script.py"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": beside},
            )
            stack.enter_context(child)  # waits for it
            stack.callback(child.kill)
            for line in child.stdout:
                yield perf_counter(), line
            errors.seek(0)
            self.error = last_line(errors.read())

    def training(self, plan):
        """The seconds of a step, after a warm-up."""
        stamps = []
        with closing(self.run(self.source)) as lines:
            for now, line in lines:
                if STEP.match(line):
                    stamps.append(now)
                    if now - stamps[0] > plan.warm + plan.seconds:
                        break
        if len(stamps) < 2:
            wanted = "prints no lines like: step 1 / 1000 | loss 3.3"
            raise ValueError(f"{self.script} {wanted}. {self.error}".strip())
        warm = [now for now in stamps if now >= stamps[0] + plan.warm]
        if len(warm) < 2:  # it ended too soon
            warm = stamps
        return (warm[-1] - warm[0]) / (len(warm) - 1)

    def writing(self):
        """The seconds of a token in its samples; None if there is nothing to measure.

        They are timed after a few steps, which takes a line that sets num_steps. The
        end of a document counts as a token.
        """
        source, found = NUM_STEPS.subn(f"num_steps = {FIRST_STEPS}", self.source)
        if not found:
            return None
        n_tokens = 0
        with closing(self.run(source)) as lines:
            for now, line in lines:
                sample = SAMPLE.match(line.rstrip("\n"))
                if STEP.match(line):
                    started = now
                elif sample:
                    ended = now
                    n_tokens += min(len(sample[1]) + 1, BLOCK)
        return (ended - started) / n_tokens if n_tokens else None
