"""examples/lookahead.py: the likeliest next tokens, and ways to finish a document."""

import math
import os
import re
import subprocess
import sys

import lookahead
import pytest
from helpers import ABC, draws, make, probabilities, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lookahead import completions, predict

import microgpt
from microgpt import (
    END,
    GPT,
    BPETokenizer,
    CachedGPT,
    CharTokenizer,
    Config,
    generate,
    save_model,
    score,
)

LOOKAHEAD = lookahead.__file__
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
AB = CharTokenizer(["ab"])  # where all texts are listed, two letters are enough
TEXTS = st.text("abc", max_size=20)
SEEDS = st.integers(0, 999)
SHARP = st.sampled_from(
    [0.0, 1.0, 3.0, 40.0]
)  # all equally likely ... one nearly certain


def close(x, rel=1e-9):
    return pytest.approx(x, rel=rel, abs=1e-12)


@pytest.mark.parametrize("look", [predict, completions])
def test_an_unknown_character_is_an_error_that_names_it(look):
    with pytest.raises(ValueError, match="'z' is not one of"):
        look(make(), ABC, "abz")


# predict


@settings(max_examples=30)
@given(st.text("abc", max_size=7), SEEDS)
def test_a_prediction_is_what_score_gives_the_next_token(text, seed):
    model = make(seed=seed)
    for i, x in enumerate(score(model, ABC, text, k=4)):
        assert predict(model, ABC, text[:i], k=4) == [
            (token, close(p)) for token, p in x.likeliest
        ]


@settings(max_examples=30)
@given(TEXTS, st.integers(1, 9), SEEDS, SHARP)
def test_a_prediction_reads_the_last_block_of_the_prompt(text, block, seed, sharp):
    model = make(block_size=block, seed=seed, sharp=sharp)
    expected = probabilities(model(tokens_of(text)[:-1][-block:])[-1])
    found = predict(model, ABC, text, k=4)
    assert dict(found) == close(dict(zip([*"abc", END], expected)))
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert sum(p for _, p in found) == close(1.0)


@settings(max_examples=40)
@given(TEXTS, st.integers(1, 9), SEEDS, SHARP)
def test_the_likeliest_next_token_is_what_temperature_0_writes(
    text, block, seed, sharp
):
    model = make(block_size=block, seed=seed, sharp=sharp)
    ((token, _),) = predict(model, ABC, text, k=1)
    written = generate(model, ABC, text, temperature=0, max_tokens=1)
    assert written == text + token.replace(END, "")


def test_predictions_by_hand():
    model = draws(0.5, 0.125, 0.0, 0.375)
    for prompt in ("", "a", "abcabcabc"):
        assert predict(model, ABC, prompt, k=3) == [
            ("a", close(1 / 2)),
            (END, close(3 / 8)),
            ("b", close(1 / 8)),
        ]
    assert len(predict(model, ABC)) == len(predict(model, ABC, k=99)) == 4
    assert predict(model, ABC, k=0) == []


# completions


def ways(model, tokens, n):
    """Every way to go on, to the end or for n tokens: [(ids, p), ...]."""
    found = []
    end = model.config.vocab_size - 1
    for i, p in enumerate(probabilities(model(tokens[-model.config.block_size :])[-1])):
        if i == end or n == 1:
            found.append(([i], p))
        else:
            found += [([i] + ids, p * q) for ids, q in ways(model, tokens + [i], n - 1)]
    return found


def exhaustive(model, prompt, n, tokenizer=AB):
    tokens = tokens_of(prompt, tokenizer)[:-1]
    return {tokenizer.decode(ids): p for ids, p in ways(model, tokens, n)}


def check(found, expected, k):
    """Are these the k likeliest? Of equally likely ones, any may be left out."""
    assert [p for _, p in found] == close(sorted(expected.values(), reverse=True)[:k])
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert len({text for text, _ in found}) == len(found)
    for text, p in found:
        assert p == close(expected[text])


@settings(max_examples=30)
@given(
    st.text("ab", max_size=6),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 30),
    SEEDS,
    SHARP,
)
def test_a_wide_beam_finds_what_exhaustive_search_finds(
    prompt, block, n, k, seed, sharp
):
    model = make(AB, block, seed, sharp)
    check(
        completions(model, AB, prompt, k, n, beam=99), exhaustive(model, prompt, n), k
    )


@pytest.mark.parametrize("block", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt", ["", "ab", "abba", "abbababba"])
def test_a_prompt_may_fill_the_block_and_more(block, prompt):
    model = make(AB, block, seed=3)
    check(
        completions(model, AB, prompt, 99, 4, beam=99), exhaustive(model, prompt, 4), 99
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_all_that_is_finished_or_cut_off_has_probability_1(n):
    found = completions(make(AB, seed=n), AB, "b", 999, n, beam=999)
    assert sum(p for _, p in found) == pytest.approx(1.0, rel=1e-12)
    assert len(found) == sum(2**i for i in range(n)) + 2**n  # finished, cut off
    assert all(text.endswith(END) or len(text) == n for text, _ in found)


def beam_search(model, tokens, n, beam):
    """All that a beam search comes upon: {ids: p}.

    Each step reads from the start, without a cache, and nothing ends the search early.
    """
    found = {}
    followed = {(): 1.0}
    for length in range(1, n + 1):
        longer = {}
        for ids, p in followed.items():
            context = (tokens + list(ids))[-model.config.block_size :]
            longer.update(
                {
                    (*ids, i): p * q
                    for i, q in enumerate(probabilities(model(context)[-1]))
                }
            )
        ended = {ids for ids in longer if ids[-1] == tokens[0] or length == n}
        found.update((ids, longer[ids]) for ids in ended)
        best = sorted(longer.keys() - ended, key=longer.get, reverse=True)[:beam]
        followed = {ids: longer[ids] for ids in best}
    return found


@settings(max_examples=30)
@given(
    st.text("abc", max_size=9),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 3),
    SEEDS,
    st.sampled_from([1.0, 3.0]),
)
def test_of_a_narrow_beam_all_that_ends_anywhere_competes(
    prompt, block, n, k, more, seed, sharp
):
    model = make(ABC, block, seed, sharp)
    found = beam_search(model, tokens_of(prompt)[:-1], n, k + more)
    expected = {ABC.decode(ids): p for ids, p in found.items()}
    check(completions(model, ABC, prompt, k, n, k + more), expected, k)


def test_what_ends_needs_no_place_in_the_beam():
    # With a 0.5, b 0.3, end 0.2, a beam of 1 follows a, aa, aaa. An end is never the
    # likeliest token. Yet the best of what was found are end 0.2, aaa 0.125, a end 0.1.
    assert completions(draws(0.5, 0.3, 0.0, 0.2), ABC, "", 1, 3, beam=1) == [
        (END, close(0.2))
    ]


def test_a_wider_beam_finds_what_the_greedy_one_misses():
    missed = 0
    for seed in range(20):
        model = make(AB, seed=seed)
        best = max(exhaustive(model, "", 3).values())
        ((_, narrow),) = completions(model, AB, "", 1, 3, beam=1)
        ((_, wide),) = completions(model, AB, "", 1, 3, beam=99)
        assert narrow <= wide * (1 + 1e-9) and wide == close(best)
        missed += narrow < 0.99 * best
    assert missed > 0


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 6), SEEDS, SHARP)
def test_whatever_the_beam_what_is_found_has_its_true_probability(k, more, seed, sharp):
    model = make(AB, 4, seed, sharp)
    found = completions(model, AB, "ab", k, 4, k + more)
    expected = exhaustive(model, "ab", 4)
    check(found, {text: expected[text] for text, _ in found}, k)


@settings(max_examples=20)
@given(st.text("abc", max_size=3), SEEDS)
def test_a_finished_text_has_its_share_of_the_documents_that_begin_as_the_prompt_does(
    prompt, seed
):
    model = make(seed=seed)
    begun = math.prod(x.probability for x in score(model, ABC, prompt)[:-1])
    for text, p in completions(model, ABC, prompt, 9, 4):
        if text.endswith(END):
            document = prompt + text.replace(END, "")
            whole = math.exp(-sum(x.loss for x in score(model, ABC, document)))
            assert p == close(whole / begun)


def test_completions_by_hand():
    # All of two tokens, with a: 1/2, b: 3/16, end: 5/16:
    # end 80/256; aa 64, ab 24, a end 40; ba 24, bb 9, b end 15.
    expected = [(END, 80), ("aa", 64), ("a" + END, 40)]
    found = completions(draws(0.5, 0.1875, 0.0, 0.3125), ABC, "abc", k=3, max_tokens=2)
    assert found == [(text, close(n / 256)) for text, n in expected]


def test_tokens_without_any_probability_are_never_part_of_a_completion():
    found = completions(draws(0.5, 0.25, 0.0, 0.25), ABC, "", 99, 3, beam=99)
    assert len(found) == 1 + 2 + 4 + 8 and all("c" not in text for text, _ in found)
    assert sum(p for _, p in found) == close(1.0)
    assert completions(draws(1.0, 0.0, 0.0, 0.0), ABC, "", 5, 6) == [("aaaaaa", 1.0)]


@pytest.fixture
def reads(monkeypatch):
    """How many tokens are read at once, each time that any are read."""
    counts = []

    class Watched(CachedGPT):
        def __call__(self, tokens):
            counts.append(len(tokens))
            return super().__call__(tokens)

    monkeypatch.setattr(lookahead, "CachedGPT", Watched)
    return counts


def test_within_the_block_a_token_is_read_once_and_beyond_it_the_last_block_is(reads):
    model = draws(0.9999, 0.0001, 0.0, 0.0)  # with a block of 4 tokens
    completions(model, ABC, "a", 1, 6, beam=1)
    assert reads == [2, 1, 1, 4, 4, 4]
    reads.clear()
    completions(model, ABC, "aaaaaaa", 1, 2, beam=1)
    assert reads == [4, 4]


@pytest.mark.parametrize("k, calls", [(1, 1), (2, 3)])
def test_the_search_stops_when_nothing_that_grows_can_still_win(reads, k, calls):
    # end 0.9. What grows has at most 0.06: after 1 call the best is known. After 2
    # more, of "a" and "b", so is the second: a end 0.054, as nothing that grows has
    # more than 0.06 * 0.06.
    found = completions(draws(0.06, 0.04, 0.0, 0.9), ABC, "", k, max_tokens=50)
    assert found == [(END, close(0.9)), ("a" + END, close(0.054))][:k]
    assert len(reads) == calls


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_the_beam_bounds_the_work(reads, beam):
    completions(draws(0.4, 0.3, 0.2999, 0.0001), ABC, "", 1, 6, beam)
    assert 1 < len(reads) <= 1 + 5 * beam


@settings(max_examples=30)
@given(st.text("abc", max_size=9), st.integers(1, 9), SEEDS)
def test_a_copied_reader_reads_on_by_itself(text, block, seed):
    """Two readers that were one give what a model gives that reads all at once."""
    model = make(block_size=block, seed=seed)
    start = tokens_of(text)[:-1][:block]
    reader = CachedGPT(model)
    if len(start) > 1:
        reader(start[:-1])
    copy = lookahead.copy_of(reader)
    for each, token in ((reader, start[-1]), (copy, (start[-1] + 1) % 4)):
        expected = model(start[:-1] + [token])[-1]
        assert each([token])[-1] == close(expected)


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 8), SEEDS, SHARP)
def test_to_stop_early_costs_nothing(k, more, n, seed, sharp):
    """What goes on is never likelier than what it goes on from.

    So if all the best are finished, a longer search finds the same ones. (Where all are
    equally likely, it may find others of the same probability.)
    """
    model = make(seed=seed, sharp=sharp)
    table = model.params["wte.weight"]
    table[ABC.end] = [2 * x for x in table[ABC.end]]  # so that some end soon
    found = completions(model, ABC, "a", k, n, k + more)
    if len(found) == k and all(text.endswith(END) for text, _ in found):
        longer = completions(model, ABC, "a", k, n + 5, k + more)
        assert [p for _, p in longer] == close([p for _, p in found])
        assert sharp == 0 or longer == found


@pytest.mark.parametrize(
    "options",
    [
        {"k": 3, "beam": 2},
        {"k": 11},
        {"k": 0},
        {"k": -1},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"k": 1, "beam": 0},
    ],
)
def test_impossible_searches_are_refused_with_their_numbers(options):
    with pytest.raises(ValueError) as refused:
        completions(make(), ABC, "a", **options)
    told = dict(re.findall(r"(k|max_tokens|beam) (?:is )?(-?\d+)", str(refused.value)))
    assert told == {
        name: str(x)
        for name, x in {"k": 5, "max_tokens": 20, "beam": 10, **options}.items()
    }


def test_bytes_that_are_no_character_can_be_completions():
    tokenizer = BPETokenizer.train(["low"], 258)
    model = GPT(Config(tokenizer.vocab_size, 4, n_head=1, n_embd=2), seed=1)
    found = completions(model, tokenizer, "lowé", 300, 1, beam=300)
    context = tokens_of("lowé", tokenizer)[:-1][-4:]
    best = sorted(probabilities(model(context)[-1]), reverse=True)
    assert [p for _, p in found] == close(best)
    assert any(text == "\ufffd" for text, _ in found)


# the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a model that knows a, b, é and a wide character."""
    tokenizer = CharTokenizer(["ab\u00e9\u5929"])
    directory = str(tmp_path_factory.mktemp("saved"))
    save_model(make(tokenizer, seed=2), directory, tokenizer)
    return directory


@pytest.fixture(params=["lookahead.py", "microgpt.py"])
def run(request):
    """Run the command in both ways."""
    command = (
        [LOOKAHEAD]
        if request.param == "lookahead.py"
        else [microgpt.__file__, "lookahead"]
    )
    return lambda *args, **env: subprocess.run(
        [sys.executable, *command, *args],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**ENV, "PYTHONIOENCODING": "utf-8", **env},
    )


def tables(output):
    """What the command printed: [[(quoted text, share), ...], ...]."""
    parts = re.split("next token\n|to the end\n", output)
    assert parts[0] == "" and len(parts) == 3
    rows = [re.findall(r"^ +(\S+)%  (.*)$", part, re.M) for part in parts[1:]]
    return [[(text, float(p) / 100) for p, text in part] for part in rows]


@pytest.mark.parametrize(
    "args, prompt, k",
    [
        ([], "", 5),
        (["ab"], "ab", 5),
        (["b\u00e9" * 9, "-k", "3"], "b\u00e9" * 9, 3),
        (["-k", "12", "a"], "a", 12),
    ],
)
def test_the_command_prints_what_the_functions_find(run, saved, args, prompt, k):
    child = run(saved, *args)
    assert (child.returncode, child.stderr) == (0, "")
    model = microgpt.load_model(saved)
    tokenizer = microgpt.load_tokenizer(saved)
    expected = [
        predict(model, tokenizer, prompt, k),
        completions(model, tokenizer, prompt, k, beam=max(10, k)),
    ]
    for found, rows in zip(tables(child.stdout), expected):
        assert [p for _, p in found] == pytest.approx([p for _, p in rows], abs=0.00006)
        for (text, _), (way, _) in zip(found, rows):
            assert (
                text == repr(way)
                or text[-3:] == "..."
                and repr(way).startswith(text[:-3])
            )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_its_lines_have_80_columns_at_most_and_only_letters_that_the_output_has(
    tmp_path, run, encoding
):
    tokenizer = CharTokenizer(["\u5929\u5730\u4eba", "\x1b\n\t"])
    save_model(make(tokenizer, sharp=3.0), tmp_path, tokenizer)
    child = run(str(tmp_path), "\u5929\n\x1b", PYTHONIOENCODING=encoding)
    assert (child.returncode, child.stderr) == (0, "")
    lines = child.stdout.split("\n")
    assert max(sum(2 if c >= "\u2e80" else 1 for c in line) for line in lines) in range(
        40, 81
    )
    assert all(line.isprintable() for line in lines)
    assert ("\u5929" in child.stdout) == (encoding == "utf-8")
    assert ("\\u5929" in child.stdout) == (encoding != "utf-8")


@pytest.mark.parametrize(
    "args, words",
    [
        (["nowhere"], ["nowhere", "No such file"]),
        (["DIR", "abz"], ["'z' is not one of"]),
        (["DIR", "-k", "0"], ["k is 0"]),
        (["DIR", "a", "-k", "-3"], ["k is -3"]),
    ],
)
def test_what_cannot_be_is_one_line(run, saved, args, words):
    child = run(*[saved if arg == "DIR" else arg for arg in args])
    assert (child.returncode, child.stdout) == (1, "")
    assert re.fullmatch("lookahead: .*\n", child.stderr)
    assert all(word in child.stderr for word in words)


@pytest.mark.parametrize(
    "args", [[], ["DIR", "a", "b"], ["DIR", "-k", "many"], ["DIR", "--bogus"]]
)
def test_arguments_that_do_not_fit_are_told_with_the_usage(run, args):
    child = run(*args)
    assert (child.returncode, child.stdout) == (2, "")
    assert (
        child.stderr.startswith("usage: lookahead ") and "Traceback" not in child.stderr
    )


def test_a_reader_that_has_seen_enough_gets_no_traceback(saved):
    for command in ([LOOKAHEAD], [microgpt.__file__, "lookahead"]):
        reading, writing = os.pipe()
        os.close(reading)
        child = subprocess.Popen(
            [sys.executable, *command, saved],
            env=ENV,
            stdout=writing,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        os.close(writing)
        error = child.communicate()[1]
        assert child.returncode == 1 and error == ""


def test_microgpts_main_returns_its_status(saved, capsys):
    assert microgpt.main(["lookahead", saved, "ab"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 5 + 5
    assert microgpt.main(["lookahead", saved, "z"]) == 1
    output, error = capsys.readouterr()
    assert output == "" and error.startswith("lookahead: 'z'")
