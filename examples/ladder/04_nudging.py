"""Step 4, nudging. How can a machine find good weights by itself?

Nudge one weight up and down a little and see whether the loss rises or falls: how much it changes,
for each bit of nudge, is the slope of the loss along this weight. All the slopes together are the
gradient. Then move every weight a step against its slope, and begin again: gradient descent. All
it needs is a loss; but for one step it needs two losses for every weight.

    python examples/ladder/04_nudging.py        # at once

In microgpt.py: chapter "Value", whose `gradcheck` nudges as here. Before: 03_loss.py.
"""

import math
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, load_documents, softmax, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS, RATE, NUDGE = 100, 10.0, 1e-5


def loss_of(weights, shares):
    """The mean -log p of a text in which each token has this share. As the model ignores what came
    before, the shares are all that matters of a text."""
    return sum(-math.log(p) * share for p, share in zip(softmax(weights), shares))


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


def shares_of(names, tokenizer):
    """How much of these names each token is, their ends included."""
    counts = Counter(
        token for name in names for token in [*tokenizer.encode(name), tokenizer.end]
    )
    return [counts[i] / sum(counts.values()) for i in range(tokenizer.vocab_size)]


def main():
    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    shares, held_out = shares_of(names, tokenizer), shares_of(held_out[:500], tokenizer)

    weights = [0.0] * tokenizer.vocab_size  # the die
    print("step   loss    slope a  weight a    slope q  weight q")
    a, q = tokenizer.encode("aq")
    for step in range(STEPS + 1):
        slopes = gradient_by_nudging(weights, shares)
        if step in (0, 1, 2, 5, 10, 50, STEPS):
            print(
                f"{step:4}  {loss_of(weights, shares):.3f}   {slopes[a]:8.4f}  {weights[a]:8.3f}"
                f"   {slopes[q]:8.4f}  {weights[q]:8.3f}"
            )
        if step < STEPS:
            weights = [weight - RATE * slope for weight, slope in zip(weights, slopes)]

    p = softmax(weights)
    print(
        f"It saw nothing but the loss, and yet: a has {p[a]:.1%}, in the names {shares[a]:.1%}."
        f"\nThis took {2 * len(weights) * STEPS:,} losses for {STEPS} steps. With the 124 million"
        "\nweights of GPT-2, one step would take 248 million."
    )
    print(
        f"nudging: {len(weights)} parameters, held-out loss {loss_of(weights, held_out):.3f}"
    )


if __name__ == "__main__":
    main()

# Predict, then run:
# - What is the slope of a at the start? (p - share: what the die gives it, less what it has in
#   the names. So it is for every token: the weight rises while the model gives too little, and
#   rests when p is right. That is why no 27 weights are better than the frequencies: loss 2.91.)
# - RATE = 1: (Ten times slower, the same way.) RATE = 100: (It leaps over the valley and comes
#   out higher on the other side: the loss swings and does not settle.)
# - NUDGE = 1e-13: (A computer keeps 16 digits, and the change drowns in the last: the slopes come
#   in jumps of 0.002, and near the bottom they are noise, or 0.)
