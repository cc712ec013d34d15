"""The same model on PyTorch: each layer is PyTorch's own function for it.

    import microgpt, torch_engine
    model = torch_engine.to_tensors(microgpt.load_model("gpt2"), device="cuda")
    print(microgpt.generate(model, microgpt.load_tokenizer("gpt2"), "The old man"))

The model is microgpt's own, unchanged; derivatives are PyTorch's. It reads tokens in
one of two forms:

    a list          one window, or several packed end to end: rows are [T, C]
    side by side    a tensor [B, T] with a window in each row: rows are [B, T, C]. Short
                    windows are padded at their ends. A target of -1 does not count.

train_torch.py in this folder trains with it, on one machine or several.
"""

import os
import sys
import warnings

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError as error:
    libraries = "torch numpy safetensors"
    message = f"torch_engine: it takes {error.name}: python -m pip install {libraries}"
    raise ImportError(message, name=error.name) from None

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))

import microgpt
from microgpt import GPT, ValueEngine

# microgpt calls float(loss). PyTorch warns that this leaves the graph: it should.
warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")


@microgpt.embedding.register(torch.Tensor)
def embedding(table, ids):
    if not torch.is_tensor(ids):
        if min(ids) < 0 or max(ids) >= len(table):
            microgpt.embedding(range(len(table)), ids)  # raises, and names the id
        ids = torch.tensor(ids, device=table.device)
    return F.embedding(ids, table)


@microgpt.add.register(torch.Tensor)
def add(x, y):
    return x + y


@microgpt.linear.register(torch.Tensor)
def linear(x, weight, bias=None):
    return F.linear(x, weight, bias)


@microgpt.layernorm.register(torch.Tensor)
def layernorm(x, gain, bias, eps=1e-5):
    return F.layer_norm(x, gain.shape, gain, bias, eps)


@microgpt.gelu.register(torch.Tensor)
def gelu(x):
    return F.gelu(x, approximate="tanh")


@microgpt.softmax.register(torch.Tensor)
def softmax(row):
    return row.softmax(-1)


def cut_into_heads(x, n_head):
    """[..., T, 3C] -> its queries, keys and values, [..., n_head, T, d] each."""
    parts = x.unflatten(-1, (3, n_head, -1)).transpose(-4, -2)
    return parts.unbind(-3)


def join_heads(y):
    """[..., n_head, T, d] -> [..., T, C]."""
    return y.transpose(-2, -3).flatten(-2)


@microgpt.attention.register(torch.Tensor)
def attention(x, n_head):
    q, k, v = cut_into_heads(x, n_head)
    return join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))


@microgpt.packed_attention.register(torch.Tensor)
def packed_attention(x, n_head, lengths):
    return torch.cat([attention(window, n_head) for window in x.split(lengths)])


@microgpt.attention_with_past.register(torch.Tensor)
def attention_with_past(x, n_head, past):
    past.extend(x)
    q, _, _ = cut_into_heads(x, n_head)
    _, k, v = cut_into_heads(torch.stack(past), n_head)
    n_before = len(past) - len(x)
    sees = torch.ones(len(x), len(past), dtype=torch.bool, device=x.device)
    sees = sees.tril(n_before)  # all that came before, and itself
    return join_heads(F.scaled_dot_product_attention(q, k, v, sees))


@microgpt.cross_entropy.register(torch.Tensor)
def cross_entropy(logits, targets):
    targets = torch.as_tensor(targets, device=logits.device)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)


def to_tensor(x, device, dtype):
    """A row or rows of numbers -> a tensor."""
    x = x if torch.is_tensor(x) else torch.from_numpy(np.array(x))
    return x.to(dtype).to(device)  # in this order, for devices that lack float64


def side_by_side(windows, length, device):
    """Windows -> (tokens, targets), [B, length] each, padded with 0 and -1."""
    rows = []
    for window in windows:
        rows.append(window + [-1] * (length + 1 - len(window)))
    rows = torch.tensor(rows).to(device, non_blocking=True)
    return rows[:, :-1].clamp(min=0), rows[:, 1:]


class TensorGPT(GPT):
    """A GPT with tensors for parameters. It also reads windows side by side."""

    can_be_cached = True  # so a CachedGPT may take its place

    def positions(self, tokens):
        """All windows begin at position 0."""
        if torch.is_tensor(tokens):
            return torch.arange(tokens.shape[1], device=tokens.device)
        return super().positions(tokens)

    def loss(self, windows):
        """The mean loss of windows, which are read together."""
        longest = max(map(len, windows)) - 1
        device = self.params["wte.weight"].device
        tokens, targets = side_by_side(windows, longest, device)
        return microgpt.cross_entropy(self(tokens), targets)


def to_tensors(model, device="cpu", dtype=torch.float32):
    """The same model on tensors without gradients, for evaluation and generation."""
    params = {name: to_tensor(x, device, dtype) for name, x in model.params.items()}
    return TensorGPT(model.config, params)


class TorchLayers(ValueEngine):
    """An engine with PyTorch's layers and a pure Python optimizer, for checks."""

    name = "torch"

    def __init__(self, device="cpu", dtype=torch.float64):
        self.device = device
        self.dtype = dtype

    def convert(self, x):
        return to_tensor(x, self.device, self.dtype).clone().requires_grad_()

    def gradient(self, x):
        return (torch.zeros_like(x) if x.grad is None else x.grad).tolist()
