"""Histograms for tracking and their quantiles. The figures need no display and no global state of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
"""Metric suffix -> quantile; p50 is the median."""

_INK, _BAR, _MARK = "#30343b", "#4c78a8", "#e45756"


def quantiles(values: Sequence[float]) -> list[float]:
    """The values at QUANTILES, interpolated linearly between neighbours.

    >>> quantiles([0.0, 1.0, 2.0, 3.0, 4.0])
    [0.2, 1.0, 2.0, 3.0, 3.8]
    """
    import numpy

    return [round(float(value), 12) for value in numpy.quantile(values, list(QUANTILES.values()))]


def histogram_figure(values: Sequence[float], name: str, subtitle: str) -> Figure:
    """A histogram of ``values`` with median and mean marked; equal values get a single bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low, high = min(values), max(values)
    pad = max(1e-9, 0.5 * max(1.0, abs(low))) if high - low < 1e-12 else 0.0
    bins = 1 if pad else min(40, max(8, int(len(values) ** 0.5) * 2))
    axes.hist(values, bins=bins, range=(low - pad, high + pad), color=_BAR, edgecolor="white", linewidth=0.6)
    mean, median = sum(values) / len(values), quantiles(values)[2]
    axes.axvline(mean, color=_MARK, linewidth=1.6, label=f"mean {mean:.3g}")
    axes.axvline(median, color=_INK, linewidth=1.2, linestyle="--", label=f"median {median:.3g}")
    axes.set_title(f"{name}: {subtitle}", loc="left", color=_INK, fontsize=12, fontweight="bold")
    axes.set_xlabel(f"{name} ({len(values)} values)", color=_INK)
    axes.set_ylabel("completions", color=_INK)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    return figure
