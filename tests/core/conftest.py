"""For the tests of the command: a folder to run it in, and a quick way to run it."""

import shutil
import signal

import pytest
from helpers import NAMES, is_one_line

import microgpt


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The test runs in a folder of its own, which has names.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A directory with the training run of TINY, at its end."""
    directory = tmp_path_factory.mktemp("saved")
    model = microgpt.GPT(microgpt.Config(vocab_size=23, n_embd=8), seed=42)
    config = microgpt.TrainConfig(steps=3, batch_size=2)
    tokenizer = microgpt.CharTokenizer(NAMES)
    trainer = microgpt.Trainer(model, tokenizer, NAMES, config)
    list(trainer)
    microgpt.save_training(trainer, directory)
    return directory


@pytest.fixture
def kept(saved, folder):
    """A copy of it in kept/."""
    shutil.copytree(saved, folder / "kept")


@pytest.fixture
def run(folder, capsys):
    """Has `works` and `fails` of helpers.py, but they run main() in this process."""
    return InProcess(capsys)


class InProcess:
    def __init__(self, capsys):
        self.capsys = capsys

    def main(self, argv, **brought):
        """-> (the exit status, the output, the errors)"""
        self.capsys.readouterr()
        status = microgpt.main(argv, **brought)
        return (status, *self.capsys.readouterr())

    def works(self, *argv, **brought):
        status, output, error = self.main(list(argv), **brought)
        assert (status, error) == (0, "")
        return output

    def fails(self, argv, *words, **brought):
        status, output, error = self.main(list(argv), **brought)
        assert (status, output) == (1, "")
        assert is_one_line(error) and error.strip("\n").isprintable(), ascii(error)
        for word in words:
            assert word in error


@pytest.fixture
def interrupt(monkeypatch):
    """A function that has Ctrl-C come in this step, so many times."""

    def prepare(last, times=1):
        def interrupted(step, *args):
            for _ in range(times if step == last - 1 else 0):
                signal.raise_signal(signal.SIGINT)
            return learning_rate(step, *args)

        monkeypatch.setattr(microgpt, "learning_rate", interrupted)

    learning_rate = microgpt.learning_rate
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield prepare
    signal.signal(signal.SIGINT, before)
