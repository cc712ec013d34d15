"""examples/lookahead.py: the likeliest next tokens, and ways to finish a document."""

import re

import lookahead
import pytest
from helpers import (
    ABC,
    defaults,
    draws,
    kept,
    make,
    probabilities,
    program,
    tokens_of,
    works,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lookahead import completions, predict

from microgpt import END, CachedGPT, CharTokenizer

BLOCKS = st.integers(1, 9)
SEEDS = st.integers(0, 999)
SHARP = st.sampled_from([0.0, 1.0, 3.0, 40.0])  # 0: all equal; 40: one nearly certain


def near(x):
    return pytest.approx(x, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("look", [predict, completions])
def test_an_unknown_character_is_an_error_that_names_it(look):
    with pytest.raises(ValueError, match=r"'z' [(]U[+]007A[)] is not in"):
        look(make(), ABC, "abz")


# --- The next token ---


@settings(max_examples=30)
@given(st.text("abc", max_size=20), BLOCKS, SEEDS, SHARP)
def test_a_prediction_reads_the_last_block_of_the_prompt(text, block, seed, sharp):
    model = make(block_size=block, seed=seed, sharp=sharp)
    expected = probabilities(model(tokens_of(text)[:-1][-block:])[-1])
    found = predict(model, ABC, text, k=4)
    assert dict(found) == near(dict(zip([*"abc", END], expected)))
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)


def test_predictions_by_hand():
    model = draws(0.5, 0.125, 0.0, 0.375)
    for prompt in ("", "a", "abcabcabc"):
        found = predict(model, ABC, prompt, k=3)
        assert found == [("a", near(1 / 2)), (END, near(3 / 8)), ("b", near(1 / 8))]
    assert len(predict(model, ABC)) == len(predict(model, ABC, k=99)) == 4


# --- Completions ---


def beam_search(model, tokens, n, beam):
    """All that a beam search comes upon: {text: p}.

    Each step reads from the start, without a cache, and nothing ends the search early.
    """
    found = {}
    followed = {(): 1.0}
    for length in range(1, n + 1):
        longer = {}
        for ids, p in followed.items():
            context = (tokens + list(ids))[-model.config.block_size :]
            for i, q in enumerate(probabilities(model(context)[-1])):
                longer[(*ids, i)] = p * q
        ended = {ids for ids in longer if ids[-1] == tokens[0] or length == n}
        found.update((ABC.decode(ids), longer[ids]) for ids in ended)
        best = sorted(longer.keys() - ended, key=longer.get, reverse=True)[:beam]
        followed = {ids: longer[ids] for ids in best}
    return found


@settings(max_examples=50)
@given(
    prompt=st.text("abc", max_size=9),
    block=BLOCKS,
    n=st.integers(1, 5),
    k=st.integers(1, 6),
    more=st.sampled_from([0, 1, 3, 99]),  # with 99, no text is missed
    seed=SEEDS,
    sharp=st.sampled_from([1.0, 3.0, 10.0]),
)
def test_completions_are_the_best_of_all_that_ends_in_the_search(
    prompt, block, n, k, more, seed, sharp
):
    model = make(ABC, block, seed, sharp)
    expected = beam_search(model, tokens_of(prompt)[:-1], n, k + more)
    found = completions(model, ABC, prompt, k, n, k + more)
    assert [p for _, p in found] == near(sorted(expected.values(), reverse=True)[:k])
    assert len({text for text, _ in found}) == len(found)
    for text, p in found:
        assert p == near(expected[text])


@pytest.mark.parametrize(
    "model, options, expected",
    [
        # All of two tokens, with a: 1/2, b: 3/16, end: 5/16:
        # end 80/256; aa 64, ab 24, a end 40; ba 24, bb 9, b end 15.
        (
            draws(0.5, 0.1875, 0.0, 0.3125),
            {"k": 3, "max_tokens": 2},
            {END: 80 / 256, "aa": 64 / 256, "a" + END: 40 / 256},
        ),
        # A beam of 1 follows a, aa, aaa. An end is never the likeliest token. Yet the
        # best of what was found are end 0.2, aaa 0.125, a end 0.1.
        (
            draws(0.5, 0.3, 0.0, 0.2),
            {"k": 1, "max_tokens": 3, "beam": 1},
            {END: 0.2},
        ),
        # What has no probability is never part of a completion.
        (draws(1.0, 0.0, 0.0, 0.0), {"k": 5, "max_tokens": 6}, {"aaaaaa": 1.0}),
    ],
)
def test_completions_by_hand(model, options, expected):
    found = completions(model, ABC, "abc", **options)
    assert found == [(text, near(p)) for text, p in expected.items()]


def test_by_default_5_of_at_most_20_tokens_from_a_beam_of_10(reads):
    found = completions(draws(0.4, 0.3, 0.3, 0.0), ABC)
    assert [len(text) for text, _ in found] == [20] * 5
    assert len(reads) == 1 + 3 + 9 + 17 * 10
    assert defaults(predict) == {"prompt": "", "k": 5}


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


def test_a_search_that_is_given_up_reads_nothing_more(reads):
    answers = iter([True, True, False])
    found = completions(draws(0.4, 0.3, 0.3, 0.0), ABC, go_on=lambda: next(answers))
    assert (found, reads) == ([], [1, 1])


@pytest.mark.parametrize("k, calls", [(1, 1), (2, 3)])
def test_the_search_stops_when_nothing_that_grows_can_still_win(reads, k, calls):
    # end 0.9. What grows has at most 0.06: after 1 call the best is known. After 2
    # more, of "a" and "b", so is the second: a end 0.054, as nothing that grows has
    # more than 0.06 * 0.06.
    found = completions(draws(0.06, 0.04, 0.0, 0.9), ABC, "", k, max_tokens=50)
    assert found == [(END, near(0.9)), ("a" + END, near(0.054))][:k]
    assert len(reads) == calls


@pytest.mark.parametrize(
    "wrong",
    [{"k": 3, "beam": 2}, {"k": 0}, {"max_tokens": 0}, {"k": 1, "beam": 0}],
)
def test_impossible_searches_are_refused_with_their_numbers(wrong):
    with pytest.raises(ValueError) as refused:
        completions(make(), ABC, "a", **wrong)
    told = dict(re.findall(r"(k|max_tokens|beam) (?:is )?(\d+)", str(refused.value)))
    given = {"k": 5, "max_tokens": 20, "beam": 10, **wrong}
    assert told == {name: str(x) for name, x in given.items()}


# --- The command ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model that knows a, b, é and a wide character, its tokenizer and its folder."""
    tokenizer = CharTokenizer(["ab\u00e9\u5929"])
    model = make(tokenizer, seed=2)
    return model, tokenizer, kept(model, tokenizer, tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize(
    "args, prompt, k",
    [
        ([], "", 5),
        (["b\u00e9" * 9, "-k", "3"], "b\u00e9" * 9, 3),
        (["-k", "12"], "", 12),
    ],
)
def test_the_command_prints_what_the_functions_find(saved, capsys, args, prompt, k):
    *parts, directory = saved
    assert lookahead.main([directory, *args]) == 0
    lines = iter(capsys.readouterr().out.splitlines())
    for title, find in [("next token", predict), ("to the end", completions)]:
        assert next(lines) == title
        for text, p in find(*parts, prompt, k):
            share, shown = re.fullmatch(r" +(\S+)%  '(.*)", next(lines)).groups()
            assert float(share) == pytest.approx(100 * p, rel=0.005)
            expected = text.replace(END, "⏎") + "'"
            assert shown == expected or expected.startswith(shown[:-3])
    assert list(lines) == []


def test_a_line_of_escapes_is_cut_to_79_columns(tmp_path):
    directory = kept(
        draws(0.0, 0.5, 0.5, 0.0), CharTokenizer(["a\u5929\u5730"]), tmp_path
    )
    options = {"script": program("lookahead"), "env": {"PYTHONIOENCODING": "ascii"}}
    lines = works(directory, "\u5929", **options).splitlines()
    assert max(map(len, lines)) == 79
    assert any("'\\u5929" in line for line in lines)


@pytest.mark.parametrize(
    "args, status, words",
    [
        (["nowhere"], 1, "'nowhere.*No such file"),
        (["DIR", "abz"], 1, "'z' .U.007A. is not in"),
        (["DIR", "-k", "0"], 2, "'0' is not a number from 1 to 1000"),
        (["DIR", "-k", "1001"], 2, "'1001' is not a number from 1 to 1000"),
        (["DIR", "-k", "many"], 2, "'many' is not a number from 1 to 1000"),
        ([], 2, "DIR"),
        (["DIR", "a", "b"], 2, "b"),
    ],
)
def test_what_cannot_be_is_said(saved, capsys, args, status, words):
    args = [saved[-1] if arg == "DIR" else arg for arg in args]
    try:
        ended = lookahead.main(args)
    except SystemExit as refused:
        ended = refused.code
    output, error = capsys.readouterr()
    assert (ended, output) == (status, "")
    assert re.search(f"^lookahead: .*{words}.*\n\\Z", error, re.MULTILINE)
