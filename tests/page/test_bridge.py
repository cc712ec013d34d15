"""The Python of the playground, examples/playground/bridge.py, without a browser.

What it tells the page is what microgpt.py computes.
"""

import concurrent.futures
import io
import json
import math
import os
import random
import zipfile

import pytest
from helpers import ABC, draws, make

import microgpt

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import bridge  # noqa: E402

NAMES = [
    "ada",
    "bob",
    "cleo",
    "abel",
    "dolo",
    "leo",
    "bea",
    "coco",
    "ole",
    "lea",
    "eda",
    "obo",
]
SHAPE = {"block_size": 4, "n_layer": 2, "n_head": 2, "n_embd": 8}
LONG = 1e9  # milliseconds: as many as it takes


def begun(tmp_path, names=NAMES, **options):
    playground = bridge.Playground(str(tmp_path))
    playground.start(
        "\n".join(names).encode(), SHAPE, {"steps": 12, "seed": 5, **options}
    )
    return playground


def trainer_of(names=NAMES, **options):
    """The same, without a playground."""
    tokenizer = microgpt.CharTokenizer(names)
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, **SHAPE), seed=5)
    return microgpt.Trainer(
        model,
        tokenizer,
        names,
        microgpt.TrainConfig(**{"steps": 12, "seed": 5, **options}),
    )


def showing(tmp_path, model, tokenizer=ABC):
    """A playground that has opened a model."""
    microgpt.save_model(model, str(tmp_path / "given"), tokenizer)
    playground = bridge.Playground(str(tmp_path))
    playground.load(packed(tmp_path / "given"), b"")
    return playground


def packed(directory, **others):
    """A directory as a zip file, with other files in the place of some of it."""
    files = {name: (directory / name).read_bytes() for name in os.listdir(directory)}
    return archive(
        {**files, **{name.replace("__", "."): x for name, x in others.items()}}
    )


def archive(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, contents in files.items():
            opened.writestr(f"model/{name}", contents)
    return file.getvalue()


def unpacked(contents, directory):
    with zipfile.ZipFile(io.BytesIO(contents)) as file:
        file.extractall(str(directory))
        return file.namelist()


def in_words(message):
    """Can this message be shown to users, who know nothing of the page's own files?"""
    return (
        "\n" not in message
        and "playground" not in message
        and "Errno" not in message
        and (len(message.split()) > 2)
    )


def refusal(function, *args):
    with pytest.raises(ValueError) as caught:
        function(*args)
    return str(caught.value)


# --- Training -------------------------------------------------------------------------


def test_it_trains_as_the_trainer_does(tmp_path):
    playground = begun(tmp_path)
    losses = []
    expected = trainer_of()
    for step in expected:
        told = playground.train(0)
        losses += told["losses"]
        assert (told["step"], told["steps"], told["losses"]) == (
            step.step,
            12,
            [step.loss],
        )
        assert told["speed"] > 0
    assert playground.model.params == expected.model.params


def test_a_turn_is_as_long_as_asked_and_the_last_one_ends_with_the_training(tmp_path):
    playground = begun(tmp_path)
    expected = trainer_of()
    losses = [step.loss for step in expected]
    first = playground.train(0)
    rest = playground.train(LONG)
    none = playground.train(LONG)
    assert (first["step"], rest["step"], none["step"]) == (1, 12, 12)
    assert first["losses"] + rest["losses"] == losses and none["losses"] == []


def test_what_it_tells_about_a_training(tmp_path):
    playground = begun(tmp_path, val_fraction=0.25)
    about = playground.about()
    numbers = []
    for x in playground.model.params.values():
        numbers += sum(x, []) if isinstance(x[0], list) else x
    assert about["parameters"] == len(numbers)
    assert about["vocab"] == sorted(set("".join(NAMES))) + [microgpt.END]
    assert (about["documents"], about["held_out"]) == (9, 3)
    assert (about["step"], about["steps"]) == (0, 12)
    assert {name: about[name] for name in SHAPE} == SHAPE
    playground.train(0)
    assert playground.about()["step"] == 1


def test_parameters_are_counted_before_there_is_a_model():
    tokenizer = microgpt.CharTokenizer(NAMES)
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, **SHAPE))
    counted = sum(
        len(row) if isinstance(row, list) else 1
        for x in model.params.values()
        for row in x
    )
    assert bridge.parameter_count(tokenizer.vocab_size, SHAPE) == counted


def test_the_held_out_loss_is_of_the_first_windows_held_out(tmp_path, monkeypatch):
    playground = begun(tmp_path, val_fraction=0.5)
    windows = playground.trainer.val_windows
    monkeypatch.setattr(bridge, "QUICK_WINDOWS", 3)
    assert playground.held_out() == microgpt.evaluate(playground.model, windows[:3])
    assert playground.held_out() != microgpt.evaluate(playground.model, windows)


def test_without_held_out_text_it_is_held_against_what_was_trained_on(tmp_path):
    playground = begun(tmp_path, val_fraction=0.0)
    assert playground.held_out() is None
    playground.train(LONG)
    windows = playground.trainer.windows
    size = playground.tokenizer.vocab_size
    assert playground.scale() == microgpt.baselines(windows, windows, size)
    assert playground.reading()["loss"] == microgpt.evaluate(playground.model, windows)


def test_the_reading_is_the_one_of_the_command(tmp_path):
    playground = begun(tmp_path)
    expected = trainer_of()
    playground.train(LONG)
    list(expected)
    scale = microgpt.baselines(
        expected.windows, expected.val_windows, expected.model.config.vocab_size
    )
    loss = microgpt.evaluate(expected.model, expected.val_windows)
    assert playground.scale() == scale
    assert playground.reading() == {
        "loss": loss,
        "sentence": microgpt.reading(expected.losses, loss, scale),
    }


@pytest.mark.parametrize(
    "text, told",
    [
        (b"", "empty"),
        (b" \n\n \n", "empty"),
        (b"alone", "single"),
        (b"\x89PNG\0\x01\n", "UTF-8"),
        ("ada\nren\u00e9".encode("latin-1"), "line 2"),
    ],
)
def test_what_is_no_text_to_learn_from_is_refused_in_words(tmp_path, text, told):
    playground = begun(tmp_path)
    message = refusal(playground.start, text, SHAPE, {})
    assert told in message and in_words(message) and str(tmp_path) not in message
    assert playground.train(LONG)["losses"] == [
        step.loss for step in trainer_of()
    ]  # goes on


@pytest.mark.parametrize(
    "shape, training",
    [({"n_head": 3}, {}), ({"n_layer": 0}, {}), ({}, {"steps": 0}), ({}, {"lr": -1})],
)
def test_options_that_cannot_be_are_refused_and_the_training_goes_on(
    tmp_path, shape, training
):
    playground = begun(tmp_path)
    message = refusal(playground.start, b"ada\nbob", {**SHAPE, **shape}, training)
    assert in_words(message)
    assert playground.train(LONG)["losses"] == [step.loss for step in trainer_of()]


def test_files_stay_in_its_directory(tmp_path):
    (tmp_path / "own").mkdir()
    playground = begun(tmp_path / "own")
    evil = archive(
        {
            "../../config.json": "{}",
            "../../../../tokenizer.json": "{}",
            "/config.json": "{}",
        }
    )
    with pytest.raises(ValueError):
        playground.load(evil, b"")
    assert os.listdir(str(tmp_path)) == ["own"]


# --- Generation -----------------------------------------------------------------------


def by_hand(logits, temperature, top_k, top_p):
    """What Sampling says it draws with."""
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
    weights = [math.exp((logits[i] - max(logits)) / temperature) for i in ranked]
    weights = weights[: top_k or None]
    total = sum(weights)
    reached = 0.0
    kept = {}
    for i, weight in zip(ranked, weights):
        if reached >= top_p:
            break
        reached += weight / total
        kept[i] = weight
    return [kept.get(i, 0.0) / sum(kept.values()) for i in range(len(logits))]


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [
        (1, 0, 1.0),
        (0.5, 0, 1.0),
        (2.5, 0, 1),
        (1, 2, 1.0),
        (1.5, 3, 0.6),
        (1, 0, 0.05),
        (0.7, 99, 0.8),
    ],
)
def test_the_next_tokens_are_those_that_sampling_would_draw(
    tmp_path, temperature, top_k, top_p
):
    playground = showing(tmp_path, make(sharp=6.0))
    logits = playground.model([ABC.end, 1, 0])[-1]
    told = playground.next_tokens("ba", temperature, top_k, top_p)
    assert [row["token"] for row in told] == list(ABC.vocab)
    assert [row["model"] for row in told] == pytest.approx(
        microgpt.softmax(logits), abs=1e-12
    )
    assert [row["drawn"] for row in told] == pytest.approx(
        by_hand(logits, temperature, top_k, top_p), abs=1e-12
    )


def test_at_temperature_0_the_likeliest_is_certain(tmp_path):
    playground = showing(tmp_path, draws(0.2, 0.5, 0.2, 0.1))
    told = playground.next_tokens("", 0, 0, 1.0)
    assert [row["drawn"] for row in told] == [0, 1, 0, 0]
    assert [row["model"] for row in told] == pytest.approx([0.2, 0.5, 0.2, 0.1])
    assert {playground.draw("", 0, 0, 1.0) for _ in range(20)} == {"b"}


def test_what_is_drawn_is_what_the_bars_show(tmp_path):
    playground = showing(tmp_path, draws(0.4, 0.3, 0.25, 0.05))
    playground.rng.seed(1)
    every = [playground.draw("a", 1, 0, 1.0) for _ in range(400)]
    assert [every.count(token) / 400 for token in ABC.vocab] == pytest.approx(
        [0.4, 0.3, 0.25, 0.05], abs=0.1
    )  # four standard deviations
    assert {playground.draw("a", 1, 2, 1.0) for _ in range(60)} == {"a", "b"}
    assert {playground.draw("a", 1, 0, 0.6) for _ in range(60)} == {"a", "b"}
    assert {playground.draw("a", 3, 1, 1.0) for _ in range(20)} == {"a"}


def test_of_a_long_beginning_the_last_tokens_are_read(tmp_path):
    playground = showing(tmp_path, make(block_size=4, sharp=6.0))
    told = playground.next_tokens("abcabbca", 1, 0, 1.0)
    logits = playground.model(ABC.encode("bbca"))[-1]
    assert [row["model"] for row in told] == pytest.approx(
        microgpt.softmax(logits), abs=1e-12
    )


@pytest.mark.parametrize("method", ["next_tokens", "draw"])
def test_an_unknown_character_is_named(tmp_path, method):
    message = refusal(getattr(showing(tmp_path, make()), method), "abz", 1, 0, 1.0)
    assert "'z'" in message and in_words(message)


def test_what_it_writes_is_what_generate_writes(tmp_path):
    playground = begun(tmp_path)
    options = {"temperature": 0.8, "top_k": 4, "max_tokens": 7}
    playground.train(LONG)
    rng = random.Random(9)
    expected = [
        microgpt.generate(
            playground.model, playground.tokenizer, "a", seed=rng, **options
        )
        for _ in range(5)
    ]
    written = playground.write(5, "a", 9, options)
    assert [one["text"] for one in written] == expected and len(set(expected)) > 1


def test_only_what_was_trained_on_is_known(tmp_path, monkeypatch):
    playground = begun(tmp_path, val_fraction=0.5)
    texts = iter(NAMES + ["new"])

    def generate(*args, **options):
        return next(texts)

    monkeypatch.setattr(microgpt, "generate", generate)
    written = playground.write(len(NAMES) + 1, "", 1, {})
    seen, held_out = microgpt.split_documents(NAMES, 0.5, seed=5)
    known = {one["text"] for one in written if one["known"]}
    assert known == set(seen) and held_out


def test_a_model_from_a_file_has_no_documents_that_are_known(tmp_path):
    written = showing(tmp_path, draws(0, 1, 0, 0)).write(2, "a", 1, {"max_tokens": 2})
    assert written == [{"text": "abb", "known": False}] * 2


def bytewise():
    """A model of bytes that draws only " ada", which is one token.

    -> (the model, its tokenizer)
    """
    tokenizer = microgpt.BPETokenizer.train(["eve ada ada ada ada"] * 9, 260)
    n = tokenizer.vocab_size
    (ada,) = [i for i in range(n) if tokenizer.decode([i]) == " ada"]
    probabilities = [0.0] * n
    probabilities[ada] = 1.0
    return draws(*probabilities), tokenizer


def test_a_token_that_is_drawn_is_text_also_where_tokens_are_bytes(tmp_path):
    """It is text that can be appended to the prompt, which is then encoded anew.

    (In GPT-2's vocabulary, a space is another character.)
    """
    playground = showing(tmp_path, *bytewise())
    assert playground.draw("eve", 1, 0, 1.0) == " ada"
    drawn = [
        row["token"]
        for row in playground.next_tokens("eve", 1, 0, 1.0)
        if row["drawn"] > 0.5
    ]
    assert drawn == [" ada"]  # the wheel finds it by what was drawn


# --- Looking inside -------------------------------------------------------------------


def test_the_table_is_score(tmp_path):
    playground = showing(tmp_path, make(block_size=4, sharp=5.0))
    for text in ("", "abc", "abcabcab"):
        expected = microgpt.score(playground.model, ABC, text)
        told = playground.score(text)
        assert [tuple(row[name] for name in expected[0]._fields) for row in told] == [
            tuple(scored) for scored in expected
        ]


def inputs_of_attention(model, tokens):
    """The queries, keys and values of each block."""
    inputs = []

    class Listening(microgpt.GPT):
        def attend(self, name, x):
            inputs.append(x)
            return super().attend(name, x)

    Listening(model.config, model.params)(tokens)
    return inputs


def weights_by_hand(x, n_head):
    """Attention's weights by head: softmax(q k / sqrt(d)) over the tokens so far."""
    C = len(x[0]) // 3
    d = C // n_head
    heads = []
    for i in range(0, C, d):
        rows = []
        for t in range(len(x)):
            q = x[t][i : i + d]
            powers = []
            for row in x[: t + 1]:
                k = row[C + i : C + i + d]
                score = sum(a * b for a, b in zip(q, k)) / math.sqrt(d)
                powers.append(math.exp(score))
            rows.append([power / sum(powers) for power in powers])
        heads.append(rows)
    return heads


def test_attention_looks_back_only_and_shares_out_all_of_it(tmp_path):
    tokenizer = microgpt.CharTokenizer(NAMES)
    model = microgpt.GPT(
        microgpt.Config(tokenizer.vocab_size, 8, 3, n_head=2, n_embd=8), seed=1
    )
    told = showing(tmp_path, model, tokenizer).attention("ada")
    assert told["tokens"] == [microgpt.END, "a", "d", "a"]
    assert [len(heads) for heads in told["blocks"]] == [2, 2, 2]
    inputs = inputs_of_attention(model, [tokenizer.end, *tokenizer.encode("ada")])
    for heads, x in zip(told["blocks"], inputs):
        assert heads == [
            [pytest.approx(row) for row in rows] for rows in weights_by_hand(x, 2)
        ]
        for rows in heads:
            assert [len(row) for row in rows] == [1, 2, 3, 4]
            assert [sum(row) for row in rows] == pytest.approx([1] * 4)


def test_attention_on_a_text_that_is_too_long_is_on_its_first_tokens(tmp_path):
    told = showing(tmp_path, make(block_size=4)).attention("abcabc")
    assert told["tokens"] == [microgpt.END, "a", "b", "c"]
    assert [len(row) for row in told["blocks"][0][0]] == [1, 2, 3, 4]


def test_the_plane_keeps_distances_where_two_directions_are_all_there_is():
    rng = random.Random(3)
    n = 5
    u = [1 / 3, 2 / 3, 2 / 3, 0, 0]
    v = [0, 1 / math.sqrt(2), -1 / math.sqrt(2), 0, 0]  # at a right angle to u
    flat = [(rng.gauss(0, 5), rng.gauss(0, 2)) for _ in range(12)]
    rows = [[7 + a * u[i] + b * v[i] for i in range(n)] for a, b in flat]
    points, share = bridge.plane(rows)
    assert share == pytest.approx(1)
    for i in range(12):
        for j in range(i):
            assert math.dist(points[i], points[j]) == pytest.approx(
                math.dist(flat[i], flat[j])
            )


def test_the_plane_is_that_of_most_variance_by_hand():
    # Along the axes 4² + 4², 3² + 3² and 1 + 1, and nothing common to two of them.
    rows = [[4, 0, 0], [-4, 0, 0], [0, 0, 3], [0, 0, -3], [0, 1, 0], [0, -1, 0]]
    points, share = bridge.plane(rows)
    assert share == pytest.approx((32 + 18) / 52)
    for axis, expected in enumerate([[4, -4, 0, 0, 0, 0], [0, 0, 3, -3, 0, 0]]):
        along = [point[axis] for point in points]
        sign = math.copysign(1, along[2 * axis])  # an axis has no direction
        assert [sign * x for x in along] == pytest.approx(expected, abs=1e-9)


def test_the_plane_of_rows_that_are_all_alike_is_one_point():
    points, share = bridge.plane([[1.0, 2.0, 3.0]] * 4)
    assert points == [(0, 0)] * 4 and share == 0


def test_the_embedding_places_every_token(tmp_path):
    playground = showing(tmp_path, make(sharp=5.0))
    told = playground.embedding()
    points, share = bridge.plane(playground.model.params["wte.weight"])
    assert told["share"] == share
    assert [(at["token"], (at["x"], at["y"])) for at in told["points"]] == list(
        zip(ABC.vocab, points)
    )


# --- The chain rule -------------------------------------------------------------------

EXPRESSIONS = [
    ("a * b + a ** 2", {"a": 2, "b": -3}),
    ("a * a", {"a": 3}),
    ("a", {"a": 1}),
    ("b = a + a; c = b + b; b + c", {"a": 3}),
    ("exp(a) / (a - b)", {"a": 1, "b": 4}),
    ("tanh(w * x + b) ** 2", {"w": 0.5, "x": 2, "b": -0.4}),
    ("relu(a) + log(a)", {"a": 2}),
]


def test_the_gradients_of_a_small_expression_by_hand():
    # d(ab + a²)/da = b + 2a = 1, and by b it is a = 2.
    told = {
        node["label"]: node
        for node in bridge.expression("a * b + a ** 2", {"a": 2, "b": -3})
    }
    assert {name: node["data"] for name, node in told.items()} == {
        "a * b + a ** 2": -2,
        "a * b": -6,
        "a ** 2": 4,
        "a": 2,
        "b": -3,
    }
    assert (told["a"]["grad"], told["b"]["grad"]) == (1, 2)


@pytest.mark.parametrize("text, values", EXPRESSIONS)
def test_each_node_hands_on_only_when_its_own_gradient_is_complete(text, values):
    """That is what the page does, one node after the other."""
    nodes = bridge.expression(text, values)
    grads = [1.0] + [0.0] * (len(nodes) - 1)
    for i, node in enumerate(nodes):
        assert grads[i] == pytest.approx(node["grad"], abs=1e-12)
        for child in node["children"]:
            assert child["node"] > i
            assert child["share"] == pytest.approx(child["local"] * grads[i])
            grads[child["node"]] += child["share"]


@pytest.mark.parametrize("text, values", EXPRESSIONS)
def test_the_gradients_are_slopes(text, values):
    nodes = {node["label"]: node for node in bridge.expression(text, values)}
    for name, x in values.items():
        high, low = (
            bridge.expression(text, {**values, name: x + h})[0]["data"]
            for h in (1e-6, -1e-6)
        )
        assert nodes[name]["grad"] == pytest.approx((high - low) / 2e-6, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a +",
        "z",
        "1 / (a - a)",
        "a ** a ** a ** 99",
        "open('x')",
        "a.data",
        "(-a) ** 0.5",
        "a if a else a",
        "'a' * a",
        "a; a",
    ],
)
def test_what_is_no_expression_is_refused_in_words(text):
    assert in_words(refusal(bridge.expression, text, {"a": 2}))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000 + "a" + ")" * 5000,
        "(" * 150 + "a" + ")" * 150,
        "-" * 5000 + "a",
        "+".join("a" * 5000),
    ],
    ids=["5000 brackets", "150 brackets", "signs", "a sum"],
)
def test_what_is_nested_too_deeply_is_refused_in_words(text):
    """A browser's stack is small: CPython refuses what would crash Pyodide."""
    assert in_words(refusal(bridge.expression, text, {"a": 2}))


# --- Keeping it -----------------------------------------------------------------------


def test_what_is_saved_opens_as_a_checkpoint(tmp_path):
    playground = begun(tmp_path)
    playground.train(LONG)
    names = unpacked(playground.save(), tmp_path / "opened")
    assert {name.split("/")[0] for name in names} == {"model"}
    directory = str(tmp_path / "opened" / "model")
    assert microgpt.load_model(directory).params == playground.model.params
    assert microgpt.load_tokenizer(directory).vocab == playground.tokenizer.vocab


def test_a_training_goes_on_from_its_file_as_if_it_had_never_stopped(tmp_path):
    playground = begun(tmp_path)
    text = "\n".join(NAMES).encode()
    for _ in range(5):
        playground.train(0)
    kept = playground.save()
    rest = playground.train(LONG)["losses"]
    other = bridge.Playground(str(tmp_path))
    about = other.load(kept, text)
    assert (about["step"], about["steps"], about["documents"]) == (5, 12, 11)
    assert other.train(LONG)["losses"] == rest and len(rest) == 7
    assert other.model.params == playground.model.params
    assert other.reading()["loss"] == playground.reading()["loss"]


def test_with_another_text_a_model_opens_but_its_training_does_not_go_on(tmp_path):
    playground = begun(tmp_path)
    playground.train(LONG)
    told = playground.next_tokens("ad", 1, 0, 1.0)
    kept = playground.save()
    for text in (b"ada\nbob", b"", b"\xff\0"):
        other = bridge.Playground(str(tmp_path))
        about = other.load(kept, text)
        assert about["documents"] == 0 and "step" not in about and other.trainer is None
        assert about["has_training"]  # so the page can say what it would take
        assert other.next_tokens("ad", 1, 0, 1.0) == told
        assert unpacked(other.save(), tmp_path / "again")


def test_a_training_by_several_processes_goes_on_in_one(tmp_path, monkeypatch):
    """A page has no processes: there, the import of multiprocessing fails."""
    trainer = trainer_of(workers=2)
    microgpt.save_training(trainer, str(tmp_path / "given"))

    def none(*_):
        raise ImportError("no processes here")

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", none)
    playground = bridge.Playground(str(tmp_path))
    playground.load(packed(tmp_path / "given"), "\n".join(NAMES).encode())
    told = playground.train(LONG)
    assert told["step"] == 12 and told["losses"] == pytest.approx(
        [s.loss for s in trainer_of()]
    )


def test_a_model_that_is_saved_without_a_training_has_none(tmp_path):
    microgpt.save_model(make(), str(tmp_path / "given"), ABC)
    playground = bridge.Playground(str(tmp_path))
    about = playground.load(packed(tmp_path / "given"), b"abc\nab")
    assert about["documents"] == 0 and not about["has_training"]


def test_a_bpe_model_opens_with_gpt2s_own_files(tmp_path):
    model, tokenizer = bytewise()
    microgpt.save_model(model, str(tmp_path / "given"), tokenizer)
    (tmp_path / "given" / "tokenizer.json").unlink()
    merges = ["#version: 0.2", *map(" ".join, tokenizer.merges)]
    playground = bridge.Playground(str(tmp_path))
    about = playground.load(
        packed(
            tmp_path / "given",
            vocab__json=json.dumps(tokenizer.vocab),
            merges__txt="\n".join(merges),
        ),
        b"",
    )
    assert playground.model.params == model.params and len(about["vocab"]) == 260
    assert playground.write(1, "eve", 1, {"max_tokens": 2})[0]["text"] == "eve ada ada"


def test_a_former_models_files_are_not_read_with_the_next(tmp_path):
    playground = begun(tmp_path)
    whole = playground.save()
    playground.load(whole, b"")
    unpacked(whole, tmp_path / "opened")
    (tmp_path / "opened" / "model" / "tokenizer.json").unlink()
    with pytest.raises((OSError, ValueError)):
        playground.load(packed(tmp_path / "opened" / "model"), b"")


def broken(tmp_path):
    """Zip files that are none, or hold no model."""
    whole = begun(tmp_path).save()
    start = next(
        info.header_offset
        for info in zipfile.ZipFile(io.BytesIO(whole)).infolist()
        if info.filename.endswith("model.safetensors")
    )
    damaged = bytearray(whole)
    huge = bytearray(whole)
    damaged[start + 100 : start + 140] = b"\xff" * 40
    entry = whole.index(b"PK\1\2")  # where the first file's size is told again
    huge[entry + 24 : entry + 28] = (300_000_000).to_bytes(4, "little")
    unpacked(whole, tmp_path / "whole")
    model = tmp_path / "whole" / "model"
    return {
        "empty": b"",
        "text": b"not a zip",
        "without files": archive({}),
        "without a model": archive({"readme.txt": "hello"}),
        "cut short": whole[:-30],
        "damaged": bytes(damaged),
        "too large": bytes(huge),
        "without a tokenizer": archive(
            {
                name: (model / name).read_bytes()
                for name in ("config.json", "model.safetensors")
            }
        ),
        "odd config": packed(model, config__json="{}"),
        "nested too deeply": packed(model, config__json='{"a": ' + "[" * 10**5),
        "encrypted": whole.replace(
            b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"
        ),
    }


KINDS = [
    "empty",
    "text",
    "without files",
    "without a model",
    "cut short",
    "damaged",
    "too large",
    "without a tokenizer",
    "odd config",
    "nested too deeply",
    "encrypted",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_zip_that_holds_no_model_is_refused_in_words(tmp_path, kind):
    bad = broken(tmp_path)
    assert sorted(bad) == sorted(KINDS)
    playground = begun(tmp_path)
    message = refusal(playground.load, bad[kind], b"")
    assert in_words(message) and str(tmp_path) not in message
    assert playground.train(LONG)["losses"] == [
        step.loss for step in trainer_of()
    ]  # goes on
