"""Chapter 9: drawing tokens, and writing with a cache as if there were none."""

import math
import random
from itertools import combinations, islice

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from microgpt import GPT, Config, generate, sample, stream

# Distinct logits, no token so rare that `drawable` could miss it.
LOGITS = st.lists(
    st.integers(-8, 8).map(lambda i: i / 6), min_size=1, max_size=6, unique=True
)


def softmax(logits, temperature=1.0):
    weights = [math.exp(x / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def greedy(logits):
    return max(range(len(logits)), key=lambda i: logits[i])


class Fixed(random.Random):
    """A generator whose every draw is the same u."""

    def random(self):
        return self.u


def drawable(logits, **options):
    """Every token id that some draw gives."""
    rng, ids = Fixed(), set()
    for i in range(200):
        rng.u = (i + 0.5) / 200
        ids.add(sample(logits, rng=rng, **options))
    return ids


@given(st.lists(st.floats(-1e308, 1e308), min_size=1, unique=True))
def test_temperature_0_takes_the_likeliest(logits):
    assert (
        sample(logits, temperature=0)
        == sample(logits, temperature=0.0)
        == greedy(logits)
    )


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-12])
def test_tiny_temperatures_take_the_likeliest_and_do_not_overflow(temperature):
    assert drawable([1.0, -1e10, 3.0, 2.9], temperature=temperature) == {2}


def test_huge_logits_do_not_overflow():
    assert drawable([1e300, -1e300, 1e300]) == {0, 2}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_softmax(temperature):
    logits, rng, n = [0.1, 2.0, -0.5, 1.0], random.Random(1), 20000
    draws = [sample(logits, temperature, rng=rng) for _ in range(n)]
    for i, p in enumerate(softmax(logits, temperature)):
        assert abs(draws.count(i) / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_draws_come_from_the_given_generator_alone():
    def draw(seed):
        rng = random.Random(seed)
        return [sample([0.1, 0.2, 0.3], rng=rng) for _ in range(20)]

    state = random.getstate()
    assert draw(1) == draw(1) != draw(2)
    assert random.getstate() == state


@given(LOGITS, st.integers(1, 9))
def test_top_k_keeps_only_the_k_likeliest(logits, k):
    assert drawable(logits, top_k=k) == {logits.index(x) for x in sorted(logits)[-k:]}


@given(LOGITS, st.floats(0, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    probs = softmax(logits)
    sets = [
        ids
        for n in range(1, len(probs) + 1)
        for ids in combinations(range(len(probs)), n)
    ]
    totals = {ids: sum(probs[i] for i in ids) for ids in sets}
    assume(
        all(
            abs(total - p) > 1e-9 or len(ids) == len(probs)
            for ids, total in totals.items()
        )
    )
    enough = [ids for ids in sets if totals[ids] >= p or len(ids) == len(probs)]
    nucleus = min(enough, key=lambda ids: (len(ids), -totals[ids]))
    assert drawable(logits, top_p=p) == set(nucleus)


def test_top_p_that_is_reached_exactly_is_enough():
    assert drawable([0.0, 0.0, -1e3], top_p=0.5) == {0}


def test_top_p_counts_the_probability_among_the_top_k():
    logits = [math.log(x) for x in (0.4, 0.3, 0.2, 0.1)]
    assert drawable(logits, top_p=0.5) == {0, 1}
    assert drawable(logits, top_p=0.5, top_k=2) == {0}  # 0.4 is over half of 0.7


@given(LOGITS)
def test_neither_top_k_0_nor_top_p_1_leaves_a_token_out(logits):
    assert drawable(logits, top_k=0, top_p=1.0) == set(range(len(logits)))


@given(LOGITS, st.floats(0.01, 10))
def test_top_k_1_and_top_p_0_are_greedy(logits, temperature):
    assert drawable(logits, temperature=temperature, top_k=1) == {greedy(logits)}
    assert drawable(logits, temperature=temperature, top_p=0) == {greedy(logits)}


@pytest.mark.parametrize(
    "name, value, start",
    [
        ("temperature", -0.1, "from 0"),
        ("temperature", math.nan, "from 0"),
        ("temperature", math.inf, "from 0"),
        ("temperature", "1", "from 0"),
        ("top_k", -1, "from 0"),
        ("top_k", 1.5, "from 0"),
        ("top_k", math.nan, "from 0"),
        ("top_p", -0.1, "from 0 to 1"),
        ("top_p", 1.1, "from 0 to 1"),
        ("top_p", math.nan, "from 0 to 1"),
    ],
)
def test_an_option_out_of_range_is_an_error_that_names_value_and_range(
    name, value, start
):
    with pytest.raises(ValueError, match=f"{name} is {value!r}: must be .*{start}"):
        sample([0.0, 1.0], **{name: value})


@pytest.fixture(scope="module")
def contexts(model):
    """Token rows of every length that the model can see."""
    rng = random.Random(3)
    return [
        [rng.randrange(model.config.vocab_size) for _ in range(n)]
        for n in range(1, model.config.block_size + 1)
    ]


def close(rows):
    return [pytest.approx(row, rel=1e-12, abs=1e-12) for row in rows]


def test_token_by_token_with_a_cache_the_logits_are_those_of_the_whole(model, contexts):
    for tokens in contexts:
        cache = model.new_cache()
        assert [model([token], cache=cache)[0] for token in tokens] == close(
            model(tokens)
        )


def test_piece_by_piece_with_a_cache_the_logits_are_those_of_the_whole(model, contexts):
    tokens = contexts[-1]
    for cut in range(1, len(tokens)):
        cache = model.new_cache()
        pieces = model(tokens[:cut], cache=cache) + model(tokens[cut:], cache=cache)
        assert pieces == close(model(tokens))


def test_a_cache_that_is_full_is_an_error(model, contexts):
    cache = model.new_cache()
    model(contexts[-1], cache=cache)
    with pytest.raises(ValueError, match="8 is not in 0 to 7"):
        model([0], cache=cache)


def plainly(model, tokens, n, temperature, seed):
    """What stream does, without a cache: beyond the block, forget the older half."""
    block_size, rng, new = model.config.block_size, random.Random(seed), []
    context = tokens[-block_size:]
    while len(new) < n:
        logits = model(context)[-1]
        new.append(
            greedy(logits) if temperature == 0 else sample(logits, temperature, rng=rng)
        )
        context = context + new[-1:]
        if len(context) > block_size:
            context = context[-(block_size // 2 or 1) :]
    return new


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("n_tokens", [1, 3, 8, 20])
def test_streaming_equals_a_plain_loop_without_cache(block_size, temperature, n_tokens):
    model = GPT(
        Config(vocab_size=5, block_size=block_size, n_layer=2, n_head=2, n_embd=4)
    )
    tokens = [i * i % 5 for i in range(n_tokens)]
    new = list(stream(model, tokens, 30, temperature, seed=4, end=-1))
    assert new == plainly(model, tokens, 30, temperature, 4)


def test_streaming_goes_on_past_the_block_size(model):
    assert len(list(stream(model, [7], 50, seed=0, end=-1))) == 50


def test_of_a_long_prompt_the_last_block_counts(model):
    tokens = [i * i % 7 for i in range(30)]
    assert list(stream(model, tokens, 20, seed=0)) == list(
        stream(model, tokens[-8:], 20, seed=0)
    )


def test_streaming_leaves_the_prompt_alone(model):
    tokens = [7, 0, 1]
    list(stream(model, tokens, 20, seed=0, end=-1))
    assert tokens == [7, 0, 1]


@pytest.mark.parametrize("max_tokens", [0, 1, 8, 9, 20])
def test_streaming_ends_after_max_tokens(model, max_tokens):
    assert len(list(stream(model, [7], max_tokens, seed=0, end=-1))) == max_tokens


def test_streaming_is_lazy(model):
    assert len(list(islice(stream(model, [7], 10**9, seed=0, end=-1), 5))) == 5


def test_streaming_stops_at_the_end_token_and_does_not_yield_it(model):
    endless = list(stream(model, [7], 30, seed=0, end=-1))
    for end in set(endless):
        assert (
            list(stream(model, [7], 30, seed=0, end=end))
            == endless[: endless.index(end)]
        )


def test_the_end_token_is_the_last_of_the_vocabulary_unless_given(model):
    for seed in range(5):
        assert list(stream(model, [7], seed=seed)) == list(
            stream(model, [7], seed=seed, end=7)
        )


def test_the_same_seed_gives_the_same_stream(model):
    def write(seed):
        return list(stream(model, [7], 30, seed=seed, end=-1))

    assert write(1) == write(1) == write(random.Random(1)) != write(2)
    assert write(None) != write(None)


def test_streams_pass_on_the_options_of_sample(model):
    likeliest = list(stream(model, [7], 30, temperature=0, end=-1))
    assert list(stream(model, [7], 30, top_k=1, end=-1)) == likeliest
    assert list(stream(model, [7], 30, top_p=0.0, end=-1)) == likeliest
    with pytest.raises(ValueError, match="top_p is 2"):
        next(stream(model, [7], top_p=2))


@pytest.mark.parametrize("prompt", ["", "a", "bob", "cleoabba" * 3])
def test_generated_text_begins_with_the_prompt_and_has_no_end_token(
    model, tokenizer, prompt
):
    for seed in range(10):
        text = generate(model, tokenizer, prompt, seed=seed, max_tokens=12)
        assert text.startswith(prompt) and len(text) <= len(prompt) + 12
        assert set(text) <= set(tokenizer.characters)


def test_generate_streams_after_endoftext_and_the_prompt(model, tokenizer):
    new = stream(model, [tokenizer.end] + tokenizer.encode("bo"), 20, 0.9, seed=5)
    assert generate(model, tokenizer, "bo", max_tokens=20, temperature=0.9, seed=5) == (
        "bo" + tokenizer.decode(new)
    )


def test_a_prompt_of_unseen_characters_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="'z'"):
        generate(model, tokenizer, "zoe")
