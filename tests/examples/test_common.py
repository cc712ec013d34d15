"""examples/_common.py: words on a terminal, and how the programs in examples/ end."""

import io
import os
import re
import subprocess
import sys

import _common
import pytest
from helpers import ABC, make
from hypothesis import given
from hypothesis import strategies as st

import microgpt

EXAMPLES = os.path.dirname(_common.__file__)
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
ENV["PYTHONIOENCODING"] = "utf-8"
WIDE = "\u5929\u5730"
PROGRAMS = {  # with words that make them print a few lines
    "explain": ["DIR", "ab", "c"],
    "lookahead": ["DIR", "ab"],
    "xray": ["DIR", "ab"],
    "graph": [],
    "ladder": [],
}


class Output(io.TextIOWrapper):
    """An output of some encoding, perhaps a terminal."""

    def __init__(self, encoding="utf-8", is_terminal=False):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


# Words


@pytest.mark.parametrize(
    "encoding, text, shown",
    [
        ("utf-8", "a\n\x1b[2J\u202e\\" + WIDE, r"a\n\x1b[2J\u202e" + "\\" + WIDE),
        ("latin-1", "\xe9" + WIDE, "\xe9" + r"\u5929\u5730"),
        ("ascii", "it's \xe9\U0001f642", r"it's \xe9\U0001f642"),
        ("utf-8", "\udc80", r"\udc80"),
    ],
)
def test_visible_escapes_what_cannot_be_shown_and_nothing_else(
    monkeypatch, encoding, text, shown
):
    monkeypatch.setattr(sys, "stdout", Output(encoding))
    assert _common.visible(text) == shown


@pytest.mark.parametrize(
    "encoding, quoted", [("utf-8", "'\xe9\\n'"), ("ascii", r"'\xe9\n'")]
)
def test_quoted_is_in_quotes_that_the_output_can_show(monkeypatch, encoding, quoted):
    monkeypatch.setattr(sys, "stdout", Output(encoding))
    assert _common.quoted("\xe9\n") == quoted


@given(st.text(st.sampled_from("ab\xe9" + WIDE)), st.integers(3, 20))
def test_a_text_that_fits_is_left_alone_and_another_is_cut(text, limit):
    fitted = _common.fit(text, limit)
    if _common.columns(text) <= limit:
        assert fitted == text
    else:
        assert fitted.endswith("...") and text.startswith(fitted[:-3])
        assert limit - 1 <= _common.columns(fitted) <= limit


def test_wide_characters_take_two_columns():
    assert _common.columns("a" + WIDE + "\xe9\uff21") == 1 + 4 + 1 + 2


@pytest.mark.parametrize(
    "is_terminal, terminal, expected",
    [
        (False, 200, 79),
        (False, 30, 79),
        (True, 200, 79),
        (True, 70, 69),
        (True, 30, 60),
    ],
)
def test_a_line_is_as_wide_as_the_terminal_within_limits(
    monkeypatch, is_terminal, terminal, expected
):
    monkeypatch.setattr(sys, "stdout", Output(is_terminal=is_terminal))
    monkeypatch.setenv("COLUMNS", str(terminal))
    assert _common.width() == expected


@pytest.mark.parametrize(
    "is_terminal, no_color, expected",
    [(True, None, True), (True, "", True), (True, "1", False), (False, None, False)],
)
def test_colours_are_for_terminals_without_no_color(
    monkeypatch, is_terminal, no_color, expected
):
    monkeypatch.setattr(sys, "stdout", Output(is_terminal=is_terminal))
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert _common.in_colour() is expected


# How a program ends


def ending(capsys, error, **options):
    """What becomes of a command that raises: (exit status, what it says)."""

    def command(options):
        raise error

    status = _common.run_command("name", command, None, **options)
    out, err = capsys.readouterr()
    assert out == ""
    return status, err


@pytest.mark.parametrize(
    "error, status, said",
    [
        (ValueError("x is bad"), 1, "name: x is bad\n"),
        (ArithmeticError("diverged"), 1, "name: diverged\n"),
        (OSError(2, "No such file", "a.txt"), 1, "name: 'a.txt': No such file\n"),
        (OSError(28, "No space left"), 1, "name: No space left\n"),
        (MemoryError(), 1, "name: not enough memory\n"),
        (KeyboardInterrupt(), 130, "name: interrupted\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(capsys, error, status, said):
    assert ending(capsys, error) == (status, said)


def test_a_program_may_have_another_status_for_errors(capsys):
    assert ending(capsys, ValueError("no"), status_of_errors=2) == (2, "name: no\n")


def test_a_mistake_in_a_program_is_not_hidden(capsys):
    with pytest.raises(KeyError):
        ending(capsys, KeyError("x"))


@pytest.mark.parametrize("returned, status", [(None, 0), (0, 0), (3, 3)])
def test_what_a_command_returns_is_the_status(returned, status):
    def command(options):
        assert options == "options"
        return returned

    assert _common.run_command("name", command, "options") == status


# The programs


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a tiny model."""
    directory = str(tmp_path_factory.mktemp("saved"))
    microgpt.save_model(make(), directory, ABC)
    return directory


@pytest.fixture(params=["alone", "by microgpt.py"])
def command(request, saved):
    """The command line of a program: by itself, and as a command of microgpt.py."""

    def words(name, *args):
        start = [os.path.join(EXAMPLES, f"{name}.py")]
        if request.param == "by microgpt.py":
            start = [microgpt.__file__, name]
        args = [saved if arg == "DIR" else arg for arg in args]
        return [sys.executable, *start, *args]

    return words


def run(words, tmp_path, **options):
    """Run a command elsewhere, so that nothing is found by chance."""
    options = {"stdout": subprocess.PIPE, "env": ENV, **options}
    return subprocess.run(
        words, cwd=tmp_path, stderr=subprocess.PIPE, encoding="utf-8", **options
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_runs_from_any_folder(command, name, tmp_path):
    child = run(command(name, *PROGRAMS[name]), tmp_path)
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout and "\x1b" not in child.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_ends_quietly_when_nobody_reads(command, name, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    child = run(command(name, *PROGRAMS[name]), tmp_path, stdout=writing)
    os.close(writing)
    assert (child.returncode, child.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_tells_in_one_line_that_the_disk_is_full(command, name, tmp_path):
    with open("/dev/full", "w") as full:
        child = run(command(name, *PROGRAMS[name]), tmp_path, stdout=full)
    status = 2 if name == "xray" else 1
    assert child.returncode == status
    assert child.stderr == f"{name}: No space left on device\n"


@pytest.mark.parametrize("name", [*PROGRAMS, "autocomplete", "pictures", "benchmark"])
def test_each_program_has_help_of_whole_sentences(command, name, tmp_path):
    child = run(command(name, "--help"), tmp_path, env={**ENV, "COLUMNS": "200"})
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.startswith(f"usage: {name} ")
    _, *entries = re.split(r"\n  (?=\S)", child.stdout)
    others = [entry for entry in entries if not entry.startswith("-h, --help")]
    assert others
    for entry in others:
        entry = entry.partition("\n\n")[0]  # without the title of the next part
        assert re.search(r"[A-Z][^.]+.*\.$", entry, re.DOTALL), entry
