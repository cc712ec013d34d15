"""examples/playground/bridge.py, without a browser: it tells what microgpt computes."""

import concurrent.futures
import io
import json
import os
import random
import zipfile

import bridge
import pytest
from components import principal_components
from helpers import (
    ABC,
    NAMES,
    close,
    drawn,
    draws,
    flat,
    make,
    probabilities,
    tokens_of,
)
from tracing import TracedGPT

import microgpt
from microgpt import END, GPT, Config

NAMES = NAMES[:12]
TEXT = "\n".join(NAMES).encode()
SHAPE = {"block_size": 4, "n_layer": 2, "n_head": 2, "n_embd": 8}
LONG = 1e9  # milliseconds: as many as it takes


def begun(directory, **options):
    """A playground that is about to train for 12 steps."""
    playground = bridge.Playground(str(directory))
    playground.start(TEXT, SHAPE, {"steps": 12, "seed": 5, **options})
    return playground


def trainer_of(**options):
    """The same training, without a playground."""
    tokenizer = microgpt.CharTokenizer(NAMES)
    model = GPT(Config(tokenizer.vocab_size, **SHAPE), seed=5)
    config = microgpt.TrainConfig(**{"steps": 12, "seed": 5, **options})
    return microgpt.Trainer(model, tokenizer, NAMES, config)


@pytest.fixture(scope="module")
def trained():
    """The same training, at its end."""
    trainer = trainer_of()
    list(trainer)
    return trainer


@pytest.fixture
def show(tmp_path):
    """Make a playground that has opened a model."""

    def opened(model, tokenizer=ABC, text=b""):
        microgpt.save_model(model, str(tmp_path / "given"), tokenizer)
        playground = bridge.Playground(str(tmp_path))
        playground.load(packed(tmp_path / "given"), text)
        return playground

    return opened


def packed(directory, **others):
    """A directory as a zip file, with other files in the place of some of it."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return archive({**files, **others})


def archive(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, contents in files.items():
            opened.writestr(f"model/{name}", contents)
    return file.getvalue()


def unpacked(contents, directory):
    """-> the folder "model" of a zip file, which is all that it has."""
    with zipfile.ZipFile(io.BytesIO(contents)) as file:
        file.extractall(str(directory))
    assert os.listdir(str(directory)) == ["model"]
    return directory / "model"


def refuses(function, *args, told=""):
    """It raises a message for users, who know nothing of the page's own files."""
    with pytest.raises(ValueError) as caught:
        function(*args)
    message = str(caught.value)
    assert told in message and len(message.split()) > 2 and "\n" not in message
    assert not any(
        word in message for word in ("playground", "Errno", os.sep + "model")
    )
    return message


# --- Training ---


def test_it_trains_as_the_trainer_does(tmp_path, trained):
    playground = begun(tmp_path)
    first = [playground.train(0) for _ in range(3)]
    told = [(turn["step"], turn["steps"], turn["losses"]) for turn in first]
    assert told == [(i + 1, 12, trained.losses[i : i + 1]) for i in range(3)]
    assert first[0]["speed"] > 0
    rest = playground.train(LONG)
    assert rest["step"] == 12 and rest["losses"] == trained.losses[3:]
    assert playground.train(LONG)["losses"] == []
    assert playground.model.params == trained.model.params
    scale = microgpt.baselines(
        trained.windows, trained.val_windows, trained.tokenizer.vocab_size
    )
    loss = microgpt.evaluate(trained.model, trained.val_windows)
    assert playground.scale() == scale
    sentence = microgpt.reading(trained.losses, loss, scale)
    assert playground.reading() == {"loss": loss, "sentence": sentence}


def test_what_it_tells_about_a_training(tmp_path):
    playground = begun(tmp_path, val_fraction=0.25)
    count = len(flat(playground.model.params))
    vocab = sorted(set("".join(NAMES))) + [END]
    expected = {"documents": 9, "held_out": 3, "step": 0, "steps": 12, "vocab": vocab}
    expected.update({"document": "line", "knows_all": False})
    about = playground.about()
    assert about.pop("example") in NAMES
    assert about == {**expected, **SHAPE, "parameters": count}
    assert bridge.parameter_count(len(vocab), SHAPE) == count
    playground.train(0)
    assert playground.about()["step"] == 1


def test_the_quick_loss_is_of_the_first_windows_held_out(tmp_path, monkeypatch):
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
    about = playground.start(b"alone", SHAPE, {"val_fraction": 0.0})
    assert (about["documents"], about["held_out"]) == (1, 0)


def test_what_cannot_be_trained_is_refused_and_the_training_goes_on(tmp_path, trained):
    playground = begun(tmp_path)
    for text, told in [
        (b"", "empty"),
        (b" \n\n \n", "empty"),
        (b"alone", "single"),
        (b"\x89PNG\0\x01\n", "UTF-8"),
        ("ada\nren\u00e9".encode("latin-1"), "line 2"),
    ]:
        message = refuses(playground.start, text, SHAPE, {}, told=told)
        assert str(tmp_path) not in message
    for shape in ({"n_head": 3}, {"n_layer": 0}):
        refuses(playground.start, b"ada\nbob", {**SHAPE, **shape}, {})
    for training in ({"steps": 0}, {"lr": -1}):
        refuses(playground.start, b"ada\nbob", SHAPE, training)
    assert playground.train(LONG)["losses"] == trained.losses


# --- Generation ---


LONGER = ("abcabbca", ABC.encode("bbca"))  # of a long text, the last tokens are read


@pytest.mark.parametrize("prompt, read", [("ba", tokens_of("ba")[:-1]), LONGER])
@pytest.mark.parametrize("temperature", [0.5, 2.5])
@pytest.mark.parametrize("top_k", [0, 2, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.6, 0.05])
def test_the_next_tokens_are_those_of_sampling(
    show, prompt, read, temperature, top_k, top_p
):
    playground = show(make(block_size=4, sharp=6.0))
    logits = playground.model(read)[-1]
    sampling = microgpt.Sampling(temperature, top_k, top_p)
    counts = drawn(lambda rng: sampling.draw(logits, rng), 2000)
    told = playground.next_tokens(prompt, temperature, top_k, top_p)
    assert [row["token"] for row in told] == list(ABC.vocab)
    assert [row["model"] for row in told] == close(probabilities(logits))
    shares = [counts[i] / 2000 for i in range(len(told))]
    assert [row["drawn"] for row in told] == pytest.approx(shares, abs=1e-3)


def test_at_temperature_0_the_likeliest_is_certain(show):
    playground = show(draws(0.2, 0.5, 0.2, 0.1))
    told = playground.next_tokens("", 0, 0, 1.0)
    assert [row["drawn"] for row in told] == [0, 1, 0, 0]
    assert [row["model"] for row in told] == pytest.approx([0.2, 0.5, 0.2, 0.1])
    assert {playground.draw("", 0, 0, 1.0)["token"] for _ in range(20)} == {"b"}


def test_a_draw_is_that_of_sampling(show):
    playground = show(make(sharp=6.0))
    logits = playground.model(tokens_of("ba")[:-1])[-1]
    for settings in [(1, 0, 1.0), (2, 2, 1.0), (1, 0, 0.6)]:
        playground.rng = random.Random(1)
        rng = random.Random(1)
        sampling = microgpt.Sampling(*settings)
        expected = [ABC.decode([sampling.draw(logits, rng)]) for _ in range(50)]
        drawn = [playground.draw("ba", *settings) for _ in range(50)]
        assert [one["token"] for one in drawn] == expected
        told = playground.next_tokens("ba", *settings)
        assert all(one["probability"] == told[one["id"]]["drawn"] for one in drawn)


def test_an_unknown_character_is_named(show):
    playground = show(make())
    for method in (playground.next_tokens, playground.draw):
        refuses(method, "abz", 1, 0, 1.0, told="'z'")


def test_what_it_writes_is_what_generate_writes(tmp_path):
    playground = begun(tmp_path, val_fraction=0.5)
    options = {"temperature": 0.8, "top_k": 4, "max_tokens": 7}
    rng = random.Random(9)
    expected = []
    for _ in range(5):
        text = microgpt.generate(
            playground.model, playground.tokenizer, "a", seed=rng, **options
        )
        ids = playground.tokenizer.encode(text)
        expected.append({"text": text, "known": False, "ids": ids})
    assert playground.write(5, "a", 9, options) == expected
    assert len({one["text"] for one in expected}) > 1


def test_only_what_was_trained_on_is_known(tmp_path, monkeypatch):
    playground = begun(tmp_path, val_fraction=0.5)
    texts = map(playground.tokenizer.encode, [*NAMES, "ace"])
    monkeypatch.setattr(microgpt, "stream", lambda *_: next(texts))
    written = playground.write(len(NAMES) + 1, "", 1, {"max_tokens": 9})
    seen, held_out = microgpt.split_documents(NAMES, 0.5, seed=5)
    assert {one["text"] for one in written if one["known"]} == set(seen) and held_out


@pytest.fixture(scope="module")
def bytewise():
    """A model of bytes that draws only " ada", which is one token; its tokenizer."""
    tokenizer = microgpt.BPETokenizer.train(["eve ada ada ada ada"] * 9, 260)
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    return draws(*[float(text == " ada") for text in texts]), tokenizer


def test_a_token_that_is_drawn_is_text_also_where_tokens_are_bytes(show, bytewise):
    """It can be appended to the prompt. (In GPT-2's vocabulary, a space is "Ġ".)"""
    playground = show(*bytewise)
    one = playground.draw("eve", 1, 0, 1.0)
    assert (one["token"], one["text"]) == (" ada", "eve ada")
    told = playground.next_tokens("eve", 1, 0, 1.0)  # not of all 260 tokens
    likely = [row["token"] for row in told if row["drawn"] > 0.5]
    assert likely == [" ada"] and len(told) == bridge.MOST_TOKENS


# --- Documents ---

STANZAS = "ab\nba\n\nabba\nba\n\nbab\n"


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_a_document_is_what_the_visitor_chose(tmp_path, document):
    playground = bridge.Playground(str(tmp_path))
    options = {"document": document, "steps": 4}
    about = playground.start(STANZAS.encode(), SHAPE, options)
    trainer = playground.trainer
    config = microgpt.TrainConfig(**options)
    documents = microgpt.cut_documents(STANZAS, document)
    expected = microgpt.hold_out(documents, config)
    assert (trainer.documents, trainer.val_documents) == expected
    assert about["document"] == document and "\n" not in about["example"]
    playground.train(0)
    other = bridge.Playground(str(tmp_path))
    about = other.load(playground.save(), STANZAS.encode())
    assert about["document"] == document and about["step"] == 1
    assert other.train(LONG)["losses"] == playground.train(LONG)["losses"]


def test_a_part_of_the_whole_text_is_known(tmp_path, monkeypatch):
    playground = bridge.Playground(str(tmp_path))
    playground.start(STANZAS.encode(), SHAPE, {"document": "file"})
    texts = map(playground.tokenizer.encode, ["ba\n\nab", "bb\n", ""])
    monkeypatch.setattr(microgpt, "stream", lambda *_: next(texts))
    written = playground.write(3, "", 1, {"max_tokens": 9})
    assert [one["known"] for one in written] == [True, False, False]


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_a_text_of_too_few_documents_is_refused(tmp_path, document):
    start = bridge.Playground(str(tmp_path)).start
    told = {"line": "single line", "paragraph": "single paragraph", "file": "short"}
    refuses(start, b"a", SHAPE, {"document": document}, told=told[document])
    refuses(start, b"\n \n", SHAPE, {"document": document}, told="text is empty")


def test_an_example_is_the_beginning_of_a_line():
    assert bridge.first_line(" \n\nada\nbob") == "ada"
    assert len(bridge.first_line("ab " * 5000)) == 200
    assert bridge.first_line("\n \n") == ""  # only the end, held out, has letters


# --- Tokens that are no characters ---


@pytest.fixture(scope="module")
def halves():
    """A tokenizer of bytes, which has two tokens for é, and their ids."""
    tokenizer = microgpt.BPETokenizer.train(["ada"], 257)
    first, second = tokenizer.encode("é")
    return tokenizer, first, second


def test_half_a_character_is_named_by_its_byte_and_no_two_names_are_one(show, halves):
    tokenizer, first, second = halves
    playground = show(make(tokenizer), tokenizer)
    names = playground.names
    assert (names[first], names[second]) == ("\ufffdC3", "\ufffdA9")
    assert len(set(names)) == 257
    told = playground.score("é")
    assert [one["token"] for one in told] == ["\ufffdC3", "\ufffdA9", END]
    assert all(name in names for one in told for name, _ in one["likeliest"])
    assert playground.attention("é")["tokens"] == [END, "\ufffdC3", "\ufffdA9"]


def test_what_is_drawn_stays_the_tokens_that_were_drawn(show, halves):
    """Half a character has no text. What is read next must still be its token."""
    tokenizer, first, second = halves
    chances = [0.0] * 257
    chances[first] = 1.0
    playground = show(draws(*chances), tokenizer)
    one = playground.draw("a", 1, 0, 1.0)
    assert (one["id"], one["text"]) == (first, "a")
    assert one["parts"] == [{"text": "\ufffd", "probability": 1.0}]
    half = {"id": first, "token": "", "probability": 0.5}
    chances[first], chances[second] = 0.25, 0.75
    playground = show(draws(*chances), tokenizer)
    assert playground.encode("a", [half]) == [*tokenizer.encode("a"), first]
    seen = []
    for _ in range(40):
        one = playground.draw("a", 1, 0, 1.0, [half])
        seen.append((one["text"], [part["text"] for part in one["parts"]]))
    assert ("aé", ["é"]) in seen and ("a\ufffd", ["\ufffd\ufffd"]) not in seen
    told = playground.coloured([first, second, tokenizer.encode("a")[0]])
    assert [part["text"] for part in told] == ["é", "a"]
    assert told[0]["probability"] == pytest.approx(0.25 * 0.75)


def test_a_text_that_was_written_is_coloured_as_it_was_written(show, halves):
    tokenizer, first, _ = halves
    chances = [float(i == first) for i in range(257)]
    playground = show(draws(*chances), tokenizer)
    half = {"id": first, "token": "", "probability": 0.5}
    options = {"max_tokens": 1, "temperature": 1.0}
    (one,) = playground.write(1, "a", 1, options, [half])
    assert one["ids"] == [*tokenizer.encode("a"), first, first]
    assert one["text"] == "a\ufffd\ufffd"


def test_the_end_is_no_part_of_what_was_drawn(show):
    playground = show(draws(0, 0, 0, 1))
    one = playground.draw("ab", 1, 0, 1.0)
    assert (one["token"], one["text"], one["drawn"]) == (END, "ab", [])


def test_the_probability_of_a_draw_is_known_also_where_it_is_not_listed(
    show, monkeypatch
):
    monkeypatch.setattr(bridge, "MOST_TOKENS", 1)
    playground = show(draws(0.6, 0.4, 0, 0))
    drawn = [playground.draw("", 1, 0, 1.0) for _ in range(40)]
    shares = {one["token"]: one["probability"] for one in drawn}
    assert shares == pytest.approx({"a": 0.6, "b": 0.4})


def test_accents_that_are_spelled_another_way_get_advice(show):
    tokenizer = microgpt.CharTokenizer(["ren\u00e9"])
    playground = show(make(tokenizer), tokenizer)
    text = "re\u0301"
    for method, args in [
        (playground.next_tokens, (text, 1, 0, 1.0)),
        (playground.draw, (text, 1, 0, 1.0)),
        (playground.write, (1, text, 1, {"max_tokens": 3})),
        (playground.score, (text,)),
        (playground.attention, (text,)),
    ]:
        refuses(method, *args, told="NFC")


# --- GPT-2s as people have them ---


def files_of(model, tokenizer, directory):
    """{name: bytes} of a saved model."""
    microgpt.save_model(model, str(directory), tokenizer)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_padded_vocabulary_and_added_tokens_have_names(tmp_path, halves):
    tokenizer = microgpt.WiderTokenizer(halves[0], {"[PAD]": False})
    files = files_of(make(tokenizer), tokenizer, tmp_path / "given")
    padded = make(microgpt.CharTokenizer([map(chr, range(263))]))
    config = files_of(padded, None, tmp_path / "padded")
    playground = bridge.Playground(str(tmp_path))
    for name in ("config.json", "model.safetensors"):
        files[name] = config[name]
    about = playground.load(archive(files), b"")
    assert len(about["vocab"]) == 264
    assert about["vocab"][257:] == ["[PAD]"] + [""] * 6
    ids = {row["id"] for row in playground.next_tokens("a[PAD]", 1, 0, 1.0)}
    assert len(ids) == bridge.MOST_TOKENS
    points = playground.embedding()["points"]
    assert [at["token"] for at in points] == about["vocab"][-bridge.MOST_TOKENS :]


def test_a_token_that_the_model_is_too_small_for_is_named(tmp_path, halves):
    tokenizer = microgpt.WiderTokenizer(halves[0], {"[PAD]": False})
    files = files_of(make(halves[0]), halves[0], tmp_path / "small")
    wide = files_of(make(tokenizer), tokenizer, tmp_path / "wide")
    files["tokenizer.json"] = wide["tokenizer.json"]
    playground = bridge.Playground(str(tmp_path))
    playground.load(archive(files), b"")
    refuses(playground.score, "a[PAD]", told="'[PAD]'")
    assert playground.score("a")


def test_a_model_in_parts_opens(tmp_path, halves):
    model, tokenizer = make(), ABC
    files = files_of(model, tokenizer, tmp_path / "given")
    part = "model-00001-of-00001.safetensors"
    files[part] = files.pop("model.safetensors")
    index = {"weight_map": dict.fromkeys(model.params, part)}
    files["model.safetensors.index.json"] = json.dumps(index)
    playground = bridge.Playground(str(tmp_path))
    playground.load(archive(files), b"")
    assert playground.model.params == model.params
    del files[part]
    refuses(playground.load, archive(files), b"", told=f"no {part}")


# --- Looking inside ---


def test_the_table_is_score(show):
    playground = show(make(block_size=4, sharp=5.0))
    for text in ("", "abc", "abcabcab"):
        expected = microgpt.score(playground.model, ABC, text)
        assert playground.score(text) == [one._asdict() for one in expected]


def test_attention_is_that_of_the_first_tokens(show):
    model = GPT(Config(4, block_size=4, n_layer=3, n_head=2, n_embd=8), seed=1)
    told = show(model).attention("abcabc")
    assert told["tokens"] == [END, "a", "b", "c"]
    traced = TracedGPT(model)
    traced(tokens_of("abc")[:-1])
    assert told["blocks"] == [traced.trace[f"h.{i}.attn"] for i in range(3)]


def test_the_embedding_places_every_token(show, monkeypatch):
    playground = show(make(sharp=5.0))
    for most in (100, 3):
        monkeypatch.setattr(bridge, "MOST_TOKENS", most)
        told = playground.embedding()
        rows = playground.model.params["wte.weight"][-most:]
        points, shares = principal_components(rows)
        assert [at["token"] for at in told["points"]] == list(ABC.vocab)[-most:]
        assert [(at["x"], at["y"]) for at in told["points"]] == [*map(tuple, points)]
        assert told["share"] == pytest.approx(sum(shares)) and told["count"] == 4


# --- The chain rule ---


def test_the_gradients_of_a_small_expression_by_hand():
    # d(ab + a²)/da = b + 2a = 1, and by b it is a = 2.
    told = bridge.expression("a * b + a ** 2", {"a": 2, "b": -3})
    assert {node["label"]: (node["data"], node["grad"]) for node in told} == {
        "a * b + a ** 2": (-2, 1),
        "a * b": (-6, 1),
        "a ** 2": (4, 1),
        "a": (2, 1),
        "b": (-3, 2),
    }


@pytest.mark.parametrize(
    "text, values",
    [
        ("a * b + a ** 2", {"a": 2, "b": -3}),
        ("a", {"a": 1}),
        ("b = a + a; c = b + b; b + c", {"a": 3}),
        ("exp(a) / (a - b)", {"a": 1, "b": 4}),
        ("tanh(w * x + b) ** 2", {"w": 0.5, "x": 2, "b": -0.4}),
        ("relu(a) + log(a)", {"a": 2}),
    ],
)
def test_gradients_are_slopes_and_passed_on_only_when_complete(text, values):
    """The page lets one node after the other pass on its gradient."""
    nodes = bridge.expression(text, values)
    grads = [1.0] + [0.0] * (len(nodes) - 1)
    for i, node in enumerate(nodes):
        assert grads[i] == pytest.approx(node["grad"], abs=1e-12)
        for child in node["children"]:
            assert child["node"] > i
            assert child["share"] == pytest.approx(child["local"] * grads[i])
            grads[child["node"]] += child["share"]
    found = {node["label"]: node["grad"] for node in nodes}
    for name, x in values.items():

        def result(x, name=name):
            return bridge.expression(text, {**values, name: x})[0]["data"]

        assert found[name] == pytest.approx(microgpt.slope(result, x), abs=1e-5)


NONSENSE = """
a + | z | 1 / (a - a) | a ** a ** a ** 99 | open('x') | a.data | (-a) ** 0.5 |
a if a else a | 'a' * a | a; a |
""".split("|")
DEEP = {
    "5000 brackets": "(" * 5000 + "a" + ")" * 5000,
    "31 brackets": "(" * 31 + "a" + ")" * 31 + "+ (a)",
    "signs": "-" * 5000 + "a",
    "a sum": "+".join("a" * 101),
}


@pytest.mark.parametrize("text", [x.strip() for x in NONSENSE] + list(DEEP))
def test_what_is_no_expression_or_too_deep_is_refused(text):
    """A browser's stack is small: CPython refuses what would crash Pyodide."""
    refuses(bridge.expression, DEEP.get(text, text), {"a": 2})


def test_the_largest_expressions_are_drawn():
    for text in ("(" * 30 + "a" + ")" * 30, "+".join("a" * 100) + " "):
        assert bridge.expression(text, {"a": 2})


# --- Saving and opening ---


def test_a_training_is_saved_and_goes_on_as_if_it_had_never_stopped(tmp_path, trained):
    playground = begun(tmp_path)
    for _ in range(5):
        playground.train(0)
    kept = playground.save()
    folder = str(unpacked(kept, tmp_path / "opened"))
    assert microgpt.load_model(folder).params == playground.model.params
    assert microgpt.load_tokenizer(folder).vocab == trained.tokenizer.vocab
    other = bridge.Playground(str(tmp_path))
    about = other.load(kept, TEXT)
    assert (about["step"], about["steps"], about["documents"]) == (5, 12, 11)
    assert other.train(LONG)["losses"] == trained.losses[5:]
    assert other.model.params == trained.model.params
    told = other.reading()
    assert told["loss"] == microgpt.evaluate(trained.model, trained.val_windows)


@pytest.mark.parametrize("text", [b"ada\nbob", b"", b"\xff\0"])
def test_with_another_text_a_model_opens_but_its_training_does_not_go_on(
    tmp_path, text
):
    playground = begun(tmp_path)
    playground.train(0)
    other = bridge.Playground(str(tmp_path))
    about = other.load(playground.save(), text)
    assert about["documents"] == 0 and "step" not in about and other.trainer is None
    assert about["has_training"]  # so the page can say what it would take
    assert other.model.params == playground.model.params
    assert microgpt.load_model(str(unpacked(other.save(), tmp_path / "again")))


def test_a_training_by_several_processes_goes_on_in_one(tmp_path, monkeypatch, trained):
    """A page has no processes: there, the import of multiprocessing fails."""
    microgpt.save_training(trainer_of(workers=2), str(tmp_path / "given"))

    def none(*_):
        raise ImportError("no processes here")

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", none)
    playground = bridge.Playground(str(tmp_path))
    playground.load(packed(tmp_path / "given"), TEXT)
    assert playground.train(LONG)["losses"] == pytest.approx(trained.losses)


def test_a_model_that_is_saved_without_a_training_has_none(show):
    playground = show(draws(0, 1, 0, 0), text=b"abc\nab")
    about = playground.load(playground.save(), b"abc\nab")
    assert about["documents"] == 0 and not about["has_training"]
    written = playground.write(2, "a", 1, {"max_tokens": 2})
    assert written == [{"text": "abb", "known": False, "ids": [0, 1, 1]}] * 2


def test_a_bpe_model_opens_with_gpt2s_own_files(tmp_path, bytewise):
    model, tokenizer = bytewise
    given = tmp_path / "given"
    microgpt.save_model(model, str(given), tokenizer)
    (given / "tokenizer.json").unlink()
    (given / "vocab.json").write_text(json.dumps(tokenizer.vocab))
    merges = ["#version: 0.2", *map(" ".join, tokenizer.merges)]
    (given / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    playground = bridge.Playground(str(tmp_path))
    about = playground.load(packed(given), b"")
    assert playground.model.params == model.params and len(about["vocab"]) == 260
    assert playground.write(1, "eve", 1, {"max_tokens": 2})[0]["text"] == "eve ada ada"


def test_a_former_models_files_are_not_read_with_the_next(tmp_path):
    playground = begun(tmp_path)
    whole = playground.save()
    playground.load(whole, b"")
    model = unpacked(whole, tmp_path / "opened")
    playground.load(packed(model, **{"other.txt": ""}), b"")
    assert "other.txt" not in os.listdir(str(tmp_path / "loaded"))
    (model / "tokenizer.json").unlink()
    refuses(playground.load, packed(model), b"", told="no tokenizer.json")


def test_files_stay_in_its_directory(tmp_path):
    names = ["../../config.json", "../../../../tokenizer.json", "/config.json"]
    (tmp_path / "own").mkdir()
    playground = begun(tmp_path / "own")
    refuses(playground.load, archive(dict.fromkeys(names, "{}")), b"")
    assert os.listdir(str(tmp_path)) == ["own"]


def bad_zips(whole, model):
    """{kind: a zip file that is none, or has no model}, from a good one."""
    central = b"PK\1\2\x14\x03\x14\0"  # where each file is described once more
    infos = zipfile.ZipFile(io.BytesIO(whole)).infolist()
    (start,) = [x.header_offset for x in infos if "model.safetensors" in x.filename]
    size = whole.index(b"PK\1\2") + 24
    huge = (300_000_000).to_bytes(4, "little")
    config = {"config.json": (model / "config.json").read_bytes()}
    more = b'{"more": ' + b"[" * 30 + b"]" * 30 + b","  # which would be no harm
    deep = config["config.json"].replace(b"{", more, 1)
    weights = {"model.safetensors": (model / "model.safetensors").read_bytes()}
    return {
        "empty": b"",
        "text": b"not a zip",
        "no files": archive({}),
        "no model": archive({"readme.txt": "hello"}),
        "no weights": archive(config),
        "no tokenizer": archive({**config, **weights}),
        "half a tokenizer": archive({**config, **weights, "vocab.json": "{}"}),
        "cut short": whole[:-30],
        "damaged": whole[: start + 100] + b"\xff" * 40 + whole[start + 140 :],
        "too large": whole[:size] + huge + whole[size + 4 :],
        "odd config": packed(model, **{"config.json": "{}"}),
        "deep": packed(model, **{"config.json": deep}),
        "encrypted": whole.replace(central + b"\0\0", central + b"\1\0"),
    }


def test_a_zip_without_a_model_is_refused_and_the_training_goes_on(tmp_path, trained):
    playground = begun(tmp_path)
    whole = playground.save()
    model = unpacked(whole, tmp_path / "whole")
    for kind, bad in bad_zips(whole, model).items():
        assert bad != whole, kind
        message = refuses(playground.load, bad, b"")
        assert str(tmp_path) not in message, kind
    assert playground.train(LONG)["losses"] == trained.losses
