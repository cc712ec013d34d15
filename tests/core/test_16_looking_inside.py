"""Chapter 16: how likely a text is, and whether a loss is any good."""

import math
import random
import re
from fractions import Fraction
from itertools import product

import pytest
from helpers import ABC, draws, make, probabilities, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import (
    END,
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    baselines,
    cut_windows,
    evaluate,
    generate,
    reading,
    score,
)

TEXTS = st.text("abc", max_size=20)
SEEDS = st.integers(0, 999)
SHARP = st.sampled_from(
    [0.0, 1.0, 3.0, 40.0]
)  # all equally likely ... one nearly certain


def distributions(model, tokens):
    """For each token but the first, the probabilities of all, from those before it."""
    n = model.config.block_size
    return [
        probabilities(model(tokens[i // n * n : i + 1])[-1])
        for i in range(len(tokens) - 1)
    ]


def close(x, rel=1e-9):
    return pytest.approx(x, rel=rel, abs=1e-12)


# score


@settings(max_examples=30)
@given(TEXTS, st.integers(1, 9), SEEDS, SHARP)
def test_a_token_gets_the_softmax_of_the_logits_after_those_before_it(
    text, block, seed, sharp
):
    model = make(block_size=block, seed=seed, sharp=sharp)
    tokens = tokens_of(text)
    scored = score(model, ABC, text)
    expected = distributions(model, tokens)
    assert [x.id for x in scored] == tokens[1:]
    assert [x.token for x in scored] == [*text, END]
    assert [x.probability for x in scored] == close(
        [p[i] for p, i in zip(expected, tokens[1:])]
    )
    assert [x.loss for x in scored] == close([-math.log(x.probability) for x in scored])


@settings(max_examples=30)
@given(TEXTS, st.integers(1, 9), SEEDS)
def test_the_mean_loss_of_the_tokens_is_the_loss_of_the_document(text, block, seed):
    model = make(block_size=block, seed=seed)
    pieces = cut_windows(text, ABC, block)
    losses = [x.loss for x in score(model, ABC, text)]
    assert len(losses) == len(text) + 1  # each once, however many the windows
    assert sum(losses) / len(losses) == close(evaluate(model, pieces))
    assert sum(losses) / len(losses) == close(model.loss(pieces))


@settings(max_examples=30)
@given(TEXTS, SEEDS)
def test_the_product_of_the_probabilities_is_e_to_minus_the_sum_of_losses(text, seed):
    scored = score(make(seed=seed), ABC, text)
    together = math.prod(x.probability for x in scored)
    assert together == pytest.approx(math.exp(-sum(x.loss for x in scored)), rel=1e-10)


@pytest.mark.parametrize("block", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_probabilities_of_all_documents_and_of_what_goes_on_sum_to_1(block, seed):
    """All up to three characters, and those that begin with any four."""
    model = make(block_size=block, seed=seed)
    total = 0.0
    for n in range(5):
        for letters in product("abc", repeat=n):
            scored = score(model, ABC, "".join(letters), k=0)
            total += math.prod(
                x.probability for x in (scored if n < 4 else scored[:-1])
            )
    assert total == pytest.approx(1.0, rel=1e-12)


def test_the_empty_document_is_a_single_token_the_end():
    model = make()
    (only,) = score(model, ABC, "")
    assert (only.token, only.id) == (END, ABC.end)
    assert only.probability == close(probabilities(model([ABC.end])[0])[ABC.end])


def test_scores_by_hand_of_a_model_that_draws_with_known_probabilities():
    scored = score(draws(0.5, 0.125, 0.125, 0.25), ABC, "abaca", k=2)
    assert [x.probability for x in scored] == close(
        [1 / 2, 1 / 8, 1 / 2, 1 / 8, 1 / 2, 1 / 4]
    )
    assert [x.loss / math.log(2) for x in scored] == close(
        [1, 3, 1, 3, 1, 2]
    )  # in bits
    for x in scored:
        assert x.likeliest == [("a", close(0.5)), (END, close(0.25))]


@settings(max_examples=30)
@given(TEXTS, SEEDS, st.integers(0, 9))
def test_the_likeliest_are_the_k_best_in_falling_order(text, seed, k):
    model = make(seed=seed)
    tokens = tokens_of(text)
    for x, p in zip(score(model, ABC, text, k), distributions(model, tokens)):
        best = sorted(zip(p, [*"abc", END]), reverse=True)[
            :k
        ]  # 4 tokens: all, for k over 4
        assert [token for token, _ in x.likeliest] == [token for _, token in best]
        assert [q for _, q in x.likeliest] == close([q for q, _ in best])


def test_a_score_has_three_of_the_likeliest_unless_told():
    assert {len(x.likeliest) for x in score(make(), ABC, "abc")} == {3}


def test_a_character_in_bytes_is_scored_byte_by_byte():
    tokenizer = BPETokenizer.train(["low lower"], 260)  # "lo", "low" are tokens, é not
    model = GPT(Config(tokenizer.vocab_size, 3, n_head=1, n_embd=2), seed=1)
    scored = score(model, tokenizer, "lowé", k=300)
    tokens = tokens_of("lowé", tokenizer)
    assert [x.token for x in scored] == ["low", "\ufffd", "\ufffd", END]
    assert tokenizer.decode([x.id for x in scored]) == "lowé" + END
    for x, token, p in zip(scored, tokens[1:], distributions(model, tokens)):
        assert x.id == token and x.probability == close(p[token])
        assert len(x.likeliest) == tokenizer.vocab_size
        assert sum(q for _, q in x.likeliest) == close(1.0)


def test_an_end_token_within_a_text_is_scored_as_the_token_it_is():
    scored = score(draws(0.5, 0.125, 0.125, 0.25), ABC, "a" + END + "b")
    assert [x.token for x in scored] == ["a", END, "b", END]
    assert [x.probability for x in scored] == close([1 / 2, 1 / 4, 1 / 8, 1 / 4])


def test_an_unknown_character_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'z' is not one of .*'abc'"):
        score(make(), ABC, "abz")


@pytest.mark.parametrize("sharp", [1e3, 1e6, 1e100])
def test_a_probability_that_rounds_to_0_has_a_finite_loss(sharp):
    model = make(sharp=sharp)
    tokens = tokens_of("aabbccabc")
    scored = score(model, ABC, "aabbccabc")
    assert min(x.probability for x in scored) == 0.0
    assert all(0 <= x.loss < math.inf for x in scored)
    n = model.config.block_size
    clear = 0
    for i, x in enumerate(scored):
        logits = model(tokens[i // n * n : i + 1])[-1]
        second, first = sorted(logits)[-2:]
        if first - second > 50:  # then log(sum of e^logit) is the first, to all digits
            clear += 1
            assert x.loss == close(first - logits[x.id])
    assert clear > 3


# baselines

NAMES = ["knows nothing", "frequencies", "pairs", "triples"]


def nats(*fractions):
    """The mean loss of tokens that were given these probabilities."""
    return close(-sum(math.log(p) for p in fractions) / len(fractions), rel=1e-13)


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


def test_contexts_never_seen_count_for_nothing():
    # As above. Nothing ever followed 3, 3 3 or 3 0. And p2(3) after 0 = (3 * 3/36) / 6.
    f = Fraction
    found = baselines([[2, 0, 1, 2], [2, 0, 0, 2]], [[3, 3, 0, 3]], 4)
    alone = f(3, 36)
    then = f(15, 36)
    last = f(1, 24)
    assert list(found.values()) == [
        nats(f(1, 4)),
        nats(alone, then, alone),
        nats(alone, then, last),
        nats(alone, then, last),
    ]


def test_without_any_text_all_know_nothing():
    assert list(baselines([], [[0, 1, 2]], 5).values()) == [close(math.log(5))] * 4


WINDOW = st.lists(st.integers(0, 3), min_size=2, max_size=7)
WINDOWS = st.lists(WINDOW, min_size=1, max_size=6)


def counted(windows, before, token, vocab_size):
    """Witten and Bell's definition, slowly: p(token) after these tokens, as a fraction.

    It goes through all windows each time, and keeps no tables.
    """
    if before is None:
        return Fraction(1, vocab_size)
    shorter = counted(windows, before[1:] if before else None, token, vocab_size)
    followers = [
        w[i]
        for w in windows
        for i in range(max(1, len(before)), len(w))
        if w[i - len(before) : i] == before
    ]
    if not followers:
        return shorter
    kinds = len(set(followers))
    return (followers.count(token) + kinds * shorter) / (len(followers) + kinds)


@settings(max_examples=40)
@given(WINDOWS, WINDOWS)
def test_the_counts_equal_those_of_a_slow_definition(windows, val_windows):
    expected = {"knows nothing": [], "frequencies": [], "pairs": [], "triples": []}
    for w in val_windows:
        for i in range(1, len(w)):
            for name, before in zip(
                expected, (None, [], w[i - 1 : i], w[max(0, i - 2) : i])
            ):
                expected[name].append(counted(windows, before, w[i], 5))
    assert baselines(windows, val_windows, 5) == {
        name: nats(*p) for name, p in expected.items()
    }


@settings(max_examples=40)
@given(WINDOWS, st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_after_any_tokens_the_probabilities_of_all_tokens_sum_to_1(windows, before):
    def given_as_last(
        name, token
    ):  # p of the last token: its own loss is the sum's growth
        whole = baselines(windows, [before + [token]], 5)[name] * len(before)
        if len(before) > 1:
            whole -= baselines(windows, [before], 5)[name] * (len(before) - 1)
        return math.exp(-whole)

    for name in NAMES:
        assert sum(given_as_last(name, token) for token in range(5)) == pytest.approx(
            1, rel=1e-10
        )


@settings(max_examples=30)
@given(WINDOWS, WINDOWS)
def test_every_held_out_token_counts_the_same_as_in_evaluate(windows, val_windows):
    parts = [baselines(windows, [w], 4) for w in val_windows]
    sizes = [len(w) - 1 for w in val_windows]
    found = baselines(windows, val_windows, 4)
    for name in NAMES:
        mean = sum(part[name] * n for part, n in zip(parts, sizes)) / sum(sizes)
        assert found[name] == close(mean)
    uniform = make(block_size=6, sharp=0.0)  # a GPT that knows nothing, for comparison
    assert (
        found["knows nothing"]
        == close(evaluate(uniform, val_windows))
        == close(math.log(4))
    )


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p)


def test_of_tokens_drawn_by_themselves_all_counts_come_near_the_entropy():
    p = [0.5, 0.25, 0.125, 0.125]
    rng = random.Random(1)
    text = rng.choices(range(4), p, k=20000)
    found = baselines([text[:15000]], [text[15000:]], 4)
    # `truth` is what the true probabilities give these very tokens. It differs from the
    # entropy by chance: the standard deviation is 0.47 nats / sqrt(5000 tokens).
    truth = -sum(math.log(p[token]) for token in text[15001:]) / 4999
    assert truth == pytest.approx(entropy(p), abs=4 * 0.48 / math.sqrt(4999))
    assert found["knows nothing"] == close(math.log(4))
    assert found["frequencies"] == pytest.approx(truth, abs=0.002)
    assert found["pairs"] == pytest.approx(truth, abs=0.01)
    assert found["triples"] == pytest.approx(truth, abs=0.02)


def test_of_a_chain_where_each_token_depends_on_the_one_before_pairs_know_all():
    # From i to i + 1 mod 4 with 0.7, to each other with 0.1. All are equally frequent.
    rng = random.Random(1)
    text = [0]
    while len(text) < 20000:
        text.append((text[-1] + rng.choices([1, 2, 3, 0], [0.7, 0.1, 0.1, 0.1])[0]) % 4)
    found = baselines([text[:15000]], [text[15000:]], 4)
    steps = [(b - a) % 4 for a, b in zip(text[15000:], text[15001:])]
    truth = -sum(math.log(0.7 if step == 1 else 0.1) for step in steps) / len(steps)
    assert truth == pytest.approx(
        entropy([0.7, 0.1, 0.1, 0.1]), abs=4 * 0.9 / math.sqrt(4999)
    )
    assert found["frequencies"] == pytest.approx(math.log(4), abs=0.01)
    assert found["pairs"] == pytest.approx(truth, abs=0.01)
    assert found["pairs"] - 0.002 < found["triples"] < found["pairs"] + 0.02
    assert found["pairs"] < found["frequencies"] - 0.4


def test_of_a_chain_where_each_token_depends_on_two_before_only_triples_know():
    # With 0.8 it is the sum of the two before, mod 3. One token alone tells nothing.
    rng = random.Random(1)
    text = [0, 1]
    while len(text) < 20000:
        text.append(
            (text[-1] + text[-2] + rng.choices([1, 2, 0], [0.8, 0.1, 0.1])[0]) % 3
        )
    found = baselines([text[:15000]], [text[15000:]], 3)
    assert found["frequencies"] == pytest.approx(math.log(3), abs=0.01)
    assert found["pairs"] == pytest.approx(math.log(3), abs=0.01)
    assert found["triples"] == pytest.approx(
        entropy([0.8, 0.1, 0.1]), abs=4 * 0.84 / 70
    )


# reading: first of trainings that really took place


def random_words(n, letters="abcdef", size=8):
    rng = random.Random(1)
    return ["".join(rng.choices(letters, k=size)) for _ in range(n)]


def two_back(n):
    """Texts in which a letter mostly follows from the two before it."""
    rng = random.Random(1)
    texts = []
    rule = {pair: rng.choice("abcd") for pair in product("abcd", repeat=2)}
    for _ in range(n):
        text = rng.choices("abcd", k=2)
        while len(text) < 12:
            text.append(
                rule[text[-2], text[-1]] if rng.random() < 0.8 else rng.choice("abcd")
            )
        texts.append("".join(text))
    return texts


def train(documents, **options):
    """Train for real -> trainer, losses, held-out loss, scale."""
    tokenizer = CharTokenizer(documents)
    model = GPT(Config(tokenizer.vocab_size, n_head=2, n_embd=8), seed=1)
    options = {"lr": 0.03, "warmup": 10, **options}
    trainer = Trainer(model, tokenizer, documents, TrainConfig(**options))
    losses = [step.loss for step in trainer]
    scale = baselines(trainer.windows, trainer.val_windows, tokenizer.vocab_size)
    return trainer, losses, evaluate(model, trainer.val_windows), scale


@pytest.mark.parametrize("lr, steps", [(10.0, 30), (100.0, 30)])
def test_a_learning_rate_far_too_high_is_said_to_diverge(lr, steps):
    _, losses, val_loss, scale = train(two_back(50), steps=steps, lr=lr, warmup=0)
    assert sum(losses[-5:]) / 5 > 3 * losses[0]  # it really did
    sentence = reading(losses, val_loss, scale)
    assert sentence.startswith("diverging") and "smaller lr" in sentence
    before, after = re.search(
        r"in training ([\d.]+) has become ([\d.]+);", sentence
    ).groups()
    assert float(before) < float(after)


@pytest.fixture(scope="module")
def learned_by_heart():
    return train(random_words(10, size=6), steps=200)


def test_few_documents_and_many_steps_are_said_to_overfit(learned_by_heart):
    _, losses, val_loss, scale = learned_by_heart
    assert losses[-1] < 0.5 * losses[0] < 0.5 * val_loss  # it really did
    assert reading(losses, val_loss, scale).startswith("overfitting")


def test_samples_that_are_training_documents_are_said_to_be_memorised(learned_by_heart):
    trainer, losses, val_loss, scale = learned_by_heart
    samples = [
        generate(trainer.model, trainer.tokenizer, temperature=0.5, seed=i)
        for i in range(20)
    ]
    copied = sum(sample in trainer.documents for sample in samples) / 20
    assert copied > 0.5  # it really did
    sentence = reading(losses, val_loss, scale, copied)
    assert sentence.startswith("memorising") and f"{copied:.0%}" in sentence


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_after_a_few_steps_it_is_said_to_be_no_better_than_pairs(steps):
    _, losses, val_loss, scale = train(two_back(50), steps=steps)
    sentence = reading(losses, val_loss, scale)
    assert (
        sentence.startswith("no better than counting pairs")
        and "more steps" in sentence
    )


def test_to_begin_below_nothing_as_a_model_may_is_not_said_to_diverge():
    """A model that has learned nothing is sure of things by chance, and loses by it."""
    _, losses, val_loss, scale = train(
        random_words(40, "abcdefghijklmnopqrst"), steps=1
    )
    assert scale["knows nothing"] < val_loss < 1.1 * losses[0]
    assert reading(losses, val_loss, scale).startswith("no better than counting pairs")


def test_after_some_steps_it_is_said_to_be_between_pairs_and_triples():
    _, losses, val_loss, scale = train(
        two_back(150), steps=30, val_fraction=0.4, seed=1
    )
    assert scale["pairs"] - 0.1 > val_loss > scale["triples"] + 0.1  # far from both
    assert reading(losses, val_loss, scale).startswith(
        "better than counting pairs, not triples"
    )


@pytest.mark.parametrize("steps, seed", [(10, 1), (20, 3), (15, 2), (20, 2)])
def test_a_few_batches_that_are_hard_or_easy_by_chance_are_not_taken_for_more(
    steps, seed
):
    trainer, losses, val_loss, scale = train(
        two_back(150), steps=steps, val_fraction=0.4, seed=seed
    )
    of_all = evaluate(
        trainer.model, trainer.windows
    )  # the loss, of all that it was trained on,
    assert of_all < losses[0] - 0.2  # has fallen,
    assert val_loss < 1.08 * of_all  # and held out it is about the same
    sentence = reading(losses, val_loss, scale)
    assert sentence.startswith("better than counting pairs, not triples")


def test_what_follows_from_more_than_two_tokens_is_said_to_be_better_than_triples():
    # Of 7 tokens, the 6 letters cannot be known, and that the end comes after 6 can.
    _, losses, val_loss, scale = train(random_words(100, "ab", 6), steps=40)
    assert 6 / 7 * math.log(2) - 0.05 < val_loss < scale["triples"] - 0.1
    assert reading(losses, val_loss, scale).startswith("better than counting triples")


def test_what_loses_to_frequencies_is_not_said_to_beat_pairs_or_triples():
    """On few texts without order, chance misleads the counts of pairs and triples."""
    tokenizer = CharTokenizer(["abcdefghijklmnopqrst"])
    documents = random_words(40, "aaaaabcdefghijklmnopqrst")
    pieces = [w for document in documents for w in cut_windows(document, tokenizer, 8)]
    scale = baselines(pieces[:36], pieces[36:], tokenizer.vocab_size)
    assert scale["frequencies"] < scale["pairs"] < scale["triples"]
    val_loss = (scale["frequencies"] + min(scale["pairs"], scale["knows nothing"])) / 2
    assert not reading([3.0, 2.9, val_loss], val_loss, scale).startswith("better")


# reading: then its rules, at their very bounds

SCALE = dict(zip(NAMES, (4.0, 3.0, 2.0, 1.0)))


def steps(*tenths):
    """The losses of 500 steps: 50 of each, and of the last until the end."""
    return [x for x in tenths for _ in range(50)] + [tenths[-1]] * (
        500 - 50 * len(tenths)
    )


def above(x):
    return x + 1e-9


def below(x):
    return x - 1e-9


@pytest.mark.parametrize(
    "val_loss, beginning",
    [
        (above(2.0), "no better than counting pairs:"),
        (2.0, "no better than counting pairs:"),
        (below(2.0), "better than counting pairs, not triples:"),
        (1.0, "better than counting pairs, not triples:"),
        (below(1.0), "better than counting triples:"),
        (0.0, "better than counting triples:"),
    ],
)
def test_to_be_better_is_to_have_a_lower_loss(val_loss, beginning):
    assert reading(steps(3.0, 2.0), val_loss, SCALE).startswith(beginning)


def test_a_tenth_more_than_the_lowest_mean_is_not_yet_a_rise():
    assert not reading(steps(2.0, 1.0, below(1.1)), 1.0, SCALE).startswith("diverging")
    assert reading(steps(2.0, 1.0, above(1.1)), 1.0, SCALE).startswith("diverging")


def test_the_rise_is_told_between_means_of_a_tenth_of_the_steps():
    losses = steps(3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.5)
    losses[175:225] = [1.0] * 50  # half of two tenths: their means are 1.5
    losses[-1] = 7.5  # the last mean is 2.6
    sentence = reading(losses, 2.0, SCALE)
    assert sentence.startswith("diverging: in training 1.500 has become 2.600;")


def test_a_rise_above_the_very_first_loss_is_told_even_of_few_steps():
    assert reading([2.0] + [3.0] * 29, 3.0, SCALE).startswith(
        "diverging: in training 2.000 has"
    )
    assert not reading([3.0] * 30, 3.0, SCALE).startswith("diverging")


@pytest.mark.parametrize("loss, rose", [(7.1, True), (6.9, False)])
def test_of_few_steps_a_mean_is_that_of_25(loss, rose):
    losses = [2.0] * 35 + [loss] + [2.0] * 24  # means of the last 25: 2.204 and 2.196
    assert reading(losses, 2.0, SCALE).startswith("diverging") == rose


def test_one_bad_step_among_many_is_no_divergence():
    losses = steps(2.0)
    losses[-5] = 5.0
    assert not reading(losses, 2.0, SCALE).startswith("diverging")


def test_half_of_the_samples_may_be_training_documents_and_no_more():
    assert not reading(steps(1.0), 1.0, SCALE, 0.5).startswith("memorising")
    assert reading(steps(1.0), 1.0, SCALE, 0.55).startswith(
        "memorising: 55% of the different samples"
    )
    assert not reading(steps(1.0), 1.0, SCALE).startswith("memorising")


def test_a_tenth_more_held_out_than_in_training_is_not_yet_overfitting():
    assert not reading(steps(1.0), below(1.1), SCALE).startswith("overfitting")
    assert reading(steps(1.0), above(1.1), SCALE).startswith(
        "overfitting (training 1.000):"
    )


@settings(max_examples=30)
@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=45),
    st.floats(0.01, 10),
    st.lists(st.floats(0.1, 5), min_size=4, max_size=4),
    st.floats(0, 1),
)
def test_there_is_a_sentence_for_any_losses(losses, val_loss, scale, copied):
    sentence = reading(losses, val_loss, dict(zip(NAMES, scale)), copied)
    assert re.match("diverging|memorising|overfitting|no better|better", sentence)
    assert "\n" not in sentence and "nan" not in sentence
