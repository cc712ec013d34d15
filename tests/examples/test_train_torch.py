"""examples/engines/train_torch.py: what test_engines.py does not test of it.

torchrun starts two processes, with the command or with torchrun_child.py, once each.
"""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers import ENGINES, ROOT, close, command, flat, program, samples

import microgpt
from microgpt import GPT, CharTokenizer, Config, TrainConfig, load_model, save_training

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

import torchrun_child  # noqa: E402
import train_torch  # noqa: E402
from torchrun_child import DOCUMENTS, OPTIONS, SHAPE, new_engine, new_trainer, steps  # noqa: E402  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor")  # float(loss)
ENGINE = program("train_torch", ENGINES)
DIVERGED = "loss is nan at step 1: training diverged, try a smaller lr"


def main(*words):
    """The command in this process."""
    return train_torch.main([str(word) for word in words])


def torchrun(*words, cwd):
    """Two processes, in a process group as on a terminal, where Ctrl-C is taken."""
    path = os.pathsep.join(map(str, [ROOT, ENGINES, ROOT / "tests"]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**env, "PYTHONIOENCODING": "utf-8"},
        cwd=cwd,
    )


def ended(child):
    """What a child printed. If it hangs, it is ended, and the test fails."""
    try:
        return child.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        child.terminate()
        pytest.fail(f"it hangs: {child.communicate()}")


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abc.txt").write_text("\n".join(DOCUMENTS))
    return "abc.txt"


def same_files(one, other):
    """To the bit, but for the order of the metadata."""
    for name in ("model.safetensors", "trainer.safetensors"):
        a, b = (safetensors.safe_open(path / name, "pt") for path in (one, other))
        names = list(a.keys())
        if (names, a.metadata()) != (list(b.keys()), b.metadata()):
            return False
        if not all(torch.equal(a.get_tensor(x), b.get_tensor(x)) for x in names):
            return False
    names = ("tokenizer.json", "config.json")
    return all((one / x).read_bytes() == (other / x).read_bytes() for x in names)


# --- two processes ---


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What torchrun_child.py did: its directory, its output, and what each has seen."""
    directory = tmp_path_factory.mktemp("two")
    (directory / "abc.txt").write_text("\n".join(DOCUMENTS))
    child = torchrun(torchrun_child.__file__, str(directory), cwd=directory)
    output = ended(child)
    assert child.returncode == 0, output
    seen = [json.loads((directory / f"{i}.json").read_text()) for i in range(2)]
    return directory, output, seen


@pytest.mark.parametrize("case", torchrun_child.CASES)
def test_two_processes_take_the_steps_of_one(two, case):
    engine, options = torchrun_child.CASES[case]
    alone = steps(new_trainer({**engine, "accumulate": 1}, **options))
    assert len(alone) == 6
    for seen in two[2]:
        assert flat(seen[case]) == close(alone, 1e-6)


def test_stopped_and_resumed_two_processes_are_two_never_stopped_to_the_bit(two):
    directory = two[0]
    assert microgpt.read_model(directory / "stopped")[1]["step"] == "3"
    assert same_files(directory / "resumed", directory / "whole")
    assert not same_files(directory / "resumed", directory / "stopped")


def without_speed(output):
    """What the command prints, but for what it runs on and how fast."""
    speed = r" [\d,]+ tokens/s  MFU [\d.]+%  \d+:\d\d left|PyTorch engine: .*"
    return [line for line in re.sub(speed, "", output).splitlines() if line]


def test_two_processes_print_and_save_once_and_as_one_does(two, text, capsys):
    directory, (output, _), _ = two
    assert "PyTorch engine: 2 x cpu, float64, peak 2 TFLOP/s" in output
    assert main(*torchrun_child.SHOWN) == 0
    assert without_speed(output) == without_speed(capsys.readouterr().out)
    expected = load_model("kept").params
    assert flat(load_model(directory / "kept").params) == close(expected, 1e-9)


def test_what_fails_in_one_process_ends_both(two):
    _, (_, errors), (first, second) = two
    names = ["command", "save", "first", "second"]
    assert [first[name] for name in names] == [0, 1, 1, 1]
    assert [second[name] for name in names] == [0, 0, 1, 1]
    lines = re.findall("^(?:microgpt|train_torch): .*", errors, re.MULTILINE)
    assert len(lines) == 5  # if one fails in a step, the other's connection is lost
    assert lines.count("microgpt: no space left") == 2
    assert lines.count("train_torch: process 1: [Errno 28] no space left") == 1


def test_what_cannot_be_ends_both_with_the_same_words(two):
    for seen in two[2]:
        assert seen["not finite"] == DIVERGED
        assert "batch_size is 1" in seen["too few"] and "at least 2" in seen["too few"]


def test_the_peak_of_two_devices_is_twice_that_of_one(two):
    assert [seen["peak"] for seen in two[2]] == [6e12, 6e12]
    assert new_engine(peak=3.0).peak == 3e12


def running(word):
    """The processes which have a word on their command line, where there is a /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path] * (word in path.read_text(errors="replace"))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
def test_ctrl_c_ends_all_processes_and_keeps_the_model(text, tmp_path):
    save = ["--steps", "2000", "--save", str(tmp_path / "kept")]
    child = torchrun(ENGINE, *OPTIONS, *save, cwd=tmp_path)
    shown = next(line for line in child.stdout if line.startswith("step "))
    os.killpg(child.pid, signal.SIGINT)  # torchrun hands it on to the processes
    output = ended(child)[0]
    stopped = "^stopped by Ctrl-C after ([0-9,]+) of 2,000 steps$"
    (n_steps,) = re.findall(stopped, output, re.MULTILINE)
    assert "200/2,000" in shown
    assert microgpt.read_model("kept")[1]["step"] == n_steps.replace(",", "")
    assert len(samples(output)) == 2
    assert not running(str(tmp_path))


# --- one process ---


def saved(directory="start", first=None):
    """A model of another shape than is usual here, with this first number."""
    tokenizer = CharTokenizer(DOCUMENTS)
    model = GPT(Config(tokenizer.vocab_size, 7, 2, 1, 6), seed=3)
    if first:
        model.params["wte.weight"][0][0] = first
    microgpt.save_model(model, directory, tokenizer)
    return model


def test_a_directory_is_begun_with_its_parameters_or_its_shape_alone(text):
    begun = saved("start")
    options = "--start start --lr 0 --steps 1 --dtype float64 --samples 1 --save kept"
    for more, expected in {
        "": begun,
        "--random": GPT(begun.config, seed=TrainConfig.seed),
        "--random --seed 5": GPT(begun.config, seed=5),
    }.items():
        assert main(text, *options.split(), *more.split()) == 0
        model = load_model("kept")
        assert (model.config, model.params) == (begun.config, expected.params)
        assert microgpt.load_tokenizer("kept").vocab == CharTokenizer(DOCUMENTS).vocab


def test_parameters_of_large_models_are_as_random_as_those_of_small_ones(monkeypatch):
    config = Config(vocab_size=60, block_size=60, n_layer=3, n_head=2, n_embd=48)
    engine = new_engine()
    expected = engine.new_model(config, seed=1).params
    assert expected == GPT(config, seed=1).params
    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 1000)
    one, same, other = (engine.new_model(config, seed).params for seed in (1, 1, 2))
    assert one.keys() == expected.keys()
    for name, x in expected.items():
        assert one[name].shape == torch.tensor(x).shape
        assert torch.equal(one[name], same[name])
        if one[name].dim() == 1:
            assert one[name].tolist() == x
        else:
            spread = statistics.pstdev(flat(x))
            assert float(one[name].std()) == pytest.approx(spread, rel=0.08), name
            assert abs(float(one[name].mean())) < 0.1 * spread
            assert not torch.equal(one[name], other[name])


def test_large_models_are_saved_in_four_bytes_and_resumed_to_the_bit(
    text, tmp_path, monkeypatch
):
    def ctrl_c(engine, speed):
        if not stops:
            stops.append(signal.raise_signal(signal.SIGINT))
        return ""

    monkeypatch.setattr(microgpt, "MOST_PARAMETERS", 500)
    run = partial(main, *OPTIONS)
    assert run("--steps", 1, "--lr", 0, "--seed", 5, "--save", "begun") == 0
    begun = load_model("begun")
    expected = new_engine().new_model(begun.config, seed=5)
    assert flat(begun.params) == flat(expected.params)
    assert run("--steps", 6, "--save", "kept") == 0
    header = (tmp_path / "kept" / "model.safetensors").read_bytes()[:200]
    assert b'"dtype":"F32"' in header and b'"format":"pt"' in header
    assert microgpt.main(["sample", "kept", "--n", "1"]) == 0
    stops = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_torch.TorchEngine, "rate", ctrl_c)
        assert run("--steps", 6, "--save", "stopped") == 0
    assert microgpt.read_model("stopped")[1]["step"] == "2"  # the one after Ctrl-C
    assert run("--resume", "stopped") == 0
    assert same_files(tmp_path / "stopped", tmp_path / "kept")


def test_progress_has_the_tokens_a_second_and_their_share_of_the_peak(text, capsys):
    # A batch has all windows and more, so the longest is among them.
    assert main(*OPTIONS, *"--steps 10 --batch-size 16 --peak 0.0001".split()) == 0
    config = Config(CharTokenizer(DOCUMENTS).vocab_size, **SHAPE)
    n = microgpt.parameter_count(config) - microgpt.parameter_count(config, "wpe")
    operations = 6 * n + 12 * config.n_layer * config.n_embd * config.block_size
    rates = re.findall(r"  ([\d,]+) tokens/s  MFU ([\d.]+)%", capsys.readouterr().out)
    assert len(rates) == 10
    for speed, share in rates:
        expected = 100 * int(speed.replace(",", "")) * operations / 1e8
        assert float(share) == pytest.approx(expected, abs=0.1, rel=0.01)


def test_a_measured_peak_is_a_number_of_operations():
    assert 1e6 < new_engine(peak=0.0).peak < 1e17


def test_compile_trains_the_same(text, capsys, monkeypatch):
    def compile_without_a_compiler(module):
        compiled.append(module)
        return torch._dynamo.optimize("eager")(module)

    def losses(*options):
        assert main(*OPTIONS, "--steps", 10, *options) == 0
        printed = re.findall(r"loss ([\d.]+)  ", capsys.readouterr().out)
        return [float(x) for x in printed]

    compiled = []
    monkeypatch.setattr(torch, "compile", compile_without_a_compiler)
    expected = losses()
    assert compiled == []
    assert losses("--compile") == pytest.approx(expected, abs=0.001)
    assert len(compiled) == 1


def test_bfloat16_computes_in_it_and_keeps_float32():
    rough = new_trainer({"dtype": "bfloat16"})
    assert flat(steps(rough)) != close(steps(new_trainer()), 1e-5)
    assert {x.dtype for x in rough.model.params.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_ends_with_one_line(text, capsys):
    saved("start", first=1e200)  # more than a float32 holds
    assert main(text, "--start", "start", "--quiet", "--save", "kept") == 1
    assert capsys.readouterr() == ("", f"microgpt: {DIVERGED}\n")
    assert not os.path.exists("kept/model.safetensors")


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    trainer = new_trainer()
    next(trainer)
    save_training(trainer, tmp_path)
    trainer.model.params["wte.weight"][0, 0] = math.inf
    with pytest.raises(ValueError, match="wte.weight has numbers that are not finite"):
        save_training(trainer, tmp_path)
    assert microgpt.read_model(tmp_path)[1]["step"] == "1"


@pytest.mark.parametrize(
    "options, word",
    [
        ("abc.txt --dtype float8", "float8"),
        ("abc.txt --device nonsense", "nonsense"),
        ("abc.txt --device mps:9", "mps:9"),
        ("abc.txt --device cuda:99", "'cuda:99': PyTorch finds none here; use cpu"),
        ("abc.txt --device privateuseone", "PyTorch finds none here; use cpu"),
        ("abc.txt --device meta", "PyTorch finds none here; use cpu"),
        ("abc.txt --device mkldnn", "PyTorch finds none here; use cpu"),
        ("abc.txt --device=", "device is ''"),
        ("abc.txt --start=", "start is ''"),
        ("abc.txt --accumulate 0", "accumulate is 0"),
        ("abc.txt --accumulate x", "accumulate"),
        ("abc.txt --workers 2", "--workers"),
        ("abc.txt --engine value", "--engine"),
        ("abc.txt --peak -1", "peak"),
        ("abc.txt --peak nan", "peak"),
        ("abc.txt --random", "--start"),
        ("abc.txt --start start --resume start", "--resume"),
        ("abc.txt --nonsense", "--nonsense"),
        ("abc.txt --start start --n-embd=4", "--n-embd"),
        ("abc.txt --start none", "none"),
        ("abc.txt --start empty", "config.json"),
        ("none.txt", "none.txt"),
    ],
)
def test_bad_options_get_one_line(text, capsys, options, word):
    saved("start")
    os.mkdir("empty")
    before = sorted(os.listdir())
    assert main(*options.split(), "--steps", 1) == 1
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
    error = f"raise ModuleNotFoundError(name={name!r})"
    (tmp_path / f"{name}.py").write_text(error)
    result = command(script=ENGINE, env={"PYTHONPATH": str(tmp_path)})
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(f"train_torch: it takes {name}: .*\n", result.stderr)


@pytest.mark.parametrize(
    "device, dtype, is_refused",
    [
        ("mps", "float64", True),
        ("mps", "bfloat16", False),
        ("cuda", "bfloat16", True),
        ("cuda", "float64", False),
        ("cpu", "bfloat16", False),
    ],
)
def test_a_device_is_not_asked_for_numbers_that_it_lacks(
    monkeypatch, device, dtype, is_refused
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    why = train_torch.lacks(torch.device(device), dtype)
    assert bool(why) == why.endswith("use float32") == is_refused


@pytest.mark.parametrize("said", ["no \x1b[2J compiler\n\nlong advice", ""])
def test_what_goes_wrong_within_pytorch_is_one_line(text, capsys, monkeypatch, said):
    class InductorError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(self, windows):
        raise InductorError(said)

    monkeypatch.setattr(train_torch.TorchEngine, "loss_of", fail)
    assert main("abc.txt", "--steps", 1, "--compile") == 1
    problem = "no \ufffd[2J compiler" if said else "InductorError"
    expected = f"microgpt: {problem} (without --compile, it is not needed)\n"
    assert capsys.readouterr().err == expected


def test_numbers_are_rounded_before_they_reach_a_device_and_widened_after(monkeypatch):
    steps = []
    real = torch.Tensor.to

    def watch(x, *where):
        steps.append(where)
        return real(x, *where)

    monkeypatch.setattr(torch.Tensor, "to", watch)
    train_torch.torch_engine.to_tensor([[0.5]], "meta", torch.float32)
    assert steps == [(torch.float32,), ("meta",)]
    engine = new_engine()
    steps.clear()
    list(engine.write_tensors({"wte.weight": torch.ones(1, 1)}))
    assert steps == [(torch.float64,)]
