"""The ladder: each step runs by itself, and computes what its text and README say."""

import ast
import importlib.util
import itertools
import math
import random
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import ladder
import pytest
from helpers import EXAMPLES, ROOT, SCRIPT, close, flat, program, works
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import END, GPT, CharTokenizer, Config, split_documents

FOLDER = EXAMPLES / "ladder"
PATHS = {path.stem[3:]: path for path in sorted(FOLDER.glob("[0-9]*.py"))}
README = (FOLDER / "README.md").read_bytes().decode("utf-8")

# README's table: {step: (question, parameters, held-out loss, seconds)}
ROW = r"(?m)^\| \[(\w+)\]\(\d\d_\1\.py\) \| (.*) \| (.*) \| (.*) \| (.*) \|$"
TABLE = {name: columns for name, *columns in re.findall(ROW, README)}


def load(path, **changed):
    """A program as a new module, with some of its names changed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(changed) <= set(vars(module))
    vars(module).update(changed)
    return module


STEPS = {name: load(path) for name, path in PATHS.items()}
grammar = load(FOLDER / "grammar.py")
CLASSES, _ = grammar.read_grammar()

# What all steps learn from, split here once more.
NAMES = microgpt.load_documents(ROOT / "data" / "names.txt")
LETTERS = CharTokenizer(NAMES)
SIZE = LETTERS.vocab_size
KNOWN, UNSEEN = split_documents(NAMES, seed=42)
LINES = microgpt.load_documents(ROOT / "data" / "sentences.txt")
WORDS = CharTokenizer([line.split() for line in LINES]).vocab
ANIMALS = CLASSES["ANIMAL"]


def floats(pattern, text):
    """All that a pattern finds in a text, as floats."""
    return [float(x) for x in re.findall(pattern, text)]


# --- Each step, run once: what it prints is what its text says ---


LOOKS = (
    r"(?m)^ +(\w+) (\d+)%  \w+ \d+%  (\w+) (\d+)%  because \d+%  "
    r"-> (\w+) ([\d.]+)%, (\w+) ([\d.]+)%$"
)


def check_attention(output):
    with_positions, without = output.split("Without positions:")
    for a, weight, b, _, right, p, wrong, q in re.findall(LOOKS, with_positions):
        assert (a, b) == (right, wrong)
        assert int(weight) > 80 and float(p) > 90 > 10 > float(q)
    one, exchanged = re.findall(LOOKS, without)  # the two sentences are the same to it
    assert exchanged == one[2:4] + one[:2] + one[6:] + one[4:6]
    loss, loss_without = floats(r"unseen sentences: ([\d.]+)", output)
    assert loss < 0.1 < math.log(2) < loss_without


def check_block(output):
    losses = dict(re.findall(r"(?m)^    (\w.*?)  +(\S+)$", output))
    assert len(losses) == 6 and losses.pop("without layer norm") == "diverges"
    losses = {name: float(loss) for name, loss in losses.items()}
    complete = losses["complete"]
    assert complete < losses["without attention"] < losses["without residuals"]
    (best,) = floats(r"knows the grammar has ([\d.]+)\.", output)
    assert best == pytest.approx(math.log(180) / 7, abs=6e-4)
    assert best < complete


def check_gpt(output):
    adam = floats(r" ([\d.]+)", re.search(r"Adam +rate 0.01(.*)", output)[1])
    plain = re.search(r"plain descent rate +[\d.]+ +(.*)", output)[1].split()
    assert len(adam) == 3 and max(adam) - min(adam) <= 1e-3
    assert float(plain[0]) == pytest.approx(adam[0], abs=0.1)
    assert plain[1] == "diverges" and float(plain[2]) > adam[0] + 0.1
    written = dict(re.findall(r"(?m)^temperature ([\d.]+): (.*)$", output))
    n_different = {t: len(set(names.split(", "))) for t, names in written.items()}
    assert n_different.pop("0") == 1 and min(n_different.values()) > 3


def check_memory(output):
    rows = re.findall(r"(?m)^ +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", output)
    longest, so, because, known, unknown = [list(map(float, x)) for x in zip(*rows)]
    assert longest == STEPS["memory"].LONGEST
    assert max(so[1:]) < 0.05
    assert min(because) > math.log(6)  # worse than a guess
    assert known == sorted(known, reverse=True)
    assert min(unknown) == unknown[2] == float(TABLE["memory"][2])
    bets = re.findall(r"(?m)^ +[\d.]+%  (\w+) \w+ (\w+) because (\w+) play$", output)
    assert len(bets) == 4
    assert all(animal not in (first, second) for first, second, animal in bets)


CHECKS = {
    "attention": check_attention,
    "block": check_block,
    "gpt": check_gpt,
    "memory": check_memory,
}


@pytest.mark.parametrize("name", PATHS)
def test_a_step_runs_by_itself_and_gives_the_result_in_readme(name, tmp_path):
    output = works(script=str(PATHS[name]), cwd=tmp_path)
    parameters, loss = ladder.result(name, output)
    assert parameters == TABLE[name][1]
    assert float(loss) == pytest.approx(float(TABLE[name][2]), abs=0.002)
    CHECKS.get(name, str)(output)
    shown = re.search(rf"\$ python microgpt\.py ladder {name}\n([^$`]+)", README)
    if shown:
        assert set(shown[1].splitlines()) - {"..."} <= set(output.splitlines())


# --- What all steps have in common ---


def test_there_are_eleven_steps_and_readme_has_them_in_order():
    assert [path.name[:3] for path in PATHS.values()] == [
        f"{i:02}_" for i in range(1, 12)
    ]
    assert list(TABLE) == list(PATHS)


def test_the_losses_fall_where_a_step_gains_something():
    loss = {name: float(row[2]) for name, row in TABLE.items()}
    assert loss["die"] > loss["weights"] == loss["loss"] > loss["nudging"]
    assert loss["nudging"] == loss["value"] > loss["pairs"] > loss["window"]
    assert loss["window"] > loss["attention"] > loss["gpt"] > loss["memory"]
    assert loss["window"] > loss["block"] > loss["attention"] - 0.01


@pytest.mark.parametrize("number, name", list(enumerate(PATHS, start=1)))
def test_a_step_names_its_question_how_to_run_it_and_the_step_before(number, name):
    source = PATHS[name].read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source))
    assert re.match(rf"Step {number}, [^.]+\. ([^.]+\?)\n\n", doc)[1] == TABLE[name][0]
    assert f"\n    python examples/ladder/{PATHS[name].name} " in doc
    before = re.findall(r"Before:\s(\S+\.py)\.", doc)
    assert before == [path.name for path in PATHS.values()][number - 2 : number - 1]
    assert "\n# Predict, then run:\n# - " in source


# --- 1. The die, 2. The weights, 3. The loss ---


def test_a_draw_is_that_of_the_standard_library_and_the_end_is_not_written():
    p = [0.5, 0.25, 0.0, 0.15, 0.1]
    one, other, third = [random.Random(1) for _ in range(3)]
    drawn = [STEPS["die"].draw(p, one) for _ in range(300)]
    assert drawn == [other.choices(range(5), p)[0] for _ in range(300)]
    assert STEPS["die"].write(p, 4, third) == drawn[: drawn.index(4)] != []
    too_far = SimpleNamespace(random=lambda: 0.9)
    assert STEPS["die"].draw([0.3, 0.3], too_far) == 1
    assert STEPS["die"].tokens_of(["ab"], LETTERS) == [0, 1, LETTERS.end]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=9))
def test_softmax_is_microgpts(scores):
    assert STEPS["weights"].softmax(scores) == close(microgpt.softmax(scores))


def test_the_measures_of_a_model_by_hand():
    p, tokens = [0.5, 0.25, 0.0], [0, 1, 1]
    assert STEPS["loss"].mean_miss(p, tokens) == pytest.approx((0.5 + 0.75 * 2) / 3)
    for measure in STEPS["die"].mean_loss, STEPS["loss"].mean_surprise:
        assert measure(p, tokens) == pytest.approx(math.log(32) / 3)
        assert measure(p, [0, 2]) == math.inf


# --- 4. Nudging, 5. Value, 6. Pairs, 7. The window ---

FIVE = [0.4, 0.3, 0.2, 0.1, 0.0]


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=5, max_size=5))
def test_a_slope_is_p_minus_share_by_nudging_and_by_backward(weights):
    p = microgpt.softmax(weights)
    slopes = [a - b for a, b in zip(p, FIVE)]
    assert STEPS["value"].gradient_by_backward(weights, FIVE) == close(slopes, 1e-9)
    for step in STEPS["nudging"], STEPS["value"]:
        nudged = step.gradient_by_nudging(weights, FIVE)
        assert nudged == pytest.approx(slopes, abs=1e-7)
        assert step.loss_of(weights, FIVE) == pytest.approx(
            microgpt.dot(FIVE, [-math.log(x) for x in p])
        )


def test_pairs_are_counted_from_the_beginning_of_a_name_to_its_end():
    pairs = STEPS["pairs"].pairs_of(["aba", "b", "b"], LETTERS)
    end = LETTERS.end
    once = [(end, 0), (0, 1), (1, 0), (0, end)]
    assert pairs == {**dict.fromkeys(once, 1), (end, 1): 2, (1, end): 2}


def test_counted_weights_give_the_frequencies_of_counts_one_too_many():
    step = STEPS["pairs"]
    pairs = Counter({(0, 1): 6, (1, 0): 1, (1, 1): 3})
    table = step.count(pairs, 2)
    assert flat([microgpt.softmax(row) for row in table]) == close(
        [1 / 8, 7 / 8, 2 / 6, 4 / 6]
    )
    expected = -(6 * math.log(7 / 8) + math.log(2 / 6) + 3 * math.log(4 / 6)) / 10
    assert step.loss_of(table, pairs) == pytest.approx(expected)


def test_a_window_is_three_tokens_and_the_next():
    vocab = {"a": 0, "b": 1, "e": 2, END: 3}
    windows = STEPS["window"].windows_of(["abe"], vocab)
    assert windows == [[3, 3, 3, 0], [3, 3, 0, 1], [3, 0, 1, 2], [0, 1, 2, 3]]


# --- 8. Attention, 9. The block ---


def ids(text):
    return [WORDS[word] for word in [END, *text.split()]]


def random_attention(positions=True, seed=0):
    """(the step, parameters before the first step, with larger logits)"""
    step = load(PATHS["attention"], SEED=seed)
    params = step.train([], len(WORDS), 0, positions)
    params["out"] = [[30 * x for x in row] for row in params["out"]]
    return step, params


def random_block():
    """(the step, parameters before the first step)"""
    return STEPS["block"], STEPS["block"].initial_params(len(WORDS))


@pytest.mark.parametrize("seed", range(3))
def test_only_without_positions_dogs_chase_cats_is_cats_chase_dogs(seed):
    for positions in (False, True):
        step, params = random_attention(positions, seed)
        one = step.logits_of(params, ids("dogs chase cats because"))[-1]
        other = step.logits_of(params, ids("cats chase dogs because"))[-1]
        difference = max(abs(x - y) for x, y in zip(one, other))
        assert (difference > 1e-3) if positions else (difference < 1e-12)


def test_the_weights_of_the_last_token_are_those_of_attention():
    step, params = random_attention()
    tokens = ids("cats see mice because")
    rows = microgpt.linear(step.embed(params, tokens), params["query_key_value"])
    values = [row[2 * step.N_EMBD :] for row in rows]
    weights = step.weights_of_last(params, tokens)
    mean = [microgpt.dot(weights, column) for column in zip(*values)]
    assert mean == close(microgpt.attention(rows, 1)[-1])


@pytest.mark.parametrize("make", [random_attention, random_block])
def test_what_comes_later_changes_nothing(make):
    step, params = make()
    tokens = ids("cats see mice because cats play")
    whole = step.logits_of(params, tokens)
    for n in range(1, len(tokens)):
        assert flat(step.logits_of(params, tokens[:n])) == close(whole[:n])


@pytest.mark.parametrize("make", [random_attention, random_block])
def test_the_loss_is_the_mean_over_all_predictions(make):
    step, params = make()
    windows = step.windows_of([["cats", "see"], ["red"]], WORDS)
    assert windows == [ids("cats see") + ids(""), ids("red") + ids("")]
    logits = [row for x in windows for row in step.logits_of(params, x[:-1])]
    expected = microgpt.cross_entropy(logits, windows[0][1:] + windows[1][1:])
    assert step.loss_of(params, windows) == pytest.approx(expected)


def test_every_part_of_the_block_is_removed_alone():
    step, params = random_block()
    found = {}
    for part in [None, *step.PARTS]:
        found[part] = step.logits_of(params, ids("cats see mice because"), part)[-1]
        dogs = step.logits_of(params, ids("dogs see mice because"), part)[-1]
        assert (found[part] == dogs) == (part == "attention")
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
    tokens = ids("cats see mice because")
    x = microgpt.embedding(model.params["wte.weight"], tokens)
    x = microgpt.add(x, model.params["wpe.weight"][:5])
    x = model.block("h.1", model.block("h.0", x))
    logits = microgpt.linear(model.apply(microgpt.layernorm, "ln_f", x), params["out"])
    assert flat(step.logits_of(params, tokens)) == close(logits)


# --- 10. The GPT ---


def test_plain_descent_moves_by_rate_times_slope():
    params = {"w": [[1.0, 2.0], [3.0, 4.0]], "b": [5.0]}
    descent = STEPS["gpt"].Descent(params)
    descent.step({"w": [[1.0, 0.0], [0.0, 2.0]], "b": [1.0]}, 0.5)
    assert params == {"w": [[0.5, 2.0], [3.0, 3.0]], "b": [4.5]}


def test_its_gpt_is_the_one_that_microgpt_trains(tmp_path, capsys):
    kept = []

    def keep(model, windows):
        kept.append(model)
        return 0.0

    load(PATHS["gpt"], STEPS=3, COMPARED=1, evaluate=keep).main()
    options = ["--steps", "3", "--samples", "0", "--save", str(tmp_path / "names")]
    assert microgpt.main(options) == 0
    saved = microgpt.load_model(tmp_path / "names")
    assert saved.config == kept[0].config
    assert flat(saved.params) == close(kept[0].params, 1e-6)


# --- 11. The memory ---

DOCUMENTS = st.lists(st.text("ab", max_size=6), min_size=2, max_size=8)
VOCAB = {"a": 0, "b": 1, "c": 2, END: 3}


def remembered(documents, longest=3):
    """The root of the tree."""
    step = STEPS["memory"]
    return step.remember(step.tokens_of(documents, VOCAB), longest)


@settings(max_examples=50)
@given(DOCUMENTS, DOCUMENTS)
def test_memories_of_0_1_and_2_tokens_are_the_models_that_count(documents, unseen):
    step = STEPS["memory"]
    seen = step.tokens_of(documents, VOCAB)
    new = step.tokens_of(unseen, VOCAB)
    scale = microgpt.baselines(seen, new, len(VOCAB))
    for longest, name in enumerate(["frequencies", "pairs", "triples"]):
        root = remembered(documents, longest)
        assert step.mean_loss(root, new, VOCAB) == pytest.approx(scale[name])


@settings(max_examples=20)
@given(DOCUMENTS, st.text("ab", max_size=2))
def test_completions_are_the_likeliest_of_all(documents, beginning):
    """All texts of up to five tokens more, and the most that a longer one can have."""
    root = remembered(documents)
    ended = {}
    others = {beginning: 1.0}
    for _ in range(6):
        longer = {}
        for text, p in others.items():
            tokens = [VOCAB[token] for token in [END, *text]]
            row = STEPS["memory"].predict(root, tokens, len(VOCAB))
            assert sum(row) == pytest.approx(1) and min(row) > 0
            ended[text] = p * row[VOCAB[END]]
            longer.update({text + token: p * row[VOCAB[token]] for token in "abc"})
        others = longer
    most = max(others.values())
    best = [p for p in sorted(ended.values(), reverse=True)[:4] if p > most]
    found = STEPS["memory"].completions(root, beginning, VOCAB, len(best))
    texts = ["".join(tokens) for _, tokens in found]
    assert [p for p, _ in found] == pytest.approx(best)
    assert [ended[text] for text in texts] == pytest.approx(best)
    assert len(set(texts)) == len(texts)


# --- The grammar ---


def test_the_sentences_are_all_that_the_grammar_makes_each_once(tmp_path, capsys):
    assert f"all {len(LINES)} of its sentences" in README
    assert len(set(LINES)) == len(LINES)
    shutil.copy(ROOT / "data" / "grammar.txt", tmp_path)
    writer = load(FOLDER / "grammar.py", GRAMMAR=tmp_path / "grammar.txt")
    writer.main()
    assert capsys.readouterr().out.startswith(f"{len(LINES)} sentences in ")
    written = (tmp_path / "sentences.txt").read_bytes()
    assert written == (ROOT / "data" / "sentences.txt").read_bytes()


def test_help_about_the_grammar_writes_nothing(tmp_path, monkeypatch, capsys):
    writer = load(FOLDER / "grammar.py", GRAMMAR=tmp_path / "grammar.txt")
    monkeypatch.setattr(writer.sys, "argv", ["grammar.py", "--help"])
    writer.main()
    assert capsys.readouterr().out.startswith("Generate the ladder's sentences")
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_a_number_is_the_same_word_wherever_it_has_that_number():
    classes = {"A": ["x", "y", "z"], "B": ["u", "v"]}
    expected = []
    for b in "uv":
        for a, c in itertools.permutations("xyz", 2):
            expected.append(f"{a} {b} to {c} and {a}")
    assert sorted(grammar.sentences_of("A1 B to A2 and A1", classes)) == sorted(
        expected
    )
    assert list(grammar.sentences_of("B", classes)) == ["u", "v"]


# --- The command ---


def test_without_a_step_all_are_listed_with_their_questions(capsys):
    assert ladder.main([]) == 0
    output = capsys.readouterr().out
    *rows, last = output.splitlines()
    numbered = enumerate(TABLE.items(), start=1)
    expected = [[str(number), name, row[0]] for number, (name, row) in numbered]
    assert [row.split(maxsplit=2) for row in rows] == expected
    assert last.endswith("python microgpt.py ladder die")
    shown = re.search(r"\$ python microgpt\.py ladder\n([^$`]+)", README)[1]
    assert set(shown.splitlines()) - {"..."} <= set(output.splitlines())


def test_a_step_runs_by_its_name_and_by_its_number(tmp_path):
    by_name = works("die", script=program("ladder"), cwd=tmp_path)
    by_number = works("ladder", "1", script=SCRIPT, cwd=tmp_path)
    assert by_name == by_number and ladder.result("die", by_name)


@pytest.mark.parametrize("step", ["dice", "0", "12", "01", "grammar", ""])
def test_an_unknown_step_is_one_line_and_status_1(step, capsys):
    assert ladder.main([step]) == 1
    out, errors = capsys.readouterr()
    assert out == "" and errors.count("\n") == 1
    assert repr(step) in errors and all(name in errors for name in PATHS)


FAKE = """\"\"\"Step {0}, the {1}. What is {1}?

More.
\"\"\"
print("a line before")
print("{1}: {2} parameters, held-out loss {3}")
raise SystemExit({4})
"""
FAKE_ROWS = r"""\| \[egg\]\(01_egg\.py\) \| What is egg\? \| 0 \| 3\.296 \| \d+\.\d \|
\| \[hen\]\(02_hen\.py\) \| What is hen\? \| 1,024 \| 2\.5 \| \d+\.\d \|
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A ladder of two steps that take no time; a README would be beside them."""
    folder = tmp_path / "examples" / "ladder"
    folder.mkdir(parents=True)
    (folder / "01_egg.py").write_text(FAKE.format(1, "egg", "0", "3.296", 0))
    (folder / "02_hen.py").write_text(FAKE.format(2, "hen", "1,024", "2.5", 0))
    (folder / "grammar.py").write_text("raise SystemExit('not a step')")
    monkeypatch.setattr(ladder, "HERE", tmp_path / "examples")
    return folder


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
    assert README.count(ladder.HEAD) == 1


@pytest.mark.parametrize(
    "text, status, told",
    [(ladder.HEAD, "'no eggs'", "02_hen.py failed: no eggs"), ("none\n", 0, "table")],
)
def test_if_a_step_or_the_table_is_missing_readme_is_left_alone(
    text, status, told, fakes, capfd
):
    readme = fakes / "README.md"
    readme.write_text(text)
    (fakes / "02_hen.py").write_text(FAKE.format(2, "hen", "9", "1.0", status))
    assert ladder.main(["--readme"]) == 1
    assert told in capfd.readouterr().err and readme.read_text() == text


def test_the_exit_status_and_the_errors_are_those_of_the_step(fakes, capfd):
    (fakes / "02_hen.py").write_text(FAKE.format(2, "hen", "9", "1.0", "'no eggs'"))
    assert [ladder.main([step]) for step in ("1", "egg", "2", "hen")] == [0, 0, 1, 1]
    out, errors = capfd.readouterr()
    assert re.findall("(egg|hen): ", out) == ["egg", "egg", "hen", "hen"]
    assert errors == "no eggs\n" * 2
