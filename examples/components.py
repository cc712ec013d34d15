"""Principal components: the directions in which rows of numbers differ most.

    points, shares = principal_components(model.params["wte.weight"])

The points can be drawn. Rows that are alike lie close together, such as the embeddings
of two vowels. In the plane of the first two components, as much as possible is kept of
how the rows differ. The pictures and the page draw token embeddings in this way.
"""

import math
import random

from microgpt import dot, mean

ROUNDS = 500  # at most, in search of a direction
STILL = 1e-12  # a direction that turns by less than this has been found


def principal_components(rows, n=2):
    """Place rows of numbers along the n directions in which they differ most.

    rows    [number of rows][width]     floats
    ->
    points  [number of rows][n]         where each row lies, with the mean row at 0
    shares  [n]                         the share of the rows' variance that is along
                                        each direction; the largest comes first

    The directions are at right angles to each other. Each is found by power iteration,
    and then removed from the rows before the search for the next. A direction has no
    sign of its own, so the row farthest from 0 gets a positive number. If the rows
    differ in fewer than n directions, the other numbers are 0.
    """
    means = [mean(column) for column in zip(*rows)]
    rest = [[x - m for x, m in zip(row, means)] for row in rows]
    variance = sum(dot(row, row) for row in rest) or 1.0
    coordinates = []
    shares = []
    for _ in range(n):
        axis = longest_axis(rest)
        along = [dot(row, axis) for row in rest]
        rest = [[x - a * d for x, d in zip(row, axis)] for row, a in zip(rest, along)]
        if max(along, key=abs) < 0:
            along = [-a for a in along]
        coordinates.append(along)
        shares.append(dot(along, along) / variance)
    return [list(point) for point in zip(*coordinates)], shares


def longest_axis(rows):
    """The direction, a row of length 1, along which the rows differ most.

    This is power iteration: start in a random direction and multiply it by the rows'
    covariance again and again. Each time, it turns further towards their longest axis.
    """
    columns = list(zip(*rows))
    rng = random.Random(0)
    axis = [rng.gauss(0, 1) for _ in columns]
    for _ in range(ROUNDS):
        before = axis
        along = [dot(row, axis) for row in rows]
        axis = [dot(column, along) for column in columns]
        length = math.hypot(*axis) or 1.0
        axis = [x / length for x in axis]
        if math.dist(axis, before) < STILL:
            break
    return axis
