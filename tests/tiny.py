"""Tiny models of the letters a, b and c, to test what a model says of a text."""

import math

from microgpt import GPT, CharTokenizer, Config

ABC = CharTokenizer(["abc"])  # a, b, c and <|endoftext|>: ids 0, 1, 2 and 3


def make(tokenizer=ABC, block_size=8, seed=0, sharp=1.0):
    """A model with random weights; the larger `sharp` is, the surer it is of itself."""
    config = Config(tokenizer.vocab_size, block_size, 1, n_head=2, n_embd=4)
    model = GPT(config, seed=seed)
    table = model.params["wte.weight"]
    table[:] = [[sharp * x for x in row] for row in table]
    return model


def draws(*probabilities):
    """A model that draws each token with these probabilities, whatever came before.

    The last layernorm has gain 0 and the logarithms as its bias. The table of tokens,
    which turns that into logits, has 1 where the row is the column, and 0 elsewhere.
    """
    n = len(probabilities)
    model = GPT(Config(n, block_size=4, n_head=1, n_embd=n), seed=0)
    model.params["wte.weight"] = [[float(i == j) for j in range(n)] for i in range(n)]
    model.params["ln_f.weight"] = [0.0] * n
    model.params["ln_f.bias"] = [math.log(p) if p else -1e4 for p in probabilities]
    return model


def probabilities(logits):
    """What softmax makes of the logits."""
    exps = [math.exp(x - max(logits)) for x in logits]
    return [e / sum(exps) for e in exps]


def tokens_of(text, tokenizer=ABC):
    """The ids of a document, with its two ends."""
    return [tokenizer.end, *tokenizer.encode(text), tokenizer.end]
