"""Step 5, Value. How can we get all slopes at once?

A loss is computed from the weights in small operations: +, *, exp and log. We know the
slope of each operation. A `Value` is a number that remembers which numbers it was
computed from, and with which slopes. Its `backward` walks from the loss back to the
weights.

Take b = a + a, c = b + b, d = b + c. How fast does d grow with a? Multiply the slopes
along each path, and add up the paths. Three paths of slope 1 lead from d to b: one
directly, and two through c. Two lead from b to a. So the slope is 3 * 2 = 6. But b must
not pass on its slope to a before c has passed on its own to b, or a gets 2. So
`backward` visits a number only after all numbers that were computed from it. This is
called a topological order.

One pass forward and one pass backward give the slopes of all weights, however many
there are. They are as exact as those from nudging, and take much less time. (Source:
Linnainmaa 1970; Rumelhart, Hinton and Williams 1986, "Learning representations by
back-propagating errors".)

    python examples/ladder/05_value.py          # 2 seconds

In microgpt.py: chapter "Value", which builds it. Before: 04_nudging.py.
"""

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, Value, log, read_documents, softmax, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS = 100
RATE = 10.0
NUDGE = 1e-5


def loss_of(weights, shares):
    """As in step 4. The weights may be floats or Values: the formula is the same."""
    return sum(-log(p) * share for p, share in zip(softmax(weights), shares))


def gradient_by_backward(weights, shares):
    """The slope of the loss along each weight, with Values."""
    values = [Value(weight) for weight in weights]
    loss_of(values, shares).backward()
    return [value.grad for value in values]


def gradient_by_nudging(weights, shares):
    """The same slopes, as in step 4."""
    slopes = []
    for i in range(len(weights)):
        up = loss_of(nudged(weights, i, NUDGE), shares)
        down = loss_of(nudged(weights, i, -NUDGE), shares)
        slopes.append((up - down) / (2 * NUDGE))
    return slopes


def nudged(weights, i, nudge):
    """The same weights, with number i nudged."""
    changed = list(weights)
    changed[i] += nudge
    return changed


def shares_of(names, tokenizer):
    """The share of each token in these names, including the ends."""
    counts = Counter()
    for name in names:
        counts.update(tokenizer.encode(name) + [tokenizer.end])
    total = sum(counts.values())
    return [counts[i] / total for i in range(tokenizer.vocab_size)]


def milliseconds(function, *args):
    started = time.perf_counter()
    function(*args)
    return 1000 * (time.perf_counter() - started)


def compare(weights, shares, tokenizer):
    """Do both ways give the same slopes, and how long do they take?"""
    up_down = gradient_by_nudging(weights, shares)
    backward = gradient_by_backward(weights, shares)
    print("token   by nudging  by backward")
    for i in tokenizer.encode("aeiouqz"):
        print(f"{tokenizer.decode([i]):5} {up_down[i]:12.8f} {backward[i]:12.8f}")
    difference = max(abs(x - y) for x, y in zip(up_down, backward))
    print(f"Largest difference among all {len(weights)} weights: {difference:.0e}")
    for n in (len(weights), 729):  # step 6 has a table of 729 weights
        weights = [0.0] * n
        shares = [1 / n] * n
        slow = milliseconds(gradient_by_nudging, weights, shares)
        fast = milliseconds(gradient_by_backward, weights, shares)
        print(
            f"Time for {n:3} weights: nudging {slow:6.1f} ms, backward {fast:4.1f} ms"
        )


def main():
    a = Value(3.0)
    b = a + a
    c = b + b
    d = b + c
    d.backward()
    print("b = a + a, c = b + b, d = b + c:")
    print(f"the slope of d along a is {a.grad}, along b {b.grad}.")

    names = read_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    shares = shares_of(names, tokenizer)
    weights = [0.0] * tokenizer.vocab_size
    compare(weights, shares, tokenizer)

    for _ in range(STEPS):
        slopes = gradient_by_backward(weights, shares)
        weights = [weight - RATE * slope for weight, slope in zip(weights, slopes)]
    loss = loss_of(weights, shares_of(held_out[:500], tokenizer))
    print(f"value: {len(weights)} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - Break a slope: in microgpt.py, let `exp` return Value(y, (x,), (1.0,)). Does the
#   table show it? (No! All weights are 0 here, and e^0 is 1. Start from weights of 0.1
#   * i: now every row shows it.)
# - Write d = b * c instead of b + c. What is the slope of d along a, at 3? (48: d is 2a
#   * 4a = 8a^2, so its slope is 16a.)
# - Below how many weights is nudging quicker? (Below about five. Nudging takes two
#   losses for each weight. One pass forward and one pass backward take as long as about
#   ten losses.)
