"""Step 6, pairs. What is gained by looking at the letter before?

So far every letter was drawn as if there were no others. Now each row of a table tells what
follows one token: 27 rows of 27 weights. It can be counted; and it can be learned, by descending
as in step 5, and then it comes to nearly the same. Counting is quicker. But the models that follow
cannot be counted, and they can be learned in just this way. (Source: Markov 1913; Shannon 1948,
"A Mathematical Theory of Communication", section 3.)

    python examples/ladder/06_pairs.py          # 3 seconds

In microgpt.py: chapter "Looking inside", `baselines`; "Training". Before: 05_value.py.
"""

import math
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import CharTokenizer, Value, load_documents, log, softmax, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS, RATE = 200, 50.0


def pairs_of(names, tokenizer):
    """How often each token follows each: {(token, next token): count}. At first and at last there
    is <|endoftext|>."""
    texts = ([tokenizer.end, *tokenizer.encode(name), tokenizer.end] for name in names)
    return Counter(pair for tokens in texts for pair in zip(tokens, tokens[1:]))


def loss_of(table, pairs):
    """The mean -log p of the second tokens; the table has a row of weights for each first one."""
    rows = [softmax(row) for row in table]
    return sum(-log(rows[a][b]) * n for (a, b), n in pairs.items()) / sum(
        pairs.values()
    )


def count(pairs, size):
    """Weights whose softmax is how frequent each pair is, as softmax undoes the log. Each count is
    one too many: otherwise a pair that was never seen would be impossible."""
    return [[math.log(pairs[a, b] + 1) for b in range(size)] for a in range(size)]


def learn(pairs, size):
    table = [[0.0] * size for _ in range(size)]  # 27 dice
    for step in range(STEPS):
        values = Value.lift(table)
        loss = loss_of(values, pairs)
        loss.backward()
        if step % 40 == 0:
            print(f"step {step:3}  loss {loss.data:.3f}")
        table = [[value.data - RATE * value.grad for value in row] for row in values]
    return table


def main():
    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    pairs, held_out = pairs_of(names, tokenizer), pairs_of(held_out[:500], tokenizer)
    size, shown = tokenizer.vocab_size, [*tokenizer.characters, "end"]

    tables = {"learned": learn(pairs, size), "counted": count(pairs, size)}
    for name, table in tables.items():
        print(f"{name}: held-out loss {loss_of(table, held_out):.3f}")
        for token in tokenizer.encode("aq"):
            row = softmax(table[token])
            likeliest = sorted(range(size), key=row.__getitem__, reverse=True)[:5]
            print(
                f"    after {shown[token]}:",
                *(f"{shown[i]} {row[i]:.1%} " for i in likeliest),
            )
    rng = random.Random(1)
    for _ in range(8):
        name, token = [], tokenizer.end
        while token != tokenizer.end or not name:
            token = rng.choices(range(size), softmax(tables["learned"][token]))[0]
            name.append(token)
        print("   ", tokenizer.decode(name[:-1]))
    loss = loss_of(tables["learned"], held_out)
    print(f"pairs: {size * size} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - What follows q is learned later than what follows a. Why? (One token in 900 is a q, so the
#   slopes of its row are small. Adam, in step 10, looks at how large a weight's slopes are.)
# - STEPS = 20: how much is there already? (Most of it: 2.67. The rest comes slowly.)
# - How many rows for the two tokens before? For ten? (27 * 27, half of which see 22 names or
#   fewer; 27^10, which is 25,000 for every human being. Therefore step 7.)
