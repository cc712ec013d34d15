"""microgpt: a GPT that trains, in one file of plain Python.

This is a complete language model of the GPT-2 kind, with nothing but Python's standard
library: text, derivatives, the network, the optimizer, training, and writing new text.
GPT stands for Generative Pre-trained Transformer; a transformer is a network built
around attention (chapter 4). It does not use GPUs; examples/engines/ shows how to.

    python microgpt.py                # learn from thousands of names, then invent some
    python microgpt.py poems.txt      # learn from your own text, one document per line
    python microgpt.py --help         # everything else

Is a chapter too steep? Its header names smaller steps, programs in examples/ladder/.

One idea runs through the file. The model is written once, as functions of rows of
numbers, and *the type of number decides how it runs*. On floats it computes an answer
and nothing else. On `Value`s it also records how each number was computed, so that
training can take derivatives. `Tensor`s do the same with one record for each layer.

    Part I, a GPT, one number at a time
        1. Documents  2. Tokens  3. Value  4. Layers  5. GPT  6. Optimizer  7. Training
        8. Generation
    Part II, the same, faster
        9. Tensor  10. Fused layers  11. Engines  12. Trainer  13. Writing
    Part III, the tool
        14. Subword tokens  15. Checkpoints  16. Looking inside  17. Texts
        18. Command line

Glossary
    token         a whole number that stands for a piece of text; here, for a character
    vocab_size    how many different tokens there are
    block_size    how many tokens the model can read at once (not related to blocks)
    window        a piece of a document that is short enough to be read at once
    logit         the model's score for one possible next token; higher means likelier
    loss          how surprised the model is by the right token: -log(its probability)
    parameter     a number inside the model that training adjusts
    gradient      a derivative of the loss: how fast it rises when a number is raised
    embedding     the row of numbers that stands for a token or for a position
    n_embd, C     the model's width: how many numbers describe a token
    n_head        how many attention heads work side by side (chapter 4)
    n_layer       how many blocks are stacked; a block is attention, then an MLP
    MLP           multi-layer perceptron: two linear layers, and gelu between them
    [T, C]        a shape: T rows, one for each token, of C numbers each
"""

import sys

if sys.version_info < (3, 9):  # a Python too old for f-strings shows this line, too
    sys.exit(f"microgpt.py needs Python 3.9 or later, not {sys.version[:3]}")

import gc
import inspect
import json
import math
import operator
import os
import random
import re
import struct
import time
import zlib
from array import array
from collections import Counter, defaultdict, namedtuple
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, lru_cache, singledispatch
from heapq import heapify, heappop, heappush, heapreplace, nlargest

__version__ = "0.4.0"

# === 1. Documents ===================================================== ladder: die ===
# Part I builds a GPT, one number at a time. Say it should write names. Nobody can write
# down the rules that make a string of letters a good name. So we give it examples, and
# it learns to write more like them. An example is called a document: a line of a file.


def read_documents(path):
    """Read a text file. Every line that is not blank is a document."""
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


# === 2. Tokens ======================================================== ladder: die ===
# A network computes with numbers, so text must become numbers. We cut it into tokens
# and give each different token a number, its id. Here a token is one character; in Part
# III it can be several. One special token, <|endoftext|>, stands before and after every
# document: before, as something to predict the first character from; after, as its end.

END = "<|endoftext|>"


class CharTokenizer:
    """A token for each character that occurs in the documents, and one for END.
    >>> tokenizer = CharTokenizer(["bob", "abe"])
    >>> tokenizer.vocab
    {'a': 0, 'b': 1, 'e': 2, 'o': 3, '<|endoftext|>': 4}
    >>> tokenizer.encode("abbe"), tokenizer.decode([1, 2, 2])
    ([0, 1, 1, 2], 'bee')
    """

    def __init__(self, documents):
        self.characters = sorted(set().union(*documents))
        self.tokens = self.characters + [END]
        self.vocab = {token: i for i, token in enumerate(self.tokens)}
        self.vocab_size = len(self.tokens)
        self.end = self.vocab[END]

    def encode(self, text):
        """Text (with END in it or not) -> ids. ValueError for an unknown character."""
        tokens = re.findall("<[|]endoftext[|]>|.", text, re.DOTALL)
        for token in tokens:
            if token not in self.vocab:
                known = "".join(self.characters[:100])
                raise ValueError(f"{token!r} (U+{ord(token):04X}) is not in {known!r}")
        return [self.vocab[token] for token in tokens]

    def decode(self, ids):
        """Ids -> text."""
        return "".join(self.tokens[i] for i in ids)


def cut_windows(document, tokenizer, block_size):
    """Cut a document's tokens into windows of at most block_size + 1.

    Each token but the last is there to predict the next one. Neighbours share a token,
    so all tokens but the first are predicted once. No window sees the one before it.
    >>> tokenizer = CharTokenizer(["abe"])
    >>> cut_windows("abbe", tokenizer, block_size=3)
    [[3, 0, 1, 1], [1, 2, 3]]
    """
    tokens = [tokenizer.end] + tokenizer.encode(document) + [tokenizer.end]
    starts = range(0, len(tokens) - 1, block_size)
    return [tokens[start : start + block_size + 1] for start in starts]


# === 3. Value ============================================== ladder: nudging, value ===
# Our model will have 4,000 parameters. To improve it, we must know for each of them how
# fast the loss would rise if the parameter were a little larger. That is a derivative,
# called the parameter's gradient. Nobody wants to work out 4,000 of them by hand. But
# every formula is made of a few operations, such as + and *, whose derivatives we know.
# So let each number be a node that remembers its children, the numbers that it was
# computed from, and its local gradients, its derivatives with respect to them. All
# nodes that lead to the loss form its graph. The chain rule does the rest: multiply the
# local gradients along each path from the loss to the parameter, and add up the paths.
# In a * b + a**2, two paths lead to a: one gives b, the other 2a. The sum is b + 2a.


class Value:
    """A number that remembers how it was computed.
    >>> a = Value(2.0)
    >>> b = Value(-3.0)
    >>> loss = a * b + a**2
    >>> loss.backward()
    >>> a.grad, b.grad
    (1.0, 2.0)
    """

    __slots__ = ("data", "grad", "children", "local_grads")

    def __init__(self, data, children=(), local_grads=()):
        self.data = data  # the number
        self.grad = 0.0  # d loss / d self, once loss.backward() has run
        self.children = children  # the Values that it was computed from
        self.local_grads = local_grads  # d self / d child, one for each child

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __float__(self):  # math.sqrt(v) uses it, and leaves the graph: write v**0.5
        return float(self.data)

    def __add__(self, other):
        if isinstance(other, Value):
            return Value(self.data + other.data, (self, other), (1.0, 1.0))
        return Value(self.data + other, (self,), (1.0,))

    def __mul__(self, other):
        if isinstance(other, Value):
            return Value(self.data * other.data, (self, other), (other.data, self.data))
        return Value(self.data * other, (self,), (other,))

    def __pow__(self, other):
        """a**b. Its derivatives are d/da = b a^(b-1) and d/db = a^b log(a)."""
        a = self.data
        b = float(other)
        if (a < 0 and b != int(b)) or (a <= 0 and isinstance(other, Value)):
            raise ValueError(f"{a} ** {other!r} has no real value, or no derivative")
        power = a**b
        slope = b * a ** (b - 1) if b != 0 else 0.0
        if isinstance(other, Value):
            return Value(power, (self, other), (slope, power * math.log(a)))
        return Value(power, (self,), (slope,))

    # The other operations follow from these three.
    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -other

    def __truediv__(self, other):
        return self * other**-1.0

    # Python calls these when the number on the left is a plain one, as in 2.0 * v.
    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other):
        return -self + other

    def __rtruediv__(self, other):
        return self**-1.0 * other

    def __rpow__(self, other):
        return Value(other) ** self

    def backward(self):
        """Find d self / d v, for every Value v that self was computed from: v.grad.

        A Value that is used twice gets a share from each use, so we add shares. Leaves
        (Values without children, such as parameters) are not cleared, so a second call
        adds to them, until you set their grad to 0. All others are cleared first.
        >>> a = Value(2.0)
        >>> b = a * 3
        >>> b.backward()
        >>> b.backward()
        >>> a.grad, b.grad
        (6.0, 1.0)
        """
        order = topological_order(self)
        for node in order:
            node.grad = 0.0
        self.grad += 1.0  # d self / d self
        for node in reversed(order):
            node.pass_on()

    def pass_on(self):
        """The chain rule: d loss / d child += d self / d child * d loss / d self."""
        grad = self.grad
        for child, local_grad in zip(self.children, self.local_grads):
            child.grad += local_grad * grad


def topological_order(root):
    """Root and the nodes it was computed from, without leaves: children first.

    backward() goes through them from the end, so a node passes on its gradient only
    after all the nodes that use it have passed on theirs. In d = b + c below, c uses b,
    too. If b passed on the 1 that it has from d, a would get 2. If b did so once more
    after c, with 3, a would get 2 + 6 = 8. The right answer is 6, as d = 3b = 6a.
    >>> a = Value(3.0)
    >>> b = a + a
    >>> c = b + b
    >>> d = b + c
    >>> d.backward()
    >>> b.grad, a.grad
    (3.0, 6.0)
    """
    order = []
    seen = set()
    stack = [root]  # (a function that calls itself would hit Python's limit)
    while stack:
        node = stack.pop()
        if node is None:  # a mark: all children of the next node are in `order` now
            order.append(stack.pop())
        elif node.children and node not in seen:  # leaves have nothing to pass on
            seen.add(node)
            stack.append(node)
            stack.append(None)
            stack.extend(node.children)
    return order


def exp(x):
    """e^x, for a float or a Value. Its derivative is e^x too, so y is used twice."""
    if not isinstance(x, Value):
        return math.exp(x)
    y = math.exp(x.data)
    return Value(y, (x,), (y,))  # for small h, e^(x+h) = e^x e^h is about e^x (1 + h)


def log(x):
    """The natural logarithm. Its derivative is 1 / x."""
    if not isinstance(x, Value):
        return math.log(x)
    return Value(math.log(x.data), (x,), (1.0 / x.data,))


def tanh(x):
    """The hyperbolic tangent, a smooth step from -1 to 1. Its derivative is 1 - y^2."""
    if not isinstance(x, Value):
        return math.tanh(x)
    y = math.tanh(x.data)
    return Value(y, (x,), (1.0 - y * y,))


def dot(a, b):
    """a[0] b[0] + a[1] b[1] + ..., as a single node. d/da[i] is b[i], d/db[i] is a[i].

    A GPT computes hardly anything but dot products. With a node for each product and
    each sum, its graph would be six times as large.
    """
    try:
        x = [value.data for value in a]
        y = [value.data for value in b]
    except AttributeError:  # there are plain numbers among them
        return sum(p * q for p, q in zip(a, b))
    return Value(sum(map(operator.mul, x, y)), (*a, *b), (*y, *x))


# === 4. Layers ==================== ladder: weights, loss, window, attention, block ===
# How can numbers predict text? A GPT describes each token by a row of numbers. It
# changes the rows step by step, until each row tells which token comes next. Each kind
# of step is a layer: a formula in plain arithmetic, for floats and Values alike. (With
# @singledispatch, Part II gives layers a faster form. Until then, ignore it.)


@singledispatch
def embedding(table, ids):
    """The row of each id: [n_rows, C], [T] -> [T, C]."""
    for i in ids:
        if not 0 <= i < len(table):
            known = f"0 to {len(table) - 1}"
            raise ValueError(f"{i} is not in {known}: no token or position")
    return [table[i] for i in ids]


@singledispatch
def add(x, y):
    """x + y, number by number: [T, C], [T, C] -> [T, C]."""
    return [[a + b for a, b in zip(x_row, y_row)] for x_row, y_row in zip(x, y)]


@singledispatch
def linear(x, weight, bias=None):
    """y = x W^T + b: each output is a weighted sum of all inputs, plus a bias.

    y[t][o] = dot(x[t], W[o]) + b[o]. (W^T is W with its rows as columns. Without a
    bias, a row of zeros could give nothing but zeros.)
    x [T, n_in], weight [n_out, n_in], bias [n_out] -> [T, n_out]
    >>> linear([[2.0, 3.0]], weight=[[1.0, 10.0], [0.0, -1.0]], bias=[0.5, 0.5])
    [[32.5, -2.5]]
    """
    y = [[dot(row, weights) for weights in weight] for row in x]
    if bias is None:
        return y
    return [[a + b for a, b in zip(row, bias)] for row in y]


@singledispatch
def layernorm(x, gain, bias, eps=1e-5):
    """y = gain * (x - mean) / sqrt(variance + eps) + bias, for each row by itself.

    However large or small the numbers of a row have become, this brings them to mean 0
    and variance 1, so the next layer always works at the same scale. Gain and bias are
    parameters that let the model choose others. eps prevents a division by 0.
    x [T, C], gain [C], bias [C] -> [T, C]
    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", equation 4.
    >>> layernorm([[1.0, 3.0]], gain=[1.0, 1.0], bias=[0.0, 5.0], eps=0.0)
    [[-1.0, 6.0]]
    """
    y = []
    for row in x:
        mean = sum(row) / len(row)
        centred = [a - mean for a in row]
        variance = dot(centred, centred) / len(row)
        scale = (variance + eps) ** -0.5
        y.append([g * (c * scale) + b for c, g, b in zip(centred, gain, bias)])
    return y


@singledispatch
def gelu(x):
    """y = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, for each number. [T, n]

    Two linear layers in a row can do no more than one, unless there is a bend between
    them. The simplest bend is max(0, x), called ReLU. But it is flat below 0, and a
    number that is stuck there gets no gradient to move it. GELU is close to x above 2,
    close to 0 below -2, and smooth in between. Source: Hendrycks and Gimpel 2016,
    "Gaussian Error Linear Units", section 2 (the approximation that GPT-2 uses).
    """
    c = math.sqrt(2 / math.pi)
    return [[0.5 * a * (1 + tanh(c * (a + 0.044715 * a**3))) for a in row] for row in x]


@singledispatch
def softmax(row):
    """Turn scores into probabilities: e^score / (the sum of all e^score).

    e^1000 is too large for a float. So we first subtract the largest score from all of
    them. That divides both parts of the fraction by the same number: nothing changes.
    >>> [round(p, 3) for p in softmax([1.0, 2.0, 1000.0, 1000.0])]
    [0.0, 0.0, 0.5, 0.5]
    """
    largest = max(float(score) for score in row)  # a constant: it cancels out
    powers = [exp(score - largest) for score in row]
    share = 1 / sum(powers)
    return [power * share for power in powers]


# Attention is the only layer in which tokens see each other. Each token asks a question
# and gathers answers from itself and those before it. A linear layer turns its row into
#     query    what the token is looking for
#     key      what other tokens can find it by
#     value    what it gives to those who find it (nothing to do with the class Value)
# The query is compared with each key by a dot product, which is large when the two
# point the same way. Softmax turns these scores into weights that add up to 1, and the
# token receives the average of the values, with these weights. Key and value differ
# because a token may be found for one thing and give another: it may be found because
# it is a vowel, but then tell which vowel it is. This is one head:


def attention_head(queries, keys, values):
    """out = softmax(q k^T / sqrt(d)) v, where a token sees itself and those before it.

    Later tokens are hidden, because they are what the model learns to predict. This is
    called the causal mask; here it is a slice, [: t + 1]. Why divide by sqrt(d)? A sum
    of d products, some positive and some negative, is about sqrt(d) times as large as
    one. Undivided, scores would be so large that softmax gives nearly all weight to one
    token, and then almost no gradient is left. (k^T is k with its rows as columns.)
    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.
    queries, keys and values: [T, d] each -> [T, d]
    >>> attention_head([[0.0], [0.0]], keys=[[1.0], [2.0]], values=[[5.0], [7.0]])
    [[5.0], [6.0]]
    """
    d = len(queries[0])
    out = []
    for t, query in enumerate(queries):
        scores = [dot(query, key) / math.sqrt(d) for key in keys[: t + 1]]
        weights = softmax(scores)
        columns = zip(*values[: t + 1])
        out.append([dot(weights, column) for column in columns])
    return out


@singledispatch
def attention(x, n_head):
    """Several heads on one window, so that a token can ask several questions at once.

    A row of x holds a token's query, key and value, C numbers each. Head 0 works on the
    first d = C / n_head numbers of each, head 1 on the next d, and so on. Side by side,
    their outputs make rows of C numbers again. [T, 3C] -> [T, C]
    """
    C = len(x[0]) // 3
    d = C // n_head
    heads = []
    for start in range(0, C, d):
        queries = [row[start:][:d] for row in x]
        keys = [row[C + start :][:d] for row in x]
        values = [row[2 * C + start :][:d] for row in x]
        heads.append(attention_head(queries, keys, values))
    return [sum(rows, []) for rows in zip(*heads)]  # lists, end to end


@singledispatch
def cross_entropy(logits, targets):
    """The loss: the mean over all targets of -log(softmax(logits)[target]).

    A text's probability is the product of its tokens'; logs of these add up. 0 means
    certain and right. A model that knows nothing gives each of 27 tokens (a to z, END)
    the probability 1/27. Its loss is log 27 = 3.30 nats (log is the natural logarithm).
    At 2.5, it is as unsure as if it had to choose among e^2.5 = 12 equal tokens.

    A probability can be too small for a float, and log(0) is an error. So we compute
    the same in another form, log(sum of all e^logit) - logit[target]. For one target,
    its gradient is simple: softmax (here 0.09, 0.245, 0.665), less 1 at the target.
    logits [T, vocab_size], targets [T] -> one number
    >>> logits = [Value(1.0), Value(2.0), Value(3.0)]
    >>> cross_entropy([logits], [2]).backward()
    >>> [round(logit.grad, 3) for logit in logits]
    [0.09, 0.245, -0.335]
    """
    losses = []
    for row, target in zip(logits, targets):
        largest = max(float(logit) for logit in row)
        total = sum(exp(logit - largest) for logit in row)
        losses.append(log(total) + largest - row[target])
    return sum(losses) / len(losses)


# === 5. GPT ==================================================== ladder: block, gpt ===
# How do these layers become a model? Each token starts as a row of n_embd numbers: its
# own embedding plus the embedding of its position. Without the second, attention could
# not tell where the tokens before it stand: it sees a set of them, in no order.
#
# The row then passes through n_layer blocks. Each block adds to it twice: first what
# attention gathered from other tokens, then what a small network, the MLP, made of the
# row. The row that is passed on and added to is called the residual stream. As blocks
# only add, each learns just a correction. And as a sum passes its gradient on
# unchanged, the gradient reaches the first block as well as the last.
#
# At the end, after a last layernorm, the row's dot product with a token's embedding is
# that token's logit. One table is used for input and output, so what is learned about a
# token helps both. All this is exactly GPT-2's architecture.


@dataclass(frozen=True)
class Config:
    """The sizes that define a model. Raises ValueError for an invalid one."""

    vocab_size: int
    block_size: int = 16
    n_layer: int = 1
    n_head: int = 4
    n_embd: int = 16
    tie_word_embeddings: bool = True  # if not, the output has a table of its own

    def __post_init__(self):
        for name, value in vars(self).items():
            if name == "tie_word_embeddings":
                continue
            most = 999 if name == "n_layer" else 10**6
            if type(value) is not int or not 1 <= value <= most:
                limits = f"a whole number from 1 to {most}"
                raise ValueError(f"{name} is {value!r}: must be {limits}")
        rest = self.n_embd % self.n_head
        if rest != 0:
            must = f"a multiple of n_head, which is {self.n_head}"
            larger = self.n_embd - rest + self.n_head
            raise ValueError(f"n_embd is {self.n_embd}: must be {must}; try {larger}")


def parameter_shapes(config):
    """The name and shape of every parameter. A weight is [n_out, n_in], as in linear.

    The names are GPT-2's own: wte and wpe are the embeddings of tokens and positions, h
    the blocks, ln a layernorm (f: final), c a linear layer (fc: fully connected).
    The comments count the numbers, biases included, for 27 tokens and the default
    Config: 4,000. The smallest GPT-2 is Config(50257, 1024, 12, 12, 768): 124 million.
    """
    C = config.n_embd
    layers = {}
    for i in range(config.n_layer):
        layers[f"h.{i}.ln_1"] = (C,)  # before attention: 32
        layers[f"h.{i}.attn.c_attn"] = (3 * C, C)  # makes query, key and value: 816
        layers[f"h.{i}.attn.c_proj"] = (C, C)  # mixes what the heads found: 272
        layers[f"h.{i}.ln_2"] = (C,)  # before the MLP: 32
        layers[f"h.{i}.mlp.c_fc"] = (4 * C, C)  # to rows four times as wide: 1,088
        layers[f"h.{i}.mlp.c_proj"] = (C, 4 * C)  # and back: 1,040
    layers["ln_f"] = (C,)  # before the output: 32
    shapes = {}
    shapes["wte.weight"] = (config.vocab_size, C)  # token embeddings: 432
    shapes["wpe.weight"] = (config.block_size, C)  # position embeddings: 256
    for name, shape in layers.items():
        shapes[f"{name}.weight"] = shape  # the weight of a layernorm is its gain
        shapes[f"{name}.bias"] = shape[:1]
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, C)
    return shapes


def initial_params(config, rng):
    """Parameters to start training from: {name: a row of floats, or a list of rows}.

    Gains start at 1 and biases at 0, as if they were not there. Weights are random: if
    they were equal, they would get equal gradients and stay equal. Their standard
    deviation is GPT-2's, 0.02 at a width of 768. Narrower models sum fewer terms, so
    they need larger weights for sums of the same size. Positions start at half of that,
    as in GPT-2: a row should first of all say which token it is. c_proj starts smaller,
    as a sum of 2 n_layer additions grows with the square root of their number.
    """
    params = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            params[name] = [0.0 if name.endswith("bias") else 1.0] * shape[0]
            continue
        std = 0.02 * math.sqrt(768 / config.n_embd)
        if name == "wpe.weight":
            std *= 0.5
        if name.endswith("c_proj.weight"):
            std *= 1 / math.sqrt(2 * config.n_layer)
        n_rows, n = shape
        params[name] = [[rng.gauss(0, std) for _ in range(n)] for _ in range(n_rows)]
    return params


class GPT:
    """A GPT-2: its config, and its parameters, rows of numbers of any kind."""

    def __init__(self, config, params=None, seed=0):
        self.config = config
        if params is None:
            params = initial_params(config, random.Random(seed))
        self.params = params
        shapes = parameter_shapes(config)
        for name in sorted({*shapes, *params}):
            found = shape_of(params[name]) if name in params else "missing"
            needed = shapes.get(name, "left out")
            if found != needed:
                raise ValueError(f"the parameter {name} is {found}: must be {needed}")

    def convert(self, function):
        """A copy of the model, with the function applied to every parameter."""
        params = {name: for_each(function, x) for name, x in self.params.items()}
        return GPT(self.config, params)

    def apply(self, layer, name, x):
        """Apply a layer that has a weight (or gain) and a bias, by its name."""
        return layer(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"])

    def attend(self, name, x):
        """Apply attention, which has no parameters. (The name is for Part II.)"""
        return attention(x, self.config.n_head)

    def block(self, h, x):
        """Attention, then the MLP, each added to x. h is the block's name, like "h.0".

        c_proj lets a row combine what one head found with what another found. The MLP
        is four times as wide inside, by custom: room to notice many things about a row.
        """
        y = self.apply(layernorm, f"{h}.ln_1", x)  # [T, C]
        y = self.apply(linear, f"{h}.attn.c_attn", y)  # [T, 3C]
        y = self.attend(f"{h}.attn", y)  # [T, C]
        y = self.apply(linear, f"{h}.attn.c_proj", y)  # [T, C]
        x = add(x, y)  # [T, C]

        y = self.apply(layernorm, f"{h}.ln_2", x)  # [T, C]
        y = self.apply(linear, f"{h}.mlp.c_fc", y)  # [T, 4C]
        y = gelu(y)  # [T, 4C]
        y = self.apply(linear, f"{h}.mlp.c_proj", y)  # [T, C]
        return add(x, y)  # [T, C]

    def positions(self, tokens):
        """Where each token stands in its window. (Part II reads several at once.)"""
        return range(len(tokens))

    def __call__(self, tokens):
        """The forward pass: for each token, the logits of the token after it."""
        wte = self.params["wte.weight"]  # [vocab_size, C]
        wpe = self.params["wpe.weight"]  # [block_size, C]
        x = embedding(wte, tokens)  # [T, C]
        x = add(x, embedding(wpe, self.positions(tokens)))  # [T, C]
        for i in range(self.config.n_layer):
            x = self.block(f"h.{i}", x)  # [T, C]
        x = self.apply(layernorm, "ln_f", x)  # [T, C]
        return linear(x, self.params.get("lm_head.weight", wte))  # [T, vocab_size]

    def loss(self, windows):
        """The mean loss over all predictions in a list of windows."""
        logits = []
        targets = []
        for window in windows:
            logits.extend(self(window[:-1]))
            targets.extend(window[1:])
        return cross_entropy(logits, targets)


def shape_of(x):
    """(n,) for a row of n numbers, (n_rows, n) for rows. (In Part II, x may know.)"""
    if hasattr(x, "shape"):
        return tuple(x.shape)
    return (len(x), len(x[0])) if hasattr(x[0], "__len__") else (len(x),)


def for_each(function, x):
    """Apply a function to a number, or to each number in a row or in rows."""
    if hasattr(x, "__len__"):
        return [for_each(function, y) for y in x]
    return function(x)


# === 6. Optimizer ===================================================== ladder: gpt ===
# The gradient tells which way the loss rises. Learning means stepping the other way,
# p = p - lr * gradient, with a learning rate lr. But what is a good rate? Gradients
# differ greatly in size, between parameters and from one step's windows to the next. So
# AdamW (Adam: adaptive moments) keeps two running averages for each parameter: m of its
# gradient, which evens out chance, and v of its squared gradient, whose square root is
# the gradient's usual size. The step is lr m / sqrt(v). It is near lr where gradients
# agree, however small they are, and near 0 where they keep changing sign.


def is_linear_weight(name):
    """Is this the weight of a linear layer? These are the ones called c_something."""
    return ".c_" in name and name.endswith(".weight")


class AdamW:
    """Adam with decoupled weight decay. It updates `params` in place.

    At step t = 1, 2, 3... with gradient g:
        m = beta1 m + (1 - beta1) g          m_hat = m / (1 - beta1^t)
        v = beta2 v + (1 - beta2) g^2        v_hat = v / (1 - beta2^t)
        p = p - lr decay p - lr m_hat / (sqrt(v_hat) + eps)
    beta is the share of an average that is kept at each step: with 0.8, it reaches back
    about 1 / (1 - 0.8) = 5 steps. (The usual 0.9 and 0.999 suit longer runs.) m
    and v start at 0, so at first they are too small; m_hat and v_hat correct this. eps
    prevents a division by 0. Decay, if it is not 0, pulls the weights of linear layers
    towards 0, so only useful ones stay large. Decoupled means that it bypasses m and v.
    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    def __init__(self, params, beta1=0.8, beta2=0.97, eps=1e-8, weight_decay=0.0):
        self.params = params
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weight_decay = weight_decay
        self.t = 0
        self.m = {name: for_each(lambda p: 0.0, x) for name, x in params.items()}
        self.v = {name: for_each(lambda p: 0.0, x) for name, x in params.items()}

    def step(self, gradients, lr):
        """Change every parameter once, at learning rate lr."""
        self.t += 1
        for name, gradient in gradients.items():
            decay = self.weight_decay if is_linear_weight(name) else 0.0
            tables = [self.params[name], gradient, self.m[name], self.v[name]]
            for p, g, m, v in zip(*map(to_rows, tables)):
                self.update_row(p, g, m, v, lr, decay)

    def update_row(self, p, g, m, v, lr, decay):
        """The formula, for each parameter of a row."""
        for i in range(len(p)):
            m[i] = self.beta1 * m[i] + (1 - self.beta1) * g[i]
            v[i] = self.beta2 * v[i] + (1 - self.beta2) * g[i] ** 2
            m_hat = m[i] / (1 - self.beta1**self.t)
            v_hat = v[i] / (1 - self.beta2**self.t)
            p[i] -= lr * decay * p[i] + lr * m_hat / (math.sqrt(v_hat) + self.eps)


def to_rows(x):
    """A weight is a list of rows already. A gain or bias becomes a list of one row."""
    return x if hasattr(x[0], "__len__") else [x]


def learning_rate(step, steps, peak, warmup=0):
    """Rise in a straight line to the peak in `warmup` steps, then fall towards 0.

    At first, m and v rest on few windows. At the end, the parameters should settle.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / (steps - warmup)


# === 7. Training =============================================== ladder: pairs, gpt ===
# Training repeats one step: take a few windows (a batch), compute their loss and its
# gradients, and move every parameter a little. The parameters are kept as floats. Each
# step makes new Values of them, so no gradient is left over from the last step.
#
# Does the model learn what names have in common, or just memorize these names? We hold
# some out and never train on them. If the training loss still falls while the loss on
# these rises, the model has begun to memorize.


def train(model, windows, steps, batch_size, peak, rng):
    """Train a model of floats, in place. Print a mean loss after every 50 steps."""
    optimizer = AdamW(model.params)
    losses = []
    for step in range(steps):
        batch = rng.sample(windows, batch_size)
        on_values = model.convert(Value)
        loss = on_values.loss(batch)
        loss.backward()
        gradients = on_values.convert(operator.attrgetter("grad")).params
        optimizer.step(gradients, learning_rate(step, steps, peak, warmup=20))
        losses.append(loss.data)
        if len(losses) % 50 == 0:
            print(f"step {len(losses)}: training loss {sum(losses[-50:]) / 50:.2f}")


# === 8. Generation =============================================== ladder: die, gpt ===
# The model only predicts the next token. How does it write a whole name? By predicting
# again and again: turn the logits of the last token into probabilities, draw a token,
# append it, and predict the next one, until <|endoftext|> is drawn.


def sample(logits, temperature, rng):
    """Draw a token id from a row of logits (floats), divided by the temperature.

    At 1 the probabilities are the model's own. A temperature T turns a probability p
    into p^(1/T), up to a common factor. So below 1, likely tokens become even likelier;
    0 always takes the likeliest. Above 1, unlikely tokens get a better chance.
    """
    if temperature == 0:
        return max(range(len(logits)), key=logits.__getitem__)
    largest = max(logits)  # subtracted, so that dividing cannot make infinities
    probabilities = softmax([(logit - largest) / temperature for logit in logits])
    return rng.choices(range(len(logits)), probabilities)[0]


def write(model, tokenizer, rng, prompt="", temperature=1.0, max_tokens=100):
    """Write a document that begins with the prompt, up to END or max_tokens."""
    tokens = [tokenizer.end] + tokenizer.encode(prompt)
    for _ in range(max_tokens):
        logits = model(tokens[-model.config.block_size :])  # the most it can read
        token = sample(logits[-1], temperature, rng)
        if token == tokenizer.end:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[1:])


def tutorial(path="data/names.txt"):
    """Train a GPT on Values, and let it write. It takes a minute, and prints:

    before training: held-out loss 3.53
    step 50: training loss 2.91
    step 100: training loss 2.67
    step 150: training loss 2.60
    step 200: training loss 2.59
    after training: held-out loss 2.58
    new names: hatari, erinir, kalent, hine, cola, amikan, jenihe, perilan

    At first it is worse than knowing nothing, 3.30: random weights make confident
    mistakes. Knowing how frequent each letter is would give 2.91; knowing which letter
    follows which, 2.62. Change a number, and predict what will happen:
        steps=1000         2.55: more steps help, but each less than the one before
        batch_size=16      2.53, in four times the time: less noise in each gradient
        peak=1.0, 0.0005   about 2.9, both: steps too long, or too short to arrive
        temperature=0.2    names that are more alike; at 2, random letters
    GPT-2 is this with a larger Config, tokens of several letters, dropout (training
    with some numbers set to 0), and 8 million web pages. A chat model is larger still,
    and was then trained further, on how to answer people.
    """
    rng = random.Random(1)
    documents = read_documents(path)
    rng.shuffle(documents)
    tokenizer = CharTokenizer(documents)
    config = Config(tokenizer.vocab_size)
    model = GPT(config, initial_params(config, rng))
    windows = []
    for document in documents:
        windows += cut_windows(document, tokenizer, config.block_size)
    held_out = windows[:200]  # a name fits into one window
    print(f"before training: held-out loss {model.loss(held_out):.2f}")
    train(model, windows[200:], steps=200, batch_size=4, peak=0.02, rng=rng)
    print(f"after training: held-out loss {model.loss(held_out):.2f}")
    names = [write(model, tokenizer, rng, temperature=0.7) for _ in range(8)]
    print("new names:", ", ".join(names))


# === 9. Tensor ===================================================== ladder: window ===
# In Part II the model computes the same numbers in about a seventh of the time. Every
# fast form here has its plain form in Part I, and tests show that the two agree.
#
# A graph of single numbers shows everything and is slow: 6,801 nodes for "emma", not
# counting leaves. So let one node hold rows of numbers, and let each layer make one
# node: 16 nodes. Such a node is a `Tensor`. In place of local gradients it has a rule,
# worked out once on paper, which turns the gradient of the layer's output into the
# gradients of its inputs.


class Tensor:
    """A row, or rows, of numbers that remember how they were computed.

    It has a place in the graph, as a Value has. But it passes its gradient on by a
    rule, for a whole layer at once. backward() starts from a single number, such as a
    loss, and that is a Value even where Tensors led to it.

    >>> t = Tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> (t[1][0] * t[0][1]).backward()
    >>> t.grad
    [[0.0, 3.0], [2.0, 0.0]]
    """

    __slots__ = ("data", "grad", "inputs", "children", "rule", "elements")

    def __init__(self, data, inputs=(), rule=None):
        self.data = data
        self.grad = 0.0  # none yet; later, rows of the same shape as data
        self.inputs = inputs  # of the layer that made it, Tensors or not
        self.children = [x for x in inputs if isinstance(x, Tensor)]
        self.rule = rule  # d loss / d data -> [d loss / d input, for each input]
        self.elements = None

    def pass_on(self):
        """The chain rule, for all numbers of a layer at once."""
        for x, grad in zip(self.inputs, self.rule(self.grad)):
            if isinstance(x, Tensor):
                x.collect(grad)

    def collect(self, grad):
        """Add a share to the gradient. (Never in place: nodes may share a gradient.)"""
        self.grad = grad if isinstance(self.grad, float) else add_rows(self.grad, grad)

    def __repr__(self):
        return f"Tensor(data={self.data}, grad={self.grad})"

    @property
    def shape(self):
        """(n,) for a row of n numbers, (n_rows, n) for rows."""
        return shape_of(self.data)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, key):
        if self.elements is None:
            self.elements = take_apart(self)
        return self.elements[key]


def zeros_like(x):
    """A row or rows of zeros, of the same shape."""
    return for_each(lambda number: 0.0, x)


def add_rows(x, y):
    """x + y, for two rows, or two lists of rows, of the same shape."""
    if hasattr(x[0], "__len__"):
        return [list(map(operator.add, a, b)) for a, b in zip(x, y)]
    return list(map(operator.add, x, y))


# A rule knows nothing of Tensors. It is written for plain rows, inside of a function
# that computes the layer's output and returns both. Doubling, for example:
#
#     def fused_double(x):
#         def double_rule(dy):
#             return [[[2 * d for d in row] for row in dy]]
#
#         return [[2 * a for a in row] for row in x], double_rule
#
# The rule returns a list with a gradient for each input; here there is one. Now write
# @differentiable(double) above it, where double is a layer like those of chapter 4. For
# t = Tensor([[1.0]]), double(t) then gives Tensor([[2.0]], [t], double_rule), which is
# all that backward() needs. For plain rows of floats, double([[1.0]]) gives [[2.0]].
# How differentiable does it, you may skip.


def differentiable(layer, plain=list, node=Tensor):
    """Register a function of plain rows, which returns (output, rule), as a layer.

    The layer then uses it on nodes, and makes a new node with the rule. For its speed,
    it is also used on plain lists of rows of floats, without the rule. Where there are
    Values among the inputs, or rows of them, chapter 4's definition does the work.
    (Each input must be of one kind: all floats or all Values.) A rule may return more
    gradients than there are inputs, as linear's does without a bias.
    Another program may bring other kinds of rows, with a kind of node that collects
    their gradients: examples/engines/numpy_engine.py does.
    """
    definition = layer.dispatch(object)

    def register(function):
        signature = inspect.signature(function)

        def on_plain_rows_or_nodes(*inputs, **options):
            if options:  # inputs may be given by name, as in linear(x, W, bias=b)
                inputs = signature.bind(*inputs, **options).args
            data = []
            on_nodes = False
            for x in inputs:
                if isinstance(x, Tensor):
                    on_nodes = True
                    x = x.data
                elif holds_values(x):
                    return definition(*inputs)
                data.append(x)
            y, rule = function(*data)
            if not on_nodes:
                return y
            kind = node if hasattr(y, "__len__") else LayerValue
            return kind(y, inputs, rule)

        layer.register(plain, on_plain_rows_or_nodes)
        layer.register(node, on_plain_rows_or_nodes)
        return function

    return register


def holds_values(x):
    """Is this a Value, a row or rows of them? The first number tells."""
    while isinstance(x, (list, tuple)) and x:
        x = x[0]
    return isinstance(x, Value)


# A single number that a layer makes from Tensors, such as a loss, is a Value, so you
# can go on calculating with it. A layer that has no rule, because you have just
# invented it, runs on Tensors as it is. By t[i], len(t) or a loop it takes them apart
# into rows of Values, and makes many small nodes, as in Part I. The layers after it run
# on rows of Values, too, whether they have a rule or not. This is slow, but right.


class LayerValue(Value):
    """A single number that a layer made of Tensors, such as the loss."""

    __slots__ = ("inputs", "rule")

    def __init__(self, data, inputs, rule):
        super().__init__(data, [x for x in inputs if isinstance(x, Tensor)])
        self.inputs = inputs
        self.rule = rule

    pass_on = Tensor.pass_on


class Element(Value):
    """One number of a Tensor, as a Value."""

    __slots__ = ("row", "column")

    def __init__(self, tensor, row, column, data):
        super().__init__(data, (tensor,))
        self.row = row  # its row's index, or None if the Tensor is a single row
        self.column = column

    def pass_on(self):
        """Add to the right place of the Tensor's gradient."""
        (tensor,) = self.children
        if isinstance(tensor.grad, float):
            tensor.grad = zeros_like(tensor.data)
        row = tensor.grad if self.row is None else tensor.grad[self.row]
        row[self.column] += self.grad


def take_apart(tensor):
    """A Tensor -> a row, or rows, of Values that pass their gradients on to it.

    A Value adds to a number of its Tensor's gradient in place, so that must be a
    gradient that no other node shares: the gradient of a copy, which is another node.
    """

    def copy_rule(d_copy):
        return [d_copy]

    data = tensor.data
    if hasattr(data, "tolist"):  # of another kind, such as a NumPy array
        data = data.tolist()
    copy = Tensor(data, [tensor], copy_rule)
    if not hasattr(data[0], "__len__"):
        return [Element(copy, None, i, x) for i, x in enumerate(data)]
    rows = []
    for r, row in enumerate(data):
        rows.append([Element(copy, r, i, x) for i, x in enumerate(row)])
    return rows


# Nearly all the time goes into sums of products. Python takes longer to go round a loop
# than to multiply. So, for narrow rows, we have it build a function in which the sum is
# written out, once for each width that occurs. For rows of three numbers (with a comma
# after a2, for the sake of rows of one number):
#
#     def multiply(A, B):
#         C = []
#         for a0, a1, a2, in A:
#             row = []
#             for b0, b1, b2, in B:
#                 row.append(a0 * b0 + a1 * b1 + a2 * b2)
#             C.append(row)
#         return C


def matmul(A, B):
    """A B^T: each row of A times each row of B. [n, k], [m, k] -> [n, m], of floats.

    >>> matmul([[1.0, 2.0]], [[10.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    [[12.0, 2.0, 3.0]]
    """
    return multiplier(len(B[0]))(A, B)


def sum_of_products(a, b):
    """The dot product of two rows of floats."""
    return sum(map(operator.mul, a, b))


# Up to which width is a sum faster when written out? Python 3.12 brought math.sumprod,
# which is written in C and wins sooner.
WIDEST = 64
if hasattr(math, "sumprod"):
    sum_of_products = math.sumprod
    WIDEST = 16


@cache
def multiplier(width):
    """The function above, for rows of this width."""
    if width > WIDEST:
        return multiply_wide
    a = [f"a{i}" for i in range(width)]
    b = [f"b{i}" for i in range(width)]
    products = " + ".join(f"{x} * {y}" for x, y in zip(a, b))
    source = f"""
def multiply(A, B):
    C = []
    for {", ".join(a)}, in A:
        row = []
        for {", ".join(b)}, in B:
            row.append({products})
        C.append(row)
    return C
"""
    scope = {}
    exec(source, scope)
    return scope["multiply"]


def multiply_wide(A, B):
    """The same in a loop, for wide rows."""
    return [[sum_of_products(a, b) for b in B] for a in A]


def transpose(rows):
    """Rows -> columns: [n, m] -> [m, n].

    >>> transpose([[1, 2, 3], [4, 5, 6]])
    [(1, 4), (2, 5), (3, 6)]
    """
    return list(zip(*rows))


# === 10. Fused layers =================================================================
# Here is each layer of chapter 4 once more, as a function of plain rows of floats that
# returns the output y and the rule. In the formulas, dy means d loss / d y, with a row
# for each row of y. To find a rule, take a single number of the input, and find all
# numbers of y that depend on it. Multiply the derivative of each of these by its dy,
# and add up: that is the chain rule. Take linear, where output o of token t is
#     y_to = sum_i x_ti W_oi + b_o
# All outputs of token t depend on x_ti, and d y_to / d x_ti is W_oi. So
#     dx_ti = sum_o dy_to W_oi        which is a product of matrices, dx = dy W
# Output o of all tokens depends on W_oi, and d y_to / d W_oi is x_ti. So
#     dW_oi = sum_t dy_to x_ti        which is dW = dy^T x
# Output o of all tokens depends on b_o, with a derivative of 1: db_o = sum_t dy_to.
# The other rules are found in the same way. They are called fused, because one rule
# stands for many small steps. gradcheck, in chapter 11, compares each of them with
# nudging, and the tests compare each with chapter 4's definition.


@differentiable(embedding)
def fused_embedding(table, ids):
    """y_t = table[ids_t]. A row's gradient is the sum over the places it went to."""

    def embedding_rule(dy):
        d_table = [[0.0] * len(row) for row in table]
        for i, row in zip(ids, dy):
            d_table[i] = [a + b for a, b in zip(d_table[i], row)]
        return [d_table]

    return embedding.dispatch(object)(table, ids), embedding_rule


@differentiable(add)
def fused_add(x, y):
    """z = x + y: dx = dy = dz."""

    def add_rule(dz):
        return dz, dz

    return [list(map(operator.add, a, b)) for a, b in zip(x, y)], add_rule


@differentiable(linear)
def fused_linear(x, weight, bias=None):
    """y = x W^T + b: dx = dy W, dW = dy^T x, db = sum_t dy_t."""
    y = matmul(x, weight)
    if bias is not None:
        y = [list(map(operator.add, row, bias)) for row in y]

    def linear_rule(dy):
        dy_columns = transpose(dy)
        dx = matmul(dy, transpose(weight))
        d_weight = matmul(dy_columns, transpose(x))
        d_bias = [sum(column) for column in dy_columns]
        return dx, d_weight, d_bias

    return y, linear_rule


@differentiable(layernorm)
def fused_layernorm(x, gain, bias, eps=1e-5):
    """n = (x - mean) s, with s = 1 / sqrt(variance + eps), and y = n gain + bias.

    d mean / d x_j = 1/C. d variance / d x_j = 2 (x_j - mean) / C: that the mean moves,
    too, makes no difference, since all x - mean add up to 0. So d s / d x_j is
    -s^3 / 2 times that, which is -s^2 n_j / C, and
        d n_i / d x_j = s ([i = j] - 1/C - n_i n_j / C)
    where [i = j] is 1 if i is j, and 0 if not. With u = dy gain, this sums up to
        dx = s (u - mean(u) - n mean(u n)), d gain = sum_t dy_t n_t, d bias = sum_t dy_t
    """
    normal = []
    scales = []
    for row in x:
        mean = sum(row) / len(row)
        centred = [a - mean for a in row]
        scale = (sum_of_products(centred, centred) / len(row) + eps) ** -0.5
        normal.append([c * scale for c in centred])
        scales.append(scale)
    y = [[n * g + b for n, g, b in zip(row, gain, bias)] for row in normal]

    def layernorm_rule(dy):
        dx = []
        for dy_row, n_row, scale in zip(dy, normal, scales):
            u = [d * g for d, g in zip(dy_row, gain)]
            mean_u = sum(u) / len(u)
            mean_un = sum_of_products(u, n_row) / len(u)
            dx.append([scale * (a - mean_u - n * mean_un) for a, n in zip(u, n_row)])
        dy_columns = transpose(dy)
        d_gain = list(map(sum_of_products, dy_columns, transpose(normal)))
        d_bias = [sum(column) for column in dy_columns]
        return dx, d_gain, d_bias

    return y, layernorm_rule


@differentiable(gelu)
def fused_gelu(x):
    """y = x h, with h = (1 + tanh(u)) / 2 and u = c (x + d x^3).

    As tanh' = 1 - tanh^2, dh/du = 2 h (1 - h). So the slope of y is
    h + x dh/du du/dx = h + x h (1 - h) (2 c + 6 c d x^2).
    """
    c = math.sqrt(2 / math.pi)
    d = 0.044715
    tanh = math.tanh
    h = [[0.5 + 0.5 * tanh(c * a * (1.0 + d * a * a)) for a in row] for row in x]

    def gelu_rule(dy):
        e = 2 * c
        f = 6 * c * d
        dx = []
        for rows in zip(dy, x, h):
            dx.append(
                [
                    g * (b + a * b * (1.0 - b) * (e + f * a * a))
                    for g, a, b in zip(*rows)
                ]
            )
        return [dx]

    return [list(map(operator.mul, *rows)) for rows in zip(x, h)], gelu_rule


@differentiable(cross_entropy)
def fused_cross_entropy(logits, targets):
    """loss = mean_t (log sum_j e^l_tj - l_t[target]).

    dl_tj = (softmax(l_t)_j - [j = target]) / T, times the gradient of the loss.
    """
    probabilities = []
    total = 0.0
    exp = math.exp
    for row, target in zip(logits, targets):
        largest = max(row)
        powers = [exp(a - largest) for a in row]
        power_sum = sum(powers)
        total += math.log(power_sum) + largest - row[target]
        probabilities.append([power / power_sum for power in powers])

    def cross_entropy_rule(d_loss):
        share = d_loss / len(targets)
        d_logits = [[p * share for p in row] for row in probabilities]
        for row, target in zip(d_logits, targets):
            row[target] -= share
        return [d_logits]

    return total / len(targets), cross_entropy_rule


# Attention, for one window and one head, is O = A V, with A = softmax(S / sqrt(d)) row
# by row, and S = Q K^T. From the output back:
#     dV = A^T dO,   dA = dO V^T,   dS = A (dA - sum_s A_s dA_s) / sqrt(d),
#     dQ = dS K,     dK = dS^T Q
# The middle one is softmax's: d A_s / d S_r = A_s ([s = r] - A_r) / sqrt(d). A token's
# row of A is filled up with 0 for later tokens, so they take no part in any sum. A head
# is a range of columns; so q, k, v, their gradients and the output are kept as columns,
# that is, transposed. And as matmul(A, B) is A B^T, (dS K)^T is matmul(K^T, dS).


def attention_weights(q, k):
    """The rows of A; q and k are columns, [d, T]."""
    scale = len(q) ** -0.5
    n_tokens = len(k[0])
    A = []
    for t, row in enumerate(matmul(transpose(q), transpose(k))):
        weights = softmax_of_floats([score * scale for score in row[: t + 1]])
        A.append(weights + [0.0] * (n_tokens - t - 1))
    return A


def softmax_of_floats(row):
    """softmax, for floats only."""
    exp = math.exp
    largest = max(row)
    powers = [exp(x - largest) for x in row]
    total = sum(powers)
    return [power / total for power in powers]


def head_gradients(q, k, v, A, dO):
    """The five formulas above -> dq, dk, dv; all but A are columns, [d, T]."""
    scale = len(q) ** -0.5
    dS = []
    for a_row, da_row in zip(A, matmul(transpose(dO), transpose(v))):
        mean = sum_of_products(a_row, da_row)
        dS.append([a * (da - mean) * scale for a, da in zip(a_row, da_row)])
    dq = matmul(k, dS)  # (dS K)^T
    dk = matmul(q, transpose(dS))  # (dS^T Q)^T
    dv = matmul(dO, transpose(A))  # (A^T dO)^T
    return dq, dk, dv


@differentiable(attention)
def fused_attention(x, n_head):
    """All heads on one window, by the formulas above."""
    columns = transpose(x)
    C = len(columns) // 3
    d = C // n_head
    heads = []
    y_columns = []
    for i in range(0, C, d):
        q = columns[i : i + d]
        k = columns[C + i : C + i + d]
        v = columns[2 * C + i : 2 * C + i + d]
        A = attention_weights(q, k)
        heads.append((q, k, v, A))
        y_columns.extend(matmul(v, A))  # (A V)^T

    def attention_rule(dy):
        dy_columns = transpose(dy)
        dq = []
        dk = []
        dv = []
        for i, (q, k, v, A) in enumerate(heads):
            dO = dy_columns[i * d : i * d + d]
            dq_head, dk_head, dv_head = head_gradients(q, k, v, A, dO)
            dq.extend(dq_head)
            dk.extend(dk_head)
            dv.extend(dv_head)
        return [transpose(dq + dk + dv)]

    return list(map(list, zip(*y_columns))), attention_rule


# Every call of a layer costs time. So a batch is read in one go: its windows are laid
# end to end in one long list. Most layers treat each token by itself, and need not
# know where a window ends. Only positions and attention must know.


def pack(windows):
    """Windows -> (tokens, targets), each in one long list.

    >>> pack([[4, 0, 1, 4], [4, 2, 4]])
    ([4, 0, 1, 4, 2], [0, 1, 4, 2, 4])
    """
    tokens = [token for window in windows for token in window[:-1]]
    targets = [token for window in windows for token in window[1:]]
    return tokens, targets


@singledispatch
def packed_attention(x, n_head, lengths):
    """Attention on packed windows of these lengths, each window by itself."""
    out = []
    for start, stop in spans(lengths):
        out.extend(attention(x[start:stop], n_head))
    return out


def spans(lengths):
    """Where each window starts and stops.

    >>> spans([3, 2])
    [(0, 3), (3, 5)]
    """
    found = []
    start = 0
    for length in lengths:
        found.append((start, start + length))
        start += length
    return found


@differentiable(packed_attention)
def fused_packed_attention(x, n_head, lengths):
    """The rule of each window, on its part of the rows."""
    y = []
    rules = []
    for start, stop in spans(lengths):
        rows, rule = fused_attention(x[start:stop], n_head)
        y.extend(rows)
        rules.append(rule)

    def packed_attention_rule(dy):
        dx = []
        for rule, (start, stop) in zip(rules, spans(lengths)):
            (dx_window,) = rule(dy[start:stop])
            dx.extend(dx_window)
        return [dx]

    return y, packed_attention_rule


class PackedGPT(GPT):
    """A GPT that reads several windows at once. It gives the same loss."""

    lengths = None  # of the windows that loss is reading; None means a single one

    def positions(self, tokens):
        """Where each token stands in its window: 0, 1, 2, 0, 1 for lengths 3 and 2."""
        lengths = self.lengths or [len(tokens)]
        return [i for length in lengths for i in range(length)]

    def attend(self, name, x):
        """Attention, each window by itself."""
        return packed_attention(x, self.config.n_head, self.lengths or [len(x)])

    def loss(self, windows):
        """The mean loss over all predictions in a list of windows."""
        tokens, targets = pack(windows)
        self.lengths = [len(window) - 1 for window in windows]
        logits = self(tokens)
        self.lengths = None
        return cross_entropy(logits, targets)


# === 11. Engines ====================================================== ladder: gpt ===
# The Trainer of chapter 12 does not compute by itself. It is given an engine: an object
# that turns a batch into a loss and gradients, and supplies an optimizer for them. Here
# are engines that compute on Values and on Tensors, and one that shares the work among
# processes. Those in examples/engines/ compute with NumPy and PyTorch. Whatever else a
# Trainer does (the order of the data, the steps, the records) is the same for all.
#
#     called by       methods of an engine
#     Trainer         prepare and optimizer, once; then for each step gradients and norm
#     gradients       convert and gradient, for each parameter; so does gradcheck
#     checkpoints     write_tensors, if the engine `leads`
#     command line    new_model, about, rate; and close, when the training ends


class ValueEngine:
    """Computes on Values, one node for each number. Other engines build on it."""

    name = "value"
    leads = True  # False in all but one of several processes that train together

    def convert(self, x):
        """A parameter, as floats -> the same as nodes of this engine's graph."""
        return for_each(Value, x)

    def gradient(self, x):
        """What backward() left in a converted parameter -> floats of its shape."""
        return for_each(operator.attrgetter("grad"), x)

    def new_model(self, config, seed):
        """A model of this shape, with the parameters that a seed gives."""
        return GPT(config, seed=seed)

    def prepare(self, model):
        """The model to train, evaluate and write with. Called once, by the Trainer."""
        return model

    def gradients(self, model, batch):
        """A batch of windows -> (its loss, {name: gradient}), for a model of floats."""
        with garbage_collection_paused():
            return self.backward(model, batch)

    def backward(self, model, batch):
        """The same. Its graph is gone before the collector looks for cycles again."""
        params = {name: self.convert(x) for name, x in model.params.items()}
        # A network of your own, a subclass of GPT, reads one window at a time.
        kind = PackedGPT if type(model) is GPT else type(model)
        loss = kind(model.config, params).loss(batch)
        loss.backward()
        gradients = {name: self.gradient(x) for name, x in params.items()}
        return float(loss), gradients

    def norm(self, gradients):
        """The length of all gradients together, as one long vector."""
        rows = [row for x in gradients.values() for row in to_rows(x)]
        return math.hypot(*[math.hypot(*row) for row in rows])

    def optimizer(self, model, weight_decay):
        """What moves the parameters: its step(gradients, lr, factor) does."""
        return FastAdamW(model.params, weight_decay=weight_decay)

    def write_tensors(self, tensors, dtype="F64", **metadata):
        """{name: row or rows} -> the pieces of a .safetensors file (chapter 15)."""
        return write_tensors(tensors, dtype, **metadata)

    def about(self):
        """For the command line: what computes."""
        return f"{self.name} engine"

    def rate(self, tokens_per_second):
        """For the command line: how fast it is."""
        return f"{tokens_per_second:,.0f} tokens/s"

    def close(self):
        """Let go of what the engine holds, such as processes."""


class TensorEngine(ValueEngine):
    """Computes on Tensors, one node a layer. The gradients are the same."""

    name = "tensor"

    def convert(self, x):
        """A row or rows -> a Tensor. A single number stays a Value."""
        return Value(x) if isinstance(x, (int, float)) else Tensor(x)

    def gradient(self, x):
        """Zeros, if the loss does not depend on it."""
        if isinstance(x, Tensor) and isinstance(x.grad, float):
            return zeros_like(x.data)
        return x.grad


ENGINES = {"tensor": TensorEngine, "value": ValueEngine}


@contextmanager
def garbage_collection_paused():
    """Keep Python from searching the growing graph for cycles. There are hardly any."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def slope(f, x, step=1e-5):
    """Measure the derivative of f at x: nudge x both ways and see how much f changes.

    This needs no calculus, so it can check ours. The step is small, because f curves,
    but not much smaller, because rounding errors would then spoil the difference.
    >>> x = Value(2.0)
    >>> log(x).backward()
    >>> x.grad, round(slope(log, 2.0), 9)
    (0.5, 0.5)
    """
    return (f(x + step) - f(x - step)) / (2 * step)


def gradcheck(f, params, engine=None, step=1e-5, tolerance=1e-6):
    """Compare every derivative with nudging, and return the largest difference.

    f takes params, {name: a number, a row or rows}, on an engine's numbers (by default
    on Values), and returns a Value. Each number is nudged up and down by `step`. Its
    gradient must equal (f(up) - f(down)) / (2 step) within the tolerance, relative to
    the larger of the two or to 1. The first mismatch raises an ArithmeticError.

    >>> def f(p):
    ...     return p["a"] * p["b"] + p["a"] ** 2
    >>> gradcheck(f, {"a": 2.0, "b": -3.0}) < 1e-9
    True
    """
    engine = engine or ValueEngine()
    params = {name: for_each(float, x) for name, x in params.items()}  # to be nudged

    def converted():
        return {name: engine.convert(x) for name, x in params.items()}

    nodes = converted()
    f(nodes).backward()
    largest = 0.0
    for name, x in nodes.items():
        claims = engine.gradient(x)
        for label, claimed, holder, key in each_number(name, claims, params, name):
            number = holder[key]
            holder[key] = number + step
            up = float(f(converted()))
            holder[key] = number - step
            down = float(f(converted()))
            holder[key] = number
            measured = (up - down) / (2 * step)
            error = abs(claimed - measured) / max(1.0, abs(claimed), abs(measured))
            if not error <= tolerance:
                raise ArithmeticError(
                    f"{label}: backward() says {claimed}, nudging says {measured}"
                )
            largest = max(largest, error)
    return largest


def each_number(label, claimed, holder, key):
    """Each number in holder[key]: its label, claimed gradient, list and index."""
    if not isinstance(holder[key], list):
        yield label, claimed, holder, key
        return
    for i in range(len(holder[key])):
        yield from each_number(f"{label}[{i}]", claimed[i], holder[key], i)


class FastAdamW(AdamW):
    """AdamW, with what all parameters have in common computed once for each step.

    Chapter 6 has m_hat / (sqrt(v_hat) + eps), with m_hat = m / (1 - beta1^t) and
    v_hat = v / root^2, where root = sqrt(1 - beta2^t). Multiplied by root above and
    below the line, that is
        root / (1 - beta1^t) * m / (sqrt(v) + eps root)
    whose first factor and whose eps root are the same for all parameters. A factor for
    all gradients, which makes them shorter, is the same for all, too.
    """

    def step(self, gradients, lr, factor=1.0):
        """Change every parameter once, by its gradient times the factor."""
        self.t += 1
        beta1 = self.beta1
        beta2 = self.beta2
        share1 = (1 - beta1) * factor
        share2 = (1 - beta2) * factor * factor
        root = math.sqrt(1 - beta2**self.t)
        rate = lr * root / (1 - beta1**self.t)
        eps = self.eps * root
        sqrt = math.sqrt
        for name, gradient in gradients.items():
            decay = self.weight_decay if is_linear_weight(name) else 0.0
            tables = [self.params[name], gradient, self.m[name], self.v[name]]
            for p, g, m, v in zip(*map(to_rows, tables)):
                if decay:
                    p[:] = [x - lr * decay * x for x in p]
                for i, slope in enumerate(g):
                    m[i] = mean = beta1 * m[i] + share1 * slope
                    v[i] = square = beta2 * v[i] + share2 * slope * slope
                    p[i] -= rate * mean / (sqrt(square) + eps)

    def restore(self, t, m, v):
        """Go on after t steps, with the averages that a checkpoint has kept."""
        self.t = t
        self.m = m
        self.v = v


class Workers(ValueEngine):
    """An engine that shares each batch among several processes, which use another one.

    Each worker gets the model and some of the windows, and sends gradients back. That
    is worth it if a batch takes clearly longer than sending the model: for the default
    model, from some 30 windows on. The same number of workers gives the same bits.
    The other engine must give gradients as rows of floats, as Values and Tensors do;
    its other methods are not used. `executor` may be any executor like those of
    concurrent.futures; without one, processes are started when needed.
    """

    def __init__(self, engine, n_workers, executor=None):
        self.engine = engine
        self.name = engine.name
        self.n_workers = n_workers
        self.executor = executor
        self.owns_executor = executor is None

    def gradients(self, model, batch):
        """Each worker computes a part of the batch, every n-th window.

        A part's loss is a mean over its own predictions. So in the mean over all, and
        in its gradients, a part counts by how many predictions it has.
        """
        if self.executor is None:
            self.executor = start_processes(self.n_workers)
        n = min(self.n_workers, len(batch))
        parts = [batch[i::n] for i in range(n)]
        counts = [sum(len(window) - 1 for window in part) for part in parts]
        results = self.executor.map(self.engine.gradients, [model] * n, parts)
        loss = 0.0
        gradients = {}
        for count, (part_loss, part_gradients) in zip(counts, results):
            share = count / sum(counts)
            loss += part_loss * share
            for name, x in part_gradients.items():
                weighted = for_each(share.__mul__, x)
                if name in gradients:
                    weighted = add_rows(gradients[name], weighted)
                gradients[name] = weighted
        return loss, gradients

    def close(self):
        """End the processes, if this engine has started any."""
        if self.owns_executor and self.executor is not None:
            self.executor.shutdown()
            self.executor = None


def start_processes(n):
    """An executor with n processes, which leave Ctrl-C to this one."""
    import signal
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(
        n, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )


# === 12. Trainer ====================================================== ladder: gpt ===
# Here is the training loop of chapter 7 once more, as an object. It can be watched,
# stopped and saved between any two steps, and it does four things that `train` leaves
# out. It reads all windows before it reads one again, unless you ask for windows from
# random places. It holds out documents, and measures the loss on them. It shortens a
# gradient that is too long. And it notices when training goes wrong. Everything random
# follows from the seed, so on the same Python the same training run gives the same
# bits.

# The smallest and the largest value of each option, and whether it is a whole number.
# They are wide: they refuse what cannot work, not what is unwise.
LIMITS = {
    "steps": (int, 1, 10**9),
    "batch_size": (int, 1, 10**5),
    "lr": (float, 0, 100),
    "warmup": (int, 0, 10**9),
    "weight_decay": (float, 0, 100),
    "clip": (float, 0, 10**9),
    "val_fraction": (float, 0, 0.99),
    "eval_every": (int, 0, 10**9),
    "workers": (int, 1, 10**5),
    "seed": (int, -math.inf, math.inf),
    "temperature": (float, 0, 10**6),
    "top_k": (int, 0, 10**9),
    "top_p": (float, 0, 1),
    "max_tokens": (int, 1, 10**9),
}
CHOICES = {  # the values of options that are words
    "engine": list(ENGINES),
    "document": ["line", "paragraph", "file"],
    "windows": ["consecutive", "random"],
}


def out_of_range(name, value):
    """What is wrong with an option, by the tables above: a sentence, or None.

    >>> out_of_range("top_p", 1.5)
    'top_p is 1.5: must be a number from 0 to 1'
    """
    if name in CHOICES:
        if value in CHOICES[name]:
            return None
        return f"{name} is {value!r}: must be one of {', '.join(CHOICES[name])}"
    kind, low, high = LIMITS[name]
    is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if is_number and low <= value <= high:
        return None
    number = "a whole number" if kind is int else "a number"
    return f"{name} is {value!r}: must be {number} from {low} to {high}"


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ValueError for an invalid setting."""

    steps: int = 500
    batch_size: int = 4  # windows in each step
    lr: float = 0.01  # the learning rate at its peak
    warmup: int = 40  # steps until the peak
    weight_decay: float = 0.0
    clip: float = 1.0  # the longest gradient; 0 means no limit
    val_fraction: float = 0.1  # the share of the documents that is held out
    eval_every: int = 0  # steps between two held-out losses; 0 means none
    engine: str = "tensor"  # or "value"
    workers: int = 1  # processes that share each batch
    seed: int = 42
    document: str = "line"  # what a document is; or "paragraph", "file" (chapter 17)
    windows: str = "consecutive"  # or "random"

    def __post_init__(self):
        for name, value in vars(self).items():
            problem = out_of_range(name, value)
            if problem:
                raise ValueError(problem)
        if self.workers > self.batch_size:
            raise ValueError(
                f"workers is {self.workers}: must be a whole number from 1 to "
                f"{self.batch_size}, the batch_size, as each takes at least a window"
            )


# What a step reports. The loss is that of its batch before the step; the held-out loss
# comes after it, and is None if it was not measured.
Step = namedtuple("Step", "step loss learning_rate tokens_per_second val_loss")


def split_documents(documents, val_fraction=0.1, seed=0):
    """Shuffle, then hold some out -> (documents to train on, held-out documents).

    The seed decides the order. Unless val_fraction is 0, at least one document is left
    on either side.
    >>> split_documents(["ada", "bob", "cleo", "dan"], val_fraction=0.25, seed=1)
    (['ada', 'cleo', 'bob'], ['dan'])
    """
    shuffled = list(documents)
    if len(shuffled) == 1 and val_fraction:
        raise ValueError(
            "a single document cannot be split into training and held-out ones: give "
            'more, hold out its end (document "file"), or nothing (val_fraction 0)'
        )
    random.Random(seed).shuffle(shuffled)
    if not val_fraction:
        return shuffled, []
    n_held_out = round(len(shuffled) * val_fraction)
    n_held_out = max(1, min(n_held_out, len(shuffled) - 1))
    return shuffled[n_held_out:], shuffled[:n_held_out]


def hold_out_ends(documents, val_fraction=0.1):
    """Hold out the end of each document -> (parts to train on, held-out parts).

    For few documents that are long, such as a single book. Each part is then treated as
    a document, with <|endoftext|> after it.
    >>> hold_out_ends(["to be or not to be"], val_fraction=0.25)
    (['to be or not '], ['to be'])
    """
    training = []
    held_out = []
    for document in documents:
        n_held_out = math.ceil(len(document) * val_fraction)
        cut = len(document) - n_held_out
        training.append(document[:cut])
        held_out.append(document[cut:])
    training = [part for part in training if part]
    held_out = [part for part in held_out if part]
    return training, held_out


def hold_out(documents, config):
    """Hold out documents or, where a document is a whole file, the ends of files."""
    if config.document == "file":
        return hold_out_ends(documents, config.val_fraction)
    return split_documents(documents, config.val_fraction, config.seed)


class Windows:
    """The windows of all documents: what cut_windows makes, in much less memory.

    The tokens stand in one array, as a text: <|endoftext|>, a document, <|endoftext|>,
    the next document and so on. It takes 2 bytes for each token (4 if there are more
    than 65,536 different ones), where lists would take 8, and 8 bytes for each window.
    A window is cut out when it is asked for: windows[0] is the first, windows[:3] a
    list of three.

    >>> windows = Windows(["abbe", "a"], CharTokenizer(["abe"]), block_size=3)
    >>> windows[:]
    [[3, 0, 1, 1], [1, 2, 3], [3, 0, 3]]
    """

    def __init__(self, documents, tokenizer, block_size):
        self.block_size = block_size
        typecode = "H" if tokenizer.vocab_size <= 2**16 else "I"
        self.tokens = array(typecode, [tokenizer.end])
        self.starts = array("Q")
        for document in documents:
            first = len(self.tokens) - 1  # the <|endoftext|> before it
            self.tokens.extend(tokenizer.encode(document))
            self.tokens.append(tokenizer.end)
            self.starts.extend(range(first, len(self.tokens) - 1, block_size))
        self.starts.append(len(self.tokens) - 1)  # where one more would start

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, key):
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        i = range(len(self))[key]  # as in a list: -1 is the last
        start = self.starts[i]
        stop = self.starts[i + 1]  # a window's last token is the next one's first
        return self.tokens[start : stop + 1].tolist()

    def at_random(self, rng):
        """A window from any place, across the borders of documents if need be."""
        last_start = max(0, len(self.tokens) - 1 - self.block_size)
        start = rng.randint(0, last_start)
        return self.tokens[start : start + self.block_size + 1].tolist()


def first_windows(windows, most=500):
    """The first 500 windows or, of long ones, as many as make 2^15 predictions."""
    chosen = []
    n_predictions = 0
    for window in windows[:most]:
        if n_predictions >= 2**15:
            break
        chosen.append(window)
        n_predictions += len(window) - 1
    return chosen


def evaluate(model, windows, most=500):
    """A model's mean loss on windows, in nats, where each prediction counts the same.

    500 windows, or 2^15 predictions if those come first, are enough to know it to about
    0.02. Raises ArithmeticError if it is not a finite number.
    """
    total = 0.0
    n_predictions = 0
    for window in first_windows(windows, most):
        total += float(model.loss([window])) * (len(window) - 1)
        n_predictions += len(window) - 1
    loss = total / n_predictions
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}: training diverged")
    return loss


@lru_cache(2)
def shuffled_range(n, seed):
    """0 to n - 1, in an order that the seed decides."""
    return random.Random(seed).sample(range(n), n)


class Trainer:
    """Trains a model, in place: an iterator that takes a step and reports it.

        for step in Trainer(model, tokenizer, documents, TrainConfig(steps=100)):
            print(step.step, step.loss)

    Leave the loop whenever you like; the same Trainer goes on from there. `windows` are
    those it trains on, `val_windows` the held-out ones, `losses` those of its steps.
    """

    def __init__(self, model, tokenizer, documents, config=None, engine=None):
        config = config or TrainConfig()
        if engine is None:
            engine = ENGINES[config.engine]()
            if config.workers > 1:
                engine = Workers(engine, config.workers)
        self.engine = engine
        self.model = engine.prepare(model)
        self.tokenizer = tokenizer
        self.config = config
        self.step = 0
        self.losses = []
        self.documents, self.val_documents = hold_out(documents, config)
        block_size = model.config.block_size
        self.windows = Windows(self.documents, tokenizer, block_size)
        self.val_windows = Windows(self.val_documents, tokenizer, block_size)
        if config.document == "file":  # so that the first of them are from all files
            order = shuffled_range(len(self.val_windows), config.seed)
            self.val_windows = [self.val_windows[i] for i in order]
        if len(self.windows) == 0:
            raise ValueError("the text is too short: nothing is left to train on")
        self.optimizer = engine.optimizer(self.model, config.weight_decay)

    def batch(self, step):
        """The windows of a step: the next batch_size ones, in the order of their epoch.

        An epoch is once through all windows. Each epoch has an order of its own, which
        follows from the seed. So a step's batch depends on nothing but its number, and
        a training run that was stopped can go on exactly where it was. The same holds
        for windows from random places, which follow from the seed and the step.
        """
        if self.config.windows == "random":
            rng = random.Random(f"{self.config.seed} step {step}")
            return [self.windows.at_random(rng) for _ in range(self.config.batch_size)]
        n = len(self.windows)
        batch = []
        first = step * self.config.batch_size
        for i in range(first, first + self.config.batch_size):
            epoch = i // n
            order = shuffled_range(n, f"{self.config.seed} {epoch}")
            batch.append(self.windows[order[i % n]])
        return batch

    def __iter__(self):
        return self

    def __next__(self):
        config = self.config
        if self.step >= config.steps:
            self.close()
            raise StopIteration
        started = time.perf_counter()
        batch = self.batch(self.step)
        loss, gradients = self.engine.gradients(self.model, batch)
        if not math.isfinite(loss):
            raise ArithmeticError(
                f"loss is {loss} at step {self.step + 1}: training diverged, "
                "try a smaller lr"
            )
        norm = self.engine.norm(gradients)
        if not math.isfinite(norm):
            raise ArithmeticError(
                f"the gradient's length is {norm} at step {self.step + 1}: training "
                "diverged, try a smaller lr"
            )
        factor = clip_factor(norm, config.clip)
        lr = learning_rate(self.step, config.steps, config.lr, config.warmup)
        self.optimizer.step(gradients, lr, factor)
        self.step += 1
        self.losses.append(loss)
        n_tokens = sum(len(window) - 1 for window in batch)
        speed = n_tokens / (time.perf_counter() - started)
        return Step(self.step, loss, lr, speed, self.held_out_loss())

    def held_out_loss(self):
        """The held-out loss, if this step is one after which it is due, or None."""
        every = self.config.eval_every
        if not every or self.step % every != 0 or not self.val_windows:
            return None
        return evaluate(self.model, self.val_windows)

    def close(self):
        """Let go of worker processes, if there are any."""
        self.engine.close()


def clip_factor(norm, limit):
    """The factor that shortens gradients of this length to the limit.

    Here and there the loss has a cliff, where the gradient is a hundred times as long.
    One such step would throw the parameters far off, and spoil m and v. A limit of 0
    means none. Source: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training
    recurrent neural networks", algorithm 1.
    >>> clip_factor(norm=4.0, limit=1.0), clip_factor(norm=0.5, limit=1.0)
    (0.25, 1.0)
    """
    if limit == 0 or norm <= limit:
        return 1.0
    return limit / norm


# === 13. Writing ====================================================== ladder: gpt ===
# Chapter 8's way to write computes every row anew for each token. But no token sees a
# later one, so what comes later never changes a row. Only attention looks back at
# earlier rows, for their keys and values. If we keep those, a new token is the work of
# one row. What is kept is called the KV cache. (Here their queries are kept, too.)


class CachedGPT(GPT):
    """A GPT that remembers what it has read. Call it with the tokens that come next.

    It returns the logits of the last of them only, as one row in a list. Positions go
    on where the last call ended, and attention also sees the rows that are past.
    """

    def __init__(self, model):
        super().__init__(model.config, model.params)
        self.n_read = 0
        self.past = {}  # name of an attention -> the rows that it has seen

    def positions(self, tokens):
        """Where the new tokens stand, after all that were read before."""
        return range(self.n_read, self.n_read + len(tokens))

    def attend(self, name, x):
        """The new tokens look at the old ones, too."""
        past = self.past.setdefault(name, [])
        return attention_with_past(x, self.config.n_head, past)

    def apply(self, layer, name, x):
        """As GPT does. But after the blocks, only the last row is of use."""
        if name == "ln_f":
            x = x[-1:]
        return super().apply(layer, name, x)

    def __call__(self, tokens):
        logits = super().__call__(tokens)
        self.n_read += len(tokens)
        return logits


@singledispatch
def attention_with_past(x, n_head, past):
    """Attention where the rows of x also see the `past` rows, to which they are added.

    A row of x or of past holds a query, a key and a value, as in chapter 4. Only the
    queries of x are left to answer. [n, 3C] -> [n, C]
    """
    past.extend(x)
    C = len(x[0]) // 3
    d = C // n_head
    scale = d**-0.5
    out = [[] for _ in x]
    for i in range(0, C, d):
        keys = [row[C + i : C + i + d] for row in past]
        values = [row[2 * C + i : 2 * C + i + d] for row in past]
        queries = [row[i : i + d] for row in x]
        scores = matmul(queries, keys)
        for t, row in enumerate(scores):
            n_seen = len(past) - len(x) + t + 1
            weights = softmax_of_floats([score * scale for score in row[:n_seen]])
            columns = zip(*values[:n_seen])
            out[t].extend([sum_of_products(weights, column) for column in columns])
    return out


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Raises ValueError for an invalid setting.

    top_k keeps the k likeliest tokens (0: all). top_p keeps, of these, the fewest,
    likeliest first, that hold a share top_p of the probability. Both rule out the many
    tokens that are each unlikely, but together are drawn often enough to spoil a text.
    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        for name, value in vars(self).items():
            problem = out_of_range(name, value)
            if problem:
                raise ValueError(problem)

    def draw(self, logits, rng):
        """Draw a token id from a row of logits (floats), as `sample` in chapter 8."""
        if self.temperature == 0 or (self.top_k == 0 and self.top_p == 1):
            return sample(logits, self.temperature, rng)
        return sample(self.rule_out(logits), self.temperature, rng)

    def rule_out(self, logits):
        """The same row, with minus infinity for tokens that may not be drawn.

        e to the power of minus infinity is 0, so softmax gives them no probability.
        >>> Sampling(top_k=2).rule_out([1.0, 3.0, 2.0])
        [-inf, 3.0, 2.0]
        """
        ids = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
        if self.top_k > 0:
            ids = ids[: self.top_k]
        largest = logits[ids[0]]
        scores = [(logits[i] - largest) / self.temperature for i in ids]
        reached = 0.0
        kept = [-math.inf] * len(logits)
        for i, probability in zip(ids, softmax(scores)):
            kept[i] = logits[i]
            reached += probability
            if reached >= self.top_p:
                break
        return kept


def stream(model, tokens, sampling=None, rng=None, end=None, max_tokens=200):
    """Continue a list of token ids: yield new ones until `end` is drawn.

    `end` is not yielded; by default it is the last id. Only the last block_size tokens
    of a prompt are read. When the block is full, the model must
    forget something, as positions end at block_size. So the newer half is read again,
    from position 0. (Chapter 8 forgets one token at a time, and reads all others again
    for each new one. Half is a compromise between forgetting much and reading often.)
    The same rng, with the same seed, gives the same tokens.
    """
    if not tokens:
        raise ValueError("there are no tokens to continue: begin with tokenizer.end")
    sampling = sampling or Sampling()
    rng = rng or random.Random()
    end = model.config.vocab_size - 1 if end is None else end
    block_size = model.config.block_size
    context = list(tokens)[-block_size:]
    unread = context
    reader = CachedGPT(model)
    # A network of your own, a subclass of GPT, reads everything again for each token,
    # unless it says that it has GPT's forward pass.
    is_cached = getattr(model, "can_be_cached", type(model) is GPT)
    for _ in range(max_tokens):
        logits = reader(unread)[-1] if is_cached else model(context)[-1]
        if hasattr(logits, "tolist"):  # of another kind, such as a NumPy array
            logits = logits.tolist()
        token = sampling.draw(logits, rng)
        if token == end:
            return
        yield token
        context = [*context, token]
        unread = [token]
        if len(context) > block_size:
            context = context[-max(1, block_size // 2) :]
            unread = context
            reader = CachedGPT(model)


def generate(model, tokenizer, prompt="", seed=None, max_tokens=200, **options):
    """Write a document that begins with the prompt. The options are those of Sampling.

    seed is a whole number, or a random.Random that goes on from where it is.
    """
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    tokens = [tokenizer.end] + tokenizer.encode(prompt)
    sampling = Sampling(**options)
    new = stream(model, tokens, sampling, rng, tokenizer.end, max_tokens)
    return prompt + tokenizer.decode(new)


# === 14. Subword tokens ===============================================================
# Part III makes a model useful the day after it was trained: on other texts, in other
# programs, and for people who do not write Python.
#
# A token for each character makes texts long. A token for each word cannot represent
# the next typo. Byte-pair encoding (BPE) lies between. It begins with the 256 bytes, of
# which UTF-8 makes any text. Then, again and again, it gives the most frequent pair of
# neighbouring tokens a token of its own. Common words become one token, rare words
# several, and nothing is unknown. This is GPT-2's tokenizer. Source: Sennrich et al.
# 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1.


def merge_pair(tokens, pair):
    """Join each occurrence of a pair of neighbours into one token.

    >>> merge_pair(["l", "o", "w", "l", "o"], ("l", "o"))
    ['lo', 'w', 'lo']
    """
    merged = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def learn_merges(words, alphabet, n_merges):
    """The algorithm in its plain form: {word: how often it occurs} -> pairs to merge.

    Of equally frequent pairs, the one whose tokens are older is merged first.

    >>> learn_merges({"low": 2, "lower": 1, "slow": 1}, sorted("elorsw"), n_merges=3)
    [('l', 'o'), ('lo', 'w'), ('e', 'r')]
    """
    ages = {token: age for age, token in enumerate(alphabet)}

    def age_of(pair):
        return ages[pair[0]], ages[pair[1]]

    spelled = {word: list(word) for word in words}
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, count in words.items():
            for pair in zip(spelled[word], spelled[word][1:]):
                counts[pair] += count
        if not counts:
            break
        most = max(counts.values())
        candidates = [pair for pair, count in counts.items() if count == most]
        pair = min(candidates, key=age_of)
        merges.append(pair)
        ages.setdefault("".join(pair), len(ages))
        spelled = {word: merge_pair(tokens, pair) for word, tokens in spelled.items()}
    return merges


# This counts all pairs again for each merge, which takes hours on a megabyte. The fast
# form counts only the pairs beside the new token, for all that changes is there. And it
# keeps the pairs in a queue, with the most frequent first.
#
# It also writes tokens in another way, since Python's string methods are fast. A token
# is a single character, chr(id). A word is a string of these, and a pair a string of
# two. To merge it is word.replace(pair, new). With ids l = 0, o = 1, w = 2 and a new
# token 3 for l and o, the word "low" goes from "\0\1\2" to "\3\2".


class PairCounts:
    """How often each pair occurs in some words, kept up to date as pairs are merged."""

    def __init__(self, words, weights):
        self.words = words
        self.weights = weights  # how often each word occurs
        self.counts = Counter()
        self.places = defaultdict(set)  # pair -> the words that have, or had, it
        for i, word in enumerate(words):
            for pair in pairs_of(word):
                self.counts[pair] += weights[i]
                self.places[pair].add(i)
        # The queue has (-count, pair). A count may be out of date: too high.
        self.queue = [(-count, pair) for pair, count in self.counts.items()]
        heapify(self.queue)

    def pop_most_frequent(self):
        """The pair that occurs most often, or None if no word has two tokens left.

        A count only falls, unless the pair is new. So when the first count in the queue
        is up to date, no other pair can have more. If it is not, it is corrected.
        """
        while self.queue:
            negative_count, pair = self.queue[0]
            count = self.counts[pair]
            if -negative_count == count:
                heappop(self.queue)
                return pair if count > 0 else None
            heapreplace(self.queue, (-count, pair))
        return None

    def merge(self, pair, new):
        """Put the new token in place of the pair, in all words.

        Each pair with the new token was one with half of the old pair. When l o becomes
        lo, each "s lo" was "s l", each "lo w" was "o w", and each "lo lo" was "o l".
        """
        left, right = pair
        grown = Counter()
        for i in self.places.pop(pair):
            self.words[i] = self.words[i].replace(pair, new)
            for new_pair in pairs_with(new, self.words[i]):
                grown[new_pair] += self.weights[i]
                self.places[new_pair].add(i)
        for new_pair, count in grown.items():
            old_pair = new_pair[0].replace(new, right) + new_pair[1].replace(new, left)
            self.counts[old_pair] -= count
            self.counts[new_pair] = count
            heappush(self.queue, (-count, new_pair))
        del self.counts[pair]


def pairs_of(word):
    """The pairs of neighbours in a string.

    >>> list(pairs_of("abc"))
    ['ab', 'bc']
    """
    return map(operator.add, word, word[1:])


def pairs_with(token, word):
    """The pairs that contain a token, found by a look at its places only.

    >>> pairs_with("b", "aabbcc")
    ['ab', 'bb', 'bc']
    """
    pairs = []
    i = word.find(token)
    while i >= 0:
        before = word[i - 1 : i]
        after = word[i + 1 : i + 2]
        if before and before != token:
            pairs.append(before + token)
        if after:
            pairs.append(token + after)
        i = word.find(token, i + 1)
    return pairs


def byte_characters():
    """How GPT-2's vocabulary writes each of the 256 bytes as one visible character.

    A byte is written as the character with its number or, if that would be blank, as
    the next one from 256 on. So a space is Ġ, which is chr(288).
    """
    characters = []
    n_blank = 0
    for byte in range(256):
        character = chr(byte)
        if byte == 32 or not character.isprintable():
            character = chr(256 + n_blank)
            n_blank += 1
        characters.append(character)
    return characters


BYTES = byte_characters()


@cache
def piece_pattern():
    r"""GPT-2's pattern for the pieces of a text. No token crosses their borders.

    A piece is 's or the like; a run of letters, of digits or of other signs, with the
    space before it; or white space. So no token joins a word to a comma, say.

    >>> piece_pattern().findall("It's 3 o'clock, is it?")
    ['It', "'s", ' 3', ' o', "'", 'clock', ',', ' is', ' it', '?']

    (GPT-2 writes letters as \p{L} and numbers as \p{N}. Python's `re` lacks these, so
    the numbers that are no digits, such as ½, are listed one by one.)
    """
    numbers = []
    for c in map(chr, range(sys.maxunicode + 1)):
        if c.isnumeric() and not c.isdecimal() and not c.isalpha():
            numbers.append(c)
    number = r"\d" + "".join(numbers)
    space = r"[^\S\x1c-\x1f]"  # these four are white space to Python only
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?[^\W_{number}]+| ?[{number}]+"
        rf"| ?(?:[^\w\s]|[_\x1c-\x1f])+|{space}+(?={space}|\Z)|{space}+"
    )


class BPETokenizer:
    """Byte-level BPE: vocab is {token: id}, merges [(left, right), ...], oldest first.

    A text is cut into pieces, and each piece into its bytes. Then merges are made in
    the order in which they were learned, so the same word always gets the same tokens.
    Pieces are remembered, as most occur again and again.

    >>> tokenizer = BPETokenizer.train(["low lower", "slow slower"], vocab_size=261)
    >>> tokenizer.merges, tokenizer.encode("lower")
    ([('l', 'o'), ('lo', 'w'), ('e', 'r'), ('s', 'low')], [257, 258])
    """

    def __init__(self, vocab, merges):
        if not {*BYTES, END} <= vocab.keys() or set("".join(vocab)) != set(BYTES):
            raise ValueError(f"the vocabulary must have all 256 bytes and {END}")
        known = set(BYTES)
        for pair in merges:
            if (
                len(pair) != 2
                or not known.issuperset(pair)
                or "".join(pair) not in vocab
            ):
                raise ValueError(
                    f"{pair!r} does not merge two tokens, made before, into one of the "
                    "vocabulary"
                )
            known.add("".join(pair))
        self.vocab = vocab
        self.merges = merges
        self.vocab_size = len(vocab)
        self.end = vocab[END]
        self.byte_tokens = [chr(vocab[byte]) for byte in BYTES]
        self.merged = {}  # in order of age
        for left, right in merges:
            pair = chr(vocab[left]) + chr(vocab[right])
            self.merged[pair] = chr(vocab[left + right])
        self.pairs = list(self.merged)  # age -> pair
        self.ages = {pair: age for age, pair in enumerate(self.pairs)}
        byte_values = {character: b for b, character in enumerate(BYTES)}
        self.token_bytes = {}
        for token, i in vocab.items():
            self.token_bytes[i] = bytes(map(byte_values.get, token))
        self.encode_piece = lru_cache(2**16)(self.merge_piece)

    @classmethod
    def train(cls, documents, vocab_size):
        """Learn from documents: 256 bytes, END, and merges up to vocab_size tokens."""
        if type(vocab_size) is not int or not 257 <= vocab_size <= 10**6:
            raise ValueError(
                f"vocab_size is {vocab_size!r}: must be a whole number from 257 to "
                "1000000"
            )
        tokens = sorted(BYTES)
        byte_tokens = [chr(tokens.index(byte)) for byte in BYTES]
        pieces = Counter()
        for document in documents:
            for part in document.split(END):
                pieces.update(piece_pattern().findall(part))
        words = []
        for piece in pieces:
            words.append("".join([byte_tokens[b] for b in piece.encode()]))
        pair_counts = PairCounts(words, list(pieces.values()))
        merges = []
        while len(tokens) < vocab_size - 1:
            pair = pair_counts.pop_most_frequent()
            if pair is None:
                break
            merges.append(tuple(tokens[ord(character)] for character in pair))
            pair_counts.merge(pair, chr(len(tokens)))
            tokens.append("".join(merges[-1]))
        vocab = {token: i for i, token in enumerate(tokens + [END])}
        return cls(vocab, merges)

    def encode(self, text):
        """Text -> ids. <|endoftext|> in it is one token. No text is unknown."""
        ids = []
        for n, part in enumerate(text.split(END)):
            if n > 0:
                ids.append(self.end)
            for piece in piece_pattern().findall(part):
                ids.extend(self.encode_piece(piece))
        return ids

    def merge_piece(self, piece):
        """A piece -> ids: merge the oldest pair that it has, again and again.

        The queue has the age of each pair, once for each place where the pair is. After
        a merge, only pairs with the new token are new.
        """
        word = "".join([self.byte_tokens[b] for b in piece.encode()])
        queue = [self.ages[pair] for pair in pairs_of(word) if pair in self.ages]
        heapify(queue)
        last = None
        while queue:
            age = heappop(queue)
            if age == last:  # the same pair at another place, which is merged already
                continue
            last = age
            pair = self.pairs[age]
            new = self.merged[pair]
            word = word.replace(pair, new)
            for new_pair in pairs_with(new, word):
                if new_pair in self.ages:
                    heappush(queue, self.ages[new_pair])
        return [ord(character) for character in word]

    def decode(self, ids):
        """Ids -> text. Bytes that are not UTF-8 (half a character) become U+FFFD."""
        return b"".join([self.token_bytes[i] for i in ids]).decode(errors="replace")


# === 15. Checkpoints ==================================================================
# A checkpoint is a directory with the files that a GPT-2 has at Hugging Face:
#
#     config.json            the model's shape
#     model.safetensors      its parameters
#     tokenizer.json         its tokens; tokenizer_config.json tells how to load them
#     trainer.safetensors    only ours: what it takes to go on with a training run
#
# The transformers library opens what is saved here, and GPT-2's own directories open
# here. Files may come from strangers, so what they say is checked before it is
# believed. Each thing that can be wrong has a message of its own.

# The names that transformers has for the formula of chapter 4's gelu.
SAME_AS_GELU = """
gelu_new gelu_pytorch_tanh gelu_accurate gelu_python_tanh gelu_fast
""".split()
GPT2 = {  # what config.json must say, if it says anything, for the model to be ours
    "model_type": ["gpt2"],
    "activation_function": SAME_AS_GELU,
    "layer_norm_epsilon": [1e-5],
    "scale_attn_weights": [True],
    "scale_attn_by_inverse_layer_idx": [False],
    "tie_word_embeddings": [True, False],
}
# Each size of a Config: its two names in config.json, of which the first counts if both
# are there, and what it is if neither is.
SIZES = {
    "vocab_size": ("vocab_size", "vocab_size", 50257),
    "block_size": ("max_position_embeddings", "n_positions", 1024),
    "n_layer": ("num_hidden_layers", "n_layer", 12),
    "n_head": ("num_attention_heads", "n_head", 12),
    "n_embd": ("hidden_size", "n_embd", 768),
}
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Files of another model that was here. They would change what transformers makes of
# ours, so a save deletes them.
STALE = """
generation_config.json special_tokens_map.json added_tokens.json chat_template.jinja
adapter_config.json
""".split()
FLOATS = {"F64": ("d", 8), "F32": ("f", 4), "F16": ("e", 2), "BF16": ("f", 2)}
MOST_PARAMETERS = 10**7  # larger models are kept in 4-byte floats, and only run here
NEW = ".microgpt-new"
SAVED = ".microgpt-saved"


def save_files(directory, files):
    """Write {name: pieces of bytes} into a directory: all of them or none.

    Whenever the program is stopped, a reader must find the old files or the new ones,
    never some of each. So there are three steps:
        1) All files are written into the folder NEW.     Stopped here: the old files
           stand in their places, and the next save deletes NEW.
        2) NEW is renamed to SAVED, in an instant.        Stopped here: open_file finds
           the new files in SAVED, where it looks first.
        3) The files move from SAVED to their places.     Stopped here: open_file finds
           each new file, moved or not; the next save moves the rest.
    """
    new = os.path.join(directory, NEW)
    try:
        move_into_place(directory)
        os.makedirs(new)
        for name, pieces in files.items():
            with open(os.path.join(new, name), "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        os.rename(new, os.path.join(directory, SAVED))
    except OSError as error:
        error.filename = error.filename or directory  # a full disk names no file
        raise
    finally:
        move_into_place(directory)


def move_into_place(directory):
    """Step 3 above. It also clears away what a save that failed has left."""
    import shutil  # takes longer to load than all of this file

    saved = os.path.join(directory, SAVED)
    new = os.path.join(directory, NEW)
    for path in (saved, new):
        if os.path.islink(path):  # not ours: it could lead to anybody's files
            os.unlink(path)
    if os.path.isdir(saved):
        names = os.listdir(saved)
        for name in STALE if MODEL in names else []:
            if os.path.exists(os.path.join(directory, name)):
                os.unlink(os.path.join(directory, name))
        for name in names:
            os.replace(os.path.join(saved, name), os.path.join(directory, name))
    shutil.rmtree(saved, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


@contextmanager
def open_file(directory, name):
    """Open a checkpoint's file. An error in its contents becomes one that names it."""
    path = os.path.join(directory, name)
    with open_newest(directory, name) as file:
        try:
            yield file
        except KeyError as error:
            message = f"{error} is missing"
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = str(error)
        except RecursionError:
            message = "it is nested too deep"
        else:
            return
        message = what_is_there(file) or printable(message[:300])
        raise ValueError(f"{path}: {message}")


# What clones and downloads leave in the place of a file begins with one of these.
INSTEAD = {
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file",
    b"/annex/objects/": "a git-annex pointer; `git annex get` fetches the file",
    b"<!doctype html": "an HTML page; download the file itself",
    b"<html": "an HTML page; download the file itself",
    b"PK\3\4": "a zip archive, as PyTorch makes; safetensors are needed",
    b"\x80\2}": "a Python pickle; safetensors are needed",
    b"\x80\2\x8a": "a Python pickle, as PyTorch makes; safetensors are needed",
    b"\x1f\x8b": "compressed with gzip; unpack it",
}


def what_is_there(file):
    """What stands in the place of a file that cannot be read, if it is well known."""
    file.seek(0)
    raw = file.read(1000).strip()
    for beginning, what in INSTEAD.items():
        if raw.lower().startswith(beginning.lower()):
            return f"it is {what}"
    if not raw:
        return "it is empty"
    is_short_text = len(raw) < 100 and raw.isascii() and raw[:1].isalnum()
    if is_short_text and b" " in raw and not file.name.endswith(".txt"):
        # A server's answer, such as "Entry not found", was saved as the file.
        return f"it is not the file, but says {printable(raw.decode())!r}"
    return None


def open_newest(directory, name):
    """Open the file where step 2 of a save has put it or, normally, in its place."""
    try:
        return open(os.path.join(directory, SAVED, name), "rb")
    except OSError:
        return open(os.path.join(directory, name), "rb")


def printable(text, allowed=""):
    """A text from a stranger, with control characters replaced, for a terminal.

    Such characters could clear the screen, or hide what stands before them.
    """
    return "".join(c if c.isprintable() or c in allowed else "\ufffd" for c in text)


def parse_json(raw):
    """The bytes of a JSON object -> a dict. A key that appears twice is an error."""

    def reject_duplicates(pairs):
        contents = dict(pairs)
        if len(contents) < len(pairs):
            raise ValueError("a key appears twice")
        return contents

    try:
        contents = json.loads(raw, object_pairs_hook=reject_duplicates)
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
            raise ValueError("it is cut off") from None
        raise
    if not isinstance(contents, dict):
        raise ValueError("it is not a JSON object")
    return contents


def to_json(contents):
    """A JSON file, as transformers lays it out -> pieces of bytes for save_files."""
    text = json.dumps(contents, indent=2, ensure_ascii=False)
    return [text.encode("utf-8", "surrogatepass"), b"\n"]


# A .safetensors file has three parts: the length of the header, in 8 bytes; the header,
# JSON that gives each tensor's dtype, shape and data_offsets [start, stop]; and the
# numbers, row by row, without gaps. All numbers are little-endian. In GPT-2's files the
# weights of linear layers are [n_in, n_out], the transpose of what they are here. The
# safetensors library writes tensors in the order of their names, so we do that, too.


def write_tensors(tensors, dtype="F64", **metadata):
    """{name: row or rows} -> the pieces of a .safetensors file. F64 loses nothing."""
    header = {"__metadata__": {"format": "pt", **metadata}}
    stop = 0
    tensors = dict(sorted(tensors.items()))
    for name, x in tensors.items():
        header[name] = tensor_entry(name, shape_of(x), dtype, stop)
        stop = header[name]["data_offsets"][1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for name, x in tensors.items():
        for row in zip(*x) if is_linear_weight(name) else to_rows(x):
            if not all(map(math.isfinite, row)):
                raise ValueError(f"{name} has numbers that are not finite")
            try:
                yield struct.pack(f"<{len(row)}{FLOATS[dtype][0]}", *row)
            except OverflowError:
                message = f"{name} has a number that is too large for {dtype}"
                raise ValueError(message) from None


def tensor_entry(name, shape, dtype, start):
    """What a header says of a tensor of this shape, whose bytes begin at `start`.

    >>> tensor_entry("h.0.mlp.c_fc.weight", (64, 16), "F32", start=0)
    {'dtype': 'F32', 'shape': [16, 64], 'data_offsets': [0, 4096]}
    """
    n_bytes = math.prod(shape) * FLOATS[dtype][1]
    if is_linear_weight(name):
        shape = shape[::-1]
    offsets = [start, start + n_bytes]
    return {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}


def read_tensors(file, shapes, code=None, is_exact=True):
    """A .safetensors file -> ({name: row or rows}, metadata).

    It must have tensors of just these shapes. If that need not be exact, some may be
    missing, and others are skipped. Rows are lists or, with a type code, arrays. The
    functions below follow in the order of the work.
    """
    header, n_bytes = read_header(file)
    metadata = {**header.pop("__metadata__", {})}
    tensors = {}
    place = 0
    for full_name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        entry = header[full_name]
        name = full_name
        if full_name.startswith("transformer."):
            name = full_name[12:]
        is_second = f"transformer.{full_name}" in header  # only the longer name counts
        if name not in shapes or is_second:
            if is_exact:
                raise ValueError(f"tensor {name!r} is not one of a model of this shape")
            place = skip_tensor(file, name, entry, place, n_bytes)
            continue
        numbers = read_numbers(file, name, shapes[name], entry, place, n_bytes)
        place = entry["data_offsets"][1]
        tensors[name] = to_table(name, numbers, shapes[name], code)
        for row in to_rows(tensors[name]):
            if not all(map(math.isfinite, row)):
                raise ValueError(f"tensor {name!r} has numbers that are not finite")
    if place != n_bytes:
        raise ValueError(f"its tensors end at {place:,} of {n_bytes:,} bytes")
    if is_exact:
        tensors = {name: tensors[name] for name in shapes}
    return tensors, metadata


def read_header(file):
    """1) The header -> (what it says, how many bytes of numbers follow it)."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, 10**8):
        raise ValueError(
            f"its {size:,} bytes cannot have a header of {length:,}: it is cut off, or "
            "not a .safetensors file"
        )
    return parse_json(file.read(length)), size - 8 - length


def skip_tensor(file, name, entry, place, n_bytes):
    """2) A tensor that is of no use, such as the causal masks in old files."""
    start, stop = entry["data_offsets"]
    if not start == place <= stop <= n_bytes:
        raise ValueError(f"tensor {name!r} leaves a gap, overlaps, or is cut off")
    file.seek(stop - start, os.SEEK_CUR)
    return stop


def read_numbers(file, name, shape, entry, place, n_bytes):
    """3) A tensor's numbers, if its entry is just what it must be."""
    dtype = entry["dtype"]
    if dtype not in FLOATS:
        raise ValueError(f"tensor {name!r} is {dtype!r}: must be one of {[*FLOATS]}")
    expected = tensor_entry(name, shape, dtype, place)
    # As text, because Python takes 4.0 and True for whole numbers.
    if json.dumps(entry, sort_keys=True) != json.dumps(expected, sort_keys=True):
        raise ValueError(f"tensor {name!r} is {entry}: must be {expected}")
    start, stop = expected["data_offsets"]
    if stop > n_bytes:
        raise ValueError(
            f"tensor {name!r} ends at {stop:,}, but there are {n_bytes:,} bytes: it is "
            "cut off"
        )
    return to_floats(file.read(stop - start), dtype)


def to_floats(raw, dtype):
    """4) Bytes -> an array of floats."""
    code = FLOATS[dtype][0]
    if dtype == "BF16":  # the upper halves of F32
        halves = raw
        raw = bytearray(2 * len(halves))
        raw[2::4] = halves[::2]
        raw[3::4] = halves[1::2]
    if code == "e" or sys.byteorder == "big":  # there is no array of these
        n = len(raw) // struct.calcsize(code)
        return array("d", struct.unpack(f"<{n}{code}", raw))
    return array(code, raw)


def to_table(name, numbers, shape, code):
    """5) Numbers in the file's order -> a row or rows, as [n_out, n_in]."""

    def to_row(part):
        return list(part) if code is None else array(code, part)

    if len(shape) == 1:
        return to_row(numbers)
    n_rows, n = shape
    if is_linear_weight(name):
        return [to_row(numbers[i::n_rows]) for i in range(n_rows)]
    return [to_row(numbers[i * n : i * n + n]) for i in range(n_rows)]


def save_model(model, directory, tokenizer=None, also=None, write=None, **metadata):
    """Save a model, and its tokenizer, as a directory that transformers opens too.

    `also` may hold more files to be saved in the same instant, {name: pieces}. `write`
    may take the place of write_tensors. Raises OSError, or ValueError if a number is
    not finite; then all is as it was before.
    """
    config = model.config
    write = write or write_tensors
    end = tokenizer.end if tokenizer else config.vocab_size - 1
    dtype = "F64" if parameter_count(config) <= MOST_PARAMETERS else "F32"
    files = dict(also or {})
    if tokenizer:
        files.update(tokenizer_files(tokenizer))
    about = {name: values[0] for name, values in GPT2.items()}
    about.update(asdict(config))
    about["n_positions"] = config.block_size
    about["bos_token_id"] = end
    about["eos_token_id"] = end
    about["architectures"] = ["GPT2LMHeadModel"]
    about["dtype"] = dtype.replace("F", "float")
    files["config.json"] = to_json(dict(sorted(about.items())))
    files[MODEL] = write(model.params, dtype, **metadata)
    save_files(directory, files)


def load_model(directory):
    """The GPT that save_model or transformers has put into a directory.

    Raises OSError, or ValueError that names the file and what is wrong with it.
    """
    model, _ = read_model(directory)
    return model


def read_model(directory):
    """-> (the GPT, the metadata of its file)"""
    with open_file(directory, "config.json") as file:
        config = read_config(parse_json(file.read()))
    shapes = parameter_shapes(replace(config, tie_word_embeddings=False))
    code = "f" if parameter_count(config) > MOST_PARAMETERS else None
    params = {}
    metadata = {}
    names = files_of_tensors(directory)
    for name in names:
        with open_file(directory, name) as file:
            tensors, metadata = read_tensors(file, shapes, code, is_exact=False)
            params.update(tensors)
    with open_file(directory, names[-1]):  # which gives its name to an error
        config = settle_head(config, params)
        params = {name: params[name] for name in parameter_shapes(config)}
    return GPT(config, params), metadata


def read_config(found):
    """What config.json says -> a Config, if it is of a kind that we have."""
    sizes = {}
    for name, (stronger, other, default) in SIZES.items():
        sizes[name] = found.get(stronger, found.get(other, default))
    tied = found.get("tie_word_embeddings", True)
    config = Config(**sizes, tie_word_embeddings=tied)
    for name, ours in GPT2.items():
        value = found.get(name, ours[0])
        if value not in ours or type(value) is not type(ours[0]):
            raise ValueError(f"{name} is {value!r}: must be {ours[0]!r}")
    n_inner = found.get("n_inner")
    if n_inner not in (None, 4 * config.n_embd):
        raise ValueError(f"n_inner is {n_inner!r}: must be {4 * config.n_embd}")
    return config


def files_of_tensors(directory):
    """The names of a model's files: one, or several that an index lists."""

    def is_there(name):
        """In its place, or where a save has put it."""
        places = (os.path.join(directory, SAVED), directory)
        return any(os.path.exists(os.path.join(place, name)) for place in places)

    if is_there(MODEL):
        return [MODEL]
    if is_there(INDEX):
        with open_file(directory, INDEX) as file:
            names = sorted(set(parse_json(file.read())["weight_map"].values()))
            for name in names:
                if os.path.basename(name) != name or not name.endswith(".safetensors"):
                    raise ValueError(f"{name!r} is not the name of a file beside it")
            return names or [MODEL]
    if is_there("pytorch_model.bin"):
        raise ValueError(
            f"{directory} has its numbers in pytorch_model.bin, a pickle, which could "
            "run any program when it is opened. If you trust it, convert it: python -c "
            '"from transformers import AutoModelForCausalLM as M; '
            f'M.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"'
        )
    return [MODEL]


def settle_head(config, params):
    """Is the output tied to the token embeddings? Tensors decide, as in transformers.

    A tied model's file may hold the table twice, or only under the name of the head.
    If it holds two tables that differ, the model is not tied, whatever config.json
    says. -> the Config that the tensors have
    """
    head = params.get("lm_head.weight")
    if not config.tie_word_embeddings:
        if head is None:
            raise ValueError(
                "lm_head.weight is missing, though tie_word_embeddings is false"
            )
        return config
    if head is None:
        return config
    if "wte.weight" not in params:
        params["wte.weight"] = head
    if params["wte.weight"] == head:
        return config
    return replace(config, tie_word_embeddings=False)


def parameter_count(config, part=""):
    """How many numbers a model has, or a part of it, such as "wte", "attn" or "h.0.".

    >>> config = Config(vocab_size=27)
    >>> [parameter_count(config, part) for part in ("", "wte", "wpe", "attn", "mlp")]
    [4000, 432, 256, 1088, 2128]
    """
    count = 0
    for name, shape in parameter_shapes(config).items():
        if part in name:
            count += math.prod(shape)
    return count


class WiderTokenizer:
    """A tokenizer and more tokens: such as [PAD], added later, or ids without a text.

    A text is first cut at the added tokens, {text: is it normalized?}. Those that are
    not normalized come first, and of two that begin at one place, the longer. An id
    that no token has is written as nothing. All this is as in transformers.
    """

    def __init__(self, tokenizer, added):
        self.tokenizer = tokenizer
        self.added = {END: False, **added}
        self.added.pop("", None)  # it would be found everywhere
        self.vocab = dict(tokenizer.vocab)
        for text in self.added:
            if text not in self.vocab:
                free = set(range(len(self.vocab) + 1)) - set(self.vocab.values())
                self.vocab[text] = min(free)
        self.vocab_size = len(self.vocab)
        self.end = tokenizer.end
        self.texts = {i: text for text, i in self.vocab.items()}

    def encode(self, text):
        """Text -> ids."""
        ids = []
        for part in self.cut(text, is_normalized=False):
            parts = [part]
            if part not in self.added:
                parts = self.cut(part, is_normalized=True)
            for part in parts:
                if part in self.added:
                    ids.append(self.vocab[part])
                else:
                    ids.extend(self.tokenizer.encode(part))
        return ids

    def cut(self, text, is_normalized):
        """A text -> its parts, some of which are added tokens."""
        added = [
            x for x, normalized in self.added.items() if normalized == is_normalized
        ]
        longest_first = sorted(added, key=len, reverse=True)
        if not longest_first:
            return [text]
        return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)

    def decode(self, ids):
        """Ids -> text."""
        known = [i for i in ids if i in self.texts]
        if isinstance(self.tokenizer, CharTokenizer):
            return "".join(self.texts[i] for i in known)
        return b"".join(map(self.bytes_of, known)).decode(errors="replace")

    def bytes_of(self, i):
        """A token's bytes. An added token may be written in GPT-2's characters, too."""
        if i in self.tokenizer.token_bytes:
            return self.tokenizer.token_bytes[i]
        text = self.texts[i]
        if set(text) <= set(BYTES):
            return bytes(map(BYTES.index, text))
        return text.encode("utf-8", "replace")


def tokenizer_files(tokenizer):
    """The two files of a tokenizer, laid out as the tokenizers library does."""
    added = {END: False}
    plain = tokenizer
    if isinstance(tokenizer, WiderTokenizer):
        added = tokenizer.added
        plain = tokenizer.tokenizer
    pre_tokenizer = None
    decoder = {"type": "Fuse"}
    if isinstance(plain, BPETokenizer):
        decoder = {"type": "ByteLevel", "add_prefix_space": False}
        decoder.update({"trim_offsets": True, "use_regex": True})
        pre_tokenizer = decoder
    contents = {"version": "1.0", "truncation": None, "padding": None}
    contents["added_tokens"] = added_tokens(tokenizer, added)
    contents["normalizer"] = None
    contents["pre_tokenizer"] = pre_tokenizer
    contents["post_processor"] = None
    contents["decoder"] = decoder
    contents["model"] = bpe_model(plain)
    text, _ = to_json(contents)  # without the line end
    settings = {
        "bos_token": END,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {"tokenizer.json": [text], "tokenizer_config.json": to_json(settings)}


def bpe_model(tokenizer):
    """What tokenizer.json says of a model. Characters are a BPE that merges nothing."""
    model = {"type": "BPE"}
    model["dropout"] = None
    model["unk_token"] = None
    model["continuing_subword_prefix"] = None
    model["end_of_word_suffix"] = None
    model["fuse_unk"] = False
    model["byte_fallback"] = False
    model["ignore_merges"] = False
    vocab = dict(sorted(tokenizer.vocab.items(), key=operator.itemgetter(1)))
    if vocab[END] >= len(vocab):
        del vocab[END]  # other added tokens come before it
    model["vocab"] = vocab
    model["merges"] = getattr(tokenizer, "merges", [])
    return model


def added_tokens(tokenizer, added):
    """What tokenizer.json says of the added tokens, in the order of their ids."""
    entries = []
    for text in sorted(added, key=tokenizer.vocab.get):
        entry = {"id": tokenizer.vocab[text], "content": text}
        for flag in ("single_word", "lstrip", "rstrip"):
            entry[flag] = False
        entry["normalized"] = added[text]
        entry["special"] = not added[text]
        entries.append(entry)
    return entries


def load_tokenizer(directory):
    """Load tokenizer.json or, as GPT-2 has them, vocab.json and merges.txt.

    Raises OSError and ValueError as load_model does.
    """
    try:
        with open_file(directory, "tokenizer.json") as file:
            plain, added = tokenizer_from_json(parse_json(file.read()))
    except FileNotFoundError:
        if not os.path.exists(os.path.join(directory, "vocab.json")):
            raise
        plain, added = tokenizer_from_older_files(directory)
    wider = WiderTokenizer(plain, added)
    tokenizer = wider if added.keys() - {END} else plain
    with suppress(FileNotFoundError), open_file(directory, "config.json") as file:
        config = read_config(parse_json(file.read()))
        n_more = config.vocab_size - tokenizer.vocab_size
        if -len(added) <= n_more < 0:
            return wider  # tokens were added that the model has no row for
        if 0 < n_more < 256 and config.vocab_size % 8 == 0:
            return wider  # the model has more rows, as a multiple of 8 is faster
        if n_more != 0:
            raise ValueError(
                f"the model has {config.vocab_size} tokens, the tokenizer beside it "
                f"{tokenizer.vocab_size}: they do not belong together"
            )
    return tokenizer


def tokenizer_from_older_files(directory):
    """-> the tokenizer of vocab.json and merges.txt, and its added tokens"""
    with open_file(directory, "vocab.json") as file:
        vocab = parse_json(file.read())
        check_ids(vocab)
    added = {}
    with suppress(FileNotFoundError), open_file(directory, "added_tokens.json") as file:
        ids = parse_json(file.read())
        added = dict.fromkeys(sorted(ids, key=ids.get), True)
    special = {}
    name = "special_tokens_map.json"
    with suppress(FileNotFoundError), open_file(directory, name) as file:
        for token in parse_json(file.read()).values():
            for x in token if isinstance(token, list) else [token]:
                text = x["content"] if isinstance(x, dict) else x
                check_text(text)
                special[text] = False
    added.update(special)
    if END not in vocab:
        added.setdefault(END, False)
    with open_file(directory, "merges.txt") as file:
        lines = file.read().decode().replace("\r\n", "\n").split("\n")
        merges = [x for x in lines if x and not x.startswith("#version")]
        vocab = with_end(vocab, added)
        return build_tokenizer(vocab, merges, is_bytewise=True), added


def with_end(vocab, added):
    """A vocabulary with END, whose id may follow from its place among added tokens."""
    if END in vocab:
        return vocab
    new = [text for text in added if text not in vocab]  # whatever ids they claim
    if END not in new:
        raise ValueError(f"it has no token {END}")
    return {**vocab, END: len(vocab) + new.index(END)}


def tokenizer_from_json(found):
    """What tokenizer.json says -> a tokenizer, if it is of a kind that we have.

    The tokenizers library has many settings. Each of those below would cut texts
    another way than ours, so it must be off. -> the tokenizer, and its added tokens
    """
    model = found["model"]
    pre_tokenizer = found.get("pre_tokenizer")
    kind = pre_tokenizer or {"type": "ByteLevel", "add_prefix_space": False}
    post_processor = found.get("post_processor") or {}
    settings = {}
    for name in "dropout ignore_merges end_of_word_suffix".split():
        settings[name] = model.get(name)
    settings["continuing_subword_prefix"] = model.get("continuing_subword_prefix")
    settings["normalizer"] = found.get("normalizer")
    settings["add_prefix_space"] = kind.get("add_prefix_space", True)
    settings["use_regex: false"] = not kind.get("use_regex", True)
    settings["a model that is not BPE"] = model.get("type", "BPE") != "BPE"
    settings["a pre-tokenizer that is not ByteLevel"] = kind["type"] != "ByteLevel"
    settings["a post-processor that adds tokens"] = post_processor.get("special_tokens")
    added = {}
    for token in found["added_tokens"]:
        check_text(token["content"])
        added[token["content"]] = token.get("normalized", False)
        for flag in ("single_word", "lstrip", "rstrip"):
            settings[flag] = settings.get(flag) or token.get(flag)
    for name, is_on in settings.items():
        if is_on:
            raise ValueError(f"it is not GPT-2's kind of tokenizer: it has {name}")
    check_ids(model["vocab"])
    vocab = with_end(model["vocab"], added)
    return build_tokenizer(vocab, model["merges"], pre_tokenizer is not None), added


def check_text(token):
    """Raise ValueError unless an added token is a text."""
    if not isinstance(token, str):
        raise ValueError(f"the added token {token!r} is not a text")


def check_ids(vocab):
    """Raise ValueError unless the ids of a vocabulary are 0, 1, 2 and so on."""
    if [type(i) for i in vocab.values()] != [int] * len(vocab):
        raise ValueError("its ids are not whole numbers")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("its ids are not 0, 1, 2 and so on, each once")


def build_tokenizer(vocab, merges, is_bytewise):
    """A vocabulary and merges, as pairs or as "left right" -> a tokenizer."""
    if is_bytewise:
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
        return BPETokenizer(vocab, [tuple(pair) for pair in pairs])
    tokenizer = CharTokenizer(["".join(vocab.keys() - {END})])
    if tokenizer.vocab != vocab or merges:
        raise ValueError("its tokens are not characters in order")
    return tokenizer


def save_training(trainer, directory):
    """Save a training run between two steps, with its model, so that it can go on."""
    engine = trainer.engine
    if not engine.leads:
        return
    config = trainer.config
    step = str(trainer.step)
    moments = {}
    for kind, tables in (("m", trainer.optimizer.m), ("v", trainer.optimizer.v)):
        for name, x in tables.items():
            moments[f"{kind}.{name}"] = x
    state = engine.write_tensors(
        moments,
        step=step,
        version=__version__,
        documents=fingerprint(config.seed, trainer.documents, trainer.val_documents),
        config=json.dumps(asdict(config)),
    )
    also = {"trainer.safetensors": state}
    write = engine.write_tensors
    save_model(trainer.model, directory, trainer.tokenizer, also, write, step=step)


def fingerprint(seed, documents, val_documents):
    """A number that (nearly always) differs if the seed, documents or split differ."""
    number = 0
    for piece in json.JSONEncoder().iterencode([seed, documents, val_documents]):
        number = zlib.crc32(piece.encode(), number)
    return str(number)


def load_training(directory, documents, engine=None, **changes):
    """Go on with a saved training run as if it had never stopped -> a Trainer.

    `documents` must be those it began with. `changes` override its TrainConfig, such as
    more steps. `engine` may be an engine or, as in TrainConfig, a name. Only `losses`
    begin anew. Raises OSError and ValueError as load_model does.
    """
    if isinstance(engine, str):
        changes["engine"] = engine
        engine = None
    documents = list(documents)
    model, metadata = read_model(directory)
    tokenizer = load_tokenizer(directory)
    shapes = {}
    for name, shape in parameter_shapes(model.config).items():
        shapes[f"m.{name}"] = shapes[f"v.{name}"] = shape
    with open_file(directory, "trainer.safetensors") as file:
        code = "d" if 2 * parameter_count(model.config) > MOST_PARAMETERS else None
        moments, state = read_tensors(file, shapes, code)
        check_moments(moments)
        saved_config = TrainConfig(**parse_json(state["config"]))
        step = state["step"]
        if step != metadata.get("step") or not re.fullmatch("[0-9]{1,10}", step):
            raise ValueError(
                "it is not of the model that is saved here (or that is just being "
                "saved: try again)"
            )
    config = replace(saved_config, **changes)
    check_same_data(directory, saved_config, config, documents, state.get("documents"))
    try:
        trainer = Trainer(model, tokenizer, documents, config, engine)
    except ValueError as error:
        raise ValueError(f"{directory}: {printable(str(error))}") from None
    trainer.step = int(step)
    m, v = split_moments(moments, trainer.optimizer, state.get("version"))
    trainer.optimizer.restore(trainer.step, m, v)
    return trainer


def check_same_data(directory, saved_config, config, documents, saved_fingerprint):
    """Raise ValueError unless a training run goes on with the data that it had."""
    for name in ("document", "val_fraction", "seed"):
        saved = getattr(saved_config, name)
        value = getattr(config, name)
        if value != saved:
            raise ValueError(
                f"{directory} has {name} {saved}: it cannot become {value}"
            )
    try:
        found = fingerprint(config.seed, *hold_out(documents, config))
    except ValueError:  # a single one, where there must have been more
        found = None
    if found != saved_fingerprint:
        raise ValueError(
            f"the text is not the one that {directory} was trained on, or it has "
            "changed since: give that text, or train a new model"
        )


def read_train_config(directory):
    """The TrainConfig of a saved training run."""
    with open_file(directory, "trainer.safetensors") as file:
        header, _ = read_header(file)
        return TrainConfig(**parse_json(header["__metadata__"]["config"]))


def check_moments(moments):
    """Raise ValueError if an average of squares is negative."""
    for name, x in moments.items():
        if name.startswith("v.") and min(map(min, to_rows(x))) < 0:
            raise ValueError(f"{name} is negative")


def split_moments(moments, optimizer, version):
    """-> an optimizer's m and v. Version 0.1.0 stored m / (1 - beta1), and so v."""
    m = {name[2:]: x for name, x in moments.items() if name.startswith("m.")}
    v = {name[2:]: x for name, x in moments.items() if name.startswith("v.")}
    if version is None:
        m = {name: for_each((1 - optimizer.beta1).__mul__, x) for name, x in m.items()}
        v = {name: for_each((1 - optimizer.beta2).__mul__, x) for name, x in v.items()}
    return m, v


# === 16. Looking inside =============================== ladder: loss, pairs, memory ===
# How sure was the model of each token, and is its loss any good? A loss says little by
# itself: names are easier to guess than novels, and letters than words. So it is held
# against models that only count. A GPT that is no better than a table of pairs has
# learned no more than such a table.

# One token of a text: the probability it was given, its loss, and the likeliest tokens
# in its place, as [(token, probability), ...].
Scored = namedtuple("Scored", "token id probability loss likeliest")


def score(model, tokenizer, text, k=3):
    """How likely a document is, token by token, its <|endoftext|> included.

    The mean of the losses is the document's loss, as in training. e to the power of it
    is called the perplexity: among how many equally likely tokens the model would have
    been as unsure. -> [Scored, ...]
    """
    scored = []
    for window in cut_windows(text, tokenizer, model.config.block_size):
        for token, logits in zip(window[1:], model(window[:-1])):
            probabilities = softmax(logits)
            best = nlargest(k, range(len(logits)), key=logits.__getitem__)
            likeliest = [(tokenizer.decode([i]), probabilities[i]) for i in best]
            loss = cross_entropy([logits], [token])
            text_of_token = tokenizer.decode([token])
            scored.append(
                Scored(text_of_token, token, probabilities[token], loss, likeliest)
            )
    return scored


def contexts(window):
    """Each predicted token of a window, with the 0, 1 and 2 tokens before it.

    >>> list(contexts([4, 0, 1]))
    [(0, [(), (4,)]), (1, [(), (0,), (4, 0)])]
    """
    for i in range(1, len(window)):
        yield window[i], [tuple(window[i - n : i]) for n in range(min(i, 2) + 1)]


def count_followers(windows):
    """{context of 0, 1 or 2 tokens: how often each token followed it}

    >>> count_followers([[4, 0, 4, 0]])[(4,)]
    Counter({0: 2})
    """
    singles = Counter()
    pairs = Counter()
    triples = Counter()
    for window in windows:
        singles.update(window[1:])
        pairs.update(zip(window, window[1:]))
        triples.update(zip(window, window[1:], window[2:]))
    counts = defaultdict(Counter)
    counts[()] = singles
    for neighbours in (pairs, triples):
        for (*context, token), count in neighbours.items():
            counts[tuple(context)][token] = count
    return counts


def baselines(windows, val_windows, vocab_size):
    """The loss on val_windows of four models that only count -> {name: nats a token}.

    >>> scale = baselines([[2, 0, 1, 2]] * 9, [[2, 0, 1, 2]], vocab_size=3)
    >>> [f"{name} {loss:.2f}" for name, loss in scale.items()]
    ['knows nothing 1.10', 'frequencies 1.10', 'pairs 0.07', 'triples 0.03']

    The first knows nothing, the second the frequency of each token. The others know
    what follows a token (pairs), and what follows two (triples). A count of 0 must not
    mean "impossible", so each model leans on the one before:

        p(token) = (count of the token + kinds * p before) / (count of all + kinds)

    Only tokens that followed the same one or two tokens are counted, and kinds is how
    many different ones did. Source: Witten and Bell 1991, "The Zero-Frequency Problem",
    method C.
    """
    counts = count_followers(windows)
    totals = {context: sum(seen.values()) for context, seen in counts.items()}
    names = ["knows nothing", "frequencies", "pairs", "triples"]
    losses = {name: [] for name in names}
    for window in val_windows:
        for token, before in contexts(window):
            p = 1 / vocab_size
            losses["knows nothing"].append(-math.log(p))
            for n, name in enumerate(names[1:]):
                seen = counts.get(before[n]) if n < len(before) else None
                if seen:
                    total = totals[before[n]]
                    p = (seen[token] + len(seen) * p) / (total + len(seen))
                losses[name].append(-math.log(p))
    return {name: mean(x) for name, x in losses.items()}


def mean(numbers):
    """The average of a list."""
    return sum(numbers) / len(numbers)


def window_of_losses(losses):
    """How many steps it takes for a mean that is not mere noise."""
    return max(25, len(losses) // 10)


def recent_loss(losses):
    """The mean training loss of the last steps."""
    return mean(losses[-window_of_losses(losses) :])


def reading(losses, val_loss, scale, copied=0.0):
    """A verdict on a training run, in a sentence that begins after "It is".

    From the `losses` of its steps, its held-out loss, the `scale` of baselines, and
    `copied`, the share of the different samples that are training documents. The limits
    of 1.1 and of one half are rules of thumb: losses of the last steps vary by some
    hundredths, and a good model copies a short name now and then.
    >>> scale = {"knows nothing": 3.3, "frequencies": 2.9, "pairs": 2.6, "triples": 2.5}
    >>> reading([3.5, 2.7, 2.5], 2.55, scale)
    'better than counting pairs, not triples: it needs more steps or width'
    """
    n = min(len(losses), window_of_losses(losses))
    starts = range(len(losses) % n, len(losses), n)
    means = [mean(losses[start : start + n]) for start in starts]
    loss = means[-1]
    best = min(losses[0], *means)
    counted = list(scale.values())
    if loss > 1.1 * best:
        return (
            f"diverging: in training {best:.3f} has become {loss:.3f}; try a smaller lr"
        )
    if copied > 0.5:
        return (
            f"memorising: {copied:.0%} of the different samples are training "
            "documents; it needs more text"
        )
    if val_loss > 1.1 * loss:
        return f"overfitting (training {loss:.3f}): it needs more text or fewer steps"
    if val_loss >= min(counted[:3]):
        return "no better than counting pairs: it needs more steps"
    if val_loss >= min(counted):
        return "better than counting pairs, not triples: it needs more steps or width"
    return "better than counting triples: it makes use of earlier tokens too"


# === 17. Texts ========================================================================
# Chapter 1 reads a file with a document in each line. Other texts have line ends inside
# their documents: poems with an empty line between two, or a folder of programs. And a
# novel is one long document. Here each of these becomes a list of documents.


def load_documents(*paths, document="line"):
    r"""read_documents of chapter 1, for texts as they are, wherever they come from.

    A path names a file or a folder, whose files are all read, or is "-" for standard
    input. `document` says what a document is: a "line", a "paragraph" (there are empty
    lines between two) or a whole "file". Lines may end as on any system. Raises OSError
    if a file cannot be read, ValueError if one is not UTF-8 text or if all are blank.
    """
    texts, _ = read_texts(paths)
    return to_documents(paths, texts, document)


def to_documents(paths, texts, document):
    """The documents of all texts, in order. Raises ValueError if there are none."""
    problem = out_of_range("document", document)
    if problem:
        raise ValueError(problem)
    documents = []
    for text in texts:
        documents.extend(cut_documents(text, document))
    if not documents:
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names} is empty: write one document per {document}")
    return documents


def cut_documents(text, document):
    r"""A text -> its documents, without those that are blank.

    >>> text = "ROMEO:\nAh me!\n\nJULIET:\nAy me!\n"
    >>> cut_documents(text, "line")
    ['ROMEO:', 'Ah me!', 'JULIET:', 'Ay me!']
    >>> cut_documents(text, "paragraph")
    ['ROMEO:\nAh me!', 'JULIET:\nAy me!']
    >>> cut_documents(text, "file")
    ['ROMEO:\nAh me!\n\nJULIET:\nAy me!\n']
    """
    pieces = [text]
    if document == "line":
        pieces = text.split("\n")
    elif document == "paragraph":
        pieces = re.split(r"\n\s*\n", text.strip("\n"))
    return [piece for piece in pieces if piece.strip()]


def read_texts(paths):
    """-> (the texts of all files, those files in folders that are not text)"""
    texts = []
    left_out = []
    for path in paths:
        if not os.path.isdir(path):
            texts.append(read_text(path))
            continue
        for file in files_in(path):
            try:
                texts.append(read_text(file))
            except ValueError:  # a picture, say, among the texts
                left_out.append(file)
    if left_out and not texts:
        raise ValueError(f"{left_out[0]} and all other files here are not UTF-8 text")
    return texts, left_out


def files_in(folder):
    """All files in a folder and in its folders, in order, but for hidden ones."""

    def stop(error):
        """Else a folder that cannot be read would be left out in silence."""
        raise error

    files = []
    for place, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                files.append(os.path.join(place, name))
    if not files:
        raise ValueError(f"{folder} is a folder without files")
    return files


def read_text(path):
    r"""A file's text, without the mark that Windows puts first. All lines end in \n."""
    if path == "-":
        path = "standard input"
        if sys.stdin is None:
            raise ValueError("there is no standard input: name a file")
        if sys.stdin.isatty():
            print("type a text; Ctrl-D ends it (Ctrl-Z on Windows)", file=sys.stderr)
        raw = sys.stdin.buffer.read()
    else:
        with open(path, "rb") as file:
            raw = file.read()
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
    bad = raw.find(b"\0")  # no text has a zero byte
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = error.start if bad < 0 else min(bad, error.start)
    if bad >= 0:
        line = len(raw[: bad + 1].splitlines())
        raise ValueError(
            f"{path} is not UTF-8 text: byte 0x{raw[bad]:02x} in line {line}; "
            "save it as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encode_text(tokenizer, text):
    """tokenizer.encode, for a text that somebody typed: an error says what would help.

    Unicode has two spellings for é: one character, or e and an accent. They look the
    same, and keyboards differ in which one they give.
    """
    try:
        return tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"{error}{advice(tokenizer, text)}") from None


def advice(tokenizer, text):
    """Another spelling of which all would be known, as the end of a sentence, or ""."""
    import unicodedata

    spellings = {
        "accents as part of letters (form NFC)": unicodedata.normalize("NFC", text),
        "accents as characters (form NFD)": unicodedata.normalize("NFD", text),
        "line ends for \\n (in bash, $'a\\nb')": text.replace("\\n", "\n"),
    }
    for name, other in spellings.items():
        if other == text:
            continue
        with suppress(ValueError):
            tokenizer.encode(other)
            return f"; all would be known with {name}"
    return ""


# === 18. Command line =================================================================
# `python microgpt.py` learns from documents and shows what it learned. Other commands
# use what it saved, or are programs in examples/. Bad input gets one line on stderr and
# a non-zero exit.
#
# main() at the end finds the command and turns errors into that line. Each command
# makes a parser from the tables below, which gives it `given`, the options that were
# given: {name: value}. The train command also takes an `engine`, if another program
# brings one, and `start`, a model and tokenizer to train further.

SAVE_EVERY = 60  # seconds
SAFE = "\n\t\u200c\u200d"  # the last two join letters or not, as in Persian and emoji
DEFAULTS = {
    **asdict(Config(vocab_size=512)),
    **asdict(TrainConfig()),
    **asdict(Sampling(temperature=0.7)),
    "tokenizer": "char",
    "max_tokens": 200,
    "samples": 20,
    "prompt": "",
    "save": "",
    "resume": "",
    "quiet": False,
}
TEXT_OPTIONS = {
    "document": "What a document is: a line, paragraph or file.",
}
MODEL_OPTIONS = {
    "n_layer": "Number of blocks.",
    "n_head": "Number of attention heads in each block.",
    "n_embd": "Width: how many numbers describe a token.",
    "block_size": "How many tokens the model can read at once.",
    "tokenizer": "char: a token is a character. bpe: it may be several characters.",
    "vocab_size": "Size of the vocabulary, with bpe.",
}
TRAINING_OPTIONS = {
    "steps": "Number of training steps.",
    "batch_size": "Number of windows in each step.",
    "lr": "Peak learning rate.",
    "warmup": "Steps until the learning rate reaches its peak.",
    "weight_decay": "How strongly weights are pulled towards 0.",
    "clip": "Largest gradient norm; 0 means no limit.",
    "val_fraction": "Fraction of the documents to hold out.",
    "eval_every": "Steps between held-out losses; 0 means never.",
    "engine": "tensor, or value (slow: one node per number).",
    "workers": "Number of processes that share each batch.",
    "seed": "Seed for the random numbers.",
    "windows": "consecutive ones, or random: from any place in the text.",
}
WRITING_OPTIONS = {
    "samples": "How many documents to write.",
    "prompt": "Text that each document begins with.",
    "temperature": "0 always takes the likeliest token; 1 draws as learned.",
    "top_k": "Draw only from the k likeliest tokens; 0 means no limit.",
    "top_p": "Draw only from the likeliest, up to this probability.",
    "max_tokens": "Maximum length of a document, in tokens.",
}
SAVING_OPTIONS = {
    "save": "Save the model in this directory, every minute and at the end.",
    "resume": "Continue the training run saved in this directory.",
    "quiet": "Print only the samples.",
}


def find_beside(*parts):
    """A file that comes with this one: beside it or, installed, in microgpt_files/."""
    this = globals().get("__file__", "microgpt.py")  # there is none in a notebook
    folder = os.path.dirname(os.path.realpath(this))
    installed = os.path.join(folder, "microgpt_files", *parts)
    if os.path.exists(installed):
        return installed
    return os.path.join(folder, *parts)


def how_to_start():
    """The words that start this program, which differ where it is installed."""
    name, ending = os.path.splitext(os.path.basename(sys.argv[0]))
    if name == "microgpt" and ending != ".py":
        return "microgpt"
    return "python microgpt.py"


def help_of(command):
    """A command's docstring, which `python -OO` drops, as it is started here."""
    text = inspect.cleandoc(command.__doc__ or "")
    return text.replace("python microgpt.py", how_to_start())


def make_parser(command, groups, words, defaults=DEFAULTS):
    """A parser for a command, which is a function whose docstring is its help.

    `groups` are its options, {title: {name: sentence}}, and `words` its positional
    arguments, {name: how many}.
    """
    import argparse

    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=help_of(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.error = refuse
    for name, count in words.items():
        parser.add_argument(name, nargs=count, help=argparse.SUPPRESS)
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for name, sentence in options.items():
            default = defaults[name]
            names = ["--" + name.replace("_", "-")]
            if name == "samples":
                names.append("--n")
            if default is False:
                kind = {"action": "store_true"}
            else:
                kind = {"type": type(DEFAULTS.get(name, default)), "metavar": "X"}
                sentence += f" ({default})" if default not in ("", None) else ""
            group.add_argument(*names, **kind, default=argparse.SUPPRESS, help=sentence)
    return parser


def refuse(message):
    """What a parser does when something is wrong, in place of ending the program."""
    raise ValueError(f"{message} (see --help)")


def parse(command, parser, argv):
    """Words and options -> {name: value}, or None if it was asked for help."""
    if "--help" in argv or "-h" in argv:
        print(parser.format_help(), end="")
        return None
    given, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        kind = "option" if unknown[0].startswith("-") else "word"
        raise ValueError(
            f"{command} does not take the {kind} {printable(unknown[0])} (see --help)"
        )
    options = vars(given)
    for name, value in options.items():
        if name == "samples" and value < 0:
            raise ValueError(f"samples is {value}: must be 0 or more")
        if name in ("save", "resume") and not value:
            raise ValueError(f"{name} is {value!r}: must name a directory")
        if name in LIMITS or name in CHOICES:
            problem = out_of_range(name, value)
            if problem:
                raise ValueError(problem)
    return options


def only(options, kind):
    """Those options that are fields of a dataclass."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in options.items() if name in names}


def train_command(argv, engine=None, start=None):
    """usage: python microgpt.py [train] [FILE...] [options]

    Train on a text, then write samples. FILE may be a folder, or - for stdin.
    Without FILE, train on the bundled names, for ten seconds. Ctrl-C ends it early.

    A document is a line. If yours have several lines, put empty lines between them
    and use --document paragraph. For novels or programs, use --document file: each
    file is a document, whose end is held out. Other commands:
      python microgpt.py sample DIR [options]    write with a saved model
      python microgpt.py tokenize DIR TEXT       show the tokens of a text
      python microgpt.py explain DIR TEXT...     show how likely each token is
      python microgpt.py ladder                  eleven small steps up to a GPT
    Documents longer than 16 characters need a larger --block-size. For a better
    model, increase --steps first, then --n-embd.
    """
    groups = train_groups(engine, start)
    given = parse("train", make_parser(train_command, groups, {"FILE": "*"}), argv)
    if given is not None:
        learn(given, engine, start)


def learn(given, engine, start):
    """Train with the options that were given, write samples, and report."""
    options = {**DEFAULTS, **given}
    if options["resume"] and "document" not in given:
        options["document"] = read_train_config(options["resume"]).document
    quiet = options["quiet"]

    def say(text):
        if not quiet:
            print(text, flush=True)

    paths = given.pop("FILE") or [bundled_names()]
    with waiting("reading the text", quiet or "-" in paths):
        texts, left_out = read_texts(paths)
        documents = to_documents(paths, texts, options["document"])
    with waiting("turning the text into tokens", quiet):
        trainer = make_trainer(documents, options, given, engine, start)
    encode_text(trainer.tokenizer, options["prompt"])  # raises now, not at the end
    directory = options["save"] or options["resume"]
    if directory:
        make_directory(directory)
    say(describe(paths, documents, left_out, trainer))
    with one_training_in(directory if trainer.engine.leads else ""):
        run_training(trainer, directory, quiet)
    if directory:
        say(f"saved       in {directory}: {how_to_start()} sample {directory}\n")
    finish(trainer, options)


def bundled_names():
    """The file of names that comes with this program."""
    path = find_beside("data", "names.txt")
    if not os.path.exists(path):
        raise ValueError(f"the bundled names are not in {path}: name a text file")
    return path


def make_trainer(documents, options, given, engine, start):
    """A Trainer for a new model, for one to start from, or for a saved training run."""
    if start is not None:
        config = TrainConfig(**only(options, TrainConfig))
        return Trainer(*start, documents, config, engine)
    if options["resume"]:
        return resume_training(documents, given, engine)
    return start_training(documents, given, engine)


def make_directory(directory):
    """Make it if need be. If it cannot be made, better now than after the training."""
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise ValueError(f"{directory} is a file: name a directory to save in")
    os.makedirs(directory, exist_ok=True)
    if not os.access(directory, os.W_OK):
        raise ValueError(f"{directory} cannot be written to: name another directory")


@contextmanager
def one_training_in(directory):
    """Refuse a directory that another training is saving into: one would be lost.

    The lock is a file that is locked, not merely there. So it ends with the process,
    even with one that is killed. (Python on Windows has no such locks.)
    """
    try:
        import fcntl
    except ImportError:
        directory = ""
    if not directory:
        yield
        return
    path = os.path.join(directory, ".microgpt-training")
    # Not by a link, which could lead to anybody's file.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with open(os.open(path, flags), "wb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"another training is saving into {directory}: name another "
                "directory, or wait"
            ) from None
        except OSError:
            pass  # some file systems have no locks
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(path)


def train_groups(engine, start):
    """The options that there are, given an engine, or something to start with."""
    groups = {
        "text": dict(TEXT_OPTIONS),
        "model": dict(MODEL_OPTIONS),
        "training": dict(TRAINING_OPTIONS),
        "writing": dict(WRITING_OPTIONS),
        "saving": dict(SAVING_OPTIONS),
    }
    if engine is not None:
        del groups["training"]["engine"], groups["training"]["workers"]
    if start is not None:
        del groups["model"], groups["saving"]["resume"]
    return groups


def start_training(documents, given, engine):
    """A Trainer for a new model of the shape that was asked for."""
    options = {**DEFAULTS, **given}
    kind = options["tokenizer"]
    if kind not in ("char", "bpe"):
        raise ValueError(f"tokenizer is {kind!r}: must be char or bpe")
    if kind == "char" and "vocab_size" in given:
        raise ValueError(
            "--vocab-size is for --tokenizer bpe: with char, the text decides the size"
        )
    config = TrainConfig(**only(options, TrainConfig))
    sizes = only(options, Config)
    Config(**{**sizes, "vocab_size": 1})  # raises now, not after the tokens are learned
    if kind == "char":
        tokenizer = CharTokenizer(documents)
    else:
        tokenizer = BPETokenizer.train(documents, options["vocab_size"])
    shape = Config(**{**sizes, "vocab_size": tokenizer.vocab_size})
    if parameter_count(shape) > MOST_PARAMETERS and engine is None:
        raise ValueError(too_large(shape))
    model = (engine or TensorEngine()).new_model(shape, config.seed)
    return Trainer(model, tokenizer, documents, config, engine)


def too_large(config):
    """What to say of a model that is too large to train here."""
    return (
        f"{parameter_count(config):,} parameters are too many to train in pure Python: "
        "try smaller n_embd, n_layer, block_size, or an engine of examples/engines/"
    )


def resume_training(documents, given, engine):
    """A Trainer that goes on where a saved one stopped."""
    directory = given["resume"]
    for name in ("tokenizer", "vocab_size"):
        if name in given:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} cannot be used with --resume: the saved tokenizer is"
            )
    has_engine = engine is not None
    changes = only(given, TrainConfig)
    engine = engine or changes.pop("engine", None)
    trainer = load_training(directory, documents, engine, **changes)
    shape = trainer.model.config
    for name, value in only(given, Config).items():
        kept = getattr(shape, name)
        if value != kept:
            raise ValueError(f"{directory} has {name} {kept}: it cannot become {value}")
    if parameter_count(shape) > MOST_PARAMETERS and not has_engine:
        raise ValueError(too_large(shape))
    if trainer.step >= trainer.config.steps:
        raise ValueError(
            f"{directory} has made its {trainer.step:,} steps: to go on, give "
            f"more, such as --steps {2 * trainer.step}"
        )
    return trainer


def describe(paths, documents, left_out, trainer):
    """The text, the model and the training run, for people to read."""
    shape = trainer.model.config
    config = trainer.config
    names = ["standard input" if path == "-" else path for path in paths]
    source = ", ".join(names) if len(names) < 4 else f"{len(names)} files and folders"
    if paths == [find_beside("data", "names.txt")]:
        source = "the bundled names"
    if left_out:
        others = "" if len(left_out) == 1 else f" and {len(left_out) - 1:,} more"
        source += f" (without {left_out[0]}{others}, no text)"
    held_out = f"of which {len(trainer.val_documents):,} held out"
    if config.document == "file":
        each = "" if len(documents) == 1 else " of each"
        held_out = f"the last {100 * config.val_fraction:g}%{each} held out"
        if config.val_fraction == 0:
            held_out = "nothing held out"
    plural = config.document if len(documents) == 1 else f"{config.document}s"
    characters = sorted(set().union(*documents))
    shown = "".join(filter(str.isprintable, characters))[:40]
    sizes = asdict(shape)
    tied = "" if sizes.pop("tie_word_embeddings") else ", untied"
    sizes = ", ".join(f"{name} {value}" for name, value in sizes.items()) + tied
    windows = "random windows" if config.windows == "random" else "windows"
    return (
        f"documents   {printable(source)}: {len(documents):,} {plural}, {held_out}\n"
        f"characters  {sum(map(len, documents)):,}; "
        f"{len(characters):,} different ones: {shown}\n"
        f"model       {sizes}\n"
        f"parameters  {parameter_count(shape):,}\n"
        f"training    {config.steps:,} steps of {config.batch_size} {windows}, "
        f"lr {config.lr}, {trainer.engine.about()}\n"
    )


def columns(text):
    """How many columns of a terminal a text takes: Chinese characters take two, each.

    Accents and other marks that are put upon a character take none.
    """
    import unicodedata

    count = 0
    for character in text:
        if unicodedata.category(character) in ("Mn", "Me", "Cf"):
            continue
        count += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return count


def fit(text, room):
    """As much of a text as fits into this many columns."""
    while text and columns(text) > room:
        text = text[:-1]
    return text


class LiveLine:
    """A line of a terminal that is written again and again, in the same place.

    The width of the terminal may change at any time. A line that was longer than the
    terminal is now fills several, so we go up to the first of them.
    """

    def __init__(self, file):
        self.file = file
        self.length = 0  # of what is shown, in columns

    def show(self, text):
        """Put a text in the place of the last one."""
        width = self.width()
        text = fit(text, width - 1)
        erase = f"\r{' ' * (width - 1)}\r"
        if os.name != "nt" and os.environ.get("TERM", "dumb") != "dumb":
            n_rows_up = max(0, self.length - 1) // width
            up = f"\x1b[{n_rows_up}A" if n_rows_up > 0 else ""
            erase = f"{up}\r\x1b[J"  # J: all from here to the end
        print(f"{erase}{text}", end="", file=self.file, flush=True)
        self.length = columns(text)

    def width(self):
        """How many columns the terminal has, or 80 if it does not tell."""
        with suppress(OSError):
            return os.get_terminal_size(self.file.fileno()).columns or 80
        return 80


@contextmanager
def waiting(what, quiet=False, every=1.0):
    """Show on a terminal for how many seconds something has run, from the first on."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    import threading

    over = threading.Event()
    line = LiveLine(sys.stderr)
    started = time.monotonic()

    def count_seconds():
        """The other thread: it shows the seconds until the work is over."""
        while not over.wait(every):
            seconds = f": {time.monotonic() - started:.0f} s"
            line.show(fit(what, line.width() - 1 - len(seconds)) + seconds)

    counting = threading.Thread(target=count_seconds, daemon=True)
    counting.start()
    try:
        yield
    finally:
        over.set()
        counting.join()
        if line.length > 0:
            line.show("")


class Progress:
    """Shows how far training is: one live line on a terminal, elsewhere a few lines."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.live_line = LiveLine(sys.stdout) if sys.stdout.isatty() else None
        self.first_step = trainer.step
        self.started = time.perf_counter()
        self.shown = self.started
        self.speed = 0.0  # tokens per second, the mean of about the last 100 steps
        self.held_out = ""

    def show(self, step, is_last):
        """Take note of a step, and say so if it is time."""
        n_made = step.step - self.first_step
        self.speed += (step.tokens_per_second - self.speed) / min(n_made, 100)
        if step.val_loss is not None:
            self.held_out = f"held out {step.val_loss:.3f}"
        n_steps = self.trainer.config.steps
        now = time.perf_counter()
        is_due = step.step % math.ceil(n_steps / 10) == 0
        if self.live_line:
            is_due = now - self.shown > 0.1
        if is_due or is_last:
            self.shown = now
            per_step = (now - self.started) / n_made
            parts = self.parts(step.step, round(per_step * (n_steps - step.step)))
            if self.live_line:
                self.live_line.show(self.those_that_fit(parts))
            else:
                print("  ".join(parts.values()), flush=True)

    def parts(self, n, seconds_left):
        """What there is to say after n steps."""
        n_steps = self.trainer.config.steps
        parts = {}
        if self.live_line:
            parts["bar"] = f"[{'#' * (12 * n // n_steps):.<12}]"
            parts["step"] = f"{n:,}/{n_steps:,}"
        else:
            parts["step"] = f"step {n:,}/{n_steps:,}"
        parts["loss"] = f"loss {recent_loss(self.trainer.losses):.3f}"
        if self.held_out:
            parts["held out"] = self.held_out
        parts["rate"] = self.trainer.engine.rate(self.speed)
        parts["time"] = f"{seconds_left // 60}:{seconds_left % 60:02} left"
        return parts

    def those_that_fit(self, parts):
        """The parts, in a line. If it is narrow, the least important are left out."""
        for name in ("rate", "bar", "held out", "time", "loss"):
            if len("  ".join(parts.values())) < self.live_line.width():
                break
            parts.pop(name, None)
        return "  ".join(parts.values())

    def close(self):
        """End the line that was rewritten."""
        if self.live_line:
            print(flush=True)


def run_training(trainer, directory, quiet):
    """Train to the end or to a Ctrl-C, saving and showing it now and then."""
    import signal

    stops = []

    def stop(*_):
        stops.append(True)
        signal.signal(signal.SIGINT, before)  # a second Ctrl-C acts as ever

    before = signal.signal(signal.SIGINT, stop)
    progress = None if quiet else Progress(trainer)
    saved = time.perf_counter()
    try:
        for step in trainer:
            is_last = bool(stops) or step.step == trainer.config.steps
            if progress:
                progress.show(step, is_last)
            if directory and (is_last or time.perf_counter() - saved > SAVE_EVERY):
                with waiting("saving", quiet):
                    save_training(trainer, directory)
                saved = time.perf_counter()
            if is_last:
                break
    finally:
        signal.signal(signal.SIGINT, before)
        trainer.close()
        if progress:
            progress.close()
    if stops and not quiet:
        n_steps = trainer.config.steps
        print(f"stopped by Ctrl-C after {trainer.step:,} of {n_steps:,} steps")
    if not quiet:
        print(flush=True)


def finish(trainer, options):
    """Write samples and, unless --quiet is given, report on the training run."""
    quiet = options["quiet"]
    texts = set()
    copies = set()
    rng = random.Random(trainer.config.seed)
    windows = trainer.val_windows or trainer.windows
    with waiting("measuring the loss", quiet):
        loss = evaluate(trainer.model, windows)
    for _ in range(options["samples"]):
        text = generate(
            trainer.model,
            trainer.tokenizer,
            options["prompt"],
            seed=rng,
            max_tokens=options["max_tokens"],
            **only(options, Sampling),
        )
        texts.add(text)
        if is_in_training(text, trainer):
            copies.add(text)
        mark = "in training" if text in copies else "new"
        print(for_output(text) if quiet else sample_and_mark(text, mark), flush=True)
        if quiet and "\n" in text:
            print()  # as between paragraphs
    if quiet:
        return
    with waiting("counting pairs and triples"):
        lines = report(trainer, loss, copied=len(copies) / max(1, len(texts)))
    print(lines)


def is_in_training(text, trainer):
    """Is it a training document or, where these are whole files, a part of one?"""
    if trainer.config.document == "file":
        return text != "" and any(text in document for document in trainer.documents)
    return text in trainer.documents


def sample_and_mark(text, mark):
    """A sample and whether it is new: in a line, unless it has several lines itself."""
    if "\n" in text:
        return f"--- {mark}\n{printable(text, SAFE)}\n"
    shown = printable(text, SAFE) or "(empty)"
    return f"    {shown}{' ' * (24 - columns(shown))} {mark}"


def report(trainer, loss, copied):
    """The loss curve, the loss beside those of models that count, and a verdict.

    The models that count are measured on the same windows as the model. On a
    terminal that lacks the bars ▁ to █, the curve is made of points and # signs.
    """
    losses = trainer.losses
    held_out = trainer.val_windows
    vocab_size = trainer.model.config.vocab_size
    measured = first_windows(held_out or trainer.windows)
    scale = baselines(trainer.windows, measured, vocab_size)
    bars = "▁▂▃▄▅▆▇█" if "utf" in str(sys.stdout.encoding).lower() else "..::++##"
    width = LiveLine(sys.stdout).width() if sys.stdout.isatty() else 80
    n = max(1, min(56, width - 20, len(losses)))
    cuts = [len(losses) * i // n for i in range(n + 1)]
    means = [mean(losses[start:stop]) for start, stop in zip(cuts, cuts[1:])]
    low = min(means)
    height = max(means) - low or 1
    curve = "".join(bars[round(7 * (x - low) / height)] for x in means)
    kind = "held out" if held_out else "evaluated"
    lines = [
        "",
        f"loss  {means[0]:.3f} {curve} {means[-1]:.3f}",
        f"      {loss:.3f} {kind}, {recent_loss(losses):.3f} in training",
    ]
    everyone = {"this model": loss, **scale}
    for name in sorted(everyone, key=everyone.get, reverse=True):
        longest = max(1, min(40, width - 28))
        length = round(longest * everyone[name] / max(everyone.values()))
        lines.append(f"      {name:14} {everyone[name]:.3f} {bars[-1] * length}")
    lines += ["", f"It is {reading(losses, loss, scale, copied)}."]
    return "\n".join(lines)


def sample_command(argv):
    """usage: python microgpt.py sample DIR [options]

    Write with the model saved in DIR, or with any GPT-2 there.
    """
    sentences = {**WRITING_OPTIONS, "seed": TRAINING_OPTIONS["seed"]}
    defaults = {**DEFAULTS, "samples": 5, "seed": None}
    groups = {"writing": sentences}
    parser = make_parser(sample_command, groups, {"DIR": None}, defaults)
    given = parse("sample", parser, argv)
    if given is None:
        return
    options = {**defaults, **given}
    with waiting("loading the model"):
        model = load_model(given["DIR"])
        tokenizer = load_tokenizer(given["DIR"])
    rng = random.Random(options["seed"])
    prompt = options["prompt"]
    tokens = [tokenizer.end] + encode_text(tokenizer, prompt)
    sampling = Sampling(**only(options, Sampling))
    for _ in range(options["samples"]):
        new = stream(model, tokens, sampling, rng, tokenizer.end, options["max_tokens"])
        written = [prompt]
        print(for_output(prompt), end="", flush=True)
        for text in whole_characters(new, tokenizer):
            print(for_output(text), end="", flush=True)
            written.append(text)
        has_lines = any("\n" in text for text in written)
        print("\n" if has_lines else "", flush=True)  # an empty line, as in paragraphs


def whole_characters(tokens, tokenizer):
    """Decode tokens one by one. One that ends within a character waits for more."""
    unfinished = []
    for token in tokens:
        unfinished.append(token)
        text = tokenizer.decode(unfinished)
        if not text.endswith("\ufffd"):
            yield text
            unfinished = []
    yield tokenizer.decode(unfinished)


def for_output(text):
    """A text that a model wrote. On a terminal, it must not move the cursor."""
    return printable(text, allowed=SAFE) if sys.stdout.isatty() else text


def tokenize_command(argv):
    """usage: python microgpt.py tokenize DIR TEXT

    Show how the tokenizer in DIR splits a text into tokens.
    """
    parser = make_parser(tokenize_command, {}, {"DIR": None, "TEXT": None})
    given = parse("tokenize", parser, argv)
    if given is None:
        return
    tokenizer = load_tokenizer(given["DIR"])
    text = given["TEXT"]
    in_colour = sys.stdout.isatty() and not os.getenv("NO_COLOR")
    ids = encode_text(tokenizer, text)
    for n, i in enumerate(ids):
        shown = repr(tokenizer.decode([i]))
        if in_colour:
            colour = 33 if n % 2 == 0 else 36
            shown = f"\x1b[{colour}m{shown}\x1b[0m"
        print(f"{i:7}  {shown}")
    print(f"{len(text):,} characters, {len(ids):,} tokens")


def run(argv, engine, start):
    """Find the command that the first word names, and run it. -> an exit status

    If there is a file of that name, the word means the file. A word that is neither a
    file nor a command is taken for a file, too, so the error says that there is none.
    """
    word = argv[0] if argv else ""
    if os.path.isfile(word):
        return train_command(argv, engine, start)
    if word == "train":
        return train_command(argv[1:], engine, start)
    if word == "sample":
        return sample_command(argv[1:])
    if word == "tokenize":
        return tokenize_command(argv[1:])
    program = find_beside("examples", f"{word}.py")
    if word.isidentifier() and not word.startswith("_") and os.path.exists(program):
        import runpy

        sys.path.insert(0, os.path.dirname(program))
        names = runpy.run_path(program)
        if "main" in names:
            return names["main"](argv[1:])
    examples = find_beside("examples")
    if word.isidentifier() and not os.path.exists(examples):
        raise ValueError(f"there is no file {word!r}, and no programs in {examples}")
    return train_command(argv, engine, start)


def main(argv=None, engine=None, start=None):
    """The command `python microgpt.py`; returns the exit status.

    A program that brings another engine passes it here. `start` is a model and its
    tokenizer, to be trained further in place of a new model.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if sys.stdout is None:  # it was closed before we began
        import io

        sys.stdout = io.StringIO()
    try:
        if hasattr(sys.stdout, "reconfigure"):  # a terminal may lack a character
            sys.stdout.reconfigure(errors="backslashreplace")
        status = run(argv, engine, start) or 0
        print(end="", flush=True)
        return status
    except KeyboardInterrupt:
        message = "interrupted"
        status = 130
    except OSError as error:
        message = error.strerror or str(error)
        status = 1
        if error.filename is not None:
            message = f"{error.filename!r}: {message}"
        else:  # probably a closed pipe: Python would complain again at exit
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError:
        message = "not enough memory: try a smaller n_embd or batch_size"
        status = 1
    except (ValueError, ArithmeticError, RuntimeError) as error:
        message = str(error)
        status = 1
    print(f"microgpt: {message}", file=sys.stderr)
    return status


__all__ = """
END CharTokenizer read_documents cut_windows
Value topological_order exp log tanh dot slope
embedding add linear layernorm gelu softmax attention_head attention cross_entropy
Config GPT parameter_shapes initial_params for_each
is_linear_weight AdamW learning_rate
train sample write tutorial
Tensor differentiable matmul transpose
packed_attention pack PackedGPT
ENGINES ValueEngine TensorEngine Workers FastAdamW gradcheck
TrainConfig Trainer Step Windows split_documents hold_out_ends evaluate clip_factor
CachedGPT attention_with_past Sampling stream generate
BPETokenizer learn_merges
save_model load_model read_model load_tokenizer save_training load_training
write_tensors read_tensors parameter_count
Scored score baselines reading mean
load_documents cut_documents encode_text main make_parser refuse MOST_PARAMETERS
""".split()


if __name__ == "__main__":
    sys.exit(main())
