"""Chapter 18: the numbers that a training run prints are the right ones."""

import math
import os
import random
import re
import sys
import time
from itertools import cycle
from types import SimpleNamespace

import pytest
from helpers import NAMES, close, flat, samples

import microgpt
from microgpt import CharTokenizer, Config, TrainConfig, evaluate, split_documents

MANY = ["\x1b" + chr(0x4E00 + i % 60) for i in range(1200)]
MEAGRE = {"n_embd": 4, "steps": 1, "samples": 1}
BPE = {**MEAGRE, "tokenizer": "bpe", "vocab_size": 270}
SECONDS = (0.001, 1.0, 30.5)
EVERYTHING = {
    **{"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 3, "steps": 20},
    **{"batch_size": 3, "lr": 0.25, "warmup": 7, "weight_decay": 0.5, "clip": 0.5},
    **{"val_fraction": 0.4, "eval_every": 3, "seed": 7, "samples": 3, "prompt": "a"},
    **{"temperature": 0.9, "top_k": 9, "top_p": 0.8, "max_tokens": 1},
}


@pytest.fixture
def steps_take(monkeypatch):
    """A function that has the steps take so many seconds, in turn, by a fake clock.

    Nothing else takes any time.
    """

    def prepare(*seconds):
        def slow_gradients(engine, model, batch):
            clock.now += next(waiting)
            return gradients(engine, model, batch)

        waiting = cycle(seconds)
        monkeypatch.setattr(microgpt.ValueEngine, "gradients", slow_gradients)

    gradients = microgpt.ValueEngine.gradients
    clock = SimpleNamespace(now=1000.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(microgpt, "time", clock)
    return prepare


def mean(numbers):
    return sum(numbers) / len(numbers)


def arguments(options):
    """{"n_embd": 8} -> ["--n-embd=8"]"""
    return [f"--{name.replace('_', '-')}={x}" for name, x in options.items()]


def settings(kind, options, **others):
    """Those options that are fields of a dataclass, as its object."""
    options = {**options, **others}
    names = kind.__dataclass_fields__.keys() & options.keys()
    return kind(**{name: options[name] for name in names})


def windows_of(documents, tokenizer=None, block_size=16):
    tokenizer = tokenizer or CharTokenizer(NAMES)
    windows = []
    for document in documents:
        windows += microgpt.cut_windows(document, tokenizer, block_size)
    return windows


# --- all of it, and where it gets its numbers from ------------------------------------


def the_same(documents, options):
    """The Trainer that a command line makes, made by hand."""
    config = settings(TrainConfig, options, engine="tensor")
    tokenizer = CharTokenizer(documents)
    if "tokenizer" in options:
        tokenizer = microgpt.BPETokenizer.train(documents, options["vocab_size"])
    shape = settings(Config, options, vocab_size=tokenizer.vocab_size)
    model = microgpt.GPT(shape, seed=config.seed)
    return microgpt.Trainer(model, tokenizer, documents, config)


def header_of(trainer, documents, held_out, engine):
    """What it says before the training."""
    n_letters = sum(map(len, documents))
    different = sorted({letter for document in documents for letter in document})
    shown = "".join(different).replace("\x1b", "")[:40]
    config = trainer.config
    s = trainer.model.config
    return f"""\
documents   names.txt: {len(documents):,} lines, of which {len(held_out):,} held out
characters  {n_letters:,}; {len(different):,} different ones: {shown}
model       vocab_size {s.vocab_size}, block_size {s.block_size}, \
n_layer {s.n_layer}, n_head {s.n_head}, n_embd {s.n_embd}
parameters  {len(flat(trainer.model.params)):,}
training    {config.steps:,} steps of {config.batch_size} windows, lr {config.lr}, \
{engine} engine

"""


def progress_of(trainer):
    """What it says during the training, which this does. The steps take SECONDS."""
    n_steps = trainer.config.steps
    lines = ""
    val_loss = ""
    speed = 0.0
    elapsed = 0.0
    for (n, _, _, new_speed, measured), seconds in zip(trainer, cycle(SECONDS)):
        speed += (new_speed - speed) / min(n, 100)
        elapsed += seconds
        if measured is not None:
            val_loss = f"  held out {measured:.3f}"
        if n % math.ceil(n_steps / 10) == 0 or n == n_steps:
            recent = mean(trainer.losses[-25:])
            left = round(elapsed / n * (n_steps - n))
            lines += (
                f"step {n}/{n_steps}  loss {recent:.3f}{val_loss}  "
                f"{speed:,.0f} tokens/s  {left // 60}:{left % 60:02} left\n"
            )
    return lines


def texts_of(trainer, options):
    """The samples."""
    how = vars(settings(microgpt.Sampling, {"temperature": 0.7, **options}))
    how["max_tokens"] = options.get("max_tokens", 200)
    how["prompt"] = options.get("prompt", "")
    how["seed"] = random.Random(trainer.config.seed)
    like = (trainer.model, trainer.tokenizer)
    return [microgpt.generate(*like, **how) for _ in range(options.get("samples", 20))]


@pytest.mark.parametrize(
    "documents, options",
    [
        (NAMES, {"n_embd": 4, "steps": 11}),
        (NAMES, {**MEAGRE, "n_embd": 1, "n_head": 1, "steps": 130}),
        (NAMES, {**MEAGRE, "steps": 9, "val_fraction": 0}),
        (NAMES, BPE),
        (MANY, {**MEAGRE, "val_fraction": 0.99}),
        (NAMES, EVERYTHING),
        (NAMES, {**EVERYTHING, "engine": "value", "steps": 4, "n_layer": 1}),
    ],
)
def test_all_that_it_says(run, folder, steps_take, documents, options):
    """It is what the library says of the same training run."""
    (folder / "names.txt").write_text("\n".join(documents), encoding="utf-8")
    steps_take(*SECONDS)
    argv = ["names.txt", *arguments(options)]
    output = run.works(*argv, "--save", "kept")
    trainer = the_same(documents, options)
    config = trainer.config
    trained, held_out = split_documents(documents, config.val_fraction, config.seed)

    expected = header_of(trainer, documents, held_out, options.get("engine", "tensor"))
    steps_take(*SECONDS)
    expected += progress_of(trainer)
    expected += "\nsaved       in kept: python microgpt.py sample kept\n\n"
    texts = texts_of(trainer, options)
    for text in texts:
        shown = "".join(x if x.isprintable() else "\ufffd" for x in text) or "(empty)"
        mark = "in training" if text in trained else "new"
        expected += f"    {shown:24} {mark}\n"
    copied = len({*texts} & {*trained}) / len({*texts})
    block_size = trainer.model.config.block_size
    windows = windows_of(held_out or trained, trainer.tokenizer, block_size)
    loss = evaluate(trainer.model, windows)
    expected += microgpt.report(trainer, loss, copied) + "\n"
    assert output == expected

    quiet = run.works(*argv, "--quiet")
    assert quiet == "".join(f"{text}\n" for text in texts)
    params = microgpt.load_model("kept").params
    assert flat(params) == close(trainer.model.params, 1e-9)


@pytest.mark.parametrize(
    "columns, pattern",
    [
        (80, r"\[#*\.*\]  N/72  loss \d\.\d+  [\d,]+ tokens/s  0:0\d left"),
        (0, r"\[#*\.*\]  N/72  loss \d\.\d+  [\d,]+ tokens/s  0:0\d left"),
        (None, r"\[#*\.*\]  N/72  loss \d\.\d+  [\d,]+ tokens/s  0:0\d left"),
        (50, r"\[#*\.*\]  N/72  loss \d\.\d+  0:0\d left"),
        (40, r"N/72  loss \d\.\d+  0:0\d left"),
        (20, r"N/72  loss \d\.\d+"),
        (10, r"N/72"),
    ],
)
def test_on_a_terminal_one_live_line_is_rewritten_ten_times_a_second(
    run, steps_take, monkeypatch, columns, pattern
):
    def terminal_size(*file):
        if columns is None:
            raise OSError
        return os.terminal_size((columns, 24))  # 0 columns: nobody has set them

    monkeypatch.setattr(os, "get_terminal_size", terminal_size)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    monkeypatch.setenv("TERM", "dumb")
    steps_take(1 / 64)
    output = run.works("names.txt", "--n-embd=4", "--steps=72", "--samples=0")
    blank = " " * ((columns or 80) - 1)
    lines = output.split(f"\r{blank}\r")[1:]
    lines[-1], _ = lines[-1].split("\n\n", 1)
    shown = [*range(7, 72, 7), 72]  # 7 steps are the first that take over 0.1 s
    assert len(lines) == len(shown)
    for n, line in zip(shown, lines):
        assert re.fullmatch(pattern.replace("N", str(n)), line)
        assert len(line) <= len(blank)
        if "[" in line:
            assert line.count("#") == n // 6 and line.index("]") == 13


class Terminal:
    """A terminal, as a file: it wraps long lines, anew whenever its width changes."""

    def __init__(self, width):
        self.width = width
        self.rows = [""]

    def write(self, text):
        """The cursor is always at the end of the last row, or at its beginning."""
        for code, up in re.findall(r"(\x1b\[(\d*)[AJ]|\r\x1b\[J|.|\n)", text, re.S):
            if code == "\n":
                self.rows.append("")
            elif up:
                del self.rows[-int(up) :]  # what follows erases them anyway
            elif code == "\r\x1b[J":
                self.rows[-1] = ""
            else:
                self.rows[-1] += code
                self.wrap()

    def wrap(self):
        last = self.rows[-1]
        starts = range(0, max(1, len(last)), self.width)
        self.rows[-1:] = [last[i : i + self.width] for i in starts]

    def fileno(self):
        return 0

    def flush(self):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such escape sequences")
def test_the_live_line_stays_one_line_while_the_terminal_changes(monkeypatch):
    terminal = Terminal(80)
    terminal.write("above\n")
    monkeypatch.setenv("TERM", "xterm")
    line = microgpt.LiveLine(terminal)
    monkeypatch.setattr(microgpt.LiveLine, "width", lambda line: terminal.width)
    for width in (80, 40, 20, 79, 100, 20, 21, 200, 2):
        terminal.width = width
        terminal.wrap()
        line.show("0123456789" * 15)
        assert terminal.rows == ["above", ("0123456789" * 15)[: width - 1]]
    line.show("")
    assert terminal.rows == ["above", ""]


@pytest.mark.parametrize("is_terminal, quiet", [(1, 0), (1, 1), (0, 0)])
def test_what_takes_long_is_shown_on_a_terminal(
    monkeypatch, capsys, is_terminal, quiet
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: bool(is_terminal))
    monkeypatch.setenv("TERM", "dumb")
    with microgpt.waiting("counting", quiet, every=0.001):
        time.sleep(0.1)
    shown = set(capsys.readouterr().err.replace(" " * 79, "").split("\r"))
    assert shown == ({"", "counting: 0 s"} if is_terminal and not quiet else {""})


@pytest.mark.parametrize(
    "seconds, steps", [(60.0, [2, 4, 5]), (60.5, [1, 2, 3, 4, 5]), (20.0, [4, 5])]
)
def test_it_saves_when_more_than_a_minute_has_passed(
    run, steps_take, monkeypatch, seconds, steps
):
    saved = []
    monkeypatch.setattr(microgpt, "save_training", lambda x, _: saved.append(x.step))
    steps_take(seconds)
    run.works("names.txt", "--n-embd=4", "--steps=5", "--save=kept", "--samples=0")
    assert saved == steps


def test_the_time_left_of_a_resumed_training_is_that_of_its_steps(
    run, kept, steps_take
):
    steps_take(7.0)
    output = run.works("names.txt", "--resume=kept", "--steps=5", "--samples=0")
    assert re.search("^step 4/5  .*  0:07 left\nstep 5/5  .*  0:00 left$", output, re.M)


# --- the report -----------------------------------------------------------------------


def report_of(losses, loss=1.0, windows=None, val_windows=(), copied=0.0):
    """The report on a training run with these losses and windows."""
    trainer = SimpleNamespace(
        losses=losses,
        windows=windows or LEARNED,
        val_windows=val_windows,
        model=SimpleNamespace(config=Config(23)),
    )
    return microgpt.report(trainer, loss, copied)


@pytest.mark.parametrize("steps", [1, 2, 3, 25, 26, 56, 57, 150, 300])
def test_the_curve_and_the_last_losses(capsys, steps):
    rng = random.Random(steps)
    losses = [rng.uniform(2, 4) for _ in range(steps)]
    recent = mean(losses[-max(25, steps // 10) :])
    n = min(56, steps)
    parts = [mean(losses[steps * i // n : steps * (i + 1) // n]) for i in range(n)]
    lowest = min(parts)
    span = max(parts) - lowest or 1
    curve = "".join("▁▂▃▄▅▆▇█"[round(7 * (x - lowest) / span)] for x in parts)
    assert report_of(losses).startswith(
        f"\nloss  {parts[0]:.3f} {curve} {parts[-1]:.3f}\n"
        f"      1.000 evaluated, {recent:.3f} in training\n"
    )


@pytest.mark.parametrize(
    "encoding, curve", [("ascii", "#+."), (None, "#+."), ("UTF-8", "█▅▁")]
)
def test_a_terminal_without_blocks_gets_signs(monkeypatch, encoding, curve):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding=encoding, isatty=bool))
    text = report_of([3.0, 2.0, 1.0])
    assert f"loss  3.000 {curve} 1.000" in text and curve[0] * 40 + "\n" in text


LEARNED = windows_of(NAMES[:12])
OTHERS = windows_of([NAMES[i * i % 19] for i in range(500)] + ["u" * 15])


@pytest.mark.parametrize(
    "windows, val_windows, measured, kind",
    [
        (LEARNED, OTHERS[:9], OTHERS[:9], "held out"),
        (LEARNED, OTHERS, OTHERS[:500], "held out"),
        (OTHERS, LEARNED, LEARNED, "held out"),
        (OTHERS, [], OTHERS[:500], "evaluated"),
    ],
)
@pytest.mark.parametrize("loss", [0.5, 2.9, 4.0])
def test_the_models_that_count(capsys, windows, val_windows, measured, kind, loss):
    """They count in the training windows. The scale falls, and its bars with it."""
    scale = {**microgpt.baselines(windows, measured, 23), "this model": loss}
    most = max(scale.values())
    lines = f"      {loss:.3f} {kind}, 2.500 in training\n"
    for name in sorted(scale, key=scale.get)[::-1]:
        bar = "█" * round(40 * scale[name] / most)
        lines += f"      {name:14} {scale[name]:.3f} {bar}\n"
    assert lines + "\nIt is " in report_of([3.0, 2.0], loss, windows, val_windows)


@pytest.mark.parametrize(
    "written, verdict",
    [
        ("ada bob zzz", "memorising: 67% of the different samples are training"),
        ("ada", "memorising: 100% of"),
        ("ada bob cleo x y", "memorising: 60% of"),
        ("ada zzz", "no better"),
        ("ada ada ada zzz", "no better"),
        ("ada zzz zzz zzz bob", "memorising: 67% of"),
        ("HELD_OUT z", "no better"),
        ("", "no better"),
    ],
)
def test_the_share_of_copies_is_that_of_training_documents(
    run, monkeypatch, written, verdict
):
    trained, held_out = split_documents(NAMES, 0.1, 42)
    texts = written.replace("HELD_OUT", held_out[0]).split()
    waiting = iter(texts)
    monkeypatch.setattr(microgpt, "generate", lambda *args, **options: next(waiting))
    output = run.works("names.txt", "--steps=1", "--n-embd=4", f"--n={len(texts)}")
    marks = ["in training" if text in trained else "new" for text in texts]
    assert samples(output) == list(zip(texts, marks))
    assert f"It is {verdict} " in output


@pytest.mark.parametrize(
    "text, shown",
    [
        ("ab\x1b[31m\r\u202ec\u200cd", f"    {'ab�[31m��c‌d':25} new"),
        ("x" * 999, f"    {'x' * 999} new"),
        ("", f"    {'(empty)':24} new"),
        ("猫は魚を", f"    猫は魚を{' ' * 16} new"),  # each takes two columns
        ("กี่ปี", f"    กี่ปี{' ' * 22} new"),  # two of the five take none
        ("a\n  b\x1bc", "--- new\na\n  b�c\n"),
    ],
)
def test_a_sample_does_no_harm_and_stays_aligned(run, monkeypatch, text, shown):
    monkeypatch.setattr(microgpt, "generate", lambda *args, **options: text)
    argv = ["names.txt", *arguments(MEAGRE)]
    assert f"\n\n{shown}\n\nloss " in run.works(*argv)
    blank_line = "\n" if "\n" in text else ""
    assert run.works(*argv, "--quiet") == f"{text}\n{blank_line}"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    on_terminal = microgpt.printable(text, allowed="\n\u200c")
    assert run.works(*argv, "--quiet") == f"{on_terminal}\n{blank_line}"


@pytest.mark.parametrize("room", [-3, 0, 1, 5])
def test_a_text_is_cut_to_any_room(room):
    assert microgpt.fit("猫abc", room) == ("猫abc" if room == 5 else "")
