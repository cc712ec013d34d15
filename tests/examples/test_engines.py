"""examples/engines/: on NumPy and on PyTorch, all is as on floats and Values."""

import re
from collections import namedtuple
from functools import partial

import pytest
from check_engine import CHECKS, check_engine
from helpers import close, flat, shaken
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import (
    GPT,
    CachedGPT,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    ValueEngine,
)

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")  # float(loss)


def new_engine(name, **options):
    """An engine to train with, if its libraries are there."""
    pytest.importorskip("numpy")
    if name == "numpy":
        import numpy_engine

        return numpy_engine.NumpyEngine(**options)
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    import train_torch

    return train_torch.TorchEngine(peak=1.0, **options)


# An engine for layers, and what makes a model to write with.
Library = namedtuple("Library", "engine write_with")


@pytest.fixture(scope="module", params=["numpy", "cpu", "cuda"])
def library(request):
    if request.param == "numpy":
        engine = new_engine("numpy")
        return Library(engine, engine.prepare)
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    import torch_engine

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU that PyTorch can use")
    engine = torch_engine.TorchLayers(request.param)
    options = {"device": request.param, "dtype": torch.float64}
    return Library(engine, partial(torch_engine.to_tensors, **options))


# --- layers and models ---


@st.composite
def models_and_batches(draw):
    """A model without a gain of 1 or a bias of 0, and windows of several lengths."""
    n_head = draw(st.integers(1, 3))
    config = Config(
        vocab_size=draw(st.integers(1, 9)),
        block_size=draw(st.integers(1, 6)),
        n_layer=draw(st.integers(1, 2)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(1, 3)),
    )
    token = st.integers(0, config.vocab_size - 1)
    window = st.lists(token, min_size=2, max_size=config.block_size + 1)
    batch = draw(st.lists(window, min_size=1, max_size=4))
    return shaken(GPT(config), by=0.3, seed=draw(st.integers(0, 99))), batch


@settings(max_examples=30)
@given(models_and_batches())
def test_losses_and_gradients_are_those_of_values(library, model_and_batch):
    loss, gradients = ValueEngine().gradients(*model_and_batch)
    found, arrays = library.engine.backward(*model_and_batch)
    assert flat(found) == close(loss, 1e-10)
    assert list(arrays) == list(gradients)
    assert flat(arrays) == close(gradients, 1e-10)


@settings(max_examples=20)
@given(models_and_batches(), st.integers(1, 4))
def test_losses_and_logits_are_those_of_floats(library, model_and_batch, n):
    """The logits of a window at once, and read in pieces of n tokens."""
    model, batch = model_and_batch
    other = library.write_with(model)
    assert flat(other.loss(batch)) == close(model.loss(batch), 1e-10)
    for *tokens, _ in batch:
        assert flat(other(tokens)) == close(model(tokens), 1e-10)
        readers = [CachedGPT(model), CachedGPT(other)]
        for start in range(0, len(tokens), n):
            expected, found = (read(tokens[start : start + n]) for read in readers)
            assert flat(found) == close(expected, 1e-10)
        expected, found = (reader.past for reader in readers)
        assert list(found) == list(expected)
        assert flat(found) == close(expected, 1e-10)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 3, "top_p": 0.9}]
)
def test_texts_and_scores_are_those_of_floats(library, tokenizer, options):
    shape = Config(tokenizer.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=4)
    model = shaken(GPT(shape), by=0.3, seed=3)
    longer = "abecedocebla"  # than a window
    models = [model, library.write_with(model)]
    for prompt in ("ab", longer):
        options = {"max_tokens": 30, **options}
        texts = [microgpt.generate(x, tokenizer, prompt, **options) for x in models]
        assert texts[0] == texts[1]
    scored = [microgpt.score(x, tokenizer, longer) for x in models]
    for name in ("loss", "probability"):
        expected, found = ([getattr(s, name) for s in scores] for scores in scored)
        assert flat(found) == close(expected, 1e-10)


def test_writing_reads_each_token_once(library, monkeypatch):
    class Counting(CachedGPT):
        def __call__(self, tokens):
            counts.append(len(tokens))
            return super().__call__(tokens)

    counts = []
    monkeypatch.setattr(microgpt, "CachedGPT", Counting)
    model = library.write_with(GPT(Config(vocab_size=4, block_size=8)))
    assert len(list(microgpt.stream(model, [0, 1], end=99, max_tokens=5))) == 5
    assert counts == [2, 1, 1, 1, 1]


def test_scores_of_any_size_do_not_overflow(library):
    model = shaken(GPT(Config(vocab_size=4, block_size=4, n_head=1, n_embd=4)), by=0.3)
    for name in ("wte.weight", "h.0.attn.c_attn.weight"):
        model.params[name] = microgpt.for_each(lambda x: 3000 * x, model.params[name])
    batch = [[0, 1, 2, 3], [2, 2]]
    loss, gradients = ValueEngine().gradients(model, batch)
    found, arrays = library.engine.backward(model, batch)
    assert loss > 1000
    assert flat(found) == close(loss, 1e-6)
    assert flat(arrays) == close(gradients, 1e-6)


@pytest.mark.parametrize("tokens", [[0, 5], [0, -1], [-6], [0, 1, 9], [0] * 9], ids=str)
def test_a_token_or_position_outside_the_table_is_refused_as_by_floats(library, tokens):
    model = GPT(Config(vocab_size=5, block_size=8))
    with pytest.raises(ValueError) as expected:
        model(tokens)
    converted = {name: library.engine.convert(x) for name, x in model.params.items()}
    for other in (library.write_with(model), GPT(model.config, converted)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(expected.value))}$"):
            other(tokens)


# --- training ---

DOCUMENTS = "ada bob abba dada cab bad dab cad abcabcabcabc d".split()
# There are 9 windows: 7 steps of 3 go through more than two epochs. Biases of keys
# change nothing, so their gradients are rounding alone. AdamW makes steps of them,
# which are not small if lr is large.
SETTINGS = {
    "plain": {},
    "clip": {"clip": 1e-3, "seed": 1},
    "no clip, decay": {"clip": 0, "weight_decay": 0.5, "seed": -3, "batch_size": 7},
    "no warmup": {"warmup": 0, "weight_decay": 0.1},
    "long warmup": {"warmup": 100, "batch_size": 5},
    "held out": {"eval_every": 2, "val_fraction": 0.3, "seed": 2},
}
EXACT = {  # engines, which compute like floats
    "numpy": {},
    "torch": {"dtype": "float64"},
    "torch, in parts": {"dtype": "float64", "accumulate": 3},
}
ROUGH = {
    "numpy, float32": {"dtype": "float32"},
    "torch, float32": {"dtype": "float32"},
    "torch, bfloat16": {"dtype": "bfloat16"},
}


@pytest.fixture(params=EXACT)
def engine(request):
    return partial(new_engine, request.param.split(",")[0], **EXACT[request.param])


def new_trainer(engine=None, **options):
    tokenizer = CharTokenizer(DOCUMENTS)
    shape = Config(tokenizer.vocab_size, block_size=6, n_head=2, n_embd=4)
    options = {"steps": 7, "batch_size": 3, "warmup": 2, "seed": 7, **options}
    model = shaken(GPT(shape), by=0.3)
    return Trainer(model, tokenizer, DOCUMENTS, TrainConfig(**options), engine)


def run(trainer, steps=1000):
    """What the steps report, but for their speed."""
    found = []
    for _, step in zip(range(steps), trainer):
        found += [step.step, step.loss, step.learning_rate, step.val_loss or 0.0]
    return found


def state(trainer):
    """Parameters, m and v, which an engine keeps in one kind of number."""
    tables = [trainer.model.params, trainer.optimizer.m, trainer.optimizer.v]
    kinds = {getattr(x, "dtype", None) for table in tables for x in table.values()}
    assert len(kinds) == 1
    return [flat(table) for table in tables]


def test_check_engine_agrees(engine):
    differences = check_engine(engine())
    assert list(differences) == CHECKS and max(differences.values()) <= 1e-10


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_a_training_takes_the_steps_of_microgpts_own(engine, options):
    ours = new_trainer(**options)
    theirs = new_trainer(engine(), **options)
    before = flat(ours.model.params)
    assert run(theirs) == close(run(ours), 1e-9)
    assert theirs.step == 7 and flat(ours.model.params) != close(before, 1e-4)
    assert flat(state(theirs)) == close(state(ours), 1e-9)


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("direction", [1, -1], ids=["from ours", "to ours"])
def test_a_training_begun_in_one_engine_goes_on_in_another(
    tmp_path, engine, steps, direction
):
    begins, goes_on = [lambda: None, engine][::direction]
    options = {"weight_decay": 0.1, "clip": 0.5, "eval_every": 3}
    whole = new_trainer(begins(), **options)
    begun = new_trainer(begins(), **options)
    expected = run(whole)
    found = run(begun, steps)
    microgpt.save_training(begun, tmp_path)
    resumed = microgpt.load_training(tmp_path, DOCUMENTS, goes_on())
    assert found + run(resumed) == close(expected, 1e-9)
    assert flat(state(resumed)) == close(state(whole), 1e-9)


@pytest.mark.parametrize("name", [*EXACT, *ROUGH])
def test_a_resumed_training_is_to_the_bit_one_that_never_stopped(tmp_path, name):
    options = {**EXACT, **ROUGH}[name]
    new = partial(new_engine, name.split(",")[0], **options)
    whole, begun = new_trainer(new()), new_trainer(new())
    expected = run(whole)
    found = run(begun, 4)
    microgpt.save_training(begun, tmp_path)
    resumed = microgpt.load_training(tmp_path, DOCUMENTS, new())
    assert resumed.step == resumed.optimizer.t == 4
    assert found + run(resumed) == expected
    assert state(resumed) == state(whole)
    exact = run(new_trainer())
    assert expected == close(exact, 0.05 if "bfloat16" in name else 1e-3)
    assert (expected == close(exact, 1e-9)) == (name in EXACT)

    model, metadata = microgpt.read_model(tmp_path)  # on floats
    assert metadata["step"] == "4"
    assert {type(x) for x in model.params["wte.weight"][0]} == {float}
    assert flat(model.params) == flat(begun.model.params)
    models = [model, begun.model] if name in EXACT else [model, model]
    texts = [microgpt.generate(x, begun.tokenizer, seed=1) for x in models]
    assert texts[0] == texts[1]
