"""Search spaces, and the points that grid and random search visit, both worked out before anything runs."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Point = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Uniform:
    """A real number from `low` to `high`; `log` draws its logarithm evenly instead."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"no {'log-' if self.log else ''}uniform range from {self.low} to {self.high}")

    def draw(self, rng: np.random.Generator) -> float:
        if self.log:
            return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return float(rng.uniform(self.low, self.high))


Domain = Choice | Uniform
Space = Mapping[str, Domain]


def grid_points(space: Mapping[str, Choice], seeds: Sequence[int]) -> list[Point]:
    """Every combination of the choices with every seed; seeds innermost, so that each setting is soon complete."""
    names = list(space)
    combinations = itertools.product(*(space[name].values for name in names))
    return [dict(zip(names, values, strict=True)) | {"seed": seed} for values in combinations for seed in seeds]


def random_points(space: Space, num_samples: int, seeds: Sequence[int], rng_seed: int = 0) -> list[Point]:
    """`num_samples` independent draws, each with every seed; the same `rng_seed` gives the same points.

    A setting that is drawn again is left out, so that a small space may give fewer.
    """
    rng = np.random.default_rng(rng_seed)
    drawn = [{name: domain.draw(rng) for name, domain in space.items()} for _ in range(num_samples)]
    draws = [draw for number, draw in enumerate(drawn) if draw not in drawn[:number]]
    return [draw | {"seed": seed} for draw in draws for seed in seeds]
