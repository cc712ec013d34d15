"""Step 1, the die. What does one write who knows the letters and nothing else?

A language model is something that says how likely each token is to come next. Here the tokens are
the letters a to z and <|endoftext|>, with which a name ends. The simplest model is a die with 27
sides: all tokens are equally likely, whatever came before. It has no parameters, which is what
one calls the numbers that learning will tune; every later step is held against it. All steps are
measured on the same 500 names, held out: not one of them is ever learned from. (These words are
explained in the glossary at the head of microgpt.py.)

    python examples/ladder/01_die.py            # at once

In microgpt.py: chapters "Documents", "Tokens", and "Generation", whose `sample` draws as here.
"""

import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, load_documents, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
SEED = 1


def draw(probabilities, rng):
    """A token, by its probability. Lay the probabilities end to end, as sections of a line from 0
    to 1, and throw a dart at the line: the token is the one whose section it hits."""
    dart = rng.random()
    for token, p in enumerate(probabilities):
        dart -= p
        if dart < 0:
            return token
    return len(probabilities) - 1  # should rounding have left the line a bit too short


def write(probabilities, end, rng):
    """Draw tokens until the one that ends a name."""
    tokens = []
    while (token := draw(probabilities, rng)) != end:
        tokens.append(token)
    return tokens


def tokens_of(names, tokenizer):
    """All that there is to predict in these names: their letters and their ends."""
    return [
        token for name in names for token in [*tokenizer.encode(name), tokenizer.end]
    ]


def mean_loss(probabilities, tokens):
    """How surprised is the model by the tokens of real names? Step 3 says why it is this."""
    if not all(probabilities[token] for token in tokens):
        return math.inf  # it said "never", and it happened
    return sum(-math.log(probabilities[token]) for token in tokens) / len(tokens)


def main():
    # In every step the same: names to learn from, and 500 others to measure by.
    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    held_out = tokens_of(held_out[:500], tokenizer)

    die = [1 / tokenizer.vocab_size] * tokenizer.vocab_size
    print(f"A real name: {names[0]}. Names from a die with {len(die)} sides:")
    rng = random.Random(SEED)
    for _ in range(8):
        print("   ", tokenizer.decode(write(die, tokenizer.end, rng))[:60])

    loss = mean_loss(die, held_out)
    print(
        f"Its loss, the surprise at other names, is {loss:.3f} = log {math.exp(loss):.0f}:\n"
        f"at every letter it hesitates between {math.exp(loss):.0f}. Less is better."
    )
    print(f"die: 0 parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - How long are the names of the die, on average, and how long are real ones? Count 1,000.
#   (26 letters, as one side in 27 ends a name; 6.4.)
# - Take the letter q off the die, and share what it had among the others. Does the loss rise? (To
#   infinity, as there is a q among the held-out names. Never say never.)
