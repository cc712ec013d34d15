"""examples/explain.py tells what microgpt.score finds; microgpt.py runs it by name."""

import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import explain
import pytest
from helpers import on_terminal

import microgpt

EXPLAIN = explain.__file__
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
ENV.pop("NO_COLOR", None)
ENV["PYTHONIOENCODING"] = "utf-8"
TRAINING = ["ada", "adam", "adaadam", "clé", "\u5929\u5730", "o\n\t\x1b[2J\u202e'\""]
ROW = re.compile(r"(.{16}) +(\d+) +([\d.]+)% ([█#]*) +([\d.]+)  (.*)")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a model that has learned a little: some tokens are likely."""
    tokenizer = microgpt.CharTokenizer(TRAINING)
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, 6, n_head=2, n_embd=8))
    config = microgpt.TrainConfig(steps=60, lr=0.03, val_fraction=0)
    assert len(list(microgpt.Trainer(model, tokenizer, TRAINING, config))) == 60
    directory = str(tmp_path_factory.mktemp("saved"))
    microgpt.save_model(model, directory, tokenizer)
    return directory


@pytest.fixture(scope="module")
def subwords(tmp_path_factory):
    """The directory of a model whose tokens are bytes and a few words."""
    tokenizer = microgpt.BPETokenizer.train(["the lower", "the slower"], 264)
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, 8, n_head=2, n_embd=8))
    directory = str(tmp_path_factory.mktemp("subwords"))
    microgpt.save_model(model, directory, tokenizer)
    return directory


def command(args, env):
    env = {**ENV, **env}
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        env=env,
        timeout=60,
        encoding=env["PYTHONIOENCODING"],
    )


@pytest.fixture(params=["explain.py", "microgpt.py"])
def run(request):
    """Run the command in both ways."""
    words = (
        [EXPLAIN] if request.param == "explain.py" else [microgpt.__file__, "explain"]
    )
    return lambda *args, **env: command([*words, *args], env)


def works(run, *args, **env):
    child = run(*args, **env)
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout


def scores(directory, text):
    return microgpt.score(
        microgpt.load_model(directory), microgpt.load_tokenizer(directory), text
    )


def mean(scored):
    return sum(x.loss for x in scored) / len(scored)


def rows(output):
    """The table's rows: (token, id, share in percent, bar, loss, likeliest)."""
    return [match.groups() for match in map(ROW.fullmatch, output.split("\n")) if match]


def columns(line):
    return sum(2 if c in "\u5929\u5730" else 1 for c in line)


# What it tells


@pytest.mark.parametrize(
    "text", ["ada", "", "adaadamadaadam", "clé", "o\n\t\x1b[2J\u202e'\""]
)
def test_the_table_has_the_scores_token_by_token(run, saved, text):
    found = rows(works(run, saved, text))
    scored = scores(saved, text)
    assert len(found) == len(scored) == len(text) + 1
    for (token, id, share, bar, loss, likeliest), x in zip(found, scored):
        assert token.rstrip() == ("end" if x.token == microgpt.END else repr(x.token))
        assert int(id) == x.id
        assert float(share) == pytest.approx(100 * x.probability, abs=0.0501)
        assert float(loss) == pytest.approx(x.loss, abs=0.00501)
        assert len(bar) == pytest.approx(12 * x.probability, abs=0.501)
        shares = [float(p) for p in re.findall(r" (\d+)%", likeliest)]
        assert len(shares) == 3 or likeliest.endswith("...")  # where the line ends
        expected = [100 * p for _, p in x.likeliest][: len(shares)]
        assert shares and shares == pytest.approx(expected, abs=0.501)
        assert likeliest.startswith(
            "end" if x.likeliest[0][0] == microgpt.END else repr(x.likeliest[0][0])
        )


def test_the_columns_stand_under_their_names(run, saved):
    header, *table = works(run, saved, "a\u5929").split("\n")[1:4]
    for line in table:
        token = re.match(r"('.') +\d+ +[\d.]+%", line)
        share = re.search(r"[\d.]+ {2}['e]", line)
        assert columns(line[: token.end()]) == header.index("probability") + 5
        assert columns(line[: share.start()]) == header.index("loss")
        assert columns(line[: share.end() - 1]) == header.index("likeliest")


@pytest.mark.parametrize("text", ["ada", "", "adaadamadaadam"])
def test_the_mean_is_the_loss_of_the_document_and_the_perplexity_e_to_it(
    run, saved, text
):
    model = microgpt.load_model(saved)
    tokenizer = microgpt.load_tokenizer(saved)
    pieces = microgpt.cut_windows(text, tokenizer, model.config.block_size)
    loss = model.loss(pieces)
    said = re.search(
        r"^([\d.]+) nats a token, a perplexity of ([\d.]+)$",
        works(run, saved, text),
        re.M,
    )
    assert float(said[1]) == pytest.approx(loss, abs=0.000501)
    assert float(said[2]) == pytest.approx(math.exp(loss), rel=0.00051)


def test_several_texts_are_ranked_by_their_probability_as_a_whole(run, saved):
    texts = ["cada", "ada", "", "adaadam", "ada"]
    output = works(run, saved, *texts)
    assert [line for line in output.split("\n") if line in texts[:2] + texts[3:]] == [
        text for text in texts if text
    ]  # their tables, as given
    ranked = re.findall(r"^ +(\d)  10\^-([\d.]+) +([\d.]+)  (.*)$", output, re.M)
    scored = {text: scores(saved, text) for text in texts}
    total = {text: sum(x.loss for x in scored[text]) for text in texts}
    assert [text for *_, text in ranked] == sorted(texts, key=total.get)
    assert [n for n, *_ in ranked] == ["1", "2", "3", "4", "5"]
    for _, exponent, loss, text in ranked:
        assert float(exponent) == pytest.approx(total[text] / math.log(10), abs=0.0501)
        assert float(loss) == pytest.approx(mean(scored[text]), abs=0.000501)


def test_a_single_text_is_not_ranked(run, saved):
    assert "rank" not in works(run, saved, "ada") and "rank" in works(
        run, saved, "ada", "ada"
    )


@pytest.mark.parametrize(
    "encoding, bar", [("utf-8", "█"), ("ascii", "#"), ("latin-1", "#")]
)
def test_a_bar_is_plain_where_the_encoding_lacks_the_block(run, saved, encoding, bar):
    output = works(run, saved, "ada", "clé", PYTHONIOENCODING=encoding)
    assert {*"█#"} & {*output} == {bar}
    assert ("cl\\xe9" in output) == (encoding == "ascii")


def test_probabilities_that_round_to_0_are_shown_like_any_other(run, tmp_path):
    """As a training that went astray leaves them.

    The losses are thousands of nats, and the perplexity is too large for a float.
    """
    tokenizer = microgpt.CharTokenizer(["ab"])
    model = microgpt.GPT(microgpt.Config(3, 8, n_head=1, n_embd=4))
    model.params["wte.weight"][0] = [1e4, 0.0, 0.0, 0.0]
    model.params["ln_f.bias"][0] = 10.0
    microgpt.save_model(model, tmp_path, tokenizer)
    output = works(run, str(tmp_path), "bb", "b")
    assert "perplexity of inf" in output and max(map(len, output.split("\n"))) <= 80
    assert min(float(loss) for *_, loss, _ in rows(output)) > 700


# What it looks like


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_lines_have_80_columns_at_most_and_nothing_that_disturbs_a_terminal(
    run, saved, subwords, encoding
):
    wide = "\u5929\u5730" * 20
    texts = [TRAINING[-1], "a" * 70, wide]
    for directory, more in (
        (saved, []),
        (subwords, ["the lower the slower", "\x9b\x7f\x85é"]),
    ):
        lines = works(run, directory, *texts, *more, PYTHONIOENCODING=encoding).split(
            "\n"
        )
        assert all(line.isprintable() for line in lines)
        assert max(map(columns, lines)) == 79
        text = wide if encoding == "utf-8" else ascii(wide)[1:-1]
        assert text in "".join(lines) and text not in lines


def test_a_long_text_is_broken_into_lines_in_which_marks_take_no_room():
    text = explain.wrapped([("<red>", "a" * 70), ("<green>", "\u5929" * 6 + "b")])
    assert (
        text
        == "<red>" + "a" * 70 + "<green>" + "\u5929" * 4 + "\n" + "\u5929" * 2 + "b"
    )
    assert explain.wrapped([("", "a" * 160)]).split("\n") == ["a" * 79, "a" * 79, "aa"]


@pytest.mark.parametrize("text", ["é", "🙂é", "the 🙂", "a\ufffd", "\ufffd\ufffdb", ""])
def test_bytes_of_one_character_are_rows_of_their_own_and_one_character_in_the_text(
    subwords, text
):
    tokenizer = microgpt.load_tokenizer(subwords)
    scored = scores(subwords, text)
    found = list(explain.pieces(scored, tokenizer))
    assert "".join(piece for piece, _ in found) == text
    assert math.prod(p for _, p in found) == pytest.approx(
        math.prod(x.probability for x in scored[:-1]), rel=1e-12
    )
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece, _ in found)
        lines = works(
            lambda *args: command([EXPLAIN, *args], {}), subwords, text
        ).split("\n")
        assert lines[0] == text and len(rows("\n".join(lines))) == len(scored)


def coloured(output):
    """[(colour, text), ...] of a line; the colours must end with the line."""
    line, rest = output.split("\x1b[0m", 1)
    assert rest.startswith("\n") or not rest
    assert "\x1b" not in rest
    parts = re.split(r"\x1b\[3(\d)m", line)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2]))


def colour(p):
    return {True: "2", p < 0.3: "3", p < 0.05: "1"}[True]


@pytest.mark.parametrize(
    "p, expected",
    [(0.0, "1"), (0.0499, "1"), (0.05, "3"), (0.2999, "3"), (0.3, "2"), (1.0, "2")],
)
def test_below_5_percent_is_red_from_30_green_between_them_yellow(p, expected):
    tokenizer = SimpleNamespace(decode=lambda ids: "a")
    scored = [
        microgpt.Scored("a", 0, p, 0.0, []),
        microgpt.Scored(microgpt.END, 1, 1.0, 0.0, []),
    ]
    assert explain.coloured(scored, tokenizer) == f"\x1b[3{expected}ma\x1b[0m"


@pytest.mark.parametrize("words", [[EXPLAIN], [microgpt.__file__, "explain"]])
def test_on_a_terminal_the_text_has_the_colours_of_its_probabilities(saved, words):
    text = "adaadamclé"
    found = coloured(on_terminal(*words[1:], saved, text, script=words[0]))
    scored = scores(saved, text)
    assert [piece for _, piece in found] == list(text)
    assert [number for number, _ in found] == [
        colour(x.probability) for x in scored[:-1]
    ]
    assert len({number for number, _ in found}) > 1


def test_on_a_terminal_control_characters_of_the_text_stay_out(saved):
    output = on_terminal(saved, TRAINING[-1], script=EXPLAIN)
    found = coloured(output)
    assert "".join(piece for _, piece in found) == "o\\n\\t\\x1b[2J\\u202e'\""
    assert all(piece.isprintable() for _, piece in found)


@pytest.mark.parametrize("no_color, is_coloured", [("1", False), ("", True)])
def test_no_color_is_respected(saved, no_color, is_coloured):
    assert (
        "\x1b" in on_terminal(saved, "ada", script=EXPLAIN, env={"NO_COLOR": no_color})
    ) == is_coloured


def test_a_pipe_gets_no_colours(run, saved):
    assert works(run, saved, "ada").startswith("ada\ntoken ")


# What cannot be


@pytest.mark.parametrize(
    "args, words",
    [
        (["nowhere", "ada"], ["nowhere", "No such file"]),
        (["DIR", "x"], ["'x' is not one of"]),
        (["DIR", "ada", "\x1bx"], ["'x' is not one of"]),
    ],
)
def test_what_cannot_be_is_one_line(run, saved, args, words):
    child = run(*[saved if arg == "DIR" else arg for arg in args])
    assert (child.returncode, child.stdout) == (1, "")
    assert re.fullmatch("explain: .*\n", child.stderr) and "\x1b" not in child.stderr
    assert all(word in child.stderr for word in words)


@pytest.mark.parametrize("args", [[], ["DIR"], ["DIR", "ada", "--bogus"]])
def test_arguments_that_do_not_fit_are_told_with_the_usage(run, args):
    child = run(*args)
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.startswith("usage: explain ") and child.stderr.count("\n") <= 3


@pytest.mark.parametrize("words", [[EXPLAIN], [microgpt.__file__, "explain"]])
def test_a_reader_that_has_seen_enough_gets_no_traceback(saved, words):
    reading, writing = os.pipe()
    os.close(reading)
    child = subprocess.Popen(
        [sys.executable, *words, saved, "ada", "ada"],
        env=ENV,
        stdout=writing,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    os.close(writing)
    assert (child.communicate()[1], child.returncode) == ("", 1)


# python microgpt.py NAME


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with scripts that must not run, and a copy of microgpt.py with examples.

    One of the examples says what it was given, and exits with 7.
    """
    script = (
        "print('it ran')\n\ndef main(argv):\n    print('ran', argv)\n    return 7\n"
    )
    copy = tmp_path / "copy"
    for path in (
        "x.py",
        "copy/x.py",
        "copy/examples/given.py",
        "copy/examples/sub/deep.py",
        "examples/here.py",
        "here.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(
            script if path.endswith("given.py") else script.replace("ran", "wrong"),
            encoding="utf-8",
        )
    with open(microgpt.__file__, encoding="utf-8") as file:
        (copy / "microgpt.py").write_text(file.read(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_example_gets_the_words_after_its_name_and_its_status_is_passed_on(folder):
    child = command(["copy/microgpt.py", "given", "a", "--steps", "-x"], {})
    assert child.stdout == "it ran\nran ['a', '--steps', '-x']\n"
    assert (child.returncode, child.stderr) == (7, "")


@pytest.mark.parametrize(
    "word",
    [
        "../x",
        "./given",
        "sub/deep",
        "../examples/given",
        "..",
        ".",
        "given.py",
        "x",
        "here",
        "examples/given.py ",
        "sub\\deep",
        "given/",
        "~",
        "$HOME",
        "sub.deep",
        " given",
        "-",
        "",
    ],
)
def test_odd_words_never_run_anything(folder, word):
    child = command(["copy/microgpt.py", word], {})
    assert child.returncode == 1 and child.stdout == ""
    assert re.fullmatch("microgpt: .*\n", child.stderr)


def test_a_full_path_runs_nothing(folder):
    for path in ("x", "x.py", "copy/examples/given"):
        child = command(["copy/microgpt.py", str(folder / path), "--steps", "1"], {})
        assert child.returncode == (path != "x.py")  # which is text like any other
        assert "it ran" not in child.stdout and "wrong" not in child.stdout


@pytest.mark.parametrize("name", ["names", "names_txt", "explained", "given2"])
def test_a_first_word_that_is_no_example_is_a_file_of_documents(folder, name):
    (folder / name).write_text("ada\nbob\ncleo\n", encoding="utf-8")
    child = command(["copy/microgpt.py", name, "--steps", "1", "--samples", "0"], {})
    assert (child.returncode, child.stderr) == (0, "")
    assert re.match(f"documents +{name}: 3, ", child.stdout)


def test_an_examples_help_is_its_own():
    for words in ([EXPLAIN], [microgpt.__file__, "explain"]):
        child = command([*words, "--help"], {"COLUMNS": "80"})
        assert (child.returncode, child.stderr) == (0, "")
        assert (
            child.stdout.startswith("usage: explain ") and "--steps" not in child.stdout
        )


def test_main_returns_the_status_of_the_example(saved, capsys):
    assert microgpt.main(["explain", saved, "ada"]) == 0
    output = capsys.readouterr().out
    assert explain.main([saved, "ada"]) == 0
    assert capsys.readouterr().out == output and len(rows(output)) == 4
    assert microgpt.main(["explain", saved, "x"]) == 1
    assert capsys.readouterr().err.startswith("explain: 'x' is not one of")
