"""The order in which prompts come, epoch after epoch, also where some are left out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from scored_batches import scored, stream_of

from gradus.pipeline.tasks.prompt_order import HistoryResampling, PromptStream, Schedule
from gradus.pipeline.tasks.prompts.memory import PromptMemory
from gradus.pipeline.types import Prompt

COUNT = 12


def resampling(stream: PromptStream) -> HistoryResampling:
    return HistoryResampling(stream, PromptMemory(Path("unwritten"), writes=False))


def meet(schedule: HistoryResampling, taken: list[Prompt], correct: list[list[bool]]) -> None:
    rollouts = scored(taken, correct)
    schedule.memory.add(rollouts, 1)
    schedule.met(rollouts)


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def epoch_of(stream: PromptStream, epoch: int) -> list[str]:
    return [f"p{row}" for row in stream.permutation(epoch).tolist()]


def test_each_epoch_is_another_permutation_of_all_prompts() -> None:
    stream = stream_of(COUNT)
    epochs = [epoch_of(stream, epoch) for epoch in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == COUNT for epoch in epochs)
    assert all(one != two for one, two in pairwise(epochs))
    assert epochs[0] != [f"p{n}" for n in range(COUNT)], "not the order of the rows"
    assert epoch_of(PromptStream(stream.dataset, seed=1, stage_label="x"), 0) != epochs[0]
    assert epoch_of(PromptStream(stream.dataset, seed=0, stage_label="y"), 0) != epochs[0]
    assert epoch_of(stream, 0) == epochs[0], "it is the same whenever it is asked for"


@pytest.mark.parametrize("kind", [Schedule, resampling])
def test_prompts_come_in_the_order_of_their_epoch_and_go_on_across_its_end(
    kind: Callable[[PromptStream], Schedule],
) -> None:
    """Batches of 5 from epochs of 12; nothing is solved. Places 0 to 4, 5 to 9, 10 to 2 of the next epoch, ..."""
    stream = stream_of(COUNT)
    wanted = epoch_of(stream, 0) + epoch_of(stream, 1) + epoch_of(stream, 2)
    schedule, found = kind(stream_of(COUNT)), list[str]()
    for _ in range(7):
        found += ids(schedule.take(5))
    assert found == wanted[:35]


def test_what_is_left_comes_in_the_order_of_the_new_epoch() -> None:
    """Two prompts would be in the right order by chance every second time; here nine are left of twelve."""
    stream, schedule = stream_of(COUNT), resampling(stream_of(COUNT))
    first = schedule.take(COUNT)
    solved = {"p1", "p4", "p9"}
    meet(schedule, first, [[prompt.id in solved] * 2 for prompt in first])
    assert ids(schedule.take(9)) == [each for each in epoch_of(stream, 1) if each not in solved]
    assert ids(schedule.take(9)) == [each for each in epoch_of(stream, 2) if each not in solved]


def test_when_all_are_solved_all_come_back_in_the_order_of_the_new_epoch() -> None:
    stream, schedule = stream_of(COUNT), resampling(stream_of(COUNT))
    first = schedule.take(COUNT)
    meet(schedule, first, [[True, True] for _ in first])
    assert ids(schedule.take(COUNT)) == epoch_of(stream, 1)
    assert schedule.metrics == {"prompts/epoch": 1.0, "prompts/left": 0.0}


def test_rows_are_read_in_the_order_that_is_asked_for() -> None:
    stream = stream_of(COUNT)
    assert ids(stream.rows([7, 0, 11, 0])) == ["p7", "p0", "p11", "p0"]
    assert [(p.question, p.answer) for p in stream.rows([3, 1])] == [("3 + 3 =", "6"), ("1 + 1 =", "2")]
