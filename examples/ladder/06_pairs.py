"""Step 6, pairs. What do we gain by looking at the letter before?

So far, every letter was drawn without looking at the others. Now we have a table with a
row for each token, which says what follows it: 27 rows of 27 weights. We can compute
these weights by counting. Or the machine can learn them by gradient descent, as in step
5. The results are nearly the same. Counting is quicker. But it does not work for the
models in later steps, and gradient descent does. (Source: Markov 1913; Shannon 1948, "A
Mathematical Theory of Communication", section 3.)

    python examples/ladder/06_pairs.py          # 3 seconds

In microgpt.py: chapter "Training"; chapter "Looking inside", `baselines`. Before:
05_value.py.
"""

import math
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, Value, log, read_documents, softmax, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS = 200
RATE = 50.0


def pairs_of(names, tokenizer):
    """How often each token follows each other one: {(token, next token): count}."""
    pairs = Counter()
    for name in names:
        tokens = [tokenizer.end] + tokenizer.encode(name) + [tokenizer.end]
        pairs.update(zip(tokens, tokens[1:]))
    return pairs


def loss_of(table, pairs):
    """The mean -log p of the second token of each pair. Row a says what follows a."""
    rows = [softmax(row) for row in table]
    total = sum(-log(rows[a][b]) * count for (a, b), count in pairs.items())
    return total / sum(pairs.values())


def count(pairs, size):
    """Weights whose softmax is the frequency of each pair: softmax undoes the log.

    We add 1 to each count. Otherwise a pair that was never seen would be impossible.
    """
    return [[math.log(pairs[a, b] + 1) for b in range(size)] for a in range(size)]


def learn(pairs, size):
    """The same weights by gradient descent."""
    table = [[0.0] * size for _ in range(size)]  # 27 dice
    for step in range(STEPS):
        values = [[Value(weight) for weight in row] for row in table]
        loss = loss_of(values, pairs)
        loss.backward()
        if step % 40 == 0:
            print(f"step {step:3}  loss {loss.data:.3f}")
        table = [[value.data - RATE * value.grad for value in row] for row in values]
    return table


def show_likeliest(letters, table, tokenizer):
    """What follows these letters most often?"""
    shown = tokenizer.characters + ["end"]
    for token in tokenizer.encode(letters):
        row = softmax(table[token])
        likeliest = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:5]
        percentages = [f"{shown[i]} {row[i]:.1%} " for i in likeliest]
        print(f"    after {shown[token]}:", *percentages)


def write(table, tokenizer, rng):
    """Draw each token from the row of the one before it."""
    tokens = []
    token = tokenizer.end
    while True:
        token = rng.choices(range(len(table)), softmax(table[token]))[0]
        if token == tokenizer.end:
            return tokenizer.decode(tokens)
        tokens.append(token)


def main():
    names = read_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    pairs = pairs_of(names, tokenizer)
    held_out = pairs_of(held_out[:500], tokenizer)
    size = tokenizer.vocab_size

    learned = learn(pairs, size)
    counted = count(pairs, size)
    for name, table in [("learned", learned), ("counted", counted)]:
        print(f"{name}: held-out loss {loss_of(table, held_out):.3f}")
        show_likeliest("aq", table, tokenizer)
    print("Names from the learned table:")
    rng = random.Random(1)
    for _ in range(8):
        print("   ", write(learned, tokenizer, rng))
    loss = loss_of(learned, held_out)
    print(f"pairs: {size * size} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - The model learns what follows a before it learns what follows q. Why? (Only one
#   token in 900 is a q, so the slopes of its row are small. Step 10 has a cure, Adam:
#   it takes into account how large the slopes of a weight usually are.)
# - STEPS = 20: how much of the gain is already there? (Most of it: the loss is 2.67.
#   The rest comes slowly.)
# - How many rows would a table for the last two tokens have? For the last ten? (27 *
#   27, and half of them occur in 22 names or fewer. 27^10, which is 25,000 for every
#   human being. That is why we need step 7.)
