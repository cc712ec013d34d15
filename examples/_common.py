"""What the programs in this folder share: output to a terminal, and exit statuses.

Importing it also makes `import microgpt` work without installation. It is not a
program, so its name begins with an underscore.
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
    """Should the output have colours? Yes on a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width():
    """How many columns a line may have: 79, or fewer on a narrow terminal.

    It is at least 60, because the tables here need that many.
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
    """A text with escapes for characters that the output cannot safely show."""
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

    An error becomes a message of one line. If the reader of the output closes it early,
    as `head` does, the status is 1 and there is no message.
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
    """Keep Python from writing to the closed output when it exits."""
    with suppress(OSError):  # the output may not be a file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
