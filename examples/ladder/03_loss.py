"""Step 3, the loss. How can you tell which of two models is better?

Show both models a real name that they have not seen, and measure their surprise. The
obvious measure is 1 - p: the probability that the model gave to all the wrong tokens.
It is a bad measure. Suppose that a share s of all tokens is the letter a, and that the
model gives this letter the probability p. The mean of 1 - p is then s (1 - p) + (1 - s)
p. That is a straight line in p, and it is lowest at one of its ends. So the best model
would be the one that bets everything on the most frequent letter.

With -log p, the mean is -s log p - (1 - s) log(1 - p). That is a curve, and it is
lowest at p = s. So the best model is the one that says how frequent each token really
is. Also, -log p adds up: the probability of a name is a product, so its logarithm is a
sum. (Source: Good 1952, "Rational Decisions".)

    python examples/ladder/03_loss.py           # less than a second

In microgpt.py: chapter "Layers", `cross_entropy`; chapter "Looking inside". Before:
02_weights.py.
"""

import math
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import END, CharTokenizer, read_documents, softmax, split_documents

DATA = Path(__file__).resolve().parents[2] / "data"
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


def mean_miss(probabilities, tokens):
    """The mean of 1 - p."""
    return sum(1 - probabilities[token] for token in tokens) / len(tokens)


def mean_surprise(probabilities, tokens):
    """The mean of -log p: the loss."""
    if not all(probabilities[token] for token in tokens):
        return math.inf  # the model said "never", and it happened
    return sum(-math.log(probabilities[token]) for token in tokens) / len(tokens)


def tokens_of(names, tokenizer):
    """All tokens to predict in these names: the letters, and the end of each name."""
    tokens = []
    for name in names:
        tokens += tokenizer.encode(name) + [tokenizer.end]
    return tokens


def show_name(name, probabilities, tokenizer):
    """The surprise at each token of a name."""
    print("token      p   1 - p  -log p")
    product = 1.0
    for token in tokens_of([name], tokenizer):
        p = probabilities[token]
        product *= p
        shown = "end" if token == tokenizer.end else tokenizer.decode([token])
        print(f"{shown:5} {p:6.1%} {1 - p:7.3f} {-math.log(p):7.3f}")
    print(
        f"The product of all p, {product:.2g}, is the probability of {name}.\n"
        f"The sum of all -log p is {-math.log(product):.3f}. The loss is their mean.\n"
    )


def main():
    names = read_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    held_out = tokens_of(held_out[:500], tokenizer)

    by_hand = softmax([WEIGHTS.get(token, 0) for token in tokenizer.tokens])
    show_name("anna", by_hand, tokenizer)

    tokens = tokens_of(names, tokenizer)
    counts = Counter(tokens)
    models = {
        "die": [1 / tokenizer.vocab_size] * tokenizer.vocab_size,
        "weights by hand": by_hand,
        "all on the a": [float(token == "a") for token in tokenizer.tokens],
        "frequencies": [counts[i] / len(tokens) for i in range(tokenizer.vocab_size)],
    }
    print("                   1 - p  -log p    (held-out names; lower is better)")
    for name, probabilities in models.items():
        miss = mean_miss(probabilities, held_out)
        surprise = mean_surprise(probabilities, held_out)
        print(f"{name:16} {miss:7.3f} {surprise:7.3f}")
    print(
        "By 1 - p, the best model is the one that writes aaaaaaaa and never stops. By\n"
        "-log p, it is the worst, and the frequencies are best. So the loss is -log p:"
    )
    loss = mean_surprise(by_hand, held_out)
    print(f"loss: {tokenizer.vocab_size} parameters, held-out loss {loss:.3f}")


if __name__ == "__main__":
    main()

# Predict, then run:
# - For the weights by hand, e^-loss is 0.048. What does this number mean? (It is the
#   average probability of a token: the geometric mean, which suits products. The model
#   is as unsure as if it chose among 1 / 0.048 = 21 equally likely tokens.)
# - Use the logarithm to base 2, math.log2. (All losses become 1.44 times as large. They
#   are in bits now, and e^loss becomes 2^loss. In nats, as here, slopes are simpler.)
# - Let "all on the a" give 0.001 to each other token. (Its loss is 5.94: still the
#   worst of all.)
