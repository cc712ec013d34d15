"""examples/engines/train_torch.py: it trains as microgpt does, in one process and in two, and what
one of them saved the other goes on with.

Two processes are started by torchrun: with the command, and with this file as the program."""

import glob
import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
from contextlib import suppress
from functools import partial

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENGINES = os.path.join(ROOT, "examples", "engines")
sys.path[:0] = [ROOT, ENGINES]

import microgpt  # noqa: E402
from microgpt import GPT, BPETokenizer, CharTokenizer, Config, TrainConfig, Trainer  # noqa: E402

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

import train_torch  # noqa: E402
from train_torch import TorchTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")  # float(loss)
DOCUMENTS = [
    "ada",
    "bob",
    "abba",
    "dada",
    "cab",
    "bad",
    "dab",
    "cad",
    "abcabcabcabc",
    "d",
]
SHAPE = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
TINY = (
    "--n-embd",
    "8",
    "--n-head",
    "2",
    "--block-size",
    "8",
    "--samples",
    "2",
    "--max-tokens",
    "20",
    "--device",
    "cpu",
    "--peak",
    "1",
)
OFTEN = {"steps": 6, "batch_size": 4, "warmup": 2, "lr": 0.03, "seed": 7}
CASES = {  # what a TorchTrainer has, and its TrainConfig
    "plain": ({}, {}),
    "a batch that 2 does not divide": ({}, {"batch_size": 7}),
    "accumulation": ({"accumulate": 3}, {"batch_size": 7, "clip": 0.1}),
    "decay, no clip": (
        {"dtype": "float64"},
        {"clip": 0, "weight_decay": 0.5, "batch_size": 3},
    ),
    "held out": ({}, {"eval_every": 2, "val_fraction": 0.3}),
}


def trainer(set=None, kind=TorchTrainer, seed=1, **options):
    if kind is TorchTrainer:
        kind = type("Chosen", (TorchTrainer,), {"peak": 1.0, **(set or {})})
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(Config(tokenizer.vocab_size, **SHAPE), seed=seed)
    return kind(model, tokenizer, DOCUMENTS, TrainConfig(**{**OFTEN, **options}))


def steps(t, stop=0):
    """What the steps report; after `stop` of them the first process ends it."""
    reports = []
    with suppress(SystemExit):  # how the other processes end
        for step in t:
            reports.append([step.loss, step.val_loss or 0.0])
            if step.step == stop and t.rank == 0:
                break
        t.close()
    return reports


def worker(directory):
    """One of two processes: run all cases; the first writes down how they went."""
    torch.distributed.init_process_group("gloo")
    results = {
        name: steps(trainer(set, **options)) for name, (set, options) in CASES.items()
    }
    for name, stop in (("stopped", 3), ("two", 0)):
        t = trainer()
        steps(t, stop)
        t.save(f"{directory}/{name}")
        torch.distributed.barrier()
    t = TorchTrainer.load(f"{directory}/stopped", DOCUMENTS)
    steps(t)
    t.save(f"{directory}/resumed")
    t = trainer({"peak": 3.0})
    results["peak"] = t.peak
    if t.rank:  # a loss that is not finite in one process only
        t.module.gpt.params["wte.weight"].data[:] = math.nan
    for name, fails in (
        ("not finite", lambda: steps(t)),
        ("too few", lambda: trainer({"accumulate": 2}, batch_size=3)),
    ):
        with pytest.raises((ArithmeticError, ValueError)) as error:
            fails()
        with suppress(SystemExit):
            t.close()
        results[name] = str(error.value)
    if t.rank == 0:
        with open(f"{directory}/results.json", "w") as file:
            json.dump(results, file)


def torchrun(*words):
    """Two processes, in a process group as on a terminal, where Ctrl-C is taken."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )


def ended(child):
    """What a child printed; if it hangs, torchrun ends its processes, and the test fails."""
    try:
        return child.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        child.terminate()
        pytest.fail(f"it hangs: {child.communicate()}")


def running(word):
    """The processes which have a word on their command line, where there is a /proc."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with suppress(OSError), open(path, errors="replace") as file:
            found += [path] * (word in file.read())
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes made of all cases, and the directory that they saved in."""
    directory = tmp_path_factory.mktemp("two")
    child = torchrun(os.path.abspath(__file__), str(directory))
    output = ended(child)
    assert child.returncode == 0, output
    return {
        **json.loads((directory / "results.json").read_text()),
        "directory": directory,
    }


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abc.txt").write_text("\n".join(DOCUMENTS))
    return "abc.txt"


def main(*args, most=None):
    """The command in this process, which leaves everything as it was."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("device", "dtype", "accumulate", "compile", "peak"):
            patch.setattr(TorchTrainer, name, getattr(TorchTrainer, name))
        patch.setattr(GPT, "initial_params", GPT.initial_params)
        patch.setattr(microgpt, "MOST_PARAMETERS", most or microgpt.MOST_PARAMETERS)
        try:
            return train_torch.main(list(args))
        except SystemExit as error:
            return error.code


def floats(model):
    return {name: x.tolist() for name, x in model.params.items()}


def same_files(one, other):
    """To the bit, but for the order of the metadata."""
    for name in ("model.safetensors", "trainer.safetensors"):
        a, b = (
            safetensors.safe_open(directory / name, "pt") for directory in (one, other)
        )
        assert a.keys() == b.keys()
        if a.metadata() != b.metadata() or not all(
            torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys()
        ):
            return False
    return all(
        (one / name).read_bytes() == (other / name).read_bytes()
        for name in ("tokenizer.json", "config.json")
    )


def near(params, others, tolerance=1e-9):
    assert params.keys() == others.keys()
    for name, x in params.items():
        x, y = (torch.tensor(side, dtype=torch.float64) for side in (x, others[name]))
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance), name
    return True


# --- the same steps -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": 0.1},
        {"clip": 0, "batch_size": 7},
        {"weight_decay": 0.5, "warmup": 0},
        {"eval_every": 2, "val_fraction": 0.3},
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_in_float64_are_those_of_pure_python(options, accumulate):
    ours = trainer(kind=Trainer, **options)
    theirs = trainer({"dtype": "float64", "accumulate": accumulate}, **options)
    for step, other in zip(ours, theirs):
        assert other.loss == pytest.approx(step.loss, rel=1e-9)
        assert other.learning_rate == step.learning_rate
        assert (other.val_loss or 0) == pytest.approx(step.val_loss or 0, rel=1e-9)
    assert list(theirs) == [] and theirs.step == theirs.config.steps
    assert near(floats(theirs.model), ours.model.params)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(two, case):
    set, options = CASES[case]
    alone = steps(trainer({**set, "accumulate": 1}, **options))
    assert len(two[case]) == len(alone) == OFTEN["steps"]
    for losses, expected in zip(two[case], alone):
        assert losses == pytest.approx(expected, rel=1e-6)


def test_stopped_and_resumed_is_never_stopped_to_the_bit(two, tmp_path):
    kept = trainer()
    steps(kept)
    t = trainer()
    steps(t, stop=3)
    t.save(tmp_path / "stopped")
    t = TorchTrainer.load(tmp_path / "stopped", DOCUMENTS)
    assert t.step == 3
    steps(t)
    t.save(tmp_path / "resumed")
    kept.save(tmp_path / "kept")
    assert same_files(tmp_path / "resumed", tmp_path / "kept")
    assert same_files(two["directory"] / "resumed", two["directory"] / "two")
    assert not same_files(two["directory"] / "resumed", two["directory"] / "stopped")


def test_what_cannot_be_ends_all_processes_with_the_same_words(two):
    assert (
        two["not finite"]
        == "loss is nan at step 1: training diverged, try a smaller lr"
    )
    assert "for 2 x 2" in two["too few"] and "at least 4" in two["too few"]


def test_the_peak_of_two_devices_is_twice_that_of_one(two):
    assert two["peak"] == 6e12 and trainer({"peak": 3.0}).peak == 3e12


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_is_trained_here_writes_and_goes_on_in_pure_python(
    text, tmp_path, capsys, dtype
):
    t = trainer({"dtype": dtype})
    steps(t, stop=3)
    t.save(tmp_path)
    model = GPT.load(tmp_path)
    assert model.step == "3" and model.params == floats(t.model)
    assert microgpt.main(["sample", str(tmp_path), "--seed", "1", "--n", "1"]) == 0
    assert (
        capsys.readouterr().out
        == microgpt.generate(
            model, t.tokenizer, seed=1, temperature=microgpt.WRITING["temperature"]
        )
        + "\n"
    )
    ours = Trainer.load(tmp_path, DOCUMENTS)
    tolerance = {"float32": 1e-5, "float64": 1e-9, "bfloat16": 0.05}[dtype]
    assert [step.loss for step in ours] == pytest.approx(
        [loss for loss, _ in steps(t)], rel=tolerance
    )
    if dtype == "float64":
        assert near(floats(t.model), ours.model.params)


def test_what_is_trained_in_pure_python_goes_on_here(tmp_path):
    options = {"clip": 0.1, "weight_decay": 0.5}
    ours = trainer(kind=Trainer, **options)
    next(ours), next(ours)
    ours.save(tmp_path)
    kind = type("Double", (TorchTrainer,), {"dtype": "float64"})
    theirs = kind.load(tmp_path, DOCUMENTS)
    assert theirs.step == 2 and floats(theirs.model) == ours.model.params
    assert [step.loss for step in theirs] == pytest.approx(
        [step.loss for step in ours], rel=1e-9
    )
    assert near(floats(theirs.model), ours.model.params)
    theirs.save(tmp_path)
    ended = Trainer.load(tmp_path, DOCUMENTS)
    assert ended.step == ours.step and near(ended.optimizer.m, ours.optimizer.m)
    assert near(ended.optimizer.v, ours.optimizer.v)


def test_what_was_trained_by_name_of_this_engine_goes_on_without_it(text, monkeypatch):
    main(text, *TINY, "--steps", "1", "--engine", "torch", "--save", "kept")
    if os.path.exists("kept/trainer.safetensors"):  # or the option was refused
        monkeypatch.delitem(microgpt.ENGINES, "torch")
        assert len(list(Trainer.load("kept", DOCUMENTS, steps=2))) == 1


def test_transformers_opens_what_is_trained_here(tmp_path):
    transformers = pytest.importorskip("transformers")
    t = trainer()
    steps(t, stop=2)
    t.save(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).float()
    tokens = t.tokenizer.encode("abcabc")
    assert torch.allclose(
        theirs(torch.tensor([tokens])).logits[0], t.model(tokens), atol=1e-5
    )


def saved_by_microgpt(directory):
    tokenizer = CharTokenizer(DOCUMENTS)
    GPT(Config(tokenizer.vocab_size, 7, 2, 1, 6), seed=3).save(directory, tokenizer)


def saved_by_transformers(directory):
    transformers = pytest.importorskip("transformers")
    tokenizer = BPETokenizer.train(DOCUMENTS, 262)
    GPT(Config(tokenizer.vocab_size, 7, 2, 1, 6)).save(directory, tokenizer)
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=tokenizer.vocab_size,
            n_positions=7,
            n_layer=2,
            n_head=1,
            n_embd=6,
        )
    ).save_pretrained(directory)


@pytest.mark.parametrize("save", [saved_by_microgpt, saved_by_transformers])
def test_a_directory_is_begun_with_its_parameters_or_its_shape_alone(
    save, text, capsys
):
    save("start")
    begun, models = GPT.load("start"), []
    for more in (
        (),
        ("--random",),
        ("--random", "--seed", "5"),
    ):  # at lr 0 all stay as they are
        assert (
            main(
                text,
                "--start",
                "start",
                "--lr",
                "0",
                "--steps",
                "1",
                "--dtype",
                "float64",
                "--samples",
                "1",
                "--save",
                "kept",
                *more,
            )
            == 0
        )
        models.append(GPT.load("kept"))
        assert models[-1].config == begun.config
        assert (
            microgpt.load_tokenizer("kept").vocab
            == microgpt.load_tokenizer("start").vocab
        )
    assert models[0].params == begun.params
    assert len({repr(model.params["wte.weight"]) for model in models}) == 3
    assert [model.params["ln_f.weight"] for model in models[1:]] == [[1.0] * 6] * 2


# --- large models -------------------------------------------------------------------------------


def test_parameters_of_large_models_are_as_random_as_those_of_small_ones(monkeypatch):
    model = GPT(Config(vocab_size=60, block_size=60, n_layer=3, n_head=2, n_embd=48))
    expected = model.initial_params(random.Random(1))
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1000)
    large = [
        train_torch.initial_params(model, random.Random(seed)) for seed in (1, 1, 2)
    ]
    assert large[0].keys() == expected.keys()
    for name, x in expected.items():
        assert list(large[0][name].shape) == list(torch.tensor(x).shape)
        assert torch.equal(large[0][name], large[1][name])
        if isinstance(x[0], float):
            assert large[0][name].tolist() == x
        else:
            spread = statistics.pstdev(value for row in x for value in row)
            assert float(large[0][name].std()) == pytest.approx(spread, rel=0.08), name
            assert abs(float(large[0][name].mean())) < 0.1 * spread
            assert not torch.equal(large[0][name], large[2][name])


def test_large_models_are_saved_in_four_bytes_and_resumed_to_the_bit(
    text, tmp_path, monkeypatch
):
    run = partial(main, text, *TINY, most=500)
    assert run("--steps", "1", "--lr", "0", "--seed", "5", "--save", "begun") == 0
    begun = GPT.load("begun")
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 500)
    assert near(
        begun.params,
        floats(GPT(begun.config, train_torch.initial_params(begun, random.Random(5)))),
        1e-12,
    )
    assert run("--steps", "6", "--save", "kept") == 0
    assert (
        b'"dtype":"F32"' in (tmp_path / "kept" / "model.safetensors").read_bytes()[:200]
    )
    assert microgpt.main(["sample", "kept", "--n", "1"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TorchTrainer, "rate", lambda self, speed: signal.raise_signal(signal.SIGINT)
        )
        assert run("--steps", "6", "--save", "stopped") == 0
    assert GPT.load("stopped").step not in (None, "6")
    assert run("--resume", "stopped") == 0
    assert same_files(tmp_path / "stopped", tmp_path / "kept")


# --- the command --------------------------------------------------------------------------------


def without_speed(output):
    """What the command prints, but for what it runs on and how fast."""
    output = re.sub(
        r" [\d,]+ tokens/s  MFU [\d.]+%  \d+:\d\d left|PyTorch engine: .*", "", output
    )
    return [line for line in output.splitlines() if line]


def test_torchrun_prints_and_saves_once_and_as_one_process_does(text, tmp_path, capsys):
    options = (text, *TINY, "--steps", "10", "--eval-every", "5", "--dtype", "float64")
    child = torchrun(
        os.path.join(ENGINES, "train_torch.py"),
        *options,
        "--save",
        str(tmp_path / "kept"),
    )
    assert main(*options, "--save", str(tmp_path / "alone")) == 0
    alone = capsys.readouterr().out
    output, error = ended(child)
    assert (child.returncode, error) == (0, "")
    assert "PyTorch engine: 2 x cpu, float64, " in output
    assert without_speed(output) == without_speed(alone.replace("alone", "kept"))
    assert near(GPT.load("kept").params, GPT.load("alone").params)
    assert not running(str(tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
def test_ctrl_c_ends_all_processes_and_keeps_the_model(text, tmp_path):
    child = torchrun(
        os.path.join(ENGINES, "train_torch.py"),
        text,
        *TINY,
        "--steps",
        "2000",
        "--save",
        str(tmp_path / "kept"),
    )
    shown = next(line for line in child.stdout if line.startswith("step "))
    os.killpg(child.pid, signal.SIGINT)  # torchrun hands it on to the processes
    output = ended(child)[0]
    made = re.search(
        "^stopped by Ctrl-C after ([0-9,]+) of 2,000 steps$", output, re.MULTILINE
    )
    assert "200/2,000" in shown and made
    assert GPT.load("kept").step == made[1].replace(",", "")
    assert len(re.findall(r"^    \S.* (new|in training)$", output, re.MULTILINE)) == 2
    assert output.rstrip().splitlines()[-1].startswith("It is ") and not running(
        str(tmp_path)
    )


def test_progress_has_the_tokens_a_second_and_their_share_of_the_peak(text, capsys):
    assert main(text, *TINY, "--steps", "10", "--peak", "0.0001") == 0
    config = Config(CharTokenizer(DOCUMENTS).vocab_size, **SHAPE)
    c, n = (
        config,
        microgpt.parameter_count(config) - microgpt.parameter_count(config, "wpe"),
    )
    operations = 6 * n + 12 * c.n_layer * c.n_embd * c.block_size
    rates = re.findall(r"  ([\d,]+) tokens/s  MFU ([\d.]+)%", capsys.readouterr().out)
    assert len(rates) == 10
    for speed, share in rates:
        assert float(share) == pytest.approx(
            100 * int(speed.replace(",", "")) * operations / 1e8, abs=0.1, rel=0.01
        )


def test_bfloat16_and_compile_train_about_the_same(text, capsys, monkeypatch):
    compiled = []

    def compile(module):  # without a C++ compiler
        compiled.append(module)
        return torch._dynamo.optimize("eager")(module)

    def losses(*options):
        assert main(text, *TINY, "--steps", "10", *options) == 0
        return [
            float(x) for x in re.findall(r"loss ([\d.]+)  ", capsys.readouterr().out)
        ]

    monkeypatch.setattr(torch, "compile", compile)
    expected = losses()
    assert (
        losses("--compile") == pytest.approx(expected, abs=0.001) and len(compiled) == 1
    )
    assert losses("--dtype", "bfloat16") == pytest.approx(expected, rel=0.02)
    rough = trainer({"dtype": "bfloat16"})
    assert steps(rough) != steps(trainer())
    assert {x.dtype for x in rough.model.params.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_ends_with_one_line(text, capsys):
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(Config(tokenizer.vocab_size, **SHAPE))
    model.params["wte.weight"][0][0] = 1e200  # more than a float32 holds
    model.save("start", tokenizer)
    assert main(text, "--start", "start", "--quiet", "--save", "kept") == 1
    out, error = capsys.readouterr()
    assert (out, error) == (
        "",
        "microgpt: loss is nan at step 1: training diverged, try a smaller lr\n",
    )
    assert not os.path.exists("kept/model.safetensors")


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    t = trainer()
    next(t)
    t.save(tmp_path)
    t.model.params["wte.weight"][0, 0] = math.inf
    with pytest.raises(ValueError, match="wte.weight has numbers that are not finite"):
        t.save(tmp_path)
    assert TorchTrainer.load(tmp_path, DOCUMENTS).step == 1


@pytest.mark.parametrize(
    "options, word",
    [
        (["--dtype", "float8"], "float8"),
        (["--device", "nonsense"], "nonsense"),
        (["--accumulate", "0"], "accumulate is 0"),
        (["--accumulate", "x"], "accumulate"),
        (["--accumulate", "5"], "batch_size"),
        (["--workers", "2"], "workers is 2"),
        (["--peak", "-1"], "peak"),
        (["--peak", "nan"], "peak"),
        (["--random"], "--start"),
        (["--start", "kept", "--resume", "kept"], "--resume"),
        (["--nonsense"], "--nonsense"),
        (["--start", "kept", "--n-embd=4"], "--n-embd"),
        (["--start", "none"], "none"),
        (["--start", "empty"], "config.json"),
        (["none.txt"], "none.txt"),
    ],
)
def test_bad_options_get_one_line(text, tmp_path, capsys, options, word):
    saved_by_microgpt("kept")
    os.mkdir("empty")
    before = sorted(os.listdir())
    status = main(
        *([] if options == ["none.txt"] else [text]), "--steps", "1", *options
    )
    out, error = capsys.readouterr()
    lines = (error + (status if isinstance(status, str) else "")).splitlines()
    assert status and out == "" and len(lines) == 1 and word in lines[0]
    assert sorted(os.listdir()) == before


def test_help_shows_both_kinds_of_options(capsys):
    assert main("--help") == 0
    out = capsys.readouterr().out
    for option in (
        "--accumulate",
        "--dtype",
        "--start",
        "--n-embd",
        "--resume",
        "--prompt",
    ):
        assert f" {option} " in out


@pytest.mark.parametrize("name", ["torch", "numpy", "safetensors"])
def test_a_missing_library_is_named_in_one_line(tmp_path, name):
    message = f"No module named {name!r}"
    (tmp_path / f"{name}.py").write_text(
        f"raise ModuleNotFoundError({message!r}, name={name!r})"
    )
    child = subprocess.run(
        [sys.executable, os.path.join(ENGINES, "train_torch.py")],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (child.returncode, child.stdout) == (1, "")
    assert child.stderr.startswith(f"train_torch: it takes {name}: ")
    assert len(child.stderr.splitlines()) == 1


if __name__ == "__main__":
    worker(sys.argv[1])
