"""Times that are measured in alternating rounds, and the lines that show them.

A machine is now faster, now slower. So everything that is compared is measured in
turns, one round after another: all of it sees the machine in the same minutes.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections import namedtuple
from functools import partial
from time import perf_counter

from _common import progress, waiting, width

from microgpt import mean

ROUNDS = 3

# For how many seconds each thing is measured in a round, for how many it warms up
# before, and whether all should be done badly, but in a few seconds.
Plan = namedtuple("Plan", "seconds warm quick")


def stretch(advance, seconds):
    """Call a function again and again for so many seconds -> the seconds of a call."""
    n_calls = 0
    now = started = perf_counter()
    while n_calls == 0 or now < started + seconds:
        advance()
        n_calls += 1
        now = perf_counter()
    return (now - started) / n_calls


def in_rounds(title, measures, warm_up=()):
    """Measure all things in turns -> {name: [what it took in each round]}.

    `measures` are functions, {name: measure}; those of `warm_up` are called first.
    """
    times = {name: [] for name in measures}
    with progress() as show:
        show(f"{title}: warming up")
        for advance in warm_up:
            advance()
        for n in range(1, ROUNDS + 1):
            for name, measure in measures.items():
                show(f"{title}: round {n} of {ROUNDS}, {name}")
                times[name].append(measure())
    return times


def steps_in_rounds(title, steps, plan, others=()):
    """The same for functions that make a step each, and others as for in_rounds."""
    measures = dict(others)
    for name, step in steps.items():
        measures[name] = partial(stretch, step, plan.seconds)
    warm_up = [partial(stretch, step, plan.warm) for step in steps.values()]
    return in_rounds(title, measures, warm_up)


def row(label, value, unit="", note=""):
    """Print a line of the table, the value with three digits or as it is."""
    if isinstance(value, float):
        digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2
        value = f"{value:,.{digits}f}"
    line = f"{label:34} {value:>13} {unit:14} {note}"
    if width() < 79:
        line = f"{label}\n  {value} {unit} {note}"
    print(line.rstrip(), flush=True)


def ratio_row(label, slower, faster):
    """Print how many times as fast one thing was: the means, slowest, fastest round."""
    of_rounds = [long / short for long, short in zip(slower, faster)]
    brackets = f"({min(of_rounds):.3g} to {max(of_rounds):.3g})"
    row(label, mean(slower) / mean(faster), "times as fast", brackets)


def rows(title, times, unit, scale=1, to=None):
    """Print the mean time of each thing, and the ratio of each `to` one of them."""
    for name, seconds in times.items():
        row(f"{title}, {name}", scale * mean(seconds), unit)
    for name in times:
        if to in times and name != to:
            ratio_row(f"{title}, {name} to {to}", times[to], times[name])


def watch(title, command):
    """Run a program to its end -> its seconds, its peak memory in MB, its output.

    The peak is None on Windows. Linux counts at least what this process uses when it
    starts the program.
    """
    peak = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        started = perf_counter()
        child = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            with waiting(title):
                if hasattr(os, "wait4"):
                    _, status, usage = os.wait4(child.pid, 0)
                    child.returncode = os.waitstatus_to_exitcode(status)
                    unit = 1 if sys.platform == "darwin" else 1024
                    peak = usage.ru_maxrss * unit / 1e6
                child.wait()
        except BaseException:
            child.kill()
            raise
        seconds = perf_counter() - started
        output.seek(0)
        text = output.read()
    if child.returncode != 0:
        raise ValueError(f"{title} failed: {last_line(text)}")
    return seconds, peak, text


def last_line(text):
    """The last line of a text, where a traceback says what was wrong."""
    return text.strip().split("\n")[-1]
