"""What a person sees in a terminal: progress while a run works, and tables of what it learned."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from gradus.pipeline.common.observer import Observer

EVERY_SECONDS = 10.0
"""Longest silence of a run whose output is no terminal."""
EVERY_SHARE = 0.1
"""Share of a stage's steps after which such a run says something."""


@contextmanager
def watching(console: Console) -> Iterator[Observer]:
    """An observer that suits the console: live progress on a terminal, plain lines otherwise."""
    if not console.is_terminal:
        yield PlainObserver(console)
        return
    observer = LiveObserver(console)
    with observer.progress:
        yield observer


class Lines(Observer):
    """The lines that stay on the screen whichever way progress is shown."""

    def __init__(self, console: Console):
        self.console = console

    def say(self, text: str) -> None:
        """One line, as it is."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def prepared(self, accuracy: float, interval: tuple[float, float]) -> None:
        self.say(f"start: held-out accuracy {accuracy:.3f} ({interval_text(interval)})")

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        change = f"{number(result.get('accuracy_before'))} -> {number(result.get('accuracy_after'))}"
        interval = interval_text(result.get("interval"))
        seconds = duration(result.get("seconds"))
        ended = f"; ended by {rule}" if (rule := ended_by(result)) else ""
        self.say(f"{label}: held-out accuracy {change} ({interval}) in {result.get('steps')} steps, {seconds}{ended}")

    def note(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # a signal's answer may come in the middle of another line
            self.say(text)


class PlainObserver(Lines):
    """A line now and then, for logs and pipes."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._began = self._spoke = time.monotonic()
        self._spoke_at = self._done = 0

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        on = f", going on after {done}" if done else ""
        self.say(f"{label}: stage {index + 1} of {total}, {steps} steps{on}")
        self._began = self._spoke = time.monotonic()
        self._spoke_at = self._done = done

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if step < steps and now - self._spoke < EVERY_SECONDS and step - self._spoke_at < EVERY_SHARE * steps:
            return
        self._spoke, self._spoke_at = now, step
        left = (now - self._began) / (step - self._done) * (steps - step)
        facts = [f"{label}: step {step}/{steps}", *step_facts(metrics), f"{duration(left)} left" if left >= 1 else ""]
        self.say(", ".join(filter(None, facts)))


class LiveObserver(Lines):
    """One live line for the stage that is running."""

    def __init__(self, console: Console):
        super().__init__(console)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task = self.progress.add_task("preparing the data and the policy", total=None, facts="")

    def _show(self, description: str, total: int | None, done: int = 0) -> None:
        self.progress.remove_task(self._task)
        self._task = self.progress.add_task(description, total=total, completed=done, facts="")

    def prepared(self, accuracy: float, interval: tuple[float, float]) -> None:
        super().prepared(accuracy, interval)
        self._show("loading the first stage", None)

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        self._show(f"{index + 1}/{total} {label}", steps, done)

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self.progress.update(self._task, completed=step, facts="  ".join(step_facts(metrics)))
        if step == steps:
            self.progress.update(self._task, description=f"{label}: measuring held-out accuracy")

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        super().stage_finished(label, result)
        self._show("handing over", None)


def step_facts(metrics: Mapping[str, float]) -> list[str]:
    """Reward (or loss, where nothing is rewarded) and speed of one step."""
    reward, loss = metrics.get("reward/mean"), metrics.get("update/loss")
    speed = metrics.get("throughput/tokens_per_second")
    facts = [f"reward {reward:.3f}"] if reward is not None else [f"loss {loss:.3f}"] if loss is not None else []
    return [*facts, f"{speed:,.0f} tokens/s"] if speed is not None else facts


def number(value: Any) -> str:
    """An accuracy with three digits, empty where there is none."""
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else ""


def count(value: Any) -> str:
    """A whole number with separators, empty where there is none."""
    return f"{value:,}" if isinstance(value, int) else ""


def interval_text(interval: Any) -> str:
    """The two ends of an interval."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval and None not in interval else ""


def ended_by(result: Mapping[str, Any]) -> str:
    """The rule that ended a stage before its steps were done; empty where none did.

    >>> ended_by({"events": [{"rule": "guard", "action": "slower"}, {"rule": "plateau", "action": "end"}]})
    'plateau'
    """
    return next((event["rule"] for event in result.get("events", ()) if event["action"] != "slower"), "")


def duration(seconds: Any) -> str:
    """A span of time as a person says it.

    >>> [duration(s) for s in (0.4, 42, 200, 7300, None)]
    ['0.4 s', '42 s', '3 min 20 s', '2 h 1 min', '']
    """
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def shown_path(path: Any) -> str:
    """A path as short as it can be typed from here."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def runs_option(runs_dir: Path) -> str:
    """`` --runs DIR`` for a command that is to be typed from here, empty where the folder is the usual one."""
    return "" if runs_dir.absolute() == Path("runs").absolute() else f" --runs {shlex.quote(shown_path(runs_dir))}"


def size_text(size: int) -> str:
    """Bytes as a person says them.

    >>> [size_text(n) for n in (512, 1_500_000, 2_300_000_000)]
    ['512 bytes', '1.5 MB', '2.3 GB']
    """
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def print_table(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> None:
    """Aligned columns, those named in ``right`` to the right. No line is cut: a terminal wraps it, a pipe keeps it."""
    cells = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in (header, *cells):
        columns = zip(row, widths, header, strict=True)
        line = "  ".join(cell.rjust(w) if name in right else cell.ljust(w) for cell, w, name in columns).rstrip()
        style = "bold" if row is header else None
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
