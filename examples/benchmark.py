"""How fast and how small is microgpt? Anyone can run it, under any interpreter:

    python examples/benchmark.py
    pypy3 examples/benchmark.py poems.txt
    python examples/benchmark.py names.txt --baseline reference.py
    python examples/benchmark.py --gpt2
    python examples/benchmark.py --engines --nanogpt path/to/nanoGPT

The job is the usual one for a first GPT: 1 layer, width 16, 4 heads, a block of 16 tokens. Measured
are, in the order of the table:

default run       `python microgpt.py FILE` as a child process: its time from start to end, the peak
                  of its resident memory, the held-out loss that it prints.
import            how much longer `python -c "import microgpt"` takes than `python -c pass`, in
                  turns; the median of the differences.
one document      milliseconds for a step of one document: forward, backward, AdamW; no clipping,
                  no decay. Documents are cut to a block. A warm-up is not counted: a second, or
                  five where Python compiles while it runs, as PyPy does. The mean is over all
                  steps; the least is the time of some very short document.
batch of 32       documents a second, with 1 worker and with 2, in turns.
generation        tokens a second, with the key-value cache; a name's end counts as a token.
matmul            nanoseconds for a multiplication and an addition, in [64, w] times [w, w]: the
                  best of many.
BPE               seconds for byte-pair encoding: to train to 2,000 tokens on a megabyte of text, a
                  document a line, and to encode it, with nothing remembered from before.
                  The text is the beginning of the standard library's source, so it is the same for
                  everyone with the same Python. The mean of three rounds, without a warm-up.
GPT-2 small       only with --gpt2: a model of GPT-2's smallest shape, 124 million parameters, in a
                  child process: the seconds to load it, to read a prompt of 8 tokens (up to the
                  first new one) and for each of 8 more tokens, the likeliest ones; the peak of the
                  child's resident memory, which is not available on Windows.

engines           only with --engines: steps of the engines of examples/engines/, if NumPy and
                  PyTorch are installed, in turns with the tensor engine of microgpt.py: on the
                  job above, with 1 document a step and with 32; on windows of 128 random tokens,
                  8 a step (1 for the tensor engine), with width 128 and 4 layers; and with --gpt2
                  on one window of 1,024 with GPT-2's smallest shape, by PyTorch alone. With
                  clipping; in float32, but for NumPy, which is measured in float64 too. The mean
                  of three rounds. With --nanogpt the model.py of that directory (Andrej Karpathy's
                  nanoGPT) takes its turns: forward, backward, clipping and its AdamW, on the same
                  windows, filled up to the longest of all as it cannot do otherwise.

Another script can be the baseline. It reads documents from input.txt in its working directory,
prints a line `step N / M | loss X` for each step of one document and, after its steps, 20 lines
`sample N: TEXT`. It runs as a child in a folder of its own, where input.txt has the documents of
FILE, in another order each round. The time of a step is that from one line to the next, after a
warm-up as above; after enough steps the script is stopped. The baseline and the engines take turns,
three rounds of them, so that all see the machine in the same minutes. `times as fast` divides the
baseline's mean by ours; the range is that of the single rounds. For generation a copy of the script
runs with `num_steps = 3`, if it has a line that says num_steps, and its 20 samples are timed; it is
compared with generation by a model that has been trained for 3 steps too. These are too few to warm
a compiler up, so where this runs under PyPy, run the baseline under CPython, the interpreter that
most would use for it: --baseline-python python.

BPE is compared with the tokenizers library, which is written in Rust, if it is installed. The two
do the same job in turns, in the three rounds; the library in its usual way, which is on several
processors. `times its time` divides our mean by the library's; the range is that of the single
rounds. `equal to the library`: are the vocabularies, the merges and the ids of the text the same?

GPT-2's own parameters are not needed to measure it, as any take the same time and room. So --gpt2
writes random ones, as files like GPT-2's own with 4 bytes a number, to a temporary directory: half
a gigabyte of disk, for a minute or two. With --quick as well, the model is a tiny one.

What to expect? On a laptop with CPython some milliseconds a document with the tensor engine, some
ten with the value engine; with PyPy far less, once it is warm; with 2 workers up to twice as many
documents a second, if there are 2 free processors. BPE takes a second or two to train and as long
to encode, some three or four times the library's time. GPT-2 writes a token in some seconds, with
PyPy in one or two, and needs little more memory than the 500 MB that its numbers fill. Machines are
noisy, and no two are alike: a second run may well differ by a tenth or more. So it is the ratios,
measured in turns, that count.
"""

import argparse
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
from contextlib import closing
from functools import partial

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import microgpt  # noqa: E402

ROUNDS = 3
FIRST_STEPS = 3  # before a baseline's samples are timed
WARM = 1.0 if platform.python_implementation() == "CPython" else 5.0  # seconds
STEP = re.compile(r"step +\d+ */ *\d+ *\| *loss")
SAMPLE = re.compile(r"sample +\d+: ?(.*)")
NUM_STEPS = re.compile(r"^num_steps *= *[\d_]+", re.MULTILINE)
BLOCK = microgpt.Config(1).block_size
GPT2_SMALL = microgpt.Config(50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
TINY = microgpt.Config(257, block_size=32, n_layer=2, n_head=2, n_embd=8)
PROMPT, MORE = 8, 8  # tokens that GPT-2 reads, and that it writes after the first


# --- The table -----------------------------------------------------------------------------------


def row(label, value, unit="", note=""):
    """Print a line of the table, the value with three digits or as it is."""
    if isinstance(value, float):
        digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2
        value = f"{value:,.{digits}f}"
    print(f"{label:34} {value:>13} {unit:14} {note}".rstrip(), flush=True)


def ratio_row(label, ratios, ratio, unit="times as fast"):
    """Print a ratio and the range of the ratios of the rounds."""
    row(label, ratio, unit, f"{min(ratios):.3g} to {max(ratios):.3g}")


# --- Child processes -----------------------------------------------------------------------------


def default_run(path, quick):
    """Rows on the whole default command, as a child; it must be this process's first child."""
    command = [sys.executable, os.path.join(ROOT, "microgpt.py"), path]
    command += ["--steps", "5", "--samples", "2"] if quick else []
    started = time.perf_counter()
    child = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace"
    )
    wall = time.perf_counter() - started
    if child.returncode:
        raise ValueError("the default run failed: " + child.stderr.strip())
    row("default run, time", wall, "s", "5 steps only" * quick)
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
        row("default run, peak memory", peak / 1e6, "MB")
    except ImportError:
        row("default run, peak memory", "not available")
    held_out = re.search(r"^ +([\d.]+) held out, ", child.stdout, re.MULTILINE)
    row(
        "default run, held-out loss",
        held_out.group(1) if held_out else "not available",
        "nats a token" if held_out else "",
    )


def import_time(pairs):
    """A row on the milliseconds that `import microgpt` adds to the interpreter's start."""
    env = {
        name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }

    def start(code):
        """The milliseconds of a child that runs the code."""
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
        return 1000 * (time.perf_counter() - started)

    start("import microgpt")  # writes the .pyc
    more = [start("import microgpt") - start("pass") for _ in range(pairs)]
    row("import microgpt", statistics.median(more), "ms")


def lines_of(python, script, documents):
    """Run a script in a folder with the documents as input.txt: yields (time, line), live."""
    with tempfile.TemporaryDirectory() as folder:
        with open(
            os.path.join(folder, "input.txt"), "w", encoding="utf-8", newline="\n"
        ) as file:
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
        """Find the interpreter, since the script will run in another folder."""
        found = shutil.which(python)
        if not found:
            raise ValueError(f"there is no interpreter {python}")
        self.python, self.script = os.path.abspath(found), os.path.abspath(script)
        self.path, self.rng = path, random.Random(0)
        with open(script, encoding="utf-8") as file:
            self.source = file.read()

    def lines(self, script):
        """What a script prints, given the documents in a new order."""
        documents = microgpt.load_documents(self.path)
        self.rng.shuffle(documents)
        return closing(lines_of(self.python, script, documents))

    def training(self, seconds, warm):
        """The times of its steps, for so many seconds after a warm-up."""
        stamps = []
        with self.lines(self.script) as lines:
            for now, line in lines:
                if STEP.match(line):
                    stamps.append(now)
                    if now - stamps[0] > warm + seconds:
                        break
        if len(stamps) < 2:
            raise ValueError(
                f"{self.script} prints no lines like: step 1 / 1000 | loss 3.3"
            )
        times = [(b - a, a - stamps[0] >= warm) for a, b in zip(stamps, stamps[1:])]
        return [t for t, is_warm in times if is_warm] or [t for t, _ in times]

    def generation(self):
        """(tokens, seconds) of its samples after a few steps, or None if that cannot be had."""
        source, found = NUM_STEPS.subn(f"num_steps = {FIRST_STEPS}", self.source)
        if not found:
            return None
        tokens, started, ended = 0, None, None
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


# --- microgpt ------------------------------------------------------------------------------------


def stretch(advance, seconds):
    """Call a function again and again for so many seconds: how long did each call take?"""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        advance()
        times.append(time.perf_counter() - started)
    return times


def new_trainer(documents, tokenizer, kind=microgpt.Trainer, **options):
    """A Trainer of a new model for the job, that will not come to its end."""
    model = microgpt.GPT(microgpt.Config(tokenizer.vocab_size))
    config = microgpt.TrainConfig(steps=10**9, clip=0.0, val_fraction=0.0, **options)
    return kind(model, tokenizer, documents, config)


def training(documents, tokenizer, seconds, warm, baseline, kinds):
    """Rows on steps of one document; returns the model that has been trained for longest. Besides
    microgpt's engines, `kinds` of Trainer take their turns."""
    trainers = {
        engine: new_trainer(documents, tokenizer, batch_size=1, engine=engine)
        for engine in ("tensor", "value")
    }
    trainers.update(
        (name, new_trainer(documents, tokenizer, kind, batch_size=1))
        for name, kind in kinds.items()
        if name != "tensor"
    )
    for trainer in trainers.values():
        stretch(trainer.__next__, warm)
    rounds = []
    for _ in range(ROUNDS):
        times = {"baseline": baseline.training(seconds, warm)} if baseline else {}
        for engine, trainer in trainers.items():
            times[engine] = stretch(trainer.__next__, seconds)
        rounds.append(times)
    means = {}
    for name in [*trainers] + ["baseline"] * bool(baseline):
        times = [1000 * t for each in rounds for t in each[name]]
        means[name] = statistics.mean(times)
        label = name + " engine" * (name in microgpt.ENGINES)
        row(f"one document, {label}, mean", means[name], "ms", f"{len(times):,} steps")
        row(f"one document, {label}, least", min(times), "ms")
    for engine in trainers if baseline else ():
        ratio_row(
            f"{engine} engine to baseline",
            [
                statistics.mean(times["baseline"]) / statistics.mean(times[engine])
                for times in rounds
            ],
            means["baseline"] / means[engine],
        )
    return trainers["tensor"].model


def workers(documents, tokenizer, seconds, warm):
    """Rows on batches of 32 documents with 1 and with 2 processes."""
    trainers = [
        new_trainer(documents, tokenizer, batch_size=32, workers=n) for n in (1, 2)
    ]
    times, ratios = ([], []), []
    try:
        for trainer in trainers:
            stretch(trainer.__next__, warm)
        for _ in range(ROUNDS):
            pair = [stretch(trainer.__next__, seconds) for trainer in trainers]
            ratios.append(statistics.mean(pair[0]) / statistics.mean(pair[1]))
            for all_times, new_times in zip(times, pair):
                all_times += new_times
    finally:
        if trainers[1].executor:
            trainers[1].executor.shutdown()
    one, two = map(statistics.mean, times)
    row("batch of 32, 1 worker", 32 / one, "documents/s")
    row(
        "batch of 32, 2 workers",
        32 / two,
        "documents/s",
        f"{os.cpu_count()} processors",
    )
    ratio_row("2 workers to 1", ratios, one / two)


def generation(model, tokenizer, seconds):
    """(tokens, seconds) of writing names with a model, at most a block each."""
    tokens, rng = 0, random.Random(0)

    def name():
        """Write a name and count it."""
        nonlocal tokens
        written = list(microgpt.stream(model, [tokenizer.end], BLOCK, seed=rng))
        tokens += min(len(written) + 1, BLOCK)

    times = stretch(name, seconds)
    return tokens, sum(times)


def writing(model, documents, tokenizer, seconds, warm, baseline):
    """Rows on generation."""
    generation(model, tokenizer, warm)
    tokens, spent = generation(model, tokenizer, seconds)
    row("generation", tokens / spent, "tokens/s", f"{tokens:,} tokens")
    if not baseline:
        return
    trainer = new_trainer(documents, tokenizer, batch_size=1)
    for _ in range(FIRST_STEPS):
        next(trainer)
    totals, ratios = [0, 0, 0, 0], []
    for _ in range(ROUNDS):
        theirs = baseline.generation()
        if not theirs:
            row("generation, baseline", "not measured")
            row("generation to baseline", "not measured")
            return
        ours = generation(trainer.model, tokenizer, seconds)
        totals = [a + b for a, b in zip(totals, theirs + ours)]
        ratios.append(ours[0] / ours[1] / (theirs[0] / theirs[1]))
    speed = totals[0] / totals[1]
    row("generation, baseline", speed, "tokens/s", f"{totals[0]:,} tokens")
    ratio_row("generation to baseline", ratios, totals[2] / totals[3] / speed)


def multiplying(seconds):
    """Rows on microgpt.matmul at three widths."""
    rng = random.Random(0)
    for width in 16, 64, 128:
        A, B = (
            [[rng.gauss(0, 1) for _ in range(width)] for _ in range(n)]
            for n in (64, width)
        )
        best = min(stretch(partial(microgpt.matmul, A, B), seconds))
        row(
            f"matmul, width {width}",
            1e9 * best / (64 * width * width),
            "ns/multiply-add",
        )


# --- BPE -----------------------------------------------------------------------------------------


def source_lines(size):
    """So many characters of the standard library's source, a document a line."""
    folder, text = sysconfig.get_paths()["stdlib"], ""
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
    tokenizer.add_special_tokens(
        [microgpt.END]
    )  # as the last one; the trainer's are first
    trained = time.perf_counter()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(documents)]
    ended = time.perf_counter()
    merges = json.loads(tokenizer.to_str())["model"][
        "merges"
    ]  # older: with a space between
    merges = [
        tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges
    ]
    return trained - started, ended - trained, (tokenizer.get_vocab(), merges, ids)


def bpe(documents, size):
    """Rows on byte-pair encoding."""
    try:
        import tokenizers
    except ImportError:
        tokenizers = None
    ours, theirs, equal = [], [], True
    for _ in range(ROUNDS):
        *seconds, result = our_bpe(documents, size)
        ours.append(seconds)
        if tokenizers:
            *seconds, expected = library_bpe(tokenizers, documents, size)
            theirs.append(seconds)
            equal = equal and result == expected
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    notes = f"{size:,} tokens", f"{megabytes:.2f} MB of text"
    for i, (name, note) in enumerate(zip(("training", "encoding"), notes)):
        mean = statistics.mean(times[i] for times in ours)
        row(f"BPE {name}", mean, "s", note)
        if tokenizers:
            library = statistics.mean(times[i] for times in theirs)
            row(
                f"BPE {name}, library",
                library,
                "s",
                f"version {tokenizers.__version__}",
            )
            ratio_row(
                f"BPE {name} to library",
                [a[i] / b[i] for a, b in zip(ours, theirs)],
                mean / library,
                "times its time",
            )
    if tokenizers:
        row("BPE, equal to the library", "yes" if equal else "no")
    else:
        row("BPE, library", "tokenizers not installed")


# --- GPT-2 ---------------------------------------------------------------------------------------

# A Python of its own loads and runs the model, so that the memory is the model's. (Linux counts the
# memory of the process that starts another in the peak of the other, but this one has less.)
RUN_GPT2 = """
import json, sys, time
import microgpt
directory, prompt, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
times = [time.perf_counter()]
model = microgpt.GPT.load(directory)
times.append(time.perf_counter())
for _ in microgpt.stream(model, list(range(prompt)), 1 + more, temperature=0, end=-1):
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
    """Write a random model as GPT-2's files are, in little memory: gains 1, biases 0, weights with
    a deviation of 0.02. A row is a piece, from some place on, of one long row of random numbers."""
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(
            {
                "model_type": "gpt2",
                "vocab_size": config.vocab_size,
                "n_positions": config.block_size,
                "n_layer": config.n_layer,
                "n_head": config.n_head,
                "n_embd": config.n_embd,
            },
            file,
        )
    rng, longest = random.Random(0), 4 * config.n_embd
    noise = struct.pack(
        f"<{16 * longest}f", *(rng.gauss(0, 0.02) for _ in range(16 * longest))
    )
    header, stop = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in microgpt.parameter_shapes(config).items():
        start, stop = stop, stop + 4 * math.prod(shape)
        shape = shape[::-1] if ".c_" in name else shape  # in the file: [n_in, n_out]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    with open(os.path.join(directory, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in list(header.items())[1:]:
            *height, width = entry["shape"]
            if height:
                for _ in range(height[0]):
                    start = 4 * rng.randrange(15 * longest)
                    file.write(noise[start : start + 4 * width])
            else:
                file.write(struct.pack("<f", name.endswith("weight")) * width)


def gpt2(config):
    """Rows on a model of a GPT-2's shape."""
    with tempfile.TemporaryDirectory() as directory:
        write_gpt2(directory, config)
        child = subprocess.run(
            [sys.executable, "-c", RUN_GPT2, directory, str(PROMPT), str(MORE)],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    if child.returncode:
        raise ValueError("GPT-2 failed: " + child.stderr.strip())
    (started, loaded, first, *others), peak = json.loads(child.stdout)
    row(
        "GPT-2 small, load",
        loaded - started,
        "s",
        f"{microgpt.parameter_count(config):,} parameters",
    )
    row(f"GPT-2 small, prompt of {PROMPT}", first - loaded, "s")
    row("GPT-2 small, per token", (others[-1] - first) / MORE, "s", f"{MORE} tokens")
    if peak is None:
        row("GPT-2 small, peak memory", "not available")
    else:
        row("GPT-2 small, peak memory", peak / 1e6, "MB")


# --- Engines -------------------------------------------------------------------------------------


def installed_engines():
    """{name: kind of Trainer}: microgpt's own, and those whose libraries are installed."""
    sys.path.insert(0, os.path.join(ROOT, "examples", "engines"))
    kinds = {"tensor": microgpt.Trainer}
    with contextlib.suppress(ImportError):
        import numpy_engine

        kinds["NumPy"] = numpy_engine.NumpyTrainer
        kinds["NumPy32"] = type("Float32", (kinds["NumPy"],), {"dtype": "float32"})
    with contextlib.suppress(ImportError):
        import torch
        import train_torch

        microgpt.GPT.initial_params = train_torch.initial_params
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kinds["PyTorch"] = type(
            "OnDevice", (train_torch.TorchTrainer,), {"device": device}
        )
    for name in {"NumPy", "PyTorch"} - kinds.keys():
        row(f"{name} engine", "not installed")
    return kinds


def engine_step(kind, config, windows, batch_size):
    """A function that makes a step of so many windows, the next of all."""
    trainer = kind(
        microgpt.GPT(config),
        microgpt.CharTokenizer(["ab"]),
        ["ab"] * batch_size,
        microgpt.TrainConfig(10**9, batch_size, val_fraction=0.0),
    )
    trainer.windows = windows
    return trainer.__next__


def nanogpt_step(path, config, windows, batch_size):
    """The same for the model.py of nanoGPT, trained as its train.py does."""
    import torch

    spec = importlib.util.spec_from_file_location(
        "nanogpt", os.path.join(path, "model.py")
    )
    nanogpt = sys.modules["nanogpt"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.redirect_stdout(io.StringIO()):
        model = nanogpt.GPT(
            nanogpt.GPTConfig(**vars(config), dropout=0.0, bias=True)
        ).to(device)
        optimizer = model.configure_optimizers(0.0, 1e-3, (0.9, 0.95), device)
    longest = max(map(len, windows))
    rows = torch.tensor([window + [-1] * (longest - len(window)) for window in windows])
    starts = iter(range(0, 10**12, batch_size))

    def step():
        start = next(starts)
        batch = rows[[i % len(rows) for i in range(start, start + batch_size)]].to(
            device
        )
        loss = model(batch[:, :-1].clamp(min=0), batch[:, 1:].contiguous())[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def engine_jobs(names, vocab_size, gpt2, quick):
    """(name, config, windows, batch size) of every job."""
    wide = microgpt.Config(65, block_size=128, n_layer=4, n_head=4, n_embd=128)
    shapes = {"width 128": (wide, 8), "GPT-2 small": (GPT2_SMALL, 1)}
    small = microgpt.Config(vocab_size)
    yield "batch of 1", small, names, 1
    yield "batch of 32", small, names, 32
    for name, (config, batch_size) in list(shapes.items())[: 1 + gpt2]:
        config, rng = TINY if quick else config, random.Random(0)
        windows = [
            [rng.randrange(config.vocab_size) for _ in range(config.block_size + 1)]
            for _ in range(16)
        ]
        yield name, config, windows, batch_size


def engines(kinds, jobs, seconds, warm, nanogpt):
    """Rows on steps of all engines in turns, for several jobs."""
    for job, config, windows, batch_size in jobs:
        sizes, steps = dict.fromkeys(kinds, batch_size), {}
        if config is GPT2_SMALL:
            sizes = {name: 1 for name in kinds if name == "PyTorch"}
        elif config.n_embd > 16:
            sizes["tensor"] = 1  # its time grows with the documents, no less
        for name, size in sizes.items():
            steps[name] = engine_step(kinds[name], config, windows, size)
        if nanogpt:
            sizes["nanoGPT"] = batch_size
            steps["nanoGPT"] = nanogpt_step(nanogpt, config, windows, batch_size)
        for step in steps.values():
            stretch(step, warm)
        rounds = [
            {
                name: statistics.mean(stretch(step, seconds)) / sizes[name]
                for name, step in steps.items()
            }
            for _ in range(ROUNDS)
        ]
        tokens = statistics.mean(len(window) - 1 for window in windows)
        for name in steps:
            each = statistics.mean(times[name] for times in rounds)
            row(
                f"{job}, {name}",
                1000 * each,
                "ms/document",
                f"{tokens / each:,.0f} tokens/s",
            )
        for other, names in (
            ("tensor", steps.keys() - {"nanoGPT"}),
            ("nanoGPT", {"PyTorch"}),
        ):
            for name in [
                name for name in steps if name in names - {other} and other in steps
            ]:
                ratios = [times[other] / times[name] for times in rounds]
                ratio_row(f"{job}, {name} to {other}", ratios, statistics.mean(ratios))


def main(argv=None):
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(
        prog="benchmark",
        description="How fast and how small is microgpt? The top of this script says what is "
        "measured. It takes about two minutes.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="UTF-8 text, a document a line",
        default=os.path.join(ROOT, "data", "names.txt"),
    )
    parser.add_argument(
        "--baseline", metavar="SCRIPT.py", help="another GPT to compare with"
    )
    parser.add_argument(
        "--baseline-python",
        metavar="PYTHON",
        default=sys.executable,
        help="the interpreter that runs it (this one)",
    )
    parser.add_argument(
        "--seconds",
        metavar="X",
        type=float,
        help="how long to measure each thing, three times where in turns (3)",
    )
    parser.add_argument(
        "--gpt2",
        action="store_true",
        help="measure a model of GPT-2's smallest shape too; it takes half a "
        "gigabyte of disk and of memory, and a minute or two",
    )
    parser.add_argument(
        "--engines",
        action="store_true",
        help="measure the engines of examples/engines/ too, which are installed",
    )
    parser.add_argument(
        "--nanogpt",
        metavar="PATH",
        help="with --engines: beside nanoGPT, a directory with its model.py",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure badly, in a few seconds"
    )
    args = parser.parse_args(argv)
    seconds = args.seconds or (0.05 if args.quick else 3.0)
    warm = 0.05 if args.quick else WARM
    try:
        baseline = args.baseline and Baseline(
            args.baseline, args.baseline_python, args.file
        )
        print(
            f"microgpt {microgpt.__version__}, {platform.python_implementation()} "
            f"{platform.python_version()}, {platform.system()} {platform.machine()}\n"
        )
        default_run(
            args.file, args.quick
        )  # first, so that the memory is that of this child
        import_time(3 if args.quick else 21)
        documents = microgpt.load_documents(args.file)
        tokenizer = microgpt.CharTokenizer(documents)
        cut = [document[: BLOCK - 1] for document in documents]
        kinds = installed_engines() if args.engines else {}
        model = training(cut, tokenizer, seconds, warm, baseline, kinds)
        workers(cut, tokenizer, seconds, warm)
        writing(model, cut, tokenizer, seconds, warm, baseline)
        multiplying(seconds / 3)
        bpe(source_lines(20_000 if args.quick else 10**6), 300 if args.quick else 2000)
        if args.gpt2:
            gpt2(TINY if args.quick else GPT2_SMALL)
        if args.engines:
            names = [microgpt.windows(name, tokenizer, BLOCK)[0] for name in cut]
            jobs = engine_jobs(names, tokenizer.vocab_size, args.gpt2, args.quick)
            engines(kinds, jobs, seconds, warm, args.nanogpt)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
