"""Formatting that every output shares: lines, tables, numbers, durations, sizes, paths."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.shown import visible

CONTINUE_HINT = "to continue:"
"""How the line begins that says which command continues a run."""


class Screen(Console):
    """Rich's console; what is printed on it cannot control the terminal, wherever its text is from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    @property
    def encoding(self) -> str:
        """The encoding that bars and charts may use: ASCII where the locale says so, although Python writes UTF-8."""
        return "ascii" if ascii_locale() else super().encoding


def ascii_locale() -> bool:
    """Whether the environment asks for the locale C or POSIX by name.

    Where nothing is set, as in containers, terminals can do more. Python itself sets LC_CTYPE to C.UTF-8 for LANG=C.
    """
    own = os.environ.get("LC_CTYPE", "")
    named = [os.environ.get("LC_ALL"), "" if own == "C.UTF-8" else own, os.environ.get("LANG")]
    return next(filter(None, named), "") in ("C", "POSIX")


def console(stderr: bool = False) -> Console:
    """The console on standard output, or on standard error."""
    return Screen(stderr=stderr)


def say(text: str) -> None:
    """Print lines on standard output that cannot control the terminal."""
    print(visible(text), flush=True)


def print_json(value: Any, allow_nan: bool = True) -> None:
    """Print plain data for other programs; JSON escapes whatever is not ASCII."""
    print(json.dumps(value, indent=2, allow_nan=allow_nan))


def line_printer(console: Console) -> Callable[[str], None]:
    """A function that prints a line without wrapping or highlighting."""
    return functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)


class Lines(Observer):
    """Base class of the progress displays: the lines that stay on the screen."""

    def __init__(self, console: Console):
        self.console = console

    def say(self, text: str) -> None:
        """Print one line without wrapping or highlighting."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def prepared(self, accuracy: float | None, interval: tuple[float, float] | None) -> None:
        self.say(f"start: held-out accuracy {accuracy_text(accuracy, interval)}")

    def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
        after = accuracy_text(result.get("accuracy_after"), result.get("interval"))
        change = f"{number(result.get('accuracy_before')) or 'none'} -> {after}"
        seconds = duration(result.get("seconds"))
        ended = f"; ended by {rule}" if (rule := ended_by(result)) else ""
        self.say(f"{label}: held-out accuracy {change} in {result.get('steps')} steps, {seconds}{ended}")
        if tasks := result.get("tasks"):
            shares = ", ".join(f"{name} {number(each['accuracy']) or 'none'}" for name, each in tasks.items())
            self.say(f"{label}: on each task: {shares}")

    def note(self, text: str) -> None:
        self.say(text)


def number(value: Any) -> str:
    """An accuracy with three digits; empty if there is none."""
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else ""


def count(value: Any) -> str:
    """A whole number with separators; empty if there is none."""
    return f"{value:,}" if isinstance(value, int) else ""


def interval_text(interval: Any) -> str:
    """An interval such as ``0.512 to 0.598``; empty if there is none."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval and None not in interval else ""


def accuracy_text(accuracy: Any, interval: Any) -> str:
    """An accuracy with its interval, such as ``0.551 (0.512 to 0.598)``; ``none`` where nothing could be scored."""
    around = interval_text(interval)
    return (number(accuracy) or "none") + (f" ({around})" if around else "")


def ended_by(result: Mapping[str, Any]) -> str:
    """The rule that ended a stage before its last step; empty if none did.

    >>> ended_by({"events": [{"rule": "guard", "action": "slower"}, {"rule": "plateau", "action": "end"}]})
    'plateau'
    """
    return next((event["rule"] for event in result.get("events", ()) if event["action"] != "slower"), "")


def duration(seconds: Any) -> str:
    """A duration in units that are easy to read; empty if there is none.

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


def size_text(size: int) -> str:
    """A number of bytes in units that are easy to read.

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
    """Print aligned columns, those named in ``right`` to the right. Lines are never cut: a terminal wraps them."""
    cells = [[visible(" ".join(str(cell).split())) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in (header, *cells):
        columns = zip(row, widths, header, strict=True)
        line = "  ".join(cell.rjust(w) if name in right else cell.ljust(w) for cell, w, name in columns).rstrip()
        style = "bold" if row is header else None
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
