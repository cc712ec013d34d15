"""What the programs in this folder share: options, output, and exit statuses.

Importing it also makes `import microgpt` work without installation. It is not a
program, so its name begins with an underscore.
"""

import argparse
import io
import math
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from textwrap import TextWrapper

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def end_quietly(kind, error, traceback):
    """No traceback if Ctrl-C comes while a program is still importing its libraries."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = end_quietly

import microgpt  # noqa: E402
from microgpt import columns, waiting  # noqa: E402

# Characters without a width that scripts such as Persian and Hindi need, and emoji.
JOINERS = "\u200c\u200d"


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

    The terminal is asked anew each time, because its window may have changed.
    """
    if not sys.stdout.isatty():
        return 79
    room = shutil.get_terminal_size().columns  # COLUMNS, if somebody has set that
    with suppress(OSError):
        room = min(room, os.get_terminal_size(sys.stdout.fileno()).columns or room)
    return max(1, min(79, room - 1))


def fit(text, limit=None, dots="..."):
    """A text cut to a number of columns, by default to a line's width."""
    limit = limit or width()
    if columns(text) <= limit:
        return text
    dots = dots[:limit]
    room = limit - len(dots)
    kept = ""
    for character in text:
        room -= columns(character)
        if room < 0:
            break
        kept += character
    return kept + dots


def pad(text, n):
    """A text cut or filled with spaces to exactly n columns."""
    text = fit(text, n)
    return text + " " * (n - columns(text))


def paragraph(text, first="", later=""):
    """A text broken at its spaces into lines of at most width() columns.

    `first` stands before the first line, `later` before the others.
    """
    wrapper = TextWrapper(width(), initial_indent=first, subsequent_indent=later)
    wrapper.break_on_hyphens = False
    return "\n".join(wrapper.wrap(text))


def flow(cells, later=""):
    """Cells side by side, on as many lines as they need, none of which is cut.

    `later` stands before the lines after the first.
    """
    lines = [cells[0]]
    for cell in cells[1:]:
        longer = f"{lines[-1]}  {cell}"
        if columns(longer) <= width():
            lines[-1] = longer
        else:
            lines.append(later + cell)
    return "\n".join(lines)


def escape(text):
    r"""A text in ASCII, with escapes such as \n or \u5929 for everything else."""
    return text.encode("unicode_escape").decode()


def visible(text):
    """A text with escapes for characters that the output cannot safely show.

    Such characters could move the cursor, or turn the direction of what follows.
    """
    shown = [c if is_safe(c) and can_show(c) else escape(c) for c in text]
    return "".join(shown)


def is_safe(character):
    """Can a terminal or a picture show this character, without harm?"""
    return character.isprintable() or character in JOINERS


def quoted(text):
    """A text in quotes, with the same escapes."""
    return repr(text) if can_show(text) else ascii(text)


def perplexity(loss):
    """e to a loss: among how many equally likely tokens a model seems to choose."""
    return math.exp(loss) if loss < 700 else math.inf  # exp would overflow


@contextmanager
def progress():
    """`with` gives a function that shows a text on a terminal, over the one before.

    At the end, and after an error, the line is blank again.
    """
    last = ""

    def show(text):
        nonlocal last
        if sys.stdout.isatty() and (text or last):
            text = fit(text)
            blank = " " * min(columns(last), width())  # no more: the window may shrink
            print(f"\r{blank}\r{text}", end="", flush=True)
        last = text

    try:
        yield show
    finally:
        show("")


class Parser(argparse.ArgumentParser):
    """A parser of command-line options that ends well if nobody reads its help.

    It says in one line what is wrong.
    """

    def error(self, message):
        self.exit(2, f"{self.prog}: {visible(message)} (see --help)\n")

    def exit(self, status=0, message=None):
        if not flush_output():
            status = 1
        super().exit(status, message)


def make_parser(name, description, takes=""):
    """A parser whose --help begins with the first line of a program's description.

    `takes` is a sentence that says how long the program takes, if that is more than a
    second.
    """
    first_line = (description or "").split("\n")[0]  # `python -OO` drops docstrings
    return Parser(prog=name, description=f"{first_line} {takes}".strip())


def add_directory(parser):
    """The option for the model to load."""
    parser.add_argument(
        "directory", metavar="DIR", help="The directory of a saved model."
    )


def count(text):
    """A number from 1 to 1000, from the command line."""
    with suppress(ValueError):
        if 1 <= int(text) <= 1000:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")


def not_empty(text):
    """A name from the command line; one that is empty was not meant."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def load(directory):
    """The model that is saved in a directory, and its tokenizer."""
    with waiting(f"loading {visible(directory)}"):
        return microgpt.load_model(directory), microgpt.load_tokenizer(directory)


def write_whole(path, content):
    """Write bytes to a file as a whole or, if that fails, leave it as it was.

    What is not a file, such as a pipe or /dev/stdout, is just written to.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(path, "wb") as file:
            file.write(content)
        return
    part = f"{target}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
        if os.path.exists(target):
            shutil.copymode(target, part)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            os.remove(part)
        if isinstance(error, OSError):
            error.filename = path  # not the temporary file
            error.filename2 = None
        raise


def run_command(name, command, options, status_of_errors=1):
    """Call a command with its options -> its exit status, 0 if it returns None.

    An error becomes a message of one line. If the reader of the output closes it early,
    as `head` does, the status is 1 and there is no message.
    """
    if sys.stdout is None:  # it was closed before we began
        sys.stdout = io.StringIO()
    if sys.stdin is None:
        sys.stdin = io.StringIO()
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
    flush_output()
    print(f"{name}: {visible(problem)}", file=sys.stderr)
    return status_of_errors


def flush_output():
    """Write what is still in the output's buffer -> is the output still open?"""
    try:
        print(end="", flush=True)
    except OSError:
        close_output()
        return False
    return True


def close_output():
    """Keep Python from writing to the closed output when it exits."""
    with suppress(OSError):  # the output may not be a file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
