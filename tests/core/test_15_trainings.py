"""Chapter 15: a training that is saved and loaded goes on as if it had never stopped.

To the last bit: states are compared by their repr, which tells 0.0 from -0.0.

saved_by_0_1_0.zip holds a training that version 0.1.0 saved after 5 of 12 steps, and
expected.json: what 0.1.0 itself made of it in the others. make.py in it has made both.
"""

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import ROOT, close, flat, parts, works

import microgpt
from microgpt import (
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    TensorEngine,
    TrainConfig,
    load_model,
    load_training,
    save_model,
    save_training,
)

DOCUMENTS = "ada bob abba dada cab bad dab cad abcabcabcabc d".split()
SETTINGS = {  # there are 9 windows: 7 steps of 3 go through more than two epochs
    "plain": {},
    "bytes": {"kind": "bytes", "eval_every": 2},
    "decay": {"weight_decay": 0.1},
    "no clip": {"clip": 0},
    "clip": {"clip": 1e-3},
    "held out": {"eval_every": 2, "val_fraction": 0.3},
    "none held out": {"eval_every": 1, "val_fraction": 0},
    "warmup": {"warmup": 100, "lr": 1},
    "value": {"engine": "value", "steps": 3, "batch_size": 2, "eval_every": 2},
    "seed": {"seed": -3, "batch_size": 5},
    "random": {"windows": "random", "eval_every": 2},
    "files": {"document": "file", "val_fraction": 0.3, "eval_every": 2},
}


def new_trainer(use=None, kind="characters", documents=DOCUMENTS, **options):
    """A training that has not begun; `use` may be an engine."""
    tokenizer = CharTokenizer(DOCUMENTS)
    if kind == "bytes":
        tokenizer = BPETokenizer.train(DOCUMENTS, 262)
    model = GPT(Config(tokenizer.vocab_size, block_size=6, n_head=2, n_embd=4), seed=1)
    usual = {"steps": 7, "batch_size": 3, "warmup": 2, "seed": 7}
    config = TrainConfig(**{**usual, **options})
    return microgpt.Trainer(model, tokenizer, documents, config, use)


def run(trainer, steps=1000):
    """Take some steps -> what they report, but for their speed."""
    taken = zip(range(steps), trainer)
    return [repr(step._replace(tokens_per_second=0)) for _, step in taken]


def state(trainer):
    """All that a training is, as text."""
    parts = {**vars(trainer), **vars(trainer.optimizer)}
    for name in ("engine", "optimizer", "params", "losses"):
        del parts[name]
    parts["model"] = (trainer.model.config, trainer.model.params)
    parts["tokenizer"] = trainer.tokenizer.vocab
    for name in ("windows", "val_windows"):
        parts[name] = parts[name][:]
    return repr(sorted(parts.items()))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training that was saved after 3 of 7 steps; not to be written to."""
    directory = tmp_path_factory.mktemp("stopped")
    trainer = new_trainer()
    run(trainer, 3)
    save_training(trainer, directory)
    return directory


# --- it goes on -----------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_a_training_stopped_after_every_step_is_the_one_that_never_stopped(
    tmp_path, options
):
    whole = new_trainer(**options)
    expected = run(whole)
    assert len(expected) == whole.config.steps == len(set(expected))
    trainer = new_trainer(**options)
    reports = []
    for step in range(whole.config.steps + 1):
        save_training(trainer, tmp_path)
        trainer = load_training(tmp_path, DOCUMENTS)
        assert trainer.step == trainer.optimizer.t == step
        reports += run(trainer, 1)
    assert reports == expected
    assert state(trainer) == state(whole)


def test_workers_that_are_processes_are_started_again(tmp_path):
    whole = new_trainer(workers=2, steps=3)
    expected = run(whole)
    first = new_trainer(workers=2, steps=3)
    reports = run(first, 2)
    save_training(first, tmp_path)  # while they run
    first.close()
    second = load_training(tmp_path, DOCUMENTS)
    assert isinstance(second.engine, microgpt.Workers) and second.engine.n_workers == 2
    assert reports + run(second) == expected
    assert state(second) == state(whole)


def test_saving_changes_neither_the_training_nor_what_was_saved_before(tmp_path):
    whole = new_trainer(eval_every=2)
    trainer = new_trainer(eval_every=2)
    states = []
    reports = []
    for step in range(8):
        states.append(state(trainer))
        save_training(trainer, tmp_path / str(step))
        assert state(trainer) == states[-1]
        reports += run(trainer, 1)
    assert reports == run(whole) and state(trainer) == state(whole)
    run(load_training(tmp_path / "0", DOCUMENTS))  # nor does it change what it loads
    for step, expected in enumerate(states):
        assert state(load_training(tmp_path / str(step), DOCUMENTS)) == expected


def test_a_training_goes_on_exactly_though_its_averages_are_large(stopped, monkeypatch):
    """A model has as many parameters as is allowed. They have two averages each."""
    exact = load_training(stopped, DOCUMENTS).optimizer
    count = microgpt.parameter_count(load_model(stopped).config)
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", count)
    optimizer = load_training(stopped, DOCUMENTS).optimizer
    assert flat(optimizer.m) == flat(exact.m)
    assert flat(optimizer.v) == flat(exact.v)


PROCESS = """
import json, sys
from microgpt import load_training, save_training
directory, steps, documents = sys.argv[1:]
trainer = load_training(directory, json.loads(documents))
for _, step in zip(range(int(steps)), trainer):
    print(repr(step._replace(tokens_per_second=0)))
save_training(trainer, directory)
"""


def test_a_training_goes_on_in_one_process_after_the_other(tmp_path):
    whole = new_trainer(kind="bytes", eval_every=2)
    directory = tmp_path / "saved"
    save_training(new_trainer(kind="bytes", eval_every=2), directory)
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    for hash_seed, steps in [("0", 2), ("77", 5)]:
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        words = [directory, steps, json.dumps(DOCUMENTS)]
        output = works(*words, script=str(script), env=env)
        assert output.splitlines() == run(whole, steps)
    assert state(load_training(directory, DOCUMENTS)) == state(whole)


# --- what is written ------------------------------------------------------------------


def test_a_saved_training_says_where_it_is_and_how_it_goes_on(stopped):
    header, _ = parts(stopped / "model.safetensors")
    assert header["__metadata__"] == {"format": "pt", "step": "3"}
    header, _ = parts(stopped / "trainer.safetensors")
    metadata = header.pop("__metadata__")
    config = TrainConfig(steps=7, batch_size=3, warmup=2, seed=7)
    assert json.loads(metadata.pop("config")) == asdict(config)
    assert metadata.pop("documents").isdigit()
    version = microgpt.__version__
    assert metadata == {"format": "pt", "step": "3", "version": version}
    shapes = microgpt.parameter_shapes(load_model(stopped).config)
    assert set(header) == {f"{kind}.{name}" for kind in "mv" for name in shapes}
    assert {entry["dtype"] for entry in header.values()} == {"F64"}


class Noted(TensorEngine):
    """It notes what it is asked to write, and may be one that does not lead."""

    def __init__(self, leads=True):
        self.leads = leads
        self.written = []

    def write_tensors(self, tensors, dtype="F64", **metadata):
        self.written.append((sorted(tensors), dtype, metadata["step"]))
        return super().write_tensors(tensors, dtype, **metadata)


def test_a_training_is_written_by_its_engine(stopped, tmp_path):
    trainer = new_trainer(Noted())
    run(trainer, 3)
    save_training(trainer, tmp_path)
    names = sorted(trainer.model.params)
    moments = [f"{kind}.{name}" for kind in "mv" for name in names]
    assert sorted(trainer.engine.written) == [
        (names, "F64", "3"),
        (moments, "F64", "3"),
    ]
    for name in ("model.safetensors", "trainer.safetensors"):
        assert (tmp_path / name).read_bytes() == (stopped / name).read_bytes()


def test_an_engine_that_does_not_lead_saves_nothing(tmp_path):
    trainer = new_trainer(Noted(leads=False))
    save_training(trainer, tmp_path / "saved")
    assert trainer.engine.written == []
    assert not (tmp_path / "saved").exists()


# --- what may be changed, and what may not --------------------------------------------


CHANGES = [{"steps": 2000}, {"steps": 4}, {"steps": 12, "lr": 0.5}, {"warmup": 6}]
CHANGES += [{"clip": 0}, {"eval_every": 1}, {"weight_decay": 0.5}, {"batch_size": 4}]


@pytest.mark.parametrize("changes", [*CHANGES, {"engine": "value"}], ids=str)
def test_changes_hold_from_there_on_and_are_saved(stopped, tmp_path, changes):
    changed = new_trainer()
    unchanged = run(changed, 3) + run(new_trainer(), 6)[3:]
    changed.config = replace(changed.config, **changes)
    changed.optimizer.weight_decay = changed.config.weight_decay
    changed.engine = microgpt.ENGINES[changed.config.engine]()
    trainer = load_training(stopped, DOCUMENTS, **changes)
    assert state(trainer) == state(changed)
    assert trainer.engine.name == changed.engine.name
    save_training(trainer, tmp_path)
    assert state(load_training(tmp_path, DOCUMENTS)) == state(changed)
    reports = run(trainer, 3)
    assert reports == run(changed, 3)
    if "engine" not in changes:  # which changes no more than the last bits
        assert reports != unchanged[3:]
    assert state(trainer) == state(changed)


@pytest.mark.parametrize("engine", ["tensor", "value", Noted()])
def test_a_training_goes_on_with_the_engine_that_is_given(stopped, engine):
    trainer = load_training(stopped, DOCUMENTS, engine)
    if isinstance(engine, str):
        assert trainer.engine.name == trainer.config.engine == engine
    else:
        assert trainer.engine is engine
    expected = load_training(stopped, DOCUMENTS)
    losses = [step.loss for step in expected]
    assert [step.loss for step in trainer] == pytest.approx(losses, rel=1e-12)


def test_a_finished_training_goes_on_only_if_it_is_given_more_steps(tmp_path):
    trainer = new_trainer()
    run(trainer)
    save_training(trainer, tmp_path)
    for steps, more in [(7, 0), (2, 0), (8, 1), (10, 3)]:
        assert len(run(load_training(tmp_path, DOCUMENTS, steps=steps))) == more


def test_documents_may_come_as_any_iterable(stopped):
    trainer = load_training(stopped, iter(DOCUMENTS))
    assert state(trainer) == state(load_training(stopped, DOCUMENTS))


def refused(directory, *words, documents=DOCUMENTS, **changes):
    """Loading it is an error that names the directory, or has these words."""
    with pytest.raises(ValueError) as error:
        load_training(directory, documents, **changes)
    for word in words or [str(directory)]:
        assert word in str(error.value)


OTHERS = [DOCUMENTS[:-1], DOCUMENTS[::-1], [*DOCUMENTS[:-1], "a"]]
OTHERS += [["d "] * 9, ["ada"], []]


@pytest.mark.parametrize("documents", OTHERS, ids=str)
def test_other_documents_or_another_order_are_refused(stopped, documents):
    blame = f"the text is not the one that {stopped} was trained on"
    refused(stopped, blame, documents=documents)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 8}, {"val_fraction": 0}, {"val_fraction": 0.5}, {"document": "file"}],
    ids=str,
)
def test_what_would_hold_out_other_documents_is_refused(stopped, changes):
    [[name, value]] = changes.items()
    refused(stopped, f"{stopped} has {name} ", f"cannot become {value}", **changes)


@pytest.mark.parametrize(
    "documents, seed",
    [(["abcabcabc"], 8), (["ada"] * 9, 8), (DOCUMENTS, -7)],
    ids=["one document", "equal documents", "minus"],
)
def test_another_seed_is_refused_even_if_it_splits_the_documents_alike(
    tmp_path, documents, seed
):
    trainer = new_trainer(documents=documents, val_fraction=0)
    save_training(trainer, tmp_path)  # the seed also shuffles the windows
    refused(tmp_path, "seed", documents=documents, seed=seed)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"engine": "gpu"}, {"lr": "fast"}, {"lr": -1}], ids=str
)
def test_changes_to_what_cannot_be_are_refused(stopped, changes):
    [[name, value]] = changes.items()
    refused(stopped, f"{name} is {value!r}", **changes)


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("more_steps", [0, 1])
def test_a_model_saved_without_its_training_is_not_taken_for_that_of_the_older_one(
    tmp_path, with_tokenizer, more_steps
):
    trainer = new_trainer()
    run(trainer, 3)
    save_training(trainer, tmp_path)
    run(trainer, more_steps)
    save_model(trainer.model, tmp_path, trainer.tokenizer if with_tokenizer else None)
    refused(tmp_path, "trainer.safetensors")
    assert repr(load_model(tmp_path).params) == repr(trainer.model.params)
    save_training(trainer, tmp_path)
    assert state(load_training(tmp_path, DOCUMENTS)) == state(trainer)


# --- trainings of version 0.1.0 -------------------------------------------------------


@pytest.fixture
def older(tmp_path):
    """The directory of such a training, and what 0.1.0 itself made of it."""
    with zipfile.ZipFile(Path(__file__).with_name("saved_by_0_1_0.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path, json.loads((tmp_path / "expected.json").read_bytes())


def run_on(trainer):
    """Its other steps, as expected.json has them."""
    return [[x.step, x.loss, x.learning_rate, x.val_loss] for x in trainer]


def close_to(steps):
    """What `run_on` equals if it gives these steps, to 12 digits."""

    def near(x):
        return None if x is None else pytest.approx(x, rel=1e-12)

    return [[near(x) for x in step] for step in steps]


@pytest.mark.parametrize("engine", [None, TensorEngine(), microgpt.ValueEngine()])
def test_its_next_steps_are_those_of_0_1_0(older, engine):
    directory, expected = older
    trainer = load_training(directory, expected["documents"], engine)
    assert trainer.step == 5
    assert run_on(trainer) == close_to(expected["steps"])
    assert trainer.model.params.keys() == expected["params"].keys()
    assert flat(trainer.model.params) == close(expected["params"])


@pytest.mark.parametrize("n", [0, 1, 4])
def test_saved_again_it_goes_on_the_same(older, tmp_path, n):
    """Then its averages are kept as they are now, and not converted twice."""
    directory, expected = older
    trainer = load_training(directory, expected["documents"])
    run(trainer, steps=n)
    save_training(trainer, tmp_path / "again")
    again = load_training(tmp_path / "again", expected["documents"])
    assert state(again) == state(trainer)
    assert run_on(again) == close_to(expected["steps"][n:])
