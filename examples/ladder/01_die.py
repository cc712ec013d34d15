"""Step 1, the die. What does one write who knows the letters and nothing else?

A language model is something that says how likely each token is to come next. The simplest is a
die with 27 sides: the letters a to z, and <|endoftext|>, where a name ends. All are equally
likely, whatever came before. It has no parameters, and it is what every later step is held
against.

    python examples/ladder/01_die.py            # at once

In microgpt.py: chapters "Documents", "Tokens", and "Generation", whose `sample` draws as here.
"""

import math
import random
import sys
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))    # where microgpt.py is

from microgpt import CharTokenizer, load_documents, split_documents, windows

DATA = Path(__file__).resolve().parents[2] / "data"
SEED = 1


def draw(probabilities, rng):
    """A token, by its probability. Lay the probabilities end to end, as sections of a line from 0
    to 1, and throw a dart at the line: the token is the one whose section it hits."""
    dart = rng.random()
    passed = sum(end_of_section <= dart for end_of_section in accumulate(probabilities))
    return min(passed, len(probabilities) - 1)          # should rounding leave the line too short


def write(probabilities, end, rng):
    """Draw tokens until the one that ends a name."""
    tokens = []
    while (token := draw(probabilities, rng)) != end:
        tokens.append(token)
    return tokens


def mean_loss(probabilities, tokens):
    """How surprised is the model by the tokens of real names? Step 3 says why it is this."""
    return sum(-math.log(probabilities[token]) for token in tokens) / len(tokens)


def main():
    # In every step the same: names to learn from, and 500 others to measure by. A name of n letters
    # is n + 1 tokens to predict, its end included.
    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    held_out = [token for name in held_out[:500] for token in windows(name, tokenizer, 16)[0][1:]]

    die = [1 / tokenizer.vocab_size] * tokenizer.vocab_size
    print(f"A real name: {names[0]}. Names from a die with {len(die)} sides:")
    rng = random.Random(SEED)
    for _ in range(8):
        print("   ", tokenizer.decode(write(die, tokenizer.end, rng))[:60])

    loss = mean_loss(die, held_out)
    print(f"e^{loss:.3f} = {math.exp(loss):.0f}: at each letter it hesitates between so many.")
    print(f"die: 0 parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - How long are the names of the die, on average, and how long are real ones? Count 1,000. (26
#   letters, as one side in 27 ends a name; 6.4.)
# - Take the letter q off the die, and share what it had among the others. Does the loss rise?
#   (To infinity, if there is a q among the held-out names: never say never.)
