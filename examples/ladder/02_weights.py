"""Step 2, the weights. How does one tell a model that an a is likelier than a q?

Give every token a number, its weight: the higher, the likelier. Such scores may be anything, but
probabilities may not: each must be at least 0, and together they make 1. What turns the ones into
the others is softmax: e to the power of the score, divided by the sum of them all. A score that
is meant to go through softmax is called a logit. Here a person sets the weights; from step 4 on
they are learned.

    python examples/ladder/02_weights.py        # at once

In microgpt.py: chapter "Layers", `softmax`. Before: 01_die.py.
"""

import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import END, CharTokenizer, load_documents, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
# What one may know of names without counting. What is not here has the weight 0.
WEIGHTS = {
    "a": 1,
    "e": 1,
    "i": 1,
    "o": 1,
    END: 1,
    "n": 0.5,
    "r": 0.5,
    "l": 0.5,
    "x": -1,
    "q": -1,
}


def softmax(scores):
    exps = [math.exp(score) for score in scores]
    return [e / sum(exps) for e in exps]


def main():
    print("Three ways to make probabilities of the scores 3, 1, 0 and -2:")
    for name, positive in (
        ("score", lambda x: x),
        ("score squared", lambda x: x * x),
        ("e^score: softmax", math.exp),
    ):
        parts = [positive(x) for x in (3, 1, 0, -2)]
        print(f"    {name:18}", *(f"{part / sum(parts):8.3f}" for part in parts))
    print(
        "A probability below 0 is none; squared, the worst score comes second. Softmax keeps\n"
        "the order; 1 more makes a token e = 2.7 times as likely, compared with any other.\n"
    )

    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    held_out = [
        token
        for name in held_out[:500]
        for token in [*tokenizer.encode(name), tokenizer.end]
    ]

    probabilities = softmax([WEIGHTS.get(token, 0) for token in tokenizer.vocab])
    for token in "anbq":
        p = probabilities[tokenizer.vocab[token]]
        print(f"    {token} {WEIGHTS.get(token, 0):5} {p:7.1%}")
    rng = random.Random(1)
    for _ in range(8):
        name = ""
        while not name.endswith(END):  # `choices` draws as `draw` in step 1 does
            name += rng.choices(list(tokenizer.vocab), probabilities)[0]
        print("   ", name.replace(END, "") or "(nothing: the end came first)")

    loss = sum(-math.log(probabilities[token]) for token in held_out) / len(held_out)
    print(f"weights: {tokenizer.vocab_size} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - Add 10 to all the weights. What changes? (Nothing: e^10 goes into every part and into the
#   sum.)
# - Double the weights. (The likely gets likelier, the rare rarer, and the loss falls: they were
#   too timid.) And once more? (Now they are too bold: the loss rises above that of the die. Step
#   10 has a knob for this, the temperature.)
# - Can you find better ones? (Not below 2.91. Step 4 tells why, and how to get there.)
