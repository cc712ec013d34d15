"""Chapter 13: ruling tokens out, and writing with a cache as if there were none."""

import copy
import math
import random
from itertools import accumulate, islice
from types import SimpleNamespace

import pytest
from helpers import close, defaults, drawn, flat, probabilities, rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from microgpt import (
    GPT,
    CachedGPT,
    Config,
    Sampling,
    Tensor,
    attention,
    attention_with_past,
    generate,
    sample,
    stream,
)

# Distinct logits, no token so rare that `drawable` could miss it.
LOGITS = st.lists(
    st.integers(-8, 8).map(lambda i: i / 6), min_size=1, max_size=6, unique=True
)


def drawable(logits, *options):
    """Every token id that some draw gives."""
    return set(drawn(lambda rng: Sampling(*options).draw(logits, rng)))


# --- ruling out ---


@settings(max_examples=40)
@given(LOGITS, st.integers(1, 7), st.floats(0.01, 10))
def test_top_k_keeps_only_the_k_likeliest(logits, k, temperature):
    likeliest = sorted(logits)[-k:]
    kept = [x if x in likeliest else -math.inf for x in logits]
    assert Sampling(top_k=k).rule_out(logits) == kept
    assert drawable(logits, 1.0, k) == {logits.index(x) for x in likeliest}
    assert drawable(logits, temperature, 1) == {logits.index(max(logits))}
    assert drawable(logits, temperature, 0, 0) == {logits.index(max(logits))}
    assert drawable(logits, 1.0, 0, 1) == {*range(len(logits))}


@given(LOGITS, st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(logits, p, temperature):
    shares = probabilities([x / temperature for x in logits])
    sums = list(accumulate(sorted(shares, reverse=True)))[:-1]
    assume(all(abs(total - p) > 1e-9 for total in sums))  # rounding does not decide
    n = 1 + sum(total < p for total in sums)
    kept = [x if x in sorted(logits)[-n:] else -math.inf for x in logits]
    assert Sampling(temperature, top_p=p).rule_out(logits) == kept
    seen = drawable(logits, temperature, 0, p)
    assert seen <= {i for i, x in enumerate(kept) if x > -math.inf}


def test_top_p_is_reached_exactly_and_among_the_top_k():
    assert drawable([0.0, 0.0, -1e3], 1.0, 0, 0.5) == {0}
    logits = [math.log(x) for x in (0.4, 0.3, 0.2, 0.1)]
    assert drawable(logits, 1.0, 0, 0.5) == {0, 1}
    assert drawable(logits, 1.0, 2, 0.5) == {0}  # 0.4 is over half of 0.7
    assert logits == [math.log(x) for x in (0.4, 0.3, 0.2, 0.1)]


@pytest.mark.parametrize(
    "name, most, too_large, must",
    [
        ("temperature", 10**6, 1e7, "a number from 0 to 1000000"),
        ("top_k", 10**9, 10**9 + 1, "a whole number from 0"),
        ("top_k", 10**9, 2.0, "a whole number from 0"),
        ("top_p", 1, 1.1, "a number from 0 to 1$"),
    ],
)
def test_sampling_has_limits_and_refuses_what_is_not_within(
    model, tokenizer, name, most, too_large, must
):
    for value in (0, most):
        assert getattr(Sampling(**{name: value}), name) == value
    for value in (too_large, -0.1, -1, math.nan, math.inf, "1", None, True):
        with pytest.raises(ValueError, match=f"{name} is {value!r}: must be {must}"):
            Sampling(**{name: value})
        with pytest.raises(ValueError, match=name):
            generate(model, tokenizer, **{name: value})


def test_the_defaults():
    assert defaults(Sampling) == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert defaults(generate) == {"prompt": "", "seed": None, "max_tokens": 200}
    nothing = dict.fromkeys(["sampling", "rng", "end"])
    assert defaults(stream) == {**nothing, "max_tokens": 200}
    with pytest.raises(AttributeError):
        Sampling().temperature = 0.5


# --- reading with a cache ---


@pytest.mark.parametrize("cut", range(1, 5))
def test_attention_continues_from_past_rows(cut):
    x = rows(5, 12)
    past = []
    parts = attention_with_past(x[:cut], 2, past)
    parts += attention_with_past(x[cut:], 2, past)
    assert flat(parts) == close(attention(x, 2), 1e-13)
    assert past == x
    with pytest.raises((TypeError, ValueError)):
        attention_with_past(Tensor(x), 2, [])


TOKENS = [3, 0, 7, 2, 2, 5, 1, 4]  # as many as the model can read


def test_in_any_pieces_the_logits_with_a_cache_are_those_of_the_whole(model):
    whole = model(TOKENS)
    one_by_one = CachedGPT(model)
    for n, token in enumerate(TOKENS):
        assert flat(one_by_one([token])) == close(whole[n])
    for cut in range(1, 8):
        reader = CachedGPT(model)
        other = CachedGPT(model)  # does not disturb it
        for part, last in (TOKENS[:cut], cut - 1), (TOKENS[cut:], -1):
            (logits,) = reader(part)  # of the last token only
            assert flat(logits) == close(whole[last])
            other([0])
    assert reader.params is model.params


def test_a_cache_keeps_what_was_seen_until_it_is_full(model):
    reader = CachedGPT(model)
    assert (reader.n_read, reader.past) == (0, {})
    reader(TOKENS[:3])
    reader(TOKENS[3:])
    for _ in range(2):
        assert reader.n_read == 8
        assert sorted(reader.past) == ["h.0.attn", "h.1.attn"]
        for seen in reader.past.values():
            assert [len(row) for row in seen] == [3 * model.config.n_embd] * 8
        with pytest.raises(ValueError, match="8 is not in 0 to 7"):
            reader([0])


# --- streams ---


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


class Own(GPT):
    """A network of one's own, of which a cache of GPT's rows knows nothing."""

    def __call__(self, tokens):
        return [logits[::-1] for logits in super().__call__(tokens)]


@pytest.mark.parametrize("kind", [GPT, Own])
@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("n_tokens", [1, 3, 8, 20])
def test_streaming_equals_a_plain_loop(kind, block_size, temperature, n_tokens):
    model = kind(Config(5, block_size, n_layer=2, n_head=2, n_embd=4))
    tokens = [i * i % 5 for i in range(n_tokens)]
    for prompt in tokens, iter(tokens):  # any iterable
        rng = random.Random(4)
        new = stream(model, prompt, Sampling(temperature), rng, -1, max_tokens=30)
        assert list(new) == plainly(model, tokens, 30, temperature, 4)
    assert tokens == [i * i % 5 for i in range(n_tokens)]


@pytest.fixture
def continue_7(model):
    """Streams of this model that begin after token 7 -> a list of tokens."""

    def continue_7(seed=0, max_tokens=30, end=-1, **options):
        rng = random.Random(seed)
        sampling = Sampling(**options)
        return list(stream(model, [7], sampling, rng, end, max_tokens))

    return continue_7


def test_streaming_is_lazy_and_needs_a_token(model):
    endless = stream(model, [7], end=-1, max_tokens=10**9)
    assert len(list(islice(endless, 5))) == 5
    assert list(stream(model, [7], max_tokens=0)) == []
    with pytest.raises(ValueError, match="no tokens to continue"):
        list(stream(model, []))


def test_streaming_stops_at_the_end_token_which_is_the_last_unless_given(continue_7):
    endless = continue_7()
    for end in set(endless):
        assert continue_7(end=end) == endless[: endless.index(end)]
    streams = [continue_7(seed, end=None, max_tokens=200) for seed in range(5)]
    assert streams == [continue_7(seed, end=7, max_tokens=200) for seed in range(5)]


def test_streams_draw_as_their_seed_and_sampling_say(model, continue_7):
    assert continue_7(1) == continue_7(1) != continue_7(2)
    assert continue_7(1) == list(stream(model, [7], None, random.Random(1), -1, 30))
    unseeded = [tuple(stream(model, [7], end=-1, max_tokens=30)) for _ in range(2)]
    assert len(set(unseeded)) == 2
    likeliest = continue_7(temperature=0)
    assert continue_7(top_k=1) == continue_7(top_p=0.0) == likeliest != continue_7()


def test_logits_may_be_a_row_of_another_kind(continue_7, monkeypatch):
    expected = continue_7(top_k=3)
    plain_call = CachedGPT.__call__
    lengths = []

    def call(self, tokens):
        lengths.append(len(tokens))
        (logits,) = plain_call(self, tokens)
        return [SimpleNamespace(tolist=lambda: logits)]

    monkeypatch.setattr(CachedGPT, "__call__", call)
    assert continue_7(top_k=3) == expected
    assert lengths[:8] == [1] * 8  # the cache is used


# --- documents ---


@pytest.mark.parametrize("prompt", ["", "bo", "cleoabba" * 3])
def test_generate_streams_after_endoftext_and_the_prompt(model, tokenizer, prompt):
    for end in tokenizer.end, tokenizer.vocab["a"]:  # it ends where the tokenizer says
        other = copy.copy(tokenizer)
        other.end = end
        tokens = [end, *tokenizer.encode(prompt)]
        for seed in range(5):
            rng = random.Random(seed)
            new = stream(model, tokens, Sampling(0.9), rng, end, max_tokens=20)
            options = {"seed": seed, "max_tokens": 20, "temperature": 0.9}
            text = generate(model, other, prompt, **options)
            assert text == prompt + tokenizer.decode(new)


def test_a_seed_may_be_a_generator_that_goes_on(model, tokenizer):
    rng = random.Random(1)
    texts = [generate(model, tokenizer, seed=rng) for _ in range(2)]
    assert texts[0] == generate(model, tokenizer, seed=1)
    assert texts[0] != texts[1]
    unseeded = {generate(model, tokenizer, "b" * 20) for _ in range(20)}
    assert len(unseeded) > 1


def test_what_is_unknown_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="'z'"):
        generate(model, tokenizer, "az")
    with pytest.raises(TypeError, match="top_q"):
        generate(model, tokenizer, top_q=1)
