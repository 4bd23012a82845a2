import numpy as np
import pytest

from sweeps.space import Choice, Uniform, grid_points, random_points


def test_a_grid_has_every_combination_with_every_seed_once() -> None:
    points = grid_points({"a": Choice((1, 2)), "b": Choice(("x", "y", "z"))}, seeds=range(2))
    assert len(points) == 12
    assert len({tuple(point.items()) for point in points}) == 12
    assert points[:2] == [{"a": 1, "b": "x", "seed": 0}, {"a": 1, "b": "x", "seed": 1}]


def test_random_points_are_repeatable_and_shared_by_the_seeds() -> None:
    space = {"a": Choice((1, 2)), "rate": Uniform(1e-4, 1e-2, log=True)}
    points = random_points(space, 50, seeds=range(2))
    assert points == random_points(space, 50, seeds=range(2))
    assert all({**a, "seed": 1} == b for a, b in zip(points[::2], points[1::2], strict=True))
    rates = np.array([point["rate"] for point in points[::2]])
    assert rates.min() >= 1e-4 and rates.max() <= 1e-2
    assert 0.3 < (rates < 1e-3).mean() < 0.7  # its logarithm is uniform


@pytest.mark.parametrize(("low", "high", "log"), [(2, 1, False), (1, 1, False), (0, 1, True)])
def test_an_empty_range_is_refused(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="uniform range from"):
        Uniform(low, high, log)
