"""What the tests share: paths, small models, numbers to compare, and commands to run.

paths       ROOT, EXAMPLES, ENGINES, SCRIPT, program
numbers     rows, row, flat, close, shaken, defaults
models      ABC, make, draws, learned, kept, probabilities, tokens_of, drawn
layers      LAYERS, weighted_sum
commands    command, works, fails, says_one_line, samples, table
files       parts, write_parts, write_tensors
"""

import inspect
import json
import math
import os
import random
import re
import signal
import struct
import subprocess
import sys
from collections import Counter, namedtuple
from pathlib import Path

import pytest

import microgpt
from microgpt import (
    GPT,
    CharTokenizer,
    Config,
    add,
    attention,
    cross_entropy,
    dot,
    embedding,
    gelu,
    layernorm,
    linear,
    packed_attention,
)

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ENGINES = EXAMPLES / "engines"
SCRIPT = str(Path(microgpt.__file__).resolve())


def program(name, folder=EXAMPLES):
    """The path of a program in examples/, as a string."""
    return str(folder / f"{name}.py")


# --- numbers ---


def rows(n, width, seed=0, scale=1.0):
    """n random rows of this width."""
    rng = random.Random(seed)
    return [[rng.gauss(0, scale) for _ in range(width)] for _ in range(n)]


def row(width, seed=0):
    """A single random row."""
    return rows(1, width, seed)[0]


def flat(x):
    """All numbers of x, which may be a number, rows, a Tensor or a dict, as floats."""
    if hasattr(x, "tolist"):  # NumPy's or PyTorch's
        x = x.tolist()
    x = getattr(x, "data", x)
    if isinstance(x, dict):
        x = list(x.values())
    if not hasattr(x, "__len__"):
        return [float(x)]
    return [number for part in x for number in flat(part)]


def close(x, tolerance=1e-12):
    """What flat(y) equals if y has the same numbers as x, within the tolerance."""
    return pytest.approx(flat(x), rel=tolerance, abs=tolerance)


def shaken(model, by=0.1, seed=0):
    """A copy of a model in which no gain is 1 and no bias 0, as if it were trained."""
    rng = random.Random(seed)
    params = {}
    for name, x in model.params.items():
        params[name] = microgpt.for_each(lambda p: p + rng.gauss(0, by), x)
    return GPT(model.config, params)


def defaults(function):
    """{name: value} of all that a function, or a class, can be called without."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


# --- models ---

ABC = CharTokenizer(["abc"])  # a, b, c and <|endoftext|>: ids 0, 1, 2 and 3


def make(tokenizer=ABC, block_size=8, seed=0, sharp=1.0):
    """A model with random weights; the larger `sharp` is, the surer it is of itself."""
    config = Config(tokenizer.vocab_size, block_size, 1, n_head=2, n_embd=4)
    model = GPT(config, seed=seed)
    table = model.params["wte.weight"]
    table[:] = [[sharp * x for x in row] for row in table]
    return model


def draws(*probabilities):
    """A model that draws each token with these probabilities, whatever came before.

    The last layernorm has gain 0 and the logarithms as its bias. The table of tokens,
    which turns that into logits, has 1 where the row is the column, and 0 elsewhere.
    """
    n = len(probabilities)
    model = GPT(Config(n, block_size=4, n_head=1, n_embd=n), seed=0)
    model.params["wte.weight"] = [[float(i == j) for j in range(n)] for i in range(n)]
    model.params["ln_f.weight"] = [0.0] * n
    model.params["ln_f.bias"] = [math.log(p) if p else -1e4 for p in probabilities]
    return model


def learned(documents, tokenizer, block_size=8, steps=60, lr=0.02):
    """A model that has learned a little from all of these documents."""
    config = Config(tokenizer.vocab_size, block_size, n_head=2, n_embd=8)
    options = microgpt.TrainConfig(steps=steps, lr=lr, val_fraction=0.0)
    trainer = microgpt.Trainer(GPT(config), tokenizer, documents, options)
    assert len(list(trainer)) == steps
    return trainer.model


def kept(model, tokenizer, directory):
    """Save a model -> its directory, as a word for the command line."""
    microgpt.save_model(model, str(directory), tokenizer)
    return str(directory)


def probabilities(logits):
    """What softmax makes of the logits."""
    exps = [math.exp(x - max(logits)) for x in logits]
    return [e / sum(exps) for e in exps]


def tokens_of(text, tokenizer=ABC):
    """The ids of a document, with its two ends."""
    return [tokenizer.end, *tokenizer.encode(text), tokenizer.end]


class Even(random.Random):
    """A generator whose next number is u."""

    def random(self):
        return self.u


def drawn(draw, n=200):
    """{token: how often draw(rng) gives it}, for n numbers spread from 0 to 1."""
    rng = Even()
    counts = Counter()
    for i in range(n):
        rng.u = (i + 0.5) / n
        counts[draw(rng)] += 1
    return counts


# --- layers ---


class Case(namedtuple("Case", "layer inputs options", defaults=({},))):
    """A layer, its inputs {name: numbers}, and what else it takes {name: integers}."""

    def __call__(self, inputs):
        return self.layer(*inputs.values(), *self.options.values())

    def by_name(self, inputs):
        """The same, with all but the first input given by name, the last one first."""
        first, *others = inputs
        names = dict(self.options)
        for name in others:
            names[name] = inputs[name]
        return self.layer(inputs[first], **dict(reversed(list(names.items()))))

    def definition(self):
        """The same case for the layer's definition in chapter 4."""
        return self._replace(layer=self.layer.dispatch(object))


def add_to_itself(x):
    return add(x, x)


LAYERS = {
    "embedding": Case(embedding, {"table": rows(3, 4)}, {"ids": [1, 0, 1]}),
    "add": Case(add, {"x": rows(3, 4), "y": rows(3, 4, seed=1)}),
    "add to itself": Case(add_to_itself, {"x": rows(3, 4)}),
    "linear": Case(
        linear, {"x": rows(3, 4), "weight": rows(5, 4, seed=1), "bias": row(5, seed=2)}
    ),
    "linear, no bias": Case(linear, {"x": rows(3, 4), "weight": rows(5, 4, seed=1)}),
    "linear, wide": Case(linear, {"x": rows(1, 70), "weight": rows(2, 70, seed=1)}),
    "linear, width 1": Case(linear, {"x": rows(2, 1), "weight": rows(2, 1, seed=1)}),
    "layernorm": Case(
        layernorm, {"x": rows(3, 4), "gain": row(4, seed=1), "bias": row(4, seed=2)}
    ),
    "layernorm, large eps": Case(
        layernorm,
        {"x": rows(3, 4), "gain": row(4, seed=1), "bias": row(4, seed=2)},
        {"eps": 0.5},
    ),
    "gelu": Case(gelu, {"x": rows(3, 4, scale=2.0)}),
    "attention": Case(attention, {"x": rows(4, 12)}, {"n_head": 2}),
    "attention, one head": Case(attention, {"x": rows(3, 6)}, {"n_head": 1}),
    "attention, one token": Case(attention, {"x": rows(1, 6)}, {"n_head": 2}),
    "attention, packed": Case(
        packed_attention, {"x": rows(6, 12)}, {"n_head": 2, "lengths": [3, 1, 2]}
    ),
    "cross_entropy": Case(
        cross_entropy, {"logits": rows(3, 4)}, {"targets": [2, 0, 2]}
    ),
}


def weighted_sum(y):
    """One number that depends on every number of y, on each in another measure."""
    if not hasattr(y, "__len__"):
        return y
    total = 0.0
    for t, numbers in enumerate(y):
        weights = [math.sin(3 * t + i + 1) for i in range(len(numbers))]
        total = dot(numbers, weights) + total
    return total


# --- commands ---

NAMES = """
    ada bob cleo dan eve fay gus hal ida joe kim leo mia ned oda pam ray sue tom una
""".split()
TINY = "names.txt --steps 3 --samples 2 --n-embd 8 --batch-size 2".split()
ENV = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
ENV["PYTHONIOENCODING"] = "utf-8"
ENV.pop("COLUMNS", None)


def command(*args, script=SCRIPT, env=(), encoding="utf-8", **options):
    """Run a program to its end, as a person does; `env` is added to the environment."""
    return subprocess.run(
        [sys.executable, script, *map(str, args)],
        capture_output=True,
        env={**ENV, **dict(env)},
        encoding=encoding,
        timeout=300,
        **options,
    )


def works(*args, **options):
    """It ends well -> what it printed."""
    result = command(*args, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def is_one_line(error, name="microgpt"):
    """Is this one line that says which program speaks?"""
    one_line = len(error.splitlines()) == 1 and error.endswith("\n")
    return one_line and error.startswith(f"{name}: ")


def says_one_line(result, *words, name="microgpt"):
    """It failed with one line on stderr, which has these words."""
    assert 0 < result.returncode < 128
    assert is_one_line(result.stderr, name), result.stderr
    for word in words:
        assert word in result.stderr


def fails(args, *words, **options):
    """It fails like that, and before it did anything."""
    result = command(*args, **options)
    says_one_line(result, *words)
    assert result.stdout == ""


def take_ctrl_c():
    """Even if the tests run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*args, script=SCRIPT, env=(), **options):
    """Start a program, to be watched and stopped; its output is text, in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if os.name == "posix":
        options["preexec_fn"] = take_ctrl_c
    return subprocess.Popen(
        [sys.executable, script, *map(str, args)],
        env={**ENV, **dict(env)},
        encoding="utf-8",
        **{**pipes, **options},
    )


def on_terminal(*args, until=None, columns=0, **options):
    """What a program shows on a pseudo-terminal, with \n at the end of its lines.

    Ctrl-C comes when it has shown `until`, which is bytes. It must end well.
    """
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    if columns:
        import fcntl
        import termios

        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    child = start(*args, stdin=slave, stdout=slave, **options)
    os.close(slave)
    output = b""
    more = b"any"
    while more:
        try:
            more = os.read(master, 10000)
        except OSError:  # what Linux says when the other end is closed
            more = b""
        output += more
        if until and until in output:
            child.send_signal(signal.SIGINT)
            until = None
    os.close(master)
    assert child.communicate()[1] == "" and child.returncode == 0
    return output.decode().replace("\r\n", "\n")


def samples(output):
    """What a training wrote -> [(text, "new" or "in training"), ...]"""
    return re.findall(r"^    (?! )(.*?) +(new|in training)$", output, re.MULTILINE)


# --- files ---


def parts(path):
    """A .safetensors file -> (its header, the bytes of its numbers)."""
    raw = path.read_bytes()
    stop = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:stop]), raw[stop:]


def write_parts(path, header, data):
    """The same backwards. The header may also be bytes, even if they are no JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_tensors(path, tensors, padding=b""):
    """{name: (dtype, shape, bytes)} -> a file; its header has them in order of name."""
    header = {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(dict(sorted(header.items()))).encode()
    write_parts(path, text + padding, data)


def table(text):
    """A text with lines such as "arguments -> words", as rows for parametrize."""
    lines = text.strip().splitlines()
    return [tuple(part.strip() for part in line.split("->")) for line in lines]
