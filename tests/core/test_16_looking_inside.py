"""Chapter 16: how likely a text is, and whether a loss is any good."""

import math
import re
from fractions import Fraction

import pytest
from helpers import ABC, close, defaults, draws, make, probabilities, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import END, baselines, cut_windows, reading, score

# --- score ---


def distributions(model, tokens):
    """For each token but the first, the probabilities of all, from those before it."""
    n = model.config.block_size
    return [
        probabilities(model(tokens[i // n * n : i + 1])[-1])
        for i in range(len(tokens) - 1)
    ]


@settings(max_examples=40)
@given(
    text=st.text("abc", max_size=20),
    block=st.integers(1, 9),
    seed=st.integers(0, 999),
    sharp=st.sampled_from(
        [0.0, 1.0, 3.0, 40.0]
    ),  # from all alike to one nearly certain
    k=st.integers(0, 9),
)
def test_a_score_is_what_the_model_says_after_those_before(text, block, seed, sharp, k):
    model = make(block_size=block, seed=seed, sharp=sharp)
    tokens = tokens_of(text)
    scored = score(model, ABC, text, k)
    assert [x.id for x in scored] == tokens[1:]
    assert [x.token for x in scored] == [*text, END]
    for x, shares in zip(scored, distributions(model, tokens)):
        assert x.probability == pytest.approx(shares[x.id], rel=1e-9, abs=1e-12)
        assert x.loss == pytest.approx(-math.log(x.probability), rel=1e-9, abs=1e-12)
        assert [share for _, share in x.likeliest] == close(sorted(shares)[::-1][:k])
        for token, share in x.likeliest:
            i = ABC.vocab[token]
            assert share == pytest.approx(shares[i], rel=1e-9, abs=1e-12)
        assert len({token for token, _ in x.likeliest}) == min(k, 4)
    mean = sum(x.loss for x in scored) / len(scored)
    assert mean == pytest.approx(model.loss(cut_windows(text, ABC, block)))
    assert defaults(score) == {"k": 3}


def test_scores_by_hand_of_a_model_that_draws_with_known_probabilities():
    scored = score(draws(0.5, 0.125, 0.125, 0.25), ABC, "abaca" + END + "b", k=2)
    assert [x.token for x in scored] == [*"abaca", END, "b", END]
    assert [x.probability for x in scored] == close(
        [0.5, 1 / 8, 0.5, 1 / 8, 0.5, 0.25, 1 / 8, 0.25]
    )
    bits = [x.loss / math.log(2) for x in scored]
    assert bits == close([1, 3, 1, 3, 1, 2, 3, 2])
    for x in scored:
        assert [token for token, _ in x.likeliest] == ["a", END]
        assert [share for _, share in x.likeliest] == close([0.5, 0.25])


@pytest.mark.parametrize("sharp", [1e3, 1e6, 1e100])
def test_a_probability_that_rounds_to_0_has_a_finite_loss(sharp):
    model = make(sharp=sharp)
    tokens = tokens_of("aabbccabc")
    scored = score(model, ABC, "aabbccabc")
    assert min(x.probability for x in scored) == 0.0
    assert all(0 <= x.loss < math.inf for x in scored)
    clear = 0
    for i, x in enumerate(scored):
        logits = model(tokens[i // 8 * 8 : i + 1])[-1]
        second, first = sorted(logits)[-2:]
        if first - second > 50:  # then log(sum of e^logit) is the first, to all digits
            clear += 1
            assert x.loss == pytest.approx(first - logits[x.id], rel=1e-9)
    assert clear > 3


# --- baselines ---

NAMES = ["knows nothing", "frequencies", "pairs", "triples"]


def nats(*fractions):
    """The mean loss of tokens that were given these probabilities."""
    mean = -sum(math.log(p) for p in fractions) / len(fractions)
    return pytest.approx(mean, rel=1e-12)


def test_the_counts_worked_out_on_paper():
    # The windows are 2 0 1 2 and 2 0 0 2; token 3 never comes. To predict are
    #   in all       0 three times, 1 once, 2 twice: 6 of 3 kinds,
    #                p1(t) = (n + 3/4) / 9:
    #                p1(0) = 15/36, p1(1) = 7/36, p1(2) = 11/36, p1(3) = 3/36
    #   after 2      0 twice: 2 of 1 kind.           p2(0) = (2 + 15/36) / 3 = 29/36
    #   after 0      1, 0 and 2: 3 of 3 kinds.       p2(1) = (1 + 3 * 7/36) / 6 = 19/72
    #   after 1      2: 1 of 1 kind.                 p2(2) = (1 + 11/36) / 2 = 47/72
    #   after 2 0    1 and 0: 2 of 2 kinds.        p3(1) = (1 + 2 * 19/72) / 4 = 55/144
    #   after 0 1    2: 1 of 1 kind.                 p3(2) = (1 + 47/72) / 2 = 119/144
    f = Fraction
    found = baselines([[2, 0, 1, 2], [2, 0, 0, 2]], [[2, 0, 1, 2]], 4)
    assert list(found) == NAMES
    assert list(found.values()) == [
        nats(f(1, 4)),
        nats(f(15, 36), f(7, 36), f(11, 36)),
        nats(f(29, 36), f(19, 72), f(47, 72)),
        nats(f(29, 36), f(55, 144), f(119, 144)),
    ]  # the first has no two tokens before it
    assert list(baselines([], [[0, 1, 2]], 5).values()) == [nats(f(1, 5))] * 4


WINDOW = st.lists(st.integers(0, 3), min_size=2, max_size=7)
WINDOWS = st.lists(WINDOW, min_size=1, max_size=6)


def counted(windows, before, token, vocab_size):
    """Witten and Bell's definition, slowly: p(token) after these tokens, as a fraction.

    It goes through all windows each time, and keeps no tables.
    """
    if before is None:
        return Fraction(1, vocab_size)
    shorter = counted(windows, before[1:] if before else None, token, vocab_size)
    followers = []
    for w in windows:
        places = range(max(1, len(before)), len(w))
        followers += [w[i] for i in places if w[i - len(before) : i] == before]
    if not followers:
        return shorter
    kinds = len(set(followers))
    return (followers.count(token) + kinds * shorter) / (len(followers) + kinds)


@settings(max_examples=60)
@given(WINDOWS, WINDOWS)
def test_the_counts_equal_those_of_a_slow_definition(windows, val_windows):
    expected = {name: [] for name in NAMES}
    for w in val_windows:
        for i in range(1, len(w)):
            contexts = (None, [], w[i - 1 : i], w[max(0, i - 2) : i])
            for name, before in zip(NAMES, contexts):
                expected[name].append(counted(windows, before, w[i], 5))
    found = baselines(windows, val_windows, 5)
    assert found == {name: nats(*shares) for name, shares in expected.items()}


# --- reading ---

SCALE = dict(zip(NAMES, (4.0, 3.0, 2.0, 1.0)))


def steps(*tenths):
    """The losses of 500 steps: 50 of each, and of the last until the end."""
    tenths = [*tenths, *[tenths[-1]] * (10 - len(tenths))]
    return [x for x in tenths for _ in range(50)]


def above(x):
    return x + 1e-9


def below(x):
    return x - 1e-9


HALVES = steps(3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.5)
HALVES[175:225] = [1.0] * 50  # half of two tenths: their means are 1.5
HALVES[-1] = 7.5  # the last mean is 2.6
ONE_BAD = steps(2.0)
ONE_BAD[-5] = 5.0
DIVERGING = "diverging: in training "
BETWEEN = "better than counting pairs, not triples"


@pytest.mark.parametrize(
    "losses, val_loss, copied, beginning",
    [
        (steps(3.0, 2.0), above(2.0), 0.0, "no better than counting pairs:"),
        (steps(3.0, 2.0), 2.0, 0.0, "no better than counting pairs:"),
        (steps(3.0, 2.0), below(2.0), 0.0, BETWEEN),
        (steps(3.0, 2.0), 1.0, 0.0, BETWEEN),
        (steps(3.0, 2.0), below(1.0), 0.0, "better than counting triples:"),
        (steps(3.0, 2.0), 0.0, 0.0, "better than counting triples:"),
        (steps(2.0, 1.0, below(1.1)), 1.0, 0.0, BETWEEN),
        (steps(2.0, 1.0, above(1.1)), 1.0, 0.9, DIVERGING + "1.000 has become 1.100;"),
        (HALVES, 2.0, 0.0, DIVERGING + "1.500 has become 2.600;"),
        ([2.0] + [3.0] * 29, 3.0, 0.0, DIVERGING + "2.000 has become 3.000"),
        ([3.0] * 30, 3.0, 0.0, "no better"),
        # Of few steps a mean is that of 25: here of 2.204 and 2.196.
        ([2.0] * 35 + [7.1] + [2.0] * 24, 2.0, 0.0, DIVERGING),
        ([2.0] * 35 + [6.9] + [2.0] * 24, 2.0, 0.0, "no better"),
        (ONE_BAD, 2.0, 0.0, "no better"),
        (steps(1.0), above(1.1), 0.5, "overfitting (training 1.000):"),
        (steps(1.0), 1.1, 0.5, BETWEEN),
        (steps(0.0), 0.0, 0.0, "better than counting triples:"),
        (steps(1.0), above(1.1), 0.55, "memorising: 55% of the different samples"),
    ],
)
def test_the_rules_at_their_bounds(losses, val_loss, copied, beginning):
    assert reading(losses, val_loss, SCALE, copied).startswith(beginning)
    assert defaults(reading) == {"copied": 0.0}


def test_what_loses_to_frequencies_or_to_nothing_is_not_said_to_beat_pairs():
    """On few texts without order, chance misleads the counts of pairs and triples."""
    for scale in (3.0, 2.0, 2.5, 2.7), (2.0, 3.0, 3.5, 3.2), (3.0, 2.5, 2.9, 2.0):
        best = min(scale[:3])
        named = dict(zip(NAMES, scale))
        assert reading([3.0], best, named).startswith("no better")
        assert reading([3.0], below(best), named).startswith("better")


@settings(max_examples=30)
@given(
    losses=st.lists(st.floats(0.01, 10), min_size=1, max_size=45),
    val_loss=st.floats(0.01, 10),
    scale=st.lists(st.floats(0.1, 5), min_size=4, max_size=4),
    copied=st.floats(0, 1),
)
def test_there_is_a_sentence_for_any_losses(losses, val_loss, scale, copied):
    sentence = reading(losses, val_loss, dict(zip(NAMES, scale)), copied)
    assert re.match("diverging|memorising|overfitting|no better|better", sentence)
    assert "\n" not in sentence and "nan" not in sentence
