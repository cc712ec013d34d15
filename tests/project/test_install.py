"""However it is installed and started, microgpt finds the files that come with it."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from helpers import ENV, ROOT, SCRIPT, command, says_one_line

import microgpt

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")
SOURCE = Path(SCRIPT).read_text(encoding="utf-8")
TRAIN = "--steps 1 --samples 1 --batch-size 1 --save kept".split()


def run(*words, **options):
    """Run a command that must end well -> what it printed."""
    child = subprocess.run(words, capture_output=True, encoding="utf-8", **options)
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


def finds_what_it_needs(*start, cwd, env=ENV):
    """Train on the names, run an example and a step of the ladder, far from the source.

    Returns what the training printed.
    """
    printed = run(*start, *TRAIN, cwd=cwd, env=env)
    assert "bundled names: 11,732 lines," in printed
    assert "nats a token" in run(*start, "explain", "kept", "ann", cwd=cwd, env=env)
    assert "held-out loss 3.296" in run(*start, "ladder", "die", cwd=cwd, env=env)
    return printed


# --- installed ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source tree, the wheel and the source archive."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("archives")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("microgpt.py", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    for name in ("data", "examples"):
        ignore = shutil.ignore_patterns("__pycache__", "pictures", "playground")
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, tree)
    (wheel,) = folder.glob("*.whl")
    (archive,) = folder.glob("*.tar.gz")
    return {"tree": tree, "wheel": wheel, "source archive": archive}


def install(*words, python=sys.executable, **environment):
    """pip, which takes its build tools from here and nothing from the network."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    alone = ["--no-index", "--no-deps", "--no-build-isolation"]
    tools = {"PYTHONPATH": sysconfig.get_path("purelib")}
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    run(*pip, *alone, *words, env={**ENV, **tools, **quiet, **environment})


def scripts(folder):
    return folder / ("Scripts" if os.name == "nt" else "bin")


@pytest.mark.parametrize("what", ["wheel", "source archive", "tree"])
def test_into_a_virtual_environment(what, archives, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = shutil.which("python", path=str(scripts(tmp_path / "venv")))
    install(*(["-e"] if what == "tree" else []), archives[what], python=python)
    start = shutil.which("microgpt", path=str(scripts(tmp_path / "venv")))
    printed = finds_what_it_needs(start, cwd=tmp_path)
    assert "in kept: microgpt sample kept\n" in printed


def test_for_one_user(archives, tmp_path):
    base = getattr(sys, "_base_executable", sys.executable)  # --user needs no venv
    users = {"PYTHONUSERBASE": str(tmp_path / "user")}
    install("--user", archives["wheel"], python=base, **users)
    finds_what_it_needs(base, "-m", "microgpt", cwd=tmp_path, env={**ENV, **users})


@pytest.mark.parametrize("option", ["--target", "--prefix", "--root"])
@pytest.mark.parametrize("python", [sys.executable, "/usr/bin/python3"])
def test_into_a_folder(option, python, archives, tmp_path):
    """The second is Debian's own Python, which has folders of its own."""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 9))"
    if (
        not os.path.exists(python)
        or subprocess.run([python, "-c", new_enough]).returncode
    ):
        pytest.skip(f"{python} is not there, or too old")
    install(option, tmp_path / "folder", archives["wheel"], python=python)
    (path,) = (tmp_path / "folder").rglob("microgpt.py")
    env = {**ENV, "PYTHONPATH": str(path.parent)}
    finds_what_it_needs(python, "-m", "microgpt", cwd=tmp_path, env=env)


# --- started --------------------------------------------------------------------------


@posix
def test_by_a_symbolic_link(tmp_path):
    (tmp_path / "link.py").symlink_to(SCRIPT)
    printed = finds_what_it_needs(sys.executable, "link.py", cwd=tmp_path)
    assert "in kept: python microgpt.py sample kept\n" in printed


def test_as_a_module_of_a_folder(tmp_path):
    env = {**ENV, "PYTHONPATH": str(ROOT)}
    finds_what_it_needs(sys.executable, "-m", "microgpt", cwd=tmp_path, env=env)


def test_piped_into_python_it_looks_in_this_folder(tmp_path):
    words = [sys.executable, "-", "--steps", "1", "--samples", "1", "--quiet"]
    assert run(*words, input=SOURCE, cwd=ROOT, env=ENV).strip()
    child = command(*words[2:], script="-", input=SOURCE, cwd=tmp_path)
    says_one_line(child, "the bundled names are not in", "name a text file")


def test_alone_it_says_that_the_names_are_missing(tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    child = command(script=str(tmp_path / "microgpt.py"))
    says_one_line(child, "the bundled names are not in", "name a text file")
    child = command("explain", "kept", "ann", script=str(tmp_path / "microgpt.py"))
    says_one_line(child, "no file 'explain', and no programs in", "examples")


# --- by a Python that is too old ------------------------------------------------------

NEEDS = "microgpt.py needs Python 3.9 or later, not"


def test_a_python_that_is_too_old_says_so_in_one_line():
    pretend = "import sys, runpy; sys.version_info = (3, 8, 18); sys.version = '3.8.18'"
    child = command("-c", f"{pretend}; runpy.run_path({SCRIPT!r})", script="-I")
    assert (child.returncode, child.stdout) == (1, "")
    assert child.stderr == f"{NEEDS} 3.8\n"


def test_python_3_7_can_read_the_file_and_gets_as_far_as_that_line():
    tree = ast.parse(SOURCE, feature_version=(3, 7))
    docstring, import_sys, check, *_ = tree.body
    assert ast.unparse(import_sys) == "import sys"
    assert NEEDS in ast.unparse(check)


def test_python_2_shows_that_line_since_it_is_the_first_that_it_cannot_read():
    strings = [x for x in ast.walk(ast.parse(SOURCE)) if isinstance(x, ast.JoinedStr)]
    first = min(strings, key=lambda x: x.lineno)
    assert NEEDS in ast.unparse(first)
    before = SOURCE.split("\n")[: first.lineno]
    assert "\n".join(before).isascii()  # Python 2 would complain of other letters


@pytest.mark.parametrize("name", ["python2.7", "python3.6", "python3.7", "python3.8"])
def test_real_old_pythons_show_that_line(name):
    python = shutil.which(name)
    if (
        python is None
        or subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip(f"there is no {name}")
    child = subprocess.run([python, SCRIPT], stderr=subprocess.PIPE, encoding="utf-8")
    assert child.returncode == 1 and NEEDS in child.stderr


def test_the_version_is_that_of_the_package(archives):
    assert f"-{microgpt.__version__}-" in archives["wheel"].name
