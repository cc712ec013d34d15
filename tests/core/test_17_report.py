"""Chapter 17: the numbers that a training prints are the right ones."""

import math
import os
import re
import signal
from types import SimpleNamespace

import pytest
from helpers import NAMES, samples

import microgpt
from microgpt import (
    GPT,
    CharTokenizer,
    Config,
    Step,
    TrainConfig,
    Trainer,
    baselines,
    cut_windows,
    evaluate,
    load_model,
    split_documents,
)

COUNTING = ["knows nothing", "frequencies", "pairs", "triples"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own that has names.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path


@pytest.fixture
def train(capsys):
    """Train in this process, and save in kept/ -> the output"""

    def run_main(*args, **brought):
        argv = ["names.txt", "--n-embd", "8", "--save", "kept", *args]
        assert microgpt.main(argv, **brought) == 0
        output, error = capsys.readouterr()
        assert error == ""
        return output

    return run_main


def windows_of(documents, block_size=16):
    tokenizer = CharTokenizer(NAMES)
    windows = []
    for document in documents:
        windows += cut_windows(document, tokenizer, block_size)
    return windows


def losses_of(steps, **options):
    """The losses of the same training, without the command."""
    tokenizer = CharTokenizer(NAMES)
    config = TrainConfig(steps=steps, **options)
    model = GPT(Config(tokenizer.vocab_size, n_embd=8), seed=config.seed)
    return [step.loss for step in Trainer(model, tokenizer, NAMES, config)]


def mean(numbers):
    return sum(numbers) / len(numbers)


def number_before(word, output):
    """The number of three places before a word that is there once."""
    (number,) = re.findall(rf" (\d+\.\d{{3}}) {word}", output)
    return number


def scale_of(output):
    """The table of models -> {name: (loss, length of its bar)}, in its order."""
    rows = re.findall(r"^      (\w[\w ]+?) +(\d+\.\d{3}) (█*)$", output, re.MULTILINE)
    return {name: (loss, len(bar)) for name, loss, bar in rows}


# --- after the training ---------------------------------------------------------------


@pytest.mark.parametrize("val_fraction, seed", [(0.1, 42), (0.4, 7)])
def test_the_loss_that_is_held_out_is_that_of_the_held_out_windows(
    train, val_fraction, seed
):
    options = ["--val-fraction", str(val_fraction), "--seed", str(seed)]
    output = train("--steps", "5", "--samples", "1", *options)
    trained, held_out = split_documents(NAMES, val_fraction, seed)
    loss = evaluate(load_model("kept"), windows_of(held_out))
    assert number_before("held out,", output) == f"{loss:.3f}"
    assert f"{evaluate(load_model('kept'), windows_of(trained)):.3f}" != f"{loss:.3f}"


def test_where_nothing_is_held_out_the_loss_is_that_of_the_training_windows(train):
    output = train("--steps", "5", "--samples", "1", "--val-fraction", "0")
    loss = evaluate(load_model("kept"), windows_of(NAMES))
    assert number_before("evaluated,", output) == f"{loss:.3f}"
    assert "held out" not in output.replace("0 held out", "")
    found = scale_of(output)
    counted = baselines(windows_of(NAMES), windows_of(NAMES), 23)
    for name in COUNTING:
        assert found[name][0] == f"{counted[name]:.3f}"


@pytest.mark.parametrize("val_fraction, seed", [(0.1, 42), (0.4, 7)])
def test_the_baselines_count_in_the_training_windows(train, val_fraction, seed):
    options = ["--val-fraction", str(val_fraction), "--seed", str(seed)]
    output = train("--steps", "5", "--samples", "1", *options)
    trained, held_out = split_documents(NAMES, val_fraction, seed)
    found = scale_of(output)
    counted = baselines(windows_of(trained), windows_of(held_out), 23)
    assert {*found} == {"this model", *COUNTING}
    for name in COUNTING:
        assert found[name][0] == f"{counted[name]:.3f}"
    assert found["this model"][0] == number_before("held out,", output)


def test_the_scale_falls_and_its_bars_are_as_long_as_the_losses(train):
    found = scale_of(train("--steps", "200", "--samples", "1", "--lr", "0.05"))
    losses = [float(loss) for loss, _ in found.values()]
    assert losses == sorted(losses, reverse=True) and len(found) == 5
    for loss, (_, length) in zip(losses, found.values()):
        assert abs(length - 40 * loss / losses[0]) < 0.51


@pytest.mark.parametrize("n_windows", [500, 501, 700])
def test_of_many_windows_the_first_500_are_evaluated_and_counted_on(train, n_windows):
    documents = [NAMES[i * i % 17] for i in range(2 * n_windows)]
    with open("names.txt", "w") as file:
        file.write("\n".join(documents))
    options = ["--val-fraction", "0.5", "--steps", "1", "--block-size", "8"]
    output = train(*options, "--samples", "1")
    trained, held_out = split_documents(documents, 0.5, 42)
    tokenizer = CharTokenizer(documents)
    trained = [w for x in trained for w in cut_windows(x, tokenizer, 8)]
    held_out = [w for x in held_out for w in cut_windows(x, tokenizer, 8)]
    loss = evaluate(load_model("kept"), held_out[:500])
    assert number_before("held out,", output) == f"{loss:.3f}"
    counted = baselines(trained, held_out[:500], tokenizer.vocab_size)
    assert scale_of(output)["pairs"][0] == f"{counted['pairs']:.3f}"


@pytest.mark.parametrize("steps", [1, 3, 25, 26, 60, 300])
def test_the_training_loss_is_the_mean_of_the_last_steps(train, steps):
    output = train("--steps", str(steps), "--samples", "0")
    losses = losses_of(steps)
    recent = mean(losses[-max(25, steps // 10) :])
    assert number_before("in training", output) == f"{recent:.3f}"
    assert re.search(rf"^step {steps}/{steps}  loss {recent:.3f}  ", output, re.M)


@pytest.mark.parametrize("steps", [1, 2, 3, 56, 57, 150])
def test_the_curve_is_drawn_from_the_losses(train, steps):
    output = train("--steps", str(steps), "--samples", "0", "--lr", "0.05")
    losses = losses_of(steps, lr=0.05)
    first, curve, last = re.search(r"^loss  (\S+) (\S+) (\S+)$", output, re.M).groups()
    n = min(56, steps)
    parts = []
    for i in range(n):
        parts.append(mean(losses[steps * i // n : steps * (i + 1) // n]))
    assert (first, last) == (f"{parts[0]:.3f}", f"{parts[-1]:.3f}")
    assert len(curve) == n
    lowest = min(parts)
    highest = max(parts)
    for bar, part in zip(curve, parts):
        height = (part - lowest) / ((highest - lowest) or 1)
        assert abs("▁▂▃▄▅▆▇█".index(bar) - 7 * height) < 0.51


def test_a_terminal_without_blocks_gets_signs(train, monkeypatch):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding="ascii"))
    trainer = SimpleNamespace(
        losses=[3.0, 2.0, 1.0],
        windows=[[0, 1, 0]],
        val_windows=[[0, 1, 0]],
        model=SimpleNamespace(config=Config(2)),
    )
    text = microgpt.report(trainer, 1.0, 0.0)
    assert text.isascii() and "loss  3.000 #+. 1.000" in text


@pytest.mark.parametrize(
    "written, share, verdict",
    [
        (["ada", "bob", "zzz"], "67%", "memorising"),
        (["ada", "bob", "cleo", "x", "y"], "60%", "memorising"),
        (["ada", "zzz"], "50%", "no better"),
        (["ada", "ada", "ada", "zzz"], "50%", "no better"),
        (["ada", "zzz", "zzz", "zzz", "bob"], "67%", "memorising"),
        (["x", "y", "z"], "0%", "no better"),
    ],
)
def test_the_share_of_copies_is_that_of_training_documents(
    train, monkeypatch, written, share, verdict
):
    trained, held_out = split_documents(NAMES, 0.1, 42)
    assert {"ada", "bob", "cleo"} <= {*trained}
    waiting = iter(written)
    monkeypatch.setattr(microgpt, "generate", lambda *args, **options: next(waiting))
    output = train("--steps", "1", "--samples", str(len(written)))
    marks = ["in training" if text in trained else "new" for text in written]
    assert samples(output) == list(zip(written, marks))
    assert f"It is {verdict}" in output
    if verdict == "memorising":
        sentence = f"It is memorising: {share} of the different samples are training"
        assert sentence in output


def test_a_held_out_document_is_new(train, monkeypatch):
    _, held_out = split_documents(NAMES, 0.1, 42)
    monkeypatch.setattr(microgpt, "generate", lambda *args, **options: held_out[0])
    assert samples(train("--steps", "1", "--samples", "1")) == [(held_out[0], "new")]


@pytest.mark.parametrize(
    "text, shown",
    [("a\nb\x1b[31m\r\tc", "a\ufffdb\ufffd[31m\ufffd\ufffdc"), ("x" * 999, "x" * 999)],
)
def test_a_sample_is_one_line_that_does_no_harm_to_the_terminal(
    train, monkeypatch, text, shown
):
    monkeypatch.setattr(microgpt, "generate", lambda *args, **options: text)
    assert samples(train("--steps", "1", "--samples", "1")) == [(shown, "new")]
    assert train("--steps", "1", "--samples", "1", "--quiet") == f"{text}\n"


def test_an_empty_sample_is_shown_as_empty(train, monkeypatch):
    monkeypatch.setattr(microgpt, "generate", lambda *args, **options: "")
    output = train("--steps", "1", "--samples", "1")
    assert samples(output) == [("(empty)", "new")]


# --- before the training --------------------------------------------------------------


@pytest.mark.parametrize(
    "options, engine",
    [
        ([], "tensor engine"),
        (["--engine", "tensor"], "tensor engine"),
        (["--engine", "value"], "value engine"),
        (["--workers", "2", "--engine", "value"], "value engine"),
    ],
)
def test_it_says_what_it_learns_from_and_how(train, options, engine):
    sizes = ["--n-layer", "2", "--n-head", "2", "--block-size", "9"]
    training = ["--steps", "1", "--batch-size", "3", "--lr", "0.25", "--samples", "0"]
    output = train(*sizes, *training, *options)
    lines = output.splitlines()
    count = microgpt.parameter_count(load_model("kept").config)
    assert lines[:5] == [
        "documents   names.txt: 20, of which 2 held out",
        f"characters  {len(''.join(NAMES))}; 22 different ones: abcdefghijklmnoprstuvy",
        "model       vocab_size 23, block_size 9, n_layer 2, n_head 2, n_embd 8",
        f"parameters  {count:,}",
        f"training    1 steps of 3 windows, lr 0.25, {engine}",
    ]


# --- during the training --------------------------------------------------------------


class Clock:
    """Stands in for the module time: seconds pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(microgpt, "time", clock)
    return clock


def fake_trainer(steps, first_step=0):
    """What a Progress asks of a Trainer."""
    return SimpleNamespace(
        config=TrainConfig(steps=steps),
        step=first_step,
        losses=[],
        engine=microgpt.TensorEngine(),
    )


def progress_of(trainer, is_live, monkeypatch):
    """A Progress, and a list of all that it says."""
    stdout = SimpleNamespace(isatty=lambda: is_live)
    monkeypatch.setattr("sys.stdout", stdout)
    said = []

    def say(text, end="\n"):
        said.append(text + end)

    return microgpt.Progress(trainer, say), said


def make_steps(progress, trainer, clock, n, seconds=1.0, speed=100.0, val_loss=None):
    """Let n more steps take so many seconds each."""
    for _ in range(n):
        trainer.step += 1
        trainer.losses.append(float(trainer.step))
        clock.now += seconds
        step = Step(trainer.step, float(trainer.step), 0.01, speed, val_loss)
        progress.show(step, trainer.step == trainer.config.steps)


def test_the_line_has_step_loss_speed_and_time_left(clock, monkeypatch):
    trainer = fake_trainer(2000)
    trainer.losses = [9.0] * 1080 + [3.0] * 40 + [4.0] * 80
    progress, _ = progress_of(trainer, False, monkeypatch)
    progress.speed = 12345.6
    line = progress.line(1200, 3 * 60 + 7)
    assert line == "step 1,200/2,000  loss 3.667  12,346 tokens/s  3:07 left"
    progress.held_out = "  held out 1.500"
    line = progress.line(1200, 3600 + 59)
    assert line == (
        "step 1,200/2,000  loss 3.667  held out 1.500  12,346 tokens/s  60:59 left"
    )
    assert progress.line(2000, 0).endswith("  0:00 left")


def test_the_bar_of_a_live_line_is_as_long_as_what_is_done(clock, monkeypatch):
    trainer = fake_trainer(1200)
    trainer.losses = [2.0]
    progress, _ = progress_of(trainer, True, monkeypatch)
    bars = [progress.line(n, 0)[:14] for n in (1, 99, 100, 600, 1199, 1200)]
    assert bars == [
        "[............]",
        "[............]",
        "[#...........]",
        "[######......]",
        "[###########.]",
        "[############]",
    ]


@pytest.mark.parametrize("first_step", [0, 100])
def test_the_time_left_is_that_of_the_steps_left(clock, monkeypatch, first_step):
    trainer = fake_trainer(first_step + 100, first_step)
    progress, said = progress_of(trainer, False, monkeypatch)
    make_steps(progress, trainer, clock, 20, seconds=2.0)
    assert said[-1].endswith("  2:40 left\n")  # 80 steps of 2 seconds
    make_steps(progress, trainer, clock, 40, seconds=8.0)
    assert said[-1].endswith("  4:00 left\n")  # 40 steps of 360 / 60 seconds
    make_steps(progress, trainer, clock, 40, seconds=0.0)
    assert said[-1].endswith("  0:00 left\n")


def test_the_speed_is_a_mean_that_follows_the_last_steps(clock, monkeypatch):
    trainer = fake_trainer(1000)
    progress, said = progress_of(trainer, False, monkeypatch)
    make_steps(progress, trainer, clock, 1, speed=100.0)
    make_steps(progress, trainer, clock, 1, speed=400.0)
    make_steps(progress, trainer, clock, 1, speed=1000.0)
    assert progress.speed == pytest.approx(500.0)
    make_steps(progress, trainer, clock, 97, speed=500.0)
    assert progress.speed == pytest.approx(500.0)
    assert "  500 tokens/s  " in said[-1]
    make_steps(progress, trainer, clock, 100, speed=1500.0)
    assert progress.speed == pytest.approx(1500 - 1000 * 0.99**100)


def test_a_held_out_loss_stays_until_the_next(clock, monkeypatch):
    trainer = fake_trainer(10)
    progress, said = progress_of(trainer, False, monkeypatch)
    make_steps(progress, trainer, clock, 1)
    make_steps(progress, trainer, clock, 1, val_loss=2.5)
    make_steps(progress, trainer, clock, 1)
    make_steps(progress, trainer, clock, 1, val_loss=1.25)
    shown = [re.findall(r"held out (\S+)", line) for line in said]
    assert shown == [[], ["2.500"], ["2.500"], ["1.250"]]


@pytest.mark.parametrize("steps", [1, 7, 10, 11, 19, 199, 500])
def test_without_a_terminal_there_are_ten_lines_at_most(clock, monkeypatch, steps):
    trainer = fake_trainer(steps)
    progress, said = progress_of(trainer, False, monkeypatch)
    make_steps(progress, trainer, clock, steps)
    progress.close()
    numbers = [int(re.match(r"step ([\d,]+)/", line)[1]) for line in said]
    every = math.ceil(steps / 10)
    assert numbers == [*range(every, steps, every), steps]
    assert len(numbers) <= 10
    assert all(line.endswith(" left\n") for line in said)


@pytest.mark.parametrize(
    "columns, width", [(80, 79), (200, 79), (40, 39), (10, 9), (0, 79)]
)
def test_a_live_line_is_rewritten_ten_times_a_second(
    clock, monkeypatch, columns, width
):
    def terminal_size(*file):
        return os.terminal_size((columns, 24))  # 0 columns: nobody has set them

    monkeypatch.setattr(os, "get_terminal_size", terminal_size)
    trainer = fake_trainer(1000)
    progress, said = progress_of(trainer, True, monkeypatch)
    make_steps(progress, trainer, clock, 999, seconds=1 / 64)
    assert len(said) == 999 // 7  # 7 steps are the first that take more than 0.1 s
    make_steps(progress, trainer, clock, 1, seconds=0.0)
    assert said[-1].startswith("\r[########")  # the last step is always shown
    assert {len(text) for text in said} == {1 + width}  # all overwrite each other
    for text in said:
        assert text[0] == "\r" and "\n" not in text
    progress.close()
    assert said[-1] == "\n"


def test_a_step_that_is_the_last_is_shown_though_no_line_is_due(clock, monkeypatch):
    trainer = fake_trainer(1000)
    trainer.losses = [1.0, 1.0, 1.0]
    progress, said = progress_of(trainer, False, monkeypatch)
    progress.show(Step(3, 1.0, 0.01, 10.0, None), is_last=False)
    assert said == []
    progress.show(Step(3, 1.0, 0.01, 10.0, None), is_last=True)
    assert len(said) == 1 and said[0].startswith("step 3/1,000  ")


def test_what_follows_ctrl_c_is_of_the_steps_that_were_made(train, monkeypatch):
    losses = losses_of(500)[:7]
    learning_rate = microgpt.learning_rate

    def interrupted(step, *args):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        return learning_rate(step, *args)

    monkeypatch.setattr(microgpt, "learning_rate", interrupted)
    output = train("--steps", "500", "--samples", "0")
    assert "stopped by Ctrl-C after 7 of 500 steps" in output
    _, held_out = split_documents(NAMES, 0.1, 42)
    loss = evaluate(load_model("kept"), windows_of(held_out))
    assert number_before("held out,", output) == f"{loss:.3f}"
    assert number_before("in training", output) == f"{mean(losses):.3f}"
    assert re.search(rf"^step 7/500  loss {mean(losses):.3f}  ", output, re.M)
