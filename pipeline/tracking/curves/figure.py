"""The figure of a pipeline: reward and accuracy over its steps, a band for each stage. No display, no global state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.files import beside
from gradus.pipeline.tracking.curves.places import StagePlace, stage_places
from gradus.pipeline.tracking.journal import metric_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = ("pipeline.svg", "pipeline.png")
"""In the run folder, and among the artifacts of the pipeline's MLflow run."""
REWARD, VALIDATION = "reward/mean", "validation/accuracy"
WINDOW, WINDOW_IN_STAGE = 1 / 20, 1 / 4
"""The thick line is a mean over this share of all steps, at most over this share of the stage's."""
LETTER, LONGEST = 0.011, 16
"""Width of a letter, as a share of the figure's, and letters of a name that does not fit into its band."""

_INK, _GRID, _BANDS = "#30343b", "#c9ccd1", ("#eef2f7", "#ffffff")
_REWARD, _ACCURACY, _HELDOUT = "#4c78a8", "#54a24b", "#e45756"

Points = list[tuple[float, float]]
"""(step, value), in order of the steps."""


@dataclass(frozen=True)
class Band:
    """A stage that is done, on the pipeline's axis."""

    name: str
    begin: int
    """The pipeline's steps before it."""
    end: int
    reward: Points
    validation: Points
    before: float | None
    """Held-out accuracy of what it started from."""
    after: float | None
    interval: Sequence[float] | None
    """The 95 % interval of ``after``."""


def draw(run_dir: Path) -> list[Path]:
    """Draw the stages that are done into FILES of the run folder; returns their paths, none where no stage is done."""
    bands = _bands(run_dir)
    if not bands:
        return []
    figure = pipeline_figure(bands, run_dir.name)
    files = [run_dir / name for name in FILES]
    for file in files:
        temporary = beside(file)
        with contextlib.ExitStack() as left:
            left.callback(temporary.unlink, missing_ok=True)
            figure.savefig(
                temporary, format=file.suffix[1:], metadata={"Date": None} if file.suffix == ".svg" else None
            )
            os.replace(temporary, file)
    return files


def _bands(run_dir: Path) -> list[Band]:
    bands: list[Band] = []
    for place in stage_places(run_dir):
        if not place.closed:
            break
        bands.append(_band(place, bands[-1].end if bands else 0))
    return bands


def _band(place: StagePlace, begin: int) -> Band:
    history, result = metric_history(place.journal), place.result

    def curve(name: str) -> Points:
        return [(begin + step, value) for step, value in sorted(history.get(name, {}).items())]

    return Band(
        name=str(result.get("name", place.label)),
        begin=begin,
        end=begin + int(result.get("steps") or 0),
        reward=curve(REWARD),
        validation=curve(VALIDATION),
        before=result.get("accuracy_before"),
        after=result.get("accuracy_after"),
        interval=result.get("interval"),
    )


def pipeline_figure(bands: Sequence[Band], title: str) -> Figure:
    """Rewards above, accuracies below, over the same steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, label in ((above, "mean reward"), (below, "accuracy")):
        _style(axes, label, bands)
    for band in bands:
        _reward(above, band.reward, round(min(WINDOW * bands[-1].end, WINDOW_IN_STAGE * (band.end - band.begin))))
        _accuracy(below, band, last=band is bands[-1])
    _names(above, bands)
    below.set_xlabel("step of the pipeline", color=_INK)
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=12, fontweight="bold", parse_math=False)
    _legend(below)
    return figure


def _style(axes: Axes, label: str, bands: Sequence[Band]) -> None:
    for number, band in enumerate(bands):
        if band.end > band.begin:
            axes.axvspan(band.begin, band.end, color=_BANDS[number % 2], linewidth=0, zorder=0)
        axes.axvline(band.end, color=_GRID, linewidth=0.8, zorder=1)
    axes.set_xlim(0, max(1, bands[-1].end))
    axes.set_ylabel(label, color=_INK)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _reward(axes: Axes, points: Points, window: int) -> None:
    if not points:
        return
    from gradus.pipeline.statistics.curves import smooth

    axes.plot(*zip(*points, strict=True), color=_REWARD, linewidth=0.6, alpha=0.35)
    axes.plot(*zip(*smooth(points, max(1, window)), strict=True), color=_REWARD, linewidth=1.8)


def _accuracy(axes: Axes, band: Band, last: bool) -> None:
    if band.validation:
        axes.plot(*zip(*band.validation, strict=True), color=_ACCURACY, linewidth=1.2, marker=".", markersize=4)
    if band.after is None:
        return
    if band.before is not None:
        ends = (band.begin, band.end), (band.before, band.after)
        axes.plot(*ends, color=_HELDOUT, linewidth=1.0, linestyle="--")
        axes.plot(band.begin, band.before, color=_HELDOUT, marker="o", markersize=3.5, clip_on=False)
    low, high = band.interval or (band.after, band.after)
    axes.errorbar(
        band.end, band.after, [[max(0.0, band.after - low)], [max(0.0, high - band.after)]],
        color=_HELDOUT, marker="o", markersize=5, capsize=3, elinewidth=1.2, clip_on=False, zorder=5,
    )  # fmt: skip
    axes.annotate(
        f"{band.after:.3f}", (band.end, band.after), (6 if last else -5, 4), textcoords="offset points",
        ha="left" if last else "right", va="bottom", fontsize=8, color=_HELDOUT,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
    )  # fmt: skip


def _names(axes: Axes, bands: Sequence[Band]) -> None:
    """The stages' names above their bands, upright where they are too narrow; a stage without steps is a border."""
    whole = max(1, bands[-1].end)
    for band in bands:
        upright = (band.end - band.begin) / whole < LETTER * len(band.name)
        name = f"{band.name[: LONGEST - 1]}…" if upright and len(band.name) > LONGEST else band.name
        axes.text(
            (band.begin + band.end) / 2, 1.02, name, transform=axes.get_xaxis_transform(), color=_INK,
            ha="center", va="bottom", fontsize=9, rotation=90 if upright else 0, parse_math=False,
        )  # fmt: skip


def _legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=_ACCURACY, marker=".", label="validation prompts"),
        Line2D([], [], color=_HELDOUT, marker="o", linestyle="--", label="held-out prompts, 95 % interval"),
    ]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="best")
