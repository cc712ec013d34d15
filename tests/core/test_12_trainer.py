"""Chapter 12: the Trainer, alone and with workers."""

import math
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from helpers import close, defaults, flat
from hypothesis import given
from hypothesis import strategies as st

from microgpt import (
    END,
    ENGINES,
    GPT,
    CharTokenizer,
    Config,
    TensorEngine,
    TrainConfig,
    Trainer,
    ValueEngine,
    Windows,
    Workers,
    clip_factor,
    cut_windows,
    evaluate,
    hold_out_ends,
    learning_rate,
    split_documents,
)

LETTERS = list("abcdefghijklmnopqrst")
DOCUMENTS = "ada bob abba dada cab bad dab cad abcabcabcabc d".split()


def trainer(use=None, **options):
    """A new training of a small model; `use` may be an engine."""
    tokenizer = CharTokenizer(DOCUMENTS)
    shape = Config(tokenizer.vocab_size, block_size=8, n_head=2, n_embd=8)
    small = {"steps": 5, "batch_size": 3, "warmup": 2, "seed": 7}
    config = TrainConfig(**{**small, **options})
    return Trainer(GPT(shape, seed=1), tokenizer, DOCUMENTS, config, use)


def losses_of(t):
    """Train to the end -> the loss of each step."""
    return [step.loss for step in t]


# --- steps ---


def test_a_step_reports_its_loss_before_and_the_held_out_loss_after():
    t = trainer(steps=4, eval_every=2, lr=0.5, warmup=3)
    for n in range(1, 5):
        loss = t.model.loss(t.batch(n - 1))
        step = next(t)
        assert step.step == t.step == n
        assert step.loss == pytest.approx(loss, rel=1e-12)
        assert step.learning_rate == learning_rate(n - 1, 4, 0.5, 3)
        assert step.tokens_per_second > 0
        due = evaluate(t.model, t.val_windows) if n % 2 == 0 else None
        assert step.val_loss == due
        assert t.losses[n - 1 :] == [step.loss]
    assert list(t) == []


def test_training_learns_and_both_engines_learn_the_same():
    losses = losses_of(trainer(steps=30, lr=0.03))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    runs = [losses_of(trainer(engine=name)) for name in ENGINES]
    assert runs[0] == pytest.approx(runs[1], rel=1e-9)


def test_the_seed_decides_all_bits_on_any_executor():
    def run(*use, **options):
        t = trainer(*use, **options)
        return losses_of(t), t.model.params

    assert run(seed=7) == run(seed=7) != run(seed=8)
    with ThreadPoolExecutor(2) as pool:
        losses, params = run(Workers(TensorEngine(), 2, pool))
    shared = trainer(workers=2)
    next(shared)
    assert shared.engine.executor is not None
    assert [shared.losses[0], *losses_of(shared)] == losses
    assert shared.model.params == params
    assert shared.engine.executor is None  # its own pool is closed at the end
    alone = run()
    assert losses == pytest.approx(alone[0], rel=1e-12)
    assert flat(params) == close(alone[1], 1e-9)


def test_an_engine_that_is_given_is_used_whatever_the_config_says():
    engine = ValueEngine()
    assert trainer(engine, engine="tensor", workers=2).engine is engine
    assert type(trainer(workers=1).engine) is TensorEngine
    assert type(trainer(engine="value").engine) is ValueEngine


def test_gradients_are_clipped_to_the_limit_and_weights_decay():
    def length(**options):
        t = trainer(**options)
        next(t)
        assert t.optimizer.weight_decay == options.get("weight_decay", 0)
        return math.hypot(*flat(t.optimizer.m)) / (1 - t.optimizer.beta1)

    whole = length(clip=0)
    assert whole > 0.25
    assert length(clip=1e6, weight_decay=0.5) == whole
    assert length(clip=0.25) == pytest.approx(0.25)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3), st.floats(0.01, 10))
def test_clipping_shortens_a_gradient_to_the_limit(numbers, limit):
    norm = ValueEngine().norm({"w": numbers})
    assert clip_factor(norm, limit) * norm == pytest.approx(min(norm, limit))
    assert clip_factor(norm, 0) == clip_factor(norm, norm or 1) == 1.0


class Diverged(TensorEngine):
    """Says that the gradient is longer than any number, in the second step."""

    n_steps = 0

    def norm(self, gradients):
        self.n_steps += 1
        return math.inf if self.n_steps == 2 else super().norm(gradients)


@pytest.mark.parametrize(
    "kind, number, message",
    [
        (TensorEngine, math.nan, "loss is nan at step 2.*smaller lr"),
        (Diverged, 0.0, "gradient's length is inf at step 2.*smaller lr"),
    ],
)
def test_a_run_that_diverges_stops_before_the_parameters_change(kind, number, message):
    t = trainer(kind())
    next(t)
    t.model.params["wte.weight"][0][0] = number
    kept = repr(t.model.params)
    with pytest.raises(ArithmeticError, match=message):
        for _ in range(4):
            next(t)
    assert repr(t.model.params) == kept
    assert (t.step, len(t.losses)) == (1, 1)


# --- windows ---


def test_every_window_is_seen_once_in_every_epoch():
    t = trainer(batch_size=4)
    n = len(t.windows)
    seen = [window for step in range(n) for window in t.batch(step)]  # 4 epochs
    for epoch in range(4):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == sorted(t.windows)
    assert seen[:n] != seen[n : 2 * n]
    assert t.batch(2) == seen[8:12]  # whatever was asked before


@pytest.mark.parametrize("fraction, held_out", [(0, 0), (0.1, 1), (0.3, 3)])
def test_documents_are_trained_on_or_held_out_to_the_last_token(fraction, held_out):
    t = trainer(val_fraction=fraction, eval_every=1)
    assert len(t.val_documents) == held_out
    assert sorted(t.documents + t.val_documents) == sorted(DOCUMENTS)
    parts = [(t.documents, t.windows), (t.val_documents, t.val_windows)]
    for documents, windows in parts:
        cut = [
            cut_windows(document, CharTokenizer(DOCUMENTS), 8) for document in documents
        ]
        assert windows[:] == sum(cut, [])
    assert (next(t).val_loss is None) == (held_out == 0)


def test_evaluation_is_the_mean_over_all_predictions_and_changes_nothing():
    t = trainer()
    before = repr(t.model.params)
    assert evaluate(t.model, t.windows) == pytest.approx(t.model.loss(t.windows))
    assert evaluate(t.model, t.windows, most=2) == evaluate(t.model, t.windows[:2])
    assert repr(t.model.params) == before
    t.model.params["wte.weight"][0][0] = math.nan
    with pytest.raises(ArithmeticError, match="loss is nan"):
        evaluate(t.model, t.windows)


class Counting:
    """A model that counts the windows that it reads."""

    n_read = 0

    def loss(self, windows):
        self.n_read += len(windows)
        return 1.0


@pytest.mark.parametrize(
    "n_predictions, n_windows", [(1, 500), (2**14, 2), (2**14 + 1, 2), (2**14 - 1, 3)]
)
def test_evaluation_reads_500_windows_or_2_to_15_predictions(n_predictions, n_windows):
    model = Counting()
    assert evaluate(model, [[0] * (n_predictions + 1)] * 501) == 1.0
    assert model.n_read == n_windows


# --- documents that are held out ---


@given(st.lists(st.text(max_size=3), min_size=2), st.floats(0, 0.99), st.integers())
def test_a_split_loses_and_doubles_no_document(documents, fraction, seed):
    before = list(documents)
    training, held_out = split_documents(documents, fraction, seed)
    assert Counter(training + held_out) == Counter(documents)
    assert documents == before


@pytest.mark.parametrize(
    "n, fraction, n_held_out",
    [
        (1, 0, 0),
        (20, 0, 0),
        (20, 0.1, 2),
        (50, 0.2, 10),
        (119, 0.99, 118),
        (10, 0.16, 2),  # it is rounded
        (10, 0.14, 1),
        (2, 1e-300, 1),  # but there is at least one on either side
        (99, 1e-300, 1),
        (2, 0.99, 1),
        (3, 0.99, 2),
    ],
)
def test_a_split_holds_out_the_fraction(n, fraction, n_held_out):
    training, held_out = split_documents(range(n), fraction)
    assert (len(training), len(held_out)) == (n - n_held_out, n_held_out)


def test_a_single_document_cannot_be_split():
    with pytest.raises(ValueError, match="single document"):
        split_documents(["ada"], 0.1)


def test_a_split_depends_on_the_seed_alone():
    random.seed(1)
    state = random.getstate()
    first = split_documents(LETTERS, 0.2, seed=7)
    assert random.getstate() == state
    random.seed(2)
    assert split_documents(LETTERS, 0.2, seed=7) == first
    assert split_documents(LETTERS, 0.2, seed=8) != first
    for documents in first:
        assert sorted(documents) != documents


@pytest.mark.parametrize(
    "documents, fraction, training, held_out",
    [
        (["abcdefghij"], 0.1, ["abcdefghi"], ["j"]),
        (["abcdefghij"], 0.11, ["abcdefgh"], ["ij"]),
        (["abcdefghij"], 0.9, ["a"], ["bcdefghij"]),
        (["abcd", "ab", "a"], 0.5, ["ab", "a"], ["cd", "b", "a"]),  # no empty ones
        (["abcd"], 0, ["abcd"], []),
        (["x" * 1115394], 0.1, ["x" * 1003854], ["x" * 111540]),  # as nanoGPT does
    ],
)
def test_the_end_of_each_file_is_held_out(documents, fraction, training, held_out):
    assert hold_out_ends(documents, fraction) == (training, held_out)


def test_a_trainer_holds_out_the_ends_of_files():
    t = trainer(val_fraction=0.25, document="file")
    assert (t.documents, t.val_documents) == hold_out_ends(DOCUMENTS, 0.25)


def test_a_text_of_which_nothing_is_left_to_train_on_is_refused():
    tokenizer = CharTokenizer(["a"])
    config = TrainConfig(document="file")
    with pytest.raises(ValueError, match="nothing is left to train on"):
        Trainer(GPT(Config(2)), tokenizer, ["a"], config)


# --- windows ---


@given(st.lists(st.text("ab", max_size=9)), st.integers(1, 4))
def test_windows_are_those_that_cut_windows_makes(documents, block_size):
    tokenizer = CharTokenizer(["ab"])
    windows = Windows(documents, tokenizer, block_size)
    expected = []
    for document in documents:
        expected += cut_windows(document, tokenizer, block_size)
    assert list(windows) == windows[:] == expected and len(windows) == len(expected)
    assert windows[1:3] == expected[1:3] and windows[-2:] == expected[-2:]
    if expected:
        assert windows[-1] == expected[-1]
    with pytest.raises(IndexError):
        windows[len(expected)]


def test_random_windows_begin_at_each_place_of_the_text_equally_often():
    tokenizer = CharTokenizer(["abc"])
    windows = Windows(["ab", "cab"], tokenizer, 3)
    text = tokenizer.encode(f"{END}ab{END}cab{END}")
    places = [text[i : i + 4] for i in range(5)]
    rng = random.Random(1)
    drawn = Counter(str(windows.at_random(rng)) for _ in range(5000))
    assert sorted(drawn) == sorted(map(str, places))
    assert all(800 < count < 1200 for count in drawn.values())
    assert Windows(["a"], tokenizer, 9).at_random(rng) == [3, 0, 3]


def test_random_windows_follow_from_the_seed_and_the_step_alone():
    options = {"windows": "random", "batch_size": 3}
    t = trainer(**options, seed=5)
    batches = [t.batch(step) for step in range(6)]
    again = trainer(**options, seed=5)
    assert [again.batch(step) for step in reversed(range(6))] == batches[::-1]
    assert batches != [trainer(**options, seed=6).batch(step) for step in range(6)]
    assert len({str(batch) for batch in batches}) == 6


def test_ids_above_65535_have_room():
    tokenizer = SimpleNamespace(
        vocab_size=65537, end=65536, encode=lambda text: [65535]
    )
    assert Windows(["a"], tokenizer, 2)[0] == [65536, 65535, 65536]


# --- options ---


def test_the_defaults():
    assert defaults(TrainConfig) == {
        **{"steps": 500, "batch_size": 4, "lr": 0.01, "warmup": 40, "clip": 1.0},
        **{"weight_decay": 0.0, "val_fraction": 0.1, "eval_every": 0},
        **{"engine": "tensor", "workers": 1, "seed": 42},
        **{"document": "line", "windows": "consecutive"},
    }
    with pytest.raises(AttributeError):
        TrainConfig().steps = 2


@pytest.mark.parametrize(
    "name, within, wrong",
    [
        ("steps", [1, 10**9], [0, 10**9 + 1, True, 1.0]),
        ("batch_size", [1, 10**5], [0, 10**5 + 1, None]),
        ("lr", [0, 100.0], [-0.1, 100.1, math.nan, math.inf, "fast", None, False]),
        ("warmup", [0, 10**9], [-1, 10**9 + 1, 0.5]),
        ("weight_decay", [0, 100.0], [-0.1, 100.1, math.nan]),
        ("clip", [0, 1e9], [-0.1, 1e9 + 1, math.nan]),
        ("val_fraction", [0, 0.99], [-0.1, 0.991, 1]),
        ("eval_every", [0, 10**9], [-1, 10**9 + 1, 0.0]),
        ("workers", [1, 4], [0, 5, 1.0]),  # 4 windows are a batch
        ("seed", [-(2**99), 2**99], [1.5, "7"]),
        ("engine", ["tensor", "value"], ["gpu", None, []]),
    ],
)
def test_options_have_limits_and_others_are_refused_by_name_and_value(
    name, within, wrong
):
    for value in within:
        assert getattr(TrainConfig(**{name: value}), name) == value
    for value in wrong:
        with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}: must")):
            TrainConfig(**{name: value})
