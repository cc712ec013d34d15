"""Chapter 18: the commands, and the command as a process that people watch and stop."""

import io
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import (
    ENV,
    NAMES,
    SCRIPT,
    TINY,
    command,
    is_one_line,
    on_terminal,
    samples,
    says_one_line,
    start,
    table,
    works,
)

import microgpt

LONG = [*TINY, "--steps=2000", "--n-embd=4"]  # a line every 200 steps

pytestmark = pytest.mark.usefixtures("folder")
posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


# --- train ----------------------------------------------------------------------------


def test_without_a_file_it_learns_from_the_bundled_names(run):
    output = run.works("--steps", "2", "--samples", "1", "--n-embd", "4")
    assert re.search(r"^documents   the bundled names: \d+,\d+ lines, ", output)


def test_what_comes_with_the_file_lies_beside_it_or_is_installed(folder, monkeypatch):
    monkeypatch.setattr(microgpt, "__file__", str(folder / "microgpt.py"))
    beside = os.path.join(os.path.realpath(folder), "names.txt")
    assert microgpt.find_beside("names.txt") == beside
    installed = folder / "microgpt_files" / "names.txt"
    installed.parent.mkdir()
    installed.touch()
    assert microgpt.find_beside("names.txt") == os.path.realpath(installed)


@pytest.mark.parametrize("argv0", "microgpt /a/microgpt.exe ./microgpt.py a".split())
def test_the_words_that_start_it(monkeypatch, argv0):
    monkeypatch.setattr(sys, "argv", [argv0])
    installed = argv0 in ("microgpt", "/a/microgpt.exe")
    words = "microgpt" if installed else "python microgpt.py"
    assert microgpt.how_to_start() == words
    assert f"\n  {words} sample DIR" in microgpt.help_of(microgpt.train_command)


def test_a_directory_that_cannot_be_written_to_is_refused_before_the_training(
    run, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != ("d", os.W_OK))
    run.fails([*TINY, "--save", "d"], "d cannot be written to")


@pytest.mark.parametrize("size", ["", "--n-embd 64 --n-layer 2 --block-size 512"])
def test_output_has_80_columns_at_most(run, folder, size):
    (folder / "wide.txt").write_text("\n".join(map(chr, range(33, 127))))
    options = "--steps 2 --samples 2 --max-tokens 20 --batch-size 1 --eval-every 1"
    output = run.works("wide.txt", *options.split(), *size.split())
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize(
    "name, raw, words",
    [
        ("missing.txt", None, "microgpt: 'missing.txt': No such file"),
        ("blank.txt", b"\n \n", "blank.txt|empty"),
        ("image.bin", b"\x89PNG\r\n\x1a\n\0\0", "image.bin|not UTF-8|line 1"),
        ("zeros.bin", b"\nada\n\0\0", "zeros.bin|not UTF-8|line 3"),
        ("single.txt", b"ada\n", "single document"),
    ],
)
def test_a_file_that_cannot_be_learned_from_is_one_line(run, folder, name, raw, words):
    if raw is not None:
        (folder / name).write_bytes(raw)
    run.fails([name], *words.split("|"))


# --- resume ---------------------------------------------------------------------------


def test_a_training_that_was_stopped_and_resumed_ends_like_one_that_was_not(run):
    def trainer():
        config = microgpt.TrainConfig(steps=6, batch_size=3, warmup=2, workers=2)
        model = microgpt.GPT(microgpt.Config(23, n_embd=8))
        return microgpt.Trainer(model, microgpt.CharTokenizer(NAMES), NAMES, config)

    parts = trainer()
    while next(parts).step < 4:
        pass
    microgpt.save_training(parts, "parts")
    parts.close()
    whole = trainer()
    list(whole)
    output = run.works("names.txt", "--resume", "parts")
    assert "6 steps of 3 windows" in output and "step 5/6" in output
    assert "\nsaved       in parts: " in output
    assert microgpt.load_model("parts").params == whole.model.params


def test_resume_keeps_what_it_began_with_and_takes_other_settings(run, kept):
    again = ["names.txt", "--resume", "kept"]
    output = run.works(*again, "--steps=5", "--engine=value", "--save=on", "--n=0")
    assert "n_embd 8" in output and "5 steps of 2 windows" in output
    assert "value engine" in output and "step 4/5" in output
    assert "\nsaved       in on: " in output
    resumed = microgpt.load_training("on", NAMES)
    assert (resumed.config.engine, resumed.step) == ("value", 5)
    assert microgpt.load_training("kept", NAMES).step == 3
    run.works(*again, "--steps=4", "--n-embd=8", "--block-size=16", "--n-layer=1")


RESUMED = """
    -> kept has made its 3 steps: |--steps 6
    --steps 3 -> kept has made its 3 steps
    --n-embd 16 -> kept has n_embd 8: it cannot become 16
    --steps 9 --seed 5 -> kept has seed 42: it cannot become 5
    --steps 9 --document file -> kept has document line: it cannot become file
    --steps 9 --tokenizer char -> --tokenizer|--resume
    --steps 9 --tokenizer bpe -> --tokenizer|--resume
    --steps 9 --vocab-size 300 -> --vocab-size|--resume
"""


@pytest.mark.parametrize("args, words", table(RESUMED))
def test_what_cannot_be_resumed_is_one_line(run, kept, args, words):
    run.fails(["names.txt", "--resume=kept", *args.split()], *words.split("|"))


# --- sample and tokenize --------------------------------------------------------------


@pytest.mark.parametrize(
    "options, n, how",
    [
        ("", 5, {}),
        ("--temperature 0.7 --top-k 0 --top-p 1 --max-tokens 200", 5, {}),
        ("--n 3 --max-tokens 2 --top-k 3", 3, {"max_tokens": 2, "top_k": 3}),
        ("--prompt ad --top-p 0.5", 5, {"prompt": "ad", "top_p": 0.5}),
        ("--temperature 0 --samples 1", 1, {"temperature": 0}),
        ("--samples 0", 0, {}),
    ],
)
def test_sample_writes_what_generate_does(run, kept, options, n, how):
    like = (microgpt.load_model("kept"), microgpt.load_tokenizer("kept"))
    how = {"temperature": 0.7, "seed": random.Random(3), **how}
    texts = [microgpt.generate(*like, **how) + "\n" for _ in range(n)]
    output = run.works("sample", "kept", "--seed=3", *options.split())
    assert output == "".join(texts)


def test_sample_without_a_seed_writes_other_documents_each_time(run, kept):
    assert run.works("sample", "kept") != run.works("sample", "kept")


def has_to_write(text, monkeypatch):
    """Save a model in bytes/ that writes this, and then half a character."""
    tokenizer = microgpt.BPETokenizer.train(["\U0001f642"], 257)
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, n_embd=4, n_head=1))
    microgpt.save_model(model, "bytes", tokenizer)
    ids = tokenizer.encode(text) + tokenizer.encode("é")[:1]
    monkeypatch.setattr(microgpt, "stream", lambda *args, **options: iter(ids))
    return ["sample", "bytes", "--n", "1", "--prompt", "a"]


def test_it_shows_each_sample_at_once_in_whole_characters(monkeypatch):
    def note(*words, end="\n", flush):
        assert flush
        pieces.append("".join(words) + end)

    pieces = []
    monkeypatch.setattr("builtins.print", note)
    assert microgpt.main([*TINY, "--quiet"]) == 0 and len(pieces) == 3
    pieces.clear()
    assert microgpt.main(has_to_write("\U0001f642é!", monkeypatch)) == 0
    assert pieces == ["a", "\U0001f642", "é", "!", "\ufffd", "\n", ""]


def test_bytes_as_tokens_do_not_move_the_cursor_of_a_terminal(run, monkeypatch):
    argv = has_to_write("a\n\t\x1b[31m\rb", monkeypatch)
    assert run.works(*argv) == "aa\n\t\x1b[31m\rb\ufffd\n\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run.works(*argv) == "aa\n\t\ufffd[31m\ufffdb\ufffd\n\n"
    shown = run.works("tokenize", "bytes", "é\U0001f642")
    assert shown.endswith("\n2 characters, 6 tokens\n")


@pytest.mark.parametrize("is_live, no_color", [(0, ""), (1, ""), (0, "1"), (1, "1")])
def test_tokenize_shows_every_token(run, kept, monkeypatch, is_live, no_color):
    shown = """\
      0  \x1b[33m'a'\x1b[0m
      3  \x1b[36m'd'\x1b[0m
     22  \x1b[33m'<|endoftext|>'\x1b[0m
15 characters, 3 tokens
"""
    if no_color or not is_live:
        shown = re.sub(r"\x1b\[\d+m", "", shown)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: bool(is_live))
    assert run.works("tokenize", "kept", "ad<|endoftext|>") == shown


COMMANDS = """
    sample -> DIR|required
    sample a b -> sample does not take the word b (see --help)
    sample nowhere -> nowhere|No such file
    sample kept --prompt zoë -> 'z'|abcdefghijklmnoprstuvy
    tokenize -> DIR, TEXT|required
    tokenize kept -> TEXT|required
    tokenize kept a b -> tokenize does not take the word b (see --help)
    tokenize kept zoë -> 'z'|abcdefghijklmnoprstuvy
    tokenize nowhere ada -> nowhere|No such file
    names.txt b -> 'b'|No such file
    train names.txt b -> 'b'|No such file
"""


@pytest.mark.parametrize("args, words", table(COMMANDS))
def test_a_command_that_cannot_be_is_one_line(run, kept, args, words):
    run.fails(args.split(), *words.split("|"))


# --- what goes wrong, and Ctrl-C ------------------------------------------------------


def test_training_that_diverges_is_one_line_that_names_the_step(run):
    wild = "--steps=60 --lr=100 --clip=0 --warmup=0 --weight-decay=100".split()
    status, _, error = run.main([*TINY, *wild])
    assert status == 1 and is_one_line(error)
    assert re.search(r"at step \d+: training diverged", error)


def test_training_that_diverges_in_its_last_step_says_so_too(run, monkeypatch):
    def spoil(optimizer, gradients, *rates):
        optimizer.params["ln_f.bias"][0] = math.nan

    monkeypatch.setattr(microgpt.FastAdamW, "step", spoil)
    status, output, error = run.main([*TINY, "--steps", "1"])
    assert status == 1 and is_one_line(error)
    assert "diverged" in error and samples(output) == []


@pytest.mark.parametrize(
    "error, message",
    [
        (MemoryError("m"), "not enough memory"),
        (OSError("o"), "o"),
        (OSError(1, "o", "file"), "'file': o"),
        (RuntimeError("r"), "r"),
    ],
)
def test_an_error_is_said_in_one_line(run, monkeypatch, error, message):
    def go_wrong(*args, **options):
        raise error

    monkeypatch.setattr(microgpt, "GPT", go_wrong)
    run.fails(TINY, f"microgpt: {message}")


def test_a_worker_that_is_killed_is_one_line(run, monkeypatch):
    def kill_workers(*args):
        for worker in multiprocessing.active_children():
            worker.kill()
        return 0.0

    monkeypatch.setattr(microgpt, "learning_rate", kill_workers)
    status, _, error = run.main([*TINY, "--workers", "2"])
    assert status == 1 and is_one_line(error)


def test_ctrl_c_completes_the_step_and_restores_the_handler(run, interrupt):
    interrupt(3)
    assert len(run.works(*LONG, "--quiet").splitlines()) == 2
    output = run.works(*LONG)
    last = "^step 3/2,000  loss .*\nstopped by Ctrl-C after 3 of 2,000 steps\n\n"
    assert re.search(last, output, re.M) and len(samples(output)) == 2
    assert "stopped by Ctrl-C" not in run.works(*TINY, "--steps", "2")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_ends_it_at_once(run, interrupt):
    interrupt(3, times=2)
    status, output, error = run.main(LONG)
    assert (status, error) == (130, "microgpt: interrupted\n")
    assert samples(output) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("ctrl_c_in", [4, 99])
def test_no_worker_outlives_main(run, interrupt, monkeypatch, ctrl_c_in):
    kept = []  # so that the garbage collector does not end them

    class Kept(microgpt.Workers):
        def gradients(self, model, batch):
            result = super().gradients(model, batch)
            kept.append((self, self.executor, multiprocessing.active_children()))
            return result

    monkeypatch.setattr(microgpt, "Workers", Kept)
    interrupt(ctrl_c_in)
    output = run.works(*TINY, "--steps", "5", "--workers", "2")
    assert ("stopped by Ctrl-C" in output) == (ctrl_c_in == 4)
    assert kept and all(len(children) == 2 for _, _, children in kept)
    assert multiprocessing.active_children() == []


# --- as a process: its output ---------------------------------------------------------


def test_on_a_pipe_there_are_plain_lines_and_in_ascii_escapes(folder):
    text = "søren\nzoë\n東京\n🙂\na\u2028b\nc\x0bd\n"
    (folder / "data.txt").write_text(text, encoding="utf-8")
    argv = [sys.executable, SCRIPT, "data.txt", "--steps=2", "--n-embd=4"]
    output = subprocess.check_output(argv, env={**ENV, "PYTHONIOENCODING": "ascii"})
    assert b"\\u" in output and max(output) < 128 and b"\x1b" not in output
    assert b"\r" not in output.replace(os.linesep.encode(), b"\n")


@posix
def test_on_a_terminal_one_live_line_is_rewritten_until_ctrl_c():
    argv = [*LONG, "--steps=200000", "--eval-every=1", "--max-tokens=9"]
    wild = ["--lr=100", "--warmup=0", "--clip=0"]  # so the losses have many digits
    output = on_terminal(*argv, *wild, until=b"/200,000  loss ")
    assert "/200,000  loss " in output and "\nstep " not in output
    assert "\nstopped by Ctrl-C after " in output and len(samples(output)) == 2
    assert max(map(len, re.split(r"[\r\n]+", output))) <= 80


def wait_for_a_step(child):
    assert any(line.startswith("step ") for line in iter(child.stdout.readline, ""))


@posix
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_the_training_saves_and_starts_the_writing(workers):
    argv = [*LONG, "--workers", workers, "--save", "kept"]
    child = start(*argv, start_new_session=True)
    wait_for_a_step(child)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the workers too
    output, error = child.communicate()
    assert (child.returncode, error) == (0, "")
    steps = re.search(
        r"^stopped by Ctrl-C after ([\d,]+) of 2,000 steps$", output, re.M
    )
    trainer = microgpt.load_training("kept", NAMES)
    assert trainer.step == int(steps[1].replace(",", "")) < 2000
    assert len(samples(output)) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_output_that_closes_during_training_is_one_line(workers):
    child = start(*LONG, "--workers", workers)
    wait_for_a_step(child)
    child.stdout.close()
    error = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 1 and is_one_line(error), error


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("output", [closed_pipe, full_disk])
@pytest.mark.parametrize("option", ["--steps=3", "--quiet", "--help"])
def test_an_output_that_takes_nothing_is_one_line(output, option):
    stdout = output()
    child = start(*TINY, option, stdout=stdout)
    os.close(stdout)
    error = child.communicate()[1]
    assert child.returncode == 1 and is_one_line(error), error


def close_stdout():
    os.close(1)


@posix
@pytest.mark.parametrize("option", ["--quiet", "--save=kept", "--help"])
def test_without_any_output_it_does_what_it_does(option):
    result = command(*TINY, option, preexec_fn=close_stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert os.path.isdir("kept") == (option == "--save=kept")


# --- as a process: the file -----------------------------------------------------------


def test_it_works_without_docstrings():
    """As under `python -OO`. They are the text of --help, but no more than that."""
    code = "import sys, microgpt; sys.exit(microgpt.main())"
    argv = [sys.executable, "-OO", "-c", code, *TINY]
    env = {**ENV, "PYTHONPATH": os.path.dirname(SCRIPT)}
    assert len(samples(subprocess.check_output(argv, env=env, encoding="utf-8"))) == 2


def test_importing_it_prints_nothing_and_loads_nothing_heavy():
    code = """if True:
        import sys
        before = set(sys.modules)
        import microgpt
        heavy = {"numpy", "torch", "argparse", "concurrent.futures", "multiprocessing"}
        heavy |= {"shutil", "signal", "subprocess"}
        print(*heavy & set(sys.modules) - before, end="")
    """
    argv = [sys.executable, "-c", code]
    assert subprocess.check_output(argv, cwd=os.path.dirname(SCRIPT), env=ENV) == b""


def test_a_copy_of_the_file_alone_works_with_a_file_and_says_so_without(folder):
    (folder / "alone").mkdir()
    script = shutil.copy(SCRIPT, str(folder / "alone"))
    result = command(script=script)
    says_one_line(result, "the bundled names are not in", "name a text file")
    assert result.stdout == "" and works(*TINY, script=script)


# --- texts of other kinds -------------------------------------------------------------

PLAY = "ROMEO:\nAh me!\n\nJULIET:\nAy me!\n\n" * 20
SMALL = "--block-size 12 --n-embd 8 --steps 4 --samples 2 --max-tokens 60".split()


@pytest.mark.parametrize(
    "document, says",
    [
        ("line", "80 lines, of which 8 held out"),
        ("paragraph", "40 paragraphs, of which 4 held out"),
        ("file", "1 file, the last 10% held out"),
    ],
)
@pytest.mark.parametrize("windows", ["consecutive", "random"])
def test_a_training_goes_on_with_the_documents_that_it_began_with(
    run, folder, interrupt, document, says, windows
):
    (folder / "play.txt").write_text(PLAY, encoding="utf-8")
    argv = ["play.txt", *SMALL, f"--document={document}", f"--windows={windows}"]
    output = run.works(*argv, "--save=whole")
    assert f"documents   play.txt: {says}\n" in output
    kind = "random windows" if windows == "random" else "windows"
    assert f"4 steps of 4 {kind}, " in output
    interrupt(2)
    run.works(*argv, "--save=parts")
    interrupt(99)
    run.works("play.txt", "--resume=parts", "--samples=0")
    whole, parts = [microgpt.load_model(name).params for name in ("whole", "parts")]
    assert whole == parts
    assert microgpt.read_train_config("parts").document == document


def test_line_ends_are_learned_written_and_given(run, folder):
    (folder / "play.txt").write_text(PLAY, encoding="utf-8")
    argv = ["play.txt", *SMALL, "--document=paragraph", "--save=play"]
    output = run.works(*argv, "--prompt=ROMEO:\nA")
    assert "\n--- new\nROMEO:\nA" in output
    written = run.works("sample", "play", "--prompt=JULIET:\n", "--n=2", "--seed=1")
    assert written.startswith("JULIET:\n") and written.count("\n\nJULIET:\n") == 1
    assert written.endswith("\n\n")


def test_of_a_file_what_stands_in_its_text_is_in_training(run, folder, monkeypatch):
    (folder / "play.txt").write_text(PLAY, encoding="utf-8")
    texts = iter(["Ah me!\n\nJUL", "Ah you!\n", ""])
    monkeypatch.setattr(microgpt, "generate", lambda *args, **options: next(texts))
    output = run.works("play.txt", *SMALL, "--document=file", "--samples=3")
    assert "\n--- in training\nAh me!\n\nJUL\n\n--- new\nAh you!\n" in output
    assert re.search(r"^    \(empty\) +new$", output, re.M)


def test_folders_and_standard_input_are_texts(run, folder, monkeypatch):
    (folder / "texts").mkdir()
    (folder / "texts" / "more.txt").write_text("ada\nbob\n", encoding="utf-8")
    (folder / "texts" / "picture.png").write_bytes(b"\0")
    picture = os.path.join("texts", "picture.png")
    raw = io.BytesIO("\n".join(NAMES).encode())
    stdin = SimpleNamespace(buffer=raw, isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    output = run.works("texts", "-", *TINY[1:])
    assert (
        f"documents   texts, standard input (without {picture}, no text): "
        "22 lines, of which 2 held out\n"
    ) in output
