"""Chapter 11: what an engine gives, gradcheck, and engines that share their work."""

import gc
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import close, defaults, flat, row, rows

from microgpt import (
    ENGINES,
    GPT,
    Config,
    FastAdamW,
    Tensor,
    TensorEngine,
    Value,
    ValueEngine,
    Workers,
    cross_entropy,
    for_each,
    gradcheck,
)

every_engine = pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)
BATCH = [[4, 0, 1, 2, 4], [4, 3], [4, 4], [1, 0, 2]]


@pytest.fixture(scope="module")
def small_model():
    return GPT(Config(vocab_size=5, block_size=4, n_layer=2, n_head=2, n_embd=4))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.mark.parametrize(
    "name, kind, kinds_of_numbers",
    [("value", ValueEngine, (Value, list)), ("tensor", TensorEngine, (Value, Tensor))],
)
def test_an_engine_computes_on_its_own_numbers(name, kind, kinds_of_numbers):
    engine = kind()
    assert ENGINES[name] is kind
    assert (engine.name, engine.about(), engine.leads) == (name, f"{name} engine", True)
    assert engine.rate(12345.6) == "12,346 tokens/s"
    of_one, of_many = kinds_of_numbers
    for x in (3.0, [3.0, 4.0], [[3.0, 4.0], [5.0, 6.0]]):
        nodes = engine.convert(x)
        assert type(nodes) is (of_one if x == 3.0 else of_many)
        assert engine.gradient(nodes) == for_each(lambda number: 0.0, x)


@every_engine
def test_gradients_are_floats_and_leave_model_and_garbage_collector_alone(
    small_model, kind
):
    kept = repr(small_model.params)
    was_on = gc.isenabled()
    try:
        for on in (True, False):
            (gc.enable if on else gc.disable)()
            loss, gradients = kind().gradients(small_model, BATCH)
            assert gc.isenabled() == on
            with pytest.raises(ValueError):
                kind().gradients(small_model, [[99, 0]])
            assert gc.isenabled() == on
    finally:
        (gc.enable if was_on else gc.disable)()
    assert type(loss) is float
    assert {name: len(x) for name, x in gradients.items()} == {
        name: len(x) for name, x in small_model.params.items()
    }
    assert repr(small_model.params) == kept


def test_a_network_of_ones_own_is_trained_as_it_is(small_model):
    class Doubled(GPT):
        def loss(self, windows):
            return super().loss(windows) * 2

    double = Doubled(small_model.config, small_model.params)
    for kind in ENGINES.values():
        loss, _ = kind().gradients(double, BATCH)
        assert loss == pytest.approx(2 * small_model.loss(BATCH))


@every_engine
def test_an_engine_makes_the_model_and_optimizer_that_train(kind):
    config = Config(vocab_size=5)
    engine = kind()
    model = engine.new_model(config, seed=3)
    assert model.params == GPT(config, seed=3).params
    assert engine.prepare(model) is model
    optimizer = engine.optimizer(model, weight_decay=0.25)
    assert type(optimizer) is FastAdamW
    assert optimizer.params is model.params
    assert optimizer.weight_decay == 0.25


@pytest.mark.parametrize(
    "engine", [*(k() for k in ENGINES.values()), Workers(ValueEngine(), 2)]
)
def test_the_norm_is_the_length_of_all_gradients_as_one_vector(engine):
    gradients = {"w": rows(3, 4), "b": row(5)}
    length = math.sqrt(sum(x * x for x in flat(gradients)))
    assert engine.norm(gradients) == pytest.approx(length, rel=1e-14)
    assert engine.norm({"w": [[3e200]], "b": [4e200]}) == pytest.approx(5e200)


# --- gradcheck ---


@every_engine
def test_gradcheck_nudges_every_number_of_every_parameter_and_puts_it_back(kind):
    seen = set()

    def loss(p):
        seen.add(tuple(flat([list(p["x"][0]), list(p["x"][1]), p["a"]])))
        return cross_entropy(p["x"], [0, 1]) * p["a"]

    params = {"x": [[1.0, 2.0], [3.0, 4.0]], "a": 5.0}
    gradcheck(loss, params, kind(), step=0.5, tolerance=1)
    point = (1.0, 2.0, 3.0, 4.0, 5.0)
    assert tuple(flat(params)) == point
    expected = {point}
    for i in range(5):
        for nudge in (0.5, -0.5):
            expected.add((*point[:i], point[i] + nudge, *point[i + 1 :]))
    assert seen == expected


@every_engine
@pytest.mark.parametrize(
    "claimed, said", [(2.0, r"2\.0.*(3\.0|2\.99)"), (math.nan, "nan")]
)
@pytest.mark.parametrize("r, i", [(0, 1), (1, 0)])
def test_gradcheck_names_the_number_that_is_off(kind, claimed, said, r, i):
    def wrong(p):  # 3 x, but it claims another slope
        number = p["x"][r][i]
        return Value(3 * number.data, (number,), (claimed,)) + p["ok"]

    with pytest.raises(ArithmeticError, match=rf"^x\[{r}\]\[{i}\]: .*{said}"):
        gradcheck(wrong, {"ok": 1.0, "x": rows(2, 2)}, kind())


def test_gradcheck_returns_the_largest_difference():
    def slightly_wrong(p):  # by 4e-8 of 4
        return p["a"] * 2 + Value(4 * p["b"].data, (p["b"],), (4 + 4e-8,))

    params = {"a": 1.0, "b": 1.0}
    assert gradcheck(slightly_wrong, params) == pytest.approx(1e-8, rel=0.01)
    with pytest.raises(ArithmeticError, match="^b: "):
        gradcheck(slightly_wrong, params, tolerance=5e-9)
    usual = {"engine": None, "step": 1e-5, "tolerance": 1e-6}
    assert defaults(gradcheck) == usual


# --- Workers ---


class RecordingEngine(ValueEngine):
    """Keeps the batches that it is given."""

    def __init__(self, engine):
        self.engine = engine
        self.batches = []

    def gradients(self, model, batch):
        self.batches.append(batch)
        return self.engine.gradients(model, batch)


@every_engine
@pytest.mark.parametrize("n_workers, n_parts", [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_workers_share_the_windows_and_compute_what_one_engine_does(
    small_model, pool, kind, n_workers, n_parts
):
    loss, gradients = kind().gradients(small_model, BATCH)
    engine = RecordingEngine(kind())
    workers = Workers(engine, n_workers, pool)
    shared_loss, shared_gradients = workers.gradients(small_model, BATCH)
    assert shared_loss == pytest.approx(loss, rel=1e-12)
    assert list(shared_gradients) == list(gradients)
    assert flat(shared_gradients) == close(gradients)
    assert len(engine.batches) == n_parts
    assert min(map(len, engine.batches)) >= 1
    assert sorted(sum(engine.batches, [])) == sorted(BATCH)


def test_workers_start_processes_when_needed_and_end_them(small_model):
    workers = Workers(TensorEngine(), 2)
    assert (workers.name, workers.about()) == ("tensor", "tensor engine")
    workers.close()  # nothing to end yet
    assert workers.executor is None
    loss, _ = workers.gradients(small_model, BATCH)
    own = workers.executor
    assert loss == pytest.approx(small_model.loss(BATCH), rel=1e-12)
    with pytest.raises(ValueError, match="99 is not in 0 to 4"):
        workers.gradients(small_model, [[0, 1], [99, 0]])
    workers.close()
    assert workers.executor is None
    with pytest.raises(RuntimeError):
        own.submit(print)
    workers.gradients(small_model, BATCH)  # it can start again
    workers.close()


def test_workers_do_not_end_an_executor_that_they_were_given(small_model, pool):
    workers = Workers(TensorEngine(), 2, pool)
    workers.gradients(small_model, BATCH)
    workers.close()
    assert workers.executor is pool
    assert pool.submit(abs, -1).result() == 1
