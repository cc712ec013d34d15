"""What all programs in examples/ do alike, most of it by examples/_common.py."""

import importlib
import io
import math
import os
import re
import signal
import sys

import _common
import pytest
from helpers import (
    ABC,
    ENGINES,
    EXAMPLES,
    SCRIPT,
    command,
    kept,
    make,
    on_terminal,
    program,
    start,
    works,
)
from hypothesis import given
from hypothesis import strategies as st

import microgpt

SPEED = EXAMPLES / "speed"
WIDE = "\u5929\u5730"

# {program: (its folder, words that make it print, does --help say how long it takes?)}
PROGRAMS = {
    "explain": (EXAMPLES, ["DIR", "ab", "c"], True),
    "lookahead": (EXAMPLES, ["DIR", "ab"], True),
    "autocomplete": (EXAMPLES, ["DIR"], True),
    "xray": (EXAMPLES, ["DIR", "ab"], True),
    "graph": (EXAMPLES, [], False),
    "ladder": (EXAMPLES, [], True),
    "pictures": (EXAMPLES, ["--model", "DIR", "--text", "ab"], True),
    "benchmark": (SPEED, ["--quick"], True),
    "check_engine": (ENGINES, [], True),
    "numpy_engine": (ENGINES, ["--steps", "1"], True),
    "train_torch": (ENGINES, ["--steps", "1"], True),
}
NEEDS = {
    "pictures": ["matplotlib"],
    "numpy_engine": ["numpy"],
    "train_torch": ["torch", "safetensors"],
}


class Output(io.TextIOWrapper):
    """An output of some encoding, perhaps a terminal."""

    def __init__(self, encoding="utf-8", is_terminal=False):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def shown(self):
        self.flush()
        return self.buffer.getvalue().decode()


# --- Files ---


def test_a_file_is_written_as_a_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    _common.write_whole(path, b"old")
    _common.write_whole(path, b"new")
    assert path.read_bytes() == b"new"

    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError) as raised:
        _common.write_whole(path, b"newest")
    assert raised.value.filename == path
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes with names")
def test_what_a_link_leads_to_is_written_and_a_pipe_stays_a_pipe(tmp_path):
    file = tmp_path / "file"
    file.touch(mode=0o600)
    (tmp_path / "link").symlink_to(file)
    _common.write_whole(tmp_path / "link", b"content")
    assert file.read_bytes() == b"content" and file.stat().st_mode & 0o77 == 0
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    _common.write_whole(tmp_path / "pipe", b"content")
    assert os.read(reading, 99) == b"content"
    os.close(reading)
    assert (tmp_path / "pipe").is_fifo()


# --- Texts ---


@pytest.mark.parametrize(
    "encoding, text, shown",
    [
        ("utf-8", "a\n\x1b[2J\u202e\\" + WIDE, r"a\n\x1b[2J\u202e" + "\\" + WIDE),
        ("latin-1", "\xe9" + WIDE, "\xe9" + r"\u5929\u5730"),
        ("ascii", "it's \xe9\U0001f642", r"it's \xe9\U0001f642"),
        ("utf-8", "\udc80", r"\udc80"),
        ("utf-8", "\x85\u2028\u2066\ufeff\x7f", r"\x85\u2028\u2066\ufeff\x7f"),
        ("utf-8", "a\u200cb\u200dc\u0301", "a\u200cb\u200dc\u0301"),
        ("ascii", "a\u200c", r"a\u200c"),
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


@pytest.mark.parametrize(
    "text, n",
    [
        ("abc", 3),
        (WIDE, 4),
        ("e\u0301", 1),  # an accent by itself
        ("\u0e17\u0e35\u0e48", 1),  # a Thai consonant with two marks
        ("\u0915\u094d\u200d\u0937", 2),  # Hindi, with a joiner
        ("\u0645\u06cc\u200c\u062e", 3),  # Persian, with a non-joiner
        ("1\u20dd", 1),  # in a circle
    ],
)
def test_a_character_takes_one_column_or_two_or_none(text, n):
    assert _common.columns(text) == n
    assert _common.pad(text, 9) == text + " " * (9 - n)
    assert _common.fit(text + "abc", n + 3) == text + "abc"
    assert _common.columns(_common.pad(4 * text, 5)) == 5


@given(st.text(st.sampled_from("ab\xe9\u0301\uff21" + WIDE)), st.integers(1, 20))
def test_a_text_that_fits_is_left_alone_and_another_is_cut(text, limit):
    fitted = _common.fit(text, limit)
    plain = text.replace("\u0301", "")
    if len(plain) + sum(c in "\uff21" + WIDE for c in plain) <= limit:
        assert fitted == text
    else:
        n = min(3, limit)
        assert fitted.endswith(n * ".") and text.startswith(fitted[:-n])
        assert limit - 1 <= _common.columns(fitted) <= limit


@pytest.mark.parametrize(
    "is_terminal, terminal, expected",
    [(False, 30, 79), (True, 200, 79), (True, 70, 69), (True, 20, 19), (True, 1, 1)],
)
def test_a_line_is_as_wide_as_the_terminal_within_limits(
    monkeypatch, is_terminal, terminal, expected
):
    monkeypatch.setattr(sys, "stdout", Output(is_terminal=is_terminal))
    monkeypatch.setenv("COLUMNS", str(terminal))
    assert _common.width() == expected


@pytest.mark.parametrize(
    "is_terminal, no_color, expected",
    [(True, "", True), (True, "1", False), (False, "", False)],
)
def test_colours_are_for_terminals_without_no_color(
    monkeypatch, is_terminal, no_color, expected
):
    monkeypatch.setattr(sys, "stdout", Output(is_terminal=is_terminal))
    monkeypatch.setenv("NO_COLOR", no_color)
    assert _common.in_colour() is expected


def test_a_perplexity_that_is_no_float_any_more_is_infinite():
    found = [_common.perplexity(loss) for loss in (0.0, 1.0, 699.0, 800.0)]
    assert found == [1.0, math.e, math.exp(699), math.inf]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_shows_that_work_goes_on_and_it_is_blank_at_the_end(
    monkeypatch, is_terminal
):
    output = Output(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(ValueError), _common.waiting("loading", every=0.001):
        while is_terminal and "loading: 0 s" not in output.shown():
            pass
        raise ValueError
    assert re.search("\r +\r$", output.shown()) if is_terminal else not output.shown()


def test_a_live_line_stays_one_line_while_the_window_changes(monkeypatch):
    output = Output(is_terminal=True)
    monkeypatch.setattr(sys, "stdout", output)
    with _common.progress() as show:
        for letter, terminal in zip("abc", ["80", "20", "60"]):
            monkeypatch.setenv("COLUMNS", terminal)
            show(letter * 50)
    drawn = output.shown().split("\r")
    letters = ["", "", "a" * 50, " " * 19, "b" * 16 + "...", " " * 19, "c" * 50]
    assert drawn == [*letters, " " * 50, ""]


def test_how_long_it_takes_is_shown_even_where_the_rest_is_cut(monkeypatch):
    output = Output(is_terminal=True)
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(microgpt.LiveLine, "width", lambda line: 20)
    with _common.waiting("loading " + "x" * 50, every=0.001):
        while not output.shown():
            pass
    assert "loading xxxxxx: 0 s\r" in output.shown()


# --- How a program ends ---


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
        (ValueError("\x1b[2J\na\u202e"), 1, "name: \\x1b[2J\\na\\u202e\n"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(capsys, error, status, said):
    assert ending(capsys, error) == (status, said)


def test_a_program_may_have_another_status_for_errors(capsys):
    assert ending(capsys, ValueError("no"), status_of_errors=2) == (2, "name: no\n")


def test_a_mistake_in_a_program_is_not_hidden(capsys):
    with pytest.raises(KeyError):
        ending(capsys, KeyError("x"))


@pytest.mark.parametrize("returned, status", [(None, 0), (3, 3)])
def test_what_a_command_returns_is_the_status(returned, status):
    assert _common.run_command("name", lambda options: returned, None) == status


# --- All programs ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a tiny model."""
    return kept(make(), ABC, tmp_path_factory.mktemp("saved"))


@pytest.fixture(params=PROGRAMS)
def name(request):
    """Each program in turn, if what it needs is installed."""
    for library in NEEDS.get(request.param, []):
        pytest.importorskip(library)
    return request.param


def words_of(name, saved):
    return [saved if word == "DIR" else word for word in PROGRAMS[name][1]]


def test_the_table_has_all_programs():
    found = set()
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("[!l]*/*.py")]:
        if "\ndef main(" in path.read_text(encoding="utf-8"):
            found.add((path.stem, path.parent))
    assert found == {(name, folder) for name, (folder, *_) in PROGRAMS.items()}


def test_help_is_short_and_says_how_long_the_program_takes(name, capsys):
    try:
        status = importlib.import_module(name).main(["--help"])
    except SystemExit as ended:
        status = ended.code
    output, error = capsys.readouterr()
    assert (status, error) == (0, "")
    assert re.match(rf"usage: {name}(\.py)? .*\n", output)
    ours = output.split("usage: python microgpt.py")[0]
    assert ours.count("\n") <= 35
    says_time = re.search(r"\b(moment|seconds?|minutes?)\b", ours) is not None
    assert says_time == PROGRAMS[name][2]


@pytest.mark.parametrize("words", [["ladder"], ["explain", "--help"]])
def test_a_program_works_without_docstrings(words):
    child = command("-OO", SCRIPT, *words, script="-I")
    assert (child.returncode, child.stderr) == (0, "")


@pytest.mark.parametrize("name", "explain lookahead autocomplete xray".split())
def test_a_program_works_where_python_adds_nothing_to_its_path(saved, name):
    words = words_of(name, saved)
    child = command(EXAMPLES / f"{name}.py", *words, script="-I", stdin=-3)
    assert (child.returncode, child.stderr) == (0, "")


def test_an_unknown_option_is_refused_in_one_line(name, saved, capsys):
    words = [*words_of(name, saved), "--nonsense\x1b"]
    try:
        status = importlib.import_module(name).main(words)
    except SystemExit as ended:
        status = ended.code
    output, error = capsys.readouterr()
    assert status in (1, 2) and output == ""
    assert re.fullmatch(r"\w+: .*--nonsense.* [(]see --help[)]\n", error)
    assert "\x1b" not in error


@pytest.mark.parametrize(
    "name, words",
    [
        ("xray", ["DIR", "ab", "--json", ""]),
        ("pictures", [""]),
        ("pictures", ["--out", ""]),
        ("pictures", ["--model", ""]),
        ("pictures", ["--text", ""]),
        ("benchmark", [""]),
        ("benchmark", ["--baseline", ""]),
        ("benchmark", ["--nanogpt", ""]),
    ],
)
def test_an_empty_name_is_not_taken_for_none(saved, name, words, capsys):
    words = [saved if word == "DIR" else word for word in words]
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(words)
    assert "it is empty" in capsys.readouterr().err


def test_a_program_without_an_input_reads_nothing(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert importlib.import_module("autocomplete").main([str(saved)]) == 0
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_ends_a_program_with_one_line(name, saved, monkeypatch, capsys):
    class Interrupted(io.StringIO):
        def write(self, text):  # the first time
            del Interrupted.write
            raise KeyboardInterrupt

    main = importlib.import_module(name).main
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    monkeypatch.setattr(sys, "stdout", Interrupted())
    monkeypatch.chdir(saved)
    assert main(words_of(name, saved)) == 130
    assert re.fullmatch(r"\w+: interrupted\n", capsys.readouterr().err)


def test_a_program_ends_quietly_when_nobody_reads(name, saved, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    words = words_of(name, saved)
    script = program(name, PROGRAMS[name][0])
    pipes = {"stdin": -1, "stdout": writing, "cwd": tmp_path}
    child = start(*words, script=script, **pipes)
    os.close(writing)
    error = child.communicate("ab\n")[1]
    assert child.returncode == 1
    assert error in ("", "microgpt: Broken pipe\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("name, word", [("lookahead", "DIR"), ("ladder", "die")])
def test_a_full_disk_is_told_in_one_line(saved, name, word):
    word = saved if word == "DIR" else word
    with open("/dev/full", "w") as full:
        child = start(word, script=program(name), stdout=full)
    said = f"{name}: No space left on device\n"
    assert (child.communicate()[1], child.returncode) == (said, 1)


posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


@posix
def test_ctrl_c_while_a_model_is_loaded_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    child = start(tmp_path, "ab", script=program("explain"))
    with open(tmp_path / "config.json", "w"):  # waits until the program opens it, too
        child.send_signal(signal.SIGINT)
        assert child.communicate()[1] == "explain: interrupted\n"
    assert child.returncode == 130


@posix
def test_ctrl_c_ends_a_step_of_the_ladder_without_a_traceback():
    options = {"env": {"PYTHONUNBUFFERED": "1"}, "start_new_session": True}
    child = start("pairs", script=program("ladder"), **options)
    assert child.stdout.readline().startswith("step ")
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    assert child.communicate()[1] == "ladder: interrupted\n"
    assert child.returncode == 130


def test_ctrl_c_before_the_training_with_pytorch_is_one_line(monkeypatch, capsys):
    pytest.importorskip("torch")
    train_torch = pytest.importorskip("train_torch")

    def interrupt(name, dtype):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_torch, "find_device", interrupt)
    assert train_torch.main([]) == 130
    assert capsys.readouterr() == ("", "train_torch: interrupted\n")


# {what: words that draw something wide}, for a model that knows these characters.
STRANGE = "ab\x1b\x07\x9b\u202e\u2028\u2066"
WIDE_OUTPUTS = {
    "explain": ["explain", "DIR", STRANGE, "ab" * 30],
    "lookahead": ["lookahead", "DIR", STRANGE, "-k", "8"],
    "attention": ["xray", "DIR", STRANGE * 2, "--attention", "--neighbours"],
    "residual": ["xray", "DIR", STRANGE * 2, "--residual"],
    "in brief": ["xray", "DIR", "ab" * 30],
    "to compare": ["xray", "--compare", "FILE", "FILE"],
    "ladder": ["ladder"],
    "graph": ["graph"],
    "graph, wide": ["graph", "\u5929*exp(a)/(\u5929+1e-9)", "\u5929=-1e-300", "a=-99"],
    "layer": ["graph", "--layer", "softmax"],
}


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """The directory of a model that writes what could move the cursor, and a trace."""
    tokenizer = microgpt.CharTokenizer([STRANGE])
    directory = tmp_path_factory.mktemp("strange")
    kept(make(tokenizer, block_size=16), tokenizer, directory)
    file = directory / "\x1b[2J.json"
    works(directory, "ab", "--json", file, script=program("xray"))
    return {"DIR": directory, "FILE": file}


@pytest.mark.parametrize("terminal", [20, 30, 40, 80])
@pytest.mark.parametrize("words", WIDE_OUTPUTS.values(), ids=WIDE_OUTPUTS)
def test_on_a_terminal_no_line_is_too_long_and_nothing_moves_the_cursor(
    strange, words, terminal
):
    name, *words = [strange.get(word, word) for word in words]
    shown = on_terminal(*words, script=program(name), columns=terminal)
    shown = re.sub("\x1b\\[(0|3[123])m", "", shown)  # colours
    lines = re.split("[\r\n]", shown)
    assert all(line.isprintable() for line in lines)
    assert max(map(_common.columns, lines)) < terminal


# --- python microgpt.py NAME ---


def test_a_program_is_a_command_of_microgpt_too(saved, tmp_path):
    words = [saved, "ab"]
    by_itself = command(*words, script=program("lookahead"), cwd=tmp_path)
    as_command = command("lookahead", *words, cwd=tmp_path)
    assert by_itself.stdout and by_itself.stderr == ""
    assert as_command.stdout == by_itself.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an example that says what it was given, and with other scripts."""
    script = "def main(argv):\n    print('ran', argv)\n    return 7\n"
    for path in "x.py here.py examples/given.py examples/sub/deep.py".split():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(script)
    monkeypatch.setattr(microgpt, "__file__", str(tmp_path / "microgpt.py"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_example_gets_the_words_after_its_name_and_its_status_is_passed_on(
    folder, capsys
):
    assert microgpt.main(["given", "a", "--steps", "-x"]) == 7
    assert capsys.readouterr() == ("ran ['a', '--steps', '-x']\n", "")


@pytest.mark.parametrize(
    "word",
    ["../examples/given", "./given", "sub/deep", "sub.deep", "given.py", "x"]
    + ["here", "sub\\deep", "given/", " given", "-", "", "~", "examples/given"],
)
def test_odd_words_never_run_anything(folder, capsys, word):
    assert microgpt.main([word]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert re.fullmatch("microgpt: .*\n", error)


def test_a_file_comes_before_an_example_of_its_name(folder, capsys):
    (folder / "given").write_text("ada\nbob\ncleo\n", encoding="utf-8")
    assert microgpt.main(["given", "--steps", "1", "--samples", "0"]) == 0
    assert re.match("documents +given: 3 lines, ", capsys.readouterr().out)
