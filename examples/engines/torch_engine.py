"""The same model on PyTorch: microgpt's layers for tensors, each as PyTorch's own function for it.

    import microgpt, torch_engine
    model = torch_engine.to_tensors(microgpt.GPT.load("gpt2"), device="cuda")
    print(microgpt.generate(model, microgpt.load_tokenizer("gpt2"), "The old man"))

The forward pass is microgpt.GPT's own, unchanged; derivatives are PyTorch's. Tokens come in one of
two forms:

    packed        a list of n tokens, windows one after the other, with their positions, as
                  elsewhere in microgpt: rows are [n, n_embd]
    side by side  a tensor [B, T], a window a row, all from position 0: rows are [B, T, n_embd].
                  Shorter windows are filled up at their ends; a target of -1 is not asked for

train_torch.py beside this file trains with it, on one machine or on many.
"""

import os
import sys
import warnings

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError as error:
    raise ImportError(
        f"torch_engine: it takes {error.name}: python -m pip install torch numpy "
        "safetensors",
        name=error.name,
    ) from None

sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)

import microgpt


class Torch:
    """The engine: how floats become tensors that want a gradient, and gradients floats again."""

    device, dtype = "cpu", torch.float64

    @classmethod
    def lift(cls, x):
        """Floats, rows of them or arrays -> a tensor of the same shape."""
        return to_tensor(x, cls.device, cls.dtype).detach().clone().requires_grad_()

    @staticmethod
    def gradient(x):
        """What backward() left in a tensor, or zeros -> floats in its shape."""
        return (torch.zeros_like(x) if x.grad is None else x.grad).tolist()


microgpt.ENGINES["torch"] = Torch
# microgpt asks for float(loss), of which PyTorch warns as it ends the graph; here it shall.
warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")


def to_tensor(x, device, dtype):
    """Numbers, a row or rows of them -> a tensor of their shape."""
    x = x if torch.is_tensor(x) else torch.from_numpy(np.array(x))
    return x.to(device, dtype)


class TensorGPT(microgpt.GPT):
    """A GPT with tensors for parameters, to evaluate and to write with."""

    def __call__(self, *args, last=False, **options):
        """As GPT; the `last` row, from which a token is drawn, is given in floats."""
        logits = super().__call__(*args, last=last, **options)
        return logits.tolist() if last else logits


def to_tensors(model, device="cpu", dtype=torch.float32):
    """The same model with tensors for parameters, which want no gradient."""
    return TensorGPT(
        model.config,
        {name: to_tensor(x, device, dtype) for name, x in model.params.items()},
    )


# --- Layers --------------------------------------------------------------------------------------


@microgpt.softmax.register(torch.Tensor)
def _(x):
    return x.softmax(-1)


@microgpt.embedding.register(torch.Tensor)
def _(table, ids):
    if not torch.is_tensor(ids):
        if min(ids) < 0 or max(ids) >= len(table):
            microgpt.embedding(range(len(table)), ids)  # says which, and raises
        ids = torch.tensor(ids, device=table.device)
    return F.embedding(ids, table)


@microgpt.add.register(torch.Tensor)
def _(x, y):
    return x + y


@microgpt.linear.register(torch.Tensor)
def _(x, weight, bias=None):
    return F.linear(x, weight, bias)


@microgpt.layernorm.register(torch.Tensor)
def _(x, gain, bias, eps=1e-5):
    return F.layer_norm(x, gain.shape, gain, bias, eps)


@microgpt.gelu.register(torch.Tensor)
def _(x):
    return F.gelu(x, approximate="tanh")


@microgpt.attention.register(torch.Tensor)
def _(x, positions, n_head, past=None, heads=None):
    if x.dim() > 2 and (past or heads):
        raise ValueError(
            "past keys and traces are for packed tokens, not for those side by side"
        )
    q, k, v = x.chunk(3, -1)
    sees = None  # side by side: all up to its own
    if x.dim() == 2:  # packed: all from where its window begins
        if past:
            past[0].extend(k)
            past[1].extend(v)
            k, v = torch.stack(past[0]), torch.stack(past[1])
        rows = torch.arange(len(k), device=x.device)
        own = rows[len(k) - len(x) :, None]
        first = own - torch.as_tensor(positions, device=x.device)[:, None]
        sees = (first <= rows) & (rows <= own)
    q, k, v = (rows.unflatten(-1, (n_head, -1)).transpose(-2, -3) for rows in (q, k, v))
    if heads:  # for a trace
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
        for head, rows in zip(heads, weights):
            head += [row[seen].tolist() for row, seen in zip(rows, sees)]
    y = F.scaled_dot_product_attention(q, k, v, sees, is_causal=sees is None)
    return y.transpose(-2, -3).flatten(-2)


@microgpt.cross_entropy.register(torch.Tensor)
def _(logits, targets):
    targets = torch.as_tensor(targets, device=logits.device)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)
