"""Chapter 17: the command, run as a person does; and main() in this process."""

import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import (
    ENV,
    NAMES,
    SCRIPT,
    TINY,
    command,
    fails,
    is_one_line,
    on_terminal,
    samples,
    says_one_line,
    start,
    works,
)

import microgpt

LONG = (*TINY, "--steps", "2000", "--n-embd", "4")  # a line every 200 steps

posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own that has names.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path


def wait_for_a_step(child):
    assert any(line.startswith("step ") for line in iter(child.stdout.readline, ""))


# --- what it prints -------------------------------------------------------------------


def test_without_a_file_it_learns_from_the_bundled_names():
    output = works("--steps", "2", "--samples", "1")
    assert re.search(r"^documents .*names.*: \d+,\d+, ", output)


def test_it_says_what_it_does_and_what_came_of_it():
    output = works(*TINY)
    for line in (
        r"documents +names\.txt\b.*\b20\b.*\b2\b.* held out",
        r"\w+ .*: abcdefghijklmnoprstuvy\b.*",
        r"model .*\bn_embd 8\b.*",
        r"training +3 steps of 2 windows\b.*",
        r"step 3/3  loss \d\.\d{3} .*",
        r" +\d\.\d{3} held out, \d\.\d{3} in training",
        r" +knows nothing +3\.135 .*",  # that is log(23)
        r"It is .*\.",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), line
    assert len(samples(output)) == 2


def test_samples_are_marked_new_or_in_training():
    trained, held_out = microgpt.split_documents(NAMES, seed=42)
    assert "ada" in trained and held_out
    marked = samples(
        works(*TINY, "--samples", "200", "--max-tokens", "1", "--prompt", "ad")
    )
    assert len(marked) == 200 and {mark for _, mark in marked} == {"new", "in training"}
    for text, mark in marked:
        assert text.startswith("ad") and (mark == "in training") == (text in trained)


def test_eval_every_shows_the_held_out_loss_during_training():
    assert re.search(
        r"^step 2/3 .*  held out \d\.\d+", works(*TINY, "--eval-every", "2"), re.M
    )


def test_the_word_train_may_come_first():
    assert works("train", *TINY, "--quiet") == works(*TINY, "--quiet")


def test_quiet_prints_the_samples_and_no_more():
    texts = [text for text, _ in samples(works(*TINY, "--prompt", "a"))]
    assert works(*TINY, "--prompt", "a", "--quiet").splitlines() == texts


def test_no_samples_are_no_error():
    assert works(*TINY, "--samples", "0", "--quiet") == ""


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    def loss_and_samples(*args):
        output = works(*TINY, *args)
        return output[output.index("\nloss ") :]

    assert loss_and_samples() == loss_and_samples() != loss_and_samples("--seed", "1")
    assert works(*TINY, "--quiet") == works(*TINY, "--quiet")


@pytest.mark.parametrize("option", [("--engine", "value"), ("--workers", "2")])
def test_engines_and_workers_give_the_same_losses_and_samples(option):
    def results(*args):
        output = works(*TINY, "--eval-every", "1", *args)
        return re.findall(r"\b\d+\.\d{3}\b", output), samples(output)

    assert results(*option) == results()
    assert len(results()[0]) >= 3 * 2 + 3  # two losses a step, three in the end


def test_the_seed_also_decides_the_initial_parameters():
    def loss(seed):  # before any training, of all the documents, whatever their order
        output = works(
            *TINY,
            "--lr",
            "0",
            "--val-fraction",
            "0",
            "--batch-size",
            "20",
            "--steps",
            "1",
            "--samples",
            "0",
            "--seed",
            seed,
        )
        return re.search(r"step 1/1  loss (\S+)", output)[1]

    assert loss("1") == loss("1") != loss("2")


def test_max_tokens_bounds_the_length_of_samples():
    output = works(
        *TINY, "--max-tokens", "2", "--samples", "20", "--temperature", "5", "--quiet"
    )
    assert max(map(len, output.splitlines())) == 2


def test_temperature_0_writes_the_same_again_and_again():
    output = works(
        *TINY, "--temperature", "0", "--quiet", "--prompt", "a", "--samples", "4"
    )
    assert len(output.splitlines()) == 4 and len(set(output.splitlines())) == 1


def test_val_fraction_0_learns_from_a_single_document(folder):
    (folder / "one.txt").write_text("a single document")
    output = works("one.txt", "--val-fraction", "0", "--steps", "3", "--samples", "1")
    assert len(samples(output)) == 1


def test_learning_rates_too_high_for_the_model_still_end_in_order():
    assert (
        len(samples(works(*TINY, "--lr", "100", "--clip", "0", "--warmup", "0"))) == 2
    )


@pytest.mark.parametrize(
    "size", [(), ("--n-embd", "64", "--n-layer", "2", "--block-size", "512")]
)
def test_output_has_80_columns_at_most(folder, size):
    (folder / "wide.txt").write_text("\n".join(map(chr, range(33, 127))))
    output = works(
        "wide.txt",
        "--steps",
        "2",
        "--samples",
        "2",
        "--max-tokens",
        "20",
        "--batch-size",
        "1",
        "--eval-every",
        "1",
        *size,
    )
    assert [line for line in output.splitlines() if len(line) > 80] == []


def test_on_a_pipe_there_are_plain_lines():
    output = subprocess.check_output([sys.executable, SCRIPT, *TINY], env=ENV)
    assert (
        b"\r" not in output.replace(os.linesep.encode(), b"\n")
        and b"\x1b" not in output
    )


@pytest.mark.parametrize("data", ["søren\nzoë\n東京\n🙂\n", "a\u2028b\nc\x0bd\n"])
def test_ascii_terminals_get_escapes_for_other_letters(folder, data):
    (folder / "data.txt").write_text(data, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, SCRIPT, "data.txt", "--steps", "2", "--samples", "9"],
        env={**ENV, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"\\u" in result.stdout and max(result.stdout) < 128


# --- terminals, Ctrl-C, closed outputs ------------------------------------------------


@posix
def test_on_a_terminal_one_live_line_is_rewritten():
    output = on_terminal(*TINY)
    assert "\r[############] 3/3  loss " in output and "\nstep " not in output


@posix
def test_ctrl_c_on_a_terminal_ends_the_training_and_starts_the_writing():
    output = on_terminal(*LONG, "--steps", "200000", until=b"\r[")
    assert "\nstopped by Ctrl-C after " in output and len(samples(output)) == 2


@posix
def test_the_live_line_is_cut_to_80_columns():
    # Training is so wild that the losses have many digits.
    output = on_terminal(
        *LONG,
        "--steps",
        "200000",
        "--eval-every",
        "1",
        "--lr",
        "100",
        "--warmup",
        "0",
        "--clip",
        "0",
        "--max-tokens",
        "9",
        until=b"\r[",
    )
    assert max(map(len, re.split(r"[\r\n]+", output))) <= 80


@posix
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_the_training_and_starts_the_writing(workers):
    child = start(
        *LONG, "--workers", str(workers), stdout=subprocess.PIPE, start_new_session=True
    )
    wait_for_a_step(child)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the workers too
    output, error = child.communicate()
    assert (child.returncode, error) == (0, "")
    assert re.search(
        r"^stopped by Ctrl-C after [\d,]+ of 2,000 steps$", output, re.MULTILINE
    )
    assert len(samples(output)) == 2


@pytest.mark.parametrize("option", [(), ("--quiet",), ("--help",)])
def test_an_output_that_was_closed_is_one_line(option):
    reading, writing = os.pipe()
    os.close(reading)
    child = start(*TINY, *option, stdout=writing)
    os.close(writing)
    error = child.communicate()[1]
    assert 0 < child.returncode < 128 and is_one_line(error), error


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_output_that_closes_during_training_is_one_line(workers):
    child = start(*LONG, "--workers", workers, stdout=subprocess.PIPE)
    wait_for_a_step(child)
    child.stdout.close()
    error = child.stderr.read()
    child.stderr.close()
    assert 0 < child.wait() < 128 and is_one_line(error), error


def close_stdout():
    os.close(1)


@posix
@pytest.mark.parametrize("option", [(), ("--quiet",), ("--save", "kept"), ("--help",)])
def test_without_any_output_it_does_what_it_does(option):
    result = command(*TINY, *option, preexec_fn=close_stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert os.path.isdir("kept") == ("kept" in option)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("option", [(), ("--quiet",), ("--help",)])
def test_a_full_disk_is_one_line(option):
    with open("/dev/full", "w") as full:
        child = start(*TINY, *option, stdout=full)
    error = child.communicate()[1]
    assert 0 < child.returncode < 128 and is_one_line(error), error


# --- what is kept ---------------------------------------------------------------------


def test_what_was_saved_can_write_and_shows_its_tokens():
    trained = works(
        *TINY, "--save", "kept", "--temperature", "0", "--prompt", "a", "--quiet"
    )
    written = works("sample", "kept", "--temperature", "0", "--prompt", "a", "--n", "2")
    assert written == trained and len(written.splitlines()) == 2
    assert works("tokenize", "kept", "ada").split() == (
        "0 'a' 3 'd' 0 'a' 3 characters, 3 tokens".split()
    )


def test_sample_writes_other_documents_each_time_unless_it_has_a_seed():
    works(*TINY, "--save", "kept")
    first, again, other, fresh, anew = (
        works("sample", "kept", "--n", "9", *seed)
        for seed in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], [], [])
    )
    assert first == again and len({first, other, fresh, anew}) == 4
    assert len(works("sample", "kept").splitlines()) == 5
    assert (
        works("sample", "kept", "--n", "0")
        == ""
        == works("sample", "kept", "--prompt", "", "--n", "0")
    )
    assert max(map(len, works("sample", "kept", "--max-tokens", "2").splitlines())) <= 2


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--tokenizer", "bpe", "--vocab-size", "270"),
        ("--workers", "2"),
        ("--eval-every", "2"),
    ],
)
def test_a_training_that_was_stopped_and_resumed_ends_like_one_that_was_not(options):
    def end(*args):
        output = works(
            "names.txt", "--samples", "3", "--n-embd", "8", "--batch-size", "3", *args
        )
        return output[output.index("\nloss ") :]

    end("--steps", "6", "--warmup", "2", *options, "--save", "whole")
    end("--steps", "4", "--warmup", "2", *options, "--save", "parts")
    # A run of 4 steps that becomes one of 6 has learned at other rates. The same is a
    # run of 6 steps that is broken off, as here after 4.
    documents = microgpt.load_documents("names.txt")
    whole = microgpt.load_training("whole", documents)
    model = microgpt.GPT(whole.model.config, seed=42)
    fresh = microgpt.Trainer(model, whole.tokenizer, documents, whole.config)
    for step in fresh:
        if step.step == 4:
            microgpt.save_training(fresh, "parts")
            break
    fresh.close()
    output = works("names.txt", "--resume", "parts")
    assert re.search(r"^step 6/6 ", output, re.MULTILINE)
    params = microgpt.load_model("parts").params
    assert params == microgpt.load_model("whole").params


def test_resume_keeps_what_it_began_with_and_takes_more_steps():
    works(*TINY, "--save", "kept")
    output = works(
        "names.txt",
        "--resume",
        "kept",
        "--steps",
        "5",
        "--save",
        "on",
        "--samples",
        "0",
    )
    assert (
        "n_embd 8" in output
        and "5 steps of 2 windows" in output
        and "step 4/5" in output
    )
    assert sorted(os.listdir("kept")) == sorted(os.listdir("on"))
    fails(["names.txt", "--resume", "kept"], "3 steps", "--steps 6")
    fails(["names.txt", "--resume", "on", "--n-embd", "16"], "n_embd", "16", "8")


def test_resume_may_change_the_engine():
    works(*TINY, "--save", "kept")
    args = ["names.txt", "--resume", "kept", "--steps", "5", "--save", "on"]
    output = works(*args, "--engine", "value")
    assert "value engine" in output and "step 5/5" in output
    resumed = microgpt.load_training("on", microgpt.load_documents("names.txt"))
    assert resumed.config.engine == "value" and resumed.step == 5
    assert "tensor engine" in works(*args, "--engine", "tensor")


@pytest.mark.parametrize(
    "args, words",
    [
        (["--resume", "nowhere"], ["nowhere", "No such file"]),
        (["--resume", "kept", "--steps", "9", "--seed", "5"], ["seed"]),
        (["--save", "names.txt"], ["names.txt"]),
        (["--tokenizer", "words"], ["'words'", "char", "bpe"]),
        (["--tokenizer", "bpe", "--vocab-size", "256"], ["vocab_size is 256", "257"]),
    ],
)
def test_what_cannot_be_kept_or_resumed_is_one_line(args, words):
    works(*TINY, "--save", "kept")
    fails(["names.txt", *args], *words)


def test_resuming_with_other_documents_says_so(folder):
    works(*TINY, "--save", "kept")
    (folder / "others.txt").write_text("\n".join(NAMES[1:]))
    fails(["others.txt", "--resume", "kept", "--steps", "9"], "kept", "other documents")


@pytest.mark.parametrize(
    "args, words",
    [
        (["sample"], ["DIR", "required"]),
        (["sample", "a", "b"], ["sample does not take the word b"]),
        (["sample", "nowhere"], ["nowhere", "No such file"]),
        (["tokenize", "nowhere", "ada"], ["nowhere", "No such file"]),
        (["tokenize"], ["DIR, TEXT", "required"]),
        (["tokenize", "kept"], ["TEXT", "required"]),
        (["tokenize", "kept", "a", "b"], ["tokenize does not take the word b"]),
        (["tokenize", "kept", "zoë"], ["'z'", "abcdefghijklmnoprstuvy"]),
        (["sample", "kept", "--prompt", "zoë"], ["'z'", "abcdefghijklmnoprstuvy"]),
        (["sample", "kept", "--n", "-1"], ["samples is -1", "0 or more"]),
        (["sample", "kept", "--top-p", "2"], ["top_p is 2", "from 0 to 1"]),
        (["names.txt", "b"], ["train does not take the word b"]),
        (["train", "names.txt", "b"], ["train does not take the word b"]),
    ],
)
def test_a_command_that_cannot_be_is_one_line(args, words):
    works(*TINY, "--save", "kept")
    fails(args, *words)


@posix
def test_ctrl_c_saves_and_a_resumed_training_goes_on_from_there():
    child = start(*LONG, "--save", "kept", stdout=subprocess.PIPE)
    wait_for_a_step(child)
    child.send_signal(signal.SIGINT)
    output, error = child.communicate()
    assert child.returncode == 0 and error == ""
    steps = int(
        re.search(r"stopped by Ctrl-C after (\S+) of", output)[1].replace(",", "")
    )
    trainer = microgpt.load_training("kept", microgpt.load_documents("names.txt"))
    assert trainer.step == steps < 2000


def test_it_saves_every_so_often(monkeypatch, capsys):
    saved = []
    save = microgpt.save_training

    def save_and_note(trainer, directory):
        saved.append(trainer.step)
        save(trainer, directory)

    monkeypatch.setattr(microgpt, "save_training", save_and_note)
    monkeypatch.setattr(microgpt, "SAVE_EVERY", -1)
    assert microgpt.main([*TINY, "--save", "kept"]) == 0 and saved == [1, 2, 3]
    monkeypatch.setattr(microgpt, "SAVE_EVERY", 60)
    assert microgpt.main([*TINY, "--save", "kept"]) == 0 and saved == [1, 2, 3, 3]


def test_sample_streams_whole_characters(monkeypatch, folder):
    """Here tokens are parts of characters, as bytes of BPE are."""
    tokenizer = microgpt.BPETokenizer.train(["\U0001f642"], 257)
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size, n_embd=4, n_head=1))
    microgpt.save_model(model, "kept", tokenizer)
    ids = tokenizer.encode("\U0001f642é!") + tokenizer.encode("é")[:1]
    pieces = []
    monkeypatch.setattr(microgpt, "stream", lambda *args, **options: iter(ids))

    def note(*words, end="\n", flush):
        pieces.append("".join(words) + end)

    monkeypatch.setattr("builtins.print", note)
    assert microgpt.main(["sample", "kept", "--n", "1", "--prompt", "a"]) == 0
    assert pieces[:5] == ["a", "\U0001f642", "é", "!", "\ufffd\n"]


@posix
@pytest.mark.parametrize("env, colours", [({}, 2), ({"NO_COLOR": "1"}, 0)])
def test_tokenize_alternates_colours_on_a_terminal_only(env, colours):
    works(*TINY, "--save", "kept")
    assert "\x1b" not in works("tokenize", "kept", "ada")
    seen = on_terminal("tokenize", "kept", "adad", env=env)
    marks = re.findall(r"\x1b\[(\d+)m'", seen)
    assert len(set(marks)) == colours and marks == marks[:2] * (len(marks) // 2)


# --- what cannot be -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, raw, words",
    [
        ("missing.txt", None, ["No such file"]),
        (".", None, []),
        ("empty.txt", b"", ["empty"]),
        ("blank.txt", b"\n \n", ["empty"]),
        ("image.bin", b"\x89PNG\r\n\x1a\n\0\0", ["not UTF-8", "line 1"]),
        ("zeros.bin", b"ada\n\0\0", ["not UTF-8", "line 2"]),
        ("latin1.txt", "søren".encode("latin-1"), ["not UTF-8", "line 1"]),
        ("single.txt", b"ada\n", ["single document"]),
    ],
)
def test_a_file_that_cannot_be_learned_from_is_one_line(folder, name, raw, words):
    if raw is not None:
        (folder / name).write_bytes(raw)
    fails([name], *([name] if "single" not in name else []), *words)


def test_an_empty_file_name_is_an_error_and_not_the_bundled_names():
    result = command("", "--steps", "1")
    says_one_line(result)
    assert result.stdout == "" and "the output" not in result.stderr


@pytest.mark.parametrize(
    "args, words",
    [
        (["--bogus"], ["--bogus", "--help"]),
        (["--step", "3"], ["--step"]),  # no abbreviations
        (["--steps"], ["--steps", "--help"]),
        (["another.txt"], ["another.txt"]),
        (["--engine", "magic"], ["engine", "magic", "tensor", "value"]),
        (["--n-embd", "18"], ["n_embd is 18", "n_head"]),
        (["--prompt", "zoë"], ["'z'", "abcdefghijklmnoprstuvy"]),
        (["--workers", "99"], ["workers is 99"]),
        (["--n-embd", "1000000000"], ["n_embd is 1000000000"]),
        (["--block-size", "999999999"], ["block_size is 999999999"]),
        (["--n-embd", "1000000"], ["n_embd"]),
        (["--block-size", "1000000"], ["block_size"]),
        (["--n-layer", "20000"], ["n_layer"]),
    ],
    ids=lambda x: " ".join(x) if x[0].startswith("--") else "",
)
def test_an_option_that_cannot_be_is_one_line(args, words):
    fails(["names.txt", *args], *words)


def test_training_that_diverges_is_one_line_that_names_the_step():
    result = command(
        *TINY,
        "--steps",
        "60",
        "--lr",
        "100",
        "--clip",
        "0",
        "--warmup",
        "0",
        "--weight-decay",
        "100",
    )
    says_one_line(result, "diverged")
    assert re.search(r"at step \d+\b", result.stderr)


def test_training_that_diverges_in_its_last_step_says_so_too(capsys, monkeypatch):
    def spoil(optimizer, gradients, *rates):
        optimizer.params["ln_f.bias"][0] = math.nan

    monkeypatch.setattr(microgpt.FastAdamW, "step", spoil)
    assert microgpt.main([*TINY, "--steps", "1"]) == 1
    output, error = capsys.readouterr()
    assert is_one_line(error) and "diverged" in error and samples(output) == []


@posix
def test_a_million_layers_are_counted_without_memory_for_them():
    resource = pytest.importorskip("resource")
    result = command(
        "names.txt",
        "--n-layer",
        "1000000",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)),
    )
    says_one_line(result, "n_layer")


# --- within this process --------------------------------------------------------------


def test_main_returns_0_prints_samples_and_leaves_ctrl_c_as_it_was(capsys):
    before = signal.getsignal(signal.SIGINT)
    assert microgpt.main(list(TINY)) == 0
    output, error = capsys.readouterr()
    assert len(samples(output)) == 2 and error == ""
    assert signal.getsignal(signal.SIGINT) is before


def test_main_takes_its_arguments_from_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["microgpt", *TINY, "--quiet"])
    assert microgpt.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.fixture
def interrupt(monkeypatch):
    """A function that has Ctrl-C come in the third step, so many times."""

    def prepare(times):
        def interrupted(step, *args):
            for _ in range(times if step == 2 else 0):
                signal.raise_signal(signal.SIGINT)
            return learning_rate(step, *args)

        monkeypatch.setattr(microgpt, "learning_rate", interrupted)

    learning_rate = microgpt.learning_rate
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield prepare
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_completes_the_step_and_restores_the_handler(capsys, interrupt):
    interrupt(times=1)
    assert microgpt.main([*LONG, "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert microgpt.main(list(LONG)) == 0
    assert "stopped by Ctrl-C after 3 of 2,000 steps" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_ends_it_at_once(capsys, interrupt):
    interrupt(times=2)
    assert microgpt.main(list(LONG)) == 130
    output, error = capsys.readouterr()
    assert is_one_line(error) and samples(output) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("ctrl_c", [0, 1])
def test_no_worker_outlives_main(ctrl_c, capsys, interrupt, monkeypatch):
    kept = []  # so that the garbage collector does not end them

    class Kept(microgpt.Workers):
        def gradients(self, model, batch):
            result = super().gradients(model, batch)
            kept.append((self, self.executor, multiprocessing.active_children()))
            return result

    monkeypatch.setattr(microgpt, "Workers", Kept)
    interrupt(times=ctrl_c)
    assert microgpt.main([*TINY, "--steps", "4", "--workers", "2"]) == 0
    assert ("stopped by Ctrl-C" in capsys.readouterr().out) == bool(ctrl_c)
    assert kept and all(len(children) == 2 for _, _, children in kept)
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_is_one_line(capsys, monkeypatch):
    def kill_workers(*args):
        for worker in multiprocessing.active_children():
            worker.kill()
        return 0.0

    monkeypatch.setattr(microgpt, "learning_rate", kill_workers)
    assert 0 < microgpt.main([*TINY, "--workers", "2"]) < 128
    assert is_one_line(capsys.readouterr().err)


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    def no_memory(*args, **options):
        raise MemoryError

    monkeypatch.setattr(microgpt, "GPT", no_memory)
    assert microgpt.main(list(TINY)) == 1
    assert is_one_line(capsys.readouterr().err)


def test_it_works_without_docstrings():
    """As under `python -OO`. They are the text of --help, but no more than that."""
    code = "import sys, microgpt; sys.exit(microgpt.main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-OO", "-c", code, *TINY],
        env={**ENV, "PYTHONPATH": os.path.dirname(SCRIPT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(samples(result.stdout)) == 2


# --- the file -------------------------------------------------------------------------


def test_importing_it_prints_nothing_and_loads_nothing_heavy():
    heavy = (
        "numpy torch argparse concurrent.futures multiprocessing shutil signal "
        "subprocess"
    )
    code = (
        f"import sys; before = set(sys.modules); heavy = {{*'{heavy}'.split()}}; "
        "import microgpt; "
        "sys.exit(', '.join(heavy & set(sys.modules) - before) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=os.path.dirname(SCRIPT),
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (result.returncode, result.stdout) == (0, b"")


def test_a_copy_of_the_file_alone_works_with_a_file_and_says_so_without(folder):
    if os.path.exists(
        os.path.join(sys.prefix, "share", "microgpt", "data", "names.txt")
    ):
        pytest.skip("names are installed")
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(SCRIPT, str(alone))
    script = str(alone / "microgpt.py")
    result = command(script=script)
    says_one_line(result, "names.txt")
    assert result.stdout == ""
    assert command(*TINY, script=script).returncode == 0
