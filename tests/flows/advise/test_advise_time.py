"""What a probe costs is told, its time is bounded, and an interrupt keeps what was sampled."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console
from tests.flows.advise.test_advise import Gradus, gradus, place

from gradus.flows.advise import advise as work
from gradus.flows.advise import progress
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.estimates.pace import LEAST_PROMPTS, Pace, Plan, timed_prompt
from gradus.stages import discover

__all__ = ["gradus", "place"]


def probed(seconds: float) -> work.AdviceReport:
    stages = discover()
    loaded = load_config("tiny.yaml", [], [stage.config for stage in stages.values()])
    return work.advise(loaded, stages, work.find_probed_policy(loaded, None, None, Path("runs")), 12, 8, seconds)


# --- how many prompts -------------------------------------------------------------------------------------------------


def test_without_time_the_fewest_prompts_are_sampled_and_they_are_the_same(gradus: Gradus) -> None:
    """One by one, too: what is drawn for a prompt depends neither on its chunk nor on the time."""
    whole, short = probed(math.inf).probe, probed(0).probe
    assert (whole.planned, whole.ended, len(whole.groups)) == (12, None, 12)
    assert (short.planned, short.ended, len(short.groups)) == (12, "seconds", LEAST_PROMPTS)
    assert short.groups == whole.groups[:LEAST_PROMPTS]
    assert short.speed.sample_tokens_per_second > 0 and short.speed.update_seconds > 0


@pytest.mark.parametrize(
    ("prompt_seconds", "seconds", "done", "count"),
    [
        (1e-6, math.inf, 0, 8),  # a batch where that is quick
        (1e-6, math.inf, 8, 8),
        (1e-6, math.inf, 16, 4),  # what is left
        (1e-6, math.inf, 20, 0),
        (10.0, 160_000.0, 0, 8),
        (10_000.0, 160_000.0, 0, 2),  # an eighth of the time
        (10_000.0, 160_000.0, 7, 1),  # not across the border of a batch
        (1e9, 160_000.0, 0, 1),  # at least one, until there are enough
        (1e9, 160_000.0, 7, 1),
        (1e9, 160_000.0, 8, 0),
        (1e9, 0.0, 7, 1),
        (1e-6, 0.0, 8, 0),
    ],
)
def test_chunks(prompt_seconds: float, seconds: float, done: int, count: int) -> None:
    assert Pace(Plan(20, 4, prompt_seconds, seconds), 8, time.perf_counter()).next(done) == count


def test_the_pace_follows_what_was_measured() -> None:
    pace = Pace(Plan(100, 4, 1e9, 80_000.0), 8, time.perf_counter())
    assert pace.next(0) == 1
    pace.sampled(1, 5_000.0)
    assert pace.next(1) == 2
    pace.began -= 78_000  # so much time has passed
    assert pace.next(8) == 0 and pace.next(3) == 2


@pytest.mark.parametrize("most", [1, 2, 12])
def test_the_cost_of_a_prompt_is_measured_for_any_length(gradus: Gradus, most: int) -> None:
    from tests.conftest import tiny_policy

    from gradus.pipeline.config import SamplingConfig
    from gradus.pipeline.rollouts.builtin import DrawKey
    from gradus.pipeline.types import Prompt

    batch = [Prompt(str(n), f"{n} + 1", "1") for n in range(3)]
    seconds = timed_prompt(tiny_policy(), batch, 4, SamplingConfig(max_tokens=most), DrawKey(0, "probe", 0))
    assert 0 < seconds < math.inf


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_cost_comes_first_and_what_is_missing_is_said(gradus: Gradus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(Pace, "next", lambda pace, done: min(2, 10 - done))  # the time is over after ten
    said = gradus.advise().stdout.splitlines()
    assert said[0].startswith("sampling 12 prompts x 8 completions: ") and said[0].endswith("at most")
    assert [line.split(" prompts, ")[0] for line in said[1:11]] == [f"{n} of 12" for n in range(1, 11)]
    assert "10 of 12 training prompts x 8 completions" in " ".join(said)
    assert "the time of --seconds was over, so the intervals are wider" in " ".join(" ".join(said).split())
    assert max(map(len, said)) <= 80


def test_json_stays_alone_on_standard_output(gradus: Gradus) -> None:
    result = gradus.advise("--json")
    found = json.loads(result.stdout)
    assert (found["planned"], found["ended"]) == (12, None)
    assert result.stderr.startswith("sampling 12 prompts x 8 completions")


def test_on_a_terminal_there_is_a_live_line() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.watching(screen) as watch:
        assert isinstance(watch, progress.LiveWatch)
        (task,) = watch.progress.tasks
        assert task.total is None  # loading
        watch.planned(Plan(12, 8, 1.0, 120))
        watch.group_sampled()
        assert (task.completed, task.total, task.description) == (1, 12, "probing") and "left" in task.fields["left"]
    assert "sampling 12 prompts x 8 completions: 12 s at most" in screen.file.getvalue()  # type: ignore[attr-defined]


# --- interrupts -------------------------------------------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, number: int = signal.SIGINT, times: int = 1) -> None:
    """Have this process receive a signal when so many groups have been sampled."""
    heard = progress.PlainWatch.group_sampled

    def group_sampled(watch: progress.PlainWatch) -> None:
        heard(watch)
        for _ in range(times if watch.done == after else 0):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(progress.PlainWatch, "group_sampled", group_sampled)


@pytest.mark.parametrize(
    ("after", "number", "sampled"), [(7, signal.SIGINT, 8), (9, signal.SIGTERM, 10), (12, signal.SIGINT, 12)]
)
def test_an_interrupt_reports_what_was_sampled(
    gradus: Gradus, monkeypatch: pytest.MonkeyPatch, after: int, number: int, sampled: int
) -> None:
    interrupt(monkeypatch, after, number)
    result = gradus.advise("--json", code=128 + number)
    found = json.loads(result.stdout)
    assert found["diagnosis"]["prompts"] == sampled and found["advice"]
    assert found["ended"] == ("interrupt" if sampled < 12 else None)
    assert "then reporting what was sampled" in result.stderr


def test_an_interrupt_before_there_is_enough_ends_at_once(gradus: Gradus, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 3)
    said = gradus.advise(code=130).stdout
    assert "3 prompts were sampled; it takes 8 to conclude anything" in said and "Advice" not in said


def test_the_second_interrupt_ends_at_once(gradus: Gradus, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 9, times=2)
    said = gradus.advise(code=130).stdout
    assert "the same signal again stops at once" in " ".join(said.split()) and "Advice" not in said
