"""Chapter 5: the model."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import (
    GPT,
    Config,
    Tensor,
    Value,
    batch_gradients,
    gradcheck,
    parameter_count,
    parameter_shapes,
)


def flat(x):
    return (
        [y for item in x for y in flat(item)] if isinstance(x, (list, tuple)) else [x]
    )


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
    loss, grads = batch_gradients(model, batch, "value")
    fused_loss, fused_grads = batch_gradients(model, batch, "tensor")
    assert model.loss(batch) == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert fused_loss == pytest.approx(loss, rel=1e-12, abs=1e-12)
    for name in grads:
        expected = pytest.approx(flat(grads[name]), rel=1e-12, abs=1e-12)
        assert flat(fused_grads[name]) == expected, name


@pytest.mark.parametrize("number", [Value, Tensor])
def test_all_derivatives_of_a_whole_model_equal_finite_differences(number):
    config = Config(vocab_size=3, block_size=3, n_layer=2, n_head=2, n_embd=2)
    model = GPT(config, seed=1)
    batch = [[2, 0, 1, 2], [1, 1]]
    gradcheck(lambda params: GPT(config, params).loss(batch), model.params, number)


def test_a_batch_is_the_mean_over_its_predictions():
    model = GPT(Config(vocab_size=5), seed=3)
    a, b = [4, 0, 1, 2, 4], [4, 3]
    mean = (4 * model.loss([a]) + model.loss([b])) / 5
    assert model.loss([a, b]) == pytest.approx(mean, rel=1e-13)


def test_packed_windows_get_the_logits_that_they_get_alone():
    model = GPT(Config(vocab_size=5, n_layer=2), seed=3)
    alone = model([4, 0, 1]) + model([4, 3])
    packed = model([4, 0, 1, 4, 3], [0, 1, 2, 0, 1])
    assert flat(packed) == pytest.approx(flat(alone), rel=1e-13)


def test_parameters_have_gpt2_names_shapes_and_count():
    config = Config(
        vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768
    )
    shapes = parameter_shapes(config)
    assert (
        sum(math.prod(shape) for shape in shapes.values()) == 124_439_808
    )  # GPT-2 small
    assert shapes["h.11.attn.c_attn.weight"] == (2304, 768)
    assert shapes["h.0.mlp.c_proj.bias"] == (768,)
    assert (
        list(shapes)[:2] == ["wte.weight", "wpe.weight"]
        and list(shapes)[-1] == "ln_f.bias"
    )
    model = GPT(Config(vocab_size=5, n_layer=2))
    assert parameter_shapes(model.config) == {
        name: (len(x), len(x[0])) if isinstance(x[0], list) else (len(x),)
        for name, x in model.params.items()
    }
    assert parameter_count(model.config) == len(flat(list(model.params.values())))
    parts = ("wte", "wpe", "attn", "mlp", "ln_")
    whole = parameter_count(model.config)
    assert sum(parameter_count(model.config, part) for part in parts) == whole
    assert (
        parameter_count(model.config, "h.0.")
        == parameter_count(model.config, "h.1.")
        > 0
    )


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


def test_the_seed_decides_the_model():
    config = Config(vocab_size=5)
    assert GPT(config, seed=1).params == GPT(config, seed=1).params
    assert GPT(config, seed=1).params != GPT(config, seed=2).params


def test_an_untrained_model_knows_about_nothing():
    model = GPT(Config(vocab_size=27), seed=0)
    assert model.loss([[26, 4, 12, 12, 0, 26]]) == pytest.approx(math.log(27), abs=0.6)


def test_lifting_leaves_the_floats_alone():
    model = GPT(Config(vocab_size=3))
    before = flat(model.params["wte.weight"])
    for number in (Value, Tensor):
        lifted = model.lift(number)
        lifted.loss([[0, 1, 2]]).backward()
    assert flat(model.params["wte.weight"]) == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"block_size": -1}, "block_size is -1"),
        ({"n_layer": 1.5}, "n_layer is 1.5"),
        ({"n_head": True}, "n_head is True"),
        ({"n_embd": "16"}, "n_embd is '16'"),
        ({"n_embd": 10**7}, "n_embd is 10000000"),
        ({"n_embd": 10}, "n_embd is 10.*n_head.*4.*try 12"),
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
    cache = model.new_cache()
    model([0, 1, 2, 0], cache=cache)
    with pytest.raises(ValueError, match="4 is not in 0 to 3"):
        model([1], cache=cache)


@pytest.mark.parametrize("tokens", [[3], [-1]])
@pytest.mark.parametrize("number", [None, Value, Tensor])
def test_ids_outside_the_vocabulary_are_refused(tokens, number):
    model = GPT(Config(vocab_size=3))
    model = model.lift(number) if number else model
    with pytest.raises(
        ValueError, match=f"{tokens[0]} is not in 0 to 2: no token or position"
    ):
        model(tokens)
