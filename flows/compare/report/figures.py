"""The figures of a comparison, as SVG that can be read on light and dark pages.

Text and axes have a colour that a page can replace by its own (``currentColor``); lines have hues of medium lightness
in an order that colour-blind readers can distinguish (Okabe and Ito).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gradus.flows.compare.measures import Measures
from gradus.flows.compare.plan.arms import STAGED
from gradus.pipeline.statistics.curves import on_grid

INK = "#7b7f86"
"""The colour of text and axes: readable on white and on black."""
HUES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#a0a000", "#8f6fd6", "#3fb7b0", "#b5651d")
RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "legend.frameon": False,
}

ByArm = Mapping[str, Mapping[int, Measures]]


def figures(arms: ByArm, analysis: Mapping[str, Any]) -> dict[str, str]:
    """name -> SVG of every figure for which there are data."""
    hues = {arm: HUES[place % len(HUES)] for place, arm in enumerate(arms)}
    drawn = {
        "learning-curves": lambda: _learning_curves(arms, hues),
        "final-accuracy": lambda: _final_accuracy(analysis["arms"], hues),
        "accuracy-by-task": lambda: _by_task(analysis["tasks"], hues),
        "differences": lambda: _differences(analysis["pairs"]),
        "seeds": lambda: _seeds(arms, hues),
        "entropy-length-reward": lambda: _other_curves(arms, hues),
    }
    found = {}
    for name, draw in drawn.items():
        with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
            figure = draw()
            if figure is not None:
                found[name] = _svg(figure)
    return found


def _svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without a fixed size."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def for_page(svg: str) -> str:
    """The figure with the text colour of the page that shows it."""
    return svg.replace(INK, "currentColor")


def band(curves: Sequence[Sequence[Sequence[float]]]) -> tuple[list[float], np.ndarray]:
    """(positions, heights [S, positions]) of curves, at every point of any curve within the range of all curves.

    >>> grid, heights = band([[(0, 1.0), (10, 3.0)], [(0, 2.0), (5, 2.0), (20, 5.0)]])
    >>> grid, heights.tolist()
    ([0, 5, 10], [[1.0, 2.0, 3.0], [2.0, 2.0, 3.0]])
    """
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    grid = sorted({x for curve in curves for x, _ in curve if first <= x <= last})
    return grid, np.array([on_grid(curve, grid) for curve in curves])


def _learning_curves(arms: ByArm, hues: Mapping[str, str]) -> Figure:
    """Validation accuracy against rollouts: mean over seeds, from the lowest to the highest seed shaded."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for arm, seeds in arms.items():
        curves = [m["curve"] for m in seeds.values() if len(m["curve"]) > 1]
        if not curves:
            continue
        grid, heights = band(curves)
        wide = 2.8 if arm == STAGED else 1.6
        axes.plot(grid, heights.mean(0), color=hues[arm], linewidth=wide, label=arm)
        if len(curves) > 1:
            axes.fill_between(grid, heights.min(0), heights.max(0), color=hues[arm], alpha=0.14, linewidth=0)
        if any(len(m["marks"]) > 1 for m in seeds.values()):
            _vertical_marks(axes, list(seeds.values()), hues[arm])
    axes.set_xlabel("rollouts (sampled completions, those of a reference policy included)")
    axes.set_ylabel("accuracy on the validation prompts")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", ncols=2)
    return figure


def _vertical_marks(axes: Any, seeds: Sequence[Measures], hue: str) -> None:
    """Dashed lines where stages end: at the mean of the seeds, with the text of the first seed."""
    for place in range(min(len(m["marks"]) for m in seeds) - 1):
        x = float(np.mean([m["marks"][place][0] for m in seeds]))
        axes.axvline(x, color=hue, linestyle="--", linewidth=1)
        transform = axes.get_xaxis_transform()
        text = f" {seeds[0]['marks'][place][1]}"
        axes.text(x, 0.995, text, color=hue, fontsize=8, rotation=90, va="top", ha="right", transform=transform)


def _final_accuracy(rows: Sequence[Mapping[str, Any]], hues: Mapping[str, str]) -> Figure:
    """Held-out accuracy: every seed, the mean, its interval over seeds (thin) and over prompts (thick)."""
    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        hue, y = hues[row["arm"]], len(rows) - place
        low, high = row["interval_seeds"]
        if low is not None:
            axes.plot([low, high], [y, y], color=hue, linewidth=1.2)
        low, high = row["interval_prompts"]
        if low is not None:
            axes.plot([low, high], [y, y], color=hue, linewidth=6, alpha=0.35, solid_capstyle="butt")
        axes.plot(row["accuracy_each"], [y] * len(row["accuracy_each"]), "o", color=hue, markersize=4, alpha=0.8)
        axes.plot(row["accuracy"], y, "D", color=hue, markersize=8)
    axes.set_yticks([len(rows) - place for place in range(len(rows))], [row["arm"] for row in rows])
    axes.set_ylim(0.4, len(rows) + 0.6)
    everything = [value for row in rows for value in (*row["accuracy_each"], *filter(None, row["interval_prompts"]))]
    axes.set_xlim(min(everything) - 0.03, max(everything) + 0.03)
    axes.set_xlabel(
        "accuracy on the held-out prompts (thick: 95 % over prompts; thin: 95 % over seeds, cut at the edge)"
    )
    return figure


def _by_task(tasks: Sequence[Mapping[str, Any]], hues: Mapping[str, str]) -> Figure | None:
    """Of several tasks, a panel for each: held-out accuracy of every arm, its seeds as dots and their mean."""
    if not tasks:
        return None
    figure = Figure(figsize=(9, 0.38 * len(hues) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharex=True, sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for place, (arm, hue) in enumerate(hues.items()):
            values = [value for value in task["each"].get(arm, {}).values() if value is not None]
            if values:
                axes.plot(values, [-place] * len(values), "o", color=hue, markersize=4, alpha=0.8)
                axes.plot(float(np.mean(values)), -place, "D", color=hue, markersize=8)
        axes.set_title(f"{task['task']} ({task['prompts']:,} prompts)", color=INK, fontsize=10, loc="left")
        axes.set_xlim(-0.05, 1.05)
        axes.set_xticks([0, 0.5, 1])
    panels[0].set_yticks([-place for place in range(len(hues))], list(hues))
    panels[0].set_ylim(0.6 - len(hues), 0.6)
    figure.supxlabel("accuracy on the held-out prompts of each task", color=INK, fontsize=10)
    return figure


def _differences(pairs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Paired differences in held-out accuracy with their 95 % intervals over seeds and prompts."""
    pairs = [pair for pair in pairs if pair["low"] is not None]
    if not pairs:
        return None
    figure = Figure(figsize=(9, 0.38 * len(pairs) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for place, pair in enumerate(pairs):
        y = len(pairs) - place
        certain = pair["p_holm"] is not None and pair["p_holm"] < 0.05
        hue = "#d55e00" if certain else INK
        axes.plot([pair["low"], pair["high"]], [y, y], color=hue, linewidth=1.6)
        axes.plot(pair["mean"], y, "D", color=hue, markersize=6)
    axes.axvline(0, color=INK, linewidth=1)
    names = [f"{pair['a']} minus {pair['b']}" for pair in pairs]
    axes.set_yticks([len(pairs) - place for place in range(len(pairs))], names)
    axes.set_ylim(0.4, len(pairs) + 0.6)
    axes.set_xlabel("difference in held-out accuracy, 95 % interval (coloured: Holm's p below 0.05)")
    return figure


def _seeds(arms: ByArm, hues: Mapping[str, str]) -> Figure:
    """A panel for every arm with the curve of each seed and the ends of its stages."""
    columns = min(3, len(arms))
    lines = -(-len(arms) // columns)
    figure = Figure(figsize=(9, 2.4 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(arms) :]:
        axes.axis("off")
    for axes, (arm, seeds) in zip(grid.flat, arms.items(), strict=False):
        for shade, m in zip(np.linspace(1, 0.4, len(seeds)), seeds.values(), strict=True):
            axes.plot(*zip(*m["curve"], strict=True), color=hues[arm], alpha=float(shade), linewidth=1.3)
            for x, _ in m["marks"][:-1]:
                axes.axvline(x, color=hues[arm], linestyle="--", linewidth=0.8, alpha=float(shade))
        axes.set_title(f"{arm}, seed {', '.join(map(str, sorted(seeds)))}", color=INK, fontsize=10, loc="left")
    figure.supxlabel("rollouts", color=INK, fontsize=10)
    figure.supylabel("validation accuracy", color=INK, fontsize=10)
    return figure


def _other_curves(arms: ByArm, hues: Mapping[str, str]) -> Figure | None:
    """Entropy, completion length and training reward against rollouts, means over seeds."""
    wanted = {"entropy": "entropy, nats per token", "length": "completion length, tokens", "reward": "mean reward"}
    if not any(m[name] for seeds in arms.values() for m in seeds.values() for name in wanted):
        return None
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(wanted)), wanted.items(), strict=True):
        for arm, seeds in arms.items():
            curves = [m[name] for m in seeds.values() if len(m[name]) > 1]
            if curves:
                grid, heights = band(curves)
                axes.plot(grid, heights.mean(0), color=hues[arm], linewidth=1.4, label=arm)
        axes.set_title(label, color=INK, fontsize=10, loc="left")
        axes.set_xlabel("rollouts")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms))
    return figure
