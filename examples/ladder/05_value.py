"""Step 5, Value. How does one get all slopes at once?

A loss is computed from the weights in small steps, +, *, exp and log, and the slope of each is
known from school. A `Value` is a number that remembers which numbers it was computed from, and
with which slopes; `backward` walks from the loss back to the weights. Take b = a + a, c = b + b,
d = b + c: how fast does d grow with a? Slopes are multiplied along a way, and ways are added up.
From d to b lead three ways of slope 1, one directly and two through c, and from b to a two: 6. So
b may hand its slope on only when c has handed on its own, or a gets 2, or too much: parents before
children, which is called a topological order. One walk there and one back give the slopes of any
number of weights, as exactly as nudging does, and far sooner. (Source: Linnainmaa 1970; Rumelhart,
Hinton and Williams 1986, "Learning representations by back-propagating errors".)

    python examples/ladder/05_value.py          # 2 seconds

In microgpt.py: chapter "Value", where it is made. Before: 04_nudging.py.
"""

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, Value, load_documents, log, softmax, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS, RATE, NUDGE = 100, 10.0, 1e-5


def loss_of(weights, shares):
    """As in step 4. The weights may be floats or Values: it is the same arithmetic."""
    return sum(-log(p) * share for p, share in zip(softmax(weights), shares))


def nudged(weights, i, by):
    return [weight + by if j == i else weight for j, weight in enumerate(weights)]


def gradient_by_nudging(weights, shares):
    return [
        (
            loss_of(nudged(weights, i, NUDGE), shares)
            - loss_of(nudged(weights, i, -NUDGE), shares)
        )
        / (2 * NUDGE)
        for i in range(len(weights))
    ]


def gradient_by_backward(weights, shares):
    values = [Value(weight) for weight in weights]
    loss_of(values, shares).backward()
    return [value.grad for value in values]


def shares_of(names, tokenizer):
    """How much of these names each token is, their ends included."""
    counts = Counter(
        token for name in names for token in [*tokenizer.encode(name), tokenizer.end]
    )
    return [counts[i] / sum(counts.values()) for i in range(tokenizer.vocab_size)]


def milliseconds(function, *args):
    started = time.perf_counter()
    function(*args)
    return 1000 * (time.perf_counter() - started)


def main():
    a = Value(3.0)
    b = a + a
    c = b + b
    d = b + c
    d.backward()
    print(
        f"b = a + a, c = b + b, d = b + c: the slope of d by a is {a.grad}, by b {b.grad}."
    )

    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    shares, held_out = shares_of(names, tokenizer), shares_of(held_out[:500], tokenizer)

    weights = [0.0] * tokenizer.vocab_size
    up_down, backward = (
        f(weights, shares) for f in (gradient_by_nudging, gradient_by_backward)
    )
    print("token   by nudging  by backward")
    for i in tokenizer.encode("aeiouqz"):
        print(f"{tokenizer.decode([i]):5} {up_down[i]:12.8f} {backward[i]:12.8f}")
    difference = max(abs(slope - other) for slope, other in zip(up_down, backward))
    print(f"Largest difference of all {len(weights)}: {difference:.0e}")
    for n in len(weights), 729:  # 729 weights has the table of step 6
        args = [0.0] * n, [1 / n] * n
        times = [
            milliseconds(f, *args) for f in (gradient_by_nudging, gradient_by_backward)
        ]
        print(
            f"Time for {n:3} weights: nudging {times[0]:6.1f} ms, backward {times[1]:4.1f} ms"
        )

    for _ in range(STEPS):
        slopes = gradient_by_backward(weights, shares)
        weights = [weight - RATE * slope for weight, slope in zip(weights, slopes)]
    print(
        f"value: {len(weights)} parameters, held-out loss {loss_of(weights, held_out):.3f}"
    )


if __name__ == "__main__":
    main()

# Predict, then run:
# - Spoil a slope: in microgpt.py, let `exp` have the slope 1.0, not e. Does the table show it?
#   (No! All weights are 0 here, and e^0 is 1. Start from weights of 0.1 * i: it shows in all.)
# - d = b * c instead of b + c: what is its slope by a, at 3? (d is 2a * 4a = 8a^2: 16a, 48.)
# - With how many weights is nudging the quicker way? (With hardly any: it needs two losses for
#   each, and one walk there and back takes about as long as ten.)
