"""Chapter 15: whatever happens during a save, a whole checkpoint is there afterwards.

What happens here: kill -9, Ctrl-C, a full disk, system calls that fail. Afterwards, all
five files must belong to one state that was saved: the new one or the one before.
"""

import builtins
import errno
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import cache

import pytest

import microgpt
from microgpt import (
    GPT,
    BPETokenizer,
    CharTokenizer,
    Config,
    TrainConfig,
    Trainer,
    load_model,
    load_tokenizer,
    load_training,
    save_training,
)

DOCUMENTS = ["ada", "bob", "abba", "dada", "cab"]
FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer.safetensors",
]
KILLS = 60

posix = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked and killed here"
)


# --- states, and what is in a directory -----------------------------------------------


def trainer_of(kind, shape, steps):
    tokenizer = (
        BPETokenizer.train(DOCUMENTS, 259)
        if kind == "bpe"
        else CharTokenizer([*DOCUMENTS, kind])
    )
    trainer = Trainer(
        GPT(Config(tokenizer.vocab_size, *shape), seed=1),
        tokenizer,
        DOCUMENTS,
        TrainConfig(batch_size=1, lr=0.01 * shape[0]),
    )
    for _ in range(steps):
        next(trainer)
    return trainer


@cache
def trainers():
    """Trainings whose states are saved in turn. Tests must not train them.

    Some differ only in their step, some in everything, some in size.
    """
    return [
        trainer_of("", (3, 1, 1, 2), 0),
        trainer_of("", (3, 1, 1, 2), 3),
        trainer_of("xyz", (4, 1, 2, 4), 3),
        trainer_of("q", (5, 2, 1, 2), 1),
        trainer_of("bpe", (4, 2, 2, 4), 1),
        trainer_of("bpe", (4, 2, 2, 4), 3),
    ]


def model_state(model):
    return repr((model.config, model.params))


def tokenizer_state(tokenizer):
    return repr((type(tokenizer), tokenizer.vocab))


def training_state(trainer):
    optimizer = trainer.optimizer
    return repr(
        (
            trainer.step,
            trainer.config,
            optimizer.t,
            optimizer.m,
            optimizer.v,
            trainer.windows,
            trainer.val_windows,
        )
    )


def state(model, tokenizer, trainer):
    return (
        model_state(model),
        tokenizer_state(tokenizer),
        training_state(trainer),
        model_state(trainer.model),
        tokenizer_state(trainer.tokenizer),
    )


@cache
def states():
    known = [state(t.model, t.tokenizer, t) for t in trainers()]
    assert len(set(known)) == len(known)
    return known


def found(directory):
    """Which of the states is in the directory, whole: its number."""
    loaded = state(
        load_model(directory),
        load_tokenizer(directory),
        load_training(directory, DOCUMENTS),
    )
    assert loaded in states(), "it is not a state that was saved"
    return states().index(loaded)


def save(directory, i):
    save_training(trainers()[i], directory)


def check_next_save(directory, i):
    """The next save works, and leaves nothing but its files."""
    save(directory, i)
    assert sorted(os.listdir(directory)) == FILES
    assert found(directory) == i


def test_the_states_can_be_told_apart(tmp_path):
    for i in [0, 1, 2, 3, 4, 5, 2, 0]:
        check_next_save(tmp_path, i)


# --- kill -9 --------------------------------------------------------------------------


@contextmanager
def forked(work):
    """Run `work(say)` in a forked process, which is killed in the end.

    This yields a function that kills it now. The function returns all that the process
    said, one byte at a time, and how it ended.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.close(reading)
            work(lambda i: os.write(writing, bytes([i])))
            os._exit(0)
        os._exit(1)
    os.close(writing)
    ended = []

    def kill(number=signal.SIGKILL):
        if not ended:
            if number:
                os.kill(child, number)
            with open(reading, "rb") as file:
                said = list(file.read())
            ended[:] = said, os.waitpid(child, 0)[1]
        return ended

    try:
        yield kill
    finally:
        kill()


@posix
def test_a_process_killed_at_any_moment_leaves_the_last_state_whole(tmp_path):
    rng = random.Random()
    trainers(), states()  # made once, before the forks
    present = None
    endings = Counter()
    for _ in range(KILLS):
        order = [rng.randrange(len(trainers())) for _ in range(1000)]

        def work(say, order=order):
            for i in order:
                save(tmp_path, i)
                say(i)

        with forked(work) as kill:
            time.sleep(rng.uniform(0, 0.05))
            said, status = kill()
        assert os.WIFSIGNALED(status) and said == order[: len(said)]
        finished = said[-1] if said else present  # the last that was announced
        under_way = order[len(said)]
        try:
            present = found(tmp_path)
        except FileNotFoundError:
            assert finished is None  # nothing was ever saved
        else:
            assert present in (finished, under_way)
            endings[present == finished] += 1
        if rng.random() < 0.3:  # mostly the next process finds what this one left
            present = rng.randrange(len(trainers()))
            check_next_save(tmp_path, present)
    assert sum(endings.values()) > KILLS // 2


@contextmanager
def traced(at_line):
    """Call `at_line(frame)` before every line of microgpt that is executed."""

    def trace(frame, event, _):
        if frame.f_globals is not vars(microgpt):
            return None
        if event == "line":
            at_line(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def telling_moments(work):
    """The moments, counted in lines, that are worth a test.

    These are all times that `work` comes to a line. Of lines that it comes to often,
    which write numbers, only the first time counts.
    """
    lines = []
    with traced(lambda frame: lines.append((frame.f_code, frame.f_lineno))):
        work()
    times = Counter(lines)
    moments = [i for i, x in enumerate(lines) if times[x] <= 10 or lines.index(x) == i]
    assert moments
    return moments


@contextmanager
def at_moment(moment, act):
    lines = iter(range(10**9))
    with traced(lambda _: act() if next(lines) == moment else None):
        yield


@pytest.fixture
def no_fsync(monkeypatch):
    """Nobody pulls the plug here, so nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@cache
def prepared(cut_short):
    """The files of a directory with state 0.

    If it is cut short, the save of state 0 has ended when two files were in place.
    """

    def cut(*args):
        replaced.append(args)
        if len(replaced) == 3:
            raise KeyboardInterrupt
        replace(*args)

    replaced = []
    replace = os.replace
    with tempfile.TemporaryDirectory() as directory:
        save(directory, 1)
        os.replace = cut if cut_short else replace
        try:
            with suppress(KeyboardInterrupt):
                save(directory, 0)
        finally:
            os.replace = replace
        assert found(directory) == 0
        paths = [path for path in pathlib.Path(directory).rglob("*") if path.is_file()]
        assert len(replaced) == 3 and len(paths) > 5 if cut_short else len(paths) == 5
        return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def prepare(directory, cut_short):
    for name, contents in prepared(cut_short).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)


@posix
@pytest.mark.parametrize("cut_short", [False, True])
def test_a_process_killed_at_any_line_leaves_the_old_or_the_new_state(
    tmp_path, no_fsync, cut_short
):
    trainers(), states()
    prepare(tmp_path / "first", cut_short)
    endings = []
    for n, moment in enumerate(telling_moments(lambda: save(tmp_path / "first", 2))):
        directory = tmp_path / str(n)
        prepare(directory, cut_short)

        def work(_, directory=directory, moment=moment):
            with at_moment(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                save(directory, 2)

        with forked(work) as kill:
            assert os.WIFSIGNALED(kill(None)[1])
        endings.append(found(directory))
        check_next_save(directory, 3)
    assert endings == sorted(endings) and set(endings) == {
        0,
        2,
    }  # the old, then the new


@pytest.mark.parametrize("cut_short", [False, True])
def test_ctrl_c_at_any_line_leaves_the_old_or_the_new_state(
    tmp_path, no_fsync, cut_short
):
    def interrupt():
        raise KeyboardInterrupt

    prepare(tmp_path / "first", cut_short)
    endings = []
    for n, moment in enumerate(telling_moments(lambda: save(tmp_path / "first", 2))):
        directory = tmp_path / str(n)
        prepare(directory, cut_short)
        with pytest.raises(KeyboardInterrupt), at_moment(moment, interrupt):
            save(directory, 2)
        endings.append(found(directory))
        check_next_save(directory, 3)
    assert endings == sorted(endings) and set(endings) == {0, 2}


# --- calls that fail ------------------------------------------------------------------

CALLS = {
    "os": ["replace", "rename", "mkdir", "listdir", "rmdir", "unlink", "fsync"],
    "file": ["open", "write", "flush", "close"],
}


class Writer:
    """A file whose calls go through `call`. A write that fails has written half."""

    def __init__(self, file, call):
        self.file = file
        self.call = call

    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.call("write", self.file.write, data[half:])
        return len(data)

    def writelines(self, pieces):
        for piece in pieces:
            self.write(piece)

    def flush(self):
        self.call("flush", self.file.flush)

    def close(self):
        self.file.close()
        self.call("close", lambda: None)

    def fileno(self):
        return self.file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def with_faults(patch, name, k, error, when):
    """Make the k-th call of that name fail, before or after it was done.

    Returns the list that its calls will be in.
    """
    calls = []

    def call(its_name, function, *args, **options):
        fails = its_name == name and len(calls) == k
        if its_name == name:
            calls.append(args)
        if fails and when == "before":
            raise error()
        result = function(*args, **options)
        if fails:
            raise error()
        return result

    def patched(its_name, function):
        return lambda *args, **options: call(its_name, function, *args, **options)

    for its_name in CALLS["os"]:
        function = getattr(os, its_name) if its_name != "fsync" else lambda file: None
        patch.setattr(os, its_name, patched(its_name, function))
    true_open = builtins.open

    def opened(path, mode="r", *args, **options):
        if "w" not in mode:
            return true_open(path, mode, *args, **options)
        return Writer(call("open", true_open, path, mode, *args, **options), call)

    patch.setattr(builtins, "open", opened)
    return calls


def io_error():
    return OSError(errno.EIO, os.strerror(errno.EIO))


def disk_full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("cut_short", [False, True])
@pytest.mark.parametrize(
    "error, when",
    [(io_error, "before"), (KeyboardInterrupt, "before"), (KeyboardInterrupt, "after")],
)
@pytest.mark.parametrize("name", [name for names in CALLS.values() for name in names])
def test_any_call_that_fails_leaves_the_old_or_the_new_state(
    tmp_path, monkeypatch, no_fsync, name, error, when, cut_short
):
    k = 0
    while True:
        directory = tmp_path / str(k)
        prepare(directory, cut_short)
        raised = None
        with monkeypatch.context() as patch:
            calls = with_faults(patch, name, k, error, when)
            try:
                save(directory, 2)
            except (OSError, KeyboardInterrupt) as e:
                raised = e
        if len(calls) <= k:  # there is no k-th call
            break
        present = found(directory)
        assert present in (0, 2)
        if raised is None:  # to clean up may fail, not to save
            assert present == 2
        else:
            assert isinstance(raised, OSError) == (error is not KeyboardInterrupt)
        check_next_save(directory, 3)
        k += 1 if name != "write" else 1 + k // 3  # there are many
    assert raised is None and found(directory) == 2
    assert k > 0 or name in (
        "rmdir",
        "unlink",
        "listdir",
    )  # which other ways may do without


@pytest.mark.parametrize("name", ["write", "flush", "fsync"])
def test_a_full_disk_keeps_the_old_state_and_is_not_kept_full(
    tmp_path, monkeypatch, no_fsync, name
):
    k = 0
    while True:
        directory = tmp_path / str(k)
        prepare(directory, False)
        with monkeypatch.context() as patch:
            calls = with_faults(patch, name, k, disk_full, "before")
            try:
                save(directory, 2)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        assert (
            sorted(os.listdir(directory)) == FILES
        )  # nothing half-written beside them
        if len(calls) <= k:
            break
        assert found(directory) == 0
        k += 1 + k // 3
    assert k >= len(FILES) and found(directory) == 2


@pytest.mark.parametrize("name", ["write", "flush", "fsync"])
def test_a_full_disk_says_where(tmp_path, monkeypatch, name):
    with_faults(monkeypatch, name, 0, disk_full, "before")
    with pytest.raises(OSError) as error:
        save(tmp_path / "new", 2)
    assert str(tmp_path) in str(error.value)  # the system itself tells no name then


@posix
@pytest.mark.parametrize("most", [0, 1, 200, 700, 2000, 4000])
def test_a_limit_to_the_size_of_files_keeps_the_old_state(tmp_path, most):
    resource = pytest.importorskip("resource")
    save(tmp_path, 0)
    save(tmp_path / "large", 2)
    assert max(path.stat().st_size for path in (tmp_path / "large").iterdir()) > most

    def work(say):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            save(tmp_path, 2)
        except OSError as error:
            say(error.errno)

    with forked(work) as kill:
        said, status = kill(None)
    assert status == 0 and said == [errno.EFBIG]
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "large"])
    assert found(tmp_path) == 0


@posix
def test_a_directory_that_cannot_be_written_is_an_error_and_stays_as_it_is():
    with tempfile.TemporaryDirectory() as parent:
        directory = os.path.join(parent, "kept")
        save(directory, 0)
        os.chmod(parent, 0o555)
        os.chmod(directory, 0o555)

        def work(say):
            if os.geteuid() == 0:  # who may write everywhere
                os.setuid(65534)
            for i, place in enumerate([directory, os.path.join(parent, "new")]):
                try:
                    save(place, 2)
                except PermissionError as error:
                    say(i if parent in str(error.filename) else 99)
            assert found(directory) == 0  # who may not write may still read
            say(2)

        with forked(work) as kill:
            said, status = kill(None)
        os.chmod(directory, 0o755)
        os.chmod(parent, 0o755)
        assert said == [0, 1, 2] and status == 0
        assert os.listdir(parent) == ["kept"] and sorted(os.listdir(directory)) == FILES
        assert found(directory) == 0


def test_a_file_in_the_place_of_the_directory_is_an_error_and_stays(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("ada")
    for place in (path, path / "below"):
        with pytest.raises(OSError) as error:
            save(place, 0)
        assert str(path) in str(error.value)
    assert path.read_text() == "ada"


@pytest.mark.parametrize("holder", ["model", "m", "v"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_not_saved_and_the_old_state_stays(
    tmp_path, holder, number
):
    trainer = trainer_of("char", (3, 1, 1, 2), 1)
    tensors = (
        trainer.model.params
        if holder == "model"
        else getattr(trainer.optimizer, holder)
    )
    for cut_short in (False, True):
        directory = tmp_path / str(cut_short)
        prepare(directory, cut_short)
        for name in ("wte.weight", "h.0.mlp.c_proj.weight", "ln_f.bias"):
            row = tensors[name][-1] if name.endswith("weight") else tensors[name]
            good = row[-1]
            row[-1] = number
            with pytest.raises(ValueError, match=name):
                save_training(trainer, directory)
            row[-1] = good
            assert sorted(os.listdir(directory)) == FILES and found(directory) == 0


# --- reading while another process writes ---------------------------------------------


@posix
def test_a_checkpoint_can_be_read_while_it_is_saved_again_and_again(tmp_path):
    ours = [trainer_of("char", (3, 2, 1, 4), steps) for steps in range(3)]
    known = [state(t.model, t.tokenizer, t) for t in ours]
    models, tokenizers, trainings, _, _ = map(set, zip(*known))
    save_training(ours[0], tmp_path)

    def work(say):
        while True:
            for trainer in ours:
                save_training(trainer, tmp_path)

    read = refused = 0
    with forked(work) as kill:
        for _ in range(100):
            model = load_model(tmp_path)
            tokenizer = load_tokenizer(tmp_path)
            assert (
                model_state(model) in models
                and tokenizer_state(tokenizer) in tokenizers
            )
            try:
                trainer = load_training(tmp_path, DOCUMENTS)
            except ValueError:  # another was saved while the first half was read,
                refused += 1  # which is told apart from it, and never mixed with it
                continue
            whole = model_state(trainer.model), training_state(trainer)
            assert whole in [(s[0], s[2]) for s in known]
            read += 1
        said, status = kill()
    assert os.WIFSIGNALED(status)  # it was at work until then
    assert read and read + refused == 100
