"""Chapters 8 and 13: drawing tokens, and writing with a cache as if there were none."""

import copy
import math
import random
from functools import partial
from itertools import combinations, islice

import pytest
from helpers import close, flat
from hypothesis import assume, given
from hypothesis import strategies as st

from microgpt import (
    GPT,
    CachedGPT,
    Config,
    Sampling,
    generate,
    sample,
    stream,
    write,
)

# Distinct logits, no token so rare that `drawable` could miss it.
LOGITS = st.lists(
    st.integers(-8, 8).map(lambda i: i / 6), min_size=1, max_size=6, unique=True
)


def softmax(logits, temperature=1.0):
    weights = [math.exp(x / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def greedy(logits):
    return max(range(len(logits)), key=logits.__getitem__)


class Fixed(random.Random):
    """A generator whose every draw is the same u."""

    def random(self):
        return self.u


def drawable(logits, **options):
    """Every token id that some draw gives."""
    sampling = Sampling(**options)
    rng = Fixed()
    ids = set()
    for i in range(200):
        rng.u = (i + 0.5) / 200
        ids.add(sampling.draw(logits, rng))
    return ids


def draw_plainly(logits, temperature, rng):
    return sample(logits, temperature, rng)


def draw_with_options(logits, temperature, rng):
    return Sampling(temperature=temperature).draw(logits, rng)


def draw_from_all_by_top_k(logits, temperature, rng):
    return Sampling(temperature, top_k=len(logits)).draw(logits, rng)


every_way_to_draw = pytest.mark.parametrize(
    "draw", [draw_plainly, draw_with_options, draw_from_all_by_top_k]
)

# --- drawing --------------------------------------------------------------------------


@every_way_to_draw
@given(logits=st.lists(st.floats(-1e308, 1e308), min_size=1, unique=True))
def test_temperature_0_takes_the_likeliest(draw, logits):
    rng = random.Random(1)
    assert draw(logits, 0, rng) == draw(logits, 0.0, rng) == greedy(logits)


@every_way_to_draw
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-12])
def test_tiny_temperatures_take_the_likeliest_and_do_not_overflow(draw, temperature):
    rng = random.Random(1)
    draws = {draw([1.0, -1e10, 3.0, 2.9], temperature, rng) for _ in range(200)}
    assert draws == {2}


@every_way_to_draw
def test_huge_logits_do_not_overflow(draw):
    rng = random.Random(1)
    assert {draw([1e300, -1e300, 1e300], 1.0, rng) for _ in range(200)} == {0, 2}


@every_way_to_draw
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_softmax(draw, temperature):
    logits = [0.1, 2.0, -0.5, 1.0]
    rng = random.Random(1)
    n = 20000
    draws = [draw(logits, temperature, rng) for _ in range(n)]
    for i, p in enumerate(softmax(logits, temperature)):
        assert abs(draws.count(i) / n - p) < 4 * math.sqrt(p * (1 - p) / n)


@every_way_to_draw
def test_draws_come_from_the_given_generator_alone(draw):
    def draw_twenty(seed):
        rng = random.Random(seed)
        return [draw([0.1, 0.2, 0.3], 1.0, rng) for _ in range(20)]

    state = random.getstate()
    assert draw_twenty(1) == draw_twenty(1) != draw_twenty(2)
    assert random.getstate() == state


@given(LOGITS, st.integers(1, 9))
def test_top_k_keeps_only_the_k_likeliest(logits, k):
    assert drawable(logits, top_k=k) == {logits.index(x) for x in sorted(logits)[-k:]}


def smallest_set_that_reaches(p, probabilities):
    """The ids of it, found among all sets; None if rounding could decide."""
    n = len(probabilities)
    totals = {}
    for size in range(1, n + 1):
        for ids in combinations(range(n), size):
            totals[ids] = sum(probabilities[i] for i in ids)
    everything = tuple(range(n))
    for ids, total in totals.items():
        if abs(total - p) <= 1e-9 and ids != everything:
            return None
    enough = [ids for ids in totals if totals[ids] >= p or ids == everything]
    return set(min(enough, key=lambda ids: (len(ids), -totals[ids])))


@given(LOGITS, st.floats(0, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    nucleus = smallest_set_that_reaches(p, softmax(logits))
    assume(nucleus is not None)
    assert drawable(logits, top_p=p) == nucleus


@given(LOGITS, st.floats(0, 1), st.floats(0.5, 2))
def test_top_p_counts_the_probability_at_the_temperature(logits, p, temperature):
    nucleus = smallest_set_that_reaches(p, softmax(logits, temperature))
    assume(nucleus is not None)
    kept = Sampling(temperature, top_p=p).rule_out(logits)
    assert {i for i, x in enumerate(kept) if x > -math.inf} == nucleus
    assert all(kept[i] == logits[i] for i in nucleus)


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


def test_ruling_out_leaves_the_logits_alone():
    logits = [1.0, 3.0, 2.0]
    assert Sampling(top_k=1).rule_out(logits) == [-math.inf, 3.0, -math.inf]
    assert logits == [1.0, 3.0, 2.0]


@pytest.mark.parametrize(
    "name, value, start",
    [
        ("temperature", -0.1, "from 0"),
        ("temperature", 1e7, "from 0 to 1000000"),
        ("temperature", math.nan, "from 0"),
        ("temperature", math.inf, "from 0"),
        ("temperature", "1", "from 0"),
        ("temperature", None, "from 0"),
        ("temperature", True, "from 0"),
        ("top_k", -1, "from 0"),
        ("top_k", 1.5, "from 0"),
        ("top_k", 2.0, "a whole number from 0"),
        ("top_k", math.nan, "from 0"),
        ("top_k", False, "from 0"),
        ("top_p", -0.1, "from 0 to 1"),
        ("top_p", 1.1, "from 0 to 1"),
        ("top_p", math.nan, "from 0 to 1"),
    ],
)
def test_an_option_out_of_range_is_an_error_that_names_value_and_range(
    model, tokenizer, name, value, start
):
    message = f"{name} is {value!r}: must be .*{start}"
    with pytest.raises(ValueError, match=message):
        Sampling(**{name: value})
    with pytest.raises(ValueError, match=message):
        generate(model, tokenizer, **{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "top_k": 0, "top_p": 0},
        {"temperature": 10**6, "top_k": 10**9, "top_p": 1},
        {"temperature": 5e-324, "top_p": 5e-324},
    ],
)
def test_the_limits_of_the_options_are_within(options):
    Sampling(**options)


def test_sampling_cannot_be_changed():
    with pytest.raises(AttributeError):
        Sampling().temperature = 0.5


# --- reading with a cache -------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts(model):
    """Token rows of every length that the model can see."""
    rng = random.Random(3)
    return [
        [rng.randrange(model.config.vocab_size) for _ in range(n)]
        for n in range(1, model.config.block_size + 1)
    ]


def test_token_by_token_with_a_cache_the_logits_are_those_of_the_whole(model, contexts):
    for tokens in contexts:
        reader = CachedGPT(model)
        logits = []
        for token in tokens:
            logits += reader([token])
        assert flat(logits) == close(model(tokens))


def test_piece_by_piece_with_a_cache_the_logits_are_those_of_the_whole(model, contexts):
    tokens = contexts[-1]
    whole = model(tokens)
    for cut in range(1, len(tokens)):
        reader = CachedGPT(model)
        for part, last in (tokens[:cut], cut - 1), (tokens[cut:], -1):
            (logits,) = reader(part)  # of the last token only
            assert logits == pytest.approx(whole[last], rel=1e-12, abs=1e-12)


def test_a_reader_keeps_what_each_attention_has_seen(model, contexts):
    reader = CachedGPT(model)
    assert (reader.n_read, reader.past) == (0, {})
    reader(contexts[2])
    reader([0])
    assert reader.n_read == 4
    assert sorted(reader.past) == ["h.0.attn", "h.1.attn"]
    for seen in reader.past.values():
        assert [len(row) for row in seen] == [3 * model.config.n_embd] * 4


def test_readers_of_one_model_do_not_disturb_each_other(model, contexts):
    one = CachedGPT(model)
    other = CachedGPT(model)
    for token in contexts[4]:
        logits = one([token])
        other([6 - token if token < 7 else 7])
    assert flat(logits) == close(model(contexts[4])[-1])
    assert one.params is model.params


def test_a_cache_that_is_full_is_an_error_that_leaves_it_as_it_was(model, contexts):
    reader = CachedGPT(model)
    reader(contexts[-1])
    for _ in range(2):
        with pytest.raises(ValueError, match="8 is not in 0 to 7"):
            reader([0])
        assert reader.n_read == 8
        assert {len(seen) for seen in reader.past.values()} == {8}


# --- streams --------------------------------------------------------------------------


def plainly(model, tokens, n, temperature, seed):
    """What stream does, without a cache: beyond the block, forget the older half."""
    block_size = model.config.block_size
    rng = random.Random(seed)
    new = []
    context = tokens[-block_size:]
    while len(new) < n:
        new.append(sample(model(context)[-1], temperature, rng))
        context = context + new[-1:]
        if len(context) > block_size:
            context = context[-(block_size // 2 or 1) :]
    return new


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("n_tokens", [1, 3, 8, 20])
def test_streaming_equals_a_plain_loop_without_cache(block_size, temperature, n_tokens):
    config = Config(vocab_size=5, block_size=block_size, n_layer=2, n_head=2, n_embd=4)
    model = GPT(config)
    tokens = [i * i % 5 for i in range(n_tokens)]
    sampling = Sampling(temperature)
    new = stream(model, tokens, sampling, random.Random(4), end=-1, max_tokens=30)
    assert list(new) == plainly(model, tokens, 30, temperature, 4)


@pytest.fixture
def continue_7(model):
    """Streams of this model that begin after token 7 -> a list of tokens."""

    def continue_7(seed=0, max_tokens=30, end=-1, **options):
        rng = random.Random(seed)
        sampling = Sampling(**options)
        return list(stream(model, [7], sampling, rng, end, max_tokens))

    return continue_7


@pytest.mark.parametrize("max_tokens", [0, 1, 8, 9, 20, 50])
def test_streaming_ends_after_max_tokens_be_it_past_the_block(continue_7, max_tokens):
    assert len(continue_7(max_tokens=max_tokens)) == max_tokens


def test_of_a_long_prompt_the_last_block_counts(model):
    tokens = [i * i % 7 for i in range(30)]
    whole = stream(model, tokens, rng=random.Random(0), max_tokens=20)
    part = stream(model, tokens[-8:], rng=random.Random(0), max_tokens=20)
    assert list(whole) == list(part)


def test_streaming_leaves_the_prompt_alone(model):
    tokens = [7, 0, 1]
    list(stream(model, tokens, rng=random.Random(0), end=-1, max_tokens=20))
    assert tokens == [7, 0, 1]


def test_a_prompt_may_be_any_iterable(model):
    lists = stream(model, [7, 0, 1], rng=random.Random(0), end=-1, max_tokens=20)
    others = stream(model, iter([7, 0, 1]), rng=random.Random(0), end=-1, max_tokens=20)
    assert list(lists) == list(others)


def test_streaming_is_lazy(model):
    endless = stream(model, [7], end=-1, max_tokens=10**9)
    assert len(list(islice(endless, 5))) == 5


def test_streaming_stops_at_the_end_token_and_does_not_yield_it(continue_7):
    endless = continue_7()
    for end in set(endless):
        assert continue_7(end=end) == endless[: endless.index(end)]


def test_the_end_token_is_the_last_of_the_vocabulary_unless_given(continue_7):
    streams = [continue_7(seed, end=None, max_tokens=200) for seed in range(5)]
    assert streams == [continue_7(seed, end=7, max_tokens=200) for seed in range(5)]


def test_a_stream_has_200_tokens_and_draws_by_the_probabilities_unless_told(
    model, continue_7
):
    new = list(stream(model, [7], rng=random.Random(3), end=-1))
    assert new == continue_7(3, max_tokens=200, temperature=1.0)
    assert len(new) == 200


def test_the_same_seed_gives_the_same_stream(model, continue_7):
    assert continue_7(1) == continue_7(1) != continue_7(2)
    unseeded = [tuple(stream(model, [7], end=-1, max_tokens=30)) for _ in range(2)]
    assert len(set(unseeded)) == 2


def test_streams_draw_as_their_sampling_says(continue_7):
    likeliest = continue_7(temperature=0)
    assert continue_7(top_k=1) == likeliest
    assert continue_7(top_p=0.0) == likeliest
    assert continue_7() != likeliest


class ListLike:
    """A row of logits as an array library has it."""

    def __init__(self, numbers):
        self.numbers = numbers

    def tolist(self):
        return self.numbers


def test_logits_may_be_a_row_of_another_kind(model, continue_7, monkeypatch):
    expected = continue_7(top_k=3)
    plain_call = CachedGPT.__call__

    def call(self, tokens):
        return [ListLike(row) for row in plain_call(self, tokens)]

    monkeypatch.setattr(CachedGPT, "__call__", call)
    assert continue_7(top_k=3) == expected


# --- documents ------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "a", "bob", "cleoabba" * 3])
def test_generated_text_begins_with_the_prompt_and_has_no_end_token(
    model, tokenizer, prompt
):
    for seed in range(10):
        written = [
            generate(model, tokenizer, prompt, seed=seed, max_tokens=12),
            write(model, tokenizer, random.Random(seed), prompt, max_tokens=12),
        ]
        for text in written:
            assert text.startswith(prompt)
            assert len(text) <= len(prompt) + 12
            assert set(text) <= set(tokenizer.characters)


@pytest.mark.parametrize("prompt", ["", "a", "bob", "cleoabb"])
@pytest.mark.parametrize("temperature", [0, 0.3, 1.0, 3.0])
def test_write_and_generate_agree_while_the_window_is_not_full(
    model, tokenizer, prompt, temperature
):
    texts = set()
    for seed in range(20):
        options = {
            "max_tokens": model.config.block_size - len(prompt),
            "temperature": temperature,
        }
        text = write(model, tokenizer, random.Random(seed), prompt, **options)
        assert generate(model, tokenizer, prompt, seed, **options) == text
        texts.add(text)
    assert (len(texts) > 1) == (temperature > 0)


def test_write_goes_on_past_the_block_with_the_last_tokens(model, tokenizer):
    """At temperature 0, each token is the likeliest after the block before it."""
    text = write(model, tokenizer, None, "bob", temperature=0, max_tokens=30)
    tokens = [tokenizer.end] + tokenizer.encode("bob")
    while len(tokens) < 34:
        token = greedy(model(tokens[-model.config.block_size :])[-1])
        if token == tokenizer.end:
            break
        tokens.append(token)
    assert text == tokenizer.decode(tokens[1:])


def test_generate_streams_after_endoftext_and_the_prompt(model, tokenizer):
    tokens = [tokenizer.end] + tokenizer.encode("bo")
    new = stream(model, tokens, Sampling(0.9), random.Random(5), max_tokens=20)
    text = generate(model, tokenizer, "bo", max_tokens=20, temperature=0.9, seed=5)
    assert text == "bo" + tokenizer.decode(new)


def test_generate_ends_where_the_tokenizer_says(model, tokenizer):
    other = copy.copy(tokenizer)
    other.end = tokenizer.vocab["a"]
    texts = [generate(model, other, seed=seed) for seed in range(20)]
    assert not any("a" in text for text in texts)
    assert any("<|endoftext|>" in text for text in texts)


def test_a_seed_may_be_a_generator_that_goes_on(model, tokenizer):
    rng = random.Random(1)
    texts = [generate(model, tokenizer, seed=rng) for _ in range(2)]
    assert texts[0] == generate(model, tokenizer, seed=1)
    assert texts[0] != texts[1]
    unseeded = {generate(model, tokenizer, "b" * 20) for _ in range(20)}
    assert len(unseeded) > 1


@pytest.mark.parametrize("prompt", ["zoe", "az"])
def test_a_prompt_of_unseen_characters_is_an_error(model, tokenizer, prompt):
    for write_text in generate, partial(write, rng=random.Random(1)):
        with pytest.raises(ValueError, match="'z'"):
            write_text(model, tokenizer, prompt=prompt)


def test_an_unknown_option_is_an_error(model, tokenizer):
    with pytest.raises(TypeError, match="top_q"):
        generate(model, tokenizer, top_q=1)
