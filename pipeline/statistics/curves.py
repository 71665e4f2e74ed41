"""What is read off a training curve: its height on a grid, its smoothed form, when it reaches a target, its drops."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Curve = Sequence[Sequence[float]]
"""Points (x, y) in ascending order of x; the first one is the start."""


def on_grid(curve: Curve, grid: Sequence[float]) -> list[float]:
    """The curve's height at the grid's places, by linear interpolation; constant beyond the ends."""
    return np.interp(grid, [point[0] for point in curve], [point[1] for point in curve]).tolist()


def smooth(curve: Curve, window: int = 3) -> list[list[float]]:
    """A centred running mean over ``window`` points (fewer at the ends), because single evaluations are noisy.

    >>> smooth([(0, 0.0), (1, 3.0), (2, 0.0)])
    [[0, 1.5], [1, 1.0], [2, 1.5]]
    """
    half, heights = window // 2, [point[1] for point in curve]
    means = [float(np.mean(heights[max(0, place - half) : place + half + 1])) for place in range(len(heights))]
    return [[point[0], mean] for point, mean in zip(curve, means, strict=True)]


def crossing(curve: Curve, target: float) -> float | None:
    """The first x at which the interpolated curve reaches ``target``; None where it never does.

    >>> crossing([(0, 0.4), (100, 0.6), (200, 0.5)], 0.5)
    50.0
    """
    if curve[0][1] >= target:
        return float(curve[0][0])
    for (x0, y0, *_), (x1, y1, *_) in itertools.pairwise(curve):
        if y1 >= target:
            return float(x0 + (x1 - x0) * (target - y0) / (y1 - y0))
    return None


def early_gain(curve: Curve, until: float) -> float:
    """Mean height above the start, from the start to ``until``: the area under the gain, divided by the width.

    Edge: a curve that ends before ``until`` is continued at its last height.

    >>> early_gain([(0, 0.5), (100, 0.7)], 100)
    0.1
    """
    xs = sorted({float(point[0]) for point in curve if point[0] < until} | {float(curve[0][0]), float(until)})
    heights = np.array(on_grid(curve, xs)) - curve[0][1]
    return round(float(np.trapezoid(heights, xs) / (xs[-1] - xs[0])), 12)


def tail_mean(curve: Curve, share: float) -> float:
    """Mean height of the last ``share`` of a curve's points, of one point at least.

    >>> tail_mean([(0, 1.0), (10, 2.0), (20, 4.0), (30, 6.0)], 0.5)
    5.0
    """
    last = curve[-max(1, round(share * len(curve))) :]
    return float(np.mean([height for _, height in last]))


def worst_drop(curve: Curve, window: int = 3) -> float:
    """The deepest drop of the smoothed curve below the highest point before it; 0 for a curve that only rises.

    >>> worst_drop([(0, 0.5), (1, 0.9), (2, 0.6), (3, 0.8)], window=1)
    0.3
    """
    heights = np.array([height for _, height in smooth(curve, window)])
    return round(float((np.maximum.accumulate(heights) - heights).max()), 12)
