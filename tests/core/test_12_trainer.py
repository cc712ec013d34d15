"""Chapter 12: the Trainer, alone and with workers. (Its engines: test_engines.py.)"""

import gc
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import flat

from microgpt import (
    ENGINES,
    GPT,
    CharTokenizer,
    Config,
    TensorEngine,
    TrainConfig,
    Trainer,
    ValueEngine,
    Workers,
    cut_windows,
    evaluate,
    learning_rate,
    train,
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


def trainer(use=None, **options):
    """A new training of a small model; `use` may be an engine."""
    tokenizer = CharTokenizer(DOCUMENTS)
    shape = Config(tokenizer.vocab_size, block_size=8, n_head=2, n_embd=8)
    defaults = {"steps": 5, "batch_size": 3, "warmup": 2, "seed": 7}
    config = TrainConfig(**{**defaults, **options})
    return Trainer(GPT(shape, seed=1), tokenizer, DOCUMENTS, config, use)


def losses_of(t):
    """Train to the end -> the loss of each step."""
    return [step.loss for step in t]


def test_steps_are_reported_and_counted():
    t = trainer(steps=4, eval_every=2)
    steps = list(t)
    assert [s.step for s in steps] == [1, 2, 3, 4]
    assert t.step == 4
    assert t.losses == [s.loss for s in steps]
    assert [s.val_loss is None for s in steps] == [True, False, True, False]
    assert all(math.isfinite(s.loss) for s in steps)
    assert all(s.tokens_per_second > 0 for s in steps)
    assert [s.learning_rate for s in steps] == pytest.approx(
        [0.5 * t.config.lr, t.config.lr, t.config.lr, 0.5 * t.config.lr]
    )
    assert list(t) == []


def test_the_loss_reported_is_that_of_the_batch_before_the_step():
    t = trainer()
    loss = t.model.loss(t.batch(0))
    assert next(t).loss == pytest.approx(loss, rel=1e-12)


def test_the_held_out_loss_reported_is_that_after_the_step():
    t = trainer(eval_every=1)
    for step in t:
        assert step.val_loss == evaluate(t.model, t.val_windows)


def test_training_learns_and_both_engines_learn_the_same():
    losses = {}
    for name in ENGINES:
        t = trainer(steps=30, lr=0.03, engine=name)
        assert t.engine.name == name
        losses[name] = losses_of(t)
    assert losses["tensor"] == pytest.approx(losses["value"], rel=1e-9)
    assert sum(losses["tensor"][-5:]) < 0.8 * sum(losses["tensor"][:5])


def test_a_trainer_takes_the_steps_of_the_tutorials_loop():
    """With chapter 7's optimizer, rate and no clipping, on the same batches."""
    t = trainer(steps=4, clip=0, warmup=20)
    model = GPT(t.model.config, seed=1)
    batches = [t.batch(step) for step in range(4)]

    class Batches:
        """In the place of a random.Random: gives out these batches."""

        def sample(self, windows, size):
            return batches.pop(0)

    train(model, t.windows, 4, 3, peak=t.config.lr, rng=Batches())
    assert len(list(t)) == 4
    assert flat(model.params) == pytest.approx(flat(t.model.params), rel=1e-9, abs=1e-9)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    def run(seed):
        t = trainer(seed=seed)
        return losses_of(t), t.model.params

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
    whole = []
    for document in DOCUMENTS:
        whole += cut_windows(document, CharTokenizer(DOCUMENTS), 1000)
    assert predicted == sorted(token for window in whole for token in window[1:])
    assert max(map(len, t.windows)) == 9


def test_the_held_out_documents_are_not_trained_on():
    t = trainer(val_fraction=0.3)
    assert len(t.val_documents) == 3
    assert sorted(t.documents + t.val_documents) == sorted(DOCUMENTS)
    assert t.windows == t.cut(t.documents)
    assert t.val_windows == t.cut(t.val_documents)


def test_evaluation_is_the_mean_over_all_predictions_and_changes_nothing():
    t = trainer()
    before = repr(t.model.params)
    loss = evaluate(t.model, t.windows)
    assert loss == pytest.approx(t.model.loss(t.windows), rel=1e-12)
    assert evaluate(t.model, t.windows, most=2) == evaluate(t.model, t.windows[:2])
    assert repr(t.model.params) == before


def test_evaluation_reads_500_windows_unless_told():
    t = trainer()
    many = [[1, 2]] * 500
    assert evaluate(t.model, [*many, [3, 4]]) == evaluate(t.model, many)
    assert evaluate(t.model, [*many[1:], [3, 4]]) != evaluate(t.model, many)


def test_evaluation_of_a_model_that_diverged_is_an_error():
    t = trainer()
    t.model.params["wte.weight"][0][0] = math.nan
    with pytest.raises(ArithmeticError, match="loss is nan"):
        evaluate(t.model, t.windows)


def test_two_workers_compute_the_gradients_of_one():
    alone = trainer()
    shared = trainer(workers=2)
    for a, b in zip(alone, shared):
        assert b.loss == pytest.approx(a.loss, rel=1e-12)
    for name, x in alone.model.params.items():
        for row, other in zip(x, shared.model.params[name]):
            assert other == pytest.approx(row, rel=1e-9, abs=1e-9)
    assert shared.engine.executor is not None
    assert list(shared) == []
    assert shared.engine.executor is None  # its own pool is closed at the end


def test_same_seed_and_same_workers_give_the_same_bits_on_any_executor():
    runs = []
    for _ in range(2):
        t = trainer(workers=2)
        runs.append((losses_of(t), t.model.params))
    with ThreadPoolExecutor(2) as pool:
        t = trainer(Workers(TensorEngine(), 2, pool))
        runs.append((losses_of(t), t.model.params))
        assert t.engine.executor is pool
    assert runs[0] == runs[1] == runs[2]


class CountingPool(ThreadPoolExecutor):
    """Counts the jobs that it is given."""

    n_jobs = 0

    def submit(self, *args, **options):
        self.n_jobs += 1
        return super().submit(*args, **options)


def test_an_executor_is_used_with_one_worker_too():
    with CountingPool(1) as pool:
        t = trainer(Workers(TensorEngine(), 1, pool), steps=3)
        losses = losses_of(t)
        assert pool.n_jobs == 3
        assert t.engine.executor is pool
    assert losses == pytest.approx(losses_of(trainer(steps=3)), rel=1e-12)


def test_an_engine_that_is_given_is_used_whatever_the_config_says():
    engine = ValueEngine()
    assert trainer(engine, engine="tensor", workers=2).engine is engine


@pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(kind, on):
    t = trainer()
    engine = kind()
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        engine.gradients(t.model, t.batch(0))
        assert gc.isenabled() == on
        with pytest.raises(ValueError):
            engine.gradients(t.model, [[99, 0]])
        assert gc.isenabled() == on
    finally:
        (gc.enable if was_on else gc.disable)()


def test_a_loss_that_is_not_finite_stops_before_the_parameters_change():
    t = trainer()
    next(t)
    t.model.params["wte.weight"][0][0] = math.nan
    kept = repr(t.model.params)
    with pytest.raises(ArithmeticError, match="loss is nan at step 2.*lr"):
        for _ in range(4):
            next(t)
    assert repr(t.model.params) == kept
    assert t.step == 1


def test_no_documents_held_out():
    t = trainer(val_fraction=0, eval_every=1)
    assert len(t.documents) == len(DOCUMENTS)
    assert t.val_windows == []
    assert next(t).val_loss is None


def norms_of_updates(**options):
    """How far apart the first moments lie after a step: (1 - beta1) * gradient."""
    t = trainer(**options)
    next(t)
    return math.hypot(*flat(t.optimizer.m)) / (1 - t.optimizer.beta1)


def test_gradients_are_clipped_to_the_limit():
    whole = norms_of_updates(clip=0)
    assert norms_of_updates(clip=1e6) == whole
    assert norms_of_updates(clip=0.25) == pytest.approx(0.25)
    assert whole > 0.25


def test_the_learning_rate_and_decay_are_those_of_the_config():
    t = trainer(lr=0.5, warmup=3, weight_decay=0.25, steps=4)
    assert t.optimizer.weight_decay == 0.25
    rates = [step.learning_rate for step in t]
    assert rates == [learning_rate(step, 4, 0.5, 3) for step in range(4)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": True}, "steps is True"),
        ({"steps": 1.0}, "steps is 1.0.*a whole number"),
        ({"steps": 10**9 + 1}, "steps is 1000000001"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 10**5 + 1}, "batch_size is 100001"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": -1.0}, "lr is -1"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": 100.5}, "lr is 100.5.* from 0 to 100"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"lr": None}, "lr is None"),
        ({"warmup": -1}, "warmup is -1"),
        ({"warmup": 0.5}, "warmup is 0.5"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"clip": math.nan}, "clip is nan"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"val_fraction": -0.1}, "val_fraction is -0.1"),
        ({"eval_every": -1}, "eval_every is -1"),
        ({"engine": "gpu"}, "engine is 'gpu'.*tensor.*value"),
        ({"engine": None}, "engine is None"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 4}, "workers is 4.* to 3"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": "7"}, "seed is '7'"),
    ],
)
def test_impossible_training_is_refused_by_name_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"batch_size": 3, **change})


@pytest.mark.parametrize(
    "options",
    [
        {
            "steps": 1,
            "batch_size": 1,
            "lr": 0,
            "warmup": 0,
            "clip": 0,
            "seed": -(2**99),
        },
        {"steps": 10**9, "batch_size": 10**5, "lr": 100, "warmup": 10**9},
        {"val_fraction": 0, "weight_decay": 0, "eval_every": 0},
        {"val_fraction": 0.99, "weight_decay": 100, "clip": 10**9},
        {"workers": 3, "batch_size": 3, "engine": "value"},
    ],
)
def test_the_limits_of_the_options_are_within(options):
    config = TrainConfig(**options)
    for name, value in options.items():
        assert getattr(config, name) == value


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        TrainConfig().steps = 2
