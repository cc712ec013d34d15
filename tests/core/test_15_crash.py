"""Chapter 15: whatever happens during a save, a whole checkpoint is there afterwards.

What happens here: kill -9, Ctrl-C, a full disk, system calls that fail. Afterwards, all
five files must belong to one state that was saved: the new one or the one before.
"""

import errno
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers import is_one_line, start

import microgpt
from microgpt import GPT, CharTokenizer, load_model, load_tokenizer, load_training

DOCUMENTS = ["ada", "bob", "abba"]
FILES = """
    config.json model.safetensors tokenizer.json tokenizer_config.json
    trainer.safetensors
""".split()

posix = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked and killed here"
)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Nobody pulls the plug here, so nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


# --- states, and what is in a directory -----------------------------------------------


def trainer_of(tokenizer, shape, steps):
    model = GPT(microgpt.Config(tokenizer.vocab_size, *shape), seed=1)
    config = microgpt.TrainConfig(batch_size=1, lr=0.01 * shape[0])
    trainer = microgpt.Trainer(model, tokenizer, DOCUMENTS, config)
    for _ in range(steps):
        next(trainer)
    return trainer


@cache
def trainers():
    """Trainings whose states are saved in turn. Tests must not train them.

    Some differ only in their step, some in everything, some in size.
    """
    characters = CharTokenizer(DOCUMENTS)
    more = CharTokenizer([*DOCUMENTS, "xyz"])
    bytewise = microgpt.BPETokenizer.train(DOCUMENTS, 259)
    return [
        trainer_of(characters, (3, 1, 1, 2), 0),
        trainer_of(characters, (3, 1, 1, 2), 3),
        trainer_of(more, (4, 1, 2, 4), 3),
        trainer_of(bytewise, (4, 2, 2, 2), 1),
    ]


def state(model, tokenizer, trainer):
    optimizer = trainer.optimizer
    averages = (optimizer.t, optimizer.m, optimizer.v)
    windows = (trainer.windows[:], trainer.val_windows[:])
    training = [trainer.step, trainer.config, *averages, *windows]
    models = [(x.config, x.params) for x in (model, trainer.model)]
    tokenizers = [(type(x), x.vocab) for x in (tokenizer, trainer.tokenizer)]
    return repr([training, models, tokenizers])


@cache
def states():
    return [state(t.model, t.tokenizer, t) for t in trainers()]


def found(directory):
    """Which of the states is in the directory, whole: its number."""
    training = load_training(directory, DOCUMENTS)
    loaded = state(load_model(directory), load_tokenizer(directory), training)
    return states().index(loaded)  # an error if it is not a state that was saved


def save(directory, i):
    microgpt.save_training(trainers()[i], directory)


def check_next_save(directory, i):
    """The next save works, and leaves nothing but its files."""
    save(directory, i)
    assert sorted(os.listdir(directory)) == FILES
    assert found(directory) == i


def contents(directory):
    """All that is in a directory: ((name, bytes or, for a folder, None), ...)"""
    there = []
    for path in sorted(Path(directory).rglob("*")):
        name = str(path.relative_to(directory))
        there.append((name, path.read_bytes() if path.is_file() else None))
    return tuple(there)


def fill(directory, there):
    directory.mkdir()
    for name, raw in there:
        if raw is None:
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(raw)


@cache
def found_in(there):
    """The state in a directory with these contents, where the next save works, too."""
    with TemporaryDirectory() as parent:
        directory = Path(parent, "checkpoint")
        fill(directory, there)
        i = found(directory)
        check_next_save(directory, 3)
    return i


# --- kill -9 --------------------------------------------------------------------------


@contextmanager
def traced(at_line, modules=(microgpt,)):
    """Call `at_line(frame)` before every line of these modules that is executed."""
    before = sys.gettrace()
    names = [module.__name__ for module in modules]

    def trace(frame, event, _):
        if frame.f_globals["__name__"] not in names:
            return None
        if event == "line":
            at_line(frame)
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def moments(there, i):
    """What is in a directory before each line of a save: a kill would leave it so."""
    with TemporaryDirectory() as parent:
        directory = Path(parent, "checkpoint")
        fill(directory, there)
        seen = []
        with traced(lambda _: seen.append(contents(directory)), [microgpt, shutil]):
            save(directory, i)
        return seen


@cache
def beginnings():
    """Directories with state 0, as the last save has left them."""
    with TemporaryDirectory() as directory:
        save(directory, 1)
        other = contents(directory)
        save(directory, 0)
        whole = contents(directory)

    def files_in(folder, there):
        return [name for name, _ in there if Path(name).parent == Path(folder)]

    written = [x for x in moments(whole, 1) if len(files_in(microgpt.NEW, x)) == 3]
    moved = [x for x in moments(other, 0) if len(files_in(microgpt.SAVED, x)) == 3]
    return {"whole": whole, "killed writing": written[0], "killed moving": moved[0]}


BEGINNINGS = ["whole", "killed writing", "killed moving"]


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_save_killed_at_any_line_leaves_the_old_or_the_new_state(beginning):
    endings = [found_in(there) for there in moments(beginnings()[beginning], 2)]
    assert endings == sorted(endings)
    assert set(endings) == {0, 2}


def telling_lines(work):
    """When `work` comes to a line, by number: each time, or once if that is often."""
    lines = []
    with traced(lambda frame: lines.append((frame.f_code, frame.f_lineno))):
        work()
    times = Counter(lines)
    return [n for n, x in enumerate(lines) if times[x] <= 6 or lines.index(x) == n]


@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="code that PyPy compiles reports no lines"
)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_ctrl_c_at_any_line_leaves_the_old_or_the_new_state(tmp_path, beginning):
    there = beginnings()[beginning]
    fill(tmp_path / "first", there)
    endings = []
    for moment in telling_lines(lambda: save(tmp_path / "first", 2)):
        directory = tmp_path / str(moment)
        fill(directory, there)
        lines = count()

        def interrupt(_, lines=lines, moment=moment):
            if next(lines) == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), traced(interrupt):
            save(directory, 2)
        endings.append(found_in(contents(directory)))
    assert endings == sorted(endings)
    assert set(endings) == {0, 2}


def forked(work):
    """Run `work` in another process -> its id. It ends with 0 if it raises nothing."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return child


@posix
def test_a_process_killed_at_any_moment_leaves_the_last_state_whole(tmp_path):
    rng = random.Random()
    trainers(), states()  # made once, before the forks
    present = 0
    save(tmp_path, present)
    n_saved = 0
    for _ in range(30):
        order = rng.choices(range(len(trainers())), k=255)
        done = mmap.mmap(-1, 1)  # shared with the other process: how many are saved

        def work(order=order, done=done):
            for n, i in enumerate(order, start=1):
                save(tmp_path, i)
                done[0] = n

        child = forked(work)
        wanted = rng.randrange(3)
        while done[0] < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        n = done[0]
        finished = order[n - 1] if n else present
        under_way = order[n]
        present = found(tmp_path)
        assert present in (finished, under_way)
        n_saved += n
    assert n_saved > 0
    check_next_save(tmp_path, 1)


def test_a_training_that_is_saved_again_while_it_is_read_is_not_mixed(
    tmp_path, monkeypatch
):
    save(tmp_path, 0)

    def load_and_save(directory):
        tokenizer = load_tokenizer(directory)
        save(tmp_path, 1)  # its model is of the same shape, and was read before
        return tokenizer

    monkeypatch.setattr(microgpt, "load_tokenizer", load_and_save)
    with pytest.raises(ValueError, match="just being saved: try again"):
        load_training(tmp_path, DOCUMENTS)
    monkeypatch.undo()
    assert found(tmp_path) == 1


# --- calls that fail ------------------------------------------------------------------

CALLS = """
    os.mkdir builtins.open os.fsync os.rename os.replace os.listdir os.rmdir os.unlink
""".split()


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("name", CALLS)
def test_any_call_that_fails_leaves_the_old_or_the_new_state(
    tmp_path, monkeypatch, name, beginning
):
    module, function = name.split(".")
    true_call = getattr(sys.modules[module], function)
    n_calls = k = 0

    def call(path, *args, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == k + 1:
            raise OSError(errno.ENOSPC, "No space left")
        return true_call(path, *args, **options)

    while n_calls >= k:  # the last save made a k-th call
        n_calls = 0
        directory = tmp_path / str(k)
        fill(directory, beginnings()[beginning])
        error = None
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[module], function, call)
            try:
                save(directory, 2)
            except OSError as e:
                error = e
        present = found_in(contents(directory))
        if error is None:
            assert present == 2  # to clean up may fail, not to save
        elif name in CALLS[:3]:
            assert present == 0 and error.errno == errno.ENOSPC
            assert str(directory) in str(error)  # the system itself tells no name then
            assert sorted(os.listdir(directory)) == FILES  # nothing half-written beside
        k += 1
    assert error is None
    assert k > 1 or name == "os.unlink"  # that is for links


def test_all_bytes_are_on_the_disk_before_the_files_count(tmp_path, monkeypatch):
    on_disk = []
    renamed = []
    rename = os.rename

    def watched(old, new):
        sizes = [path.stat().st_size for path in Path(old).iterdir()]
        renamed.append((sorted(on_disk), sorted(sizes)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", lambda file: on_disk.append(os.stat(file).st_size))
    monkeypatch.setattr(os, "rename", watched)
    save(tmp_path, 2)
    [(synced, expected)] = renamed
    assert synced == expected and len(expected) == len(FILES)


@posix
@pytest.mark.parametrize("most", [0, 200, 2000])
def test_a_limit_to_the_size_of_files_keeps_the_old_state(tmp_path, most):
    resource = pytest.importorskip("resource")
    save(tmp_path, 0)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with pytest.raises(OSError) as error:
            save(tmp_path, 2)
        assert error.value.errno == errno.EFBIG and str(tmp_path) in str(error.value)

    _, status = os.waitpid(forked(work), 0)
    assert status == 0
    assert sorted(os.listdir(tmp_path)) == FILES and found(tmp_path) == 0


@posix
def test_a_directory_that_cannot_be_written_is_an_error_and_stays_as_it_is():
    with TemporaryDirectory() as parent:
        directory = os.path.join(parent, "kept")
        save(directory, 0)
        os.chmod(parent, 0o555)
        os.chmod(directory, 0o555)

        def work():
            if os.geteuid() == 0:  # who may write everywhere
                os.setuid(65534)
            for place in (directory, os.path.join(parent, "new")):
                with pytest.raises(PermissionError) as error:
                    save(place, 2)
                assert parent in str(error.value.filename)
            assert found(directory) == 0  # who may not write may still read

        _, status = os.waitpid(forked(work), 0)
        os.chmod(directory, 0o755)
        os.chmod(parent, 0o755)
        assert status == 0
        assert os.listdir(parent) == ["kept"] and sorted(os.listdir(directory)) == FILES


def test_a_file_in_the_place_of_the_directory_is_an_error_and_stays(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("ada")
    for place in (path, path / "below"):
        with pytest.raises(OSError) as error:
            save(place, 0)
        assert str(path) in str(error.value)
    assert path.read_text() == "ada"


@pytest.mark.parametrize("name", [microgpt.NEW, microgpt.SAVED])
def test_a_link_in_the_place_of_its_folders_is_not_followed(tmp_path, name):
    save(tmp_path / "checkpoint", 0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "diary.txt").write_text("ada")
    try:
        os.symlink(elsewhere, tmp_path / "checkpoint" / name)
    except OSError:
        pytest.skip("this user may not make links")
    check_next_save(tmp_path / "checkpoint", 2)
    assert os.listdir(elsewhere) == ["diary.txt"]


@pytest.mark.parametrize("holder", ["model", "m", "v"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_not_saved_and_the_old_state_stays(
    tmp_path, holder, number
):
    trainer = trainer_of(CharTokenizer(DOCUMENTS), (3, 1, 1, 2), 1)
    tables = {**vars(trainer.optimizer), "model": trainer.model.params}[holder]
    directory = tmp_path / "checkpoint"
    fill(directory, beginnings()["killed moving"])
    for name in ("wte.weight", "h.0.mlp.c_proj.weight", "ln_f.bias"):
        row = tables[name][-1] if name.endswith("weight") else tables[name]
        good = row[-1]
        row[-1] = number
        with pytest.raises(ValueError, match=name):
            microgpt.save_training(trainer, directory)
        row[-1] = good
        assert sorted(os.listdir(directory)) == FILES and found(directory) == 0


@pytest.mark.skipif(os.name != "posix", reason="Python on Windows has no such locks")
def test_a_training_is_told_of_another_one_that_saves_into_its_directory(tmp_path):
    names = ["--steps", "100000", "--eval-every", "1", "--save", "model"]
    first = start(*names, cwd=tmp_path)
    first.stdout.readline()
    while not (tmp_path / "model" / ".microgpt-training").exists():
        assert first.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    second = start(*names, cwd=tmp_path)
    _, error = second.communicate()
    assert second.returncode == 1
    assert error == (
        "microgpt: another training is saving into model: name another directory, "
        "or wait\n"
    )
    first.kill()  # its lock ends with it, though it had no time to clear it away
    first.communicate()
    third = start("--steps", "1", "--quiet", "--save", "model", cwd=tmp_path)
    assert third.communicate()[1] == ""
    assert sorted(os.listdir(tmp_path / "model")) == FILES


@pytest.mark.skipif(os.name != "posix", reason="Python on Windows has no such locks")
def test_the_lock_of_a_training_is_no_link_to_another_file(tmp_path):
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ".microgpt-training").symlink_to(tmp_path / "mine.txt")
    child = start("--steps", "1", "--save", "model", cwd=tmp_path)
    assert is_one_line(child.communicate()[1]) and child.returncode == 1
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "kept"
