"""Step 7, the window. How can a model use several letters without a table of all combinations?

A token gets a row of numbers, its embedding: where it lies in a space in which tokens that
behave alike come to lie together. The embeddings of the last three tokens go through a hidden
layer, 16 sums with a bend in each, and these through another 27 sums, the logits. All of it is
learned at once. What is learned of one letter then serves for its neighbours too. (Source:
Bengio, Ducharme, Vincent and Jauvin 2003, "A Neural Probabilistic Language Model".)

    python examples/ladder/07_window.py         # 5 seconds

In microgpt.py: chapter "Layers", `embedding`, `linear`, `gelu`; "Tensor". Before: 06_pairs.py.
"""

import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))    # where microgpt.py is

from microgpt import (END, CharTokenizer, Tensor, add, cross_entropy, dot, embedding, gelu,
                      gradients, linear, load_documents, split_documents)

DATA = Path(__file__).resolve().parents[2] / "data"
CONTEXT, N_EMBD, N_HIDDEN, STEPS, BATCH, RATE, SEED = 3, 8, 16, 800, 4, 1.0, 1


def windows_of(document, vocab):
    """"abe" -> ..a .ab abe be. in ids, where . is <|endoftext|>: three tokens, and the next."""
    tokens = [vocab[END]] * CONTEXT + [vocab[token] for token in document] + [vocab[END]]
    return [tokens[i:i + CONTEXT + 1] for i in range(len(tokens) - CONTEXT)]


def loss_of(params, windows):
    first, second, third, targets = zip(*windows)
    hidden = linear(embedding(params["wte"], first), params["from_first"])
    hidden = add(hidden, linear(embedding(params["wte"], second), params["from_second"]))
    hidden = add(hidden, linear(embedding(params["wte"], third), params["from_third"]))
    return cross_entropy(linear(gelu(hidden), params["out"]), targets)


def train(documents, vocab):
    """Gradient descent, each step on a few documents. A Tensor is a Value whose data is many
    numbers: the same slopes, sooner."""
    rng = random.Random(SEED)
    shapes = {"wte": (len(vocab), N_EMBD, 0.1), "out": (len(vocab), N_HIDDEN, 0.02),
              **{f"from_{i}": (N_HIDDEN, N_EMBD, 0.2) for i in ("first", "second", "third")}}
    params = {name: [[rng.gauss(0, size) for _ in range(n_in)] for _ in range(n_out)]
              for name, (n_out, n_in, size) in shapes.items()}
    for step in range(STEPS):
        batch = [documents[(step * BATCH + i) % len(documents)] for i in range(BATCH)]
        tensors = {name: Tensor(table) for name, table in params.items()}
        loss_of(tensors, [w for document in batch for w in windows_of(document, vocab)]).backward()
        rate = RATE * (1 - step / STEPS)                # ever shorter steps, to come to rest
        for name, slopes in gradients(tensors).items():
            params[name] = [[x - rate * slope for x, slope in zip(*rows)]
                            for rows in zip(params[name], slopes)]
    return params


def show_neighbours(tokens, params, vocab):
    """Which embeddings point most nearly in the same direction?"""
    unit = {token: [x / math.hypot(*params["wte"][i]) for x in params["wte"][i]]
            for token, i in vocab.items()}
    for token in tokens:
        near = sorted(vocab, key=lambda other: -dot(unit[token], unit[other]))
        print(f"{token:>8}:", *(f"{other} {dot(unit[token], unit[other]):.2f} "
                                for other in near[1:6]))


def main():
    names = load_documents(DATA / "names.txt")
    vocab = CharTokenizer(names).vocab
    names, held_out = split_documents(names, seed=42)
    params = train(names, vocab)
    show_neighbours("aeq", params, vocab)

    sentences = [line.split() for line in load_documents(DATA / "sentences.txt")]
    words = CharTokenizer(sentences).vocab              # of lists of words: a token for each word
    print("Words, from sentences such as:", *sentences[0])
    show_neighbours(("cats", "cars", "chase", "red"), train(sentences, words), words)

    loss = loss_of(params, [w for name in held_out[:500] for w in windows_of(name, vocab)])
    size = sum(len(table) * len(table[0]) for table in params.values())
    print(f"window: {size:,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - Which letters lie near a? (The vowels, and nobody said what a vowel is. Cats are near all
#   other animals, cars near all that has wheels; so cats are nearer to dogs than to cars.)
# - Leave the third token, the nearest, out of `loss_of`. (2.79: worse than pairs.)
# - Let all three go through "from_first". (2.69: it knows which letters there are, not where.)
# - N_EMBD = 2: is there room in a plane? (For words, yes; the loss is 2.62.)
