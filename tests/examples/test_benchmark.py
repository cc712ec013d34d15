"""examples/speed/: what is measured, how long, in which order, and what is printed."""

import re
import statistics
import sys
from itertools import islice
from types import SimpleNamespace

import baseline
import benchmark
import gpt2
import library
import other_engines
import pytest
import rounds
from baseline import Baseline
from helpers import draws
from rounds import Plan

import microgpt

NAMES = ["ada", "bob", "maximilian", "zo\u00eb"]
QUICK = Plan(seconds=0.001, warm=0.0, quick=True)
ROWS = """
default run, time | default run, peak memory
GPT-2 small, load | GPT-2 small, one token | GPT-2 small, peak memory
training, tensor | training, value
batch of 32, 1 worker | batch of 32, 2 workers | batch of 32, 2 workers to 1 worker
writing, tensor
BPE training, microgpt | BPE encoding, microgpt
"""
BASELINE = """
training, baseline | training, tensor to baseline | training, value to baseline
writing, baseline | writing, tensor to baseline
"""
SCRIPT = """
import beside
num_steps = 1_000
for step in range(num_steps):
    print(f"step {step + 1:4d} / {num_steps:4d} | loss 3.3000", end="\\r")
for i in range(20):
    print(f"sample {i + 1:2d}: {'x' * i}")
"""


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return str(path)


@pytest.fixture
def time(monkeypatch):
    """A clock that goes on only when somebody sets it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(rounds, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def table(capsys):
    """Call a function -> what it prints, {label: what stands behind it}."""

    def run(function, *args, **options):
        assert not function(*args, **options)
        output, error = capsys.readouterr()
        assert error == ""
        assert max(map(len, output.split("\n"))) <= 100
        found = {}
        for line in re.findall("^[^\n]{34} [^\n]+$", output, re.MULTILINE):
            found[line[:34].strip()] = " ".join(line[34:].split())
        return found

    return run


@pytest.fixture
def only(monkeypatch):
    """Let the benchmark measure some jobs only, by their names, in a single round."""

    def leave(*jobs):
        monkeypatch.setattr(rounds, "ROUNDS", 1)
        for job in {"default_run", "gpt2", "training", "workers", "writing", "bpe"}:
            if job not in jobs:
                monkeypatch.setattr(benchmark, job, lambda *args: None)

    return leave


def labels(text):
    return [label.strip() for label in re.split("[|\n]", text) if label.strip()]


# --- Rounds ---


@pytest.mark.parametrize("seconds, calls", [(0.0, 1), (0.9, 2), (1.1, 3)])
def test_a_stretch_ends_with_the_call_in_which_its_time_is_up(time, seconds, calls):
    lengths = [0.25, 0.75, 0.5, 9.0]
    total = sum(lengths[:calls])

    def advance():
        time.now += lengths.pop(0)

    assert rounds.stretch(advance, seconds) == pytest.approx(total / calls)


def test_all_things_take_turns_after_they_have_warmed_up(time):
    did = []

    def step(name, seconds):
        did.append(name)
        time.now += seconds

    steps = {"a": lambda: step("a", 1.0), "b": lambda: step("b", 2.0)}
    others = {"other": lambda: did.append("other") or 7.0}
    times = rounds.steps_in_rounds("title", steps, Plan(3.5, 1.5, False), others)
    warm_up = ["a", "a", "b"]
    assert did == warm_up + 3 * ["other", *4 * "a", *2 * "b"]
    assert times == {"other": [7.0] * 3, "a": [1.0] * 3, "b": [2.0] * 3}


def test_a_ratio_divides_the_means_and_has_slowest_and_fastest_in_brackets(table):
    times = {"slow": [2.0, 3.0, 1.0], "fast": [0.5, 1.0, 0.9]}
    assert table(rounds.row, "label", 0.001236, "s") == {"label": "0.00124 s"}
    assert table(rounds.rows, "title", times, "ms", 1000, to="slow") == {
        "title, slow": "2,000 ms",
        "title, fast": "800 ms",
        "title, fast to slow": "2.50 times as fast (1.11 to 4)",
    }


def test_a_program_is_watched_to_its_end():
    code = "import sys; a = b'x' * 60_000_000; print('out'); sys.exit(*sys.argv[1:])"
    seconds, peak, output = rounds.watch("title", [sys.executable, "-c", code])
    assert seconds > 0 and output == "out\n"
    assert peak is None if sys.platform == "win32" else 60 < peak < 600
    with pytest.raises(ValueError, match="^title failed: last$"):
        rounds.watch("title", [sys.executable, "-c", code, "first\nlast"])


# --- The baseline ---


@pytest.fixture
def script(tmp_path):
    """Write a script, and another beside it that checks the documents -> its path."""
    (tmp_path / "beside.py").write_text(
        "documents = open('input.txt', encoding='utf-8').read().split()\n"
        f"assert sorted(documents) == {ascii(NAMES)}\n"
    )

    def write(source):
        (tmp_path / "script.py").write_text(source)
        return str(tmp_path / "script.py")

    return write


def watched(lines):
    """A baseline whose lines come when they say: {when: line}."""

    def run(source):
        assert source in ("num_steps = 9", "num_steps = 3")
        yield from lines.items()

    return SimpleNamespace(script="x.py", error="", source="num_steps = 9", run=run)


@pytest.mark.parametrize(
    "stamps, seconds",
    [
        ([0.0, 3.0, 6.0, 7.0, 8.0, 9.0, 9.2, 10.0], 0.8),  # warm from 6.0 to 9.2
        ([0.0, 3.0, 4.0], 2.0),  # it ended before it was warm
    ],
)
def test_a_step_of_the_baseline_is_timed_when_it_is_warm(stamps, seconds):
    lines = dict.fromkeys(stamps, "step 1 / 99 | loss 1\n")
    plan = Plan(seconds=4.0, warm=5.0, quick=False)
    found = watched({-1.0: "other\n", **lines})
    assert Baseline.training(found, plan) == pytest.approx(seconds)


def test_the_baselines_samples_are_timed_after_its_steps():
    samples = {2.0: "sample 1: abc\n", 5.0: "sample 2: \n", 9.0: f"sample 3: {NAMES}\n"}
    found = watched({1.0: "step 3 / 3 | loss 1\n", **samples})
    assert Baseline.writing(found) == (9.0 - 1.0) / (4 + 1 + baseline.BLOCK)


def test_a_baseline_gets_all_documents_each_time_in_another_order(script):
    path = script("print(open('input.txt', encoding='utf-8').read().split())")
    found = Baseline(path, sys.executable, NAMES)
    orders = {line for _ in range(9) for _, line in found.run(found.source)}
    assert len(orders) > 1
    assert {tuple(sorted(eval(line))) for line in orders} == {tuple(NAMES)}


# --- BPE ---


@pytest.mark.parametrize("change, same", [(0, "yes"), (1, "no")])
def test_bpe_is_compared_with_the_library(monkeypatch, table, change, same):
    pytest.importorskip("tokenizers")

    class Other(library.Library):
        is_new = True

        def encode(self, documents):
            assert self.is_new  # it remembers nothing
            self.is_new = False
            ids = super().encode(documents)
            ids[-1][-1] += change
            return ids

    monkeypatch.setattr(library, "Library", Other)
    found = table(library.bpe, QUICK)
    assert found.pop("BPE, the same tokens") == same
    for what in ("training", "encoding"):
        assert " times as fast " in found[f"BPE {what}, library to microgpt"]


def test_the_text_for_bpe_has_no_empty_lines():
    lines = library.source_lines(9000)
    assert all(line.strip() for line in lines)
    assert 6000 < len("\n".join(lines)) <= 9000


# --- GPT-2 ---


def test_loading_and_each_token_after_the_first_are_timed(monkeypatch):
    watched = (99.0, 650.0, "[1.0, 3.0, 10.0, 11.0, 14.0]")
    monkeypatch.setattr(gpt2, "watch", lambda *args: watched)
    assert gpt2.run(gpt2.TINY) == (2.0, 2.0, 650.0)


def test_the_model_that_stands_for_gpt2_opens_as_gpt2_would_and_is_as_random(tmp_path):
    gpt2.write_model(tmp_path, microgpt.Config(50, block_size=8, n_layer=2, n_embd=8))
    params = microgpt.load_model(tmp_path).params
    assert set(params["h.1.ln_2.weight"]) == {1.0}
    assert set(params["h.1.mlp.c_fc.bias"]) == {0.0}
    for name in ("wte.weight", "h.0.attn.c_attn.weight"):
        assert len(set(map(tuple, params[name]))) > len(params[name]) / 3
        assert 0.01 < statistics.stdev(x for row in params[name] for x in row) < 0.03


# --- Engines ---

NANO = """
import torch
from types import SimpleNamespace as GPTConfig

class GPT(torch.nn.Embedding):
    def __init__(self, config):
        super().__init__(config.vocab_size, config.vocab_size)
        self.block_size = config.block_size

    def configure_optimizers(self, weight_decay, learning_rate, betas, device):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)

    def forward(self, tokens, targets):
        assert tokens.shape == targets.shape
        assert tokens.shape[1] <= self.block_size and tokens.min() >= 0
        logits = super().forward(tokens).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy
        return logits, loss(logits, targets.flatten(), ignore_index=-1)
"""


def test_engines_take_their_turns_and_nanogpt_too(only, table, names, tmp_path):
    for needed in ("numpy", "torch", "safetensors"):
        pytest.importorskip(needed)
    only("training")
    (tmp_path / "model.py").write_text(NANO)
    nano = ["--nanogpt", str(tmp_path)]
    found = table(benchmark.main, [names, "--quick", "--engines", "--gpt2", *nano])
    for job in ("batch of 1", "batch of 32", "width 128"):
        for name in ("tensor", "NumPy", "NumPy32", "PyTorch"):
            assert "ms/document" in found[f"{job}, {name}"]
            assert "times as fast" in found[f"{job}, {name} to nanoGPT"]
    assert "times as fast" in found["GPT-2 small, PyTorch to nanoGPT"]
    assert "GPT-2 small, NumPy" not in found


def test_a_time_is_that_of_a_document(monkeypatch, table):
    """An engine that reads several at once has its time divided by their number."""
    monkeypatch.setattr(other_engines, "engine_step", lambda *args: args)
    monkeypatch.setattr(
        other_engines,
        "steps_in_rounds",
        lambda title, steps, plan: {name: [4.0] for name in steps},
    )
    tokenizer = microgpt.CharTokenizer(NAMES)
    engines = dict.fromkeys(("value", "tensor", "NumPy"), object)
    compare = other_engines.compare_engines
    found = table(compare, engines, NAMES, tokenizer, QUICK, None, False)
    assert found == {
        "batch of 1, tensor": "4,000 ms/document",
        "batch of 1, NumPy": "4,000 ms/document",
        "batch of 1, NumPy to tensor": "1.00 times as fast (1 to 1)",
        "batch of 32, tensor": "125 ms/document",
        "batch of 32, NumPy": "125 ms/document",
        "batch of 32, NumPy to tensor": "1.00 times as fast (1 to 1)",
        "width 128, tensor": "4,000 ms/document",
        "width 128, NumPy": "500 ms/document",
        "width 128, NumPy to tensor": "8.00 times as fast (8 to 8)",
    }


# --- The program ---


def test_two_workers_share_the_batches_of_one(monkeypatch, table):
    trainers = {}

    def measure(title, steps, plan):
        trainers.update((name, step.__self__) for name, step in steps.items())
        return {name: [1.0] for name in steps}

    monkeypatch.setattr(benchmark, "steps_in_rounds", measure)
    tokenizer = microgpt.CharTokenizer(NAMES)
    assert len(table(benchmark.workers, NAMES, tokenizer, QUICK)) == 3
    configs = {name: trainer.config for name, trainer in trainers.items()}
    assert {name: config.workers for name, config in configs.items()} == {
        "1 worker": 1,
        "2 workers": 2,
    }
    for config in configs.values():
        assert (config.batch_size, config.clip, config.weight_decay) == (32, 0.0, 0.0)


@pytest.mark.parametrize(
    "probabilities, tokens",
    [((1.0, 0.0), {0}), ((0.0, 1.0), {1}), ((0.9, 0.1), {0, 1})],
)
def test_an_end_counts_as_a_token_where_it_was_drawn(probabilities, tokens):
    written = list(islice(benchmark.write_names(draws(*probabilities), 1), 200))
    assert set(written) == tokens


def test_a_model_writes_after_as_few_steps_as_the_baseline(monkeypatch, table):
    seen = []

    def trainer(*args, **options):
        seen.append(new_trainer(*args, **options))
        return seen[-1]

    new_trainer = benchmark.new_trainer
    monkeypatch.setattr(benchmark, "new_trainer", trainer)
    tokenizer = microgpt.CharTokenizer(NAMES)
    table(benchmark.writing, NAMES, tokenizer, QUICK, None)
    assert [x.optimizer.t for x in seen] == [baseline.FIRST_STEPS]


def test_without_other_libraries_it_measures_itself(monkeypatch, table, names):
    for (
        module
    ) in "tokenizers numpy torch numpy_engine train_torch torch_engine".split():
        monkeypatch.setitem(sys.modules, module, None)
    found = table(benchmark.main, [names, "--quick", "--gpt2", "--engines"])
    assert found.pop("BPE, library") == "tokenizers not installed"
    assert found.pop("NumPy engine") == found.pop("PyTorch engine") == "not installed"
    assert {*labels(ROWS)} <= {*found}
    for cell in found.values():
        assert cell == "not available" or float(cell.split()[0].replace(",", "")) > 0


@pytest.mark.parametrize(
    "source, written",
    [(SCRIPT, True), (SCRIPT.replace("num_steps", "n"), False)],
)
def test_a_baseline_is_compared(only, table, names, script, source, written):
    only("training", "writing")
    found = table(benchmark.main, [names, "--quick", "--baseline", script(source)])
    if not written:
        assert found.pop("writing, baseline") == "not measured"
        found["writing, baseline"] = found["writing, tensor to baseline"] = "0"
    expected = ["training, tensor", "training, value", "writing, tensor"]
    assert {*found} == {*labels(BASELINE), *expected}


@pytest.mark.parametrize(
    "args, words",
    [
        (["none.txt"], "'none.txt'"),
        (["NAMES", "--baseline", "none.py"], "'none.py'"),
        (["NAMES", "--baseline", "SCRIPT"], "step 1 / 1000 .* ZeroDivisionError"),
        (["NAMES", "--baseline", "SCRIPT", "--baseline-python", "nope"], "nope"),
    ],
)
def test_what_cannot_be_measured_is_one_line(only, capsys, names, script, args, words):
    only("training")
    paths = {"NAMES": names, "SCRIPT": script("1 / 0")}
    assert benchmark.main([*(paths.get(arg, arg) for arg in args), "--quick"]) == 1
    assert re.fullmatch(f"benchmark: .*{words}.*\n", capsys.readouterr().err)
