"""A diagnosis as one figure: pass@k, how often prompts are solved, and which groups are useful."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gradus.flows.advise.screen import SUCCESS
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.estimates.diagnosis import Diagnosis
from gradus.pipeline.statistics.groups import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".svg", ".png", ".pdf")
"""The kinds of files that can be drawn."""
_INK, _WRONG, _MIXED, _RIGHT, _RANKED = "#30343b", "#e45756", "#4c78a8", "#54a24b", "#b279a2"


def check_plot(target: Path) -> None:
    """Check that the figure's file can be written. Raises: UserError."""
    if target.suffix not in KINDS:
        raise UserError(
            "a plot of this kind cannot be drawn", where="--plot", got=str(target), expected=", ".join(KINDS)
        )
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UserError("this file cannot be made", where="--plot", got=str(target), expected="an existing folder")


def draw(diagnosis: Diagnosis, title: str, target: Path) -> None:
    """Draw four panels into ``target``, whose suffix decides the kind of file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=12, fontweight="bold")
    (left, right), (low_left, low_right) = figure.subplots(2, 2)
    _curve(left, diagnosis.pass_at, "pass@k", _MIXED)
    _panel(left, "Prompts solved by k samples: pass@k", "k")
    right.bar(SUCCESS, diagnosis.success, color=[_WRONG, *[_MIXED] * 4, _RIGHT], width=0.8)
    _panel(right, f"{diagnosis.prompts} prompts by share of correct completions", "share solved", limit=None)
    right.set_ylabel("prompts")
    sizes = list(diagnosis.mixed)
    base = [0.0] * len(sizes)
    parts = (
        (diagnosis.all_wrong, "all wrong", _WRONG),
        (diagnosis.mixed, "mixed", _MIXED),
        (diagnosis.all_right, "all right", _RIGHT),
    )
    for part, label, colour in parts:
        heights = [part[k].value for k in sizes]
        low_left.bar([str(k) for k in sizes], heights, bottom=base, color=colour, label=label, width=0.8)
        base = [a + b for a, b in zip(base, heights, strict=True)]
    _panel(low_left, "Expected groups by their size", "group size K")
    low_left.legend(loc="lower right", framealpha=0.9)
    _curve(low_right, diagnosis.useful, "unequal rewards", _MIXED)
    if len(diagnosis.ranking) > 1:
        _curve(low_right, diagnosis.ordered, " > ".join(diagnosis.ranking), _RANKED)
    _panel(low_right, "Useful groups: by reward, by ranking", "group size K")
    low_right.legend(frameon=False)
    figure.savefig(target)


def _curve(axes: Axes, found: Mapping[int, Estimate], label: str, colour: str) -> None:
    places, values = [str(k) for k in found], list(found.values())
    below = [max(0.0, e.value - e.low) for e in values]
    above = [max(0.0, e.high - e.value) for e in values]
    axes.errorbar(
        places, [e.value for e in values], yerr=[below, above], marker="o", capsize=3, color=colour, label=label
    )


def _panel(axes: Axes, title: str, x: str, limit: float | None = 1.02) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=10)
    axes.set_xlabel(x)
    if limit is not None:
        axes.set_ylim(0, limit)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
