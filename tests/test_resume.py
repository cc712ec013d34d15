"""Chapter 11: a training that is stopped, saved, loaded and gone on with is one that never stopped.

Bit for bit: numbers are compared by their repr, which tells 0.0 from -0.0."""

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
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    generate,
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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
    return (
        CharTokenizer(DOCUMENTS)
        if kind == "char"
        else BPETokenizer.train(DOCUMENTS, 262)
    )


def new_trainer(kind="char", executor=None, **options):
    tokenizer = tokenizer_of(kind)
    model = GPT(Config(tokenizer.vocab_size, block_size=6, n_head=2, n_embd=4), seed=1)
    config = TrainConfig(
        **{"steps": 7, "batch_size": 3, "warmup": 2, "seed": 7, **options}
    )
    return Trainer(model, tokenizer, DOCUMENTS, config, executor)


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
            optimizer.steps,
            optimizer.m,
            optimizer.v,
            trainer.tokenizer.vocab,
            trainer.documents,
            trainer.val_documents,
            trainer.windows,
            trainer.val_windows,
        )
    )


def interrupted(trainer, stops, directory, executor=None):
    """Run to the end, but save and load after each of these steps -> reports, the last trainer."""
    reports = []
    for stop in sorted(stops):
        reports += run(trainer, stop - trainer.step)
        trainer.save(directory)
        trainer = Trainer.load(directory, DOCUMENTS, executor)
        assert trainer.step == stop
    return reports + run(trainer), trainer


# --- in one process -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_training_stopped_after_every_step_is_the_one_that_never_stopped(
    tmp_path, kind, options
):
    if kind == "bpe" and options.get("engine") == "value":
        options = {**options, "steps": 3, "batch_size": 1}  # it is slow
    with ThreadPoolExecutor(2) as pool:
        executor = pool if options.get("workers") else None
        whole = new_trainer(kind, executor, **options)
        expected = run(whole)
        assert len(expected) == whole.config.steps == len(set(expected))
        reports, trainer = interrupted(
            new_trainer(kind, executor, **options),
            range(whole.config.steps + 1),
            tmp_path,
            executor,
        )
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
    first.save(tmp_path)  # while its workers run
    first.close()
    second = Trainer.load(tmp_path, DOCUMENTS)
    assert reports + run(second) == expected
    assert state(second) == state(whole)


def test_saving_does_not_disturb_the_training(tmp_path):
    whole, trainer = new_trainer(eval_every=2), new_trainer(eval_every=2)
    expected, reports = run(whole), []
    trainer.save(tmp_path)
    for step in trainer:
        reports.append(report(step))
        before = state(trainer)
        trainer.save(tmp_path)
        trainer.save(tmp_path / "another")
        assert state(trainer) == before
    assert reports == expected and state(trainer) == state(whole)


def test_what_is_loaded_is_what_was_saved_at_that_time(tmp_path):
    trainer, states = new_trainer(), []
    for n in range(4):
        trainer.save(tmp_path / str(n))
        states.append(state(trainer))
        run(trainer, 1)
    assert len(set(states)) == 4
    assert [
        state(Trainer.load(tmp_path / str(n), DOCUMENTS)) for n in range(4)
    ] == states
    # To load a training and go on does not change what is saved.
    run(Trainer.load(tmp_path / "0", DOCUMENTS))
    assert state(Trainer.load(tmp_path / "0", DOCUMENTS)) == states[0]


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


# --- in new processes -----------------------------------------------------------------------------

PROCESS = """
import json, sys
from microgpt import Trainer, generate
directory, steps, documents = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
trainer = Trainer.load(directory, documents)
for _, step in zip(range(steps), trainer):
    print(repr(step._replace(tokens_per_second=None)))
trainer.save(directory)
print(ascii(generate(trainer.model, trainer.tokenizer, seed=5)))
print(trainer.optimizer.m)
print(trainer.optimizer.v)
print(trainer.model.params)
"""


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_training_goes_on_in_one_process_after_the_other(tmp_path, kind):
    whole, trainer = new_trainer(kind, eval_every=2), new_trainer(kind, eval_every=2)
    trainer.save(tmp_path)
    for hash_seed, steps in [("0", 2), ("1", 0), ("77", 5)]:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                PROCESS,
                str(tmp_path),
                str(steps),
                json.dumps(DOCUMENTS),
            ],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": ROOT,
            },
            stdout=subprocess.PIPE,
            check=True,
            encoding="utf-8",
        )
        reports, (text, *numbers) = run(whole, steps), done.stdout.splitlines()[steps:]
        assert done.stdout.splitlines()[:steps] == reports and len(reports) == steps
        assert text == ascii(generate(whole.model, whole.tokenizer, seed=5))
        assert numbers == list(
            map(repr, (whole.optimizer.m, whole.optimizer.v, whole.model.params))
        )
    assert state(Trainer.load(tmp_path, DOCUMENTS)) == state(whole)


# --- what may change, and what may not ------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training that was saved after 3 of 7 steps; not to be written to."""
    directory, trainer = tmp_path_factory.mktemp("stopped"), new_trainer()
    run(trainer, 3)
    trainer.save(directory)
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
    trainer = Trainer.load(stopped, DOCUMENTS, **changes)
    assert trainer.config == changed.config and trainer.step == 3
    reports = run(trainer, 3)
    assert reports == run(changed, 3) and reports != unchanged[3:]
    assert state(trainer) == state(changed)


def test_changes_are_saved_with_the_training(stopped, tmp_path):
    Trainer.load(stopped, DOCUMENTS, steps=9, eval_every=4).save(tmp_path)
    config = Trainer.load(tmp_path, DOCUMENTS).config
    assert config == replace(new_trainer().config, steps=9, eval_every=4)


def test_a_finished_training_stops_at_once_and_goes_on_if_given_more_steps(tmp_path):
    trainer = new_trainer()
    run(trainer)
    trainer.save(tmp_path)
    finished = Trainer.load(tmp_path, DOCUMENTS)
    assert finished.step == 7 and run(finished) == []
    assert state(finished) == state(trainer)
    assert run(Trainer.load(tmp_path, DOCUMENTS, steps=2)) == []
    assert len(run(Trainer.load(tmp_path, DOCUMENTS, steps=10))) == 3


def refused(directory, documents=DOCUMENTS, **changes):
    """It names the directory, or what is wrong with the changes or the documents by themselves."""
    with pytest.raises(ValueError) as error:
        Trainer.load(directory, documents, **changes)
    own = [*changes, "is not among the"]
    assert str(directory) in str(error.value) or any(
        word in str(error.value) for word in own
    )
    return str(error.value)


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
    Trainer(model, tokenizer, documents, TrainConfig(val_fraction=0, seed=7)).save(
        tmp_path
    )
    refused(tmp_path, documents, seed=seed)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"engine": "gpu"}, {"lr": "fast"}], ids=str
)
def test_changes_to_what_cannot_be_are_refused(stopped, changes):
    assert next(iter(changes)) in refused(stopped, **changes)


def test_documents_may_come_as_any_iterable_that_lists_them(stopped):
    assert state(Trainer.load(stopped, tuple(DOCUMENTS))) == state(
        Trainer.load(stopped, iter(DOCUMENTS))
    )


def test_a_directory_with_a_model_alone_says_so(tmp_path):
    trainer = new_trainer()
    trainer.model.save(tmp_path, trainer.tokenizer)
    with pytest.raises((OSError, ValueError), match="trainer") as error:
        Trainer.load(tmp_path, DOCUMENTS)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("steps", [0, 3, 4])
def test_a_model_saved_again_without_its_training_says_so(
    tmp_path, with_tokenizer, steps
):
    trainer = new_trainer()
    run(trainer, 3)
    trainer.save(tmp_path)
    run(trainer, steps - 3)
    trainer.model.save(tmp_path, trainer.tokenizer if with_tokenizer else None)
    refused(tmp_path)
    assert repr(GPT.load(tmp_path).params) == repr(trainer.model.params)
    trainer.save(tmp_path)
    assert state(Trainer.load(tmp_path, DOCUMENTS)) == state(trainer)


def test_the_training_of_another_model_is_refused(tmp_path):
    old, other = new_trainer(), new_trainer("bpe")
    old.save(tmp_path)
    other.model.save(tmp_path, other.tokenizer)
    refused(tmp_path)


def test_a_training_that_has_diverged_is_not_saved_and_the_older_one_goes_on(tmp_path):
    trainer = new_trainer()
    run(trainer, 3)
    trainer.save(tmp_path)
    before = state(trainer)
    run(trainer, 1)
    trainer.optimizer.v["h.0.mlp.c_fc.weight"][0][0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        trainer.save(tmp_path)
    assert state(Trainer.load(tmp_path, DOCUMENTS)) == before
