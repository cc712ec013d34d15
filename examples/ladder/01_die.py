"""Step 1, the die. What can you write if you know only the letters?

A language model says how likely each token is to come next. Here the tokens are the
letters a to z, and <|endoftext|>, which ends a name. The simplest model is a die with
27 sides: all tokens are equally likely, whatever came before. The die has no
parameters. (Parameters are the numbers that a model learns.) We compare every later
step with the die.

All steps are measured on the same 500 names. These names are held out: no step ever
learns from them. The glossary at the top of microgpt.py explains words such as token.

    python examples/ladder/01_die.py            # less than a second

In microgpt.py: chapters "Documents" and "Tokens"; and "Generation", where `sample`
draws tokens in the same way.
"""

import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, read_documents, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
SEED = 1


def draw(probabilities, rng):
    """Draw a token at random, with these probabilities.

    Lay the probabilities end to end, as sections of a line from 0 to 1. Throw a dart at
    the line. The token is the one whose section the dart hits.
    """
    dart = rng.random()
    for token, p in enumerate(probabilities):
        dart -= p
        if dart < 0:
            return token
    return len(probabilities) - 1  # rounding can leave the line a little too short


def write(probabilities, end, rng):
    """Draw tokens until the one that ends the name."""
    tokens = []
    token = draw(probabilities, rng)
    while token != end:
        tokens.append(token)
        token = draw(probabilities, rng)
    return tokens


def tokens_of(names, tokenizer):
    """All tokens to predict in these names: the letters, and the end of each name."""
    tokens = []
    for name in names:
        tokens += tokenizer.encode(name) + [tokenizer.end]
    return tokens


def mean_loss(probabilities, tokens):
    """How much do these tokens surprise the model? Step 3 explains the formula."""
    if not all(probabilities[token] for token in tokens):
        return math.inf  # the model said "never", and it happened
    return sum(-math.log(probabilities[token]) for token in tokens) / len(tokens)


def main():
    # The same in every step: names to learn from, and 500 others to test with.
    names = read_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    held_out = tokens_of(held_out[:500], tokenizer)

    n_sides = tokenizer.vocab_size
    die = [1 / n_sides] * n_sides
    print(f"A real name: {names[0]}. Names from a die with {n_sides} sides:")
    rng = random.Random(SEED)
    for _ in range(8):
        print("   ", tokenizer.decode(write(die, tokenizer.end, rng))[:60])

    loss = mean_loss(die, held_out)
    print(
        "Its loss measures how much other names surprise it: "
        f"{loss:.3f} = log {n_sides}.\n"
        f"It always chooses among {math.exp(loss):.0f} equally likely tokens. "
        "A lower loss is better."
    )
    print(f"die: 0 parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - How long are the die's names, on average? How long are real ones? Count 1,000 of
#   each. (26 letters, because one side in 27 ends a name; 6.4 letters.)
# - Take the letter q off the die, and share its probability among the other tokens.
#   Does the loss rise? (It becomes infinite, because a held-out name has a q. Never say
#   never.)
