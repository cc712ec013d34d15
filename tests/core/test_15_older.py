"""A training that version 0.1.0 has saved goes on as it would have gone on there.

saved_by_0_1_0.zip holds such a training after 5 of 12 steps, and expected.json: what
0.1.0 itself made of it in the other steps. make.py, in the zip too, has made them.
"""

import json
import os
import zipfile

import pytest

from microgpt import (
    END,
    TensorEngine,
    TrainConfig,
    ValueEngine,
    load_model,
    load_tokenizer,
    load_training,
    save_training,
)

ZIP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "saved_by_0_1_0.zip")


@pytest.fixture
def saved(tmp_path):
    """The directory of the training."""
    with zipfile.ZipFile(ZIP) as archive:
        archive.extractall(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def expected(saved):
    """What 0.1.0 made of it."""
    return json.loads((saved / "expected.json").read_bytes())


def numbers(x):
    """All numbers in lists and dicts, one after the other."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, list):
        return [number for y in x for number in numbers(y)]
    return [x]


def close(x):
    return pytest.approx(x, rel=1e-12, abs=1e-12)


def run(trainer, steps=1000):
    """Train -> [[step, loss, learning rate, held-out loss], ...]"""
    report = []
    for _, step in zip(range(steps), trainer):
        report.append([step.step, step.loss, step.learning_rate, step.val_loss])
    return report


def agree(report, expected):
    """The reports of steps are equal, to 12 digits."""
    assert len(report) == len(expected) > 0
    for (*ours, our_val_loss), (*theirs, their_val_loss) in zip(report, expected):
        assert ours == close(theirs)
        if their_val_loss is None:
            assert our_val_loss is None
        else:
            assert our_val_loss == close(their_val_loss)


@pytest.mark.parametrize("engine", [None, TensorEngine(), ValueEngine()])
def test_its_next_steps_are_those_of_0_1_0(saved, expected, engine):
    trainer = load_training(saved, expected["documents"], engine)
    assert trainer.step == 5
    agree(run(trainer), expected["steps"])
    assert trainer.model.params.keys() == expected["params"].keys()
    for name, x in trainer.model.params.items():
        assert numbers(x) == close(numbers(expected["params"][name]))


@pytest.mark.parametrize("n", [0, 1, 4])
def test_saved_again_it_goes_on_the_same(saved, expected, tmp_path, n):
    """Then its averages are kept as they are now, and not converted twice."""
    trainer = load_training(saved, expected["documents"])
    report = run(trainer, steps=n)
    save_training(trainer, tmp_path / "again")
    again = load_training(tmp_path / "again", expected["documents"])
    assert again.step == 5 + n
    assert numbers(again.optimizer.m) == numbers(trainer.optimizer.m)
    assert numbers(again.optimizer.v) == numbers(trainer.optimizer.v)
    agree(report + run(again), expected["steps"])


def test_its_config_its_model_and_its_tokenizer_open(saved, expected):
    trainer = load_training(saved, expected["documents"])
    assert trainer.config == TrainConfig(
        steps=12,
        batch_size=2,
        warmup=4,
        weight_decay=0.1,
        clip=0.5,
        eval_every=3,
        val_fraction=0.2,
        seed=5,
    )
    assert load_model(saved).params == trainer.model.params
    assert load_tokenizer(saved).tokens == [*"abcdo", END]


def test_other_documents_are_refused(saved, expected):
    with pytest.raises(ValueError, match="other documents"):
        load_training(saved, expected["documents"][1:])
