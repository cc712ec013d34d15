"""examples/pictures.py computes the numbers that it says, and draws those."""

import io
import os
import signal
import struct
import sys
from pathlib import Path

import pictures
import pytest
from helpers import (
    ABC,
    command,
    is_one_line,
    kept,
    make,
    program,
    says_one_line,
    start,
    works,
)

import microgpt

NAMES = "ada bob cleo abel dolo leo bea coco ole lea".split()


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A model that has learned to come to an end."""
    config = microgpt.Config(tokenizer.vocab_size, 8, n_head=2, n_embd=8)
    model = microgpt.GPT(config, seed=1)
    list(microgpt.Trainer(model, tokenizer, NAMES, microgpt.TrainConfig(steps=60)))
    return model


# --- Numbers ---


@pytest.mark.parametrize(
    "n, means", [(2, [4, 3, 4, 6.5]), (1, [4, 2, 6, 7]), (9, [4, 3, 4, 4.75])]
)
def test_running_mean(n, means):
    assert pictures.running_mean([4.0, 2.0, 6.0, 7.0], n) == means


def test_learning_hands_over_what_was_measured(tokenizer):
    shape = microgpt.Config(tokenizer.vocab_size, 8, n_head=1, n_embd=4)
    options = microgpt.TrainConfig(steps=5, eval_every=2, val_fraction=0.3)
    one, other = (
        microgpt.Trainer(microgpt.GPT(shape, seed=1), tokenizer, NAMES, options)
        for _ in range(2)
    )
    steps = list(one)
    losses, held_out, scale = pictures.learn(other)
    assert losses == [step.loss for step in steps]
    assert held_out == [(2, steps[1].val_loss), (4, steps[3].val_loss)]
    known = one.windows, one.val_windows, tokenizer.vocab_size
    assert scale == microgpt.baselines(*known)


@pytest.mark.parametrize("text, read", [("cleo", "cleo"), ("adabobcleo", "adabobc")])
def test_attention_maps_are_shares_for_each_token_of_a_block(
    model, tokenizer, text, read
):
    tokens, blocks = pictures.attention_maps(model, tokenizer, text)
    assert tokens == ["<|endoftext|>", *read]
    assert [len(heads) for heads in blocks] == [2, 2]
    for heads in blocks:
        for weights in heads:
            assert [len(row) for row in weights] == list(range(1, len(tokens) + 1))
            assert [sum(row) for row in weights] == pytest.approx([1] * len(tokens))


def test_at_temperature_0_all_samples_are_the_same(trained, tokenizer):
    found = pictures.variety(trained, tokenizer, 0, 20, 1, [])
    assert found.temperature == 0
    assert found.different == found.new == 1 / 20
    assert set(found.samples) == {microgpt.generate(trained, tokenizer, temperature=0)}


def test_new_are_different_ones_that_are_not_training_documents(trained, tokenizer):
    def vary(known):
        return pictures.variety(trained, tokenizer, 0.6, 30, 2, known)

    free = vary([])
    texts = sorted(set(free.samples))
    assert free.new == free.different == len(texts) / 30
    assert 3 < len(texts) < 30
    some = vary(texts[:3] + ["dado"] * 5)
    assert some.new == pytest.approx((len(texts) - 3) / 30)
    assert vary(texts).new == 0
    assert some.samples == free.samples


def test_the_loss_of_samples_is_that_of_their_tokens(trained, tokenizer):
    found = pictures.variety(trained, tokenizer, 9, 9, 3, [])
    assert max(map(len, found.samples)) > 8  # so one of them has two windows
    losses = []
    for text in found.samples:
        losses += [token.loss for token in microgpt.score(trained, tokenizer, text)]
    assert found.loss == pytest.approx(sum(losses) / len(losses))


# --- Labels ---


@pytest.mark.parametrize(
    "points, gap, places",
    [
        ([(1.0,), (3.0,), (2.0,)], 0.5, [1.0, 3.0, 2.0]),
        ([(2.0,), (2.0,)], 1.0, [1.5, 2.5]),
        ([(2.5,), (2.0,), (9.0,)], 1.0, [2.75, 1.75, 9.0]),
        ([(0, 0), (3, 4), (30, 9)], 6, [-0.3, -0.4, 3.3, 4.4, 30, 9]),
    ],
)
def test_labels_that_are_too_close_are_moved_apart(points, gap, places):
    moved = pictures.spread(points, gap)
    assert [x for point in moved for x in point] == pytest.approx(places)


KINDS = {"vowels": "a \u00c9", "consonants": "y \u00f1 \u0416", "other tokens": "3 an"}


def test_kinds_of_tokens():
    for kind, tokens in KINDS.items():
        assert {pictures.kind(token) for token in tokens.split()} == {kind}
    assert pictures.kind(" ") == pictures.kind("") == "other tokens"
    assert pictures.kind("<|endoftext|>") == "<|endoftext|>"


def test_tokens_as_labels_can_be_seen():
    labels = [pictures.plain(token) for token in ("a", " b", "\t", "<|endoftext|>")]
    assert labels == ["a", "\u2423b", "\\t", "<|>"]


# --- Pictures ---


def heights(axes):
    """The heights of each of its lines."""
    return [list(line.get_ydata()) for line in axes.lines]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_losses_are_drawn_as_they_are():
    pytest.importorskip("matplotlib")
    losses = [3.0, 2.0, 2.5, 1.5]
    scale = {"knows nothing": 3.3, "pairs": 2.5}
    (axes,) = pictures.draw_loss(losses, [(2, 2.75), (4, 2.25)], scale).axes
    # Of so few steps, the running mean is the mean of one.
    assert heights(axes) == [losses, [3.3, 3.3], [2.5, 2.5], losses, [2.75, 2.25]]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(axes.lines[-1].get_xdata()) == [2, 4]
    training = "1.50  training, mean of 1 steps"
    expected = ["3.30  knows nothing", "2.50  pairs", training, "2.25  held out"]
    assert words(axes) == expected
    assert [text.xy[1] for text in axes.texts] == [3.3, 2.5, 1.5, 2.25]


def test_each_head_is_drawn_with_nothing_in_the_future(model, tokenizer):
    pytest.importorskip("matplotlib")
    tokens, blocks = pictures.attention_maps(model, tokenizer, "bob")
    maps = pictures.draw_attention(tokens, blocks).axes
    titles = [f"block {i}, head {j}" for i in (0, 1) for j in (0, 1)]
    assert [axes.get_title() for axes in maps] == titles
    for axes, weights in zip(maps, blocks[0] + blocks[1]):
        square = axes.images[0].get_array()
        for i in range(4):
            assert list(square[i, : i + 1]) == weights[i]
            assert square.mask[i, i + 1 :].all()
        assert [label.get_text() for label in axes.get_yticklabels()] == ["<|>", *"bob"]


def test_tokens_stand_at_their_places():
    pytest.importorskip("matplotlib")
    points = [(1.0, 2.0), (-3.0, 0.5), (0.0, 0.25)]
    tokens = ["a", "b", "<|endoftext|>"]
    (axes,) = pictures.draw_embedding(tokens, points, [0.7, 0.2]).axes
    drawn = {text.get_text(): text for text in axes.texts}
    assert sorted(drawn) == ["<|endoftext|>", "a", "b", "consonants", "vowels"]
    assert [drawn[token].get_position() for token in tokens] == points
    colours = {name: text.get_color() for name, text in drawn.items()}
    assert colours["a"] == colours["vowels"] and colours["b"] == colours["consonants"]
    assert len(set(colours.values())) == 3
    assert "70%" in axes.get_xlabel() and "20%" in axes.get_ylabel()


def test_of_many_tokens_some_are_drawn_that_can_be_read():
    tokens = ["\x00", "\ufffd", *map(str, range(10, 21)), "<|endoftext|>"]
    shown = [tokens[i] for i in pictures.to_draw(tokens, most=6)]
    assert shown == ["<|endoftext|>", *"19 17 15 13 11".split()]


def test_temperatures_are_drawn_with_samples():
    style = pytest.importorskip("matplotlib.style")
    many = pictures.Variety(2, ["q", "q", "$x$", "abcdefghijkl"], 0.75, 0.5, 3.5)
    found = [pictures.Variety(0, ["an"] * 4, 0.25, 0, 1.5), many]
    with style.context(pictures.STYLE):
        top, bottom = pictures.draw_temperature(found, 2.5, "held-out text").axes
    assert not any(text.get_parse_math() for text in bottom.texts)  # $x$ is no formula
    assert heights(top) == [[0.25, 0.75], [0, 0.5]]
    assert heights(bottom) == [[1.5, 3.5], [2.5, 2.5]]
    few = "q\n$x$\nabcdefghi\u2026"
    assert words(bottom) == ["samples", "held-out text", "an", few, "some samples"]


@pytest.mark.parametrize(
    "characters, fonts, missing",
    [
        ("ab\u4e00", ["DejaVu Sans"], "\u4e00"),
        ("a\u231a", ["DejaVu Sans", "STIXGeneral"], ""),
        ("\u0378\u231a\u4e00", ["DejaVu Sans", "STIXGeneral"], "\u0378\u4e00"),
    ],
)
def test_fonts_are_those_that_have_the_characters(
    monkeypatch, characters, fonts, missing
):
    manager = pytest.importorskip("matplotlib.font_manager").fontManager
    known = "DejaVu Sans", "STIXGeneral", "Last Resort High-Efficiency"
    ours = [font for font in manager.ttflist if font.name in known]
    monkeypatch.setattr(manager, "ttflist", ours)
    assert pictures.choose_fonts(characters) == (fonts, [*missing])


def test_a_font_that_cannot_be_read_has_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "x.ttf").write_bytes(b"no font")
    assert pictures.characters_in(str(tmp_path / "x.ttf")) == set()


def test_boxes_are_told_once_and_without_warnings(tmp_path):
    pytest.importorskip("matplotlib")
    nobody = "\U00017000"  # a Tangut character, which hardly any font has
    tokenizer = microgpt.CharTokenizer(["ab", nobody])
    kept(make(tokenizer), tokenizer, tmp_path / "model")
    (tmp_path / "text").write_text(f"{nobody}\n" * 3, encoding="utf-8")
    words = ["text", "--model", "model", "--samples", "1"]
    output = works(*words, script=program("pictures"), cwd=tmp_path)
    assert output.count("boxes") == output.count(nobody) == 1


# --- The command ---


@pytest.fixture
def names(tmp_path, monkeypatch):
    """A file of documents, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


def size(path):
    """Width and height of a PNG, from its header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


def test_it_draws_four_pictures(names, tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    options = "names.txt --out a --steps 2 --samples 2".split()
    assert pictures.main(options) == 0
    assert sorted(os.listdir(tmp_path)) == ["a", "names.txt"]
    assert {path.name: size(path) for path in (tmp_path / "a").iterdir()} == {
        "loss.png": (1600, 900),
        "attention.png": (1600, 960),
        "embedding.png": (1600, 840),
        "temperature.png": (1600, 1040),
    }
    for path in (tmp_path / "a").iterdir():
        pixels = image.imread(str(path))[:, :, :3]
        assert pixels.max() == 1 and pixels.min() < 0.3  # ink on white
        assert path.stat().st_size < 120_000
    out = capsys.readouterr().out
    assert "step 2/2" in out and "triples" in out and out.count("temperature ") == 9


def test_the_seed_decides_where_training_begins():
    one, other = (pictures.new_trainer(NAMES, 2, seed).model for seed in (1, 2))
    assert one.config.block_size == 5
    assert one.params != other.params


def draw(arguments):
    """Draw nothing, but compute it -> {name of a picture: what it shows}."""
    found = {}

    def save(name, function, *numbers):
        found[name] = numbers

    pictures.draw(pictures.arguments(arguments.split()), NAMES, save)
    return found


def test_training_text_and_held_out_text_are_told_apart(monkeypatch):
    last = {}

    def spy(name, function):
        def call(*arguments):
            last[name] = arguments[-1]
            return function(*arguments)

        monkeypatch.setattr(pictures, name, call)

    for name in "attention_maps", "variety", "mean_loss":
        spy(name, getattr(pictures, name))
    draw("--steps 2 --samples 2 --seed 7")
    training, held_out = microgpt.split_documents(NAMES, seed=7)
    expected = {"attention_maps": held_out[0], "variety": training}
    assert last == {**expected, "mean_loss": held_out}


def test_a_saved_model_is_not_trained_and_the_seed_decides(
    tmp_path, trained, tokenizer, capsys
):
    microgpt.save_model(trained, tmp_path / "saved", tokenizer)
    options = f"--model {tmp_path / 'saved'} --samples 3 --text bold"
    found = draw(options)
    assert list(found) == ["attention.png", "embedding.png", "temperature.png"]
    assert found["attention.png"][0] == ["<|endoftext|>", *"bold"]
    temperatures, _, whose = found["temperature.png"]
    assert [v.temperature for v in temperatures] == [i / 4 for i in range(9)]
    assert whose == "the text itself"
    assert "step" not in capsys.readouterr().out
    assert draw(options) == found
    assert draw(options + " --seed 7") != found


@pytest.mark.parametrize(
    "options, message",
    [
        ("none.txt", "none.txt"),
        ("names.txt --out names.txt", "names.txt"),
        ("names.txt --model none", "none"),
        ("names.txt --steps 0", "steps is 0"),
        ("names.txt --samples 0", "samples is 0"),
        ("names.txt --text abz", "'z' (U+007A) is not in"),
        ("one.txt", "two documents or more"),
        ("one.txt --model saved", "one.txt: 'd' (U+0064) is not in"),
    ],
)
def test_bad_input_gets_one_line(names, capsys, options, message):
    pytest.importorskip("matplotlib")
    Path("one.txt").write_text("ada", encoding="utf-8")
    kept(make(), ABC, "saved")
    assert pictures.main(options.split()) == 1
    out, err = capsys.readouterr()
    assert message in err and is_one_line(err, "pictures") and not out


def test_without_matplotlib_it_says_how_to_get_it(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n")
    result = command(
        script=program("pictures"), cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    says_one_line(result, "python -m pip install matplotlib", name="pictures")
    assert result.stdout == "" and not (tmp_path / "pictures").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_each_step_and_each_sample(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    draw("--steps 3 --samples 2")
    shown = sys.stdout.getvalue()
    for step in 1, 2, 3:
        assert f"\rstep {step}/3  loss " in shown
    assert "\rstep 3/3  held out " in shown  # the line of the step before is gone
    for sample in 1, 2:
        assert f"\rtemperature 1.75  sample {sample}/2" in shown
    assert "\rtemperature 1.75  different " in shown


@pytest.mark.skipif(os.name != "posix", reason="Windows has another Ctrl-C")
def test_ctrl_c_ends_it_with_one_line(names):
    pytest.importorskip("matplotlib")
    child = start("names.txt", "--steps", "300", script=program("pictures"))
    assert child.stdout.readline().startswith("step 30/300  held out ")
    child.send_signal(signal.SIGINT)
    _, error = child.communicate()
    assert (child.returncode, error) == (130, "pictures: interrupted\n")
