"""examples/explain.py tells what microgpt.score finds."""

import math
import re
from types import SimpleNamespace

import explain
import pytest
from helpers import ABC, kept, learned, make, on_terminal, program, works

import microgpt
from microgpt import END, Scored

EXPLAIN = program("explain")
WIDE = "\u5929\u5730"
CONTROLS = "o\n\t\x1b[2J\u202e'\""
TRAINING = ["ada", "adam", "adaadam", "clé", WIDE, CONTROLS]
ROW = re.compile(r"(.{16}) +(\d+) +([\d.]+)% ([█#]*) +([\d.]+)  (.*)")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a model that has learned a little: some tokens are likely."""
    tokenizer = microgpt.CharTokenizer(TRAINING)
    model = learned(TRAINING, tokenizer, block_size=6, lr=0.03)
    return kept(model, tokenizer, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def subwords(tmp_path_factory):
    """The directory of a model whose tokens are bytes and a few words."""
    tokenizer = microgpt.BPETokenizer.train(["the lower", "the slower"], 264)
    return kept(make(tokenizer), tokenizer, tmp_path_factory.mktemp("subwords"))


@pytest.fixture
def tell(capsys):
    """Call the program -> what it printed."""

    def run(*args):
        assert explain.main(list(args)) == 0
        output, error = capsys.readouterr()
        assert error == ""
        return output

    return run


def scores(directory, text):
    model = microgpt.load_model(directory)
    return microgpt.score(model, microgpt.load_tokenizer(directory), text)


def rows(output):
    """The table's rows: (token, id, share in percent, bar, loss, likeliest)."""
    return [match.groups() for match in map(ROW.fullmatch, output.split("\n")) if match]


def columns(line):
    return sum(2 if c in WIDE else 1 for c in line)


def named(token):
    return "end" if token == END else repr(token)


# --- What it tells ---


@pytest.mark.parametrize("text", ["ada", "", "adaadamadaadam", "clé", CONTROLS])
def test_the_table_has_the_scores_token_by_token(tell, saved, text):
    output = tell(saved, text)
    assert "rank" not in output
    found = rows(output)
    scored = scores(saved, text)
    assert len(found) == len(scored) == len(text) + 1
    for (token, id, share, bar, loss, likeliest), x in zip(found, scored):
        assert token.rstrip() == named(x.token)
        assert int(id) == x.id
        assert float(share) == pytest.approx(100 * x.probability, abs=0.0501)
        assert float(loss) == pytest.approx(x.loss, abs=0.00501)
        assert len(bar) == pytest.approx(12 * x.probability, abs=0.501)
        shares = [float(p) for p in re.findall(r" (\d+)%", likeliest)]
        assert len(shares) == 3 or likeliest.endswith("...")  # where the line ends
        expected = [100 * p for _, p in x.likeliest][: len(shares)]
        assert shares and shares == pytest.approx(expected, abs=0.501)
        assert likeliest.startswith(named(x.likeliest[0][0]))
    said = re.search(r"\n([\d.]+) nats a token, a perplexity of ([\d.]+)\n", output)
    loss = microgpt.mean([x.loss for x in scored])
    assert float(said[1]) == pytest.approx(loss, abs=0.000501)
    assert float(said[2]) == pytest.approx(math.exp(loss), rel=0.00051)


def test_the_columns_stand_under_their_names(tell, saved):
    header, *table = tell(saved, "a" + WIDE[0]).split("\n")[1:4]
    for line in table:
        token = re.match(r"('.') +\d+ +[\d.]+%", line)
        share = re.search(r"[\d.]+ {2}['e]", line)
        assert columns(line[: token.end()]) == header.index("probability") + 5
        assert columns(line[: share.start()]) == header.index("loss")
        assert columns(line[: share.end() - 1]) == header.index("likeliest")


def test_several_texts_are_ranked_by_their_probability_as_a_whole(tell, saved):
    texts = ["cada", "ada", "", "adaadam", "ada"]
    output = tell(saved, *texts)
    assert [line for line in output.split("\n") if line in texts if line] == [
        text for text in texts if text
    ]  # their tables, as given
    ranked = re.findall(r"^ +(\d)  10\^-([\d.]+) +([\d.]+)  (.*)$", output, re.M)
    losses = {text: [x.loss for x in scores(saved, text)] for text in texts}
    by_loss = sorted(texts, key=lambda text: sum(losses[text]))
    assert [text for *_, text in ranked] == by_loss
    assert [n for n, *_ in ranked] == ["1", "2", "3", "4", "5"]
    for _, exponent, loss, text in ranked:
        whole = sum(losses[text]) / math.log(10)
        assert float(exponent) == pytest.approx(whole, abs=0.0501)
        assert float(loss) == pytest.approx(microgpt.mean(losses[text]), abs=0.000501)


def test_losses_of_thousands_of_nats_are_shown_like_any_other(tell, tmp_path):
    """As a training that went astray leaves them: e to them is no float any more."""
    model = make()
    model.params["wte.weight"][0] = [1e4, 0.0, 0.0, 0.0]
    model.params["ln_f.bias"][0] = 10.0
    output = tell(kept(model, ABC, tmp_path), "bb", "b")
    assert "perplexity of inf" in output
    assert min(float(loss) for *_, loss, _ in rows(output)) > 700


@pytest.mark.parametrize("text", ["é", "🙂é", "the 🙂", "a\ufffd", "\ufffd\ufffdb", ""])
def test_bytes_of_one_character_are_rows_of_their_own_and_one_character_in_the_text(
    tell, subwords, text
):
    scored = scores(subwords, text)
    found = list(explain.pieces(scored, microgpt.load_tokenizer(subwords)))
    assert "".join(piece for piece, _ in found) == text
    whole = math.prod(x.probability for x in scored[:-1])
    assert math.prod(p for _, p in found) == pytest.approx(whole, rel=1e-12)
    output = tell(subwords, text)
    assert output.split("\n")[0] == text
    assert len(rows(output)) == len(scored)
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece, _ in found)


# --- What it looks like ---


@pytest.mark.parametrize("encoding, bar", [("utf-8", "█"), ("ascii", "#")])
def test_lines_have_79_columns_at_most_and_only_what_the_output_can_show(
    saved, encoding, bar
):
    wide = WIDE * 20
    texts = [CONTROLS, "a" * 70, wide, "clé"]
    options = {"env": {"PYTHONIOENCODING": encoding}, "encoding": encoding}
    output = works(saved, *texts, script=EXPLAIN, **options)
    lines = output.split("\n")
    assert all(line.isprintable() for line in lines)
    assert max(map(columns, lines)) == 79
    assert {*"█#"} & {*output} == {bar}
    text = wide if encoding == "utf-8" else ascii(wide)[1:-1]
    assert text in "".join(lines) and text not in lines


def test_a_long_text_is_broken_into_lines_in_which_marks_take_no_room():
    sky = WIDE[0]
    text = explain.wrapped([("<red>", "a" * 70), ("<green>", sky * 6 + "b")])
    assert text == "<red>" + "a" * 70 + "<green>" + sky * 4 + "\n" + sky * 2 + "b"
    assert explain.wrapped([("", "a" * 160)]).split("\n") == ["a" * 79, "a" * 79, "aa"]


@pytest.mark.parametrize(
    "p, digit",
    [(0.0, 1), (0.0499, 1), (0.05, 3), (0.2999, 3), (0.3, 2), (1.0, 2)],
)
def test_below_5_percent_is_red_from_30_green_between_them_yellow(p, digit):
    tokenizer = SimpleNamespace(decode=lambda ids: "a")
    scored = [Scored("a", 0, p, 0.0, []), Scored(END, 1, 1.0, 0.0, [])]
    assert explain.coloured(scored, tokenizer) == f"\x1b[3{digit}ma\x1b[0m"


def test_on_a_terminal_each_token_has_its_colour_and_nothing_moves_the_cursor(saved):
    text = "adaadam" + CONTROLS
    output = on_terminal(saved, text, script=EXPLAIN, env={"NO_COLOR": ""})
    first_line, rest = output.split("\x1b[0m\n", 1)
    found = re.findall(r"(\x1b\[3\dm)([^\x1b]*)", first_line)
    expected = []
    for x in scores(saved, text)[:-1]:
        shown = repr(x.token)[1:-1] if not x.token.isprintable() else x.token
        expected.append((explain.colour(x.probability), shown))
    assert found == expected
    assert len({colour for colour, _ in found}) > 1
    assert "\x1b" not in rest
    plain = on_terminal(saved, text, script=EXPLAIN, env={"NO_COLOR": "1"})
    assert "\x1b" not in plain


@pytest.mark.parametrize(
    "args, words",
    [
        (["nowhere", "ada"], "'nowhere.*No such file"),
        (["DIR", "x"], "'x' .U.0078. is not in"),
        (["DIR", "ada", "\x1bx"], "'x' .U.0078. is not in"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_printed(
    saved, capsys, args, words
):
    assert explain.main([saved if arg == "DIR" else arg for arg in args]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(f"explain: .*{words}.*\n", error) and "\x1b" not in error
