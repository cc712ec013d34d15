"""Every layer, with inputs to try it on, for test_layers.py and test_tensor.py."""

import math
from collections import namedtuple

from compare import row, rows

from microgpt import (
    add,
    attention,
    cross_entropy,
    dot,
    embedding,
    gelu,
    layernorm,
    linear,
    packed_attention,
)


class Case(namedtuple("Case", "layer inputs options", defaults=({},))):
    """A layer, its inputs {name: numbers}, and what else it takes {name: integers}."""

    def __call__(self, inputs):
        return self.layer(*inputs.values(), *self.options.values())

    def by_name(self, inputs):
        """The same, with all but the first input given by name, the last one first."""
        first, *others = inputs
        names = dict(self.options)
        for name in others:
            names[name] = inputs[name]
        return self.layer(inputs[first], **dict(reversed(list(names.items()))))

    def definition(self):
        """The same case for the layer's definition in chapter 4."""
        return self._replace(layer=self.layer.dispatch(object))


def add_to_itself(x):
    return add(x, x)


LAYERS = {
    "embedding": Case(embedding, {"table": rows(3, 4)}, {"ids": [1, 0, 1]}),
    "add": Case(add, {"x": rows(3, 4), "y": rows(3, 4, seed=1)}),
    "add to itself": Case(add_to_itself, {"x": rows(3, 4)}),
    "linear": Case(
        linear, {"x": rows(3, 4), "weight": rows(5, 4, seed=1), "bias": row(5, seed=2)}
    ),
    "linear, no bias": Case(linear, {"x": rows(3, 4), "weight": rows(5, 4, seed=1)}),
    "linear, wide": Case(linear, {"x": rows(1, 70), "weight": rows(2, 70, seed=1)}),
    "linear, width 1": Case(linear, {"x": rows(2, 1), "weight": rows(2, 1, seed=1)}),
    "layernorm": Case(
        layernorm, {"x": rows(3, 4), "gain": row(4, seed=1), "bias": row(4, seed=2)}
    ),
    "layernorm, large eps": Case(
        layernorm,
        {"x": rows(3, 4), "gain": row(4, seed=1), "bias": row(4, seed=2)},
        {"eps": 0.5},
    ),
    "gelu": Case(gelu, {"x": rows(3, 4, scale=2.0)}),
    "attention": Case(attention, {"x": rows(4, 12)}, {"n_head": 2}),
    "attention, one head": Case(attention, {"x": rows(3, 6)}, {"n_head": 1}),
    "attention, one token": Case(attention, {"x": rows(1, 6)}, {"n_head": 2}),
    "attention, packed": Case(
        packed_attention, {"x": rows(6, 12)}, {"n_head": 2, "lengths": [3, 1, 2]}
    ),
    "cross_entropy": Case(
        cross_entropy, {"logits": rows(3, 4)}, {"targets": [2, 0, 2]}
    ),
}


def weighted_sum(y):
    """One number that depends on every number of y, on each in another measure."""
    if not hasattr(y, "__len__"):
        return y
    total = 0.0
    for t, numbers in enumerate(y):
        weights = [math.sin(3 * t + i + 1) for i in range(len(numbers))]
        total = dot(numbers, weights) + total
    return total
