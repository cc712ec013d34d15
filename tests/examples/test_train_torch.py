"""examples/engines/train_torch.py: it trains as microgpt does, in one process or two.

torchrun starts two processes, with the command or with this file as the program."""

import glob
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
from contextlib import suppress
from functools import partial

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ENGINES = os.path.join(ROOT, "examples", "engines")

import microgpt  # noqa: E402
from microgpt import (  # noqa: E402
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    load_model,
    load_training,
    save_training,
)

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

import train_torch  # noqa: E402
from check_engine import CHECKS, check_engine  # noqa: E402
from train_torch import TorchEngine  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")  # float(loss)
DOCUMENTS = "ada bob abba dada cab bad dab cad abcabcabcabc d".split()
SHAPE = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
TINY = "--n-embd 8 --n-head 2 --block-size 8 --samples 2 --max-tokens 20".split()
TINY += "--device cpu --peak 1".split()
OFTEN = {"steps": 6, "batch_size": 4, "warmup": 2, "lr": 0.03, "seed": 7}
CASES = {  # what a TorchEngine has, and its TrainConfig
    "plain": ({}, {}),
    "a batch that 2 does not divide": ({}, {"batch_size": 7}),
    "accumulation": ({"accumulate": 3}, {"batch_size": 7, "clip": 0.1}),
    "parts of one window": ({"accumulate": 99}, {"batch_size": 3}),
    "decay, no clip": (
        {"dtype": "float64"},
        {"clip": 0, "weight_decay": 0.5, "batch_size": 3},
    ),
    "held out": ({}, {"eval_every": 2, "val_fraction": 0.3}),
}


def new_engine(**options):
    return TorchEngine(**{"peak": 1.0, **options})


def new_trainer(engine=None, **options):
    """Of an engine: None is pure Python, and a dict the options of a TorchEngine."""
    if isinstance(engine, dict):
        engine = new_engine(**engine)
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(Config(tokenizer.vocab_size, **SHAPE), seed=1)
    config = TrainConfig(**{**OFTEN, **options})
    return Trainer(model, tokenizer, DOCUMENTS, config, engine)


def steps(trainer, stop=0):
    """What the steps report; after `stop` of them the first process ends it."""
    reports = []
    for step in trainer:
        reports.append([step.loss, step.val_loss or 0.0])
        if step.step == stop and trainer.engine.leads:
            break
    trainer.close()
    return reports


def worker(directory):
    """One of two processes: run all cases; the first writes down how they went."""
    torch.distributed.init_process_group("gloo")
    results = {}
    for name, (engine, options) in CASES.items():
        results[name] = steps(new_trainer(engine, **options))
    for name, stop in (("stopped", 3), ("two", 0)):
        trainer = new_trainer({})
        steps(trainer, stop)
        save_training(trainer, f"{directory}/{name}")
        torch.distributed.barrier()
    trainer = load_training(f"{directory}/stopped", DOCUMENTS, new_engine())
    steps(trainer)
    save_training(trainer, f"{directory}/resumed")
    results["peak"] = new_engine(peak=3.0).peak
    trainer = new_trainer({})
    if not trainer.engine.leads:  # a loss that is not finite in one process only
        trainer.model.params["wte.weight"][:] = math.nan
    with pytest.raises(ArithmeticError) as error:
        steps(trainer)
    trainer.close()
    results["not finite"] = str(error.value)
    trainer = new_trainer({}, batch_size=1)
    with pytest.raises(ValueError) as error:
        steps(trainer)
    trainer.close()
    results["too few"] = str(error.value)
    if trainer.engine.leads:
        with open(f"{directory}/results.json", "w") as file:
            json.dump(results, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def failing(where, *words):
    """The command in two processes, one of which fails."""

    def fail(*_, **__):
        raise OSError(28, "no space left")

    def fail_in_the_third_step(engine, model, batch):
        calls.append(batch)
        return right(engine, model, batch) if len(calls) < 3 else fail()

    calls = []
    right = TorchEngine.backward
    first = os.environ["RANK"] == "0"
    if where == "save" and first:
        microgpt.save_training = fail
    if where == "step of the first" and first:
        TorchEngine.backward = fail_in_the_third_step
    if where == "step of the second" and not first:
        TorchEngine.backward = fail_in_the_third_step
    sys.exit(train_torch.main(list(words)))


def torchrun(*words):
    """Two processes, in a process group as on a terminal, where Ctrl-C is taken."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONIOENCODING": "utf-8",
            "PYTHONPATH": os.pathsep.join([ROOT, ENGINES]),
        },
    )


def ended(child):
    """What a child printed. If it hangs, it is ended, and the test fails."""
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


def main(*args):
    """The command in this process."""
    return train_torch.main(list(args))


def floats(model):
    return {name: x.tolist() for name, x in model.params.items()}


def same_files(one, other):
    """To the bit, but for the order of the metadata."""
    for name in ("model.safetensors", "trainer.safetensors"):
        a, b = (safetensors.safe_open(path / name, "pt") for path in (one, other))
        names = list(a.keys())
        assert names == list(b.keys())
        if a.metadata() != b.metadata():
            return False
        if not all(torch.equal(a.get_tensor(x), b.get_tensor(x)) for x in names):
            return False
    names = ("tokenizer.json", "config.json")
    return all((one / x).read_bytes() == (other / x).read_bytes() for x in names)


def near(params, others, tolerance=1e-9):
    assert params.keys() == others.keys()
    for name, x in params.items():
        x, y = (torch.tensor(side, dtype=torch.float64) for side in (x, others[name]))
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance), name
    return True


# The same steps


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
    ours = new_trainer(**options)
    theirs = new_trainer({"dtype": "float64", "accumulate": accumulate}, **options)
    for step, other in zip(ours, theirs):
        assert other.loss == pytest.approx(step.loss, rel=1e-9)
        assert other.learning_rate == step.learning_rate
        assert (other.val_loss or 0) == pytest.approx(step.val_loss or 0, rel=1e-9)
    assert list(theirs) == [] and theirs.step == theirs.config.steps
    assert near(floats(theirs.model), ours.model.params)


def test_check_engine_agrees():
    differences = check_engine(new_engine(dtype="float64", accumulate=2))
    assert list(differences) == CHECKS and max(differences.values()) <= 1e-10


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(two, case):
    engine, options = CASES[case]
    alone = steps(new_trainer({**engine, "accumulate": 1}, **options))
    assert len(two[case]) == len(alone) == OFTEN["steps"]
    for losses, expected in zip(two[case], alone):
        assert losses == pytest.approx(expected, rel=1e-6)


def test_stopped_and_resumed_is_never_stopped_to_the_bit(two, tmp_path):
    kept = new_trainer({})
    steps(kept)
    save_training(kept, tmp_path / "kept")
    stopped = new_trainer({})
    steps(stopped, stop=3)
    save_training(stopped, tmp_path / "stopped")
    resumed = load_training(tmp_path / "stopped", DOCUMENTS, new_engine())
    assert resumed.step == resumed.optimizer.t == 3
    steps(resumed)
    save_training(resumed, tmp_path / "resumed")
    assert same_files(tmp_path / "resumed", tmp_path / "kept")
    assert same_files(two["directory"] / "resumed", two["directory"] / "two")
    assert not same_files(two["directory"] / "resumed", two["directory"] / "stopped")


def test_what_cannot_be_ends_all_processes_with_the_same_words(two):
    diverged = "loss is nan at step 1: training diverged, try a smaller lr"
    assert two["not finite"] == diverged
    assert "batch_size is 1" in two["too few"] and "at least 2" in two["too few"]


def test_the_peak_of_two_devices_is_twice_that_of_one(two):
    assert two["peak"] == 6e12 and new_engine(peak=3.0).peak == 3e12


# There and back


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_is_trained_here_writes_and_goes_on_in_pure_python(
    text, tmp_path, capsys, dtype
):
    theirs = new_trainer({"dtype": dtype})
    steps(theirs, stop=3)
    save_training(theirs, tmp_path)
    model, metadata = microgpt.read_model(tmp_path)
    assert metadata["step"] == "3" and model.params == floats(theirs.model)
    assert microgpt.main(["sample", str(tmp_path), "--seed", "1", "--n", "1"]) == 0
    written = microgpt.generate(model, theirs.tokenizer, seed=1, temperature=0.7)
    assert capsys.readouterr().out == written + "\n"
    ours = load_training(tmp_path, DOCUMENTS)
    tolerance = {"float32": 1e-5, "float64": 1e-9, "bfloat16": 0.05}[dtype]
    losses = [loss for loss, _ in steps(theirs)]
    assert [step.loss for step in ours] == pytest.approx(losses, rel=tolerance)
    if dtype == "float64":
        assert near(floats(theirs.model), ours.model.params)


def test_what_is_trained_in_pure_python_goes_on_here(tmp_path):
    ours = new_trainer(clip=0.1, weight_decay=0.5)
    steps(ours, stop=2)
    save_training(ours, tmp_path)
    theirs = load_training(tmp_path, DOCUMENTS, new_engine(dtype="float64"))
    assert theirs.step == 2 and floats(theirs.model) == ours.model.params
    losses = [step.loss for step in ours]
    assert [step.loss for step in theirs] == pytest.approx(losses, rel=1e-9)
    assert near(floats(theirs.model), ours.model.params)
    save_training(theirs, tmp_path)
    ended = load_training(tmp_path, DOCUMENTS)
    assert ended.step == ours.step and near(ended.optimizer.m, ours.optimizer.m)
    assert near(ended.optimizer.v, ours.optimizer.v)


def test_transformers_opens_what_is_trained_here(tmp_path):
    transformers = pytest.importorskip("transformers")
    trainer = new_trainer({})
    steps(trainer, stop=2)
    save_training(trainer, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).float()
    tokens = trainer.tokenizer.encode("abcabc")
    logits = theirs(torch.tensor([tokens])).logits[0]
    assert torch.allclose(logits, trainer.model(tokens), atol=1e-5)


def saved_by_microgpt(directory):
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(Config(tokenizer.vocab_size, 7, 2, 1, 6), seed=3)
    microgpt.save_model(model, directory, tokenizer)


def saved_by_transformers(directory):
    transformers = pytest.importorskip("transformers")
    tokenizer = BPETokenizer.train(DOCUMENTS, 262)
    config = Config(tokenizer.vocab_size, 7, 2, 1, 6)
    microgpt.save_model(GPT(config), directory, tokenizer)
    shape = {**vars(config), "n_positions": config.block_size}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    theirs.save_pretrained(directory)


@pytest.mark.parametrize("save", [saved_by_microgpt, saved_by_transformers])
def test_a_directory_is_begun_with_its_parameters_or_its_shape_alone(save, text):
    save("start")
    begun = load_model("start")
    tokenizer = microgpt.load_tokenizer("start")
    options = "--start start --lr 0 --steps 1 --dtype float64 --samples 1 --save kept"
    models = []
    for more in ("", "--random", "--random --seed 5"):  # at lr 0 all stay as they are
        assert main(text, *options.split(), *more.split()) == 0
        models.append(load_model("kept"))
        assert models[-1].config == begun.config
        assert microgpt.load_tokenizer("kept").vocab == tokenizer.vocab
    assert models[0].params == begun.params
    assert models[1].params == GPT(begun.config, seed=TrainConfig.seed).params
    assert models[2].params == GPT(begun.config, seed=5).params


# Large models


def test_parameters_of_large_models_are_as_random_as_those_of_small_ones(monkeypatch):
    config = Config(vocab_size=60, block_size=60, n_layer=3, n_head=2, n_embd=48)
    engine = new_engine()
    expected = engine.new_model(config, seed=1).params
    assert expected == GPT(config, seed=1).params
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1000)
    large = [engine.new_model(config, seed).params for seed in (1, 1, 2)]
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
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 500)
    run = partial(main, text, *TINY)
    assert run("--steps", "1", "--lr", "0", "--seed", "5", "--save", "begun") == 0
    begun = load_model("begun")
    expected = new_engine().new_model(begun.config, seed=5)
    assert near(begun.params, floats(expected), 1e-12)
    assert run("--steps", "6", "--save", "kept") == 0
    header = (tmp_path / "kept" / "model.safetensors").read_bytes()[:200]
    assert b'"dtype":"F32"' in header
    assert microgpt.main(["sample", "kept", "--n", "1"]) == 0

    def ctrl_c(engine, speed):
        if not stops:
            stops.append(signal.raise_signal(signal.SIGINT))
        return ""

    stops = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchEngine, "rate", ctrl_c)
        assert run("--steps", "6", "--save", "stopped") == 0
    assert microgpt.read_model("stopped")[1]["step"] not in (None, "6")
    assert run("--resume", "stopped") == 0
    assert same_files(tmp_path / "stopped", tmp_path / "kept")


# The command


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
    assert near(load_model("kept").params, load_model("alone").params)
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
    assert microgpt.read_model("kept")[1]["step"] == made[1].replace(",", "")
    assert len(re.findall(r"^    \S.* (new|in training)$", output, re.MULTILINE)) == 2
    assert output.rstrip().splitlines()[-1].startswith("It is ") and not running(
        str(tmp_path)
    )


@pytest.mark.parametrize("where", ["save", "step of the first", "step of the second"])
def test_a_process_that_fails_leaves_no_other_hanging(text, tmp_path, where):
    kept = str(tmp_path / "kept")
    options = (text, *TINY, "--steps", "9", "--save", kept)
    child = torchrun(os.path.abspath(__file__), where, *options)
    error = ended(child)[1]
    assert child.returncode != 0 and "no space left" in error
    assert not running(str(tmp_path))


def test_progress_has_the_tokens_a_second_and_their_share_of_the_peak(text, capsys):
    options = (
        "--steps 10 --batch-size 16 --peak 0.0001".split()
    )  # more than all windows
    assert main(text, *TINY, *options) == 0
    config = Config(CharTokenizer(DOCUMENTS).vocab_size, **SHAPE)
    n = microgpt.parameter_count(config) - microgpt.parameter_count(config, "wpe")
    operations = 6 * n + 12 * config.n_layer * config.n_embd * config.block_size
    rates = re.findall(r"  ([\d,]+) tokens/s  MFU ([\d.]+)%", capsys.readouterr().out)
    assert len(rates) == 10
    for speed, share in rates:
        expected = 100 * int(speed.replace(",", "")) * operations / 1e8
        assert float(share) == pytest.approx(expected, abs=0.1, rel=0.01)


def test_bfloat16_and_compile_train_about_the_same(text, capsys, monkeypatch):
    compiled = []

    def compile_without_a_compiler(module):
        compiled.append(module)
        return torch._dynamo.optimize("eager")(module)

    def losses(*options):
        assert main(text, *TINY, "--steps", "10", *options) == 0
        printed = re.findall(r"loss ([\d.]+)  ", capsys.readouterr().out)
        return [float(x) for x in printed]

    monkeypatch.setattr(torch, "compile", compile_without_a_compiler)
    expected = losses()
    assert losses("--compile") == pytest.approx(expected, abs=0.001)
    assert len(compiled) == 1
    assert losses("--dtype", "bfloat16") == pytest.approx(expected, rel=0.02)
    rough = new_trainer({"dtype": "bfloat16"})
    assert steps(rough) != steps(new_trainer({}))
    assert {x.dtype for x in rough.model.params.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_ends_with_one_line(text, capsys):
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(Config(tokenizer.vocab_size, **SHAPE))
    model.params["wte.weight"][0][0] = 1e200  # more than a float32 holds
    microgpt.save_model(model, "start", tokenizer)
    assert main(text, "--start", "start", "--quiet", "--save", "kept") == 1
    diverged = "loss is nan at step 1: training diverged, try a smaller lr"
    assert capsys.readouterr() == ("", f"microgpt: {diverged}\n")
    assert not os.path.exists("kept/model.safetensors")


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    trainer = new_trainer({})
    next(trainer)
    save_training(trainer, tmp_path)
    trainer.model.params["wte.weight"][0, 0] = math.inf
    with pytest.raises(ValueError, match="wte.weight has numbers that are not finite"):
        save_training(trainer, tmp_path)
    assert load_training(tmp_path, DOCUMENTS, new_engine()).step == 1


@pytest.mark.parametrize(
    "options, word",
    [
        (["--dtype", "float8"], "float8"),
        (["--device", "nonsense"], "nonsense"),
        (["--accumulate", "0"], "accumulate is 0"),
        (["--accumulate", "x"], "accumulate"),
        (["--workers", "2"], "--workers"),
        (["--engine", "value"], "--engine"),
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
    words = [] if options == ["none.txt"] else [text]
    assert main(*words, "--steps", "1", *options) == 1
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1 and word in error
    assert sorted(os.listdir()) == before


def test_help_shows_both_kinds_of_options(capsys):
    assert main("--help") == 0
    out = capsys.readouterr().out
    for option in "accumulate dtype start n-embd resume prompt".split():
        assert f" --{option} " in out
    assert "--workers" not in out


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
    worker(sys.argv[1]) if len(sys.argv) == 2 else failing(*sys.argv[1:])
