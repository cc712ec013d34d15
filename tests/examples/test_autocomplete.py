"""examples/autocomplete.py suggests what lookahead.py finds, typed and piped."""

import math
import os
import re
import subprocess
import sys
import threading
import time

import autocomplete
import pytest

import microgpt

AUTOCOMPLETE = autocomplete.__file__
SIGN = "\u23ce"
NAMES = ["ada", "adam", "bob", "cleo", "cle\u00e9"]


@pytest.fixture(scope="module")
def tokenizer():
    return microgpt.CharTokenizer(NAMES)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = microgpt.GPT(
        microgpt.Config(tokenizer.vocab_size, 8, n_layer=1, n_head=2, n_embd=8)
    )
    for _ in microgpt.Trainer(
        model, tokenizer, NAMES, microgpt.TrainConfig(steps=60, lr=0.02)
    ):
        pass
    return model


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("models") / "names")
    microgpt.save_model(model, path, tokenizer)
    return path


@pytest.fixture
def pipe():
    """Keys for a terminal that nobody sees, for the prompts made while it is there."""
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with (
        create_pipe_input() as pipe,
        create_app_session(input=pipe, output=DummyOutput()),
    ):
        yield pipe


def screen(prompt):
    """What a prompt has drawn, as text."""
    drawn = prompt.app.renderer.last_rendered_screen
    rows = (
        [dict(row) for _, row in sorted(dict(drawn.data_buffer).items())]
        if drawn
        else []
    )
    return "\n".join("".join(row[x].char for x in sorted(row)) for row in rows)


def converse(pipe, prompt, model, tokenizer, steps):
    """Hold a conversation: for each (awaited, keys), type the keys when it is there.

    What is awaited is a text on the screen, however wide its gaps, or, in a list, the
    text of the whole line.
    """
    missed = []
    over = threading.Event()

    def there(awaited):
        if isinstance(awaited, list):
            return awaited == [prompt.default_buffer.text] and "> " in screen(prompt)
        return " ".join(awaited.split()) in " ".join(screen(prompt).split())

    def type_it():
        for awaited, keys in steps:
            until = time.monotonic() + 8
            while not there(awaited) and not missed:
                if over.is_set() or time.monotonic() > until:
                    missed.append((awaited, screen(prompt)))
                time.sleep(0.01)
            if missed:  # leave, also from a "Press ENTER to continue"
                while not over.wait(0.1):
                    pipe.send_text("\r\x03")
                return
            pipe.send_text(keys() if callable(keys) else keys)

    typist = threading.Thread(target=type_it, daemon=True)
    typist.start()
    try:
        autocomplete.converse(prompt, model, tokenizer)
    finally:
        over.set()
        typist.join()
    assert not missed


def found(model, tokenizer, text, k=5, max_tokens=20):
    """The suggestions that there should be: [(text, p), ...]."""
    return autocomplete.completions(model, tokenizer, text, k, max_tokens)


def run(*args, stdin="", **environment):
    return subprocess.run(
        [sys.executable, AUTOCOMPLETE, *args],
        capture_output=True,
        input=stdin,
        encoding="utf-8",
        timeout=30,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


# --- At a terminal --------------------------------------------------------------------


def test_the_completer_gives_the_completions_with_their_probabilities(
    pipe, model, tokenizer
):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    prompt = autocomplete.make_prompt(model, tokenizer, 4, 3)
    for text in ("", "ad", "cl", "adadadadad"):
        given = list(
            prompt.completer.get_completions(
                Document(text + "bob", cursor_position=len(text)), CompleteEvent()
            )
        )
        expected = found(model, tokenizer, text, 4, 3)
        assert [x.text for x in given] == [
            way.replace("<|endoftext|>", "") for way, _ in expected
        ]
        assert [x.display_text for x in given] == [
            way.replace("<|endoftext|>", SIGN) for way, _ in expected
        ]
        for x, (_, p) in zip(given, expected):
            assert float(x.display_meta_text.rstrip("%")) == pytest.approx(
                100 * p, rel=0.005
            )


def test_tab_puts_a_suggestion_in_and_enter_judges_the_line(
    pipe, model, tokenizer, capsys
):
    prompt = autocomplete.make_prompt(model, tokenizer, 5, 20)
    ways = found(model, tokenizer, "ad")
    chosen = next(i for i, (way, _) in enumerate(ways) if not way.startswith("<"))
    line = "ad" + ways[chosen][0].replace("<|endoftext|>", "")
    menu = [
        f"{autocomplete.with_sign(way)} {autocomplete.percent(p)}" for way, p in ways
    ]
    converse(
        pipe,
        prompt,
        model,
        tokenizer,
        [
            ("> ", "ad"),
            *((row, "") for row in menu),
            (menu[0], "\t" * (chosen + 1)),
            ([line], "\r"),
            ([""], "bob\r"),
            ([""], "\x04"),
        ],
    )
    assert re.findall("probability.*", capsys.readouterr().out) == [
        autocomplete.verdict(model, tokenizer, text) for text in (line, "bob")
    ]


def test_the_bottom_line_shows_the_next_tokens_at_once_and_after_every_key(
    pipe, model, tokenizer
):
    prompt = autocomplete.make_prompt(model, tokenizer, 5, 20)
    lines = {
        text: autocomplete.next_tokens(model, tokenizer, text, 5)
        for text in ("", "c", "cl")
    }
    assert len(set(lines.values())) == 3
    converse(
        pipe,
        prompt,
        model,
        tokenizer,
        [
            (lines[""], "cl"),
            (lines["cl"], "\x7f"),
            (lines["c"], "\x7f"),
            (lines[""], "\x04"),
        ],
    )
    for (token, p), shown in zip(
        autocomplete.predict(model, tokenizer, "cl", 5),
        re.findall(r"'(.)' (\S+)%", lines["cl"]),
    ):
        assert shown[0] == token.replace("<|endoftext|>", SIGN)
        assert float(shown[1]) == pytest.approx(100 * p, rel=0.005)


def test_typing_goes_on_while_the_model_is_at_work(pipe, model, tokenizer, monkeypatch):
    done = threading.Event()
    in_time = []
    for name, answer in (
        ("suggest", [("m", "m", 0.5)]),
        ("next_tokens", "next: found"),
    ):
        monkeypatch.setattr(
            autocomplete,
            name,
            lambda *args, answer=answer: [in_time.append(done.wait(8)), answer][1],
        )
    prompt = autocomplete.make_prompt(model, tokenizer, 5, 20)
    converse(
        pipe,
        prompt,
        model,
        tokenizer,
        [
            ("next: ...", "a"),
            ("> a", "d"),
            ("> ad", lambda: done.set() or ""),
            ("next: found", ""),
            ("m 50%", "\x03"),
        ],
    )
    assert in_time and all(in_time)


def test_unknown_characters_are_named_and_the_line_can_be_mended(
    pipe, model, tokenizer, capsys
):
    prompt = autocomplete.make_prompt(model, tokenizer, 5, 20)
    converse(
        pipe,
        prompt,
        model,
        tokenizer,
        [
            ("> ", "bx"),
            ("'x' is not one of", "\r"),
            ("'x' is not one of", "\x7f"),
            (["b"], "ob\r"),
            ([""], "\x04"),
        ],
    )
    assert re.findall("probability.*", capsys.readouterr().out) == [
        autocomplete.verdict(model, tokenizer, "bob")
    ]


@pytest.mark.parametrize("keys", ["\x03", "ab\x03", "\x04", "x\x03"])
def test_control_c_and_control_d_leave_politely(pipe, model, tokenizer, keys, capsys):
    prompt = autocomplete.make_prompt(model, tokenizer, 5, 20)
    converse(pipe, prompt, model, tokenizer, [("> ", keys)])
    assert "probability" not in capsys.readouterr().out


def test_no_color_is_respected(pipe, model, tokenizer, monkeypatch):
    from prompt_toolkit.output import ColorDepth

    monkeypatch.setenv("NO_COLOR", "1")
    assert (
        autocomplete.make_prompt(model, tokenizer, 5, 20).color_depth
        == ColorDepth.DEPTH_1_BIT
    )
    monkeypatch.setenv("NO_COLOR", "")
    assert autocomplete.make_prompt(model, tokenizer, 5, 20).color_depth is None


def test_without_prompt_toolkit_a_terminal_is_told_how_to_get_it(
    directory, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True, raising=False)
    assert autocomplete.main([directory]) == 1
    error = capsys.readouterr().err
    assert "pip install prompt_toolkit" in error and error.count("\n") == 1


# --- What it says ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "ada", "cleobobada", "a" * 20])
def test_a_verdict_is_the_loss_of_the_document(model, tokenizer, text):
    windows = microgpt.cut_windows(text, tokenizer, 8)
    n = sum(len(window) - 1 for window in windows)
    loss = model.loss(windows)
    said = re.findall(r"[-\d.]*\d", autocomplete.verdict(model, tokenizer, text))
    assert [float(x) for x in said] == [
        10,
        pytest.approx(-n * loss / math.log(10), abs=0.06),
        n,
        pytest.approx(loss, abs=0.0006),
        pytest.approx(math.exp(loss), rel=0.0006),
    ]


def test_what_would_disturb_a_terminal_is_not_shown_to_it():
    shown = autocomplete.with_sign("a\x1b[2J\nb<|endoftext|>")
    assert shown == r"a\x1b[2J\nb" + SIGN
    assert autocomplete.with_sign("<|endoftext|>") == SIGN


def test_half_a_character_is_not_put_in():
    tokenizer = microgpt.BPETokenizer.train(["\u00e9"], 258)
    model = microgpt.GPT(
        microgpt.Config(tokenizer.vocab_size, 4, n_layer=1, n_head=1, n_embd=4)
    )
    ways = autocomplete.suggest(model, tokenizer, "", tokenizer.vocab_size, 1)
    assert any("\ufffd" in shown for _, shown, _ in ways)
    assert not any("\ufffd" in text for text, _, _ in ways)


# --- Without a terminal ---------------------------------------------------------------


@pytest.fixture
def no_library(tmp_path):
    """A folder with a prompt_toolkit that cannot be imported."""
    (tmp_path / "prompt_toolkit.py").write_text("raise ImportError\n", encoding="utf-8")
    return str(tmp_path)


def test_lines_from_a_pipe_get_their_suggestions_as_text(
    directory, model, tokenizer, no_library
):
    child = run(
        directory,
        "-k",
        "3",
        "--max-tokens",
        "4",
        stdin="ad\n\ncl",
        PYTHONPATH=no_library,
    )
    assert (child.returncode, child.stderr) == (0, "")
    lines = iter(child.stdout.split("\n"))
    for text in ("ad", "", "cl"):
        assert next(lines) == text
        for way, p in found(model, tokenizer, text, 3, 4):
            share, shown = next(lines).split("%  ")
            assert shown == text + way.replace("<|endoftext|>", SIGN)
            assert float(share) == pytest.approx(100 * p, rel=0.005)
    assert list(lines) == [""]


def test_where_the_output_lacks_the_sign_the_end_is_written_out(directory):
    child = run(directory, stdin="bob\n", PYTHONIOENCODING="ascii")
    assert child.returncode == 0 and child.stdout.isascii() and "[end]" in child.stdout
    assert child.stdout == run(directory, stdin="bob\n").stdout.replace(
        SIGN, "[end]"
    ).replace("\u00e9", "\\xe9")


def test_a_line_with_an_unknown_character_is_named_and_the_others_are_answered(
    directory,
):
    child = run(directory, "-k", "1", stdin="x\nbob\n")
    assert child.returncode == 1
    assert child.stdout.startswith("bob\n") and child.stdout.count("\n") == 2
    assert "'x' is not one of" in child.stderr and child.stderr.count("\n") == 1


def test_a_bad_directory_is_one_line(tmp_path, directory):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}", encoding="utf-8")
    for path in (str(tmp_path / "none"), str(broken)):
        child = run(path, stdin="a\n")
        assert child.returncode == 1 and child.stdout == ""
        assert re.fullmatch("autocomplete: .*config.json.*\n", child.stderr)


def test_a_reader_that_has_seen_enough_gets_no_traceback(directory):
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    child = subprocess.Popen(
        [sys.executable, AUTOCOMPLETE, directory],
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=buffered,
    )
    os.close(writing)
    assert (child.communicate("ad\n", timeout=30)[1], child.returncode) == ("", 1)


def test_microgpt_runs_it_by_its_name(directory):
    words = [directory, "-k", "2"]
    child = subprocess.run(
        [sys.executable, microgpt.__file__, "autocomplete", *words],
        capture_output=True,
        input="ad\n",
        encoding="utf-8",
        timeout=30,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout == run(*words, stdin="ad\n").stdout


@pytest.mark.parametrize(
    "option", [["-k", "0"], ["-k", "x"], ["--max-tokens", "-1"], ["more"]]
)
def test_bad_options_are_refused(option, directory, capsys):
    with pytest.raises(SystemExit) as exit:
        autocomplete.main([directory, *option])
    assert exit.value.code == 2
    assert capsys.readouterr().out == ""
