"""Chapter 5: the model, its shapes, and its first parameters."""

import inspect
import math
import re
from dataclasses import replace

import pytest
from helpers import close, defaults, flat

from microgpt import (
    GPT,
    CachedGPT,
    Config,
    PackedGPT,
    TensorEngine,
    Value,
    ValueEngine,
    add,
    embedding,
    for_each,
    gradcheck,
    layernorm,
    linear,
    parameter_count,
    parameter_shapes,
    zeros_like,
)

GPT2_SMALL = Config(50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)


@pytest.fixture(scope="module")
def two_blocks():
    return GPT(Config(vocab_size=5, n_layer=2), seed=3)


# --- the forward pass ---


@pytest.mark.parametrize(
    "kind_of_gpt, engine", [(GPT, ValueEngine()), (PackedGPT, TensorEngine())]
)
def test_all_derivatives_of_a_whole_model_equal_finite_differences(kind_of_gpt, engine):
    config = Config(vocab_size=3, block_size=3, n_layer=2, n_head=2, n_embd=2)

    def loss(params):
        return kind_of_gpt(config, params).loss([[2, 0, 1, 2], [1, 1]])

    gradcheck(loss, GPT(config, seed=1).params, engine)


def test_a_batch_is_the_mean_over_its_predictions(two_blocks):
    a = [4, 0, 1, 2, 4]
    b = [4, 3]
    mean = (4 * two_blocks.loss([a]) + two_blocks.loss([b])) / 5
    assert two_blocks.loss([a, b]) == pytest.approx(mean, rel=1e-13)


def test_a_model_sees_the_past_in_its_order_and_not_the_future(two_blocks):
    whole = two_blocks([4, 0, 1, 2])
    for n in range(1, 4):
        assert flat(two_blocks([4, 0, 1, 2][:n])) == close(whole[:n])
    assert two_blocks([0, 4, 1, 2])[-1] != close(whole[-1], 1e-3)


def test_a_block_adds_to_the_rows_what_its_last_layers_make(two_blocks):
    silent = GPT(two_blocks.config, dict(two_blocks.params))
    for name, x in silent.params.items():
        if "c_proj" in name:
            silent.params[name] = zeros_like(x)
    p = silent.params
    x = add(embedding(p["wte.weight"], [4, 0]), embedding(p["wpe.weight"], [0, 1]))
    x = layernorm(x, p["ln_f.weight"], p["ln_f.bias"])
    assert flat(silent([4, 0])) == close(linear(x, p["wte.weight"]))


@pytest.mark.parametrize("kind", [GPT, PackedGPT, CachedGPT])
def test_tokens_and_positions_that_are_not_there_are_refused(kind):
    model = GPT(Config(vocab_size=3, block_size=4))
    model = kind(model) if kind is CachedGPT else kind(model.config, model.params)
    for tokens, problem in ([3], "3 is not in 0 to 2"), ([-1], "-1 is not in 0 to 2"):
        with pytest.raises(ValueError, match=problem):
            model(tokens)
    with pytest.raises(ValueError, match="4 is not in 0 to 3: no token or position"):
        model([0, 1, 2, 0, 1])


# --- shapes ---


def test_parameters_have_gpt2_names_shapes_and_count():
    shapes = parameter_shapes(GPT2_SMALL)
    assert sum(math.prod(shape) for shape in shapes.values()) == 124_439_808
    assert shapes["h.11.attn.c_attn.weight"] == (2304, 768)
    assert shapes["h.0.mlp.c_proj.weight"] == (768, 3072)
    assert shapes["h.0.mlp.c_proj.bias"] == (768,)
    assert list(shapes)[:2] == ["wte.weight", "wpe.weight"]
    assert list(shapes)[-1] == "ln_f.bias"


def test_a_model_has_the_parameters_that_its_shapes_tell_of(two_blocks):
    shapes = {}
    for name, x in two_blocks.params.items():
        shapes[name] = (len(x), len(x[0])) if isinstance(x[0], list) else (len(x),)
    config = two_blocks.config
    assert parameter_shapes(config) == shapes
    assert parameter_count(config) == len(flat(two_blocks.params))
    parts = ("wte", "wpe", "ln_f", "h.0.", "h.1.")
    counts = [parameter_count(config, part) for part in parts]
    assert counts == [80, 256, 32, 3280, 3280] and sum(counts) == 6928


def test_the_comments_in_parameter_shapes_count_right():
    source = inspect.getsource(parameter_shapes)
    comments = re.findall(r'\[f?"([^"]+)"\] = .*: ([\d,]+)$', source, re.MULTILINE)
    assert len(comments) == 9
    for name, count in comments:
        name = name.replace("{i}", "0")
        assert f"{parameter_count(Config(27), name):,}" == count, name
    assert parameter_count(Config(27)) == 4000


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"block_size": -1}, "block_size is -1"),
        ({"n_layer": 1.5}, "n_layer is 1.5"),
        ({"n_layer": 1000}, "n_layer is 1000.*from 1 to 999"),
        ({"n_head": True}, "n_head is True"),
        ({"n_embd": "16"}, "n_embd is '16'"),
        ({"n_embd": 10**6 + 4}, "n_embd is 1000004.*from 1 to 1000000"),
        ({"n_embd": 10}, "n_embd is 10.*n_head.*4.*try 12"),
        ({"n_embd": 3}, "n_embd is 3.*n_head.*4.*try 4"),
    ],
)
def test_impossible_shapes_are_refused_by_name_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"vocab_size": 5, **change})


def test_a_config_has_limits_and_defaults_and_cannot_be_changed():
    Config(1, 1, 1, 1, 1)
    Config(10**6, 10**6, 999, 10**6, 10**6)
    small = {"block_size": 16, "n_layer": 1, "n_head": 4, "n_embd": 16}
    small["tie_word_embeddings"] = True
    assert defaults(Config) == small
    with pytest.raises(AttributeError):
        GPT2_SMALL.n_layer = 2


def test_an_untied_head_is_a_table_of_its_own():
    tied = GPT(Config(5, 4, 1, 2, 4), seed=3)
    config = replace(tied.config, tie_word_embeddings=False)
    head = [[2 * x for x in row] for row in tied.params["wte.weight"]]
    untied = GPT(config, {**tied.params, "lm_head.weight": head})
    tokens = [4, 0, 3]
    assert flat(untied(tokens)) == close([[2 * x for x in row] for row in tied(tokens)])
    assert GPT(config, seed=3).params.keys() == untied.params.keys()
    for engine in (ValueEngine(), TensorEngine()):

        def loss(params):
            return GPT(config, params).loss([[4, 0, 3, 1], [4, 4]])

        assert gradcheck(loss, untied.params, engine) < 1e-7


@pytest.mark.parametrize(
    "name, x, says",
    [
        ("wte.weight", None, "wte.weight is missing: must be (5, 4)"),
        ("wte.weight", [[0.0] * 4] * 4, "wte.weight is (4, 4): must be (5, 4)"),
        ("ln_f.bias", [[0.0] * 4], "ln_f.bias is (1, 4): must be (4,)"),
        (
            "h.0.attn.c_attn.bias",
            [0.0] * 4,
            "h.0.attn.c_attn.bias is (4,): must be (12,)",
        ),
        (
            "lm_head.weight",
            [[0.0] * 4] * 5,
            "lm_head.weight is (5, 4): must be left out",
        ),
    ],
)
def test_parameters_of_other_names_or_shapes_are_refused(name, x, says):
    model = GPT(Config(5, 4, 1, 2, 4))
    params = {**model.params, name: x}
    if x is None:
        del params[name]
    for kind in (GPT, PackedGPT):
        with pytest.raises(ValueError, match=re.escape(says)):
            kind(model.config, params)


# --- parameters ---


@pytest.mark.parametrize(
    "name, expected, config",
    [
        ("wte.weight", 0.02, Config(40, n_head=1, n_embd=768)),
        ("wte.weight", 0.08, Config(800, n_embd=48)),
        ("wpe.weight", 0.04, Config(2, 800, n_embd=48)),
        ("h.1.mlp.c_fc.weight", 0.08, Config(2, n_layer=2, n_embd=48)),
        ("h.1.mlp.c_proj.weight", 0.04, Config(2, n_layer=2, n_embd=48)),
        ("h.0.attn.c_proj.weight", 0.04, Config(2, n_layer=2, n_embd=48)),
    ],
)
def test_weights_start_with_gpt2s_deviation_at_gpt2s_width(
    name, expected, config, monkeypatch
):
    kept = {"wte.weight": (config.vocab_size, config.n_embd)}
    kept[name] = parameter_shapes(config)[name]
    monkeypatch.setattr("microgpt.parameter_shapes", lambda config: kept)
    numbers = flat(GPT(config).params[name])
    deviation = math.sqrt(sum(x * x for x in numbers) / len(numbers))
    assert deviation == pytest.approx(expected, rel=0.04)


def test_gains_start_at_1_and_biases_at_0(two_blocks):
    for name, x in two_blocks.params.items():
        if not isinstance(x[0], list):
            assert set(x) == {0.0 if name.endswith("bias") else 1.0}, name


def test_the_seed_decides_the_model_and_is_0_unless_told():
    config = Config(vocab_size=5)
    assert GPT(config, seed=0).params == GPT(config).params
    assert GPT(config, seed=0).params != GPT(config, seed=2).params


def test_convert_applies_a_function_to_every_number(two_blocks):
    doubled = two_blocks.convert((2.0).__mul__)
    assert flat(doubled.params) == [2 * x for x in flat(two_blocks.params)]
    assert doubled.config == two_blocks.config
    assert type(two_blocks.convert(Value).params["ln_f.bias"][0]) is Value
    assert for_each(str, [[1, (2, 3)], 4]) == [["1", ["2", "3"]], "4"]
    assert for_each(str, 1) == "1"


@pytest.mark.parametrize("missing", parameter_shapes(Config(3, n_layer=2)))
def test_a_missing_parameter_is_refused_by_its_name(missing):
    config = Config(3, n_layer=2)
    params = GPT(config).params
    del params[missing]
    for kind_of_gpt in GPT, PackedGPT:
        with pytest.raises(ValueError, match=f"the parameter {re.escape(missing)} is"):
            kind_of_gpt(config, params)
