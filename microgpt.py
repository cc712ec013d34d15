"""microgpt: a GPT that trains, in one file of plain Python.

This is a whole language model of the GPT-2 kind: data, automatic differentiation, the network, the
optimizer, training, and the writing of new text, with nothing but Python's standard library. It
leaves out what small models on a laptop can do without: GPUs, dropout, mixed precision.

    python microgpt.py                  # learn from the bundled names, then invent new ones
    python microgpt.py poems.txt        # learn from your own text, one document a line
    python microgpt.py --help           # everything else

It is a command, a library (`import microgpt`) and a tutorial: read it from here to the end. Each
chapter uses only what came before it, and the `>>>` examples are run by the tests.

Part I, the tutorial
    1. Documents     what there is to learn from
    2. Tokens        text becomes numbers
    3. Value         a number that remembers where it came from, and so its derivatives
    4. Layers        the formulas that a GPT is made of
    5. GPT           the layers, put together
    6. Optimizer     from derivatives to better parameters
    7. Tensor        the same derivatives, several times faster
    8. Training      the loop that turns documents into parameters
    9. Generation    the loop that turns parameters into new documents
Part II, the tool
    10. Speed        the same on floats, and by several processes
    11. Command line

One idea runs through it: the model is written once, as functions of rows of numbers, and *the
numbers decide how it runs*. Floats give an answer and nothing else. `Value`s also record how the
answer came about, so that every derivative can be taken. `Tensor`s record the same by the layer.

Glossary
    token         what the model reads and writes: an integer that stands for a character
    logit         a score for a possible next token: any number, the higher the likelier
    loss          how surprised the model was by the token that really came: -log(probability)
    parameter     a number that training adjusts; together they are what the model knows
    gradient      the loss's derivative by a parameter: how the loss moves if the parameter does
    n_embd        width: how many numbers describe a token inside the model
    n_head        how many independent looks at the other tokens each attention takes
    n_layer       how many blocks (attention, then a small network) are stacked
    block_size    how many tokens the model can see at once
    vocab_size    how many different tokens there are
"""

import gc
import math
import os
import random
import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache, singledispatch
from itertools import accumulate
from operator import mul

__version__ = "0.1.0"
__all__ = [
    "load_documents", "split_documents", "CharTokenizer", "windows", "pack",
    "Value", "gradcheck", "exp", "log", "tanh", "dot", "softmax", "embedding", "add", "linear",
    "layernorm", "gelu", "attention", "cross_entropy", "Config", "GPT", "parameter_shapes",
    "AdamW", "clip", "learning_rate", "Tensor", "matmul", "transpose", "TrainConfig", "Step",
    "Trainer", "batch_gradients", "evaluate", "sample", "stream", "generate", "main",
]

def _check(values, **rules):
    """ValueError unless each value is of its kind and in its range: name=(kind, low, high)."""
    for name, (kind, low, high) in rules.items():
        x = values[name]
        if not isinstance(x, (int, kind)) or isinstance(x, bool) or not low <= x <= high:
            raise ValueError(f"{name} is {x!r}: it must be a {'whole ' * (kind is int)}number from "
                             f"{low} to {high}")


# === 1. Documents ================================================================================
#
# A language model learns from examples of what it should write. Here an example is a document: one
# line of a text file, be it a name, a recipe or a chess game. Some are held out: never trained on,
# only used to measure the loss on text that cannot have been learned by heart.

def load_documents(path):
    """Read a UTF-8 text file: one document a line, blank lines skipped, BOM and CRLF tolerated.

    Raises OSError if it cannot be read, ValueError if it is not text or holds no documents.
    """
    with open(path, "rb") as file:
        raw = file.read()
    try:
        text = raw.replace(b"\0", b"\xff").decode("utf-8-sig")     # no text has zero bytes either
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is not UTF-8 text: byte 0x{raw[error.start]:02x} in line {line}; "
                         "save it as UTF-8") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    documents = [line for line in text.split("\n") if line.strip()]
    if not documents:
        raise ValueError(f"{path} is empty: write one document a line")
    return documents

def split_documents(documents, val_fraction=0.1, seed=0):
    """Shuffle by the seed and hold some out -> (training documents, held-out documents).
    >>> split_documents(["ada", "bob", "cleo", "dan"], val_fraction=0.25, seed=1)
    (['ada', 'cleo', 'bob'], ['dan'])
    """
    shuffled = list(documents)
    random.Random(seed).shuffle(shuffled)
    if val_fraction and len(shuffled) < 2:
        raise ValueError("a single document cannot be split into training and held-out ones: "
                         "give more, one a line, or hold out none (val_fraction 0)")
    n_val = max(1, round(len(shuffled) * val_fraction)) if val_fraction else 0
    return shuffled[n_val:], shuffled[:n_val]


# === 2. Tokens ===================================================================================
#
# A network computes with numbers, so text is cut into tokens and each token has a number, its id.
# Here a token is a character. One more, <|endoftext|>, stands before and after every document: so
# the model learns how documents begin, and can say by itself that one is finished.

class CharTokenizer:
    """A token for each character, in sorted order, and one for <|endoftext|>.
    >>> tokenizer = CharTokenizer(["bob", "abe"])
    >>> tokenizer.vocab_size, tokenizer.encode("abbe"), tokenizer.decode([4, 0, 1, 1, 2])
    (5, [0, 1, 1, 2], '<|endoftext|>abbe')
    """
    def __init__(self, documents):
        self.characters = sorted(set().union(*documents))
        self.end = len(self.characters)
        self.vocab_size = self.end + 1
        self._ids = {character: i for i, character in enumerate(self.characters)}

    def encode(self, text):
        """Text -> ids. Raises ValueError for a character that is not in the vocabulary."""
        unknown = [character for character in text if character not in self._ids]
        if unknown:
            known = "".join(self.characters)
            raise ValueError(f"{unknown[0]!r} is not among the {self.end} characters that the "
                             f"model knows: {known[:100]}{'...' * (len(known) > 100)}")
        return [self._ids[character] for character in text]

    def decode(self, ids): return "".join((self.characters + ["<|endoftext|>"])[i] for i in ids)

def windows(document, tokenizer, block_size):
    """A document's tokens with <|endoftext|> on both sides, in pieces of <= block_size + 1.

    In a window each token but the last is there to predict the next. Windows overlap by one token,
    so every token of a document is predicted exactly once, however long the document.
    >>> windows("abbe", CharTokenizer(["abe"]), block_size=3)
    [[3, 0, 1, 1], [1, 2, 3]]
    """
    tokens = [tokenizer.end] + tokenizer.encode(document) + [tokenizer.end]
    return [tokens[i:i + block_size + 1] for i in range(0, len(tokens) - 1, block_size)]

def pack(batch):
    """Windows -> (tokens, positions, targets), each one long row for the whole batch.

    Positions count from 0 in each window, and so also tell where a window begins.
    >>> pack([[3, 0, 1, 1], [1, 2, 3]])
    ([3, 0, 1, 1, 2], [0, 1, 2, 0, 1], [0, 1, 1, 2, 3])
    """
    return ([token for window in batch for token in window[:-1]],
            [position for window in batch for position in range(len(window) - 1)],
            [token for window in batch for token in window[1:]])


# === 3. Value ====================================================================================
#
# Training asks of every parameter: if it were a little larger, how would the loss change? A `Value`
# is a number that remembers its children, which it was computed from, and its local gradients, its
# own derivative by each child. The chain rule needs no more: multiply the local gradients along
# every path from the loss down to the parameter, and add up the paths.

class Value:
    """A number that remembers where it came from.
    >>> a, b = Value(2.0), Value(-3.0)
    >>> loss = a * b + a ** 2
    >>> loss.backward()
    >>> loss.data, a.grad, b.grad         # d loss / da = b + 2a,  d loss / db = a
    (-2.0, 1.0, 2.0)
    """
    __slots__ = ("data", "grad", "_children", "_local_grads")

    def __init__(self, data, children=(), local_grads=()):
        self.data = data                    # the number
        self.grad = 0.0                     # d loss / d self, once backward() has run
        self._children = children           # the Values it was computed from
        self._local_grads = local_grads     # d self / d child, for each of them

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
        if a < 0 and b != int(b) or a <= 0 and isinstance(other, Value):
            raise ValueError(f"{a} ** {other!r} has no real derivative: the base must be above 0")
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
        is complete, after all of its parents have added their share. Here c uses b twice; if b
        handed on after the first share already, a would get 2 or 6:
        >>> a = Value(3.0)
        >>> b = a + a
        >>> c = b + b
        >>> c.backward()
        >>> a.grad, b.grad
        (4.0, 2.0)

        Why add and not set? Because a Value that is used twice gets a gradient from each use. For
        the same reason a second call adds to what the first one left in the leaves (Values without
        children: parameters, inputs), as if the losses had been added. To start afresh, set their
        grad to 0. Gradients between leaves and loss belong to one call, and each call clears them.
        >>> c.backward()
        >>> a.grad, b.grad
        (8.0, 2.0)
        """
        # 1) Order the graph, children before parents, by a depth-first walk. Its stack is a list:
        #    a deep graph would overflow Python's own. A Value is opened (its children go on the
        #    stack) and comes up again, under a None, when they have all been ordered. Leaves are
        #    left out: they have nothing to hand on.
        order, opened, stack = [], set(), [self] if self._children else []
        while stack:
            node = stack.pop()
            if node is None:
                order.append(stack.pop())
            elif node not in opened:
                opened.add(node)
                node.grad = 0.0             # clear what an earlier call has left
                stack += node, None
                stack += [child for child in node._children if child._children]
        # 2) From the loss down, each Value hands its gradient on.
        self.grad += 1.0                    # d self / d self
        for node in reversed(order):
            node._hand_on()

    def _hand_on(self):
        """The chain rule: d loss / d child += d self / d child * d loss / d self."""
        grad = self.grad
        for child, local_grad in zip(self._children, self._local_grads):
            child.grad += local_grad * grad

    @classmethod
    def lift(cls, x): return _map(cls, x)       # floats -> Values, in the same shape

def _map(function, x):
    """The function of every number of a number, a row or rows."""
    if isinstance(x, (list, tuple)):
        return [_map(function, item) for item in x]
    return function(x)

def gradients(params):
    """The gradients that backward() left in lifted parameters -> {name: floats of their shape}."""
    return {name: _map(lambda x: x.grad, x) for name, x in params.items()}

def gradcheck(f, params, number=Value, step=1e-5, tolerance=1e-6):
    """Is every derivative what nudging says it is? Returns the largest difference.

    f takes params, {name: float, row or rows}, lifted to Values, and returns a Value. Each number
    is moved up and down by `step`: (f(up) - f(down)) / (2 step) must equal its gradient within
    `tolerance`, relative to the larger of the two or to 1. ArithmeticError names one that does not.
    >>> gradcheck(lambda p: p["a"] * p["b"] + p["a"] ** 2, {"a": 2.0, "b": -3.0}) < 1e-9
    True
    """
    params = {name: _map(float, x) for name, x in params.items()}     # a copy, to be nudged
    lifted = {name: number.lift(x) for name, x in params.items()}
    f(lifted).backward()

    def check(holder, key, claimed, name):
        kept, measured = holder[key], 0.0
        if isinstance(kept, list):
            return max(check(kept, i, claimed[i], f"{name}[{i}]") for i in range(len(kept)))
        for nudge in (step, -step):
            holder[key] = kept + nudge
            moved = {root: number.lift(x) for root, x in params.items()}
            measured += float(f(moved)) / (2 * nudge)
        holder[key] = kept
        error = abs(claimed - measured) / max(1.0, abs(claimed), abs(measured))
        if not error <= tolerance:
            raise ArithmeticError(f"{name}: backward() says {claimed}, nudging says {measured}")
        return error

    return max(check(params, name, claimed, name) for name, claimed in gradients(lifted).items())


# === 4. Layers ===================================================================================
#
# A GPT is a few formulas applied over and over, each written here in plain arithmetic on rows of
# numbers, a row per token. On floats the arithmetic gives an answer, on Values an answer that
# remembers how it came about. These are the definitions; whatever is faster must agree with them.
# `singledispatch` lets it give a layer another rule for another kind of rows, without touching the
# model: it looks at the type of the first argument.

def exp(x): return x.exp() if isinstance(x, Value) else math.exp(x)
def log(x): return x.log() if isinstance(x, Value) else math.log(x)
def tanh(x): return x.tanh() if isinstance(x, Value) else math.tanh(x)

_sumprod = getattr(math, "sumprod", lambda a, b: sum(map(mul, a, b)))    # C from Python 3.12 on

def dot(a, b):
    """a[0] b[0] + a[1] b[1] + ...  Nearly all of a GPT's arithmetic happens here.

    Of two rows of Values it makes one node with 2n children in place of 2n nodes.
    >>> dot([1.0, 2.0], [3.0, 4.0])
    11.0
    """
    if isinstance(a[0], Value) and isinstance(b[0], Value):
        try:
            x, y = [v.data for v in a], [v.data for v in b]
            return Value(_sumprod(x, y), (*a, *b), (*y, *x))
        except AttributeError:              # a plain number among them: go by + and *
            pass
    return _sumprod(a, b)

@singledispatch
def softmax(row):
    """Scores -> probabilities: e^score, divided by the sum of them all.

    Subtracting the largest score first changes no ratio, but keeps e^score from overflowing. As it
    changes nothing, it needs no derivative and enters as a plain float.
    >>> softmax([1000.0, 1000.0])
    [0.5, 0.5]
    """
    largest = max(map(float, row))
    exps = [exp(x - largest) for x in row]
    scale = 1 / sum(exps)
    return [e * scale for e in exps]

@singledispatch
def embedding(table, ids):
    """Each id's row of the table: [n_rows, n_embd], [n_tokens] -> [n_tokens, n_embd]."""
    return [table[i] for i in ids]

@singledispatch
def add(x, y):
    """x + y, number by number: [n_tokens, n_embd] twice -> [n_tokens, n_embd]."""
    return [[a + b for a, b in zip(r, s)] for r, s in zip(x, y)]

@singledispatch
def linear(x, weight, bias=None):
    """y = x W^T + b: each output is a weighted sum of the token's inputs, plus a bias.

    x [n_tokens, n_in], weight [n_out, n_in], bias [n_out] -> [n_tokens, n_out]
    """
    y = [[dot(row, w) for w in weight] for row in x]
    return y if bias is None else [[a + b for a, b in zip(row, bias)] for row in y]

@singledispatch
def layernorm(x, gain, bias, eps=1e-5):
    """y = (x - mean) / sqrt(variance + eps) gain + bias, for each row by itself.

    However large or small a row has become, the next layer sees it at one scale.
    x [n_tokens, n_embd], gain [n_embd], bias [n_embd] -> [n_tokens, n_embd]
    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", equation 4.
    """
    out = []
    for row in x:
        mean = sum(row) / len(row)
        centred = [a - mean for a in row]
        scale = (dot(centred, centred) / len(row) + eps) ** -0.5
        out.append([c * scale * g + b for c, g, b in zip(centred, gain, bias)])
    return out

GELU = math.sqrt(2 / math.pi), 0.044715

@singledispatch
def gelu(x):
    """y = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2: large x pass, negative x are stopped.

    Without a bend like this between them, two linear layers are no more than one.
    [n_tokens, n] -> [n_tokens, n]
    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2; GPT-2's choice.
    """
    c, d = GELU
    return [[a * 0.5 * (tanh(a * (a * a * (c * d) + c)) + 1.0) for a in row] for row in x]

@singledispatch
def attention(x, positions, n_head, past=None):
    """Causal multi-head attention: each token gathers what it needs from the tokens before it.

    A row of x is a token's query, key and value: what it looks for, what it can be found by, what
    it has to give. The query is compared, by dot, with the keys of the tokens up to its own;
    softmax makes weights of these scores, and the values are averaged with the weights:

        scores = q k^T / sqrt(d)         out = softmax(scores) v

    n_head times side by side, on d = n_embd / n_head numbers of the row each. A dot product of d
    numbers grows like sqrt(d); divided by it, softmax stays a matter of degree. The causal mask is
    a slice: the token at position p sees the p rows before its own and its own, so neither the
    future nor another window of the batch. `past`, two lists, holds the keys and values of earlier
    calls, and gets those of this one. x [n_tokens, 3 n_embd], positions [n_tokens] -> [n_tokens,
    n_embd]. Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1, section 3.2.2.
    """
    n_embd = len(x[0]) // 3
    d = n_embd // n_head
    keys, values = past or ([], [])
    n_past = len(keys)
    keys.extend([row[n_embd:2 * n_embd] for row in x])
    values.extend([row[2 * n_embd:] for row in x])
    out = []
    for t, (row, position) in enumerate(zip(x, positions), start=n_past):
        seen = slice(t - position, t + 1)
        gathered = []
        for head in range(0, n_embd, d):
            part = slice(head, head + d)
            query = [q * d ** -0.5 for q in row[part]]
            weights = softmax([dot(query, key[part]) for key in keys[seen]])
            gathered += [dot(weights, column) for column in zip(*[v[part] for v in values[seen]])]
        out.append(gathered)
    return out

@singledispatch
def cross_entropy(logits, targets):
    """The loss: the mean over the tokens of -log softmax(logits)[target], in nats.

    0 is certain and right; log(vocab_size) is knowing nothing. Computed as log(sum e^logit) -
    logit[target], the largest logit taken out first, it is finite however large the logits are.
    logits [n_tokens, vocab_size], targets [n_tokens] -> a number
    >>> cross_entropy([[1e4, -1e4], [0.0, 0.0]], [1, 0]) == (2e4 + math.log(2)) / 2
    True
    """
    losses = []
    for row, target in zip(logits, targets):
        largest = max(map(float, row))
        losses.append(log(sum([exp(x - largest) for x in row])) + largest - row[target])
    return sum(losses) / len(losses)


# === 5. GPT ======================================================================================
#
# A token starts as a row of n_embd numbers: its embedding plus that of its position. The row passes
# through the blocks, and each adds to it: what attention gathered from other tokens, then what a
# small network (MLP) made of the row itself. In the end the row's dot product with the embedding of
# a token is that token's logit. This is GPT-2's architecture, exactly.

@dataclass(frozen=True)
class Config:
    """The shape of a model, by GPT-2's names. Raises ValueError for a shape that cannot be."""
    vocab_size: int
    block_size: int = 16
    n_layer: int = 1
    n_head: int = 4
    n_embd: int = 16

    def __post_init__(self):
        _check(vars(self), **dict.fromkeys(vars(self), (int, 1, 10 ** 6)))
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}: it must be a multiple of n_head, which is "
                             f"{self.n_head}; try {self.n_embd + -self.n_embd % self.n_head}")

def parameter_shapes(config):
    """{name: shape} of every parameter. A weight is [n_out, n_in], a row for each output."""
    C = config.n_embd
    shapes = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.block_size, C)}
    block = {"ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C),
             "ln_2": (C,), "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
    layers = {f"h.{i}.{name}": x for i in range(config.n_layer) for name, x in block.items()}
    for name, shape in {**layers, "ln_f": (C,)}.items():
        shapes[name + ".weight"], shapes[name + ".bias"] = shape, shape[:1]
    return shapes

class GPT:
    """A GPT-2: a Config and, under GPT-2's names, parameters that are rows of numbers."""
    def __init__(self, config, params=None, seed=0):
        self.config = config
        self.params = params or self._initial_params(random.Random(seed))

    def _initial_params(self, rng):
        """Gains 1, biases 0, weights random. GPT-2's deviation is 0.02, for positions 0.01, at width
        768; narrower sums have fewer terms and get larger ones. The layers that add to the row, two
        in each block, start smaller, so that many blocks do not add up to too much."""
        params, std = {}, 0.02 * math.sqrt(768 / self.config.n_embd)
        scales = {"wpe": 0.5, "c_proj": 1 / math.sqrt(2 * self.config.n_layer)}
        for name, shape in parameter_shapes(self.config).items():
            s = std * math.prod(scale for part, scale in scales.items() if part in name)
            params[name] = ([float(name.endswith("weight"))] * shape[0] if len(shape) == 1 else
                            [[rng.gauss(0, s) for _ in range(shape[1])] for _ in range(shape[0])])
        return params

    def parameter_count(self, part=""):
        """How many numbers the model has, or one part of it: "wte", "attn", "mlp", "h.0."..."""
        shapes = parameter_shapes(self.config)
        return sum(math.prod(shape) for name, shape in shapes.items() if part in name)

    def lift(self, number):
        """The same model on other numbers: `Value` here, `Tensor` in chapter 7."""
        return GPT(self.config, {name: number.lift(x) for name, x in self.params.items()})

    def __call__(self, tokens, positions=None, cache=None):
        """The forward pass: token ids -> a row of logits for the token that follows each of them.

        `positions` tell where each token stands in its document; without them the tokens are one
        document, from its start or from where the cache ends. [n_tokens] -> [n_tokens, vocab_size]
        """
        p = self.params
        if positions is None:
            start = len(cache[0][0]) if cache else 0
            positions = range(start, start + len(tokens))
        for name, ids, size in (("token", tokens, self.config.vocab_size),
                                ("position", positions, self.config.block_size)):
            for i in ids:
                if not 0 <= i < size:
                    raise ValueError(f"{name} {i} is not in 0 to {size - 1}")
        x = add(embedding(p["wte.weight"], tokens), embedding(p["wpe.weight"], positions))
        for i in range(self.config.n_layer):
            h = f"h.{i}."
            a = layernorm(x, p[h + "ln_1.weight"], p[h + "ln_1.bias"])
            a = linear(a, p[h + "attn.c_attn.weight"], p[h + "attn.c_attn.bias"])
            a = attention(a, positions, self.config.n_head, cache and cache[i])
            x = add(x, linear(a, p[h + "attn.c_proj.weight"], p[h + "attn.c_proj.bias"]))
            m = layernorm(x, p[h + "ln_2.weight"], p[h + "ln_2.bias"])
            m = gelu(linear(m, p[h + "mlp.c_fc.weight"], p[h + "mlp.c_fc.bias"]))
            x = add(x, linear(m, p[h + "mlp.c_proj.weight"], p[h + "mlp.c_proj.bias"]))
        x = layernorm(x, p["ln_f.weight"], p["ln_f.bias"])
        return linear(x, p["wte.weight"])

    def new_cache(self):
        """Room for the keys and values of past tokens: a pair of empty lists for each block."""
        return [([], []) for _ in range(self.config.n_layer)]

    def loss(self, batch):
        """The mean loss of all predictions in a list of windows."""
        tokens, positions, targets = pack(batch)
        return cross_entropy(self(tokens, positions), targets)


# === 6. Optimizer ================================================================================
#
# The gradient says which way the loss rises; to learn is to step the other way. How far? AdamW has
# two averages for every parameter: m of its gradient, to even out the noise of small batches, and v
# of its square, whose root is the gradient's usual size. A step by m / sqrt(v) is about 1 for every
# parameter, on steep ground and on flat; the learning rate scales it.

def _rows(x):
    """A row or rows -> rows, so that biases and weights can be walked alike."""
    return x if isinstance(x[0], list) else [x]

class AdamW:
    """Adam with decoupled weight decay; updates `params` in place. At step t, with gradient g,

        m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
        p = p - lr decay p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    m and v start at 0, too small; dividing by 1 - beta^t makes up for it. Decay draws the weights
    of linear layers towards 0, and leaves biases, gains and embeddings alone.
    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """
    def __init__(self, params, beta1=0.8, beta2=0.97, eps=1e-8, weight_decay=0.0):
        self.params, self.steps = params, 0
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.m = {name: _map(lambda _: 0.0, x) for name, x in params.items()}
        self.v = {name: _map(lambda _: 0.0, x) for name, x in params.items()}

    def step(self, gradients, lr, factor=1.0):
        """Move every parameter once, against its gradient times the factor, at learning rate lr."""
        self.steps += 1
        beta1, beta2, sqrt = self.beta1, self.beta2, math.sqrt
        # What all parameters have in common moves out of the loop: m and v are kept without their
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

def clip(gradients, limit):
    """The factor that shortens all gradients, as one long vector, to the limit; 0 is no limit.

    A rare cliff in the loss would otherwise throw the parameters far off in one step.
    Source: Pascanu, Mikolov and Bengio 2013, algorithm 1.
    """
    norm = math.hypot(*[math.hypot(*row) for x in gradients.values() for row in _rows(x)])
    return limit / norm if limit and norm > limit else 1.0

def learning_rate(step, steps, peak, warmup=0):
    """Up in a line to the peak over `warmup` steps, then down in a line to 0 after the last.

    Rising, Adam's averages fill before they are trusted; falling, the parameters come to rest.
    >>> [learning_rate(step, steps=5, peak=1.0, warmup=1) for step in range(5)]
    [1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / (steps - warmup)


# === 7. Tensor ===================================================================================
#
# A graph of single numbers shows everything and is slow: ten thousand nodes for one short name. A
# `Tensor` is a Value whose data is rows of numbers. Each layer makes a single node, with a rule,
# worked out once on paper, that turns the gradient of its output into those of its inputs. The
# derivation stands above each rule (dy is d loss / d y); the tests compare them with chapter 4.

@lru_cache(None)
def _matmul_for(width):
    """A function that multiplies rows of this width, with their dot products written out.

    Python takes longer to go round a loop than to multiply, so every width that comes up gets a
    function without an inner loop. Wide rows leave the loop to C, which is then faster.
    """
    if width > (16 if hasattr(math, "sumprod") else 64):
        return lambda A, B: [[_sumprod(a, b) for b in B] for a in A]
    source = f"""
def multiply(A, B):
    C = []
    for {"".join(f"a{i}, " for i in range(width))} in A:
        row = []
        for {"".join(f"b{i}, " for i in range(width))} in B:
            row.append({" + ".join(f"a{i}*b{i}" for i in range(width))})
        C.append(row)
    return C"""
    scope = {}
    exec(source, scope)
    return scope["multiply"]

def matmul(A, B):
    """Every row of A times every row of B, all floats: [n, k], [m, k] -> A B^T [n, m]."""
    return _matmul_for(len(A[0]))(A, B)

def transpose(A): return list(zip(*A))          # [n, m] -> [m, n]

class Tensor(Value):
    """A Value whose data is a row or rows of numbers, or a single one, as a loss is.

    `rule` turns the gradient of this Tensor into those of its children. Scalar and fused nodes mix
    in one graph: t[i] takes a Tensor apart, down to single numbers, so that a layer which has no
    rule for Tensors, only plain arithmetic, runs on them too.
    >>> t = Tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> loss = t[1][0] * t[0][1]
    >>> loss.backward()
    >>> t.grad
    [[0.0, 3.0], [2.0, 0.0]]
    """
    __slots__ = ()       # Value's; in the place of local gradients stands the rule

    @classmethod
    def lift(cls, x): return cls(x)

    def __getitem__(self, key):
        def rule(dy):
            whole = _map(lambda _: 0.0, self.data)
            whole[key] = dy
            return [whole]
        return Tensor(self.data[key], [self], rule)

    def __len__(self): return len(self.data)
    def __add__(self, other):
        return add(self, other) if isinstance(self.data, list) else super().__add__(other)

    def _hand_on(self):
        for child, grad in zip(self._children, self._local_grads(self.grad)):
            child._receive(grad)

    def _receive(self, grad):
        if not isinstance(self.grad, list):          # a single number, or the first to arrive
            self.grad = grad if isinstance(grad, list) else self.grad + grad
        elif isinstance(grad[0], (list, tuple)):
            self.grad = add(self.grad, grad)
        else:
            self.grad = [a + b for a, b in zip(self.grad, grad)]

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
def _(x, y):
    # Both slopes are 1.
    return Tensor(add(x.data, y.data), [x, y], lambda dy: (dy, dy))

@linear.register(Tensor)
def _(x, weight, bias=None):
    # y_to = sum_i x_ti W_oi + b_o
    # dx_ti = sum_o dy_to W_oi          dW_oi = sum_t dy_to x_ti          db_o = sum_t dy_to
    children = [x, weight] if bias is None else [x, weight, bias]

    def rule(dy):
        dy_columns = transpose(dy)
        return (matmul(dy, transpose(weight.data)), matmul(dy_columns, transpose(x.data)),
                list(map(sum, dy_columns)))

    return Tensor(linear(*[child.data for child in children]), children, rule)

@layernorm.register(Tensor)
def _(x, gain, bias, eps=1e-5):
    # n = (x - mean) s, s = 1 / sqrt(variance + eps), y = n gain + bias. By way of mean and s every
    # x_j moves every n_i: dn_i/dx_j = s ([i = j] - 1/C - n_i n_j / C). So with u = dy gain,
    # dx = s (u - mean(u) - n mean(u n))       dgain = sum_t dy n       dbias = sum_t dy
    width = len(gain.data)
    normal, scales = [], []
    for row in x.data:
        mean = sum(row) / width
        centred = [a - mean for a in row]
        scales.append((_sumprod(centred, centred) / width + eps) ** -0.5)
        normal.append([c * scales[-1] for c in centred])

    def rule(dy):
        dx, dy_columns = [], transpose(dy)
        for row, n, s in zip(dy, normal, scales):
            u = [a * g for a, g in zip(row, gain.data)]
            mean_u, mean_un = sum(u) / width, _sumprod(u, n) / width
            dx.append([s * (a - mean_u - b * mean_un) for a, b in zip(u, n)])
        d_gain = [_sumprod(a, b) for a, b in zip(dy_columns, transpose(normal))]
        return dx, d_gain, list(map(sum, dy_columns))

    y = [[a * g + b for a, g, b in zip(n, gain.data, bias.data)] for n in normal]
    return Tensor(y, [x, gain, bias], rule)

@gelu.register(Tensor)
def _(x):
    # y = x h, h = (1 + tanh u) / 2, u = c (x + d x^3). As tanh' = 1 - tanh^2, dh/du = 2 h (1 - h):
    # dy/dx = h + x 2 h (1 - h) c (1 + 3 d x^2)
    c, d = GELU
    y, slopes = [], []
    for row in x.data:
        h = [0.5 + 0.5 * math.tanh(c * a * (1.0 + d * a * a)) for a in row]
        y.append([a * b for a, b in zip(row, h)])
        slopes.append([b + a * b * (1.0 - b) * (2 * c + 6 * c * d * a * a) for a, b in zip(row, h)])
    return Tensor(y, [x], lambda dy: [[[a * b for a, b in zip(*rows)] for rows in zip(dy, slopes)]])

@attention.register(Tensor)
def _(x, positions, n_head, past=None):
    # For each window and each head, O = A V with A = softmax(S), S = Q K^T / sqrt(d), and so
    # dV = A^T dO    dA = dO V^T    dS = A (dA - sum_s A dA) / sqrt(d)    dQ = dS K    dK = dS^T Q
    # What may not be seen has weight 0 in A, and so no part in any sum. q, k, v and their gradients
    # are kept by columns, since a head is a range of columns.
    if past is not None:
        raise ValueError("past keys and values are for generation, which runs on floats")
    n_embd = len(x.data[0]) // 3
    d = n_embd // n_head
    scale = d ** -0.5
    starts = [t for t, position in enumerate(positions) if position == 0] + [len(positions)]
    y, saved = [], []
    for start, stop in zip(starts, starts[1:]):
        columns, out = transpose(x.data[start:stop]), []
        for head in range(0, n_embd, d):
            q, k, v = (columns[i + head:i + head + d] for i in (0, n_embd, 2 * n_embd))
            scores = matmul(transpose(q), transpose(k))
            A = [softmax([s * scale for s in row[:t + 1]]) + [0.0] * (len(row) - t - 1)
                 for t, row in enumerate(scores)]
            out += matmul(v, A)
            saved.append((q, k, v, A))
        y += transpose(out)

    def rule(dy):
        dx, heads = [], iter(saved)
        for start, stop in zip(starts, starts[1:]):
            columns, dq, dk, dv = transpose(dy[start:stop]), [], [], []
            for head in range(0, n_embd, d):
                (q, k, v, A), dO, dS = next(heads), columns[head:head + d], []
                for a, da in zip(A, matmul(transpose(dO), transpose(v))):
                    mean = _sumprod(a, da)
                    dS.append([w * (b - mean) * scale for w, b in zip(a, da)])
                dq += matmul(k, dS)
                dk += matmul(q, transpose(dS))
                dv += matmul(dO, transpose(A))
            dx += transpose(dq + dk + dv)
        return [dx]

    return Tensor(y, [x], rule)

@cross_entropy.register(Tensor)
def _(logits, targets):
    # loss = mean_t (log sum_j e^l_tj - l_t[target]):   dl_tj = (softmax(l_t)_j - [j = target]) / n
    def rule(d_loss):
        d_logits = [softmax(row) for row in logits.data]
        for row, target in zip(d_logits, targets):
            row[target] -= 1.0
        return [[[a * d_loss / len(targets) for a in row] for row in d_logits]]
    return Tensor(cross_entropy(logits.data, targets), [logits], rule)


# === 8. Training =================================================================================
#
# A step: take a few documents, compute their loss and its gradients, move every parameter against
# its gradient. After a few hundred steps the model has what the documents have in common. All that
# is random follows from the seed: the same run gives the same bits.

ENGINES = {"tensor": Tensor, "value": Value}

@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ValueError for what cannot be."""
    steps: int = 500
    batch_size: int = 4         # windows a step
    lr: float = 0.01            # the learning rate at its peak
    warmup: int = 40            # steps until then
    weight_decay: float = 0.0
    clip: float = 1.0           # longest gradient, 0 for any
    val_fraction: float = 0.1   # share of the documents that is held out
    eval_every: int = 0         # steps from one held-out loss to the next, 0 for none
    engine: str = "tensor"      # or "value"
    workers: int = 1            # processes that share each batch
    seed: int = 42

    def __post_init__(self):
        _check(vars(self), steps=(int, 1, 10 ** 9), batch_size=(int, 1, 10 ** 5),
               lr=(float, 0, 100), warmup=(int, 0, 10 ** 9), weight_decay=(float, 0, 100),
               clip=(float, 0, 10 ** 9), val_fraction=(float, 0, 0.99),
               eval_every=(int, 0, 10 ** 9), workers=(int, 1, self.batch_size),
               seed=(int, -math.inf, math.inf))
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}: it must be {' or '.join(ENGINES)}")

# What a step reports: the loss is its batch's, before the step; val_loss is None if not measured.
Step = namedtuple("Step", "step loss learning_rate tokens_per_second val_loss")

def batch_gradients(model, batch, engine="tensor"):
    """The loss of a batch of windows and its gradients: (float, {name: floats})."""
    collecting = gc.isenabled()
    gc.disable()          # Python would search the growing graph for cycles, which it does not have
    try:
        lifted = model.lift(ENGINES[engine])
        loss = lifted.loss(batch)
        loss.backward()
        return float(loss), gradients(lifted.params)
    finally:
        if collecting:
            gc.enable()

def evaluate(model, batch):
    """The mean loss of a model of floats on a list of windows, in nats a token; makes no graph."""
    counts = [len(window) - 1 for window in batch]
    return sum(model.loss([window]) * n for window, n in zip(batch, counts)) / sum(counts)

class Trainer:
    """Trains a model on documents: an iterator that makes a step and reports it, `steps` times.

    model.params change in place. With workers, each batch is shared among processes, or handed to
    any `executor` with the interface of concurrent.futures (chapter 10).
    """
    def __init__(self, model, tokenizer, documents, config=TrainConfig(), executor=None):
        self.model, self.config, self.executor, self.step = model, config, executor, 0
        self.documents, self.val_documents = split_documents(
            documents, config.val_fraction, config.seed)
        self.windows, self.val_windows = (
            [w for document in part for w in windows(document, tokenizer, model.config.block_size)]
            for part in (self.documents, self.val_documents))
        self.optimizer = AdamW(model.params, weight_decay=config.weight_decay)
        self._epoch = None

    def batch(self, step):
        """The windows of a step, which depend on the seed and the step alone, so that a run can be
        taken up where it was left: the next ones of all, shuffled anew in every epoch."""
        batch, size = [], self.config.batch_size
        for i in range(step * size, (step + 1) * size):
            epoch, i = divmod(i, len(self.windows))
            if epoch != self._epoch:
                rng = random.Random(f"{self.config.seed} {epoch}")
                self._epoch, self._shuffled = epoch, rng.sample(self.windows, len(self.windows))
            batch.append(self._shuffled[i])
        return batch

    def __iter__(self): return self

    def __next__(self):
        config = self.config
        if self.step >= config.steps:
            raise StopIteration
        started = time.perf_counter()
        batch = self.batch(self.step)
        if config.workers > 1:
            loss, grads = _shared_gradients(self, batch)
        else:
            loss, grads = batch_gradients(self.model, batch, config.engine)
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss} at step {self.step + 1}: training has "
                                  f"diverged; try an lr below {config.lr}, or clip 1")
        lr = learning_rate(self.step, config.steps, config.lr, config.warmup)
        self.optimizer.step(grads, lr, clip(grads, config.clip))
        self.step += 1
        speed = sum(len(window) - 1 for window in batch) / (time.perf_counter() - started)
        look = config.eval_every and self.step % config.eval_every == 0 and self.val_windows
        return Step(self.step, loss, lr, speed, self.evaluate() if look else None)

    def evaluate(self):
        """The held-out loss; of the first 500 windows, which gives it to about 0.02."""
        return evaluate(self.model, self.val_windows[:500])


# === 9. Generation ===============================================================================
#
# To write is to predict, again and again: the logits of the last token become probabilities, one
# token is drawn from them and joins the text. The keys and values of tokens that have been read do
# not change, so they are kept, and a new token costs the work of one row.

def sample(logits, temperature=1.0, top_k=0, top_p=1.0, rng=random):
    """Draw a token id by its row of logits (floats).

    The temperature divides the logits: below 1 the likely gets likelier, above 1 the rare gets its
    chance, 0 takes the likeliest. top_k keeps only the k likeliest tokens (0: all), top_p only the
    fewest, likeliest first, that together reach the probability p (Holtzman et al. 2020, "The
    Curious Case of Neural Text Degeneration", section 3.1).
    >>> sample([0.1, 2.0, 0.3], temperature=0)
    1
    """
    _check(locals(), temperature=(float, 0, 10 ** 6), top_k=(int, 0, 10 ** 9), top_p=(float, 0, 1))
    ids = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    if temperature == 0:
        return ids[0]
    probs = softmax([(logits[i] - logits[ids[0]]) / temperature for i in ids[:top_k or None]])
    n = 1 + sum(reached < top_p for reached in accumulate(probs[:-1]))
    return rng.choices(ids[:n], probs[:n])[0]

def stream(model, tokens, max_tokens=200, temperature=1.0, top_k=0, top_p=1.0, seed=None, end=None):
    """Continue a list of token ids: yields new ids until `end` is drawn, which is not yielded.

    `end` is the last id of the vocabulary if not given; `seed` an int, a random.Random or None.
    When the block is full its older half is forgotten, so the text can go on.
    """
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    block_size = model.config.block_size
    end = model.config.vocab_size - 1 if end is None else end
    context = unread = list(tokens)[-block_size:]
    cache = model.new_cache()
    for _ in range(max_tokens):
        token = sample(model(unread, cache=cache)[-1], temperature, top_k, top_p, rng)
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


# === 10. Speed ===================================================================================
#
# Two more things make it fast without changing what it computes. A model that writes has rows of
# floats, and these can be multiplied by matmul. And as the windows of a batch do not depend on each
# other, several processes can share them: each sends back the mean loss and the gradients of its
# part, and those of the batch are their averages, weighted by the number of predictions.

@linear.register(list)
def _(x, weight, bias=None):
    # Rows of floats: the definition, by matmul. Rows of anything else: the definition itself.
    if not (isinstance(x[0][0], float) and isinstance(weight[0][0], float)):
        return linear.dispatch(object)(x, weight, bias)
    y = matmul(x, weight)
    return y if bias is None else [[a + b for a, b in zip(row, bias)] for row in y]

def _shared_gradients(trainer, batch):
    """batch_gradients, shared among the workers of a Trainer."""
    config, n = trainer.config, min(trainer.config.workers, len(batch))
    if trainer.executor is None:
        import signal
        from concurrent.futures import ProcessPoolExecutor
        trainer.executor = ProcessPoolExecutor(      # leaving Ctrl-C to the process that trains
            config.workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    parts = [batch[i::n] for i in range(n)]
    results = trainer.executor.map(batch_gradients, [trainer.model] * n, parts, [config.engine] * n)
    losses, grads = zip(*results)
    counts = [sum(len(window) - 1 for window in part) for part in parts]
    shares = [count / sum(counts) for count in counts]

    def average(tables):
        if isinstance(tables[0][0], list):
            return [average(rows) for rows in zip(*tables)]
        return [_sumprod(shares, numbers) for numbers in zip(*tables)]

    return _sumprod(shares, losses), {name: average([g[name] for g in grads]) for name in grads[0]}


# === 11. Command line ============================================================================
#
# `python microgpt.py` reads documents, says what it will do, does it, and shows what it learned.
# Bad input gets one line on stderr and a non-zero exit; nothing is done by half.

COLUMNS = 79
MOST_PARAMETERS = 10 ** 7      # for more, see the faster arithmetic in examples/

def _bundled_names():
    """The bundled names: beside this file, or where installing it has put them."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "names.txt")
    installed = os.path.join(sys.prefix, "share", "microgpt", "names.txt")
    return installed if os.path.exists(installed) and not os.path.exists(beside) else beside

def _parser():
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise ValueError(f"{message} (python microgpt.py --help shows what there is)")

    parser = Parser(
        prog="microgpt", usage="python microgpt.py [train] [FILE] [options]", allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=COLUMNS),
        description="Learn from a text file, one document a line, and write new documents like "
                    "them. Without a file, learn from names. Ctrl-C ends the training early and "
                    "goes on to the writing.",
        epilog="Begin with no options at all. For text with longer lines: --block-size 64 --n-embd "
               "32 --steps 2000. For a better model: first more steps, then a larger width.")
    parser.add_argument("file", metavar="FILE", nargs="?", help="UTF-8 text, one document a line")
    parser.add_argument("--quiet", action="store_true", help="print the new documents, no more")

    def group(title, defaults, **helps):
        options = parser.add_argument_group(title)
        for name, text in helps.items():
            default = getattr(defaults, name)
            options.add_argument(
                "--" + name.replace("_", "-"), type=type(default), default=default,
                metavar={int: "N", float: "X", str: "TEXT"}[type(default)],
                help=text if default == "" else f"{text} ({default})")

    group("the model", Config(1), n_layer="blocks", n_head="heads in each attention",
          n_embd="width", block_size="tokens that it can see at once")
    group("training", TrainConfig(), steps="how many", batch_size="documents in a step",
          lr="learning rate at its peak", warmup="steps until the peak",
          weight_decay="draw weights towards 0, as in AdamW", clip="longest gradient, 0 for any",
          val_fraction="share of documents to hold out",
          eval_every="steps between looks at the held-out loss, 0 for none",
          engine="tensor, or value: the same, number by number",
          workers="processes to share a batch", seed="decides all that is random")
    group("writing", argparse.Namespace(samples=20, prompt="", temperature=0.7, top_k=0, top_p=1.0,
                                        max_tokens=200),
          samples="how many documents", prompt="what they begin with",
          temperature="below 1 plain, above 1 wild, 0 always the likeliest",
          top_k="draw from the N likeliest tokens, 0 for all",
          top_p="draw from the likeliest tokens that have this probability together",
          max_tokens="longest document")
    return parser

def _train(trainer, say):
    """Run a trainer to its end, or until Ctrl-C lets it finish its step. Shows a live line on a
    terminal, ten plain lines elsewhere. Returns the mean loss of the last steps, at most 100."""
    import signal
    live, steps = getattr(sys.stdout, "isatty", bool)(), trainer.config.steps
    started, shown, recent, held_out, stop = time.perf_counter(), 0.0, [], "", []
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: stop.append(signal.signal(signal.SIGINT, before)))
    try:
        for step in trainer:
            recent = recent[-99:] + [step]
            loss = sum(s.loss for s in recent) / len(recent)
            speed = sum(s.tokens_per_second for s in recent) / len(recent)
            if step.val_loss is not None:
                held_out = f"  held out {step.val_loss:.3f}"
            spent, last = time.perf_counter() - started, step.step == steps or stop
            if last or (spent - shown > 0.1 if live else step.step % max(1, steps // 10) == 0):
                shown, left = spent, round(spent / step.step * (steps - step.step))
                bar = f"[{'#' * (12 * step.step // steps):.<12}]" if live else "step"
                line = (f"{bar} {step.step:,}/{steps:,}  loss {loss:.3f}{held_out}  "
                        f"{speed:,.0f} tokens/s  {left // 60}:{left % 60:02} left")
                say(f"\r{line:{COLUMNS}.{COLUMNS}}" if live else line, end="" if live else "\n")
            if stop:
                break
    finally:
        signal.signal(signal.SIGINT, before)
        say("\n" if live else "", end="")
    if stop:
        say(f"stopped by Ctrl-C after {trainer.step:,} of {steps:,} steps")
    return loss

def _run(argv):
    args = _parser().parse_args(argv[argv[:1] == ["train"]:])

    def say(*words, **options):
        if not args.quiet:
            print(*words, flush=True, **options)

    def pick(kind, **extra):       # the fields of a config from the options of the same names
        return kind(**extra, **{name: x for name, x in vars(args).items()
                                if name in kind.__dataclass_fields__})

    # 1) Everything that can be wrong is found before the training.
    documents = load_documents(args.file or _bundled_names())
    tokenizer = CharTokenizer(documents)
    config, training = pick(Config, vocab_size=tokenizer.vocab_size), pick(TrainConfig)
    writing = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p")}
    sample([0.0], **writing)
    _check(vars(args), samples=(int, 0, 10 ** 9), max_tokens=(int, 1, 10 ** 9))
    tokenizer.encode(args.prompt)
    count = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters are too many for plain Python: the most is "
                         f"{MOST_PARAMETERS:,}; try a smaller n_embd, n_layer or block_size")
    model = GPT(config, seed=args.seed)
    trainer = Trainer(model, tokenizer, documents, training)
    # 2) Say what will be done, and do it.
    letters = "".join(filter(str.isprintable, tokenizer.characters))
    part = model.parameter_count
    say(f"documents   {args.file or 'the bundled names'}: {len(documents):,}, of which "
        f"{len(trainer.val_documents):,} held out")
    say(f"characters  {sum(map(len, documents)):,}; {len(tokenizer.characters):,} different ones: "
        f"{letters[:27]}{'...' * (len(letters) > 27)}")
    say(f"model       n_layer {config.n_layer}, n_head {config.n_head}, n_embd {config.n_embd}, "
        f"block_size {config.block_size}, vocab_size {config.vocab_size}")
    say(f"parameters  {count:,}: {part('wte') + part('wpe'):,} in embeddings, {part('attn'):,} in "
        f"attention, {part('mlp'):,} in MLPs, {part('ln_'):,} in norms")
    say(f"training    {training.steps:,} steps of {training.batch_size} documents, lr "
        f"{training.lr}, {training.engine} engine\n")
    loss = _train(trainer, say)
    # 3) Say what was learned, and write.
    held_out = f"{trainer.evaluate():.3f} on held-out documents, " if trainer.val_windows else ""
    say(f"\nloss        {held_out}{loss:.3f} in training; knowing nothing is "
        f"{math.log(config.vocab_size):.3f}\n")
    known, writing["seed"] = set(documents), random.Random(args.seed)
    for _ in range(args.samples):
        text = generate(model, tokenizer, args.prompt, max_tokens=args.max_tokens, **writing)
        mark = "in the data" if text in known else "new"
        print(text if args.quiet else f"    {text or '(empty)':24} {mark}", flush=True)

def main(argv=None):
    """The command `python microgpt.py`; returns the exit status."""
    try:
        if hasattr(sys.stdout, "reconfigure"):      # for a terminal that lacks a letter
            sys.stdout.reconfigure(errors="backslashreplace")
        _run(sys.argv[1:] if argv is None else list(argv))
        return 0
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except OSError as error:
        message, status = f"{error.filename or 'the output'}: {error.strerror}", 1
        if not error.filename:      # else Python would complain again, flushing it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError:
        message, status = "not enough memory: try a smaller n_embd, n_layer or batch_size", 1
    except (ValueError, ArithmeticError) as error:
        message, status = str(error), 1
    print(f"microgpt: {message}", file=sys.stderr)
    return status

if __name__ == "__main__":
    sys.exit(main())
