"""A bar for each stage that runs, and charts of its last steps below it where the terminal has room for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, Task, TaskID, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from gradus.flows.screen.live.chart import Curve
from gradus.pipeline.common.observer import Observer

REFRESHES_PER_SECOND = 5
"""Drawing takes the interpreter away from training, some 0.2 % of its time at this rate."""
PACE_SECONDS = 3600.0
"""The time left goes by the steps of the last hour: one step of a large model takes minutes."""
CUT_SHARE = 0.9
"""The share of a step's completions from which on their being cut is shown."""
BAR_WIDTHS = (24, 12, 6)
"""Columns of a bar: the first that leaves room for what is beside it; otherwise there is none."""
CHART_LINES = 3
"""Height of the chart of one stage; those of stages side by side have one line each."""
CHART_WIDTH, CHART_HEIGHT = 60, 12
"""The smallest terminal with charts, in columns and lines."""
CURVES = {"reward/mean": "reward", "update/loss": "loss", "validation/accuracy": "accuracy"}
"""Metric -> the name of its chart."""


def step_facts(metrics: Mapping[str, float]) -> list[str]:
    """Reward (or loss, if the stage has no reward) and speed of one step, and whether most completions were cut."""
    reward, loss = metrics.get("reward/mean"), metrics.get("update/loss")
    speed = metrics.get("throughput/tokens_per_second")
    facts = [f"reward {reward:.3f}"] if reward is not None else [f"loss {loss:.3f}"] if loss is not None else []
    cut = metrics.get("completion/truncated_share", 0.0)
    facts += [f"{cut:.0%} cut at max_tokens"] if cut >= CUT_SHARE else []
    return [*facts, f"{speed:,.0f} tokens/s"] if speed is not None else facts


class Bars(Observer):
    """Bars and charts, drawn by ``progress``: live while that is started, or once where it is printed."""

    def __init__(self, console: Console):
        self.console = console
        self._tasks: dict[str, TaskID] = {}
        self._curves: dict[str, dict[str, Curve]] = {}
        self._charts: dict[str, tuple[Any, list[str]]] = {}
        """Label -> what its charts were drawn from, and their lines."""
        pace = {"refresh_per_second": REFRESHES_PER_SECOND, "speed_estimate_period": PACE_SECONDS}
        self.progress = _Drawn(self, transient=True, **pace)

    def show(self, label: str, description: str, total: int | None, done: int = 0) -> None:
        """Show a bar in place of the one with this label, and of the one that says what happens between stages."""
        for old in {label, ""} & self._tasks.keys():
            self.progress.remove_task(self._tasks.pop(old))
        self._tasks[label] = self.progress.add_task(description, total=total, completed=done, label=label, facts=[])

    def seen(self, label: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a step, or an evaluation after it, to the charts."""
        curves = self._curves.get(label, {})
        shown = {name: metrics[name] for name in CURVES if name in metrics}
        if "reward/mean" in shown:
            shown.pop("update/loss", None)
        for name in shown.keys() - curves.keys():
            # In place of a dictionary that is being drawn.
            self._curves[label] = curves = {**curves, name: Curve(CURVES[name])}
        for name, value in shown.items():
            curves[name].add(step, value)

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        self.show(label, f"{index + 1}/{total} {label}", steps or None, done)

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self.seen(label, step, metrics)
        task = self._tasks[label]
        self.progress.update(task, completed=step, facts=step_facts(metrics))
        if step == steps:
            self.progress.update(task, description=f"{label}: measuring held-out accuracy")

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        if (task := self._tasks.pop(label, None)) is not None:
            self.progress.remove_task(task)
        for kept in (self._curves, self._charts):
            kept.pop(label, None)

    @property
    def labels(self) -> set[str]:
        """The stages that have a bar."""
        return self._tasks.keys() - {""}

    def charts(self, label: str, lines: int) -> list[str]:
        """The lines of a stage's charts; the first one has so many lines of bars, and others one."""
        width, curves = self.console.width - 3, self._curves.get(label, {})
        drawn_from = (width, lines, *(curve.points for curve in curves.values()))
        known = self._charts.get(label)  # once: a stage may end, in another thread, while it is being drawn
        if known is None or known[0] != drawn_from:
            ascii_only, found = self.console.options.ascii_only, list[str]()
            for curve in sorted(curves.values(), key=lambda curve: curve.name == CURVES["validation/accuracy"]):
                found += curve.lines(width, 1 if found else lines, ascii_only)
            known = self._charts[label] = (drawn_from, found)
        return known[1]


class _Drawn(Progress):
    """The bars, each in one line that fits into the terminal, with its charts."""

    def __init__(self, bars: Bars, **options: Any):
        self._bars, self._left = bars, TimeRemainingColumn(compact=True)
        self._spinner = Spinner("line" if bars.console.options.ascii_only else "dots", style="progress.spinner")
        super().__init__(console=bars.console, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        tasks, size = self.tasks, self._bars.console.size
        several = sum(bool(task.fields["label"]) for task in tasks) > 1
        for task in tasks:
            yield self._line(task, size.width, max(len(each.description) for each in tasks))
            if size.width >= CHART_WIDTH and size.height >= CHART_HEIGHT:
                for line in self._bars.charts(task.fields["label"], 1 if several else CHART_LINES):
                    yield Text(f"  {line}", style="cyan", no_wrap=True, overflow="crop")

    def _line(self, task: Task, width: int, longest: int) -> RenderableType:
        """Spinner, what is done, bar, steps, facts, time left; facts are left out where they do not fit."""
        count = "" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}"
        left, facts = self._left.render(task), list(task.fields["facts"])

        def taken(bar: int) -> int:
            texts = [" ", " " * longest, count, "  ".join(facts), left.plain]
            return sum(len(text) + 1 for text in texts if text) + bar

        while facts and taken(BAR_WIDTHS[-1]) > width:
            facts.pop()
        bar = next((each for each in BAR_WIDTHS if taken(each) <= width), 0)
        line = Table.grid(*(Column(no_wrap=True) for _ in range(6)), padding=(0, 1))
        filled = ProgressBar(task.total, task.completed, width=bar, animation_time=task.get_time()) if bar else ""
        spin = Text(" ") if task.finished else self._spinner.render(task.get_time())
        line.add_row(spin, task.description.ljust(longest), filled, count, Text("  ".join(facts)), left)
        return line
