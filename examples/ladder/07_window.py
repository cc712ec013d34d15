"""Step 7, the window. How can a model use several letters without a table of all combinations?

A token gets a row of numbers, its embedding: a place in a space in which tokens that behave alike
come to lie together, so what is learned of one letter serves for its neighbours. The embeddings
of the last three tokens, 24 numbers, go into 16 weighted sums; each of these is bent (below 0 it
is pressed to 0, above it stays), for sums of sums are only sums; and 27 weighted sums of them are
the logits. All these weights are learned at once. They start as small random numbers: if all were
0, all slopes would be, too. Each step looks at four names instead of all: a rough slope now is
better than an exact one later. (Source: Bengio, Ducharme, Vincent and Jauvin 2003, "A Neural
Probabilistic Language Model".)

    python examples/ladder/07_window.py         # 8 seconds

In microgpt.py: chapter "Layers", `embedding`, `linear`, `gelu`; "Tensor". Before: 06_pairs.py.
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
    gradients,
    linear,
    load_documents,
    split_documents,
)

DATA = Path(__file__).resolve().parents[2] / "data"
CONTEXT, N_EMBD, N_HIDDEN, STEPS, BATCH, RATE, SEED = 3, 8, 16, 800, 4, 1.0, 1


def windows_of(document, vocab):
    """ "abe" -> ..a .ab abe be. in ids, where . is <|endoftext|>: three tokens, and the next."""
    tokens = (
        [vocab[END]] * CONTEXT + [vocab[token] for token in document] + [vocab[END]]
    )
    return [tokens[i : i + CONTEXT + 1] for i in range(len(tokens) - CONTEXT)]


def loss_of(params, windows):
    first, second, third, targets = zip(*windows)
    hidden = linear(embedding(params["wte"], first), params["from_first"])
    hidden = add(
        hidden, linear(embedding(params["wte"], second), params["from_second"])
    )
    hidden = add(hidden, linear(embedding(params["wte"], third), params["from_third"]))
    return cross_entropy(linear(gelu(hidden), params["out"]), targets)


def train(documents, vocab):
    """Gradient descent, a few documents a step. A Tensor is a Value whose data is many numbers: the
    same slopes, sooner."""
    rng = random.Random(SEED)
    shapes = {
        "wte": (len(vocab), N_EMBD, 0.1),
        "out": (len(vocab), N_HIDDEN, 0.02),
        **{f"from_{i}": (N_HIDDEN, N_EMBD, 0.2) for i in ("first", "second", "third")},
    }
    params = {
        name: [[rng.gauss(0, size) for _ in range(n_in)] for _ in range(n_out)]
        for name, (n_out, n_in, size) in shapes.items()
    }
    for step in range(STEPS):
        batch = [documents[(step * BATCH + i) % len(documents)] for i in range(BATCH)]
        tensors = {name: Tensor(table) for name, table in params.items()}
        loss_of(
            tensors, [w for document in batch for w in windows_of(document, vocab)]
        ).backward()
        rate = RATE * (1 - step / STEPS)  # ever shorter steps, to come to rest
        for name, slopes in gradients(tensors).items():
            params[name] = step_against(slopes, params[name], rate)
    return params


def step_against(slopes, table, rate):
    return [
        [weight - rate * slope for weight, slope in zip(row, row_slopes)]
        for row, row_slopes in zip(table, slopes)
    ]


def show_neighbours(tokens, params, vocab):
    """Which embeddings point most nearly in the same direction, 1.00 being the very same?"""
    unit = {
        token: [x / math.hypot(*params["wte"][i]) for x in params["wte"][i]]
        for token, i in vocab.items()
    }
    for token in tokens:
        near = sorted(vocab, key=lambda other: -dot(unit[token], unit[other]))
        print(
            f"{token:>8}:",
            *(f"{other} {dot(unit[token], unit[other]):.2f} " for other in near[1:6]),
        )


def main():
    names = load_documents(DATA / "names.txt")
    vocab = CharTokenizer(names).vocab
    names, held_out = split_documents(names, seed=42)
    params = train(names, vocab)
    show_neighbours("aeq", params, vocab)

    sentences = [line.split() for line in load_documents(DATA / "sentences.txt")]
    words = CharTokenizer(sentences).vocab  # of lists of words: a token for each word
    print("Words, from sentences such as:", *sentences[0])
    show_neighbours(("cats", "cars", "chase", "red"), train(sentences, words), words)

    loss = loss_of(
        params, [w for name in held_out[:500] for w in windows_of(name, vocab)]
    )
    size = sum(len(table) * len(table[0]) for table in params.values())
    print(f"window: {size:,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - Which letters lie near a? (The vowels, and nobody said what a vowel is. Cats are near all other
#   animals, cars near all that has wheels; so cats are nearer to dogs than to cars.)
# - Leave the third token, the nearest, out of `loss_of`. (2.79: worse than pairs.)
# - Let all three go through "from_first". (2.69: it knows which letters there are, not where.)
# - Leave `gelu` out. (2.55 instead of 2.57: in 800 steps there is nothing to gain by it yet. With
#   STEPS = 4000 it is 2.52 without and 2.51 with it.)
