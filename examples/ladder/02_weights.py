"""Step 2, the weights. How do you tell a model that a is likelier than q?

Give every token a number, its weight: the higher the weight, the likelier the token. A
weight can be any number. Probabilities are different: none is below 0, and they add up
to 1. Softmax turns scores into probabilities: it raises e to the power of each score,
and divides by the sum of these powers. A score that goes into softmax is called a
logit. Here you set the weights yourself. From step 4 on, the machine learns them.

    python examples/ladder/02_weights.py        # less than a second

In microgpt.py: chapter "Layers", `softmax`. Before: 01_die.py.
"""

import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import END, CharTokenizer, read_documents, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
# What you can guess about names without counting. All other tokens have weight 0.
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
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def show_three_ways(scores):
    """Why softmax? Divide by the sum of the scores, of their squares, or of e^score."""
    print("Three ways to turn the scores 3, 1, 0 and -2 into probabilities:")
    ways = {
        "score": scores,
        "score squared": [score**2 for score in scores],
        "e^score: softmax": [math.exp(score) for score in scores],
    }
    for name, parts in ways.items():
        shares = [f"{part / sum(parts):8.3f}" for part in parts]
        print(f"    {name:18}", *shares)
    print(
        "The first way gives a probability below 0. The second ranks the lowest score\n"
        "second. Softmax keeps the order. A score that is 1 higher makes a token\n"
        "e = 2.7 times as likely, compared with any other token.\n"
    )


def tokens_of(names, tokenizer):
    """All tokens to predict in these names: the letters, and the end of each name."""
    tokens = []
    for name in names:
        tokens += tokenizer.encode(name) + [tokenizer.end]
    return tokens


def main():
    show_three_ways([3, 1, 0, -2])

    names = read_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    held_out = tokens_of(held_out[:500], tokenizer)

    probabilities = softmax([WEIGHTS.get(token, 0) for token in tokenizer.tokens])
    print("token  weight  probability")
    for token in "anbq":
        p = probabilities[tokenizer.vocab[token]]
        print(f"{token:5} {WEIGHTS.get(token, 0):7} {p:12.1%}")
    print("Names from these weights:")
    rng = random.Random(1)
    for _ in range(8):
        name = ""
        while not name.endswith(END):  # `choices` draws as `draw` does in step 1
            name += rng.choices(tokenizer.tokens, probabilities)[0]
        print("   ", name.replace(END, "") or "(no letters: the end came first)")

    loss = sum(-math.log(probabilities[token]) for token in held_out) / len(held_out)
    print(f"weights: {tokenizer.vocab_size} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - Add 10 to all weights, including those that are 0. What changes? (Nothing: every
#   power and their sum become e^10 times as large.)
# - Double the weights. (Likely tokens become likelier, rare ones rarer, and the loss
#   falls: the weights were too timid.) Double them again. (Now they are too bold: the
#   loss is higher than the die's. Step 10 has a knob for this, the temperature.)
# - Can you find better weights? (You cannot get below 2.91. Step 4 shows why, and how
#   to get there.)
