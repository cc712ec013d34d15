"""Chapter 8: the Trainer, alone and with workers."""

import gc
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from microgpt import (
    GPT,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    batch_gradients,
    evaluate,
    windows,
)

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


def trainer(executor=None, model_seed=1, **options):
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(
        Config(tokenizer.vocab_size, block_size=8, n_head=2, n_embd=8), seed=model_seed
    )
    config = TrainConfig(
        **{"steps": 5, "batch_size": 3, "warmup": 2, "seed": 7, **options}
    )
    return Trainer(model, tokenizer, DOCUMENTS, config, executor)


def test_steps_are_reported_and_counted():
    t = trainer(steps=4, eval_every=2)
    steps = list(t)
    assert [s.step for s in steps] == [1, 2, 3, 4] and t.step == 4
    assert [s.val_loss is None for s in steps] == [True, False, True, False]
    assert all(math.isfinite(s.loss) and s.tokens_per_second > 0 for s in steps)
    assert [s.learning_rate for s in steps] == pytest.approx(
        [0.5 * t.config.lr, t.config.lr, t.config.lr, 0.5 * t.config.lr]
    )
    assert list(t) == []


def test_the_loss_reported_is_that_of_the_batch_before_the_step():
    t = trainer()
    loss = t.model.loss(t.batch(0))
    assert next(t).loss == pytest.approx(loss, rel=1e-12)


def test_training_learns_and_both_engines_learn_the_same():
    runs = {
        engine: trainer(steps=30, lr=0.03, engine=engine)
        for engine in ("tensor", "value")
    }
    losses = {engine: [step.loss for step in run] for engine, run in runs.items()}
    assert losses["tensor"] == pytest.approx(losses["value"], rel=1e-9)
    assert sum(losses["tensor"][-5:]) < 0.8 * sum(losses["tensor"][:5])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    def run(seed):
        t = trainer(seed=seed)
        return [step.loss for step in t], t.model.params

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_every_window_is_seen_once_in_every_epoch():
    t = trainer(batch_size=4)
    n = len(t.windows)
    seen = [window for step in range(n) for window in t.batch(step)]  # 4 epochs
    for epoch in range(4):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == sorted(t.windows)
    assert seen[:n] != seen[n : 2 * n]
    assert t.batch(2) == seen[8:12]  # whatever was asked before


def test_long_documents_are_trained_on_to_the_last_token():
    t = trainer(val_fraction=0.0)
    predicted = sorted(token for window in t.windows for token in window[1:])
    tokenizer = CharTokenizer(DOCUMENTS)
    whole = [w for d in DOCUMENTS for w in windows(d, tokenizer, 1000)]
    assert predicted == sorted(token for window in whole for token in window[1:])
    assert max(map(len, t.windows)) == 9


def test_evaluation_is_the_mean_over_all_predictions_and_changes_nothing():
    t = trainer()
    before = repr(t.model.params)
    loss = evaluate(t.model, t.windows)
    assert loss == pytest.approx(t.model.loss(t.windows), rel=1e-12)
    assert evaluate(t.model, t.windows, most=2) == evaluate(t.model, t.windows[:2])
    assert repr(t.model.params) == before


def test_two_workers_compute_the_gradients_of_one():
    alone, shared = trainer(), trainer(workers=2)
    for a, b in zip(alone, shared):
        assert b.loss == pytest.approx(a.loss, rel=1e-12)
    for name, x in alone.model.params.items():
        for row, other in zip(x, shared.model.params[name]):
            assert other == pytest.approx(row, rel=1e-9, abs=1e-9)
    assert shared.executor is not None
    assert (
        list(shared) == [] and shared.executor is None
    )  # its own pool is closed at the end


def test_same_seed_and_same_workers_give_the_same_bits_on_any_executor():
    results = []
    for _ in range(2):
        t = trainer(workers=2)
        results.append(([step.loss for step in t], t.model.params))
    with ThreadPoolExecutor(2) as pool:
        t = trainer(pool, workers=2)
        results.append(([step.loss for step in t], t.model.params))
        assert t.executor is pool
    assert results[0] == results[1] == results[2]


def test_an_executor_is_used_with_one_worker_too():
    class Counting(ThreadPoolExecutor):
        jobs = 0

        def submit(self, *args, **options):
            self.jobs += 1
            return super().submit(*args, **options)

    with Counting(1) as pool:
        t = trainer(pool, steps=3)
        losses = [step.loss for step in t]
        assert pool.jobs == 3 and t.executor is pool
    assert losses == pytest.approx([step.loss for step in trainer(steps=3)], rel=1e-12)


@pytest.mark.parametrize("engine", ["tensor", "value"])
@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(engine, on):
    t = trainer()
    was = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        batch_gradients(t.model, t.batch(0), engine)
        assert gc.isenabled() == on
        with pytest.raises(ValueError):
            batch_gradients(t.model, [[99, 0]], engine)
        assert gc.isenabled() == on
    finally:
        (gc.enable if was else gc.disable)()


def test_a_loss_that_is_not_finite_stops_before_the_parameters_change():
    t = trainer()
    next(t)
    t.model.params["wte.weight"][0][0] = math.nan
    kept = repr(t.model.params)
    with pytest.raises(ArithmeticError, match="loss is nan at step 2.*lr"):
        for _ in range(4):
            next(t)
    assert repr(t.model.params) == kept and t.step == 1


def test_no_documents_held_out():
    t = trainer(val_fraction=0, eval_every=1)
    assert len(t.documents) == len(DOCUMENTS) and t.val_windows == []
    assert next(t).val_loss is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": -1.0}, "lr is -1"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"warmup": -1}, "warmup is -1"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip": -1.0}, "clip"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"eval_every": -1}, "eval_every"),
        ({"engine": "gpu"}, "engine is 'gpu'.*tensor or value"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 4}, "workers is 4.* to 3"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_impossible_training_is_refused_by_name_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        trainer(**change)
