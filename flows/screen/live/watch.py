"""``gradus status --watch``: redraws one run, or all, until no process works on them; plain lines in logs and pipes."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from gradus.flows.screen.live.bars import Bars
from gradus.flows.screen.live.follow import FollowedLines, Follower
from gradus.flows.screen.status import Known, Status, all_runs, run_status
from gradus.flows.screen.tables import print_run, print_runs, state_text
from gradus.flows.screen.text import Lines, Screen
from gradus.flows.screen.view import only_a_view
from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.config import StageConfig
from gradus.pipeline.runs.run_folder import RunFolder

REFRESH_SECONDS = 2.0
RESIZE_SECONDS = 0.25
"""A terminal of another size is drawn again after this time."""
SETTLED_SECONDS = 5.0
"""A run on which no process works is watched for so long: it may just be being launched, or resumed."""
FAILED, STOPPED = 1, 3
"""Exit codes of runs that have failed, and that were stopped or killed."""
HINT = "Ctrl-C ends the watch, not the run"


class Watched:
    """What is watched: looked at again and again, and shown each time."""

    def __init__(self, console: Console):
        self.console, self.live = console, console.is_interactive
        self.bars = Bars(console)
        self.shown = self.bars if self.live else FollowedLines(console)
        self.say = Lines(console).say

    def look(self) -> bool:
        """Look once, and print what is new where nothing is redrawn; returns whether a process works on it.

        Raises: UserError where there is nothing to look at.
        """
        raise NotImplementedError

    def table(self, console: Console, room: int | None) -> None:
        """Print the status, in at most ``room`` lines if it is to be redrawn."""
        raise NotImplementedError

    def ended(self) -> bool:
        """Whether nothing will change any more, unless another command is given."""
        return False

    def finish(self) -> None:
        """Print the last status, unless lines have said it already."""
        raise NotImplementedError

    def code(self) -> int:
        """The exit code: 0 where all is well."""
        raise NotImplementedError


class WatchedRun(Watched):
    """One run."""

    def __init__(self, console: Console, opened: Callable[[], RunFolder]):
        super().__init__(console)
        self._open, self._follower = opened, Follower(self.shown)
        self.status, self._printed = Status(), Status()

    def look(self) -> bool:
        run = self._open()
        before, self.status = self.status, run_status(run)
        if not self.live and self.status["state"] != before.get("state"):
            if before and not self.ended():
                self.say(f"{self.status['name']}: {state_text(self.status)}")
            elif not before:
                self.table(self.console, None)
                self._printed = self.status
        self._follower.look(run, self.status)
        return self.status["state"] == "running"

    def table(self, console: Console, room: int | None) -> None:
        print_run(self.status | {"folders": []}, console)

    def finish(self) -> None:
        if self.status != self._printed:
            print_run(self.status, self.console)

    def ended(self) -> bool:
        return _code(self.status["state"]) in (0, FAILED)

    def code(self) -> int:
        return _code(self.status["state"])


class WatchedRuns(Watched):
    """All runs in a folder."""

    def __init__(self, console: Console, runs: Path, stage_configs: list[type[StageConfig]]):
        super().__init__(console)
        self._runs, self._configs, self._known = runs, stage_configs, Known()
        self.statuses: list[Status] = []
        self._printed: list[Status] = []
        self._states: dict[str, str] = {}
        self._followers: dict[str, Follower] = {}
        """Run -> its follower, of each on which a process has worked since the watch began."""

    def look(self) -> bool:
        first, self.statuses = not self._states, all_runs(self._runs, self._configs, self._known)
        if first and not self.live:
            self.table(self.console, None)
            self._printed = self.statuses
        for status in self.statuses:
            name, state = status["name"], status["state"]
            before, self._states[name] = self._states.get(name), state
            if state == "running":
                self._followers.setdefault(name, Follower(self.shown, f"{name} "))
            if name in self._followers:
                with contextlib.suppress(UserError):  # it has been removed a moment ago
                    self._followers[name].look(RunFolder(self._runs / name, self._configs), status)
            if before != state and not first and not self.live:
                self.say(f"{name}: {state_text(status)}")
        for name in self._states.keys() - {status["name"] for status in self.statuses}:
            self._states.pop(name), self._followers.pop(name, None)
            for label in [label for label in self.bars.labels if label.startswith(f"{name} ")]:
                self.bars.stage_finished(label, {})
            if not self.live:
                self.say(f"{name}: removed")
        return any(status["state"] == "running" for status in self.statuses)

    def table(self, console: Console, room: int | None) -> None:
        kept = len(self.statuses) if room is None else max(room - 2, 1)
        running = [status for status in self.statuses if status["state"] == "running"]
        others = [status for status in self.statuses if status["state"] != "running"]
        chosen = [*others[max(0, len(others) - max(kept - len(running), 0)) :], *running]
        shown = [status for status in self.statuses if any(status is each for each in chosen)]
        print_runs(shown, console, self._runs)
        if len(shown) < len(self.statuses):
            Lines(console).say(f"(and {len(self.statuses) - len(shown):,} earlier ones)")

    def finish(self) -> None:
        if self.statuses != self._printed:
            self.table(self.console, None)

    def code(self) -> int:
        ends = {_code(status["state"]) for status in self.statuses if status["name"] in self._followers}
        return next((code for code in (FAILED, STOPPED) if code in ends), 0)


def _code(state: str) -> int:
    return 0 if state == "done" else STOPPED if state in ("stopped", "running") else FAILED


def watch(watched: Watched) -> int:
    """Show what is watched until no process works on it, or an interrupt; returns the exit code.

    Raises: UserError where there is nothing to look at, or not any more.
    """
    interrupted = 0
    with only_a_view() if watched.live else contextlib.nullcontext():
        try:
            with interruption.handled():
                _show(watched)
        except Interrupted as error:
            interrupted = int(error.code or 0)
        watched.finish()
    return interrupted or watched.code()


def _show(watched: Watched) -> None:
    """Look, show and wait, again and again."""
    worked = time.monotonic()
    watched.look()
    display = Live(console=watched.console, screen=True, auto_refresh=False) if watched.live else None
    with display or contextlib.nullcontext():
        while True:
            error: Exception | None = None
            try:
                working = watched.look()
            except (UserError, OSError) as wrong:  # a file may be half way to another place
                working, error = False, wrong
            if working:
                worked = time.monotonic()
            elif time.monotonic() - worked >= SETTLED_SECONDS or (error is None and watched.ended()):
                break
            _wait(watched, display)
    if error is not None:
        raise error


def _wait(watched: Watched, display: Live | None) -> None:
    """Wait for the time of the next look; a terminal is drawn now, and again where its size changes."""
    until, size = time.monotonic() + REFRESH_SECONDS, None
    while (left := until - time.monotonic()) > 0:
        if display is not None and watched.console.size != size:
            size = watched.console.size
            display.update(page(watched), refresh=True)
        time.sleep(left if display is None else min(left, RESIZE_SECONDS))


def page(watched: Watched) -> RenderableType:
    """Bars and charts, and the status below them, as far as the terminal has room."""
    console = watched.console
    footer = Text(f"{time.strftime('%H:%M:%S')}  {HINT}", style="dim", no_wrap=True, overflow="crop")
    above = Group(
        *([watched.bars.progress.get_renderable(), Text("")] if watched.bars.labels else []), footer, Text("")
    )
    color = "standard" if console.color_system else None
    below = Screen(file=io.StringIO(), width=console.width, force_terminal=True, color_system=color)
    watched.table(below, console.size.height - len(console.render_lines(above, pad=False)))
    text = below.file.getvalue()  # type: ignore[attr-defined]
    return Group(above, Text.from_ansi(text, no_wrap=True, overflow="ellipsis"))
