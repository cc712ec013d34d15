"""Step 8, attention. How can a token find what it needs, wherever that stands?

"foxes chase cats because": who plays? The window of step 7 looks at fixed places, and no further.
With attention each token asks for something, its query; every token so far says what it is, its
key; where the two agree, their dot product is large. Softmax makes weights of these products, and
what arrives is the mean of all values, so weighted. Query, key and value are sums of the
embedding's numbers, and learned. What a token is itself goes its own way into the hidden layer.

A mean is the same in any order. So that order can matter there is a second table, wpe, with a row
for each position, which is added to the token's: without it, "dogs chase cats" is "cats chase
dogs". (Source: Vaswani et al. 2017, "Attention Is All You Need".)

    python examples/ladder/08_attention.py      # 10 seconds

In microgpt.py: chapter "Layers", `attention`, where the arithmetic is. Before: 07_window.py.
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
    attention,
    cross_entropy,
    embedding,
    gelu,
    gradients,
    linear,
    load_documents,
    pack,
    softmax,
    split_documents,
)

DATA = Path(__file__).resolve().parents[2] / "data"
WORD, STEPS = "because", 300
N_EMBD, N_HIDDEN, BATCH, RATE, SEED = 8, 16, 4, 1.0, 3


def logits_of(params, tokens, positions, weights=None):
    x = embedding(params["wte"], tokens)
    if "wpe" in params:
        x = add(x, embedding(params["wpe"], positions))
    n_head = 1  # of which step 9 has two
    found = attention(
        linear(x, params["query_key_value"]), positions, n_head, heads=weights
    )
    hidden = add(linear(x, params["from_own"]), linear(found, params["from_found"]))
    return linear(gelu(hidden), params["out"])


def windows_of(documents, vocab):
    return [
        [vocab[END], *map(vocab.get, document), vocab[END]] for document in documents
    ]


def train(windows, vocab_size, steps, without=None):
    rng = random.Random(SEED)
    shapes = {
        "wte": (vocab_size, N_EMBD, 1.0),
        "wpe": (16, N_EMBD, 1.0),
        "query_key_value": (3 * N_EMBD, N_EMBD, 0.35),
        "from_own": (N_HIDDEN, N_EMBD, 0.25),
        "from_found": (N_HIDDEN, N_EMBD, 0.25),
        "out": (vocab_size, N_HIDDEN, 0.02),
    }
    params = {
        name: [[rng.gauss(0, size) for _ in range(n_in)] for _ in range(n_out)]
        for name, (n_out, n_in, size) in shapes.items()
        if name != without
    }
    for step in range(steps):
        tokens, positions, targets = pack(
            [windows[(step * BATCH + i) % len(windows)] for i in range(BATCH)]
        )
        tensors = {name: Tensor(table) for name, table in params.items()}
        cross_entropy(logits_of(tensors, tokens, positions), targets).backward()
        rate = RATE * (1 - step / steps)
        for name, slopes in gradients(tensors).items():
            params[name] = step_against(slopes, params[name], rate)
    return params


def step_against(slopes, table, rate):
    return [
        [weight - rate * slope for weight, slope in zip(row, row_slopes)]
        for row, row_slopes in zip(table, slopes)
    ]


def who_plays(params, words, a, verb, b):
    """-> (the probability of each word after "a verb b because", the weights of these four)"""
    weights, tokens = [[]], [words[END], words[a], words[verb], words[b], words[WORD]]
    logits = logits_of(params, tokens, range(5), weights)
    [head] = weights
    return softmax(logits[-1]), head[-1][1:]  # of the last token, without <|endoftext|>


def main():
    sentences = [line.split() for line in load_documents(DATA / "sentences.txt")]
    words = CharTokenizer(sentences).vocab  # of lists of words: a token for each word
    sentences, unseen = (
        [s for s in part if WORD in s]
        for part in split_documents(sentences, 0.25, seed=42)
    )
    for without in None, "wpe":
        params = train(windows_of(sentences, words), len(words), STEPS, without)
        print("Without positions:" if without else "With positions:")
        first, verb, second, *_ = unseen[0]
        for a, b in (first, second), (second, first):
            p, weights = who_plays(params, words, a, verb, b)
            print(
                "   ",
                *(
                    f"{word} {weight:.0%} "
                    for word, weight in zip((a, verb, b, WORD), weights)
                ),
                f"-> {a} {p[words[a]]:.1%}, {b} {p[words[b]]:.1%}",
            )
        losses = [
            -math.log(who_plays(params, words, *s[:3])[0][words[s[4]]]) for s in unseen
        ]
        print(
            f"    loss of the right animal in unseen sentences: {sum(losses) / len(losses):.3f}"
        )

    names = load_documents(DATA / "names.txt")
    vocab = CharTokenizer(names).vocab
    names, held_out = split_documents(names, seed=42)
    params = train(windows_of(names, vocab), len(vocab), 800)
    tokens, positions, targets = pack(windows_of(held_out[:500], vocab))
    loss = cross_entropy(logits_of(params, tokens, positions), targets)
    size = sum(len(table) * len(table[0]) for table in params.values())
    print(f"attention: {size:,} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - WORD = "so": where will it look? (At the second animal, the one that hides. But with SEED = 1 it
#   does not find it: descent only goes downhill, and not every valley is the deepest.)
# - How good could it get without positions, given time? (Not below log 2 = 0.69: of a sentence and
#   the one with its animals exchanged it says the same, and is right at most in one.)
# - What of the words to come, at which nothing may look? (They are not in the sum: in microgpt.py
#   the causal mask is a slice.)
