"""Chapter 15: a training that is saved and loaded goes on as if it had never stopped.

Bit for bit: numbers are compared by their repr, which tells 0.0 from -0.0.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import (
    ENGINES,
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    TensorEngine,
    TrainConfig,
    Trainer,
    Workers,
    generate,
    load_model,
    load_training,
    save_model,
    save_training,
)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DOCUMENTS = [
    "ada",
    "bob",
    "abba",
    "dada",
    "cab",
    "bad",
    "dab",
    "cad",
    "abcabcabcabc",
    "d",
]
SETTINGS = {  # there are 9 windows: 7 steps of 3 go through more than two epochs
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "no clip": {"clip": 0},
    "clip": {"clip": 1e-3},
    "held out": {"eval_every": 2, "val_fraction": 0.3},
    "none held out": {"eval_every": 1, "val_fraction": 0},
    "warmup": {"warmup": 100, "lr": 1},
    "value": {"engine": "value", "batch_size": 2, "eval_every": 3},
    "workers": {"workers": 2},
    "seed": {"seed": -3, "batch_size": 5},
}


@cache
def tokenizer_of(kind):
    if kind == "char":
        return CharTokenizer(DOCUMENTS)
    return BPETokenizer.train(DOCUMENTS, 262)


def new_trainer(kind="char", use=None, **options):
    """A training that has not begun; `use` may be an engine."""
    tokenizer = tokenizer_of(kind)
    model = GPT(Config(tokenizer.vocab_size, block_size=6, n_head=2, n_embd=4), seed=1)
    defaults = {"steps": 7, "batch_size": 3, "warmup": 2, "seed": 7}
    config = TrainConfig(**{**defaults, **options})
    return Trainer(model, tokenizer, DOCUMENTS, config, use)


def report(step):
    """What a step says of itself, but for its speed."""
    return repr(step._replace(tokens_per_second=None))


def run(trainer, steps=1000):
    return [report(step) for _, step in zip(range(steps), trainer)]


def state(trainer):
    """All that a training is, as text."""
    optimizer = trainer.optimizer
    return repr(
        (
            trainer.step,
            trainer.config,
            trainer.model.config,
            trainer.model.params,
            optimizer.t,
            optimizer.m,
            optimizer.v,
            trainer.tokenizer.vocab,
            trainer.documents,
            trainer.val_documents,
            trainer.windows,
            trainer.val_windows,
        )
    )


def interrupted(trainer, stops, directory, use=None):
    """Run to the end, but save and load after each of these steps.

    -> (reports, the last trainer)
    """
    reports = []
    for stop in sorted(stops):
        reports += run(trainer, stop - trainer.step)
        save_training(trainer, directory)
        trainer = load_training(directory, DOCUMENTS, use)
        assert trainer.step == trainer.optimizer.t == stop
    return reports + run(trainer), trainer


# --- in one process -------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_training_stopped_after_every_step_is_the_one_that_never_stopped(
    tmp_path, kind, options
):
    if kind == "bpe" and options.get("engine") == "value":
        options = {**options, "steps": 3, "batch_size": 1}  # it is slow
    with ThreadPoolExecutor(2) as pool:
        use = Workers(TensorEngine(), 2, pool) if options.get("workers") else None
        whole = new_trainer(kind, use, **options)
        expected = run(whole)
        assert len(expected) == whole.config.steps == len(set(expected))
        stops = range(whole.config.steps + 1)
        trainer = new_trainer(kind, use, **options)
        reports, trainer = interrupted(trainer, stops, tmp_path, use)
    assert reports == expected
    assert state(trainer) == state(whole)


@settings(max_examples=25)
@given(st.data())
def test_a_training_stopped_anywhere_is_the_one_that_never_stopped(data):
    steps = data.draw(st.integers(1, 12))
    stops = data.draw(st.lists(st.integers(0, steps), max_size=4))
    options = {
        "kind": data.draw(st.sampled_from(["char", "char", "bpe"])),
        "steps": steps,
        "batch_size": data.draw(st.integers(1, 8)),
        "eval_every": data.draw(st.integers(0, 4)),
        "val_fraction": data.draw(st.sampled_from([0, 0.1, 0.4])),
        "weight_decay": data.draw(st.sampled_from([0, 0.1])),
        "clip": data.draw(st.floats(0, 2)),
        "lr": data.draw(st.floats(0, 0.1)),
        "warmup": data.draw(st.integers(0, 9)),
        "seed": data.draw(st.integers()),
    }
    whole = new_trainer(**options)
    expected = run(whole)
    with tempfile.TemporaryDirectory() as directory:
        reports, trainer = interrupted(new_trainer(**options), stops, directory)
    assert reports == expected
    assert state(trainer) == state(whole)


def test_with_workers_that_are_processes_too(tmp_path):
    whole = new_trainer(workers=2, steps=4)
    expected = run(whole)
    first = new_trainer(workers=2, steps=4)
    reports = run(first, 2)
    save_training(first, tmp_path)  # while its workers run
    first.close()
    second = load_training(tmp_path, DOCUMENTS)
    assert reports + run(second) == expected
    assert state(second) == state(whole)


def test_saving_does_not_disturb_the_training(tmp_path):
    whole = new_trainer(eval_every=2)
    trainer = new_trainer(eval_every=2)
    expected = run(whole)
    reports = []
    save_training(trainer, tmp_path)
    for step in trainer:
        reports.append(report(step))
        before = state(trainer)
        save_training(trainer, tmp_path)
        save_training(trainer, tmp_path / "another")
        assert state(trainer) == before
    assert reports == expected
    assert state(trainer) == state(whole)


def test_what_is_loaded_is_what_was_saved_at_that_time(tmp_path):
    trainer = new_trainer()
    states = []
    for n in range(4):
        save_training(trainer, tmp_path / str(n))
        states.append(state(trainer))
        run(trainer, 1)
    assert len(set(states)) == 4
    for n in range(4):
        assert state(load_training(tmp_path / str(n), DOCUMENTS)) == states[n]
    # To load a training and go on does not change what is saved.
    run(load_training(tmp_path / "0", DOCUMENTS))
    assert state(load_training(tmp_path / "0", DOCUMENTS)) == states[0]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_same_seed_writes_the_same_text_after_resuming(tmp_path, kind):
    def texts(t):
        return [
            generate(t.model, t.tokenizer, "a", seed=seed, max_tokens=20)
            for seed in range(9)
        ]

    whole = new_trainer(kind)
    run(whole)
    _, trainer = interrupted(new_trainer(kind), [3, 5], tmp_path)
    assert texts(trainer) == texts(whole)
    assert len(set(texts(whole))) > 1


# --- in new processes -----------------------------------------------------------------

PROCESS = """
import json, sys
from microgpt import generate, load_training, save_training
directory, steps, documents = sys.argv[1:]
trainer = load_training(directory, json.loads(documents))
for _, step in zip(range(int(steps)), trainer):
    print(repr(step._replace(tokens_per_second=None)))
save_training(trainer, directory)
print(ascii(generate(trainer.model, trainer.tokenizer, seed=5)))
print(trainer.optimizer.m)
print(trainer.optimizer.v)
print(trainer.model.params)
"""


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_training_goes_on_in_one_process_after_the_other(tmp_path, kind):
    whole = new_trainer(kind, eval_every=2)
    save_training(new_trainer(kind, eval_every=2), tmp_path)
    for hash_seed, steps in [("0", 2), ("1", 0), ("77", 5)]:
        reports = run(whole, steps)
        assert len(reports) == steps
        text = ascii(generate(whole.model, whole.tokenizer, seed=5))
        numbers = [whole.optimizer.m, whole.optimizer.v, whole.model.params]
        words = [str(tmp_path), str(steps), json.dumps(DOCUMENTS)]
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, *words],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": ROOT},
            stdout=subprocess.PIPE,
            check=True,
            encoding="utf-8",
        )
        assert done.stdout.splitlines() == [*reports, text, *map(repr, numbers)]
    assert state(load_training(tmp_path, DOCUMENTS)) == state(whole)


# --- what may change, and what may not ------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training that was saved after 3 of 7 steps; not to be written to."""
    directory = tmp_path_factory.mktemp("stopped")
    trainer = new_trainer()
    run(trainer, 3)
    save_training(trainer, directory)
    return directory


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 2000},
        {"steps": 4},
        {"steps": 12, "lr": 0.5},
        {"eval_every": 1},
        {"warmup": 6},
        {"weight_decay": 0.5},
        {"clip": 0},
        {"batch_size": 4},
        {"engine": "value"},
        {"batch_size": 2, "eval_every": 1, "lr": 0.001},
    ],
    ids=str,
)
def test_changes_to_the_configuration_are_honoured_from_there_on(stopped, changes):
    changed = new_trainer()
    unchanged = run(changed, 3) + run(new_trainer(), 6)[3:]
    changed.config = replace(changed.config, **changes)
    changed.optimizer.weight_decay = changed.config.weight_decay
    changed.engine = ENGINES[changed.config.engine]()
    trainer = load_training(stopped, DOCUMENTS, **changes)
    assert trainer.config == changed.config
    assert trainer.step == 3
    assert trainer.engine.name == changed.engine.name
    reports = run(trainer, 3)
    assert reports == run(changed, 3)
    if "engine" not in changes:  # which changes no more than the last bits
        assert reports != unchanged[3:]
    assert state(trainer) == state(changed)


def test_changes_are_saved_with_the_training(stopped, tmp_path):
    trainer = load_training(stopped, DOCUMENTS, steps=9, eval_every=4)
    save_training(trainer, tmp_path)
    config = load_training(tmp_path, DOCUMENTS).config
    assert config == replace(new_trainer().config, steps=9, eval_every=4)


def test_a_finished_training_stops_at_once_and_goes_on_if_given_more_steps(tmp_path):
    trainer = new_trainer()
    run(trainer)
    save_training(trainer, tmp_path)
    finished = load_training(tmp_path, DOCUMENTS)
    assert finished.step == 7
    assert run(finished) == []
    assert state(finished) == state(trainer)
    assert run(load_training(tmp_path, DOCUMENTS, steps=2)) == []
    assert len(run(load_training(tmp_path, DOCUMENTS, steps=10))) == 3


def refused(directory, documents=DOCUMENTS, **changes):
    """To load it is an error that names the directory, change or character.

    -> its message
    """
    with pytest.raises(ValueError) as error:
        load_training(directory, documents, **changes)
    message = str(error.value)
    own = [str(directory), *changes, "is not one of the characters"]
    assert any(word in message for word in own)
    return message


@pytest.mark.parametrize(
    "documents",
    [
        DOCUMENTS[:-1],
        DOCUMENTS + ["ada"],
        DOCUMENTS[::-1],
        DOCUMENTS[1:] + DOCUMENTS[:1],
        [*DOCUMENTS[:-1], "a"],
        [*DOCUMENTS[:-1], "d "],
        ["ada\nbob", *DOCUMENTS[2:]],
        ["".join(DOCUMENTS)] * 2,
    ],
    ids=str,
)
def test_other_documents_or_another_order_are_refused(stopped, documents):
    refused(stopped, documents)


@pytest.mark.parametrize(
    "changes", [{"seed": 8}, {"val_fraction": 0}, {"val_fraction": 0.5}], ids=str
)
def test_what_would_choose_other_held_out_documents_is_refused(stopped, changes):
    assert "seed" in refused(stopped, **changes)


@pytest.mark.parametrize(
    "documents, seed",
    [(["abcabcabcabcabcabc"], 8), (["ada"] * 9, 8), (DOCUMENTS, -7)],
    ids=["one", "equal", "minus"],
)
def test_another_seed_is_refused_even_if_it_splits_the_documents_alike(
    tmp_path, documents, seed
):
    tokenizer = CharTokenizer(documents)  # the seed shuffles the windows, too
    model = GPT(Config(tokenizer.vocab_size, block_size=3, n_head=1, n_embd=2))
    config = TrainConfig(val_fraction=0, seed=7)
    save_training(Trainer(model, tokenizer, documents, config), tmp_path)
    refused(tmp_path, documents, seed=seed)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"engine": "gpu"}, {"lr": "fast"}], ids=str
)
def test_changes_to_what_cannot_be_are_refused(stopped, changes):
    assert next(iter(changes)) in refused(stopped, **changes)


def test_documents_may_come_as_any_iterable_that_lists_them(stopped):
    for documents in tuple(DOCUMENTS), iter(DOCUMENTS):
        trainer = load_training(stopped, documents)
        assert state(trainer) == state(load_training(stopped, DOCUMENTS))


def test_a_directory_with_a_model_alone_says_so(tmp_path):
    trainer = new_trainer()
    save_model(trainer.model, tmp_path, trainer.tokenizer)
    with pytest.raises((OSError, ValueError), match="trainer") as error:
        load_training(tmp_path, DOCUMENTS)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("steps", [0, 3, 4])
def test_a_model_saved_again_without_its_training_says_so(
    tmp_path, with_tokenizer, steps
):
    trainer = new_trainer()
    run(trainer, 3)
    save_training(trainer, tmp_path)
    run(trainer, steps - 3)
    tokenizer = trainer.tokenizer if with_tokenizer else None
    save_model(trainer.model, tmp_path, tokenizer)
    refused(tmp_path)
    assert repr(load_model(tmp_path).params) == repr(trainer.model.params)
    save_training(trainer, tmp_path)
    assert state(load_training(tmp_path, DOCUMENTS)) == state(trainer)


def test_the_training_of_another_model_is_refused(tmp_path):
    other = new_trainer("bpe")
    save_training(new_trainer(), tmp_path)
    save_model(other.model, tmp_path, other.tokenizer)
    refused(tmp_path)


def test_a_training_that_has_diverged_is_not_saved_and_the_older_one_goes_on(tmp_path):
    trainer = new_trainer()
    run(trainer, 3)
    save_training(trainer, tmp_path)
    before = state(trainer)
    run(trainer, 1)
    trainer.optimizer.v["h.0.mlp.c_fc.weight"][0][0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        save_training(trainer, tmp_path)
    assert state(load_training(tmp_path, DOCUMENTS)) == before
