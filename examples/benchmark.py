"""How fast and how small is microgpt? Measure it, with any interpreter.

    python examples/benchmark.py
    pypy3 examples/benchmark.py poems.txt
    python examples/benchmark.py names.txt --baseline reference.py
    python examples/benchmark.py --gpt2
    python examples/benchmark.py --engines --nanogpt path/to/nanoGPT

The job is the usual one for a first GPT: 1 layer, width 16, 4 heads, and a block of 16
tokens. These things are measured, in the order of the table:

default run       `python microgpt.py FILE` as a child process: its time from start to
                  end, the peak of its resident memory, and the held-out loss that it
                  prints.
import            How much longer `python -c "import microgpt"` takes than
                  `python -c pass`, in turns; the median of the differences.
one document      Milliseconds for a step of one document: forward, backward, AdamW; no
                  clipping, no decay. Documents are cut to a block. A warm-up is not
                  counted: one second, or five where Python compiles while it runs, as
                  PyPy does. The mean is over all steps. The least is the time of some
                  very short document.
batch of 32       Documents a second, with 1 worker and with 2, in turns.
generation        Tokens a second, with the KV cache. The end of a name counts as a
                  token.
matmul            Nanoseconds for a multiplication and an addition, in [64, w] times
                  [w, w]: the best of many.
BPE               Seconds to train byte-pair encoding up to 2,000 tokens on a megabyte
                  of text, one document a line, and seconds to encode this text, with
                  nothing remembered from before. The text is the beginning of the
                  standard library's source, so it is the same for everyone with the
                  same Python. The mean of three rounds, without a warm-up.
GPT-2 small       Only with --gpt2: a model of GPT-2's smallest shape, 124 million
                  parameters, in a child process. The seconds to load it, to read a
                  prompt of 8 tokens (up to the first new one), and for each of 8 more
                  tokens, the likeliest ones; and the peak of the child's resident
                  memory, which is not available on Windows.
engines           Only with --engines: steps of the engines of examples/engines/, if
                  NumPy and PyTorch are installed, in turns with the tensor engine of
                  microgpt.py. They do the job above, with 1 document a step and with
                  32. They train on windows of 128 random tokens, 8 a step (1 for the
                  tensor engine), with width 128 and 4 layers. With --gpt2, PyTorch
                  alone trains a model of GPT-2's smallest shape on one window of 1,024.
                  All of them clip. They compute in float32, except that NumPy is also
                  measured in float64. The mean of three rounds. With --nanogpt, the
                  model.py of that directory (Andrej Karpathy's nanoGPT) takes its
                  turns, too: forward, backward, clipping and its AdamW. It gets the
                  same windows, but filled up to the longest, as it requires.

Another script can be the baseline. It reads documents from input.txt in its working
directory. It prints a line `step N / M | loss X` for each step of one document and,
after its steps, 20 lines `sample N: TEXT`. It runs as a child in a folder of its own,
where input.txt holds the documents of FILE, in another order each round. The time of a
step is that from one line to the next, after a warm-up as above. After enough steps the
script is stopped. The baseline and the engines take turns, for three rounds, so that
all of them see the machine in the same minutes. `times as fast` divides the baseline's
mean by ours; the range is that of the single rounds.

For generation, a copy of the script runs with `num_steps = 3`, if it has a line that
sets num_steps, and its 20 samples are timed. They are compared with generation by a
model that was also trained for 3 steps. These steps are too few to warm up a compiler.
So if this runs with PyPy, run the baseline with CPython, the interpreter that most
people would use for it: --baseline-python python.

BPE is compared with the tokenizers library, which is written in Rust, if it is
installed. The two do the same job in turns, in three rounds. The library runs in its
usual way, on several processors. `times its time` divides our mean by the library's;
the range is that of the single rounds. `equal to the library` says whether the
vocabularies, the merges and the ids of the text are the same.

GPT-2's own parameters are not needed to measure it, as any parameters take the same
time and room. So --gpt2 writes random ones to a temporary directory, as files like
GPT-2's own with 4 bytes a number: half a gigabyte of disk, for a minute or two. With
--quick as well, the model is tiny.

What to expect? On a laptop with CPython, a document takes some milliseconds with the
tensor engine, and some ten with the value engine. With PyPy it takes far less, once it
is warm. 2 workers handle up to twice as many documents a second, if 2 processors are
free. BPE takes a second or two to train and as long to encode, three or four times the
library's time. GPT-2 writes a token in some seconds, with PyPy in one or two, and needs
little more memory than the 500 MB that its numbers fill. Machines are noisy, and no two
are alike: a second run may well differ by a tenth or more. So what counts are the
ratios, which are measured in turns.
"""

import contextlib
import glob
import importlib.util
import io
import json
import math
import os
import platform
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import namedtuple
from functools import partial

from _common import make_parser, run_command

import microgpt

ROUNDS = 3
FIRST_STEPS = 3  # before a baseline's samples are timed
STEP = re.compile(r"step +\d+ */ *\d+ *\| *loss")
SAMPLE = re.compile(r"sample +\d+: ?(.*)")
NUM_STEPS = re.compile(r"^num_steps *= *[\d_]+", re.MULTILINE)
BLOCK = microgpt.Config(1).block_size
GPT2_SMALL = microgpt.Config(50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
TINY = microgpt.Config(257, block_size=32, n_layer=2, n_head=2, n_embd=8)
PROMPT = 8  # tokens that GPT-2 reads
MORE = 8  # tokens that it writes after the first

# For how many seconds each thing is measured, after how many to warm up, and whether
# all should be done badly, but in a few seconds.
Plan = namedtuple("Plan", "seconds warm quick")


# --- The table ------------------------------------------------------------------------


def row(label, value, unit="", note=""):
    """Print a line of the table, the value with three digits or as it is."""
    if isinstance(value, float):
        digits = 2
        if value > 0:
            digits = max(0, 2 - math.floor(math.log10(value)))
        value = f"{value:,.{digits}f}"
    print(f"{label:34} {value:>13} {unit:14} {note}".rstrip(), flush=True)


def ratio_row(label, ratios, ratio, unit="times as fast"):
    """Print a ratio, and the range of the ratios of the rounds."""
    row(label, ratio, unit, f"{min(ratios):.3g} to {max(ratios):.3g}")


# --- Times ----------------------------------------------------------------------------


def stretch(advance, seconds):
    """Call a function again and again for so many seconds -> the time of each call."""
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        advance()
        times.append(time.perf_counter() - started)
    return times


def in_turns(measures):
    """Measure everything in turns -> for each round, {name: times}."""
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({name: measure() for name, measure in measures.items()})
    return rounds


def all_times(rounds, name):
    """The times that one thing took in all rounds."""
    return [t for times in rounds for t in times[name]]


def ratios(rounds, name, other):
    """How many times as long as another thing one thing took, in each round."""
    found = []
    for times in rounds:
        found.append(statistics.mean(times[name]) / statistics.mean(times[other]))
    return found


# --- Child processes ------------------------------------------------------------------


def default_run(path, plan):
    """Rows on the whole default command, which must be this process's first child.

    (Of all children that have ended, only the largest peak of memory is known.)
    """
    command = [sys.executable, os.path.abspath(microgpt.__file__), path]
    if plan.quick:
        command += ["--steps", "5", "--samples", "2"]
    started = time.perf_counter()
    child = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace"
    )
    seconds = time.perf_counter() - started
    if child.returncode:
        raise ValueError("the default run failed: " + child.stderr.strip())
    row("default run, time", seconds, "s", "5 steps only" if plan.quick else "")
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
        row("default run, peak memory", peak / 1e6, "MB")
    except ImportError:
        row("default run, peak memory", "not available")
    held_out = re.search(r"^ +([\d.]+) held out, ", child.stdout, re.MULTILINE)
    if held_out:
        row("default run, held-out loss", held_out.group(1), "nats a token")
    else:
        row("default run, held-out loss", "not available")


def import_time(plan):
    """A row on the milliseconds that `import microgpt` adds to Python's start."""
    env = dict(os.environ)
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    folder = os.path.dirname(os.path.abspath(microgpt.__file__))

    def start(code):
        """The milliseconds of a child that runs the code."""
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True)
        return 1000 * (time.perf_counter() - started)

    start("import microgpt")  # writes the .pyc
    n_pairs = 3 if plan.quick else 21
    more = [start("import microgpt") - start("pass") for _ in range(n_pairs)]
    row("import microgpt", statistics.median(more), "ms")


def lines_of(python, script, documents):
    """Run a script beside an input.txt with these documents: yields (time, line)."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "input.txt")
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(documents) + "\n")
        child = subprocess.Popen(
            [python, "-u", script],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUTF8": "1"},
        )
        try:
            for line in child.stdout:
                yield time.perf_counter(), line.rstrip("\n")
        finally:
            child.kill()
            child.stdout.close()
            child.wait()


class Baseline:
    """Another script that trains and samples, to compare with."""

    def __init__(self, script, python, path):
        found = shutil.which(python)
        if not found:
            raise ValueError(f"there is no interpreter {python}")
        self.python = os.path.abspath(found)  # as the script runs in another folder
        self.script = os.path.abspath(script)
        self.path = path
        self.rng = random.Random(0)
        with open(script, encoding="utf-8") as file:
            self.source = file.read()

    def lines(self, script):
        """What a script prints, given the documents in a new order."""
        documents = microgpt.load_documents(self.path)
        self.rng.shuffle(documents)
        return contextlib.closing(lines_of(self.python, script, documents))

    def training(self, plan):
        """The times of its steps."""
        stamps = []
        with self.lines(self.script) as lines:
            for now, line in lines:
                if STEP.match(line):
                    stamps.append(now)
                    if now - stamps[0] > plan.warm + plan.seconds:
                        break
        if len(stamps) < 2:
            raise ValueError(
                f"{self.script} prints no lines like: step 1 / 1000 | loss 3.3"
            )
        times = [after - before for before, after in zip(stamps, stamps[1:])]
        n_cold = sum(stamp - stamps[0] < plan.warm for stamp in stamps[:-1])
        return times[n_cold:] or times

    def generation(self):
        """(tokens, seconds) of its samples after a few steps; None if it cannot be."""
        source, found = NUM_STEPS.subn(f"num_steps = {FIRST_STEPS}", self.source)
        if not found:
            return None
        tokens = 0
        started = None
        ended = None
        with tempfile.TemporaryDirectory() as folder:
            script = os.path.join(folder, "few_steps.py")
            with open(script, "w", encoding="utf-8") as file:
                file.write(source)
            with self.lines(script) as lines:
                for now, line in lines:
                    sampled = SAMPLE.match(line)
                    if STEP.match(line):
                        started = now
                    elif sampled and started:
                        ended = now
                        tokens += min(len(sampled.group(1)) + 1, BLOCK)
        return (tokens, ended - started) if tokens else None


# --- Training and writing -------------------------------------------------------------


def new_trainer(documents, tokenizer, engine=None, **options):
    """A Trainer of a new model for the job, which will not come to its end."""
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size))
    config = microgpt.TrainConfig(steps=10**9, clip=0.0, val_fraction=0.0, **options)
    return microgpt.Trainer(model, tokenizer, documents, config, engine)


def training(documents, tokenizer, plan, baseline, engines):
    """Rows on steps of one document -> a model that has been trained for a while.

    The engines are {name: a function that makes one}.
    """
    trainers = {}
    measures = {}
    if baseline:
        measures["baseline"] = partial(baseline.training, plan)
    for name, make_engine in engines.items():
        trainer = new_trainer(documents, tokenizer, make_engine(), batch_size=1)
        trainers[name] = trainer
        stretch(trainer.__next__, plan.warm)
        measures[name] = partial(stretch, trainer.__next__, plan.seconds)
    rounds = in_turns(measures)
    means = {}
    for name in [*trainers, "baseline"] if baseline else trainers:
        times = [1000 * t for t in all_times(rounds, name)]
        means[name] = statistics.mean(times)
        label = engine_label(name)
        row(f"one document, {label}, mean", means[name], "ms", f"{len(times):,} steps")
        row(f"one document, {label}, least", min(times), "ms")
    if baseline:
        for name in trainers:
            ratio = means["baseline"] / means[name]
            label = f"{engine_label(name)} to baseline"
            ratio_row(label, ratios(rounds, "baseline", name), ratio)
    return trainers["tensor"].model


def engine_label(name):
    """What the table calls an engine. Only microgpt's own need the word."""
    return f"{name} engine" if name in microgpt.ENGINES else name


def workers(documents, tokenizer, plan):
    """Rows on batches of 32 documents with 1 and with 2 processes."""
    with contextlib.ExitStack() as stack:
        measures = {}
        for n in (1, 2):
            trainer = new_trainer(documents, tokenizer, batch_size=32, workers=n)
            stack.callback(trainer.close)
            stretch(trainer.__next__, plan.warm)
            measures[n] = partial(stretch, trainer.__next__, plan.seconds)
        rounds = in_turns(measures)
    one = statistics.mean(all_times(rounds, 1))
    two = statistics.mean(all_times(rounds, 2))
    processors = f"{os.cpu_count()} processors"
    row("batch of 32, 1 worker", 32 / one, "documents/s")
    row("batch of 32, 2 workers", 32 / two, "documents/s", processors)
    ratio_row("2 workers to 1", ratios(rounds, 1, 2), one / two)


def generation(model, tokenizer, seconds):
    """(tokens, seconds) of writing names with a model, at most a block each."""
    rng = random.Random(0)
    counts = []

    def write_name():
        new = microgpt.stream(model, [tokenizer.end], rng=rng, max_tokens=BLOCK)
        counts.append(min(len(list(new)) + 1, BLOCK))

    times = stretch(write_name, seconds)
    return sum(counts), sum(times)


def writing(model, documents, tokenizer, plan, baseline):
    """Rows on generation."""
    generation(model, tokenizer, plan.warm)
    tokens, seconds = generation(model, tokenizer, plan.seconds)
    row("generation", tokens / seconds, "tokens/s", f"{tokens:,} tokens")
    if not baseline:
        return
    trainer = new_trainer(documents, tokenizer, batch_size=1)
    for _ in range(FIRST_STEPS):
        next(trainer)
    ours = []
    theirs = []
    for _ in range(ROUNDS):
        theirs.append(baseline.generation())
        if theirs[-1] is None:
            row("generation, baseline", "not measured")
            row("generation to baseline", "not measured")
            return
        ours.append(generation(trainer.model, tokenizer, plan.seconds))
    their_tokens, their_seconds = map(sum, zip(*theirs))
    our_tokens, our_seconds = map(sum, zip(*ours))
    speed = their_tokens / their_seconds
    row("generation, baseline", speed, "tokens/s", f"{their_tokens:,} tokens")
    of_rounds = []
    for (n, seconds), (their_n, their_seconds) in zip(ours, theirs):
        of_rounds.append(n / seconds / (their_n / their_seconds))
    ratio_row("generation to baseline", of_rounds, our_tokens / our_seconds / speed)


def multiplying(plan):
    """Rows on microgpt.matmul at three widths."""
    rng = random.Random(0)
    for width in 16, 64, 128:
        A = random_rows(64, width, rng)
        B = random_rows(width, width, rng)
        best = min(stretch(partial(microgpt.matmul, A, B), plan.seconds / 3))
        each = 1e9 * best / (64 * width * width)
        row(f"matmul, width {width}", each, "ns/multiply-add")


def random_rows(n, width, rng):
    """n rows of normally distributed numbers."""
    return [[rng.gauss(0, 1) for _ in range(width)] for _ in range(n)]


# --- BPE ------------------------------------------------------------------------------


def source_lines(size):
    """So many characters of the standard library's source, one document a line."""
    folder = sysconfig.get_paths()["stdlib"]
    text = ""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "[a-z]*.py"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            text += file.read(size - len(text))
    if not text:
        raise ValueError(f"there is no source of the standard library in {folder}")
    return [line for line in text.split("\n") if line.strip()]


def our_bpe(documents, size):
    """Seconds to train, seconds to encode, and the result: vocabulary, merges, ids."""
    started = time.perf_counter()
    tokenizer = microgpt.BPETokenizer.train(documents, size)
    trained = time.perf_counter()
    ids = [tokenizer.encode(document) for document in documents]
    ended = time.perf_counter()
    return trained - started, ended - trained, (tokenizer.vocab, tokenizer.merges, ids)


def library_bpe(tokenizers, documents, size):
    """The same by the tokenizers library."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    started = time.perf_counter()
    tokenizer.train_from_iterator(
        documents, size - 1, min_frequency=1, show_progress=False
    )
    tokenizer.add_special_tokens([microgpt.END])  # as the last; the trainer's are first
    trained = time.perf_counter()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(documents)]
    ended = time.perf_counter()
    merges = []
    for pair in json.loads(tokenizer.to_str())["model"]["merges"]:
        if isinstance(pair, str):  # older versions write a space in between
            pair = pair.split(" ")
        merges.append(tuple(pair))
    return trained - started, ended - trained, (tokenizer.get_vocab(), merges, ids)


def bpe(plan):
    """Rows on byte-pair encoding."""
    try:
        import tokenizers
    except ImportError:
        tokenizers = None
    documents = source_lines(20_000 if plan.quick else 10**6)
    size = 300 if plan.quick else 2000
    ours = []  # of each round, the seconds to train and to encode
    theirs = []
    equal = True
    for _ in range(ROUNDS):
        *seconds, result = our_bpe(documents, size)
        ours.append(seconds)
        if tokenizers:
            *seconds, expected = library_bpe(tokenizers, documents, size)
            theirs.append(seconds)
            equal = equal and result == expected
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    version = f"version {tokenizers.__version__}" if tokenizers else ""
    notes = {"training": f"{size:,} tokens", "encoding": f"{megabytes:.2f} MB of text"}
    for i, (name, note) in enumerate(notes.items()):
        our_times = [seconds[i] for seconds in ours]
        their_times = [seconds[i] for seconds in theirs]
        bpe_rows(name, our_times, their_times, note, version)
    if tokenizers:
        row("BPE, equal to the library", "yes" if equal else "no")
    else:
        row("BPE, library", "tokenizers not installed")


def bpe_rows(name, ours, theirs, note, version):
    """Rows on training or encoding: the times of all rounds."""
    mean = statistics.mean(ours)
    row(f"BPE {name}", mean, "s", note)
    if theirs:
        library = statistics.mean(theirs)
        of_rounds = [our / their for our, their in zip(ours, theirs)]
        row(f"BPE {name}, library", library, "s", version)
        label = f"BPE {name} to library"
        ratio_row(label, of_rounds, mean / library, "times its time")


# --- GPT-2 ----------------------------------------------------------------------------

# A Python of its own loads and runs the model, so that the memory is the model's.
# (Linux counts the memory of a process in the peak of those that it starts. But this
# one has less.)
RUN_GPT2 = """
import json, sys, time
import microgpt
directory, prompt, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
times = [time.perf_counter()]
model = microgpt.load_model(directory)
times.append(time.perf_counter())
likeliest = microgpt.Sampling(temperature=0)
tokens = list(range(prompt))
for _ in microgpt.stream(model, tokens, likeliest, end=-1, max_tokens=1 + more):
    times.append(time.perf_counter())
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
except ImportError:
    peak = None
print(json.dumps([times, peak]))
"""


def write_gpt2(directory, config):
    """Write a random model as GPT-2's files are, in little memory.

    Gains are 1, biases 0, and weights have a deviation of 0.02. A row of a weight is a
    piece, from some place on, of one long row of random numbers.
    """
    shape = {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
    }
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(shape, file)
    header = {}
    stop = 0
    for name, shape in microgpt.parameter_shapes(config).items():
        start = stop
        stop += 4 * math.prod(shape)
        if ".c_" in name:
            shape = shape[::-1]  # in the file, they are [n_in, n_out]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
    rng = random.Random(0)
    longest = 4 * config.n_embd
    numbers = [rng.gauss(0, 0.02) for _ in range(16 * longest)]
    noise = struct.pack(f"<{16 * longest}f", *numbers)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with open(os.path.join(directory, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            *height, width = entry["shape"]
            if not height:
                file.write(struct.pack("<f", name.endswith("weight")) * width)
                continue
            for _ in range(height[0]):
                start = 4 * rng.randrange(15 * longest)
                file.write(noise[start : start + 4 * width])


def gpt2(plan):
    """Rows on a model of GPT-2's smallest shape."""
    config = TINY if plan.quick else GPT2_SMALL
    with tempfile.TemporaryDirectory() as directory:
        write_gpt2(directory, config)
        child = subprocess.run(
            [sys.executable, "-c", RUN_GPT2, directory, str(PROMPT), str(MORE)],
            cwd=os.path.dirname(os.path.abspath(microgpt.__file__)),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    if child.returncode:
        raise ValueError("GPT-2 failed: " + child.stderr.strip())
    (started, loaded, first, *others), peak = json.loads(child.stdout)
    parameters = f"{microgpt.parameter_count(config):,} parameters"
    each = (others[-1] - first) / MORE
    row("GPT-2 small, load", loaded - started, "s", parameters)
    row(f"GPT-2 small, prompt of {PROMPT}", first - loaded, "s")
    row("GPT-2 small, per token", each, "s", f"{MORE} tokens")
    if peak is None:
        row("GPT-2 small, peak memory", "not available")
    else:
        row("GPT-2 small, peak memory", peak / 1e6, "MB")


# --- Engines --------------------------------------------------------------------------


def installed_engines():
    """{name: a function that makes an engine}, of those in examples/engines/."""
    sys.path.insert(0, microgpt.find_beside("examples", "engines"))
    engines = {}
    try:
        from numpy_engine import NumpyEngine

        engines["NumPy"] = NumpyEngine
        engines["NumPy32"] = partial(NumpyEngine, dtype="float32")
    except ImportError:
        row("NumPy engine", "not installed")
    try:
        from train_torch import TorchEngine

        engines["PyTorch"] = partial(TorchEngine, device=device())
    except ImportError:
        row("PyTorch engine", "not installed")
    return engines


def device():
    """Where PyTorch computes."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def engine_step(engine, config, windows, batch_size):
    """A function that makes a step of so many windows, the next of all."""
    trainer = microgpt.Trainer(
        engine.new_model(config, seed=0),
        microgpt.CharTokenizer(["ab"]),
        ["ab"] * batch_size,
        microgpt.TrainConfig(10**9, batch_size, val_fraction=0.0),
        engine,
    )
    trainer.windows = windows
    return trainer.__next__


def nanogpt_step(path, config, windows, batch_size):
    """The same for the model.py of nanoGPT, trained as its train.py does."""
    import torch

    path = os.path.join(path, "model.py")
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    nanogpt = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = nanogpt
    spec.loader.exec_module(nanogpt)
    with contextlib.redirect_stdout(io.StringIO()):
        shape = nanogpt.GPTConfig(**vars(config), dropout=0.0, bias=True)
        model = nanogpt.GPT(shape).to(device())
        optimizer = model.configure_optimizers(0.0, 1e-3, (0.9, 0.95), device())
    longest = max(map(len, windows))
    rows = torch.tensor([window + [-1] * (longest - len(window)) for window in windows])
    starts = iter(range(0, 10**12, batch_size))

    def step():
        start = next(starts)
        chosen = [i % len(rows) for i in range(start, start + batch_size)]
        batch = rows[chosen].to(device())
        tokens = batch[:, :-1].clamp(min=0)
        targets = batch[:, 1:].contiguous()
        _, loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def engine_jobs(names, vocab_size, with_gpt2, plan):
    """(name, config, windows, batch size) of every job."""
    small = microgpt.Config(vocab_size)
    yield "batch of 1", small, names, 1
    yield "batch of 32", small, names, 32
    wide = microgpt.Config(65, block_size=128, n_layer=4, n_head=4, n_embd=128)
    shapes = [("width 128", wide, 8)]
    if with_gpt2:
        shapes.append(("GPT-2 small", GPT2_SMALL, 1))
    for name, config, batch_size in shapes:
        if plan.quick:
            config = TINY
        rng = random.Random(0)
        windows = []
        for _ in range(16):
            length = config.block_size + 1
            windows.append([rng.randrange(config.vocab_size) for _ in range(length)])
        yield name, config, windows, batch_size


def batch_sizes(engines, config, batch_size):
    """{name of an engine: how many windows it takes at once}, of those that take part.

    The time of the tensor engine grows with the number of windows. So of long windows
    it gets one only.
    """
    if config is GPT2_SMALL:
        return {name: batch_size for name in engines if name == "PyTorch"}
    sizes = dict.fromkeys(engines, batch_size)
    if config.n_embd > 16:
        sizes["tensor"] = 1
    return sizes


def engine_job(job, engines, plan, nanogpt):
    """Rows on steps of all engines in turns, for one job."""
    name_of_job, config, windows, batch_size = job
    sizes = batch_sizes(engines, config, batch_size)
    steps = {}
    for name, size in sizes.items():
        steps[name] = engine_step(engines[name](), config, windows, size)
    if nanogpt:
        sizes["nanoGPT"] = batch_size
        steps["nanoGPT"] = nanogpt_step(nanogpt, config, windows, batch_size)
    for step in steps.values():
        stretch(step, plan.warm)

    def seconds_each(name):
        return [statistics.mean(stretch(steps[name], plan.seconds)) / sizes[name]]

    rounds = in_turns({name: partial(seconds_each, name) for name in steps})
    tokens = statistics.mean(len(window) - 1 for window in windows)
    for name in steps:
        each = statistics.mean(all_times(rounds, name))
        speed = f"{tokens / each:,.0f} tokens/s"
        row(f"{name_of_job}, {name}", 1000 * each, "ms/document", speed)
    compared = [(name, "tensor") for name in steps if name not in ("tensor", "nanoGPT")]
    compared.append(("PyTorch", "nanoGPT"))
    for name, other in compared:
        if name in steps and other in steps:
            of_rounds = ratios(rounds, other, name)
            label = f"{name_of_job}, {name} to {other}"
            ratio_row(label, of_rounds, statistics.mean(of_rounds))


# --- The command ----------------------------------------------------------------------


def measure(options):
    """Measure everything, and print the table."""
    path = options.file or microgpt.find_beside("data", "names.txt")
    baseline = None
    if options.baseline:
        baseline = Baseline(options.baseline, options.baseline_python, path)
    warm = 1.0 if platform.python_implementation() == "CPython" else 5.0
    plan = Plan(options.seconds or 3.0, warm, quick=False)
    if options.quick:
        plan = Plan(options.seconds or 0.05, 0.05, quick=True)
    print(
        f"microgpt {microgpt.__version__}, {platform.python_implementation()} "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}\n"
    )
    default_run(path, plan)  # first, so that the memory is that of this child
    import_time(plan)
    documents = microgpt.load_documents(path)
    tokenizer = microgpt.CharTokenizer(documents)
    documents = [document[: BLOCK - 1] for document in documents]
    engines = dict(microgpt.ENGINES)
    if options.engines:
        engines.update(installed_engines())
    model = training(documents, tokenizer, plan, baseline, engines)
    workers(documents, tokenizer, plan)
    writing(model, documents, tokenizer, plan, baseline)
    multiplying(plan)
    bpe(plan)
    if options.gpt2:
        gpt2(plan)
    if options.engines:
        del engines["value"]
        names = []
        for document in documents:
            names += microgpt.cut_windows(document, tokenizer, BLOCK)
        for job in engine_jobs(names, tokenizer.vocab_size, options.gpt2, plan):
            engine_job(job, engines, plan, options.nanogpt)


def main(argv=None):
    """The command; returns the exit status."""
    parser = make_parser("benchmark", __doc__)
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="A text file, one document a line (the bundled names).",
    )
    parser.add_argument(
        "--baseline", metavar="SCRIPT.py", help="Compare with another GPT, a script."
    )
    parser.add_argument(
        "--baseline-python",
        metavar="PYTHON",
        default=sys.executable,
        help="The interpreter that runs it (this one).",
    )
    parser.add_argument(
        "--seconds",
        metavar="X",
        type=float,
        help="How long to measure each thing, in each round (3).",
    )
    parser.add_argument(
        "--nanogpt",
        metavar="PATH",
        help="With --engines, also measure nanoGPT, in a directory with its model.py.",
    )
    flags = {
        "--gpt2": "Also measure a model of GPT-2's smallest shape, which takes half a "
        "gigabyte of disk and of memory, and a minute or two.",
        "--engines": "Also measure the engines of examples/engines/, if installed.",
        "--quick": "Measure badly, in a few seconds.",
    }
    for name, sentence in flags.items():
        parser.add_argument(name, action="store_true", help=sentence)
    return run_command("benchmark", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
