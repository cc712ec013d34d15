"""Steps of the engines of examples/engines/ and, to compare, of nanoGPT.

All of them train, with clipping, on the same windows: those of the documents, one or 32
a step; 128 random tokens, 8 a step (1 for the tensor engine, whose time grows with the
number of windows), with width 128 and 4 layers; and, with --gpt2, 1,024 random tokens
with GPT-2's smallest shape. They compute in float32, except that NumPy is also measured
in float64. nanoGPT gets its windows filled up to the longest, as it requires.
"""

import contextlib
import importlib.util
import io
import os
import random
import sys
from functools import partial
from itertools import count

from gpt2 import SMALL, TINY
from rounds import row, rows, steps_in_rounds

import microgpt


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
    filled = [window + [-1] * (longest - len(window)) for window in windows]
    starts = count(0, batch_size)

    def step():
        start = next(starts)
        chosen = [filled[(start + i) % len(filled)] for i in range(batch_size)]
        batch = torch.tensor(chosen, device=device())
        tokens = batch[:, :-1].clamp(min=0)
        _, loss = model(tokens, batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def random_windows(config):
    """16 windows of the full length, of random tokens."""
    rng = random.Random(0)
    length = config.block_size + 1
    return [
        [rng.randrange(config.vocab_size) for _ in range(length)] for _ in range(16)
    ]


def compare_job(title, config, windows, sizes, engines, nanogpt, plan):
    """Rows on steps of engines in turns, for one job.

    `sizes` says how many windows each engine that takes part reads at once, {name: n}.
    """
    steps = {}
    for name, size in sizes.items():
        if name == "nanoGPT":
            steps[name] = nanogpt_step(nanogpt, config, windows, size)
        else:
            steps[name] = engine_step(engines[name](), config, windows, size)
    times = steps_in_rounds(title, steps, plan)
    for name, size in sizes.items():
        times[name] = [seconds / size for seconds in times[name]]
    rows(title, times, "ms/document", 1000, to="nanoGPT" if nanogpt else "tensor")


def compare_engines(engines, documents, tokenizer, plan, nanogpt, with_gpt2):
    """Rows on all engines but the value engine, for all jobs."""
    small = microgpt.Config(tokenizer.vocab_size)
    wide = microgpt.Config(65, block_size=128, n_layer=4, n_head=4, n_embd=128)
    large = SMALL
    if plan.quick:
        wide = large = TINY
    windows = []
    for document in documents:
        windows += microgpt.cut_windows(document, tokenizer, small.block_size)
    names = [name for name in engines if name != "value"]
    if nanogpt:
        names.append("nanoGPT")
    compare = partial(compare_job, engines=engines, nanogpt=nanogpt, plan=plan)
    compare("batch of 1", small, windows, dict.fromkeys(names, 1))
    compare("batch of 32", small, windows, dict.fromkeys(names, 32))
    sizes = {**dict.fromkeys(names, 8), "tensor": 1}
    compare("width 128", wide, random_windows(wide), sizes)
    if with_gpt2:
        sizes = {name: 1 for name in names if name in ("PyTorch", "nanoGPT")}
        compare("GPT-2 small", large, random_windows(large), sizes)
