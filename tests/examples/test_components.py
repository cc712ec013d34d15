"""examples/components.py finds the principal components, as NumPy's SVD does."""

import math
from itertools import combinations

import pytest
from components import principal_components
from helpers import close, flat, rows

from microgpt import dot

# The first column's squares add up to 32, the second's to 18, the third's to 2, and no
# two columns have anything in common. The farthest rows are on the positive side.
CROSS = [(4, 0, 0), (-4, 0, 0), (0, 3, 0), (0, -3, 0), (0, 0, 1), (0, 0, -1)]
TURN = [(2 / 3, 1 / 3, 2 / 3), (2 / 3, -2 / 3, -1 / 3), (1 / 3, 2 / 3, -2 / 3)]


def test_by_hand_whichever_way_the_rows_are_turned_and_moved():
    turned = [[7 + dot(row, axis) for axis in TURN] for row in CROSS]
    for cloud in (CROSS, turned):
        points, shares = principal_components(cloud)
        assert [tuple(map(abs, point)) for point in points] == [
            pytest.approx(tuple(map(abs, row[:2])), abs=1e-9) for row in CROSS
        ]
        assert points[0][0] == pytest.approx(-points[1][0])
        assert shares == pytest.approx([32 / 52, 18 / 52])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_farthest_row_is_on_the_positive_side(sign):
    cloud = [(9, 0), (-3, 2), (-3, -1), (-3, -1)]
    points, _ = principal_components([[sign * x for x in row] for row in cloud])
    assert flat(points) == close(cloud, 1e-9)


@pytest.mark.parametrize("n, width", [(40, 5), (27, 16), (6, 9), (5, 40)])
def test_they_are_those_of_numpy(n, width):
    numpy = pytest.importorskip("numpy")
    stretch = [0.8**i for i in range(width)]  # so that no two directions are alike
    cloud = [[x * s for x, s in zip(row, stretch)] for row in rows(n, width)]
    points, shares = principal_components(cloud, 3)
    u, s, _ = numpy.linalg.svd(cloud - numpy.mean(cloud, axis=0), full_matrices=False)
    expected = (u * s)[:, :3]
    expected = expected * numpy.sign(expected[abs(expected).argmax(0), range(3)])
    assert flat(points) == close(expected.tolist(), 1e-6)
    assert shares == pytest.approx((s**2 / sum(s**2))[:3].tolist())


def test_all_components_together_keep_every_distance():
    cloud = rows(12, 4)
    points, shares = principal_components(cloud, 4)
    for i, j in combinations(range(12), 2):
        distance = math.dist(cloud[i], cloud[j])
        assert math.dist(points[i], points[j]) == pytest.approx(distance)
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    "cloud, points, shares",
    [
        ([[2.0], [6.0], [5.0]], [[7 / 3, 0], [-5 / 3, 0], [-2 / 3, 0]], [1, 0]),
        ([[1.0, 2.0, 3.0]] * 2, [[0, 0], [0, 0]], [0, 0]),
    ],
)
def test_what_differs_in_fewer_directions_has_zeros(cloud, points, shares):
    found, found_shares = principal_components(cloud)
    assert flat(found) == close(points, 1e-9) and found_shares == close(shares, 1e-9)
