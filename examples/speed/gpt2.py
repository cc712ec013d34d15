"""A model of GPT-2's smallest shape: its time to load and to write, and its memory.

Any parameters take the same time and room as GPT-2's own. So random ones are written to
a temporary directory, as GPT-2's files are: half a gigabyte, for a minute or two.
"""

import json
import os
import random
import sys
import tempfile

from _common import waiting
from rounds import row, watch

import microgpt
from microgpt import Config, parameter_count

SMALL = Config(50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
TINY = Config(257, block_size=32, n_layer=2, n_head=2, n_embd=8)

# In a Python of its own, so that the memory is the model's. A prompt of 8 tokens is
# read before the first new token, so only the 8 after it are timed.
RUN = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import microgpt
times = [time.perf_counter()]
model = microgpt.load_model(sys.argv[2])
times.append(time.perf_counter())
likeliest = microgpt.Sampling(temperature=0)
for _ in microgpt.stream(model, list(range(8)), likeliest, end=-1, max_tokens=9):
    times.append(time.perf_counter())
print(json.dumps(times))
"""


def write_model(directory, config):
    """Write a random model, in little memory: many rows of a weight are the same."""
    rng = random.Random(0)
    params = {}
    for name, (height, *width) in microgpt.parameter_shapes(config).items():
        if width:
            some = [[rng.gauss(0, 0.02) for _ in range(*width)] for _ in range(50)]
            params[name] = rng.choices(some, k=height)
        else:
            params[name] = [float(name.endswith("weight"))] * height
    microgpt.save_model(microgpt.GPT(config, params), directory)


def run(config):
    """Write, load and run a model -> seconds to load, seconds a token, memory in MB."""
    here = os.path.dirname(os.path.abspath(microgpt.__file__))
    with tempfile.TemporaryDirectory() as directory:
        with waiting("GPT-2 small: writing a random one"):
            write_model(directory, config)
        command = [sys.executable, "-c", RUN, here, directory]
        _, peak, output = watch("GPT-2 small", command)
    started, loaded, first, *others = json.loads(output)
    return loaded - started, (others[-1] - first) / len(others), peak


def gpt2(plan):
    """Rows on a model of GPT-2's smallest shape."""
    config = TINY if plan.quick else SMALL
    load, token, peak = run(config)
    row("GPT-2 small, load", load, "s", f"{parameter_count(config):,} parameters")
    row("GPT-2 small, one token", token, "s")
    row("GPT-2 small, peak memory", peak or "not available", "MB")
