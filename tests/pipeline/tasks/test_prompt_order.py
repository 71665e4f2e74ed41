"""History resampling: which prompts an epoch visits."""

from __future__ import annotations

from pathlib import Path

from scored_batches import scored, stream_of

from gradus.pipeline.tasks.prompt_order import HistoryResampling
from gradus.pipeline.tasks.prompts.memory import PromptMemory
from gradus.pipeline.types import Prompt


def schedule_of(count: int) -> HistoryResampling:
    return HistoryResampling(stream_of(count), PromptMemory(Path("unwritten"), writes=False))


def meet(schedule: HistoryResampling, taken: list[Prompt], *outcome: list[list[bool]]) -> None:
    """As a batch does: its groups are remembered, then met."""
    rollouts = scored(taken, *outcome)
    schedule.memory.add(rollouts, schedule.memory.count + 1)
    schedule.met(rollouts)


def test_history_resampling_leaves_out_what_is_solved() -> None:
    schedule = schedule_of(6)
    first = schedule.take(6)
    assert sorted(p.id for p in first) == [f"p{n}" for n in range(6)]
    outcome = {"p0": [True, True], "p1": [True, False]}
    meet(schedule, first, [outcome.get(p.id, [False, False]) for p in first])
    assert schedule.metrics == {"prompts/epoch": 0.0, "prompts/left": 1.0}
    second = schedule.take(5)
    assert sorted(p.id for p in second) == ["p1", "p2", "p3", "p4", "p5"], "mixed and all-wrong stay"
    meet(schedule, second, [[True, True] for _ in second])
    third = schedule.take(6)
    assert sorted(p.id for p in third) == [f"p{n}" for n in range(6)], "all are solved: all come back"


def test_a_batch_goes_over_the_end_of_an_epoch() -> None:
    schedule = schedule_of(5)
    first = schedule.take(3)
    meet(schedule, first, [[True, True] for _ in first])
    assert {p.id for p in first} & {p.id for p in schedule.take(2)} == set()
    following = {p.id for p in schedule.take(2)}
    assert not following & {p.id for p in first} and len(following) == 2


def test_what_could_not_be_scored_is_not_solved() -> None:
    schedule = schedule_of(2)
    taken = schedule.take(2)
    meet(schedule, taken, [[False, False], [True, False]], [[False, False], [True, False]])
    assert {p.id for p in schedule.take(1)} == {taken[0].id}, "of one nothing is known, the other's only score is right"


def test_the_history_is_saved_and_restored() -> None:
    one = schedule_of(7)
    for size in (3, 3, 4):
        taken = one.take(size)
        meet(one, taken, [[n % 2 == 0] * 2 for n in range(size)])
    two = HistoryResampling(stream_of(7), one.memory)
    two.restore(one.state())
    assert [p.id for p in one.take(9)] == [p.id for p in two.take(9)] and one.state() == two.state()


def test_the_lists_of_an_earlier_version_are_taken_over() -> None:
    """Its checkpoints had the ids that were solved; these count on in the epochs that follow."""
    schedule = schedule_of(6)
    schedule.restore({"place": 2, "epoch": 1, "left": ["p0"], "solved": ["p3"]})
    assert schedule.metrics == {"prompts/epoch": 1.0, "prompts/left": 2.0}
    again = schedule_of(6)
    again.restore(schedule.state())
    rest = schedule.take(3)
    meet(schedule, rest, [[True, True] for _ in rest])
    assert "p0" not in {p.id for p in rest} and [p.id for p in again.take(3)] == [p.id for p in rest]
    following = {p.id for p in schedule.take(1)}
    assert schedule.epoch == 2 and not following & {"p0", "p3", *(p.id for p in rest)}
