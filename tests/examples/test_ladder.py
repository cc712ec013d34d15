"""The ladder: each step runs by itself, and does what its text and README say."""

import ast
import importlib.util
import io
import itertools
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tokenize
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import END, GPT, CharTokenizer, Config, Tensor, split_documents

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "examples" / "ladder").glob("[0-9]*.py"))
STEPS = {path.stem[3:]: path for path in PATHS}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in STEPS.items()}
DOCS = {name: ast.get_docstring(ast.parse(text)) for name, text in SOURCES.items()}
MICROGPT = (ROOT / "microgpt.py").read_text(encoding="utf-8")
FOLDER = ROOT / "examples" / "ladder"
README = (FOLDER / "README.md").read_bytes().decode("utf-8")
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
LAST_LINE = r"(?m)^(\w+): ([\d,]+) parameters, held-out loss (\d+\.\d{3})\n\Z"

# README's table: {step: (question, parameters, held-out loss, seconds)}
LINK = r"\[(\w+)\]\(\d\d_\1\.py\)"
ROW = rf"(?m)^\| {LINK} \| (.*) \| (.*) \| (.*) \| (.*) \|$"
TABLE = {name: columns for name, *columns in re.findall(ROW, README)}


def load_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name, **constants):
    """A step as a new module, with some of its constants changed."""
    module = ModuleType(name)
    module.__file__ = str(STEPS[name])
    exec(compile(SOURCES[name], module.__file__, "exec"), vars(module))
    assert set(constants) <= set(vars(module))
    vars(module).update(constants)
    return module


def printed(function, *args):
    """What a function prints."""
    with redirect_stdout(io.StringIO()) as out:
        function(*args)
    return out.getvalue()


def close(x):
    return pytest.approx(x, rel=1e-9, abs=1e-9)


ladder = load_file(ROOT / "examples" / "ladder.py")
grammar = load_file(ROOT / "examples" / "ladder" / "grammar.py")
MODULES = {name: load(name) for name in STEPS}
CLASSES, PATTERNS = grammar.read_grammar()
ANIMALS = CLASSES["ANIMAL"]
VERBS = CLASSES["VERB"]

# The documents of all steps, split here once more.
NAMES = microgpt.load_documents(ROOT / "data" / "names.txt")
LETTERS = CharTokenizer(NAMES)
SIZE = LETTERS.vocab_size
KNOWN, UNSEEN = split_documents(NAMES, seed=42)
UNSEEN = UNSEEN[:500]
LINES = microgpt.load_documents(ROOT / "data" / "sentences.txt")
SENTENCES = [line.split() for line in LINES]
WORDS = CharTokenizer(SENTENCES).vocab
READ, NEW = split_documents(SENTENCES, 0.25, seed=42)


def tokens_of(names):
    """All that there is to predict in names: their letters and their ends."""
    return [LETTERS.vocab[token] for name in names for token in [*name, END]]


def shares_of(tokens):
    counts = Counter(tokens)
    return [counts[i] / len(tokens) for i in range(SIZE)]


def surprise(probabilities, shares):
    """The mean -log p of a text in which tokens have these shares."""
    return sum(-math.log(p) * share for p, share in zip(probabilities, shares) if share)


SHARES = shares_of(tokens_of(KNOWN))
UNSEEN_SHARES = shares_of(tokens_of(UNSEEN))


# What the steps print. Each check gets the output of one run.


def numbers_after(label, output):
    """The numbers in the line that begins with this label."""
    rest = re.search(rf"(?m)^ *{re.escape(label)} +(-?\d.*|inf.*)$", output)[1]
    return [float(x) for x in re.findall(r"-?\d+\.?\d*|inf", rest)]


def check_die(output):
    assert f"{math.log(SIZE):.3f} = log {SIZE}." in output
    assert re.search(r"A real name: (\w+)\.", output)[1] in KNOWN
    assert len(re.findall(r"(?m)^    [a-z]+$", output)) == 8


def check_weights(output):
    scores = [3, 1, 0, -2]
    plain = numbers_after("score", output)
    squared = numbers_after("score squared", output)
    softmax = numbers_after("e^score: softmax", output)
    assert plain == pytest.approx([x / 2 for x in scores], abs=6e-4)
    assert squared == pytest.approx([x * x / 14 for x in scores], abs=6e-4)
    assert softmax == pytest.approx(microgpt.softmax(scores), abs=6e-4)
    assert min(plain) < 0
    assert sorted(squared)[-2] == squared[-1]  # the lowest score comes second


def check_loss(output):
    rows = ["die", "weights by hand", "all on the a", "frequencies"]
    misses = {name: numbers_after(name, output)[0] for name in rows}
    surprises = {name: numbers_after(name, output)[1] for name in rows}
    assert min(misses, key=misses.get) == "all on the a"
    assert surprises["all on the a"] == math.inf
    assert min(surprises, key=surprises.get) == "frequencies"
    assert f"{surprises['weights by hand']:.3f}" == TABLE["weights"][2]


def check_nudging(output):
    losses = [float(x) for x in re.findall(r"(?m)^ +\d+  (\d\.\d+) ", output)]
    assert len(losses) == 7
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(surprise(SHARES, SHARES), abs=0.002)
    p, share = re.findall(r"(\d+\.\d)%", output)
    assert p == share == f"{100 * SHARES[0]:.1f}"


def check_value(output):
    assert "along a is 6.0, along b 3.0." in output
    rows = re.findall(r"(?m)^([a-z]) +(-?[\d.]+) +(-?[\d.]+)$", output)
    assert len(rows) == 7
    for token, nudged, backward in rows:
        slope = 1 / SIZE - SHARES[LETTERS.vocab[token]]
        assert float(backward) == pytest.approx(slope, abs=6e-9)
        assert float(nudged) == pytest.approx(slope, abs=2e-8)


def check_pairs(output):
    learned, counted = re.findall(r"held-out loss ([\d.]+)\n    after", output)
    assert float(learned) == pytest.approx(float(counted), abs=0.01)
    assert re.findall(r"after ([aq]): (\w+)", output) == [("a", "end"), ("q", "u")] * 2


def check_window(output):
    rows = dict(re.findall(r"(?m)^ +(\S+):((?: \S+ -?\d\.\d\d ?)+)$", output))
    near = {token: row.split()[::2] for token, row in rows.items()}
    assert list(near) == [*"aeq", "cats", "cars", "chase", "red"]
    assert set(near["a"][:4]) == set("eiou")
    assert not set(near["q"]) & set("aeiou")
    assert {"cats", *near["cats"]} == set(ANIMALS)
    assert {"cars", *near["cars"][:4]} == set(CLASSES["CAR"])
    assert {"chase", *near["chase"]} == set(VERBS)
    assert {"red", *near["red"][:2]} == set(CLASSES["COLOUR"])


LOOKS = re.compile(
    r"(?m)^ +(\w+) (\d+)%  \w+ \d+%  (\w+) (\d+)%  because \d+%  "
    r"-> (\w+) ([\d.]+)%, (\w+) ([\d.]+)%$"
)


def check_attention(output):
    with_positions, without = output.split("Without positions:")
    for a, weight, b, _, right, p, wrong, q in LOOKS.findall(with_positions):
        assert (a, b) == (right, wrong)
        assert int(weight) > 80
        assert float(p) > 90 > 10 > float(q)
    one, exchanged = LOOKS.findall(without)  # the two sentences are the same to it
    assert exchanged == one[2:4] + one[:2] + one[6:] + one[4:6]
    loss, loss_without = re.findall(r"unseen sentences: ([\d.]+)", output)
    assert float(loss) < 0.1 < math.log(2) < float(loss_without)
    assert f"{loss} after because" in SOURCES["memory"]


def check_block(output):
    losses = dict(re.findall(r"(?m)^    (\w.*?)  +(\S+)$", output))
    assert len(losses) == 6
    assert losses.pop("without layer norm") == "diverges"
    losses = {name: float(loss) for name, loss in losses.items()}
    complete = losses["complete"]
    assert complete < losses["without attention"] < losses["without residuals"]
    for part in ["without hidden layers", "without several heads"]:
        assert abs(losses[part] - complete) < losses["without attention"] - complete
    best = float(re.search(r"knows the grammar has ([\d.]+)\.", output)[1])
    assert best == pytest.approx(math.log(180) / 7, abs=6e-4)
    assert best < complete


def check_gpt(output):
    adam = re.search(r"Adam +rate 0.01 +(.*)", output)[1].split()
    plain = re.search(r"plain descent rate +[\d.]+ +(.*)", output)[1].split()
    assert max(map(float, adam)) - min(map(float, adam)) <= 1e-3
    assert float(plain[0]) == pytest.approx(float(adam[0]), abs=0.1)
    assert plain[1] == "diverges"
    assert float(plain[2]) > float(plain[0]) + 0.1
    losses = [float(x) for x in re.findall(r"step \d+  loss ([\d.]+)", output)]
    assert losses == sorted(losses, reverse=True)
    written = dict(re.findall(r"(?m)^temperature ([\d.]+): (.*)$", output))
    n_different = {t: len(set(names.split(", "))) for t, names in written.items()}
    assert n_different.pop("0") == 1
    assert min(n_different.values()) > 3


def check_memory(output):
    rows = re.findall(r"(?m)^ +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", output)
    assert [int(row[0]) for row in rows] == MODULES["memory"].LONGEST
    so, because, known, unknown = list(zip(*rows))[1:]
    assert max(map(float, so[1:])) < 0.05
    assert min(map(float, because)) > math.log(6)  # worse than a guess
    assert list(known) == sorted(known, reverse=True)
    assert min(unknown) == unknown[2] == TABLE["memory"][2]
    step = MODULES["memory"]
    read = step.tokens_of(KNOWN, LETTERS.vocab)
    unread = step.tokens_of(UNSEEN, LETTERS.vocab)
    scale = microgpt.baselines(read, unread, SIZE)
    assert unknown[1] == f"{scale['triples']:.3f}"
    bets = re.findall(r"(?m)^ +[\d.]+%  (\w+) \w+ (\w+) because (\w+) play$", output)
    assert len(bets) == 4
    assert all(animal not in (first, second) for first, second, animal in bets)


CHECKS = {
    "die": check_die,
    "weights": check_weights,
    "loss": check_loss,
    "nudging": check_nudging,
    "value": check_value,
    "pairs": check_pairs,
    "window": check_window,
    "attention": check_attention,
    "block": check_block,
    "gpt": check_gpt,
    "memory": check_memory,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_runs_by_itself_and_gives_the_result_in_readme(name, tmp_path):
    command = [sys.executable, str(STEPS[name])]
    run = subprocess.run(
        command, cwd=tmp_path, env=ENV, capture_output=True, encoding="utf-8"
    )
    assert (run.returncode, run.stderr) == (0, "")
    label, parameters, loss = re.search(LAST_LINE, run.stdout).groups()
    assert label == name
    question, shown_parameters, shown_loss, _ = TABLE[name]
    assert parameters == shown_parameters
    assert float(loss) == pytest.approx(float(shown_loss), abs=0.002)
    CHECKS[name](run.stdout)
    shown = re.search(rf"\$ python microgpt\.py ladder {name}\n([^$`]+)", README)
    if shown:
        lines = set(shown[1].splitlines()) - {"..."}
        assert lines <= set(run.stdout.splitlines())


# What all steps have in common


def test_there_are_eleven_steps_and_readme_has_them_in_order():
    assert [path.name[:3] for path in PATHS] == [f"{i:02}_" for i in range(1, 12)]
    assert list(TABLE) == list(STEPS)


def test_the_losses_fall_where_a_step_gains_something():
    loss = {name: float(row[2]) for name, row in TABLE.items()}
    assert loss["die"] > loss["weights"] == loss["loss"] > loss["nudging"]
    assert loss["nudging"] == loss["value"] > loss["pairs"] > loss["window"]
    assert loss["window"] > loss["attention"] > loss["gpt"] > loss["memory"]
    assert loss["window"] > loss["block"] > loss["attention"] - 0.01


def test_the_parameters_are_as_many_as_the_shapes_have_numbers():
    wide = 8
    hidden = 16
    count = dict.fromkeys(["weights", "loss", "nudging", "value"], SIZE)
    count["die"] = 0
    count["pairs"] = SIZE**2
    count["window"] = SIZE * (wide + hidden) + 3 * wide * hidden
    count["attention"] = (SIZE + 16 + 3 * wide) * wide + (2 * wide + SIZE) * hidden
    count["block"] = (2 * SIZE + 16) * wide + 2 * 8 * wide**2
    count["gpt"] = microgpt.parameter_count(Config(SIZE))
    endings = set()
    for name in KNOWN:
        tokens = [END, *name, END]
        for i in range(1, len(tokens)):
            endings.update(tuple(tokens[i - n : i + 1]) for n in range(min(i, 3) + 1))
    count["memory"] = len(endings)
    assert {name: f"{n:,}" for name, n in count.items()} == {
        name: row[1] for name, row in TABLE.items()
    }


def test_readme_shows_the_list_of_steps():
    shown = re.search(r"\$ python microgpt\.py ladder\n([^$`]+)", README)[1]
    lines = set(shown.splitlines()) - {"..."}
    assert lines <= set(printed(ladder.main, []).splitlines())


def code_lines(source):
    """Line numbers that are neither blank, nor a comment, nor part of a docstring."""
    texts = set()
    for node in ast.walk(ast.parse(source)):
        has_text = isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        if has_text and ast.get_docstring(node):
            texts.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE}
    layout |= {tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - texts


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_short_and_needs_nothing_but_microgpt(name):
    assert 0 < len(code_lines(SOURCES[name])) <= 120
    modules = set()
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.Import):
            modules.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    known = getattr(sys, "stdlib_module_names", modules)  # from Python 3.10 on
    assert "microgpt" in modules
    assert modules <= {"microgpt", *known}


@pytest.mark.parametrize("number, name", enumerate(STEPS, start=1))
def test_a_step_names_its_question_its_chapters_and_the_step_before(number, name):
    doc = DOCS[name]
    assert re.match(rf"Step {number}, [^.]+\. [^.]+\?\n\n", doc)
    assert doc.split("\n")[0].endswith(f". {TABLE[name][0]}")
    assert f"\n    python examples/ladder/{STEPS[name].name} " in doc
    assert doc.endswith(".")
    pointer = " ".join(re.search(r"(?s)\nIn microgpt\.py: (.*)", doc)[1].split())
    before = re.findall(r"Before: (\S+\.py)\.", pointer)
    assert before == [PATHS[number - 2].name][: number - 1]
    text = ""
    for chapter in re.findall(r'"([^"]+)"', pointer):
        header = rf"# === \d+\. {chapter} ="
        text += re.search(rf"(?ms)^{header}.*?(?=^# === |\Z)", MICROGPT)[0]
    for function in re.findall(r"`(\w+)`", pointer):
        assert re.search(rf"(?m)^def {function}\(", text)
    hints = r"\n\n# Predict, then run:\n# - (.+\n#)+ .+\)\n\Z"
    assert re.search(hints, SOURCES[name])


# 1. The die


def test_a_draw_takes_the_token_whose_section_the_dart_hits():
    draw = MODULES["die"].draw
    darts = iter([0.0, 0.499, 0.5, 0.749, 0.75, 0.999])
    rng = SimpleNamespace(random=lambda: next(darts))
    drawn = [draw([0.0, 0.5, 0.25, 0.0, 0.25], rng) for _ in range(6)]
    assert drawn == [1, 1, 2, 2, 4, 4]
    too_far = SimpleNamespace(random=lambda: 0.9)
    assert draw([0.3, 0.3], too_far) == 1


def test_a_draw_is_that_of_the_standard_library():
    p = [0.5, 0.25, 0.0, 0.15, 0.1]
    one = random.Random(1)
    other = random.Random(1)
    drawn = [MODULES["die"].draw(p, one) for _ in range(300)]
    assert drawn == [other.choices(range(5), p)[0] for _ in range(300)]


def test_what_is_written_stops_at_the_end_and_is_without_it():
    write = MODULES["die"].write
    rng = random.Random(1)
    assert all(2 not in write([0.3, 0.4, 0.3], 2, rng) for _ in range(100))
    assert write([0.0, 1.0], 1, rng) == []


def test_a_die_without_a_q_has_an_infinite_loss():
    mean_loss = MODULES["die"].mean_loss
    assert mean_loss([0.5, 0.25], [0, 1, 1]) == close(math.log(32) / 3)
    die = [0.0 if token == "q" else 1 / (SIZE - 1) for token in LETTERS.vocab]
    assert mean_loss(die, tokens_of(["anna"])) == close(math.log(SIZE - 1))
    assert mean_loss(die, tokens_of(UNSEEN)) == math.inf


def test_no_held_out_name_is_learned_from():
    assert len(UNSEEN) == 500
    assert not set(UNSEEN) & set(KNOWN)


# 2. The weights, and 3. The loss

SCORES = st.lists(st.floats(-20, 20), min_size=1, max_size=9)


@settings(max_examples=50)
@given(SCORES, st.floats(-50, 50))
def test_softmax_adds_up_to_1_keeps_the_order_and_ignores_a_constant(scores, constant):
    softmax = MODULES["weights"].softmax
    p = softmax(scores)
    assert sum(p) == close(1)
    assert min(p) > 0
    for a, b in itertools.combinations(range(len(scores)), 2):
        assert math.log(p[a] / p[b]) == close(scores[a] - scores[b])  # 1 more: e times
    assert softmax([score + constant for score in scores]) == close(p)


def by_hand(times):
    weights = MODULES["weights"].WEIGHTS
    return microgpt.softmax([times * weights.get(token, 0) for token in LETTERS.vocab])


def test_weights_doubled_are_better_and_doubled_again_worse_than_the_die():
    once, twice, four_times = [surprise(by_hand(n), UNSEEN_SHARES) for n in (1, 2, 4)]
    assert twice < once < math.log(SIZE) < four_times
    assert f"{once:.3f}" == TABLE["weights"][2]


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
)
def test_1_minus_p_is_best_for_a_bet_and_log_p_for_the_truth(counts, parts):
    step = MODULES["loss"]
    tokens = [token for token in range(4) for _ in range(counts[token])]
    p = [x / sum(parts) for x in parts]
    truth = [n / len(tokens) for n in counts]
    bet = [float(token == truth.index(max(truth))) for token in range(4)]
    miss = 1 - sum(a * b for a, b in zip(p, truth))
    assert step.mean_miss(p, tokens) == close(miss)
    assert step.mean_miss(bet, tokens) <= miss + 1e-9
    assert step.mean_surprise(p, tokens) == close(surprise(p, truth))
    assert step.mean_surprise(truth, tokens) <= surprise(p, truth) + 1e-9
    assert step.mean_surprise(bet, tokens) == math.inf


# 4. Nudging, and 5. Value

FIVE = [0.4, 0.3, 0.2, 0.1, 0.0]


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=5, max_size=5))
def test_a_slope_is_p_minus_share_by_nudging_and_by_backward(weights):
    p = microgpt.softmax(weights)
    slopes = [a - b for a, b in zip(p, FIVE)]
    assert MODULES["value"].gradient_by_backward(weights, FIVE) == close(slopes)
    for name in ["nudging", "value"]:
        step = MODULES[name]
        nudged = step.gradient_by_nudging(weights, FIVE)
        assert nudged == pytest.approx(slopes, abs=1e-7)
        assert step.loss_of(weights, FIVE) == close(surprise(p, FIVE))


def test_a_step_by_nudging_takes_two_losses_for_every_weight():
    step = load("nudging")
    loss_of = step.loss_of
    calls = []

    def counting(weights, shares):
        calls.append(weights)
        return loss_of(weights, shares)

    step.loss_of = counting
    step.gradient_by_nudging([0.0] * SIZE, SHARES)
    assert len(calls) == 2 * SIZE


@pytest.mark.parametrize("rate, settles", [(1.0, True), (100.0, False)])
def test_a_rate_of_1_is_slow_and_one_of_100_never_settles(rate, settles):
    output = printed(load("nudging", RATE=rate).main)
    losses = [float(x) for x in re.findall(r"(?m)^ +\d+ +(\d+\.\d+) ", output)]
    assert (losses == sorted(losses, reverse=True)) == settles
    assert (min(losses[1:]) > 2 * losses[0]) == (not settles)


# 6. Pairs


def test_pairs_are_counted_from_the_beginning_of_a_name_to_its_end():
    pairs = MODULES["pairs"].pairs_of(["aba", "b"], LETTERS)
    end = LETTERS.end
    expected = [(end, 0), (0, 1), (1, 0), (0, end), (end, 1), (1, end)]
    assert pairs == dict.fromkeys(expected, 1)


def test_counted_weights_give_the_frequencies_of_counts_one_too_many():
    step = MODULES["pairs"]
    pairs = Counter({(0, 1): 6, (1, 0): 1, (1, 1): 3})
    table = step.count(pairs, 2)
    assert microgpt.softmax(table[0]) == close([1 / 8, 7 / 8])
    assert microgpt.softmax(table[1]) == close([2 / 6, 4 / 6])
    expected = -(6 * math.log(7 / 8) + math.log(2 / 6) + 3 * math.log(4 / 6)) / 10
    assert step.loss_of(table, pairs) == close(expected)


# 7. The window


def test_a_window_is_three_tokens_and_the_next():
    vocab = {"a": 0, "b": 1, "e": 2, END: 3}
    windows = MODULES["window"].windows_of(["abe"], vocab)
    assert windows == [[3, 3, 3, 0], [3, 3, 0, 1], [3, 0, 1, 2], [0, 1, 2, 3]]


def test_if_all_weights_were_0_all_slopes_would_be_too():
    step = load("window", STEPS=0)
    params = {}
    for name, table in step.train(KNOWN, LETTERS.vocab).items():
        params[name] = Tensor([[0.0] * len(row) for row in table])
    step.loss_of(params, step.windows_of(["anna"], LETTERS.vocab)).backward()
    for tensor in params.values():
        assert not any(slope for row in tensor.grad for slope in row)


# 8. Attention, and 9. The block


def ids(*words):
    return [WORDS[word] for word in [END, *words]]


def random_attention(positions=True, seed=0):
    """(the step, parameters before the first step, with larger logits)"""
    step = load("attention", SEED=seed)
    params = step.train([], len(WORDS), 0, positions)
    params["out"] = [[30 * x for x in row] for row in params["out"]]
    return step, params


@pytest.mark.parametrize("seed", range(5))
def test_without_positions_dogs_chase_cats_is_cats_chase_dogs(seed):
    rng = random.Random(seed)
    a, b = rng.sample(ANIMALS, 2)
    verb = rng.choice(VERBS)
    for positions in [False, True]:
        step, params = random_attention(positions, seed)
        one = step.logits_of(params, ids(a, verb, b, "because"))[-1]
        other = step.logits_of(params, ids(b, verb, a, "because"))[-1]
        difference = max(abs(x - y) for x, y in zip(one, other))
        assert (difference > 1e-3) if positions else (difference < 1e-12)


def test_the_weights_of_the_last_token_are_those_of_attention():
    step, params = random_attention()
    tokens = ids("cats", "see", "mice", "because")
    weights = step.weights_of_last(params, tokens)
    rows = microgpt.linear(step.embed(params, tokens), params["query_key_value"])
    values = [row[2 * step.N_EMBD :] for row in rows]
    mean = [microgpt.dot(weights, column) for column in zip(*values)]
    assert mean == close(microgpt.attention(rows, 1)[-1])


def random_block(seed=0):
    """(the step, parameters before the first step)"""
    step = load("block", SEED=seed)
    return step, step.initial_params(len(WORDS))


@pytest.mark.parametrize("make", [random_attention, random_block])
def test_what_comes_later_changes_nothing(make):
    step, params = make()
    tokens = ids("cats", "see", "mice", "because", "cats", "play")
    whole = step.logits_of(params, tokens)
    for n in range(1, 7):
        part = step.logits_of(params, tokens[:n])
        assert sum(part, []) == close(sum(whole[:n], []))


@pytest.mark.parametrize("make", [random_attention, random_block])
def test_the_loss_is_the_mean_over_all_predictions(make):
    step, params = make()
    windows = step.windows_of([["cats", "see"], ["red"]], WORDS)
    logits = []
    for window in windows:
        logits += step.logits_of(params, window[:-1])
    targets = windows[0][1:] + windows[1][1:]
    expected = microgpt.cross_entropy(logits, targets)
    assert step.loss_of(params, windows) == close(expected)


def test_every_part_of_the_block_is_removed_alone():
    step, params = random_block()
    cats = ids("cats", "see", "mice", "because")
    dogs = ids("dogs", "see", "mice", "because")
    found = {}
    for part in [None, *step.PARTS]:
        found[part] = step.logits_of(params, cats, part)[-1]
        sees_others = found[part] != step.logits_of(params, dogs, part)[-1]
        assert sees_others == (part != "attention")
    for one, other in itertools.combinations(found.values(), 2):
        assert max(abs(x - y) for x, y in zip(one, other)) > 1e-3


def test_a_block_is_a_gpts_with_gains_of_1_and_biases_of_0():
    """The GPT's hidden layer is twice as wide, so half of it gets zeros here."""
    step, params = random_block()
    model = GPT(Config(len(WORDS), 16, n_layer=2, n_head=2, n_embd=8))
    for name, rows in params.items():
        if name.endswith("c_fc"):
            rows = rows + [[0.0] * 8] * 16
        elif name.endswith("mlp.c_proj"):
            rows = [row + [0.0] * 16 for row in rows]
        if name != "out":
            model.params[f"{name}.weight"] = rows
    tokens = ids("cats", "see", "mice", "because")
    x = model.params["wte.weight"]
    x = microgpt.embedding(x, tokens)
    x = microgpt.add(x, model.params["wpe.weight"][:5])
    x = model.block("h.1", model.block("h.0", x))
    logits = microgpt.linear(model.apply(microgpt.layernorm, "ln_f", x), params["out"])
    assert sum(step.logits_of(params, tokens), []) == close(sum(logits, []))


# 10. The GPT


def test_adam_is_what_the_text_says():
    """Its step is about as long as the rate, whatever the size of the slopes."""
    lines = re.findall(r"(?m)^    (\w+ -?= .*?)(?: +#.*)?$", DOCS["gpt"])
    assert len(lines) == 3
    formulas = "\n".join(lines)
    rng = random.Random(1)
    for scale in [1e-3, 1.0, 1e3]:
        params = {"w": [0.0]}
        adam = microgpt.AdamW(params)
        ours = {"trend": 0.0, "size": 0.0, "weight": 0.0, "rate": 0.01}
        for _ in range(500):
            ours["slope"] = scale * (2 + rng.random())
            before = params["w"][0]
            weight = ours["weight"]
            adam.step({"w": [ours["slope"]]}, 0.01)
            exec(formulas, {}, ours)
        length = before - params["w"][0]
        assert length == pytest.approx(weight - ours["weight"], rel=1e-4)
        assert length == pytest.approx(0.01, rel=0.2)


def test_its_shape_is_as_the_text_says():
    text = " ".join(DOCS["gpt"].split())
    assert "has one block, four heads, and rows of 16 numbers" in text
    config = Config(SIZE)
    assert (config.n_layer, config.n_head, config.n_embd) == (1, 4, 16)


def test_plain_descent_moves_by_rate_times_slope():
    params = {"w": [[1.0, 2.0], [3.0, 4.0]], "b": [5.0]}
    descent = MODULES["gpt"].Descent(params)
    descent.step({"w": [[1.0, 0.0], [0.0, 2.0]], "b": [1.0]}, 0.5)
    assert params == {"w": [[0.5, 2.0], [3.0, 3.0]], "b": [4.5]}


def test_its_gpt_is_the_one_that_microgpt_trains():
    output = printed(load("gpt", STEPS=20, COMPARED=1).main)
    report = printed(microgpt.main, ["--steps", "20", "--samples", "0"])
    loss = re.search(LAST_LINE, output)[3]
    assert loss == re.search(r"([\d.]+) held out,", report)[1]


# 11. The memory

DOCUMENTS = st.lists(st.text("ab", max_size=6), min_size=2, max_size=8)
VOCAB = {"a": 0, "b": 1, "c": 2, END: 3}


def remembered(documents, longest=3):
    """The root of the tree."""
    step = MODULES["memory"]
    return step.remember(step.tokens_of(documents, VOCAB), longest)


@settings(max_examples=50)
@given(DOCUMENTS, st.text("abc", max_size=6), st.integers(0, 5))
def test_what_the_memory_predicts_adds_up_to_1(documents, beginning, longest):
    root = remembered(documents, longest)
    tokens = [VOCAB[token] for token in [END, *beginning]]
    p = MODULES["memory"].predict(root, tokens, len(VOCAB))
    assert sum(p) == close(1)
    assert min(p) > 0


@settings(max_examples=50)
@given(DOCUMENTS, DOCUMENTS)
def test_memories_of_0_1_and_2_tokens_are_the_models_that_count(documents, unseen):
    step = MODULES["memory"]
    seen = step.tokens_of(documents, VOCAB)
    new = step.tokens_of(unseen, VOCAB)
    scale = microgpt.baselines(seen, new, len(VOCAB))
    for longest, name in enumerate(["frequencies", "pairs", "triples"]):
        root = remembered(documents, longest)
        assert step.mean_loss(root, new, VOCAB) == close(scale[name])


def all_documents(root, beginning, longest):
    """{text: probability} of all that end in time, and the most that any other has."""
    ended = {}
    others = [(1.0, [VOCAB[token] for token in [END, *beginning]], beginning)]
    for _ in range(longest):
        longer = []
        for p, tokens, text in others:
            row = MODULES["memory"].predict(root, tokens, len(VOCAB))
            for token, q in zip(VOCAB, row):
                if token == END:
                    ended[text] = p * q
                else:
                    longer.append((p * q, [*tokens, VOCAB[token]], text + token))
        others = longer
    return ended, max(others)[0]


@settings(max_examples=20)
@given(DOCUMENTS, st.text("ab", max_size=3))
def test_completions_are_the_likeliest_of_all(documents, beginning):
    root = remembered(documents)
    ended, most = all_documents(root, beginning, 6)
    best = [p for p in sorted(ended.values(), reverse=True)[:4] if p > most]
    found = MODULES["memory"].completions(root, beginning, VOCAB, len(best))
    assert [p for p, _ in found] == close(best)
    texts = ["".join(tokens) for _, tokens in found]
    assert [ended[text] for text in texts] == close(best)
    assert len(set(texts)) == len(texts)


def test_every_token_is_filed_under_all_that_came_before_it():
    step = MODULES["memory"]
    root = step.remember([[9, 1, 2, 1]], 3)
    assert root.next == {1: 2, 2: 1}
    assert set(root.earlier) == {9, 1, 2}
    assert root.earlier[1].next == {2: 1}
    assert root.earlier[2].earlier[1].next == {1: 1}
    assert root.earlier[2].earlier[1].earlier[9].next == {1: 1}
    assert step.count_numbers(root) == 8  # after nothing two, and 1, 91, 2, 12, 912, 9


def test_a_memory_that_has_not_read_a_sentence_bets_on_the_wrong_animals():
    step = MODULES["memory"]
    root = step.remember(step.tokens_of(READ, WORDS), 10)
    for sentence in NEW:
        if "because" in sentence:
            node = root
            for word in reversed(sentence[1:4]):
                node = node.earlier[WORDS[word]]
            assert WORDS[sentence[0]] not in node.next
            assert set(node.next) < {WORDS[animal] for animal in ANIMALS}


# The grammar


def test_a_model_that_knows_the_grammar_has_a_loss_of_log_n_for_a_sentence():
    """Of the sentences that begin in some way, how many go on in this way?"""
    ended = [(*sentence, END) for sentence in SENTENCES]
    begin = Counter(s[:i] for s in ended for i in range(len(s) + 1))
    total = 0.0
    for s in ended:
        for i in range(len(s)):
            total -= math.log(begin[s[: i + 1]] / begin[s[:i]])
    assert total / len(ended) == close(math.log(len(SENTENCES)))


def test_the_sentences_are_all_that_the_grammar_makes_each_once(tmp_path):
    assert grammar.all_sentences() == LINES
    assert len(set(LINES)) == len(LINES)
    shutil.copy(ROOT / "data" / "grammar.txt", tmp_path)
    writer = load_file(ROOT / "examples" / "ladder" / "grammar.py")
    writer.GRAMMAR = tmp_path / "grammar.txt"
    output = printed(writer.main)
    written = (tmp_path / "sentences.txt").read_bytes()
    assert written == (ROOT / "data" / "sentences.txt").read_bytes()
    assert output.startswith(f"{len(LINES)} sentences in ")
    assert [line.strip() for line in output.splitlines()[1:]] == LINES[:6]


def test_every_pattern_has_all_its_sentences():
    n = {name: len(words) for name, words in CLASSES.items()}
    because, so, cars = [Counter() for _ in PATTERNS]
    for words in SENTENCES:
        if "because" in words:
            a, verb, b, _, c, play = words
            assert (c, play) == (a, "play")
            because[a != b, a in ANIMALS, verb in VERBS, b in ANIMALS] += 1
        elif "so" in words:
            a, verb, b, _, c, hide = words
            assert (c, hide) == (b, "hide")
            so[a != b, a in ANIMALS, verb in VERBS, b in ANIMALS] += 1
        else:
            cars[tuple(map(is_in, ["COLOUR", "CAR", "MOVE", "PLACE"], words))] += 1
    n_pairs = n["ANIMAL"] * (n["ANIMAL"] - 1)
    every = (True,) * 4
    assert because == so == {every: n_pairs * n["VERB"]}
    assert cars == {every: n["COLOUR"] * n["CAR"] * n["MOVE"] * n["PLACE"]}
    words = sum(CLASSES.values(), [])
    assert len(set(words)) == len(words)


def is_in(name, word):
    return word in CLASSES[name]


def test_a_name_with_a_number_is_the_same_word_wherever_it_has_that_number():
    classes = {"A": ["x", "y", "z"], "B": ["u", "v"]}
    expected = []
    for b in "uv":
        for a, c in itertools.permutations("xyz", 2):
            expected.append(f"{a} {b} to {c} and {a}")
    found = grammar.sentences_of("A1 B to A2 and A1", classes)
    assert sorted(found) == sorted(expected)
    assert list(grammar.sentences_of("B", classes)) == ["u", "v"]


# The command

FAKE = """\"\"\"Step {0}, the {1}. What is {1}?

More.
\"\"\"
print("a line before")
print("{1}: {2} parameters, held-out loss {3}")
raise SystemExit({4})
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A ladder of two steps that take no time, and the place of a README beside it."""
    folder = tmp_path / "examples" / "ladder"
    folder.mkdir(parents=True)
    (folder / "01_egg.py").write_text(FAKE.format(1, "egg", "0", "3.296", 0))
    (folder / "02_hen.py").write_text(FAKE.format(2, "hen", "1,024", "2.5", 0))
    (folder / "grammar.py").write_text("raise SystemExit('not a step')")
    monkeypatch.setattr(ladder, "HERE", tmp_path / "examples")
    return folder


FAKE_ROWS = (
    r"\| \[egg\]\(01_egg\.py\) \| What is egg\? \| 0 \| 3\.296 "
    r"\| \d+\.\d \|\n"
    r"\| \[hen\]\(02_hen\.py\) \| What is hen\? \| 1,024 \| 2\.5 "
    r"\| \d+\.\d \|\n"
)


def test_without_a_step_all_are_listed_with_their_questions(capsys):
    assert ladder.main([]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    expected = []
    for number, (name, columns) in enumerate(TABLE.items(), start=1):
        expected.append([str(number), name, columns[0]])
    assert [row.split(maxsplit=2) for row in rows] == expected
    assert last.endswith("python microgpt.py ladder die")


@pytest.mark.parametrize(
    "words", [["examples/ladder.py", "die"], ["microgpt.py", "ladder", "1"]]
)
def test_a_step_runs_by_its_name_and_by_its_number(words, tmp_path):
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    run = subprocess.run(
        command, cwd=tmp_path, env=ENV, capture_output=True, encoding="utf-8"
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(LAST_LINE, run.stdout)[1] == "die"


def test_the_exit_status_is_that_of_the_step(fakes, capfd):
    (fakes / "02_hen.py").write_text(FAKE.format(2, "hen", "9", "1.0", 3))
    statuses = [ladder.main([step]) for step in ("1", "egg", "2", "hen")]
    assert statuses == [0, 0, 3, 3]
    ran = re.findall("(egg|hen): ", capfd.readouterr().out)
    assert ran == ["egg", "egg", "hen", "hen"]


@pytest.mark.parametrize("step", ["dice", "0", "12", "01", "grammar", ""])
def test_an_unknown_step_is_one_line_and_status_1(step, capsys):
    assert ladder.main([step]) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count("\n") == 1
    assert repr(step) in errors
    assert all(name in errors for name in STEPS)


def test_all_prints_a_table_of_fresh_runs(fakes, capsys):
    assert ladder.main(["--all"]) == 0
    out = capsys.readouterr().out
    assert re.search(re.escape(ladder.HEAD) + FAKE_ROWS + r"\n\Z", out)
    assert "01_egg ... 0 parameters, held-out loss 3.296, " in out
    assert "line before" not in out
    assert not (fakes / "README.md").exists()


@pytest.mark.parametrize("old", ["", "| [egg](x) | ? | 7 | 1.0 | 2.0 |\n" * 3])
def test_readme_replaces_the_table_and_nothing_else(old, fakes):
    before = "# Caf\u00e9\r\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    after = "\nAfter it:\n\n| c |\n|---|\n| 3 |\nno end of line"
    readme = fakes / "README.md"
    readme.write_bytes((before + ladder.HEAD + old + after).encode())
    assert ladder.main(["--readme"]) == 0
    expected = re.escape(before + ladder.HEAD) + FAKE_ROWS + re.escape(after)
    assert re.fullmatch(expected, readme.read_bytes().decode())


def test_a_step_that_fails_leaves_readme_alone(fakes, capsys):
    readme = fakes / "README.md"
    readme.write_text(ladder.HEAD)
    (fakes / "02_hen.py").write_text(FAKE.format(2, "hen", "9", "1.0", 1))
    assert ladder.main(["--readme"]) == 1
    assert "02_hen.py" in capsys.readouterr().err
    assert readme.read_text() == ladder.HEAD


def test_a_readme_without_the_table_is_left_alone(fakes, capsys):
    readme = fakes / "README.md"
    readme.write_text("no table\n")
    assert ladder.main(["--readme"]) == 1
    assert "table" in capsys.readouterr().err
    assert readme.read_text() == "no table\n"


def test_the_head_of_the_table_is_in_readme_once():
    assert README.count(ladder.HEAD) == 1
