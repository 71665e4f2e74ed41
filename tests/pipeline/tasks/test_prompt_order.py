"""History resampling: which prompts an epoch visits."""

from __future__ import annotations

from scored_batches import scored, stream_of

from gradus.pipeline.tasks.prompt_order import HistoryResampling


def test_history_resampling_leaves_out_what_is_solved() -> None:
    schedule = HistoryResampling(stream_of(6))
    first = schedule.take(6)
    assert sorted(p.id for p in first) == [f"p{n}" for n in range(6)]
    outcome = {"p0": [True, True], "p1": [True, False]}
    schedule.met(scored(first, [outcome.get(p.id, [False, False]) for p in first]))
    assert schedule.metrics == {"prompts/epoch": 0.0, "prompts/left": 1.0}
    second = schedule.take(5)
    assert sorted(p.id for p in second) == ["p1", "p2", "p3", "p4", "p5"], "mixed and all-wrong stay"
    schedule.met(scored(second, [[True, True] for _ in second]))
    third = schedule.take(6)
    assert sorted(p.id for p in third) == [f"p{n}" for n in range(6)], "all are solved: all come back"


def test_a_batch_goes_over_the_end_of_an_epoch() -> None:
    schedule = HistoryResampling(stream_of(5))
    first = schedule.take(3)
    schedule.met(scored(first, [[True, True] for _ in first]))
    assert {p.id for p in first} & {p.id for p in schedule.take(2)} == set()
    following = {p.id for p in schedule.take(2)}
    assert not following & {p.id for p in first} and len(following) == 2


def test_what_could_not_be_scored_is_not_solved() -> None:
    schedule = HistoryResampling(stream_of(2))
    taken = schedule.take(2)
    schedule.met(scored(taken, [[False, False], [True, False]], [[False, False], [True, False]]))
    assert {p.id for p in schedule.take(1)} == {taken[0].id}, "of one nothing is known, the other's only score is right"


def test_the_history_is_saved_and_restored() -> None:
    one = HistoryResampling(stream_of(7))
    for size in (3, 3, 4):
        taken = one.take(size)
        one.met(scored(taken, [[n % 2 == 0] * 2 for n in range(size)]))
    two = HistoryResampling(stream_of(7))
    two.restore(one.state())
    assert [p.id for p in one.take(9)] == [p.id for p in two.take(9)] and one.state() == two.state()
