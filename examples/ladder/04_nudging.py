"""Step 4, nudging. How can a machine find good weights by itself?

Nudge one weight a little up and a little down, and see how much the loss changes. The
change, divided by the nudge, is the slope of the loss along this weight. All slopes
together are the gradient. Now move every weight a step against its slope, and repeat.
This is gradient descent. It needs nothing but a loss. But each step needs two losses
for every weight.

    python examples/ladder/04_nudging.py        # less than a second

In microgpt.py: chapter "Value", where `slope` nudges in the same way. Before:
03_loss.py.
"""

import math
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, read_documents, softmax, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS = 100
RATE = 10.0
NUDGE = 1e-5


def loss_of(weights, shares):
    """The mean -log p of a text in which each token has this share.

    This model ignores what came before, so the shares say all that it needs to know
    about a text.
    """
    return sum(-math.log(p) * share for p, share in zip(softmax(weights), shares))


def nudged(weights, i, nudge):
    """The same weights, with number i nudged."""
    changed = list(weights)
    changed[i] += nudge
    return changed


def gradient_by_nudging(weights, shares):
    """The slope of the loss along each weight."""
    slopes = []
    for i in range(len(weights)):
        up = loss_of(nudged(weights, i, NUDGE), shares)
        down = loss_of(nudged(weights, i, -NUDGE), shares)
        slopes.append((up - down) / (2 * NUDGE))
    return slopes


def shares_of(names, tokenizer):
    """The share of each token in these names, including the ends."""
    counts = Counter()
    for name in names:
        counts.update(tokenizer.encode(name) + [tokenizer.end])
    total = sum(counts.values())
    return [counts[i] / total for i in range(tokenizer.vocab_size)]


def main():
    names = read_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    shares = shares_of(names, tokenizer)

    weights = [0.0] * tokenizer.vocab_size  # the die
    a, q = tokenizer.encode("aq")
    print("step   loss    slope a  weight a    slope q  weight q")
    for step in range(STEPS + 1):
        slopes = gradient_by_nudging(weights, shares)
        if step in (0, 1, 2, 5, 10, 50, STEPS):
            loss = loss_of(weights, shares)
            of_a = f"{slopes[a]:8.4f}  {weights[a]:8.3f}"
            of_q = f"{slopes[q]:8.4f}  {weights[q]:8.3f}"
            print(f"{step:4}  {loss:.3f}   {of_a}   {of_q}")
        if step < STEPS:
            weights = [weight - RATE * slope for weight, slope in zip(weights, slopes)]

    p = softmax(weights)
    print(
        "The machine saw only the loss. Yet a now has the right probability,\n"
        f"{p[a]:.1%}: its share of the tokens in the names is {shares[a]:.1%}.\n"
        f"The {STEPS} steps took {2 * len(weights) * STEPS:,} losses. GPT-2 has 124 "
        "million weights:\na single step would take 248 million losses."
    )
    loss = loss_of(weights, shares_of(held_out[:500], tokenizer))
    print(f"nudging: {len(weights)} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - What is the slope of a at the start? (p - share: the probability that the die gives
#   it, minus its share of the tokens. This holds for every token. A weight rises while
#   p is too small, and stops when p is right. So no 27 weights are better than the
#   frequencies: loss 2.91.)
# - RATE = 1: (It takes the same path, ten times more slowly.) RATE = 100: (It jumps
#   across the valley and lands higher on the other side. The loss swings and does not
#   settle.)
# - NUDGE = 1e-13: (A computer keeps 16 digits, and the change affects only the last of
#   them. So slopes are multiples of 0.002. Near the bottom they are noise, or 0.)
