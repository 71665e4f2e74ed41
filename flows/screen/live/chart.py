"""The last values of a metric as a chart of a few lines: block characters, or ASCII where there are no others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

MOST_POINTS = 240
"""How many of the last steps a chart shows."""
WIDEST = 60
"""Columns of a chart. A wider one would say no more, and its lines would break where the terminal becomes narrower."""
NARROWEST = 12
"""A chart with fewer columns is not drawn."""
BLOCKS, ASCII = " ▁▂▃▄▅▆▇█", " .:|"
"""A character filled to none, and on to all of its height."""


class Curve:
    """The last values of one metric. One thread may add to it while another draws it."""

    def __init__(self, name: str):
        self.name = name
        self.points: tuple[tuple[int, float], ...] = ()
        """(step, value), in the order of the steps; replaced, never changed."""

    def add(self, step: int, value: float) -> None:
        """Add the newest value. A resume repeats steps: those from ``step`` on are replaced."""
        kept = self.points
        while kept and kept[-1][0] >= step:
            kept = kept[:-1]
        self.points = (*kept[1 - MOST_POINTS :], (step, value))

    def lines(self, width: int, height: int, ascii_only: bool = False) -> list[str]:
        """The chart in at most ``width`` columns, ``height`` lines of bars and, if that is more than one, a line with
        the steps. Empty for fewer than two values, or where there is no room."""
        points, characters = self.points, ASCII if ascii_only else BLOCKS
        if len(points) < 2:
            return []
        values, steps = [value for _, value in points], f"steps {points[0][0]:,} to {points[-1][0]:,}"

        def drawn(room: int) -> tuple[list[str], str, str]:
            shown = binned(values, min(room, WIDEST))
            return bar_lines(shown, height, characters), _number(min(shown)), _number(max(shown))

        longest = max(len(_number(value)) for value in (min(values), max(values)))  # the means of parts lie between
        if height == 1:
            room = width - len(f"{self.name}   to , {steps}") - 2 * longest
            if room < NARROWEST:
                return []
            (bars,), low, high = drawn(room)
            return [f"{self.name} {bars}  {low} to {high}, {steps}"]
        margin = len(self.name) + 1 + longest
        room = width - margin - 1
        if room < max(NARROWEST, len(steps)):
            return []
        bars, low, high = drawn(room)
        labels = [f"{self.name} {high.rjust(longest)}", *[""] * (height - 2), low]
        rows = [f"{label.rjust(margin)} {bar}".rstrip() for label, bar in zip(labels, bars, strict=True)]
        return [*rows, f"{'':{margin}} {steps}"]


def binned(values: Sequence[float], most: int) -> list[float]:
    """The values, or, if there are more than ``most``, the means of so many parts of them that differ by one value.

    >>> binned([1, 2, 3, 4, 5], 2), binned([1, 2], 5)
    ([1.5, 4.0], [1, 2])
    """
    if len(values) <= most:
        return list(values)
    ends = [place * len(values) // most for place in range(most + 1)]
    parts = (values[begin:end] for begin, end in itertools.pairwise(ends))
    return [sum(part) / len(part) for part in parts]


def bar_lines(values: Sequence[float], height: int, characters: str = BLOCKS) -> list[str]:
    """A bar for each value in ``height`` lines, the upper one first: the smallest value has the lowest bar that is
    seen, the largest one the full height.

    >>> bar_lines([0, 1, 2, 3, 4, 5, 6, 7], 1)
    ['▁▂▃▄▅▆▇█']
    >>> bar_lines([0, 1, 5], 2, ASCII)
    ['  |', '.:|']
    """
    parts = len(characters) - 1
    low, high, top = min(values), max(values), height * parts
    scale = (top - 1) / (high - low) if high > low else 0.0
    filled = [1 + round((value - low) * scale) for value in values]
    return ["".join(_cells(filled, line * parts, parts, characters)) for line in reversed(range(height))]


def _cells(filled: Sequence[int], below: int, parts: int, characters: str) -> Iterator[str]:
    for parts_filled in filled:
        yield characters[min(max(parts_filled - below, 0), parts)]


def _number(value: float) -> str:
    """A value of the scale.

    >>> [_number(value) for value in (0.03125, -1.5, 12345.6)]
    ['0.031', '-1.500', '1.23e+04']
    """
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
