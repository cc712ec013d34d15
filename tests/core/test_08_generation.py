"""Chapter 8: drawing tokens, also as chapter 13 does it; writing one after another."""

import random

import pytest
from helpers import defaults, drawn, probabilities
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import Sampling, sample, write


def draw_with_options(logits, temperature, rng):
    return Sampling(temperature=temperature).draw(logits, rng)


def draw_from_all_by_top_k(logits, temperature, rng):
    return Sampling(temperature, top_k=len(logits)).draw(logits, rng)


every_way_to_draw = pytest.mark.parametrize(
    "draw", [sample, draw_with_options, draw_from_all_by_top_k]
)


@every_way_to_draw
@settings(max_examples=30)
@given(logits=st.lists(st.floats(-1e308, 1e308), min_size=1, unique=True))
def test_temperature_0_takes_the_likeliest(draw, logits):
    likeliest = logits.index(max(logits))
    assert draw(logits, 0, None) == draw(logits, 0.0, None) == likeliest


@every_way_to_draw
@pytest.mark.parametrize(
    "logits, temperature, tokens",
    [
        ([1.0, -1e10, 3.0, 2.9], 5e-324, {2}),
        ([1.0, -1e10, 3.0, 2.9], 1e-300, {2}),
        ([1.0, -1e10, 3.0, 2.9], 1e-12, {2}),
        ([1e300, -1e300, 1e300], 1.0, {0, 2}),
    ],
)
def test_tiny_temperatures_and_huge_logits_do_not_overflow(
    draw, logits, temperature, tokens
):
    assert set(drawn(lambda rng: draw(logits, temperature, rng))) == tokens


@every_way_to_draw
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_softmax_says(draw, temperature):
    logits = [0.1, 2.0, -0.5, 1.0]
    counts = drawn(lambda rng: draw(logits, temperature, rng), 1000)
    shares = probabilities([x / temperature for x in logits])
    assert [counts[i] / 1000 for i in range(4)] == pytest.approx(shares, abs=0.001)


@every_way_to_draw
def test_draws_come_from_the_given_generator_alone(draw):
    def draw_twenty(seed):
        rng = random.Random(seed)
        return [draw([0.1, 0.2, 0.3], 1.0, rng) for _ in range(20)]

    state = random.getstate()
    assert draw_twenty(1) == draw_twenty(1) != draw_twenty(2)
    assert random.getstate() == state


@pytest.mark.parametrize("prompt", ["", "bob", "cleoabba" * 3])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("max_tokens", [0, 1, 30])
def test_write_draws_after_the_last_block_up_to_the_end(
    model, tokenizer, prompt, temperature, max_tokens
):
    for seed in range(5):
        rng = random.Random(seed)
        tokens = [tokenizer.end, *tokenizer.encode(prompt)]
        expected = prompt
        for _ in range(max_tokens):
            token = sample(model(tokens[-8:])[-1], temperature, rng)
            if token == tokenizer.end:
                break
            tokens.append(token)
            expected += tokenizer.tokens[token]
        rng = random.Random(seed)
        text = write(model, tokenizer, rng, prompt, temperature, max_tokens)
        assert text == expected


def test_write_has_defaults(model, tokenizer):
    usual = {"prompt": "", "temperature": 1.0, "max_tokens": 100}
    assert defaults(write) == usual
    with pytest.raises(ValueError, match=r"'z' [(]U[+]007A[)] is not in"):
        write(model, tokenizer, random.Random(1), "az")
