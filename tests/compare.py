"""Random rows, and a way to compare numbers of all kinds, whatever their shape."""

import random

import pytest


def rows(n, width, seed=0, scale=1.0):
    """n random rows of this width."""
    rng = random.Random(seed)
    return [[rng.gauss(0, scale) for _ in range(width)] for _ in range(n)]


def row(width, seed=0):
    """A single random row."""
    return rows(1, width, seed)[0]


def flat(x):
    """All numbers of x, which may be a number, rows, a Tensor or a dict, as floats."""
    x = getattr(x, "data", x)
    if isinstance(x, dict):
        x = list(x.values())
    if not hasattr(x, "__len__"):
        return [float(x)]
    return [number for part in x for number in flat(part)]


def close(x, tolerance=1e-12):
    """What flat(y) equals if y has the same numbers as x, within the tolerance."""
    return pytest.approx(flat(x), rel=tolerance, abs=tolerance)
