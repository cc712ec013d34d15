"""A GPT that records every activation of a forward pass, by name.

    traced = TracedGPT(model)
    traced(tokens)
    traced.trace["h.0.attn"]        # attention's weights in the first block, by head

The trace is that of the last window. For n tokens and each block i from 0 on, it holds
these activations, in the order in which they are computed:

    embeddings          [n][n_embd]     of token and position, added
    h.i.ln_1            [n][n_embd]     the first layernorm
    h.i.attn.c_attn     [n][3 n_embd]   queries, keys and values, in this order
    h.i.attn            [n_head][n][1 to n]     the weights after softmax, as floats: a
                                        token's row is as long as the tokens it sees
    h.i.attn.c_proj     [n][n_embd]     what attention adds to the residual stream
    h.i.ln_2            [n][n_embd]     the second layernorm
    h.i.mlp.c_fc        [n][4 n_embd]   before gelu
    h.i.mlp.c_proj      [n][n_embd]     what the MLP adds to the residual stream
    h.i                 [n][n_embd]     the residual stream after the block
    ln_f                [n][n_embd]     the last layernorm
    logits              [n][vocab_size]

The numbers are of the same kind as the parameters: floats, Values or Tensors. After
backward(), Values and Tensors have their gradients here, too. Tracing does not change
what the model computes. Attention's weights are not in the graph of Tensors, so they
are recomputed from the queries and keys.
"""

import math

from microgpt import GPT, Tensor, dot, softmax


class TracedGPT(GPT):
    """The same model, but it keeps the activations of its last window in `trace`."""

    def __init__(self, model):
        super().__init__(model.config, model.params)
        self.trace = {}

    def keep(self, name, x):
        """Put something into the trace, and return it."""
        self.trace[name] = x
        return x

    def apply(self, layer, name, x):
        """Keep the output of a layer with parameters."""
        return self.keep(name, super().apply(layer, name, x))

    def attend(self, name, x):
        """Keep attention's weights."""
        self.keep(name, weights_by_head(x, self.config.n_head))
        return super().attend(name, x)

    def block(self, h, x):
        """Keep a block's output and, if it is the first block, its input."""
        if h == "h.0":
            self.keep("embeddings", x)
        return self.keep(h, super().block(h, x))

    def __call__(self, tokens):
        self.trace = {}  # a new one, so that callers can keep the last one
        return self.keep("logits", super().__call__(tokens))


def weights_by_head(x, n_head):
    """For each head, each token's weights on those that it sees: [n_head][n][1 to n].

    x is the input of attention: rows with a token's query, key and value, side by side.
    """
    data = x.data if isinstance(x, Tensor) else x
    rows = [[float(number) for number in row] for row in data]
    n_embd = len(rows[0]) // 3
    d = n_embd // n_head
    heads = []
    for start in range(0, n_embd, d):
        queries = [row[start:][:d] for row in rows]
        keys = [row[n_embd + start :][:d] for row in rows]
        heads.append([weights(query, keys[: t + 1]) for t, query in enumerate(queries)])
    return heads


def weights(query, keys):
    """The weight that each key gets from a query."""
    scores = [dot(query, key) / math.sqrt(len(query)) for key in keys]
    return softmax(scores)
