"""Chapter 5: the model. Chapter 10: the same, with several windows packed."""

import inspect
import math
import re

import pytest
from helpers import close, flat
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import (
    ENGINES,
    GPT,
    CachedGPT,
    Config,
    PackedGPT,
    Tensor,
    Value,
    for_each,
    gradcheck,
    parameter_count,
    parameter_shapes,
)

every_engine = pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)


@st.composite
def models_and_batches(draw):
    n_head = draw(st.integers(1, 3))
    config = Config(
        vocab_size=draw(st.integers(1, 6)),
        block_size=draw(st.integers(1, 6)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(1, 4)),
    )
    tokens = st.integers(0, config.vocab_size - 1)
    window = st.lists(tokens, min_size=2, max_size=config.block_size + 1)
    model = GPT(config, seed=draw(st.integers(0, 999)))
    return model, draw(st.lists(window, min_size=1, max_size=4))


@settings(max_examples=40, deadline=None)
@given(models_and_batches())
def test_the_engines_agree_on_loss_and_all_gradients_to_1e_12(model_and_batch):
    model, batch = model_and_batch
    loss, gradients = ENGINES["value"]().gradients(model, batch)
    fused_loss, fused_gradients = ENGINES["tensor"]().gradients(model, batch)
    assert model.loss(batch) == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert fused_loss == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert list(fused_gradients) == list(gradients) == list(model.params)
    for name in gradients:
        assert flat(fused_gradients[name]) == close(gradients[name]), name


@every_engine
@pytest.mark.parametrize("kind_of_gpt", [GPT, PackedGPT])
def test_all_derivatives_of_a_whole_model_equal_finite_differences(kind_of_gpt, kind):
    config = Config(vocab_size=3, block_size=3, n_layer=2, n_head=2, n_embd=2)
    model = GPT(config, seed=1)
    batch = [[2, 0, 1, 2], [1, 1]]

    def loss(params):
        return kind_of_gpt(config, params).loss(batch)

    gradcheck(loss, model.params, kind())


def test_a_batch_is_the_mean_over_its_predictions():
    model = GPT(Config(vocab_size=5), seed=3)
    a = [4, 0, 1, 2, 4]
    b = [4, 3]
    mean = (4 * model.loss([a]) + model.loss([b])) / 5
    assert model.loss([a, b]) == pytest.approx(mean, rel=1e-13)


def test_packed_windows_get_the_logits_that_they_get_alone():
    model = GPT(Config(vocab_size=5, n_layer=2), seed=3)
    alone = model([4, 0, 1]) + model([4, 3])
    packed = PackedGPT(model.config, model.params)
    packed.lengths = [3, 2]
    assert flat(packed([4, 0, 1, 4, 3])) == close(alone, 1e-13)


def test_after_a_loss_a_packed_model_reads_single_windows_again():
    model = GPT(Config(vocab_size=5, n_layer=2), seed=3)
    packed = PackedGPT(model.config, model.params)
    packed.loss([[4, 0, 1], [4, 3, 2, 1]])
    assert flat(packed([4, 0, 1, 2, 3])) == close(model([4, 0, 1, 2, 3]), 1e-13)


@settings(max_examples=40, deadline=None)
@given(models_and_batches())
def test_packed_and_plain_models_have_the_same_loss_and_gradients(model_and_batch):
    model, batch = model_and_batch
    packed = PackedGPT(model.config, model.params)
    assert packed.loss(batch) == pytest.approx(model.loss(batch), rel=1e-12, abs=1e-12)
    assert packed.loss(batch[:1]) == pytest.approx(model.loss(batch[:1]), abs=1e-12)
    for kind in ENGINES.values():
        engine = kind()
        gradients = []
        for kind_of_gpt in GPT, PackedGPT:
            params = {name: engine.convert(x) for name, x in model.params.items()}
            kind_of_gpt(model.config, params).loss(batch).backward()
            gradients.append({name: engine.gradient(x) for name, x in params.items()})
        assert flat(gradients[0]) == close(gradients[1])


def test_parameters_have_gpt2_names_shapes_and_count():
    config = Config(
        vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768
    )
    shapes = parameter_shapes(config)
    n_parameters = sum(math.prod(shape) for shape in shapes.values())
    assert n_parameters == 124_439_808  # GPT-2 small
    assert shapes["h.11.attn.c_attn.weight"] == (2304, 768)
    assert shapes["h.0.mlp.c_proj.bias"] == (768,)
    assert list(shapes)[:2] == ["wte.weight", "wpe.weight"]
    assert list(shapes)[-1] == "ln_f.bias"


def test_a_model_has_the_parameters_that_its_shapes_tell_of():
    model = GPT(Config(vocab_size=5, n_layer=2))
    shapes = {}
    for name, x in model.params.items():
        shapes[name] = (len(x), len(x[0])) if isinstance(x[0], list) else (len(x),)
    assert parameter_shapes(model.config) == shapes
    whole = parameter_count(model.config)
    assert whole == len(flat(model.params))
    parts = ("wte", "wpe", "attn", "mlp", "ln_")
    assert sum(parameter_count(model.config, part) for part in parts) == whole
    first_block = parameter_count(model.config, "h.0.")
    assert first_block == parameter_count(model.config, "h.1.") > 0


def test_the_comments_in_parameter_shapes_count_right():
    source = inspect.getsource(parameter_shapes)
    names = re.findall(r'\[f?"([^"]+)"\] = .*: [\d,]+$', source, re.M)
    counts = re.findall(r" = .*: ([\d,]+)$", source, re.M)
    config = Config(27)
    assert len(names) == 9
    for name, count in zip(names, counts):
        name = name.replace("{i}", "0")
        assert parameter_count(config, name) == int(count.replace(",", "")), name
    assert parameter_count(config) == 4000


def test_initial_weights_have_gpt2_deviation_at_gpt2_width():
    def deviation(config, name):
        numbers = flat(GPT(config, seed=0).params[name])
        return math.sqrt(sum(x * x for x in numbers) / len(numbers))

    config = Config(40, n_embd=768)
    assert deviation(config, "wte.weight") == pytest.approx(0.02, rel=0.02)
    config = Config(100, n_embd=48, n_layer=2)
    assert deviation(config, "h.0.mlp.c_fc.weight") == pytest.approx(0.08, rel=0.03)
    assert deviation(config, "h.0.mlp.c_proj.weight") == pytest.approx(0.04, rel=0.03)
    config = Config(2, block_size=100, n_embd=48)
    assert deviation(config, "wpe.weight") == pytest.approx(0.04, rel=0.04)


def test_gains_start_at_1_and_biases_at_0():
    for name, x in GPT(Config(vocab_size=5)).params.items():
        if name.endswith("bias"):
            assert set(x) == {0.0}, name
        elif ".ln_" in f".{name}":
            assert set(x) == {1.0}, name


def test_the_seed_decides_the_model():
    config = Config(vocab_size=5)
    assert GPT(config, seed=1).params == GPT(config, seed=1).params
    assert GPT(config, seed=1).params != GPT(config, seed=2).params


def test_an_untrained_model_knows_about_nothing():
    model = GPT(Config(vocab_size=27), seed=0)
    assert model.loss([[26, 4, 12, 12, 0, 26]]) == pytest.approx(math.log(27), abs=0.6)


def test_a_model_does_not_see_the_future():
    model = GPT(Config(vocab_size=5, n_layer=2), seed=3)
    whole = model([4, 0, 1, 2])
    for n in range(1, 4):
        assert flat(model([4, 0, 1, 2][:n])) == close(whole[:n])


def test_a_model_tells_orders_apart():
    model = GPT(Config(vocab_size=5), seed=3)
    assert model([0, 1, 2])[-1] != model([1, 0, 2])[-1]


@every_engine
def test_converting_leaves_the_floats_alone(kind):
    model = GPT(Config(vocab_size=3))
    before = flat(model.params)
    engine = kind()
    params = {name: engine.convert(x) for name, x in model.params.items()}
    GPT(model.config, params).loss([[0, 1, 2]]).backward()
    assert flat(model.params) == before


def test_convert_applies_a_function_to_every_number():
    model = GPT(Config(vocab_size=3, n_embd=4))
    doubled = model.convert((2.0).__mul__)
    assert flat(doubled.params) == [2 * x for x in flat(model.params)]
    assert doubled.config == model.config
    on_values = model.convert(Value)
    assert type(on_values.params["wte.weight"][0][0]) is Value
    assert type(on_values.params["ln_f.bias"][0]) is Value


def test_for_each_keeps_the_shape():
    assert for_each(str, [[1, (2, 3)], 4]) == [["1", ["2", "3"]], "4"]
    assert for_each(str, 1) == "1"


@pytest.mark.parametrize("missing", parameter_shapes(Config(3, n_layer=2)))
@pytest.mark.parametrize("kind_of_gpt", [GPT, PackedGPT])
def test_a_missing_parameter_is_refused_by_its_name(kind_of_gpt, missing):
    config = Config(3, n_layer=2)
    params = GPT(config).params
    del params[missing]
    with pytest.raises(ValueError, match=re.escape(missing)):
        kind_of_gpt(config, params)


def test_the_parameters_of_fewer_blocks_are_refused():
    params = GPT(Config(3, n_layer=1)).params
    with pytest.raises(ValueError, match=r"h\.1\.ln_1\.weight"):
        GPT(Config(3, n_layer=2), params)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"block_size": -1}, "block_size is -1"),
        ({"n_layer": 1.5}, "n_layer is 1.5"),
        ({"n_layer": 1000}, "n_layer is 1000"),
        ({"n_head": True}, "n_head is True"),
        ({"n_embd": "16"}, "n_embd is '16'"),
        ({"n_embd": 10**7}, "n_embd is 10000000"),
        ({"n_embd": 10}, "n_embd is 10.*n_head.*4.*try 12"),
        ({"n_embd": 3}, "n_embd is 3.*n_head.*4.*try 4"),
    ],
)
def test_impossible_shapes_are_refused_by_name_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"vocab_size": 5, **change})


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        Config(vocab_size=5).n_layer = 2


def test_positions_beyond_the_block_are_refused():
    model = GPT(Config(vocab_size=3, block_size=4))
    with pytest.raises(ValueError, match="4 is not in 0 to 3: no token or position"):
        model([0, 1, 2, 0, 1])
    reader = CachedGPT(model)
    reader([0, 1, 2, 0])
    with pytest.raises(ValueError, match="4 is not in 0 to 3"):
        reader([1])
    with pytest.raises(ValueError, match="4 is not in 0 to 3"):
        PackedGPT(model.config, model.params).loss([[0, 1], [0, 1, 2, 0, 1, 2]])


@pytest.mark.parametrize("tokens", [[3], [-1]])
@pytest.mark.parametrize(
    "convert", [list, *(kind().convert for kind in ENGINES.values())]
)
def test_ids_outside_the_vocabulary_are_refused(tokens, convert):
    model = GPT(Config(vocab_size=3))
    params = {name: convert(x) for name, x in model.params.items()}
    message = f"{tokens[0]} is not in 0 to 2: no token or position"
    with pytest.raises(ValueError, match=message):
        GPT(model.config, params)(tokens)


@pytest.mark.parametrize("kind_of_gpt", [GPT, PackedGPT])
def test_parameters_may_be_tensors(kind_of_gpt):
    model = GPT(Config(vocab_size=3))
    params = {name: Tensor(x) for name, x in model.params.items()}
    loss = kind_of_gpt(model.config, params).loss([[0, 1, 2]])
    assert isinstance(loss, Value)
    assert float(loss) == pytest.approx(model.loss([[0, 1, 2]]), rel=1e-12)
