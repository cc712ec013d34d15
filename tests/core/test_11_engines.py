"""Chapter 11: what an engine gives, and one that shares its work."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import close, flat, rows

from microgpt import (
    ENGINES,
    GPT,
    Config,
    FastAdamW,
    LayerValue,
    PackedGPT,
    Tensor,
    TensorEngine,
    Value,
    ValueEngine,
    Workers,
    cross_entropy,
    for_each,
    gradcheck,
    topological_order,
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


def test_engines_go_by_their_names():
    assert {name: kind.name for name, kind in ENGINES.items()} == {
        "tensor": "tensor",
        "value": "value",
    }
    assert ValueEngine().about() == "value engine"
    assert TensorEngine().about() == "tensor engine"
    assert TensorEngine().rate(12345.6) == "12,346 tokens/s"


def test_each_engine_computes_on_its_own_numbers():
    assert type(ValueEngine().convert([[1.0]])[0][0]) is Value
    assert type(TensorEngine().convert([[1.0]])) is Tensor
    assert type(TensorEngine().convert([1.0])) is Tensor
    for kind in ENGINES.values():
        assert type(kind().convert(1.0)) is Value  # a single number


@every_engine
@pytest.mark.parametrize("x", [3.0, [3.0, 4.0], [[3.0, 4.0], [5.0, 6.0]]])
def test_a_gradient_has_the_shape_of_its_parameter_even_if_it_is_zero(kind, x):
    engine = kind()
    assert engine.gradient(engine.convert(x)) == for_each(lambda number: 0.0, x)


@every_engine
def test_gradients_are_floats_and_leave_the_model_as_it_was(small_model, kind):
    kept = repr(small_model.params)
    loss, gradients = kind().gradients(small_model, BATCH)
    assert type(loss) is float
    assert list(gradients) == list(small_model.params)
    for name, x in small_model.params.items():
        assert len(gradients[name]) == len(x)
        assert len(flat(gradients[name])) == len(flat(x))
    assert repr(small_model.params) == kept


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


@every_engine
def test_the_norm_is_the_length_of_all_gradients_as_one_vector(kind):
    gradients = {"w": rows(3, 4), "b": rows(1, 5)[0]}
    length = math.sqrt(sum(x * x for x in flat(gradients)))
    assert kind().norm(gradients) == pytest.approx(length, rel=1e-14)
    assert kind().norm({"w": [[3e200]], "b": [4e200]}) == pytest.approx(5e200)


def test_a_graph_of_tensors_has_a_node_for_each_layer(small_model):
    """10 in each block and 6 around them: 16 for one block, as chapter 9 says."""
    sizes = []
    for n_layer in (1, 2, 3):
        model = GPT(Config(vocab_size=5, block_size=4, n_layer=n_layer))
        params = {name: Tensor(x) for name, x in model.params.items()}
        loss = PackedGPT(model.config, params).loss(BATCH)
        assert type(loss) is LayerValue
        sizes.append(len(topological_order(loss)))
    assert sizes == [16, 26, 36]


# --- gradcheck ------------------------------------------------------------------------


@every_engine
def test_gradcheck_nudges_every_number_of_every_parameter(kind):
    seen = set()

    def loss(p):
        seen.add(tuple(flat([list(p["x"][0]), list(p["x"][1]), p["a"]])))
        return cross_entropy(p["x"], [0, 1]) * p["a"]

    x = [[1.0, 2.0], [3.0, 4.0]]
    gradcheck(loss, {"x": x, "a": 5.0}, kind(), step=0.5, tolerance=1)
    point = (1.0, 2.0, 3.0, 4.0, 5.0)
    expected = {point}
    for i in range(5):
        for nudge in (0.5, -0.5):
            expected.add((*point[:i], point[i] + nudge, *point[i + 1 :]))
    assert seen == expected


@every_engine
@pytest.mark.parametrize("place", [(0, 1), (1, 0)])
def test_gradcheck_finds_a_wrong_derivative_in_any_place(kind, place):
    r, i = place

    def wrong(p):
        number = p["x"][r][i]
        return cross_entropy(p["x"], [0, 1]) + Value(number.data, (number,), (0.9,))

    with pytest.raises(ArithmeticError, match=rf"^x\[{r}\]\[{i}\]: "):
        gradcheck(wrong, {"x": rows(2, 2)}, kind())


def test_gradcheck_on_tensors_finds_a_rule_that_is_wrong():
    def wrong_square(x):
        def square_rule(dy):
            return [[[3 * d * a for d, a in zip(*pair)] for pair in zip(dy, x.data)]]

        return Tensor([[a * a for a in row] for row in x.data], [x], square_rule)

    def loss(p):
        return cross_entropy(wrong_square(p["x"]), [0])

    with pytest.raises(ArithmeticError, match=r"^x\[0\]\[0\]: "):
        gradcheck(loss, {"x": [[1.0, 2.0]]}, TensorEngine())


# --- Workers --------------------------------------------------------------------------


@every_engine
@pytest.mark.parametrize("n_workers", [1, 2, 3, 4, 7])
def test_workers_compute_the_loss_and_gradients_of_one_engine(
    small_model, pool, kind, n_workers
):
    loss, gradients = kind().gradients(small_model, BATCH)
    workers = Workers(kind(), n_workers, pool)
    shared_loss, shared_gradients = workers.gradients(small_model, BATCH)
    assert shared_loss == pytest.approx(loss, rel=1e-12)
    assert list(shared_gradients) == list(gradients)
    for name, gradient in gradients.items():
        assert flat(shared_gradients[name]) == close(gradient)


class RecordingEngine(TensorEngine):
    """Keeps the batches that it is given."""

    def __init__(self):
        self.batches = []

    def gradients(self, model, batch):
        self.batches.append(batch)
        return super().gradients(model, batch)


@pytest.mark.parametrize("n_workers, n_parts", [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_each_window_goes_to_one_worker_and_none_goes_without(
    small_model, pool, n_workers, n_parts
):
    engine = RecordingEngine()
    Workers(engine, n_workers, pool).gradients(small_model, BATCH)
    assert len(engine.batches) == n_parts
    assert min(map(len, engine.batches)) >= 1
    assert sorted(sum(engine.batches, [])) == sorted(BATCH)


def test_workers_go_by_the_name_of_their_engine(pool):
    assert Workers(ValueEngine(), 2, pool).name == "value"
    assert Workers(TensorEngine(), 2, pool).about() == "tensor engine"


def test_workers_start_processes_when_needed_and_end_them(small_model):
    workers = Workers(TensorEngine(), 2)
    workers.close()  # nothing to end yet
    assert workers.executor is None
    loss, _ = workers.gradients(small_model, BATCH)
    own = workers.executor
    assert loss == pytest.approx(small_model.loss(BATCH), rel=1e-12)
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


def test_an_error_in_a_worker_arrives(small_model):
    workers = Workers(TensorEngine(), 2)
    try:
        with pytest.raises(ValueError, match="99 is not in 0 to 4"):
            workers.gradients(small_model, [[0, 1], [99, 0]])
    finally:
        workers.close()
