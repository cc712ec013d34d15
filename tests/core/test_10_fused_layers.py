"""Chapter 10: every fused layer against its definition, packed windows one by one."""

from itertools import product

import pytest
from helpers import LAYERS, close, defaults, flat, row, rows, weighted_sum
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import (
    ENGINES,
    GPT,
    Config,
    PackedGPT,
    Tensor,
    TensorEngine,
    Value,
    ValueEngine,
    cross_entropy,
    for_each,
    fused_layernorm,
    linear,
    topological_order,
)

FUSED = {name: case for name, case in LAYERS.items() if hasattr(case.layer, "dispatch")}
KINDS = {
    "floats": lambda x: x,
    "Values": lambda x: for_each(Value, x),
    "Tensor": Tensor,
}
every_fused_layer = pytest.mark.parametrize("case", FUSED.values(), ids=FUSED)


def gradient_of(x):
    """What backward() has left in Values or a Tensor, zeros if it came to nothing."""
    engine = TensorEngine() if isinstance(x, Tensor) else ValueEngine()
    return engine.gradient(x)


def convert(inputs, kinds):
    """Each input on numbers of its own kind."""
    return {name: KINDS[kind](x) for (name, x), kind in zip(inputs.items(), kinds)}


def results(case, kinds, call):
    """The inputs, the output, and {name: gradient} of those that are not floats."""
    inputs = convert(case.inputs, kinds)
    y = call(inputs)
    total = weighted_sum(y)
    if isinstance(total, Value):
        total.backward()
    names = [name for name, kind in zip(inputs, kinds) if kind != "floats"]
    return inputs, y, {name: flat(gradient_of(inputs[name])) for name in names}


@every_fused_layer
def test_any_mixture_of_inputs_gives_the_definitions_output_and_gradients(case):
    """Among the mixtures are Tensors only, floats only and Values only."""
    _, _, expected = results(case, ["Values"] * len(case.inputs), case.definition())
    for kinds in product(KINDS, repeat=len(case.inputs)):
        inputs, y, gradients = results(case, kinds, case)
        assert flat(y) == close(case.definition()(case.inputs)), kinds
        for name, gradient in gradients.items():
            assert gradient == close(expected[name]), (kinds, name)
        _, by_name, gradients_by_name = results(case, kinds, case.by_name)
        assert (flat(by_name), type(by_name)) == (flat(y), type(y))
        assert gradients_by_name == gradients

        number = y
        while hasattr(number, "__len__"):
            number = number[0]
        of_floats = set(kinds) == {"floats"}
        assert type(number) is float if of_floats else isinstance(number, Value)
        if "Tensor" in kinds and "Values" not in kinds:  # one node, of these inputs
            assert isinstance(y, Tensor) or case.layer is cross_entropy
            assert list(y.inputs)[: len(inputs)] == list(inputs.values())
            assert topological_order(y) == [y]


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_is_missing_or_unknown_is_a_type_error(kind):
    x = KINDS[kind](rows(2, 3))
    with pytest.raises(TypeError):
        linear(x, bias=row(2))
    with pytest.raises(TypeError):
        linear(x, rows(2, 3), biass=row(2))
    assert defaults(fused_layernorm) == {"eps": 1e-5}


# --- packed windows ---


@st.composite
def models_and_batches(draw):
    n_head = draw(st.integers(1, 3))
    n_embd = n_head * draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, most)) for most in (6, 6, 3)]
    config = Config(*sizes, n_head, n_embd)
    tokens = st.integers(0, config.vocab_size - 1)
    window = st.lists(tokens, min_size=2, max_size=config.block_size + 1)
    model = GPT(config, seed=draw(st.integers(0, 999)))
    return model, draw(st.lists(window, min_size=1, max_size=4))


@settings(max_examples=20)
@given(models_and_batches())
def test_engines_and_packed_models_agree_on_loss_and_all_gradients(model_and_batch):
    model, batch = model_and_batch
    results = []
    for kind_of_gpt, kind in product((GPT, PackedGPT), ENGINES.values()):
        engine = kind()
        params = {name: engine.convert(x) for name, x in model.params.items()}
        loss = kind_of_gpt(model.config, params).loss(batch)
        loss.backward()
        gradients = {name: engine.gradient(x) for name, x in params.items()}
        results.append([loss, gradients])
    on_floats = [model.loss(batch), PackedGPT(model.config, model.params).loss(batch)]
    assert on_floats == close([results[0][0]] * 2)
    for result in results[1:]:
        assert flat(result[0]) == close(results[0][0])
        assert list(result[1]) == list(model.params)
        assert flat(result[1]) == close(results[0][1])


def test_packed_windows_get_the_logits_that_they_get_alone():
    model = GPT(Config(vocab_size=5, n_layer=2), seed=3)
    packed = PackedGPT(model.config, model.params)
    packed.lengths = [3, 2]
    alone = model([4, 0, 1]) + model([4, 3])
    assert flat(packed([4, 0, 1, 4, 3])) == close(alone, 1e-13)
    packed.loss([[4, 0, 1], [4, 3, 2, 1]])  # then it reads single windows again
    assert flat(packed([4, 0, 1, 2, 3])) == close(model([4, 0, 1, 2, 3]), 1e-13)
    with pytest.raises(ValueError, match="16 is not in 0 to 15"):
        packed.loss([[0, 1], [1] * 18])
