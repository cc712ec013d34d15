"""What the tests of the command share: how to run it, and how to read what it says."""

import os
import re
import subprocess
import sys

import microgpt

SCRIPT = os.path.abspath(microgpt.__file__)
WORDS = (
    "ada bob cleo dan eve fay gus hal ida joe kim leo mia ned oda pam ray sue tom una"
)
NAMES = WORDS.split()
TINY = (
    "names.txt",
    "--steps",
    "3",
    "--samples",
    "2",
    "--n-embd",
    "8",
    "--batch-size",
    "2",
)
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
ENV["PYTHONIOENCODING"] = "utf-8"
ENV.pop("COLUMNS", None)


def command(*args, script=SCRIPT, **options):
    """Run it to the end, as a person does."""
    options = {"env": ENV, **options}
    return subprocess.run(
        [sys.executable, script, *args],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        **options,
    )


def works(*args, **options):
    """It ends well -> what it printed."""
    result = command(*args, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def is_one_line(error):
    """Is this one line that says who speaks?"""
    return (
        len(error.splitlines()) == 1
        and error.startswith("microgpt: ")
        and error.endswith("\n")
    )


def says_one_line(result, *words):
    """It failed with one line on stderr, which has these words."""
    assert 0 < result.returncode < 128
    assert is_one_line(result.stderr), result.stderr
    for word in words:
        assert word in result.stderr


def fails(args, *words):
    """It fails like that, and before it did anything."""
    result = command(*args)
    says_one_line(result, *words)
    assert result.stdout == ""


def samples(output):
    """What a training wrote -> [(text, "new" or "in training"), ...]"""
    return re.findall(r"^    (?! )(.*?) +(new|in training)$", output, re.MULTILINE)
