"""What the programs in this folder share: words on a terminal, and how a program ends.

Importing it also makes `import microgpt` work where nothing is installed. It is not a
program, and so its name begins with an underscore.
"""

import argparse
import os
import shutil
import sys
from contextlib import suppress
from unicodedata import east_asian_width

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def can_show(text):
    """Can the output write this text?"""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        return False
    return True


def in_colour():
    """May the output have colours? It may on a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width():
    """How many columns a line may have: 79, or fewer on a narrow terminal.

    There are at least 60, because no table here fits into less.
    """
    if not sys.stdout.isatty():
        return 79
    return max(60, min(79, shutil.get_terminal_size().columns - 1))


def columns(text):
    """How many columns a text takes. Some characters, such as Chinese, take two."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def fit(text, limit=None):
    """A text cut to a number of columns, by default to a line's width."""
    limit = limit or width()
    if columns(text) <= limit:
        return text
    while columns(text) > limit - 3:
        text = text[:-1]
    return text + "..."


def escape(text):
    r"""A text in ASCII, with escapes such as \n or \u5929 for everything else."""
    return text.encode("unicode_escape").decode()


def visible(text):
    """A text with escapes for what would disturb a terminal, or is unknown to it."""
    shown = [c if c.isprintable() and can_show(c) else escape(c) for c in text]
    return "".join(shown)


def quoted(text):
    """A text in quotes, with the same escapes."""
    return repr(text) if can_show(text) else ascii(text)


def make_parser(name, description):
    """A parser of command-line options, which shows the first line of a description."""
    first_line = description.split("\n")[0]
    return argparse.ArgumentParser(prog=name, description=first_line)


def run_command(name, command, options, status_of_errors=1):
    """Call a command with its options -> its exit status, 0 if it returns None.

    What goes wrong is told in one line. A reader that has seen enough, such as `head`,
    is no error to speak of: the status is 1, and nothing is told.
    """
    try:
        status = command(options) or 0
        print(end="", flush=True)
        return status
    except BrokenPipeError:
        close_output()
        return 1
    except KeyboardInterrupt:
        problem = "interrupted"
        status_of_errors = 130
    except MemoryError:
        problem = "not enough memory"
    except OSError as error:
        problem = error.strerror or str(error)
        if error.filename is not None:
            problem = f"{error.filename!r}: {problem}"
        else:
            close_output()
    except (ValueError, ArithmeticError) as error:
        problem = str(error)
    print(f"{name}: {problem}", file=sys.stderr)
    return status_of_errors


def close_output():
    """Keep Python from writing, at its exit, what can no longer be written."""
    with suppress(OSError):  # the output may be no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
