"""examples/pictures.py computes the numbers that it says, and draws those."""

import math
import os
import random
import struct
import subprocess
import sys
from itertools import combinations

import pictures
import pytest

import microgpt

NAMES = ["ada", "bob", "cleo", "abel", "dolo", "leo", "bea", "coco", "ole", "lea"]


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A model that has learned to come to an end."""
    model = microgpt.GPT(
        microgpt.Config(tokenizer.vocab_size, 8, n_head=2, n_embd=8), seed=1
    )
    list(microgpt.Trainer(model, tokenizer, NAMES, microgpt.TrainConfig(steps=60)))
    return model


def test_running_mean_by_hand():
    assert pictures.running_mean([4.0, 2.0, 6.0, 7.0], 2) == [4.0, 3.0, 4.0, 6.5]
    assert pictures.running_mean([4.0, 2.0, 6.0], 1) == [4.0, 2.0, 6.0]
    assert pictures.running_mean([4.0, 2.0, 6.0], 99) == [4.0, 3.0, 4.0]


def test_learning_hands_over_what_was_measured(tokenizer):
    def trainer():
        model = microgpt.GPT(
            microgpt.Config(tokenizer.vocab_size, 8, n_head=1, n_embd=4), seed=1
        )
        return microgpt.Trainer(
            model,
            tokenizer,
            NAMES,
            microgpt.TrainConfig(steps=5, eval_every=2, val_fraction=0.3),
        )

    one = trainer()
    other = trainer()
    steps = list(one)
    losses, held_out, scale = pictures.learn(other)
    assert losses == [step.loss for step in steps]
    assert held_out == [(2, steps[1].val_loss), (4, steps[3].val_loss)]
    assert scale == microgpt.baselines(
        one.windows, one.val_windows, tokenizer.vocab_size
    )


# --- Principal components -------------------------------------------------------------

# The mean is (0, 0) and the coordinates are uncorrelated, so they are the axes of most
# variance. The squares add up to 81 + 3 * 9 = 108 and 4 + 2 * 1 = 6. The farthest rows
# are on the positive side.
CLOUD = [(9, 0), (-3, 2), (-3, -1), (-3, -1)]


def orthonormal(n, width, rng):
    """n rows of a width, of length 1 and at right angles, in random directions."""
    rows = []
    while len(rows) < n:
        row = [rng.gauss(0, 1) for _ in range(width)]
        for other in rows:
            along = microgpt.dot(row, other)
            row = [x - along * y for x, y in zip(row, other)]
        length = math.sqrt(microgpt.dot(row, row))
        rows.append([x / length for x in row])
    return rows


@pytest.mark.parametrize("sign", [1, -1])
def test_a_flat_cloud_is_found_again_in_16_dimensions(sign):
    pytest.importorskip("numpy")
    rng = random.Random(7)
    axes = orthonormal(2, 16, rng)
    middle = [rng.gauss(0, 5) for _ in range(16)]
    rows = [
        [m + sign * (x * a + y * b) for m, a, b in zip(middle, *axes)] for x, y in CLOUD
    ]
    points, shares = pictures.principal_components(rows)
    assert points == [pytest.approx(point, abs=1e-9) for point in CLOUD]
    assert shares == pytest.approx([108 / 114, 6 / 114])


def test_components_are_uncorrelated_and_in_the_order_of_their_variance():
    pytest.importorskip("numpy")
    rng = random.Random(3)
    rows = [[rng.gauss(0, 1) for _ in range(5)] for _ in range(40)]
    points, shares = pictures.principal_components(rows, k=5)
    columns = list(zip(*points))
    assert all(abs(microgpt.dot(a, b)) < 1e-9 for a, b in combinations(columns, 2))
    assert all(abs(sum(column)) < 1e-9 for column in columns)
    squares = [microgpt.dot(column, column) for column in columns]
    assert shares == pytest.approx([square / sum(squares) for square in squares])
    assert shares == sorted(shares, reverse=True)
    for i, j in combinations(
        range(40), 2
    ):  # all 5 of 5 dimensions: nothing was squeezed
        assert math.dist(points[i], points[j]) == pytest.approx(
            math.dist(rows[i], rows[j])
        )


@pytest.mark.parametrize(
    "rows, points, shares",
    [
        ([[2.0], [6.0], [4.0]], [[-2, 0], [2, 0], [0, 0]], [1, 0]),
        ([[1.0, 2.0], [1.0, 2.0]], [[0, 0], [0, 0]], [0, 0]),
    ],
)
def test_a_cloud_without_a_second_dimension_gets_zeros(rows, points, shares):
    pytest.importorskip("numpy")
    found, found_shares = pictures.principal_components(rows)
    assert [list(map(abs, point)) for point in found] == [
        pytest.approx(list(map(abs, point))) for point in points
    ]
    assert found_shares == pytest.approx(shares)


# --- Attention ------------------------------------------------------------------------


def test_attention_maps_are_causal_shares_for_each_token(model, tokenizer):
    tokens, blocks = pictures.attention_maps(model, tokenizer, "cleo")
    assert tokens == ["<|endoftext|>", *"cleo"]
    assert [len(heads) for heads in blocks] == [
        model.config.n_head
    ] * model.config.n_layer
    for weights in (weights for heads in blocks for weights in heads):
        assert list(map(len, weights)) == [1, 2, 3, 4, 5]
        assert list(map(sum, weights)) == pytest.approx([1] * 5)


def test_attention_maps_end_with_the_block(model, tokenizer):
    tokens, blocks = pictures.attention_maps(model, tokenizer, "adabobcleo")
    assert tokens == ["<|endoftext|>", *"adabobc"]
    assert len(blocks[1][1]) == model.config.block_size


# --- Temperature ----------------------------------------------------------------------


def test_temperature_0_writes_one_text_only(trained, tokenizer):
    (found,) = pictures.variety(trained, tokenizer, [0], 20, 1, [])
    assert found.different == found.new == 1 / 20
    assert set(found.samples) == {microgpt.generate(trained, tokenizer, temperature=0)}


def test_variety_rises_with_the_temperature(trained, tokenizer):
    """The entropy of a token does. The variety of few samples need not, but does."""
    found = pictures.variety(trained, tokenizer, [0, 0.3, 0.8, 5], 60, 1, [])
    shares = [v.different for v in found]
    assert shares == sorted(set(shares)) and shares[-1] > 0.5
    assert [v.temperature for v in found] == [0, 0.3, 0.8, 5]


def test_new_are_different_ones_that_are_not_training_documents(trained, tokenizer):
    def new(training_documents):
        (found,) = pictures.variety(
            trained, tokenizer, [0.6], 30, 2, training_documents
        )
        return found

    free = new([])
    texts = sorted(set(free.samples))
    assert free.new == free.different == len(texts) / 30
    assert new(texts[:3] + ["dado"] * 5).new == pytest.approx((len(texts) - 3) / 30)
    assert new(free.samples).new == 0
    assert new(texts).samples == free.samples


def test_loss_of_samples_is_that_of_their_tokens(trained, tokenizer):
    (found,) = pictures.variety(trained, tokenizer, [9], 9, 3, [])
    assert max(map(len, found.samples)) > 8  # so one of them has two windows
    losses = [
        token.loss
        for text in found.samples
        for token in microgpt.score(trained, tokenizer, text)
    ]
    assert found.loss == pytest.approx(sum(losses) / len(losses))


# --- Labels ---------------------------------------------------------------------------


def test_labels_keep_their_distance_and_their_order():
    def spread(heights, gap):
        return [
            height
            for (height,) in pictures.spread([(height,) for height in heights], gap)
        ]

    assert spread([1.0, 3.0, 2.0], 0.5) == [1.0, 3.0, 2.0]
    assert spread([2.0, 2.0], 1.0) == pytest.approx([1.5, 2.5])
    assert spread([2.5, 2.0, 9.0], 1.0) == pytest.approx([2.75, 1.75, 9.0])
    rng = random.Random(5)
    for _ in range(50):
        heights = [rng.uniform(0, 0.5) for _ in range(6)]
        placed = spread(heights, 0.1)
        order = sorted(range(6), key=heights.__getitem__)
        assert all(placed[b] - placed[a] > 0.098 for a, b in zip(order, order[1:]))
        assert sum(placed) == pytest.approx(sum(heights))


def test_letters_make_room_for_one_another():
    pushed = pictures.spread([(0, 0), (3, 4), (30, 9)], 6)  # two 5 apart, one far away
    assert pushed[:2] == [pytest.approx([-0.3, -0.4]), pytest.approx([3.3, 4.4])]
    assert pushed[2] == [30, 9]
    assert math.dist(*pictures.spread([(1, 1), (1, 1)], 2)) == pytest.approx(2)


@pytest.mark.parametrize(
    "token, kind",
    [
        ("a", "vowels"),
        ("\u00c9", "vowels"),
        ("y", "consonants"),
        ("\u00f1", "consonants"),
        ("\u0416", "consonants"),
        ("3", "other tokens"),
        (" ", "other tokens"),
        ("an", "other tokens"),
        ("", "other tokens"),
        ("<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_kinds_of_tokens(token, kind):
    assert pictures.kind(token) == kind


def test_tokens_as_labels_can_be_seen():
    assert list(map(pictures.plain, ["a", " b", "\t", "<|endoftext|>"])) == [
        "a",
        "\u2423b",
        "\\t",
        "<|>",
    ]


# --- Pictures -------------------------------------------------------------------------


def test_losses_are_drawn_as_they_are():
    pytest.importorskip("matplotlib")
    losses = [3.0, 2.0, 2.5, 1.5]
    scale = {"knows nothing": 3.3, "pairs": 2.5}
    (axes,) = pictures.draw_loss(losses, [(2, 2.75), (4, 2.25)], scale).axes
    faint, nothing, pairs, mean, held_out = [
        list(line.get_ydata()) for line in axes.lines
    ]
    assert faint == mean == losses  # of so few steps, the mean of 1
    assert nothing == [3.3, 3.3] and pairs == [2.5, 2.5] and held_out == [2.75, 2.25]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(axes.lines[-1].get_xdata()) == [2, 4]
    assert [text.get_text() for text in axes.texts] == [
        "3.30  knows nothing",
        "2.50  pairs",
        "1.50  training, mean of 1 steps",
        "2.25  held out",
    ]
    assert [text.xy[1] for text in axes.texts] == [3.3, 2.5, 1.5, 2.25]


def test_each_head_is_drawn_with_nothing_in_the_future(model, tokenizer):
    pytest.importorskip("matplotlib")
    tokens, blocks = pictures.attention_maps(model, tokenizer, "bob")
    figure = pictures.draw_attention(tokens, blocks)
    assert [axes.get_title() for axes in figure.axes] == [
        "block 0, head 0",
        "block 0, head 1",
        "block 1, head 0",
        "block 1, head 1",
    ]
    for axes, weights in zip(figure.axes, blocks[0] + blocks[1]):
        square = axes.images[0].get_array()
        for i, j in ((i, j) for i in range(4) for j in range(4)):
            assert (square[i, j] == weights[i][j]) if j <= i else square.mask[i, j]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["<|>", *"bob"]


def test_tokens_stand_at_their_places():
    pytest.importorskip("matplotlib")
    points = [(1.0, 2.0), (-3.0, 0.5), (0.0, 0.25)]
    tokens = ["a", "b", "<|endoftext|>"]
    (axes,) = pictures.draw_embedding(tokens, points, [0.7, 0.2]).axes
    drawn = {text.get_text(): text for text in axes.texts}
    assert sorted(drawn) == ["<|endoftext|>", "a", "b", "consonants", "vowels"]
    assert [drawn[token].get_position() for token in tokens] == points
    assert drawn["a"].get_color() == drawn["vowels"].get_color()
    assert drawn["b"].get_color() == drawn["consonants"].get_color()
    assert len({drawn[token].get_color() for token in ["a", "b", "<|endoftext|>"]}) == 3
    assert "70%" in axes.get_xlabel() and "20%" in axes.get_ylabel()


def test_of_many_tokens_some_are_drawn_that_can_be_read():
    pytest.importorskip("matplotlib")
    tokens = ["\x00", "\ufffd", *map(str, range(10, 20)), "<|endoftext|>"]
    points = [(i, i * i) for i in range(13)]
    (axes,) = pictures.draw_embedding(tokens, points, [0.7, 0.2], most=6).axes
    assert sorted(text.get_text() for text in axes.texts) == [
        "10",
        "12",
        "14",
        "16",
        "18",
        "<|endoftext|>",
        "other tokens",
    ]


def test_temperatures_are_drawn_with_samples():
    style = pytest.importorskip("matplotlib.style")
    found = [
        pictures.Variety(0, ["an"] * 4, 0.25, 0, 1.5),
        pictures.Variety(2, ["q", "q", "$x$", "abcdefghijkl"], 0.75, 0.5, 3.5),
    ]
    with style.context(pictures.STYLE):
        top, bottom = pictures.draw_temperature(found, 2.5, "held-out text").axes
    assert not any(text.get_parse_math() for text in bottom.texts)  # $x$ is no formula
    assert [list(line.get_ydata()) for line in top.lines] == [[0.25, 0.75], [0, 0.5]]
    assert [list(line.get_ydata()) for line in bottom.lines] == [[1.5, 3.5], [2.5, 2.5]]
    assert [text.get_text() for text in bottom.texts][:4] == [
        "samples",
        "held-out text",
        "an",
        "q\n$x$\nabcdefghi\u2026",
    ]


# --- The command ----------------------------------------------------------------------


@pytest.fixture
def names(tmp_path, monkeypatch):
    """A file of documents, in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


def size(path):
    """Width and height of a PNG, from its header."""
    with open(path, "rb") as file:
        head = file.read(24)
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_four_pictures_and_nothing_else(names, tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    assert (
        pictures.main([str(names), "--out", "a", "--steps", "20", "--samples", "2"])
        == 0
    )
    assert sorted(os.listdir(tmp_path)) == ["a", "names.txt"]
    sizes = {name: size(tmp_path / "a" / name) for name in os.listdir("a")}
    assert sizes == {
        "loss.png": (1600, 900),
        "attention.png": (1600, 960),
        "embedding.png": (1600, 840),
        "temperature.png": (1600, 1040),
    }
    for name in sizes:
        pixels = image.imread(str(tmp_path / "a" / name))[:, :, :3]
        assert pixels.max() == 1 and pixels.min() < 0.3  # ink on white
        assert os.path.getsize(tmp_path / "a" / name) < 120_000
    out = capsys.readouterr().out
    assert "step 20/20" in out and "triples" in out and out.count("temperature ") == 9


def test_training_text_and_held_out_text_are_told_apart(monkeypatch):
    pytest.importorskip("matplotlib")
    last = {}

    def spy(name, function):
        def call(*arguments):
            last[name] = arguments[-1]
            return function(*arguments)

        monkeypatch.setattr(pictures, name, call)

    for name in "attention_maps", "variety", "mean_loss":
        spy(name, getattr(pictures, name))
    arguments = pictures.arguments(["--steps", "2", "--samples", "2", "--seed", "7"])
    pictures.draw(arguments, NAMES, lambda name, figure: None)
    training, held_out = microgpt.split_documents(NAMES, seed=7)
    assert last == {
        "attention_maps": held_out[0],
        "variety": training,
        "mean_loss": held_out,
    }


def test_a_kept_model_is_not_trained(names, trained, tokenizer, capsys):
    pytest.importorskip("matplotlib")
    microgpt.save_model(trained, "kept", tokenizer)
    names.write_text("ada\nbob\ncleo\n", encoding="utf-8")
    said = []
    for out in "a", "b":
        assert (
            pictures.main(
                [
                    str(names),
                    "--model",
                    "kept",
                    "--out",
                    out,
                    "--samples",
                    "3",
                    "--text",
                    "bold",
                ]
            )
            == 0
        )
        said.append(capsys.readouterr().out.replace(out + os.sep, ""))
    assert sorted(os.listdir("a")) == [
        "attention.png",
        "embedding.png",
        "temperature.png",
    ]
    assert said[0] == said[1] and "step" not in said[0]
    for name in os.listdir("a"):
        with (
            open(os.path.join("a", name), "rb") as a,
            open(os.path.join("b", name), "rb") as b,
        ):
            assert a.read() == b.read(), name


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.txt"], "none.txt"),
        (["names.txt", "--out", "names.txt"], "names.txt"),
        (["names.txt", "--model", "none"], "none"),
        (["names.txt", "--steps", "0"], "steps is 0"),
        (["names.txt", "--samples", "0"], "samples is 0"),
        (["names.txt", "--text", "abz"], "'z' is not one of"),
    ],
)
def test_bad_input_gets_one_line(names, capsys, arguments, message):
    pytest.importorskip("matplotlib")
    assert pictures.main(arguments) == 1
    out, err = capsys.readouterr()
    assert message in err and err.startswith("pictures: ") and err.count("\n") == 1
    assert not out


def test_without_matplotlib_it_says_how_to_get_it(tmp_path):
    (tmp_path / "matplotlib.py").write_text(
        "raise ImportError('not here')\n", encoding="utf-8"
    )
    child = subprocess.run(
        [sys.executable, pictures.__file__],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert child.returncode == 1 and not child.stdout
    assert (
        child.stderr
        == "pictures: matplotlib is missing: python -m pip install matplotlib\n"
    )
    assert os.listdir(tmp_path) == ["matplotlib.py"]
