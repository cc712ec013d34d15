"""Step 5, Value. How does one get all slopes at once?

A loss is computed from the weights in small steps, +, *, exp and log, and the slope of each is
known from school. A `Value` is a number that remembers which numbers it was computed from, and
with which slopes. `backward` walks from the loss back to the weights, multiplies the slopes
along every way and adds up the ways: the chain rule. So one walk there and one back give the
slopes of any number of weights, the same as nudging gives, as far as nudging is exact. (Source:
Linnainmaa 1970; Rumelhart, Hinton and Williams 1986, "Learning representations by
back-propagating errors".)

    python examples/ladder/05_value.py          # at once

In microgpt.py: chapter "Value", where it is made. Before: 04_nudging.py.
"""

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))    # where microgpt.py is

from microgpt import CharTokenizer, Value, load_documents, log, softmax, split_documents, windows

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS, RATE, NUDGE = 100, 10.0, 1e-5


def loss_of(weights, shares):
    """As in step 4. The weights may be floats or Values: it is the same arithmetic."""
    return sum(-log(p) * share for p, share in zip(softmax(weights), shares))


def gradient_by_nudging(weights, shares):
    slopes = []
    for i, weight in enumerate(weights):
        up, down = ([*weights[:i], weight + nudge, *weights[i + 1:]] for nudge in (NUDGE, -NUDGE))
        slopes.append((loss_of(up, shares) - loss_of(down, shares)) / (2 * NUDGE))
    return slopes


def gradient_by_backward(weights, shares):
    values = [Value(weight) for weight in weights]
    loss_of(values, shares).backward()
    return [value.grad for value in values]


def shares_of(names, tokenizer):
    tokens = [token for name in names for token in windows(name, tokenizer, 16)[0][1:]]
    counts = Counter(tokens)
    return [counts[i] / len(tokens) for i in range(tokenizer.vocab_size)]


def main():
    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    shares, held_out = shares_of(names, tokenizer), shares_of(held_out[:500], tokenizer)

    weights = [0.0] * tokenizer.vocab_size
    started = time.perf_counter()
    nudged = gradient_by_nudging(weights, shares)
    between = time.perf_counter()
    backward = gradient_by_backward(weights, shares)
    ended = time.perf_counter()
    print("token   by nudging  by backward")
    for i in tokenizer.encode("aeiouqz"):
        print(f"{tokenizer.decode([i]):5} {nudged[i]:12.8f} {backward[i]:12.8f}")
    difference = max(abs(slope - other) for slope, other in zip(nudged, backward))
    print(f"Largest difference of all {len(weights)}: {difference:.0e}. Time: "
          f"{1000 * (between - started):.1f} ms, {1000 * (ended - between):.1f} ms.")

    for _ in range(STEPS):
        slopes = gradient_by_backward(weights, shares)
        weights = [weight - RATE * slope for weight, slope in zip(weights, slopes)]
    print(f"value: {len(weights)} parameters, held-out loss {loss_of(weights, held_out):.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - Spoil a slope: in microgpt.py, let `exp` have the slope 1.0 instead of e. Does the table show
#   it? (No! All weights are 0 here, and e^0 is 1. Start from weights of 0.1 * i, and it shows in
#   all.)
# - The way back through 729 weights, as in step 6: how many times longer than nudging? (It is
#   nearly a hundred times quicker, as nudging takes 1,458 losses; and with more weights ever
#   more so.)
