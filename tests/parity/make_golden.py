"""Write golden.json, what PyTorch makes of two small GPT-2s, for test_golden.py.

    pip install torch
    python tests/parity/make_golden.py [golden.json]

This is GPT-2's definition in torch.nn.functional, in float64, and shares no code with
microgpt. For two shapes, random parameters (gains and biases too) and a few windows it
records the logits, the loss, all gradients, and the parameters after three steps of
torch.optim.AdamW with clipping.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

NAMES = "vocab_size block_size n_layer n_head n_embd seed limit windows".split()
CASES = [
    # A single document that fills the block.
    [11, 8, 2, 2, 8, 1, 2.5, [[10, 3, 1, 4, 1, 5, 9, 2, 6]]],
    # Several documents of different lengths: none may look into another.
    [7, 5, 1, 3, 6, 2, 1.25, [[6, 0, 2, 6], [6, 5], [6, 1, 1, 3, 4, 2], [2, 4, 6]]],
]
OPTIMIZER = {"lr": 0.05, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
OPTIMIZER.update(weight_decay=0.1, steps=3)


def random_parameters(case):
    """Parameters under GPT-2's names: gains near 1, biases near 0.

    Weights are [n_out, n_in].
    """
    width = case["n_embd"]
    shapes = {
        "wte.weight": [case["vocab_size"], width],
        "wpe.weight": [case["block_size"], width],
    }
    for layer in range(case["n_layer"]):
        for name, shape in [
            ("ln_1", [width]),
            ("attn.c_attn", [3 * width, width]),
            ("attn.c_proj", [width, width]),
            ("ln_2", [width]),
            ("mlp.c_fc", [4 * width, width]),
            ("mlp.c_proj", [width, 4 * width]),
        ]:
            shapes[f"h.{layer}.{name}.weight"] = shape
            shapes[f"h.{layer}.{name}.bias"] = shape[:1]
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = [width]
    rng = torch.Generator().manual_seed(case["seed"])
    params = {}
    for name, shape in shapes.items():
        gain = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        noise = torch.randn(shape, generator=rng, dtype=torch.float64)
        params[name] = (gain + 0.4 * noise).requires_grad_()
    return params


def forward(case, params, tokens):
    """The logits of GPT-2 for one document's tokens."""
    width = case["n_embd"]
    heads = case["n_head"]
    n = len(tokens)

    def norm(x, name):
        gain, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        return F.layer_norm(x, [width], gain, bias, 1e-5)

    def linear(x, name):
        return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])

    def by_head(x):
        """[T, C] -> [n_head, T, C / n_head]"""
        return x.view(n, heads, width // heads).transpose(0, 1)

    x = F.embedding(torch.tensor(tokens), params["wte.weight"])
    x = x + params["wpe.weight"][:n]
    for layer in range(case["n_layer"]):
        h = f"h.{layer}"
        y = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn")
        q, k, v = map(by_head, y.split(width, dim=1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(0, 1).reshape(n, width)
        x = x + linear(y, f"{h}.attn.c_proj")
        y = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        y = F.gelu(y, approximate="tanh")
        x = x + linear(y, f"{h}.mlp.c_proj")
    return norm(x, "ln_f") @ params["wte.weight"].T


def logits_and_loss(case, params):
    """All rows of logits, and the mean loss over all predictions of all windows."""
    logits = torch.cat([forward(case, params, w[:-1]) for w in case["windows"]])
    targets = torch.cat([torch.tensor(w[1:]) for w in case["windows"]])
    return logits, F.cross_entropy(logits, targets)


def make_optimizer(params):
    """PyTorch's AdamW, which lets only the weights of linear layers decay."""
    groups = [{"params": [], "weight_decay": OPTIMIZER["weight_decay"]}]
    groups += [{"params": [], "weight_decay": 0.0}]
    for name, p in params.items():
        is_linear = ".c_" in name and name.endswith("weight")
        groups[0 if is_linear else 1]["params"].append(p)
    betas = (OPTIMIZER["beta1"], OPTIMIZER["beta2"])
    return torch.optim.AdamW(groups, OPTIMIZER["lr"], betas, OPTIMIZER["eps"])


def clip(params, limit):
    """Shorten the gradients to the limit -> the factor.

    torch's clip_grad_norm_ adds 1e-6 to the norm. Here the limit is met exactly.
    """
    norm = torch.cat([p.grad.flatten() for p in params.values()]).norm().item()
    factor = min(1.0, limit / norm)
    for p in params.values():
        p.grad *= factor
    return factor


def solve(case):
    """Everything that golden.json has on a case."""
    params = random_parameters(case)
    before = {name: p.tolist() for name, p in params.items()}
    answer = {**case, "optimizer": OPTIMIZER, "params": before}
    answer.update(losses=[], factors=[])
    optimizer = make_optimizer(params)
    for step in range(OPTIMIZER["steps"]):
        optimizer.zero_grad()
        logits, loss = logits_and_loss(case, params)
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.tolist() for name, p in params.items()}
            answer.update(logits=logits.tolist(), loss=loss.item(), gradients=gradients)
        answer["losses"].append(loss.item())
        answer["factors"].append(clip(params, case["limit"]))
        optimizer.step()
    answer["trained"] = {name: p.tolist() for name, p in params.items()}
    return answer


if __name__ == "__main__":
    path = (
        Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("golden.json")
    )
    answers = [solve(dict(zip(NAMES, case))) for case in CASES]
    text = json.dumps(answers, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")
