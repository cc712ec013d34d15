"""Step 7, the window. How can a model read several letters without a huge table?

Each token gets a row of numbers, its embedding. Think of it as a point in space: tokens
that behave alike move close to each other, so what the model learns about one letter
also helps with its neighbours. The embeddings of the last three tokens, 24 numbers, go
into 16 weighted sums. Each sum is bent: below 0, it becomes about 0, and above 0, it
stays about the same. (Without this bend, sums of sums would still be just sums.) Then
27 weighted sums of the results are the logits.

The model learns all these weights at once. They start as small random numbers: if all
were 0, all slopes would be 0 too. Each step looks at four names instead of all of them:
a rough slope now is better than an exact slope later. (Source: Bengio, Ducharme,
Vincent and Jauvin 2003, "A Neural Probabilistic Language Model".)

    python examples/ladder/07_window.py         # 8 seconds

In microgpt.py: chapter "Layers", `embedding`, `linear` and `gelu`; chapter "Tensor".
Before: 06_pairs.py.
"""

import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import (
    END,
    CharTokenizer,
    Tensor,
    add,
    cross_entropy,
    dot,
    embedding,
    gelu,
    linear,
    read_documents,
    split_documents,
)

DATA = Path(__file__).resolve().parents[2] / "data"
N_EMBD = 8  # numbers in an embedding
N_HIDDEN = 16  # weighted sums
STEPS = 800
BATCH = 4  # documents in each step
RATE = 1.0
SEED = 1


def windows_of(documents, vocab):
    """Three tokens and the next, as ids.

    The windows of "abe" are ..a .ab abe be. where each dot is <|endoftext|>.
    """
    windows = []
    for document in documents:
        tokens = [vocab[token] for token in [END, END, END, *document, END]]
        windows += [tokens[i : i + 4] for i in range(len(tokens) - 3)]
    return windows


def loss_of(params, windows):
    """The mean loss at the last token of each window."""
    first, second, third, targets = zip(*windows)
    wte = params["wte"]  # the embeddings: "weights, token embeddings"
    hidden = linear(embedding(wte, first), params["from_first"])
    hidden = add(hidden, linear(embedding(wte, second), params["from_second"]))
    hidden = add(hidden, linear(embedding(wte, third), params["from_third"]))
    logits = linear(gelu(hidden), params["out"])
    return cross_entropy(logits, targets)


def random_table(n_rows, n_columns, size, rng):
    return [[rng.gauss(0, size) for _ in range(n_columns)] for _ in range(n_rows)]


def train(documents, vocab):
    """Gradient descent. A Tensor is a table of Values: the same slopes, but sooner."""
    rng = random.Random(SEED)
    params = {
        "wte": random_table(len(vocab), N_EMBD, 0.1, rng),
        "out": random_table(len(vocab), N_HIDDEN, 0.02, rng),
        "from_first": random_table(N_HIDDEN, N_EMBD, 0.2, rng),
        "from_second": random_table(N_HIDDEN, N_EMBD, 0.2, rng),
        "from_third": random_table(N_HIDDEN, N_EMBD, 0.2, rng),
    }
    for step in range(STEPS):
        batch = [documents[(step * BATCH + i) % len(documents)] for i in range(BATCH)]
        tensors = {name: Tensor(table) for name, table in params.items()}
        loss_of(tensors, windows_of(batch, vocab)).backward()
        rate = RATE * (1 - step / STEPS)  # shorter and shorter steps, to settle
        for name, tensor in tensors.items():
            if tensor.grad:  # it is 0.0 if loss_of does not use this table
                descend(params[name], tensor.grad, rate)
    return params


def descend(table, slopes, rate):
    """Move every weight against its slope."""
    for row, row_slopes in zip(table, slopes):
        row[:] = [weight - rate * slope for weight, slope in zip(row, row_slopes)]


def show_neighbours(tokens, params, vocab):
    """Which embeddings point in the most similar direction? 1.00 means the same one."""
    directions = {}
    for token, i in vocab.items():
        row = params["wte"][i]
        directions[token] = [x / math.hypot(*row) for x in row]
    for token in tokens:
        likeness = {}
        for other in vocab:
            likeness[other] = dot(directions[token], directions[other])
        nearest = sorted(vocab, key=likeness.get, reverse=True)[1:6]
        shown = [f"{other} {likeness[other]:.2f} " for other in nearest]
        print(f"{token:>8}:", *shown)


def main():
    names = read_documents(DATA / "names.txt")
    vocab = CharTokenizer(names).vocab
    names, held_out = split_documents(names, seed=42)
    params = train(names, vocab)
    print("Letters, and their nearest neighbours:")
    show_neighbours("aeq", params, vocab)

    # The same with words: a document is a list of words, and a word is a token.
    sentences = [line.split() for line in read_documents(DATA / "sentences.txt")]
    words = CharTokenizer(sentences).vocab
    print("Words, learned from sentences such as:", *sentences[0])
    show_neighbours(["cats", "cars", "chase", "red"], train(sentences, words), words)

    loss = loss_of(params, windows_of(held_out[:500], vocab))
    size = sum(len(table) * len(table[0]) for table in params.values())
    print(f"window: {size:,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - Which letters are near a? (The vowels, although nobody said what a vowel is. Cats
#   are near all other animals, and cars near everything with wheels; so cats are nearer
#   to dogs than to cars.)
# - Leave the third token, the nearest one, out of `loss_of`. (2.79: worse than pairs.)
# - Let all three tokens go through "from_first". (2.69: the model knows which letters
#   there are, but not where.)
# - Leave `gelu` out. (2.55, and with it 2.57: 800 steps are too few for the bend to
#   help. With STEPS = 4000, it is 2.52 without and 2.51 with it.)
