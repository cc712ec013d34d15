"""examples/autocomplete.py suggests what lookahead.py finds, typed and piped."""

import io
import math
import re
import sys
import threading
import time
from contextlib import ExitStack

import autocomplete
import pytest
from autocomplete import make_prompt, verdict, with_sign
from helpers import kept, learned, make, program, works
from lookahead import completions, percent, predict

import microgpt
from microgpt import END

AUTOCOMPLETE = program("autocomplete")
SIGN = "\u23ce"
NAMES = ["ada", "adam", "bob", "cleo", "cle\u00e9"]


@pytest.fixture(scope="module")
def names():
    """A model that has learned a little, and its tokenizer."""
    tokenizer = microgpt.CharTokenizer(NAMES)
    return learned(NAMES, tokenizer), tokenizer


@pytest.fixture(scope="module")
def directory(names, tmp_path_factory):
    return kept(*names, tmp_path_factory.mktemp("names"))


# --- At a terminal ---


@pytest.fixture
def pipe():
    """Keys for a terminal that nobody sees, for the prompts made while it is there."""
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with ExitStack() as stack:
        keys = stack.enter_context(create_pipe_input())
        stack.enter_context(create_app_session(input=keys, output=DummyOutput()))
        yield keys


def screen(prompt):
    """What a prompt has drawn, as text with single spaces."""
    drawn = prompt.app.renderer.last_rendered_screen
    if drawn is None:
        return ""
    lines = []
    for _, row in sorted(dict(drawn.data_buffer).items()):
        row = dict(row)
        lines.append("".join(row[x].char for x in sorted(row)))
    return " ".join(" ".join(lines).split())


class Line(str):
    """A text that must be the whole line."""


@pytest.fixture
def converse(pipe, names, capsys):
    """Hold a conversation: type the keys when what is awaited is on the screen.

    -> what was said of the lines.
    """

    def is_there(awaited, prompt):
        if isinstance(awaited, Line):
            return awaited == prompt.default_buffer.text and ">" in screen(prompt)
        return awaited in screen(prompt)

    def run(*steps):
        prompt = make_prompt(*names, 5, 20)
        missed = []
        over = threading.Event()

        def type_keys():
            for awaited, keys in steps:
                until = time.monotonic() + 20
                while not is_there(awaited, prompt):
                    if over.wait(0.01) or time.monotonic() > until:
                        missed.append((awaited, screen(prompt)))
                        while not over.wait(0.1):
                            pipe.send_text("\r\x03")  # leave, whatever it shows
                        return
                pipe.send_text(keys() if callable(keys) else keys)

        typist = threading.Thread(target=type_keys, daemon=True)
        typist.start()
        autocomplete.converse(prompt, *names)
        over.set()
        typist.join()
        assert missed == []
        return re.findall("probability.*", capsys.readouterr().out)

    return run


def test_the_completer_gives_the_completions_with_their_probabilities(pipe, names):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    completer = make_prompt(*names, 4, 3).completer
    for text in ("", "ad", "adadadadad"):
        document = Document(text + "bob", cursor_position=len(text))
        given = list(completer.get_completions(document, CompleteEvent()))
        expected = []
        for way, p in completions(*names, text, 4, 3):
            expected.append((way.replace(END, ""), way.replace(END, SIGN), percent(p)))
        found = [(x.text, x.display_text, x.display_meta_text) for x in given]
        assert found == expected


def test_tab_puts_a_suggestion_in_and_enter_judges_the_line(converse, names):
    ways = completions(*names, "ad")
    chosen = next(i for i, (way, _) in enumerate(ways) if way != END)
    line = "ad" + ways[chosen][0].replace(END, "")
    menu = [f"{with_sign(way)} {percent(p)}" for way, p in ways]
    said = converse(
        (">", "ad"),
        *((row, "") for row in menu),
        (menu[0], "\t" * (chosen + 1)),
        (Line(line), "\r"),
        (Line(), "bob\r"),
        (Line(), "\x04"),
    )
    assert said == [verdict(*names, line), verdict(*names, "bob")]


def test_the_bottom_line_shows_the_next_tokens_after_every_key(converse, names):
    lines = {}
    for text in ("", "c", "cl"):
        parts = [f"'{with_sign(x)}' {percent(p)}" for x, p in predict(*names, text)]
        lines[text] = "next: " + " ".join(parts)
    assert len(set(lines.values())) == 3
    back = "\x7f"
    converse((lines[""], "cl"), (lines["cl"], back), (lines["c"], "\x03"))


def test_typing_goes_on_while_the_model_is_at_work(converse, monkeypatch):
    done = threading.Event()
    in_time = []

    def answer(found):
        return lambda *args: [in_time.append(done.wait(20)), found][1]

    monkeypatch.setattr(autocomplete, "suggest", answer([("m", "m", 0.5)]))
    monkeypatch.setattr(autocomplete, "next_tokens", answer("next: found"))
    converse(
        ("next: ...", "a"),
        ("> a", "d"),
        ("> ad", lambda: done.set() or ""),
        ("next: found", ""),
        ("m 50%", "\x03"),
    )
    assert in_time and all(in_time)


def test_leaving_gives_up_the_search(converse, monkeypatch):
    given_up = []

    def search(*args):
        *_, go_on = args
        until = time.monotonic() + 20
        while go_on() and time.monotonic() < until:
            time.sleep(0.01)
        given_up.append(not go_on())
        return []

    monkeypatch.setattr(autocomplete, "suggest", search)
    converse((">", "a"), ("> a", "\x03"))
    assert given_up and all(given_up)


def test_unknown_characters_are_named_and_the_line_can_be_mended(converse, names):
    said = converse(
        (">", "bx"),
        ("'x' (U+0078) is not in", "\r"),
        ("'x' (U+0078) is not in", "\x7f"),
        (Line("b"), "ob\r"),
        (Line(), "\x04"),
    )
    assert said == [verdict(*names, "bob")]


@pytest.mark.parametrize("keys", ["ab\x03", "\x04"])
def test_control_c_and_control_d_leave_politely(converse, keys):
    assert converse((">", keys)) == []


@pytest.mark.parametrize("no_color, is_plain", [("1", True), ("", False)])
def test_no_color_is_respected(pipe, names, monkeypatch, no_color, is_plain):
    from prompt_toolkit.output import ColorDepth

    monkeypatch.setenv("NO_COLOR", no_color)
    depth = make_prompt(*names, 5, 20).color_depth
    assert depth == (ColorDepth.DEPTH_1_BIT if is_plain else None)


def test_without_prompt_toolkit_a_terminal_is_told_how_to_get_it(
    directory, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert autocomplete.main([directory]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch("autocomplete: .*pip install prompt_toolkit\n", error)


# --- What it says ---


@pytest.mark.parametrize("text", ["", "ada", "cleobobada", "a" * 20])
def test_a_verdict_is_the_loss_of_the_document(names, text):
    model, tokenizer = names
    windows = microgpt.cut_windows(text, tokenizer, 8)
    n = sum(len(window) - 1 for window in windows)
    loss = model.loss(windows)
    said = re.findall(r"[-\d.]*\d", verdict(model, tokenizer, text))
    assert [float(x) for x in said] == [
        10,
        pytest.approx(-n * loss / math.log(10), abs=0.06),
        n,
        pytest.approx(loss, abs=0.0006),
        pytest.approx(math.exp(loss), rel=0.0006),
    ]


def test_what_would_disturb_a_terminal_is_not_shown_to_it():
    assert with_sign("a\x1b[2J\nb" + END) == r"a\x1b[2J\nb" + SIGN


@pytest.mark.parametrize(
    "p, shown", [(1.0, "100%"), (0.12345, "12.3%"), (0.00881, "0.881%"), (0.0, "0%")]
)
def test_a_percentage_has_three_digits(p, shown):
    assert percent(p) == shown


def test_half_a_character_is_not_put_in():
    tokenizer = microgpt.BPETokenizer.train(["\u00e9"], 258)
    ways = autocomplete.suggest(make(tokenizer), tokenizer, "", 258, 1)
    assert any("\ufffd" in shown for _, shown, _ in ways)
    assert not any("\ufffd" in text for text, _, _ in ways)


def test_what_could_move_the_cursor_is_shown_but_not_put_in():
    strange = "a\x1b\u2028\u202e\u200c"
    tokenizer = microgpt.CharTokenizer([strange])
    ways = autocomplete.suggest(make(tokenizer), tokenizer, "", 6, 1)
    inserted = {text for text, _, _ in ways}
    assert inserted == {"", "a", "\u200c"}
    assert all(shown == autocomplete.visible(shown) for _, shown, _ in ways)
    assert any(r"\u202e" in shown for _, shown, _ in ways)


# --- Without a terminal ---


def test_lines_from_a_pipe_get_their_suggestions_as_text(directory, names, tmp_path):
    (tmp_path / "prompt_toolkit.py").write_text("raise ImportError\n")
    output = works(
        *[directory, "-k", "3", "--max-tokens", "4"],
        script=AUTOCOMPLETE,
        input="ad\n\ncl",
        env={"PYTHONPATH": str(tmp_path)},
    )
    lines = iter(output.split("\n"))
    for text in ("ad", "", "cl"):
        assert next(lines) == text
        for way, p in completions(*names, text, 3, 4):
            share, shown = next(lines).split("%  ")
            assert shown == text + way.replace(END, SIGN)
            assert float(share) == pytest.approx(100 * p, rel=0.005)
    assert list(lines) == [""]


def test_the_end_is_shown_as_every_output_can(directory):
    env = {"PYTHONIOENCODING": "ascii"}
    output = works(directory, script=AUTOCOMPLETE, input="bob\n", env=env)
    assert output.isascii() and "[end]" in output


def test_by_default_5_suggestions_of_at_most_20_tokens(monkeypatch):
    monkeypatch.setattr(autocomplete, "complete", lambda options: options.max_tokens)
    assert autocomplete.main(["names"]) == 20
    monkeypatch.setattr(autocomplete, "complete", lambda options: options.k)
    assert autocomplete.main(["names"]) == 5


def test_a_line_with_an_unknown_character_is_named_and_the_others_are_answered(
    directory, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\nbob\n"))
    assert autocomplete.main([directory, "-k", "1"]) == 1
    output, error = capsys.readouterr()
    assert output.startswith("bob\n") and output.count("\n") == 2
    assert re.fullmatch("autocomplete: 'x' .U.0078. is not in.*\n", error)


@pytest.mark.parametrize(
    "option",
    [["-k", "0"], ["-k", "x"], ["--max-tokens", "0"], ["--max-tokens", "1001"]],
)
def test_options_out_of_range_are_refused(directory, option):
    with pytest.raises(SystemExit, match="2"):
        autocomplete.main([directory, *option])
