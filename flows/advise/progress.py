"""The progress of a probe in the terminal: what it will cost, then a live line, or plain lines in logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from gradus.flows.advise.screen import print_text
from gradus.flows.screen.progress import LINE_INTERVAL_SECONDS
from gradus.flows.screen.text import duration
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.estimates.pace import LEAST_PROMPTS, Plan, Watch

STOPPING = "finishing these prompts, then reporting what was sampled; the same signal again stops at once"
"""What an interrupt is answered with where there is enough to report."""


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """A watch that suits the console: a live line on a terminal, plain lines otherwise.

    An interrupt that leaves too little to report is explained.
    """
    watch = LiveWatch(console) if console.is_terminal else PlainWatch(console)
    try:
        with watch.progress if isinstance(watch, LiveWatch) else nullcontext():
            yield watch
    except Interrupted:
        if watch.done < LEAST_PROMPTS:
            print_text(console, f"{watch.done} prompts were sampled; it takes {LEAST_PROMPTS} to conclude anything")
        raise


def cost_text(plan: Plan) -> str:
    """What a probe will cost, in one line.

    >>> cost_text(Plan(64, 8, 1.5, 120))
    'sampling 64 prompts x 8 completions: 1 min 36 s at most'
    >>> cost_text(Plan(64, 8, 15, 120))
    'sampling 64 prompts x 8 completions: 16 min 0 s at most; --seconds 120 is enough for about 8'
    >>> cost_text(Plan(64, 8, 30, 120))
    'sampling 64 prompts x 8 completions: 32 min 0 s at most; the fewest, 8, take 4 min 0 s, longer than --seconds 120'
    """
    text = f"sampling {plan.prompts} prompts x {plan.samples} completions: {_time(plan, plan.prompts)} at most"
    if plan.prompts * plan.prompt_seconds <= plan.seconds:
        return text
    if plan.fitting * plan.prompt_seconds <= plan.seconds:
        return f"{text}; --seconds {plan.seconds:g} is enough for about {plan.fitting}"
    least = f"the fewest, {plan.fitting}, take {_time(plan, plan.fitting)}"
    return f"{text}; {least}, longer than --seconds {plan.seconds:g}"


def _time(plan: Plan, prompts: int) -> str:
    return duration(max(0.1, prompts * plan.prompt_seconds))


class PlainWatch(Watch):
    """A line at intervals, for logs and pipes."""

    def __init__(self, console: Console):
        self.console, self.done = console, 0

    def planned(self, plan: Plan) -> None:
        self.plan, self.began = plan, time.monotonic()
        self.printed = self.began
        print_text(self.console, cost_text(plan))

    def group_sampled(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.printed >= LINE_INTERVAL_SECONDS and self.done < self.plan.prompts:
            self.printed = now
            print_text(self.console, f"{self.done} of {self.plan.prompts} prompts, {self.left()}")

    def left(self) -> str:
        """The time that remains: for all prompts, or until the time of the probe is over."""
        taken = time.monotonic() - self.began
        left = min(taken / self.done * (self.plan.prompts - self.done), self.plan.seconds - taken)
        return f"{duration(left)} left" if left >= 0 else "going on to the fewest that are needed"


class LiveWatch(PlainWatch):
    """One live line about the probe."""

    def __init__(self, console: Console):
        super().__init__(console)
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()
        left = TextColumn("{task.fields[left]}", markup=False)
        self.progress = Progress(*columns, left, console=console, transient=True)
        self._task = self.progress.add_task("loading the data and the policy", total=None, left="")

    def planned(self, plan: Plan) -> None:
        super().planned(plan)
        self.progress.update(self._task, description="probing", total=plan.prompts, left="prompts")

    def group_sampled(self) -> None:
        self.done += 1
        self.progress.update(self._task, completed=self.done, left=f"prompts, {self.left()}")
