"""microgpt: a GPT that trains, in one file of plain Python.

This is a whole language model of the GPT-2 kind: data, automatic differentiation, the network, the
optimizer, training, and the writing of new text, with nothing but Python's standard library. It
leaves out what small models on a laptop can do without: dropout, and GPUs (see examples/engines/).

    python microgpt.py                  # learn from the bundled names, then invent new ones
    python microgpt.py poems.txt        # learn from your own text, one document a line
    python microgpt.py --help           # everything else

It is a command, a library (`import microgpt`) and a tutorial: read it from here to the end. Where
it is too steep, a chapter's header names smaller steps, in examples/ladder/. Tests run the `>>>`s.

    Part I, the tutorial    1. Documents  2. Tokens  3. Value  4. Layers  5. GPT  6. Optimizer
        7. Tensor  8. Training  9. Generation
    Part II, the tool    10. Subword tokens  11. Checkpoints  12. Looking inside  13. Command line

One idea runs through it: the model is written once, as functions of rows of numbers, and *the
numbers decide how it runs*. Floats give an answer and nothing else. `Value`s also record how the
answer came about, so that every derivative can be taken. `Tensor`s record the same, but one record
serves a whole layer.

Glossary
    token         what the model reads and writes: an integer that stands for a bit of text
    logit         a score for a possible next token: any number, the higher the likelier
    loss          how surprised the model was by the token that really came: -log(probability)
    parameter     a number that training adjusts, by its gradient: the loss's derivative by it
    n_embd        width: how many numbers describe a token inside the model
    n_head        how many independent looks at the other tokens each attention takes
    n_layer       how many blocks (attention, then a small network) are stacked
    block_size    how many tokens the model can see at once (nothing to do with blocks)
"""

import gc
import json
import math
import os
import random
import re
import struct
import sys
import time
import zlib
from array import array
from collections import Counter, defaultdict, namedtuple
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache, partial, reduce, singledispatch
from heapq import heappop, heappush, heapreplace, nlargest
from itertools import accumulate
from operator import concat, mul

__version__ = "0.1.0"

def _need(condition, message, error=ValueError):
    if not condition:
        raise error(message)

def _check(values, **rules):
    """Raise ValueError unless each value keeps its rule: name=(int or float, least, most)."""
    for name, (kind, low, high) in rules.items():
        x = values[name]
        _need(isinstance(x, (int, kind)) and not isinstance(x, bool) and low <= x <= high,
              f"{name} is {x!r}: must be a {'whole ' * (kind is int)}number from {low} to {high}")

# === 1. Documents ================================================================ ladder: die ===
# A language model learns from examples of what it should write. Here an example is a document: one
# line of a text file, be it a name, a recipe or a chess game. Some are held out: never trained on,
# only used to measure the loss on text that cannot have been learned by heart.

def load_documents(path):
    """Read a UTF-8 text file: one document a line, blank lines skipped, BOM and CRLF tolerated.
    Raises OSError if it cannot be read, ValueError if it is not text or holds no documents."""
    with open(path, "rb") as file:
        raw = file.read().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = raw.replace(b"\0", b"\xff").decode("utf-8")     # no text has zero bytes either
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is not UTF-8 text: byte 0x{raw[error.start]:02x} in line {line}; "
                         "save it as UTF-8") from None
    documents = [line for line in text.lstrip("\ufeff").split("\n") if line.strip()]
    _need(documents, f"{path} is empty: write one document a line")
    return documents

def split_documents(documents, val_fraction=0.1, seed=0):
    """Shuffle by the seed and hold some out -> (training documents, held-out documents)."""
    shuffled = list(documents)
    random.Random(seed).shuffle(shuffled)
    _need(len(shuffled) > 1 or not val_fraction, "a single document cannot be split into training "
          "and held-out ones: give more, one a line, or hold out none (val_fraction 0)")
    n = len(shuffled)
    n_val = min(max(1, round(n * val_fraction)), n - 1) if val_fraction else 0
    return shuffled[n_val:], shuffled[:n_val]

# === 2. Tokens =================================================================== ladder: die ===
# A network computes with numbers, so text is cut into tokens and each token has a number, its id.
# Here a token is a character. One more, <|endoftext|>, stands before and after every document: so
# the model learns how documents begin, and can say by itself that one is finished.

END = "<|endoftext|>"

class CharTokenizer:
    """A token for each character, in sorted order, and one for <|endoftext|>.
    >>> tokenizer = CharTokenizer(["bob", "abe"])
    >>> tokenizer.vocab_size, tokenizer.encode("abbe"), tokenizer.decode([4, 0, 1, 1, 2])
    (5, [0, 1, 1, 2], '<|endoftext|>abbe')
    """
    def __init__(self, documents):
        self.characters = sorted(set().union(*documents))
        self.vocab = {token: i for i, token in enumerate(self.characters + [END])}
        self.end, self.vocab_size = self.vocab[END], len(self.vocab)

    def encode(self, text):
        """Text -> ids. Raises ValueError for a character that is not in the vocabulary."""
        tokens = re.findall("<[|]endoftext[|]>|.", text, re.DOTALL)
        unknown = [token for token in tokens if token not in self.vocab]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not among the {self.end} characters the model "
                             f"knows: {''.join(self.characters[:100])!r}{'...' * (self.end > 100)}")
        return [self.vocab[token] for token in tokens]

    def decode(self, ids): return "".join(map(list(self.vocab).__getitem__, ids))

def windows(document, tokenizer, block_size):
    """A document's tokens with <|endoftext|> on both sides, in pieces of <= block_size + 1. In a
    window each token but the last is there to predict the next. Windows overlap by one token, so
    every token is predicted exactly once; a window sees nothing of the one before it.
    >>> windows("abbe", CharTokenizer(["abe"]), block_size=3)
    [[3, 0, 1, 1], [1, 2, 3]]
    """
    tokens = [tokenizer.end] + tokenizer.encode(document) + [tokenizer.end]
    return [tokens[i:i + block_size + 1] for i in range(0, len(tokens) - 1, block_size)]

def pack(batch):
    """Windows -> (tokens, positions, targets), one long row each; position 0 begins a window."""
    return ([token for window in batch for token in window[:-1]],
            [position for window in batch for position in range(len(window) - 1)],
            [token for window in batch for token in window[1:]])

# === 3. Value ========================================================= ladder: nudging, value ===
# Training asks of every parameter: if it were a little larger, how would the loss change? A `Value`
# is a number that remembers its children, which it was computed from, and its local gradients, its
# own derivative by each child. The chain rule needs no more: multiply the local gradients along
# every path from the loss to the parameter, and add up the paths (in a b + a^2, to a: b and 2a).

class Value:
    """A number that remembers where it came from.
    >>> a, b = Value(2.0), Value(-3.0)
    >>> loss = a * b + a ** 2
    >>> loss.backward()
    >>> a.grad, b.grad                    # the derivative by a is b + 2a, that by b is a
    (1.0, 2.0)
    """
    __slots__ = ("data", "grad", "children", "local_grads")

    def __init__(self, data, children=(), local_grads=()):
        self.data = data                    # the number
        self.grad = 0.0                     # d loss / d self, once backward() has run
        self.children = children            # the Values it was computed from
        self.local_grads = local_grads      # d self / d child, for each of them

    lift = classmethod(lambda cls, x: _map(cls, x))     # floats -> Values; back: Values -> grads
    gradient = staticmethod(lambda x: _map(lambda v: v.grad or _zeros(v.data), x))
    def __repr__(self): return f"{type(self).__name__}(data={self.data}, grad={self.grad})"
    def __float__(self): return float(self.data)

    def __add__(self, other):
        if isinstance(other, Value):
            return Value(self.data + other.data, (self, other), (1.0, 1.0))
        return Value(self.data + other, (self,), (1.0,))

    def __mul__(self, other):
        if isinstance(other, Value):
            return Value(self.data * other.data, (self, other), (other.data, self.data))
        return Value(self.data * other, (self,), (other,))

    def __pow__(self, other):
        """d a^b / da = b a^(b-1); and if b is a Value too, d a^b / db = a^b log a, for a > 0."""
        a, b = self.data, float(other)
        if (a < 0 and b != int(b)) or (a <= 0 and isinstance(other, Value)):
            raise ValueError(f"{a} ** {other!r} is not a real number with a real derivative")
        power, slope = a ** b, b * a ** (b - 1) if b else 0.0
        if isinstance(other, Value):
            return Value(power, (self, other), (slope, power * math.log(a)))
        return Value(power, (self,), (slope,))

    def __neg__(self): return self * -1.0
    def __sub__(self, other): return self + -other
    def __truediv__(self, other): return self * other ** -1.0
    # Python turns to these when the left operand is a plain number, as in 2 * v.
    def __radd__(self, other): return self + other
    def __rsub__(self, other): return -self + other
    def __rmul__(self, other): return self * other
    def __rtruediv__(self, other): return self ** -1.0 * other
    def __rpow__(self, other): return Value(other) ** self

    def exp(self): return Value(e := math.exp(self.data), (self,), (e,))
    def log(self): return Value(math.log(self.data), (self,), (1 / self.data,))
    def tanh(self): return Value(t := math.tanh(self.data), (self,), (1 - t * t,))
    def relu(self): return Value(max(0.0, self.data), (self,), (float(self.data > 0),))

    def backward(self):
        """Add d self / d v to `v.grad`, for every Value v that self was computed from.

        Why a topological order? Because a Value may hand its gradient to its children only when it
        is complete, after all of its parents have added their share. Here b has two parents, c and
        d; if b handed on after d's share alone, a would get 2, and if again after c's, 8:
        >>> a = Value(3.0)
        >>> b = a + a
        >>> c = b + b
        >>> d = b + c
        >>> d.backward()
        >>> a.grad, b.grad
        (6.0, 3.0)

        Why add and not set? Because a Value that is used twice gets a gradient from each use. So a
        second call adds to what the first left in the leaves (Values without children: parameters,
        inputs); to start afresh, set their grad to 0. Each call first clears all other gradients.
        >>> d.backward()
        >>> a.grad, b.grad
        (12.0, 3.0)
        """
        # 1) Order the graph, children before parents, by a depth-first walk on a list (Python's own
        #    stack would overflow). Each Value is popped twice: first it puts back itself, a None as
        #    a mark, and its children (grad None: it was here); at the None they are all in order.
        order, stack = [], [self]
        while stack:
            node = stack.pop()
            if node is None:
                order.append(stack.pop())
            elif node.children and node.grad is not None:      # leaves have nothing to hand on
                node.grad = None
                stack += node, None, *node.children
        for node in order:
            node.grad = 0.0
        # 2) From the loss down, each Value hands its gradient on.
        self.grad += 1.0                    # d self / d self
        for node in reversed(order):
            node.hand_on()

    def hand_on(self):
        """The chain rule: d loss / d child += d self / d child * d loss / d self."""
        grad = self.grad
        for child, local_grad in zip(self.children, self.local_grads):
            child.grad += local_grad * grad

def _map(function, x):              # of each number in x: a number, a row or rows
    return [_map(function, y) for y in x] if isinstance(x, (list, tuple)) else function(x)
def _zeros(x): return _map(lambda _: 0.0, x)
def _rows(x): return x if hasattr(x[0], "__len__") else [x]     # a row or rows -> rows

def gradients(params, number=Value):
    """What backward() left in lifted parameters, or zeros -> {name: floats of their shape}."""
    return {name: number.gradient(x) for name, x in params.items()}

def gradcheck(f, params, number=Value, step=1e-5, tolerance=1e-6):
    """Is every derivative what nudging says it is? Returns the largest difference. f takes params,
    {name: float, row or rows}, lifted to Values, and returns a Value. Each number is moved up and
    down by `step`: (f(up) - f(down)) / (2 step) must equal its gradient within `tolerance`,
    relative to the larger of the two or to 1; ArithmeticError names one that does not.
    >>> gradcheck(lambda p: p["a"] * p["b"] + p["a"] ** 2, {"a": 2.0, "b": -3.0}) < 1e-9
    True
    """
    params = {name: _map(float, x) for name, x in params.items()}     # a copy, to be nudged
    def check(holder, key, claimed, name):
        kept, measured = holder[key], 0.0
        if isinstance(kept, list):
            return max(check(kept, i, claimed[i], f"{name}[{i}]") for i in range(len(kept)))
        for nudge in (step, -step):                             # f(up) counts +, f(down) -
            holder[key] = kept + nudge
            measured += float(f({k: number.lift(x) for k, x in params.items()})) / (2 * nudge)
        holder[key] = kept
        error = abs(claimed - measured) / max(1.0, abs(claimed), abs(measured))
        _need(error <= tolerance, f"{name}: backward() says {claimed}, nudging says {measured}",
              ArithmeticError)
        return error
    lifted = {name: number.lift(x) for name, x in params.items()}
    f(lifted).backward()
    return max(check(params, name, x, name) for name, x in gradients(lifted, number).items())

# === 4. Layers =============================== ladder: weights, loss, window, attention, block ===
# A GPT is a few formulas applied over and over, each written here in plain arithmetic on rows of
# numbers, a row per token. These are the definitions; whatever is faster must agree with them.
# `singledispatch` lets chapter 7, or another program, give a layer a second rule for other rows,
# without touching the model: it picks the rule by the type of the first argument.

def exp(x): return x.exp() if isinstance(x, Value) else math.exp(x)
def log(x): return x.log() if isinstance(x, Value) else math.log(x)
def tanh(x): return x.tanh() if isinstance(x, Value) else math.tanh(x)

_sumprod = getattr(math, "sumprod", lambda a, b: sum(map(mul, a, b)))    # C from Python 3.12 on

def dot(a, b):
    """a[0] b[0] + a[1] b[1] + ...  Of two rows of Values it makes one node with 2n children in
    place of 2n nodes."""
    if isinstance(a[0], Value) and isinstance(b[0], Value):
        try:
            x, y = [v.data for v in a], [v.data for v in b]
            return Value(_sumprod(x, y), (*a, *b), (*y, *x))
        except AttributeError:              # a plain number among them: go by + and *
            pass
    return _sumprod(a, b)

def matmul(A, B):
    """Every row of A times every row of B: [n, k], [m, k] -> A B^T [n, m]. A GPT's main work."""
    if isinstance(A[0][0], float) and isinstance(B[0][0], float):
        return _multiplier(len(A[0]))(A, B)
    return [[dot(a, b) for b in B] for a in A]

@cache
def _multiplier(width):
    # The same for floats, faster. Python takes longer to go round a loop than to multiply: so, for
    # narrow rows, this makes a function for their width, in which the dot product is written out.
    if width > (16 if hasattr(math, "sumprod") else 64):
        return lambda A, B: [[_sumprod(a, b) for b in B] for a in A]
    scope = {}
    exec(f"""
def multiply(A, B):
    C = []
    for {"".join(f"a{i}, " for i in range(width))} in A:
        row = []
        for {"".join(f"b{i}, " for i in range(width))} in B:
            row.append({" + ".join(f"a{i}*b{i}" for i in range(width))})
        C.append(row)
    return C""", scope)
    return scope["multiply"]

@singledispatch
def softmax(row):
    """Scores -> probabilities: e^score, divided by the sum of them all. Subtracting the largest
    first changes no ratio, and so needs no derivative, but keeps e^score from overflowing."""
    largest = max(map(float, row))
    exps = [exp(x - largest) for x in row]
    scale = 1 / sum(exps)
    return [e * scale for e in exps]

@singledispatch
def embedding(table, ids):
    """Each id's row of the table: [n_rows, n_embd], [n_tokens] -> [n_tokens, n_embd]."""
    for i in ids:
        _need(0 <= i < len(table), f"{i} is not in 0 to {len(table) - 1}: no token or position")
    return [table[i] for i in ids]

@singledispatch
def add(x, y):
    """x + y, number by number: [n_tokens, n_embd] twice -> [n_tokens, n_embd]."""
    return [[a + b for a, b in zip(r, s)] for r, s in zip(x, y)]

@singledispatch
def linear(x, weight, bias=None):
    """y = x W^T + b: each output is a weighted sum of the token's inputs, plus a bias.
    x [n_tokens, n_in], weight [n_out, n_in], bias [n_out] -> [n_tokens, n_out]"""
    y = matmul(x, weight)
    return y if bias is None else [[a + b for a, b in zip(row, bias)] for row in y]

def _normalize(row, eps):
    """A row -> (n, s): n = (row - mean) s and s = 1 / sqrt(variance + eps)."""
    mean = sum(row) / len(row)
    centred = [a - mean for a in row]
    s = (dot(centred, centred) / len(row) + eps) ** -0.5
    return [c * s for c in centred], s

@singledispatch
def layernorm(x, gain, bias, eps=1e-5):
    """y = gain (x - mean) / sqrt(variance + eps) + bias, for each row by itself: however large or
    small a row has become, the next layer sees it at one scale.
    x [n_tokens, n_embd], gain [n_embd], bias [n_embd] -> [n_tokens, n_embd]
    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", equation 4."""
    return [[n * g + b for n, g, b in zip(_normalize(row, eps)[0], gain, bias)] for row in x]

GELU = math.sqrt(2 / math.pi), 0.044715
@singledispatch
def gelu(x):
    """y = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, which is about x above 2, 0 below -2.
    Without a bend like this between them, two linear layers are no more than one. This one is
    smooth, so even a number held back has a gradient to come back by. [n_tokens, n], both.
    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2; GPT-2's choice."""
    c, d = GELU
    return [[a * 0.5 * (tanh(a * (a * a * (c * d) + c)) + 1.0) for a in row] for row in x]

@singledispatch
def attention(x, positions, n_head, past=None, heads=None):
    """Causal multi-head attention: each token gathers what it needs from the tokens before it. A
    row of x is a token's query, key and value: what it looks for, what it can be found by, what it
    has to give. The query is compared, by dot, with the keys of the tokens up to its own; softmax
    makes weights of these scores, and the values are averaged with the weights:

        scores = q k^T / sqrt(d)         out = softmax(scores) v
    n_head times side by side, on d = n_embd / n_head numbers of the row each. A sum of d products
    is about sqrt(d) times the size of one; undivided, softmax would give all to a single token.
    The causal mask is a slice: a token at position p, counted from 0 in its window, sees the p rows
    before its own and its own, so neither the future nor another window of the batch.
    x [n_tokens, 3 n_embd], positions [n_tokens] -> [n_tokens, n_embd]. `past`, two lists, holds the
    keys and values of earlier calls, and gets those of this; `heads`, n_head lists, get weights.
    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1 and section 3.2.2."""
    n_embd = len(x[0]) // 3
    d = n_embd // n_head
    (keys, values), scale = past or ([], []), d ** -0.5
    keys.extend([row[n_embd:2 * n_embd] for row in x])
    values.extend([row[2 * n_embd:] for row in x])
    out = []
    for t, (row, position) in enumerate(zip(x, positions), start=len(keys) - len(x)):
        seen = slice(t - position, t + 1)
        gathered = []
        for head in range(0, n_embd, d):
            part = slice(head, head + d)
            query = [q * scale for q in row[part]]
            weights = softmax([dot(query, key[part]) for key in keys[seen]])
            if heads:
                heads[head // d].append(weights)
            gathered += [dot(weights, column) for column in zip(*[v[part] for v in values[seen]])]
        out.append(gathered)
    return out

@singledispatch
def cross_entropy(logits, targets):
    """The loss: the mean over the tokens of -log softmax(logits)[target], in nats. 0 is certain and
    right; log(vocab_size) knows nothing; e^loss is the number of equally likely tokens that would
    leave one as much in doubt. Computed as log(sum e^logit) - logit[target], the largest logit
    taken out first, it is finite for logits of any size up to 1e307.
    logits [n_tokens, vocab_size], targets [n_tokens] -> a number"""
    losses = []
    for row, target in zip(logits, targets):
        largest = max(map(float, row))
        losses.append(log(sum([exp(x - largest) for x in row])) + largest - row[target])
    return sum(losses) / len(losses)

# === 5. GPT =============================================================== ladder: block, gpt ===
# A token starts as a row of n_embd numbers: its embedding plus that of its position, for attention
# by itself has no sense of order. The row, the residual stream, passes through the blocks, and each
# adds to it: what attention gathered from other tokens, then what a small network (MLP) made of the
# row. As blocks only add, each learns a correction, and gradients reach the first as well as the
# last. In the end the row's dot product with a token's embedding is that token's logit: one table
# reads and writes, so a token is learned only once. This is GPT-2's architecture, exactly.

@dataclass(frozen=True)
class Config:
    """The shape of a model, by the usual names. Raises ValueError for a shape that cannot be."""
    vocab_size: int
    block_size: int = 16
    n_layer: int = 1
    n_head: int = 4
    n_embd: int = 16

    def __post_init__(self):
        _check(vars(self), n_layer=(int, 1, 999), **dict.fromkeys(
            ("vocab_size", "block_size", "n_head", "n_embd"), (int, 1, 10 ** 6)))
        _need(self.n_embd % self.n_head == 0, f"n_embd is {self.n_embd}: it must be a multiple of "
              f"n_head, which is {self.n_head}; try {self.n_embd + -self.n_embd % self.n_head}")

def parameter_shapes(config):
    """{name: shape} of all parameters, by GPT-2's names. A weight is [n_out, n_in], as linear's."""
    # wte, wpe: embeddings of tokens and positions; h.i: block i; ln: layernorm; c_attn: the row to
    # q, k, v; c_fc: the row to the MLP's four times wider one; c_proj: back to the row.
    C = config.n_embd
    shapes = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.block_size, C)}
    block = {"ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C),
             "ln_2": (C,), "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
    layers = {f"h.{i}.{name}": x for i in range(config.n_layer) for name, x in block.items()}
    for name, shape in {**layers, "ln_f": (C,)}.items():
        shapes[name + ".weight"], shapes[name + ".bias"] = shape, shape[:1]
    return shapes

def parameter_count(config, part=""):
    """How many numbers a model has, or a part of it, such as "wte", "attn", "mlp" or "h.0."."""
    return sum(math.prod(x) for name, x in parameter_shapes(config).items() if part in name)

class GPT:
    """A GPT-2: a Config and, under GPT-2's names, parameters that are rows of numbers."""
    def __init__(self, config, params=None, seed=0):
        self.config = config
        self.params = params or self.initial_params(random.Random(seed))

    def initial_params(self, rng):
        """Gains 1, biases 0, weights random: with GPT-2's deviation of 0.02 (positions 0.01) at its
        width of 768, and larger in narrower models, whose sums have fewer terms. The layers that
        add to the row, two in a block, start smaller: many blocks shall not add up to too much."""
        params, std = {}, 0.02 * math.sqrt(768 / self.config.n_embd)
        scales = {"wpe": 0.5, "c_proj": 1 / math.sqrt(2 * self.config.n_layer)}
        for name, shape in parameter_shapes(self.config).items():
            s = std * math.prod(scale for part, scale in scales.items() if part in name)
            params[name] = [1.0 if name.endswith("weight") else 0.0] * shape[0]
            if len(shape) == 2:
                params[name] = [[rng.gauss(0, s) for _ in range(shape[1])] for _ in range(shape[0])]
        return params

    def lift(self, number):
        """The same model on other numbers: `Value` here, `Tensor` in chapter 7."""
        return GPT(self.config, {name: number.lift(x) for name, x in self.params.items()})

    def __call__(self, tokens, positions=None, cache=None, last=False, trace=None):
        """The forward pass: [n_tokens] ids -> [n_tokens, vocab_size] logits of what follows each.
        `positions` tell where each token stands in its window; without them the tokens are one
        window, from its start or from where the cache ends. `last` asks for the last row only.
        `trace`, a dict, gets what each layer with parameters gives, by their name, and each block
        ("h.0"), the "embeddings" and "logits", and attention's weights by head ("h.0.attn");
        without it nothing is kept."""
        p, n_head = self.params, self.config.n_head
        def see(name, x):
            if trace is not None:
                trace[name] = x
            return x
        def layer(f, name, x): return see(name, f(x, p[name + ".weight"], p[name + ".bias"]))
        start = len(cache[0][0]) if cache else 0
        positions = range(start, start + len(tokens)) if positions is None else positions
        x = see("embeddings", add(embedding(p["wte.weight"], tokens),
                                  embedding(p["wpe.weight"], positions)))
        for i in range(self.config.n_layer):
            h = f"h.{i}."
            a = layer(linear, h + "attn.c_attn", layer(layernorm, h + "ln_1", x))
            a = attention(a, positions, n_head, cache and cache[i],
                          trace and see(h + "attn", [[] for _ in range(n_head)]))
            x = add(x, layer(linear, h + "attn.c_proj", a))
            m = layer(linear, h + "mlp.c_fc", layer(layernorm, h + "ln_2", x))
            x = see(f"h.{i}", add(x, layer(linear, h + "mlp.c_proj", gelu(m))))
        x = layer(layernorm, "ln_f", x[-1:] if last else x)
        return see("logits", linear(x, p["wte.weight"]))

    def new_cache(self): return [([], []) for _ in range(self.config.n_layer)]  # past keys, values

    def loss(self, batch, trace=None):
        """The mean loss of all predictions in a list of windows."""
        tokens, positions, targets = pack(batch)
        return cross_entropy(self(tokens, positions, trace=trace), targets)

# === 6. Optimizer ================================================================ ladder: gpt ===
# The gradient says which way the loss rises; to learn is to step the other way. How far? AdamW has
# two averages for every parameter: m of its gradient, to even out the noise of small batches, and v
# of its square, whose root is the gradient's usual size. m / sqrt(v) is about 1 at most, on steep
# ground and on flat, and less where the gradient keeps changing its sign.

class AdamW:
    """Adam with decoupled weight decay; updates `params` in place. At step t, with gradient g,

        m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
        p = p - lr decay p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    m and v start at 0, too small; dividing by 1 - beta^t makes up for it. Decay, times lr as in
    PyTorch, draws the weights of linear layers to 0, and spares biases, gains and embeddings.
    Averages over fewer steps than usual (beta 0.9 and 0.999) suit trainings as short as these.
    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2."""
    def __init__(self, params, beta1=0.8, beta2=0.97, eps=1e-8, weight_decay=0.0):
        self.params, self.steps = params, 0
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.m, self.v = ({name: _zeros(x) for name, x in params.items()} for _ in "mv")

    def step(self, gradients, lr, factor=1.0):
        """Move every parameter once, against its gradient times the factor, at learning rate lr."""
        self.steps += 1
        beta1, beta2, sqrt = self.beta1, self.beta2, math.sqrt
        # What all parameters have in common moves out of the loop: self.m and self.v do without the
        # factors 1 - beta; those and the corrections go into the learning rate and eps.
        root = sqrt((1 - beta2 ** self.steps) / (1 - beta2))
        rate = lr * root * (1 - beta1) / (1 - beta1 ** self.steps)
        eps = self.eps * root
        for name, gradient in gradients.items():
            keep = 1 - lr * self.weight_decay if ".c_" in name and "weight" in name else 1.0
            tables = self.params[name], self.m[name], self.v[name], gradient
            for p_row, m_row, v_row, g_row in zip(*map(_rows, tables)):
                if keep != 1:
                    p_row[:] = [keep * p for p in p_row]
                if factor != 1:
                    g_row = [factor * g for g in g_row]
                for i, g in enumerate(g_row):
                    m_row[i] = m = beta1 * m_row[i] + g
                    v_row[i] = v = beta2 * v_row[i] + g * g
                    p_row[i] -= rate * m / (sqrt(v) + eps)

def clip_factor(gradients, limit):
    """The factor that shortens all gradients, as one long vector, to the limit; 0 is no limit. A
    rare cliff in the loss would otherwise throw the parameters far off in one step. Source:
    Pascanu, Mikolov and Bengio 2013, "On the difficulty of training RNNs", algorithm 1."""
    norms = (math.hypot(*row) for x in gradients.values() for row in _rows(x))
    return limit / max(math.hypot(*norms), limit) if limit else 1.0

def learning_rate(step, steps, peak, warmup=0):
    """Up in a line to the peak over `warmup` steps, then down in a line to 0 after the last.
    Rising, Adam's averages get over their first noise; falling, the parameters come to rest."""
    return (peak * (step + 1) / warmup if step < warmup else
            peak * (steps - step) / (steps - warmup))

# === 7. Tensor ================================================================ ladder: window ===
# A graph of single numbers shows everything and is slow: ten thousand nodes for one short name. A
# `Tensor` is a Value whose data is rows of numbers. Each layer makes a single node, with a rule,
# worked out once on paper, that turns the gradient of its output into those of its inputs. The
# formulas stand above the rule; dy is d loss / d y, and so on. To check a rule, of your own too:
# gradcheck(lambda params: GPT(config, params).loss(batch), model.params, Tensor).

def transpose(A): return list(zip(*A))          # [n, m] -> [m, n]

class Tensor(Value):
    """A Value whose data is a row or rows of numbers, or a single one, as a loss is. t[i] takes a
    Tensor apart, down to single numbers, so that a layer which has no rule, only plain arithmetic,
    runs on Tensors too, and so do the layers after it.
    >>> t = Tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> (t[1][0] * t[0][1]).backward()
    >>> t.grad
    [[0.0, 3.0], [2.0, 0.0]]
    """
    __slots__ = ()                      # a rule takes the place of the local gradients
    lift = classmethod(lambda cls, x: cls(x))
    def __getitem__(self, key):
        def rule(dy):
            whole = _zeros(self.data)
            whole[key] = dy
            return [whole]
        return Tensor(self.data[key], [self], rule)

    def __len__(self): return len(self.data)
    def __add__(self, other): return super(Tensor, self._one()).__add__(other)
    def __mul__(self, other): return super(Tensor, self._one()).__mul__(other)

    def _one(self):
        if isinstance(self.data, (list, tuple)):
            raise TypeError("a Tensor of many numbers has no arithmetic: use a layer, or t[0][0]")
        return self

    def hand_on(self):
        for child, grad in zip(self.children, self.local_grads(self.grad)):
            child.grad = _sum(child.grad, grad) if child.grad else grad    # 0.0: none yet

def _sum(x, y):         # of numbers, rows or lists of rows
    if not isinstance(x, (list, tuple)):
        return x + y
    return add(x, y) if isinstance(x[0], (list, tuple)) else add([x], [y])[0]

@embedding.register(Tensor)
def _(table, ids):
    # y_t = table[ids_t]: a row's gradient is the sum over the places that it went to.
    def rule(dy):
        d_table = [[0.0] * len(row) for row in table.data]
        for i, row in zip(ids, dy):
            d_table[i] = [a + b for a, b in zip(d_table[i], row)]
        return [d_table]
    return Tensor(embedding(table.data, ids), [table], rule)

@add.register(Tensor)
def _(a, b):
    # y = a + b, da = db = dy
    if not isinstance(b, Tensor):                    # rows of Values, from a layer without a rule
        return add.dispatch(object)(a, b)
    return Tensor(add(a.data, b.data), [a, b], lambda dy: (dy, dy))

@linear.register(Tensor)
def _(x, weight, bias=None):
    # y_to = sum_i x_ti W_oi + b_o
    # dx_ti = sum_o dy_to W_oi          dW_oi = sum_t dy_to x_ti          db_o = sum_t dy_to
    def rule(dy):
        dy_columns = transpose(dy)
        return (matmul(dy, transpose(weight.data)), matmul(dy_columns, transpose(x.data)),
                list(map(sum, dy_columns)))          # the last of no use if there is no bias
    children = [x, weight] if bias is None else [x, weight, bias]
    return Tensor(linear(*[child.data for child in children]), children, rule)

@layernorm.register(Tensor)
def _(x, gain, bias, eps=1e-5):
    # n = (x - mean) s, s = 1 / sqrt(variance + eps), y = n gain + bias. dmean/dx_j = 1 / C and
    # ds/dx_j = -s^2 n_j / C make dn_i/dx_j = s ([i = j] - 1/C - n_i n_j / C); so with u = dy gain,
    # dx = s (u - mean(u) - n mean(u n))       dgain = sum_t dy n       dbias = sum_t dy
    normal, scales = zip(*[_normalize(row, eps) for row in x.data])
    def rule(dy):
        dx, dy_columns = [], transpose(dy)
        for row, n, s in zip(dy, normal, scales):
            u = [a * g for a, g in zip(row, gain.data)]
            mean_u, mean_un = sum(u) / len(u), _sumprod(u, n) / len(u)
            dx.append([s * (u_i - mean_u - n_i * mean_un) for u_i, n_i in zip(u, n)])
        return dx, list(map(_sumprod, dy_columns, transpose(normal))), list(map(sum, dy_columns))
    y = [[a * g + b for a, g, b in zip(n, gain.data, bias.data)] for n in normal]
    return Tensor(y, [x, gain, bias], rule)

@gelu.register(Tensor)
def _(x):
    # y = x h, h = (1 + tanh u) / 2, u = c (x + d x^3). As tanh' = 1 - tanh^2, dh/du = 2 h (1 - h):
    # dy/dx = h + 2 x h (1 - h) c (1 + 3 d x^2)
    (c, d), tanh, y, slopes = GELU, math.tanh, [], []
    e, f = 2 * c, 6 * c * d
    for row in x.data:
        hs = [0.5 + 0.5 * tanh(c * a * (1.0 + d * a * a)) for a in row]
        y.append([a * h for a, h in zip(row, hs)])
        slopes.append([h + a * h * (1.0 - h) * (e + f * a * a) for a, h in zip(row, hs)])
    return Tensor(y, [x], lambda dy: [[[a * b for a, b in zip(*rows)] for rows in zip(dy, slopes)]])

@attention.register(Tensor)
def _(x, positions, n_head, past=None, heads=None):
    # For each window and each head, O = A V, A = softmax(S / sqrt(d)) by rows, S = Q K^T. With
    # dA_s/dS_r = A_s ([s = r] - A_r) / sqrt(d),  dS = A (dA - sum_s A dA) / sqrt(d),  dA = dO V^T,
    # dQ = dS K,   dK = dS^T Q,   dV = A^T dO. What may not be seen has weight 0 in A, so no part in
    # any sum. A head is a range of columns, so q, k, v and their gradients are kept by columns.
    _need(past is None, "past keys and values are for generation, which runs on floats")
    weights, n_embd = [[] for _ in range(n_head)], len(x.data[0]) // 3
    y, d = attention(x.data, positions, n_head, None, weights), n_embd // n_head
    for head, rows in zip(heads or (), weights):
        head += map(list, rows)
    starts = [t for t, position in enumerate(positions) if position == 0] + [len(positions)]
    def rule(dy):
        dx = []
        for start, stop in zip(starts, starts[1:]):
            x_columns, dO_columns = transpose(x.data[start:stop]), transpose(dy[start:stop])
            dq, dk, dv, scale = [], [], [], d ** -0.5
            for head in range(n_head):
                q, k, v = (x_columns[i + head * d:][:d] for i in (0, n_embd, 2 * n_embd))
                dO, dS = dO_columns[head * d:][:d], []
                A = [row + [0.0] * (stop - start - len(row)) for row in weights[head][start:stop]]
                for a, da in zip(A, matmul(transpose(dO), transpose(v))):
                    mean = _sumprod(a, da)
                    dS.append([w * (b - mean) * scale for w, b in zip(a, da)])
                dq += matmul(k, dS)                  # (dS K)^T
                dk += matmul(q, transpose(dS))       # (dS^T Q)^T
                dv += matmul(dO, transpose(A))       # (A^T dO)^T
            dx += transpose(dq + dk + dv)
        return [dx]
    return Tensor(y, [x], rule)

@cross_entropy.register(Tensor)
def _(logits, targets):
    # loss = mean_t (log sum_j e^l_tj - l_t[target]), so dl_tj = (softmax(l_t)_j - [j = target]) / n
    def rule(d_loss):
        d_logits = [softmax(row) for row in logits.data]
        for row, target in zip(d_logits, targets):
            row[target] -= 1.0
        return [[[a * d_loss / len(targets) for a in row] for row in d_logits]]
    return Tensor(cross_entropy(logits.data, targets), [logits], rule)

# === 8. Training ========================================================== ladder: pairs, gpt ===
# A step: take a few windows, compute their loss and its gradients, move every parameter against its
# gradient. Training loss that falls while held-out loss rises is learning by heart. All that is
# random follows from the seed: on the same Python the same run gives the same bits.

ENGINES = {"tensor": Tensor, "value": Value}

@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ValueError for what cannot be."""
    steps: int = 500
    batch_size: int = 4         # windows a step
    lr: float = 0.01            # the learning rate at its peak
    warmup: int = 40            # steps until then
    weight_decay: float = 0.0
    clip: float = 1.0           # longest gradient, 0: no limit
    val_fraction: float = 0.1   # share of the documents that is held out
    eval_every: int = 0         # steps from one held-out loss to the next, 0: none
    engine: str = "tensor"      # or "value"
    workers: int = 1            # processes that share each batch
    seed: int = 42

    def __post_init__(self):
        _check(vars(self), steps=(int, 1, 10 ** 9), batch_size=(int, 1, 10 ** 5),
               workers=(int, 1, self.batch_size), lr=(float, 0, 100), warmup=(int, 0, 10 ** 9),
               eval_every=(int, 0, 10 ** 9), weight_decay=(float, 0, 100), clip=(float, 0, 10 ** 9),
               val_fraction=(float, 0, 0.99), seed=(int, -math.inf, math.inf))
        _need(self.engine in ENGINES, f"engine is {self.engine!r}, not {' or '.join(ENGINES)}")

# What a step reports: the loss is its batch's, before the step; val_loss is None if not measured.
Step = namedtuple("Step", "step loss learning_rate tokens_per_second val_loss")

def batch_gradients(model, batch, engine="tensor", share=1.0):
    """A share of the loss of a batch of windows, and its gradients: (float, {name: floats})."""
    collecting = gc.isenabled()
    gc.disable()          # Python would search the growing graph for cycles, which it does not have
    try:
        lifted = model.lift(ENGINES[engine])
        loss = lifted.loss(batch) * share
        loss.backward()
        return float(loss), gradients(lifted.params, ENGINES[engine])
    finally:
        if collecting:
            gc.enable()

def evaluate(model, windows, most=500):
    """The mean loss of a model of floats on windows, in nats a token; 500 give it to about 0.02."""
    losses = [float(model.loss([w])) * (len(w) - 1) for w in windows[:most]]
    loss = sum(losses) / sum(len(w) - 1 for w in windows[:most])
    _need(math.isfinite(loss), f"the loss is {loss}: training diverged", ArithmeticError)
    return loss

@lru_cache(4)
def _order(n, seed): return random.Random(seed).sample(range(n), n)

class Trainer:
    """Trains a model in place: an iterator that makes a step and reports it, `steps` times. Workers
    are processes, or any `executor` like those of concurrent.futures."""
    def __init__(self, model, tokenizer, documents, config=TrainConfig(), executor=None):
        self.model, self.tokenizer, self.config, self.step = model, tokenizer, config, 0
        self.executor, self._pool, self.losses = executor, None, []
        self.documents, self.val_documents = split_documents(
            documents, config.val_fraction, config.seed)
        self.windows, self.val_windows = (
            [w for document in part for w in windows(document, tokenizer, model.config.block_size)]
            for part in (self.documents, self.val_documents))
        self.optimizer = AdamW(model.params, weight_decay=config.weight_decay)

    def batch(self, step):
        """A step's windows: the next of all, which the seed shuffles anew for every epoch."""
        seed, size, n = self.config.seed, self.config.batch_size, len(self.windows)
        return [self.windows[_order(n, f"{seed} {i // n}")[i % n]]
                for i in range(step * size, (step + 1) * size)]

    def __iter__(self): return self
    def __next__(self):
        config = self.config
        if self.step >= config.steps:
            self.close()
            raise StopIteration
        started, batch = time.perf_counter(), self.batch(self.step)
        loss, grads, factor = self.gradients(batch)
        _need(math.isfinite(loss), f"loss is {loss} at step {self.step + 1}: training diverged, "
              "try a smaller lr", ArithmeticError)
        lr = learning_rate(self.step, config.steps, config.lr, config.warmup)
        self.optimizer.step(grads, lr, factor)
        self.step += 1
        self.losses.append(loss)
        speed = sum(len(window) - 1 for window in batch) / (time.perf_counter() - started)
        look = config.eval_every and self.step % config.eval_every == 0 and self.val_windows
        val_loss = evaluate(self.model, self.val_windows) if look else None
        return Step(self.step, loss, lr, speed, val_loss)

    def gradients(self, batch):
        """A batch's loss, its gradients and the factor that clips them; workers share the windows.
        On other numbers this is done another way, as is the optimizer's part: examples/engines/."""
        n = min(self.config.workers, len(batch))
        parts = [batch[i::n] for i in range(n)]
        counts = [sum(len(window) - 1 for window in part) for part in parts]
        losses, grads = zip(*self._parallel_map()(
            batch_gradients, [self.model] * n, parts, [self.config.engine] * n,
            [count / sum(counts) for count in counts]))
        grads = {x: reduce(_sum, [g[x] for g in grads]) for x in grads[0]}
        return sum(losses), grads, clip_factor(grads, self.config.clip)

    def _parallel_map(self):
        """map, by one process or several. Same seed, same number of workers: the same bits."""
        if self.config.workers > 1 and self.executor is None:
            import signal
            from concurrent.futures import ProcessPoolExecutor
            self.executor = self._pool = ProcessPoolExecutor(       # Ctrl-C is not for workers
                self.config.workers, None, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        return self.executor.map if self.executor else map

    def about(self): return f"{self.config.engine} engine"                  # For the command line:
    def rate(self, speed): return f"{speed:,.0f} tokens/s"                  # what runs, how fast.
    def close(self):
        """Let worker processes go, if the Trainer started any."""
        if self._pool:
            self._pool.shutdown()
            self._pool = self.executor = None

# === 9. Generation ========================================================== ladder: die, gpt ===
# To write is to predict, again and again: the logits of the last token become probabilities, one
# token is drawn from them and joins the text. Keys and values of tokens that have been read do not
# change, as no token sees a later one; they are kept, and a new token costs the work of one row.

def sample(logits, temperature=1.0, top_k=0, top_p=1.0, rng=random):
    """Draw a token id by its row of logits (floats). Dividing them by the temperature makes a
    probability p go as p^(1/temperature): below 1 the likely gets likelier, above 1 the rare gets
    its chance, 0 takes the likeliest. top_k keeps the k likeliest tokens (0: all); top_p, of these,
    the fewest, likeliest first, that hold a share top_p of the probability.
    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"."""
    _check(locals(), temperature=(float, 0, 10 ** 6), top_k=(int, 0, 10 ** 9), top_p=(float, 0, 1))
    ids = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    if temperature == 0:
        return ids[0]
    probs = softmax([(logits[i] - logits[ids[0]]) / temperature for i in ids[:top_k or None]])
    n = 1 + sum(reached < top_p for reached in accumulate(probs[:-1]))     # 1 + those short of p
    return rng.choices(ids[:n], probs[:n])[0]

def stream(model, tokens, max_tokens=200, temperature=1.0, top_k=0, top_p=1.0, seed=None, end=None):
    """Continue a list of token ids: yields new ids until `end`, by default the last id, is drawn,
    which is not yielded. `seed` is an int, a random.Random or None. Of a long prompt the last
    block_size tokens are read; when there are more, the newer half is read again, from 0."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    end = model.config.vocab_size - 1 if end is None else end
    block_size = model.config.block_size
    context = unread = list(tokens)[-block_size:]
    cache = model.new_cache()
    for _ in range(max_tokens):
        token = sample(model(unread, cache=cache, last=True)[0], temperature, top_k, top_p, rng)
        if token == end:
            return
        yield token
        context, unread = context + [token], [token]
        if len(context) > block_size:
            context = unread = context[-max(1, block_size // 2):]
            cache = model.new_cache()

def generate(model, tokenizer, prompt="", **options):
    """A new document that starts with the prompt; options as for `stream`."""
    tokens = [tokenizer.end] + tokenizer.encode(prompt)
    return prompt + tokenizer.decode(stream(model, tokens, end=tokenizer.end, **options))

# === 10. Subword tokens ==========================================================================
# A token for each character makes texts long; a token for each word has none for the next typo.
# Byte-pair encoding (BPE) begins with the 256 bytes, of which UTF-8 makes any text, and gives the
# most frequent pair of neighbours a token of its own, again and again: common words become one
# token, rare ones several, and nothing is unknown. This is GPT-2's. Source: Sennrich et al. 2016,
# "Neural Machine Translation of Rare Words with Subword Units", algorithm 1.

# A byte is written as a character: its own or, if that is blank, one from 256 on. A space is Ġ.
_BLANK = [b for b in range(256) if b == 32 or not chr(b).isprintable()]
BYTES = [chr(256 + _BLANK.index(b) if b in _BLANK else b) for b in range(256)]

@cache
def _pieces():
    """GPT-2's pattern of the pieces that no token crosses: 's and its like; letters, numerals or
    other signs, with the space before them; white space, to which \\x1c does not belong."""
    numerals = r"\d" + "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isnumeric()
                               and not c.isdecimal() and not c.isalpha())
    space = r"[^\S\x1c-\x1f]"
    return re.compile(rf"'(?:[stmd]|re|ve|ll)| ?[^\W_{numerals}]+| ?[{numerals}]+"
                      rf"| ?(?:[^\w\s]|[_\x1c-\x1f])+|{space}+(?={space}|\Z)|{space}+")

class BPETokenizer:
    """Byte-level BPE: a vocabulary {token: id}, and merges [(left, right), ...], earliest first.
    >>> tokenizer = BPETokenizer.train(["low lower", "slow slower"], vocab_size=261)
    >>> tokenizer.merges, tokenizer.encode("lower")
    ([('l', 'o'), ('lo', 'w'), ('e', 'r'), ('s', 'low')], [257, 258])
    """
    # As Python is quick with strings, a token that is being merged is one character, chr(id), and a
    # piece a string of them: its pairs are map(concat, piece, piece[1:]), a merge is str.replace.
    def __init__(self, vocab, merges):
        _need({*BYTES, END} <= vocab.keys() and set(BYTES) == set("".join(vocab)), "no byte tokens")
        made = set(BYTES)
        for pair in merges:
            _need(len(pair) == 2 and made >= {*pair} and "".join(pair) in vocab,
                  f"{pair!r} does not merge two tokens, made before, into one of the vocabulary")
            made.add("".join(pair))
        self.vocab, self.merges, self.vocab_size, self.end = vocab, merges, len(vocab), vocab[END]
        self._byte_tokens = [chr(vocab[byte]) for byte in BYTES]
        self._merged = {chr(vocab[a]) + chr(vocab[b]): chr(vocab[a + b]) for a, b in merges}
        self._ranks = {pair: rank for rank, pair in enumerate(self._merged)}
        byte = dict(zip(BYTES, range(256)))
        self._bytes = {i: bytes(map(byte.get, token)) for token, i in vocab.items()}
        self._piece_ids = lru_cache(2 ** 16)(self._merge)

    @classmethod
    def train(cls, documents, vocab_size):
        """Learn from documents: 256 bytes, <|endoftext|>, and as many merges as make vocab_size, or
        as there are. Of equally frequent pairs the one with the smallest ids is merged first."""
        _check(locals(), vocab_size=(int, 257, 10 ** 6))
        tokens, merges = sorted(BYTES), []
        byte_tokens = [chr(tokens.index(byte)) for byte in BYTES]
        pieces = Counter(piece for document in documents for part in document.split(END)
                         for piece in _pieces().findall(part))
        words = ["".join(map(byte_tokens.__getitem__, piece.encode())) for piece in pieces]
        weights, changed, new = [*pieces.values()], range(len(words)), ""
        counts, pieces_with, queue = Counter(), {}, []
        while len(tokens) < vocab_size - 1:
            # 1) Count the pairs of all pieces, and from then on of those that a merge has changed,
            #    where only pairs with the new token can have become more frequent.
            fresh = defaultdict(set)
            for i in changed:
                for pair in map(concat, words[i], words[i][1:]):
                    counts[pair] += weights[i]
                    if new in pair:         # at first new is "", which is in every pair
                        fresh[pair].add(i)
            pieces_with.update(fresh)
            for pair in fresh:
                heappush(queue, (-counts[pair], pair))
            # 2) The most frequent pair is first in the queue, once its count there is up to date.
            while queue and -queue[0][0] != counts[queue[0][1]]:
                heapreplace(queue, (-counts[queue[0][1]], queue[0][1]))
            if not queue or queue[0][0] == 0:
                break
            # 3) Make it a token, in all pieces that have it.
            pair = heappop(queue)[1]
            merges.append(tuple(tokens[ord(token)] for token in pair))
            new = chr(len(tokens))
            tokens.append("".join(merges[-1]))
            changed = [i for i in pieces_with.pop(pair) if pair in words[i]]
            for i in changed:
                for old in map(concat, words[i], words[i][1:]):
                    counts[old] -= weights[i]
                words[i] = words[i].replace(pair, new)
        return cls({token: i for i, token in enumerate(tokens + [END])}, merges)

    def encode(self, text):
        """Text -> ids; <|endoftext|> in it is that token. No text is unknown."""
        ids = []
        for n, part in enumerate(text.split(END)):
            ids += [self.end] * (n > 0)
            ids += [i for piece in _pieces().findall(part) for i in self._piece_ids(piece)]
        return ids

    def _merge(self, piece):
        # Again and again, of the pairs that it has, the one that was merged earliest in training.
        word = "".join(map(self._byte_tokens.__getitem__, piece.encode()))
        while True:
            pair = min(map(concat, word, word[1:]), default="",
                       key=lambda pair: self._ranks.get(pair, math.inf))
            if pair not in self._ranks:
                return list(map(ord, word))
            word = word.replace(pair, self._merged[pair])

    def decode(self, ids):
        """Ids -> text. Bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return b"".join(map(self._bytes.__getitem__, ids)).decode(errors="replace")

# === 11. Checkpoints =============================================================================
# A checkpoint is a directory in the form that GPT-2 has at Hugging Face: config.json is the shape,
# model.safetensors the parameters, tokenizer.json the tokens; trainer.safetensors lets a training
# go on. The transformers library opens what is saved here, and GPT-2's own directories open here.
# As files may come from strangers, what they say is checked before it is believed.

GPT2 = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False}       # which other models may have otherwise
FLOATS = {"F64": ("d", 8), "F32": ("f", 4), "F16": ("e", 2), "BF16": ("f", 2)}     # code, bytes
MOST_PARAMETERS = 10 ** 7           # larger models are read as arrays of 4-byte floats, to be run

def _save(directory, files):
    """Write {name: pieces of bytes} into a directory: all of them or, whatever happens, none.
    When all are in `new`, it becomes `saved`, in one instant, and from then on `_reading` finds
    them there; last they move to their places. Should that be cut short, the next save ends it."""
    import shutil
    new, saved = (os.path.join(directory, name) for name in (".microgpt-new", ".microgpt-saved"))
    def settle():
        for name in os.listdir(saved) if os.path.isdir(saved) else ():
            os.replace(os.path.join(saved, name), os.path.join(directory, name))
        shutil.rmtree(saved, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
    settle()
    try:
        os.makedirs(new)
        for name, pieces in files.items():
            with open(os.path.join(new, name), "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        os.rename(new, saved)
    except OSError as error:
        error.filename = error.filename or directory        # a full disk comes without a name
        raise
    finally:
        settle()

@contextmanager
def _reading(directory, name):
    """Open a checkpoint's file; what is wrong with its contents becomes a ValueError naming it."""
    path = os.path.join(directory, name)
    try:
        file = open(os.path.join(directory, ".microgpt-saved", name), "rb")
    except OSError:
        file = open(path, "rb")
    with file:
        try:
            yield file
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            what = "".join(c if c.isprintable() else "?" for c in what[:300])
            raise ValueError(f"{path}: {what}") from None

def _from_json(text):
    def distinct(pairs):
        _need(len(dict(pairs)) == len(pairs), "a key is there twice")
        return dict(pairs)
    contents = json.loads(text, object_pairs_hook=distinct)
    _need(isinstance(contents, dict), "it is not a JSON object")
    return contents

def _json(**contents): return [json.dumps(contents, indent=2).encode()]

# A .safetensors file is: the size of its header, in 8 bytes; the header, JSON that gives for every
# tensor its dtype, shape and data_offsets [start, stop]; the numbers, row by row, without gaps. All
# is little-endian. The weights of GPT-2's linear layers, c_, lie there as [n_in, n_out].

def _entry(name, shape, dtype, start):
    _need(dtype in FLOATS, f"tensor {name!r} is {dtype!r}: it must be one of {[*FLOATS]}")
    return {"dtype": dtype, "shape": list(shape[::-1] if ".c_" in name else shape),
            "data_offsets": [start, start + math.prod(shape) * FLOATS[dtype][1]]}

def _write_tensors(tensors, dtype="F64", **metadata):
    """{name: row or rows} -> the pieces of a .safetensors file. F64 loses nothing."""
    header, stop = {"__metadata__": {"format": "pt", **metadata}}, 0
    for name, x in tensors.items():
        shape = (len(x), len(x[0])) if _rows(x) is x else (len(x),)
        header[name] = _entry(name, shape, dtype, stop)
        stop = header[name]["data_offsets"][1]
    text = json.dumps(header).encode()
    yield len(text).to_bytes(8, "little") + text
    for name, x in tensors.items():
        for row in zip(*x) if ".c_" in name and _rows(x) is x else _rows(x):
            _need(all(map(math.isfinite, row)), f"{name} has numbers that are not finite")
            yield struct.pack(f"<{len(row)}{FLOATS[dtype][0]}", *row)

def _read_tensors(file, shapes, code="d"):
    """A .safetensors file of just these shapes -> {name: row or rows}, metadata."""
    row = partial(array, code) if sum(map(math.prod, shapes.values())) > MOST_PARAMETERS else list
    size = os.fstat(file.fileno()).st_size
    data = 8 + int.from_bytes(file.read(8), "little")
    _need(8 < data <= min(size, 10 ** 8), f"its {size:,} bytes have a header up to {data:,}")
    header, tensors, place = _from_json(file.read(data - 8)), {}, 0
    metadata = {**header.pop("__metadata__", {})}
    # As they lie in the file, so that each must begin where the last one ended.
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        name = name.removeprefix("transformer.")
        if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):        # a causal mask of old
            start, stop = entry["data_offsets"]
            _need(start == place <= stop <= size - data, f"{name!r} leaves a gap, or overlaps")
            place = file.seek(data + stop) - data
            continue
        _need(name in shapes and name not in tensors, f"tensor {name!r} is unknown, or there twice")
        right = _entry(name, shapes[name], entry["dtype"], place)
        start, place = right["data_offsets"]
        _need(json.dumps(entry, sort_keys=True) == json.dumps(right, sort_keys=True) and place <=
              size - data, f"tensor {name!r} is {entry}, of {size - data:,} bytes: not {right}")
        numbers, width = _floats(file.read(place - start), entry["dtype"]), right["shape"][-1]
        rows = (numbers[i:i + width] for i in range(0, len(numbers), width))
        if ".c_" in name and len(shapes[name]) > 1:
            rows = (numbers[i::width] for i in range(width))
        rows = list(map(row, rows))
        _need(all(all(map(math.isfinite, part)) for part in rows),
              f"tensor {name!r} has numbers that are not finite")
        tensors[name] = rows if len(shapes[name]) > 1 else rows[0]
    _need(place == size - data, f"its tensors end at {place:,} of {size - data:,} bytes")
    return {name: tensors[name] for name in shapes}, metadata

def _floats(raw, dtype):
    code = FLOATS[dtype][0]
    if dtype == "BF16":                     # the upper halves of F32
        halves, raw = raw, bytearray(2 * len(raw))
        raw[2::4], raw[3::4] = halves[::2], halves[1::2]
    if code == "e" or sys.byteorder == "big":       # no array of these
        return array("d", struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw))
    return array(code, raw)

def _tokenizer_files(tokenizer):
    # To the tokenizers library, characters are a BPE that merges nothing.
    merges, level, decoder = [], None, {"type": "Fuse"}
    if isinstance(tokenizer, BPETokenizer):
        merges = list(map(" ".join, tokenizer.merges))
        level = decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"tokenizer.json": _json(
                version="1.0", pre_tokenizer=level, decoder=decoder,
                added_tokens=[{"id": tokenizer.end, "content": END, "special": True, **flags}],
                model={"type": "BPE", "vocab": tokenizer.vocab, "merges": merges}),
            "tokenizer_config.json": _json(
                tokenizer_class="PreTrainedTokenizerFast", bos_token=END, eos_token=END,
                clean_up_tokenization_spaces=False,
                model_input_names=["input_ids", "attention_mask"])}

def load_tokenizer(directory):
    """The CharTokenizer or BPETokenizer in a directory: from tokenizer.json, or from GPT-2's
    vocab.json and merges.txt. Raises OSError and ValueError as `GPT.load` does."""
    def build(vocab, merges, bytewise):
        _need(f"{sorted(vocab.values())}" == f"{[*range(len(vocab))]}", "its ids have gaps")
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
        tokenizer = (BPETokenizer(vocab, merges) if bytewise else
                     CharTokenizer(["".join(vocab.keys() - {END})]))
        _need(tokenizer.vocab == vocab and (bytewise or not merges), "not characters in order")
        return tokenizer
    try:
        with _reading(directory, "tokenizer.json") as file:
            found = _from_json(file.read())
            model, level = found["model"], found.get("pre_tokenizer")
            kind = level or {"type": "ByteLevel", "add_prefix_space": False}
            special = {token["content"]: token["id"] for token in found["added_tokens"]
                       if not any(map(token.get, ("single_word", "lstrip", "rstrip")))}
            odd = [found.get("normalizer"), kind["add_prefix_space"], not kind.get("use_regex", 1)]
            odd += map(model.get, ["dropout", "ignore_merges", "end_of_word_suffix",
                                   "continuing_subword_prefix"])
            _need((model.get("type", "BPE"), kind["type"], *special) == ("BPE", "ByteLevel", END)
                  and not any(odd), f"it is not of GPT-2's kind, {END} its only special token")
            tokenizer = build({**model["vocab"], **special}, model["merges"], level)
    except FileNotFoundError:
        with _reading(directory, "vocab.json") as file:
            vocab = _from_json(file.read())
        with _reading(directory, "merges.txt") as file:
            lines = [line for line in file.read().decode().split("\n") if line[:8] != "#version"]
            tokenizer = build(vocab, filter(None, lines), bytewise=True)
    with suppress(FileNotFoundError), _reading(directory, "config.json") as file:
        size = _from_json(file.read())["vocab_size"]
        _need(size == tokenizer.vocab_size, f"the model has {size!r} tokens, and the tokenizer "
              f"beside it {tokenizer.vocab_size}: they do not belong together")
    return tokenizer

def _save_model(self, directory, tokenizer=None, also=(), write=_write_tensors, **metadata):
    """Save a model, and its tokenizer, as a directory that transformers opens too. Raises OSError
    or, if a number is not finite, ValueError; then all is as before. `write` makes the bytes."""
    end = tokenizer.end if tokenizer else self.config.vocab_size - 1
    dtype = "F64" if parameter_count(self.config) <= MOST_PARAMETERS else "F32"
    _save(directory, {
        **(_tokenizer_files(tokenizer) if tokenizer else {}), **dict(also),
        "config.json": _json(
            **GPT2, **asdict(self.config), n_positions=self.config.block_size, bos_token_id=end,
            eos_token_id=end, architectures=["GPT2LMHeadModel"], dtype=dtype.replace("F", "float")),
        "model.safetensors": write(self.params, dtype, **metadata)})

def _load_model(directory):
    """The GPT that `save` or transformers put there; ValueError names a file that is not sound."""
    with _reading(directory, "config.json") as file:
        found = _from_json(file.read())
        config = Config(found["vocab_size"], found["n_positions"], found["n_layer"],
                        found["n_head"], found["n_embd"])
        inner = None if found.get("n_inner") is None else 4 * config.n_embd
        for name, ours in {**GPT2, "n_inner": inner}.items():
            _need(found.get(name, ours) == ours, f"{name} is {found.get(name)!r}, not {ours!r}")
    with _reading(directory, "model.safetensors") as file:
        params, metadata = _read_tensors(file, parameter_shapes(config), "f")
    model = GPT(config, params)
    model.step = metadata.get("step")       # of the training that it comes from
    return model

def _fingerprint(of):
    return str(zlib.crc32(json.dumps([of.config.seed, of.documents, of.val_documents]).encode()))

def _save_trainer(self, directory, write=_write_tensors):
    """Save a training between two steps, model and tokenizer included, as `GPT.save` does."""
    state = {"step": str(self.step), "documents": _fingerprint(self),
             "config": json.dumps(asdict(self.config))}
    moments = {f"{moment}.{name}": x for moment in "mv"
               for name, x in getattr(self.optimizer, moment).items()}
    self.model.save(directory, self.tokenizer, {"trainer.safetensors": write(moments, **state)},
                    write, step=state["step"])

def _load_trainer(cls, directory, documents, executor=None, **changes):
    """Go on with a saved training as if it had never stopped (but `losses` begin anew). `documents`
    must be those it began with; `changes` are to its TrainConfig, such as more steps."""
    model, tokenizer = GPT.load(directory), load_tokenizer(directory)
    shapes = parameter_shapes(model.config)
    with _reading(directory, "trainer.safetensors") as file:
        moments, state = _read_tensors(file, {f"{m}.{x}": shapes[x] for m in "mv" for x in shapes})
        _need(state["step"] == model.step and re.fullmatch("[0-9]{1,10}", model.step),
              "it is not of the model that is saved here (or just now being saved: try again)")
        config = TrainConfig(**{**_from_json(state["config"]), **changes})
        trainer = cls(model, tokenizer, documents, config, executor)
        _need(state.get("documents") == _fingerprint(trainer), "its training began with other "
              "documents, or another seed or val_fraction")
    for name, x in moments.items():
        _need(name[0] == "m" or min(map(min, _rows(x))) >= 0, f"{directory}: {name} is negative")
    m, v = ({x: moments[f"{moment}.{x}"] for x in shapes} for moment in "mv")
    trainer.optimizer.m, trainer.optimizer.v = m, v
    trainer.step = trainer.optimizer.steps = int(model.step)
    return trainer

GPT.save, GPT.load = _save_model, staticmethod(_load_model)
Trainer.save, Trainer.load = _save_trainer, classmethod(_load_trainer)

# === 12. Looking inside ========================================== ladder: loss, pairs, memory ===
# How sure was the model of each token, and is its loss any good? A loss says little by itself, as
# names are easier to guess than novels, letters than words. So it is held against models that just
# count: a GPT that is no better than a table of pairs has learned no more than such a table. What
# happens between the layers, the `trace` of a forward pass tells (chapter 5); examples/ draws it.

# One token of a text: the probability it was given, its loss, the likeliest [(token, p), ...].
Scored = namedtuple("Scored", "token id probability loss likeliest")

def score(model, tokenizer, text, k=3):
    """How likely a document is, token by token, its <|endoftext|> included -> [Scored, ...]. Their
    mean loss is the loss of the document, as in training; e to its power is the perplexity."""
    scored = []
    for window in windows(text, tokenizer, model.config.block_size):
        for token, logits in zip(window[1:], model(window[:-1])):
            probs = softmax(logits)
            likeliest = [(tokenizer.decode([i]), probs[i])
                         for i in nlargest(k, range(len(logits)), key=logits.__getitem__)]
            loss = cross_entropy([logits], [token])
            scored.append(Scored(tokenizer.decode([token]), token, probs[token], loss, likeliest))
    return scored

def baselines(windows, val_windows, vocab_size):
    """The loss on val_windows of four models that only count in windows -> {name: nats a token}.
    They know nothing, how frequent each token is, what follows a token (pairs), what follows two
    (triples). A count of 0 shall not mean "impossible", so each of them leans on the one before:

        p(token) = (count of the token + kinds * p before) / (count of all tokens + kinds)
    where only what followed the same one or two tokens counts, and kinds is the number of different
    tokens there. Source: Witten and Bell 1991, "The Zero-Frequency Problem", method C."""
    def contexts(window):               # each token, and the 0, 1 and 2 tokens before it
        for i in range(1, len(window)):
            yield window[i], [tuple(window[i - n:i]) for n in range(min(i, 2) + 1)]
    counts, losses = defaultdict(Counter), [[], [], [], []]
    for window in windows:
        for token, before in contexts(window):
            for context in before:
                counts[context][token] += 1
    for window in val_windows:
        for token, before in contexts(window):
            p = 1 / vocab_size
            for loss, context in zip(losses, (None, *before, None)):        # None has no count
                seen = counts.get(context, {})
                if seen:
                    p = (seen[token] + len(seen) * p) / (sum(seen.values()) + len(seen))
                loss.append(-math.log(p))
    names = "knows nothing", "frequencies", "pairs", "triples"
    return {name: sum(loss) / len(loss) for name, loss in zip(names, losses)}

def _mean(numbers): return sum(numbers) / len(numbers)
def _recent(losses): return _mean(losses[-max(25, len(losses) // 10):])

def reading(losses, val_loss, scale, copied=0.0):
    """What a training came to, in a sentence: from the `losses` of its steps, its held-out loss,
    the `scale` of `baselines`, and `copied`, the share of samples that are training documents."""
    n = min(len(losses), max(25, len(losses) // 10))        # steps enough for a mean
    means = [_mean(losses[i:i + n]) for i in range(len(losses) % n, len(losses), n)]
    loss, best, counted = means[-1], min(losses[0], *means), [*scale.values()]
    if loss > 1.1 * best:
        return f"diverging: in training {best:.3f} has become {loss:.3f}; try a smaller lr"
    if copied > 0.5:
        return f"memorising: {copied:.0%} of the samples are training documents; it needs more text"
    if val_loss > 1.1 * loss:
        return f"overfitting (training {loss:.3f}): it needs more text or fewer steps"
    if val_loss >= min(counted[:3]):
        return "no better than counting pairs: it needs more steps"
    if val_loss >= min(counted):
        return "better than counting pairs, not triples: it needs more steps or width"
    return "better than counting triples: it makes use of earlier tokens too"

# === 13. Command line ============================================================================
# `python microgpt.py` learns from documents and shows what it learned; other commands use what it
# saved. Bad input gets one line on stderr and a non-zero exit, and nothing is done by half.

WIDTH, SAVE_EVERY = 79, 60                          # characters, seconds
WRITING = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "max_tokens": 200}
DEFAULTS = {**asdict(Config(512)), "tokenizer": "char", **asdict(TrainConfig()), **WRITING,
            "save": "", "resume": "", "samples": 20, "prompt": "", "quiet": False, "help": False}
USAGE = """python microgpt.py [train] [FILE] [options]  learn, then write
       python microgpt.py sample DIR [options]      write with what --save kept
       python microgpt.py tokenize DIR TEXT         show the tokens of a text
       python microgpt.py explain DIR TEXT...       show how likely it finds it
FILE has a document a line; without it there are names. Ctrl-C ends learning.
Longer lines: --block-size 64. A better model: more --steps, then --n-embd."""
HELP = {"n_layer": "blocks", "n_head": "attention heads in each", "n_embd": "width",
        "block_size": "tokens that it sees at once", "tokenizer": "char, or bpe: subwords",
        "vocab_size": "how many, with bpe", "steps": "of training", "batch_size": "windows in each",
        "lr": "learning rate", "warmup": "steps until it", "clip": "longest gradient, 0: any",
        "weight_decay": "as in AdamW", "val_fraction": "held out", "engine": "tensor, or value",
        "eval_every": "steps between looks at these, 0: none", "workers": "processes",
        "seed": "of all chance", "temperature": "0: the likeliest", "top_k": "of the likeliest k",
        "top_p": "of the likeliest with this share", "max_tokens": "longest document",
        "save": "keep it in this directory, each minute", "resume": "go on with the one there",
        "samples": "documents; sample: 5", "prompt": "how they begin", "quiet": "show only these"}

def _beside(*parts):
    """A file that comes with this one: beside it or, installed, in share/microgpt."""
    places = os.path.dirname(os.path.abspath(__file__)), f"{sys.prefix}/share/microgpt"
    return max((os.path.join(place, *parts) for place in places), key=os.path.exists)

def _prepare(args, given):
    def pick(cls, options):         # those that are fields of the config
        return {name: x for name, x in options.items() if name in cls.__dataclass_fields__}
    _need(args.tokenizer in ("char", "bpe"), f"tokenizer is {args.tokenizer!r}, not char or bpe")
    documents = load_documents(args.words[0] if args.words else _beside("data", "names.txt"))
    if args.resume:
        trainer = args.trainer.load(args.resume, documents, **pick(TrainConfig, given))
        kept, changed = asdict(trainer.model.config), pick(Config, given)
        _need({**kept, **changed} == kept, f"{args.resume} has {kept}: {changed} cannot be")
        _need(trainer.step < trainer.config.steps, f"{args.resume} has made its {trainer.step:,} "
              f"steps: to go on, give more, such as --steps {2 * trainer.step}")
    else:
        training, shape = (cls(**pick(cls, vars(args))) for cls in (TrainConfig, Config))
        tokenizer = (CharTokenizer(documents) if args.tokenizer == "char" else
                     BPETokenizer.train(documents, args.vocab_size))
        shape = replace(shape, vocab_size=tokenizer.vocab_size)
        n = parameter_count(shape)
        _need(n <= MOST_PARAMETERS or args.trainer is not Trainer,
              f"{n:,} parameters: try smaller n_embd, n_layer, block_size")
        trainer = args.trainer(GPT(shape, seed=args.seed), tokenizer, documents, training)
    trainer.tokenizer.encode(args.prompt)
    args.save = args.save or args.resume
    os.makedirs(args.save or ".", exist_ok=True)
    return documents, trainer

def _train(trainer, say, directory):
    """Run a trainer to its end or to a Ctrl-C; save it now and then; show how it gets on."""
    from signal import SIGINT, signal
    live, steps, first, held_out = sys.stdout.isatty(), trainer.config.steps, trainer.step, ""
    speed, stop, started = 0, [], time.perf_counter()
    shown = saved = started
    before = signal(SIGINT, lambda *_: stop.append(signal(SIGINT, before)))  # a second acts as ever
    try:
        for step in trainer:
            speed += (step.tokens_per_second - speed) / min(step.step - first, 100)
            held_out = held_out if step.val_loss is None else f"  held out {step.val_loss:.3f}"
            now, last = time.perf_counter(), step.step == steps or stop
            if last or (now - shown > 0.1 if live else step.step % max(1, steps // 10) == 0):
                shown = now
                left = round((now - started) / (step.step - first) * (steps - step.step))
                bar = f"[{'#' * (12 * step.step // steps):.<12}]" if live else "step"
                line = (f"{bar} {step.step:,}/{steps:,}  loss {_recent(trainer.losses):.3f}"
                        f"{held_out}  {trainer.rate(speed)}  {left // 60}:{left % 60:02} left")
                say(f"\r{line:{WIDTH}.{WIDTH}}" if live else line, end="" if live else "\n")
            if directory and (last or now - saved > SAVE_EVERY):
                trainer.save(directory)
                saved = now
            if stop:
                break
    finally:
        signal(SIGINT, before)
        trainer.close()
        say("\n" * live, end="")
    say(f"stopped by Ctrl-C after {trainer.step:,} of {steps:,} steps\n" if stop else "", end="")

def _learn(args, given, writing):
    say = (lambda *_, **__: None) if args.quiet else partial(print, flush=True)
    documents, trainer = _prepare(args, given)
    c, t, letters = trainer.model.config, trainer.config, sorted(set().union(*documents))
    say(f"documents   {args.words[0] if args.words else 'the bundled names'}: {len(documents):,}, "
        f"of which {len(trainer.val_documents):,} held out\n"
        f"characters  {sum(map(len, documents)):,}; {len(letters):,} different ones: "
        f"{''.join(filter(str.isprintable, letters))[:40]}\n"
        f"model       {', '.join(f'{name} {x}' for name, x in asdict(c).items())}\n"
        f"parameters  {parameter_count(c):,}\ntraining    {t.steps:,} steps of {t.batch_size} "
        f"windows, lr {t.lr}, {trainer.about()}\n")
    _train(trainer, say, args.save)
    say(f"saved       in {args.save}: python microgpt.py sample {args.save}\n" if args.save else "")
    loss = evaluate(trainer.model, trainer.val_windows or trainer.windows)
    texts, rng, known = set(), random.Random(t.seed), set(trainer.documents)
    for _ in range(args.samples):
        text = generate(trainer.model, trainer.tokenizer, args.prompt, seed=rng, **writing)
        texts.add(text)
        mark = "in training" if text in known else "new"
        print(text if args.quiet else f"    {text or '(empty)':24} {mark}", flush=True)
    if not args.quiet:
        _report(trainer, loss, len(texts & known) / max(1, len(texts)))

def _report(trainer, loss, copied):
    losses, seen, held_out = trainer.losses, trainer.windows, trainer.val_windows
    scale = baselines(seen, (held_out or seen)[:500], trainer.model.config.vocab_size)
    blocks = "▁▂▃▄▅▆▇█" if "utf" in str(sys.stdout.encoding).lower() else "..::++##"
    n = min(56, len(losses))
    means = [_mean(losses[len(losses) * i // n:len(losses) * (i + 1) // n]) for i in range(n)]
    low, high = min(means), max(means)
    curve = "".join(blocks[round(7 * (x - low) / (high - low or 1))] for x in means)
    print(f"\nloss  {means[0]:.3f} {curve} {means[-1]:.3f}\n      {loss:.3f} "
          f"{'held out' if held_out else 'evaluated'}, {_recent(losses):.3f} in training")
    for name, x in sorted([("this model", loss), *scale.items()], key=lambda item: -item[1]):
        print(f"      {name:14} {x:.3f} {blocks[-1] * round(40 * x / max(loss, *scale.values()))}")
    print(f"\nIt is {reading(losses, loss, scale, copied)}.")

def _sample(args, given, writing):
    model, tokenizer = GPT.load(args.words[0]), load_tokenizer(args.words[0])
    tokens, rng = [tokenizer.end] + tokenizer.encode(args.prompt), random.Random(given.get("seed"))
    for _ in range(given.get("samples", 5)):
        print(args.prompt, end="", flush=True)
        waiting = []                # tokens that end within a character
        for token in stream(model, tokens, seed=rng, end=tokenizer.end, **writing):
            waiting.append(token)
            if not tokenizer.decode(waiting).endswith("\ufffd"):
                print(tokenizer.decode(waiting), end="", flush=True)
                waiting = []
        print(tokenizer.decode(waiting), flush=True)

def _tokenize(args, given, writing):
    tokenizer = load_tokenizer(args.words[0])
    shade = "\x1b[3{}m{}\x1b[0m" if sys.stdout.isatty() and not os.getenv("NO_COLOR") else "{1}"
    for n, i in enumerate(ids := tokenizer.encode(args.words[1])):
        print(f"{i:7}  " + shade.format((3, 6)[n % 2], repr(tokenizer.decode([i]))))
    print(f"{len(args.words[1]):,} characters, {len(ids):,} tokens")

def _run(argv, trainer):
    example = _beside("examples", f"{argv[0]}.py") if argv and argv[0].isidentifier() else ""
    if os.path.exists(example):
        import runpy
        return runpy.run_path(example)["main"](argv[1:])
    import argparse
    parser = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    parser.error = lambda message: _need(False, f"{message} (--help shows what there is)")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for name, x in DEFAULTS.items():
        kind = {"action": "store_true"} if x is False else {"type": type(x), "metavar": "X"}
        options = ["--" + name.replace("_", "-"), *["--n"] * (name == "samples")]
        parser.add_argument(*options, **kind, default=argparse.SUPPRESS,
                            help=HELP.get(name, "") + f" ({x})" * (f"{x}" not in ("", "False")))
    given = vars(parser.parse_intermixed_args(argv))
    words = given.pop("words")
    commands = {"train": (_learn, 0, 1), "sample": (_sample, 1), "tokenize": (_tokenize, 2)}
    run, *counts = commands[words.pop(0) if words and words[0] in commands else "train"]
    args = argparse.Namespace(words=words, trainer=trainer, **{**DEFAULTS, **given})
    if args.help:
        return parser.print_help()
    _need(len(words) in counts, f"{words} fits none: [train] [FILE], sample DIR, tokenize DIR TEXT")
    _check(vars(args), samples=(int, 0, 10 ** 9), max_tokens=(int, 1, 10 ** 9),
           seed=(int, -math.inf, math.inf))
    sample([0.0], args.temperature, args.top_k, args.top_p)
    run(args, given, {name: vars(args)[name] for name in WRITING})

def main(argv=None, trainer=Trainer):
    """The command `python microgpt.py`, with a kind of Trainer; returns the exit status."""
    try:
        if hasattr(sys.stdout, "reconfigure"):      # for a terminal that lacks a letter
            sys.stdout.reconfigure(errors="backslashreplace")
        status = _run(sys.argv[1:] if argv is None else list(argv), trainer) or 0
        print(end="", flush=True)
        return status
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except OSError as error:
        name = "" if error.filename is None else f"{error.filename!r}: "
        message, status = name + error.strerror, 1
        if not name:        # perhaps the output: Python would complain again, flushing it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        message, status = str(error) or "not enough memory: try a smaller n_embd or batch_size", 1
    print(f"microgpt: {message}", file=sys.stderr)
    return status

__all__ = [name for name, x in globals().items()       # all functions and classes without a _
           if name[0] != "_" and getattr(x, "__module__", "") == __name__]

if __name__ == "__main__":
    sys.exit(main())
