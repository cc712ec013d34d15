"""Step 3, the loss. How does one tell which of two models is better?

Show both a real name that neither has seen, and look how surprised they are. The obvious measure
is 1 - p, the probability that the model gave to everything else, token by token. It is a bad one:
if an a comes with share s, s (1 - p) + (1 - s) p is a straight line in p, and lowest at one of its
ends, so it is best to bet all on the most frequent letter. But -s log p - (1 - s) log(1 - p) is
flat, and lowest, where p = s: with -log p it is best to say how frequent each token really is.
It also adds up: the probability of a name is a product, its logarithm a sum. (Source: Good 1952,
"Rational Decisions".)

    python examples/ladder/03_loss.py           # at once

In microgpt.py: chapter "Layers", `cross_entropy`; chapter "Looking inside". Before: 02_weights.py.
"""

import math
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where microgpt.py is

from microgpt import END, CharTokenizer, load_documents, softmax, split_documents

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
    return sum(1 - probabilities[token] for token in tokens) / len(tokens)


def mean_surprise(probabilities, tokens):
    if not all(probabilities[token] for token in tokens):
        return math.inf  # it said "never", and it happened
    return sum(-math.log(probabilities[token]) for token in tokens) / len(tokens)


def tokens_of(names, tokenizer):
    return [
        token for name in names for token in [*tokenizer.encode(name), tokenizer.end]
    ]


def main():
    names = load_documents(DATA / "names.txt")
    tokenizer = CharTokenizer(names)
    names, held_out = split_documents(names, seed=42)
    tokens, held_out = tokens_of(names, tokenizer), tokens_of(held_out[:500], tokenizer)

    by_hand = softmax([WEIGHTS.get(token, 0) for token in tokenizer.vocab])
    print("token      p   1 - p  -log p")
    anna = [by_hand[token] for token in tokens_of(["anna"], tokenizer)]
    for token, p in zip([*"anna", "end"], anna):
        print(f"{token:5} {p:6.1%} {1 - p:7.3f} {-math.log(p):7.3f}")
    print(
        f"The product of the p, {math.prod(anna):.2g}, is how likely anna is. The sum of the\n"
        f"-log p is its -log, {-math.log(math.prod(anna)):.3f}; her loss, a token, is a fifth.\n"
    )

    counts = Counter(tokens)
    models = {
        "die": [1 / tokenizer.vocab_size] * tokenizer.vocab_size,
        "weights by hand": by_hand,
        "all on the a": [float(token == "a") for token in tokenizer.vocab],
        "frequencies": [counts[i] / len(tokens) for i in range(tokenizer.vocab_size)],
    }
    print("                   1 - p  -log p    (held-out names; less is better)")
    for name, probabilities in models.items():
        print(
            f"{name:16} {mean_miss(probabilities, held_out):7.3f}"
            f" {mean_surprise(probabilities, held_out):7.3f}"
        )
    print(
        "By 1 - p the best of them is the one that writes aaaaaaaa and never stops; by -log p\n"
        "it is the worst, and the frequencies are best. The weights by hand, so measured:"
    )
    print(
        f"loss: {tokenizer.vocab_size} parameters, "
        f"held-out loss {mean_surprise(by_hand, held_out):.3f}"
    )


if __name__ == "__main__":
    main()

# Predict, then run:
# - Why e^-loss = 0.048 for the weights by hand? (It is the probability of an average token, by the
#   average that suits products: as if it chose among 1 / 0.048 = 21 equally likely letters.)
# - Take the logarithm to the base 2, math.log2. (All losses are 1.44 times as large: they are in
#   bits, and e^loss becomes 2^loss. In nats, as here, slopes are simpler.)
# - Let "all on the a" keep 0.001 for each other token. (A loss of 5.94: still the worst of all.)
