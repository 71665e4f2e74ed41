"""Which prompts a stage trains on by what earlier stages found: a range of pass rates, or a moving curriculum."""

from __future__ import annotations

import json
from typing import Any

import datasets
import numpy as np
import pytest
from scored_batches import stream_of
from small_pipeline import pipeline

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.prompts import CurriculumConfig
from gradus.pipeline.tasks.prompt_order import PromptStream, Schedule
from gradus.pipeline.tasks.prompts.curriculum import Curriculum
from gradus.pipeline.tasks.prompts.memory import dtype, key_of
from gradus.pipeline.tasks.prompts.ordering import ordered
from gradus.pipeline.tasks.prompts.rates import keys_of, rates
from gradus.pipeline.tasks.prompts.selection import selected

COUNT = 8


def records(**rates: int) -> Any:
    """Records of prompts with so many of 4 completions correct."""
    rows = np.zeros(len(rates), dtype())
    for row, (name, correct) in zip(rows, rates.items(), strict=True):
        row["id"], row["correct"], row["valid"] = key_of(name), correct, 4
    return rows


EARLIER = {"newer": records(p0=0, p1=2, p2=4), "older": records(p0=2, p3=1, p4=4)}


def stage_of(**options: Any) -> Any:
    return pipeline([{"stage": "dapo", "name": "older"}, {"stage": "dapo", "name": "newer"},
                     {"stage": "dapo", "name": "x", **options}]).stages[2]  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "left"),
    [
        ({"pass_rate": [0, 0.9]}, ["p0", "p1", "p3", "p5", "p6", "p7"]),
        ({"pass_rate": [0.1, 0.9], "unseen": False}, ["p1", "p3"]),
        ({"pass_rate": [0.1, 0.9], "unseen": False, "from": "older"}, ["p0", "p3"]),
        ({"pass_rate": [1, 1], "unseen": False}, ["p2", "p4"]),
    ],
    ids=str,
)
def test_prompts_within_the_range_of_pass_rates_are_left(prompts: dict, left: list[str]) -> None:
    found = selected(stream_of(COUNT).dataset, stage_of(prompts=prompts), 1, EARLIER)
    assert list(found.dataset["id"]) == left and found.rates is None
    assert found.told[0].startswith(f"x: {len(left)} of 8 prompts are left, without")


def test_of_a_stage_with_a_profile_its_training_goes_first_and_the_rest_is_by_its_profile() -> None:
    visits = records(p1=4, p9=4)
    visits["step"] = 3
    memories = [np.concatenate([records(p0=0, p1=2, p9=1), visits]), records(p0=4, p2=3)]
    found = rates(keys_of(["p0", "p1", "p2", "p3"]), memories)
    assert found[:3].tolist() == [0, 1, 0.75] and np.isnan(found[3])


def test_what_is_left_out_and_why_is_told_and_too_few_are_an_error() -> None:
    asked = stage_of(prompts={"pass_rate": [0.3, 0.9], "unseen": False})
    found = selected(stream_of(COUNT).dataset, asked, 1, EARLIER)
    assert found.told == [
        "x: 1 of 8 prompts are left, without 2 below 0.3, 2 above 0.9, 3 never scored (prompts.pass_rate)"
    ]
    with pytest.raises(UserError) as caught:
        selected(stream_of(COUNT).dataset, asked, 2, EARLIER)
    assert caught.value.where == "stages.x.prompts.pass_rate" and "1 of 8 prompts are left" in str(caught.value.got)
    with pytest.raises(UserError, match="too few prompts left"):
        selected(stream_of(COUNT).dataset, stage_of(curriculum={"pass_rate": "gaussian"}), 6, EARLIER)


def test_without_a_choice_the_data_are_used_as_they_are() -> None:
    dataset = stream_of(COUNT).dataset
    assert selected(dataset, stage_of(), 99, {}).dataset is dataset


def test_the_rates_of_a_curriculum_are_those_of_its_rows() -> None:
    asked = stage_of(prompts={"pass_rate": [0, 0.9]}, curriculum={"pass_rate": "gaussian"})
    found = selected(stream_of(COUNT).dataset, asked, 1, EARLIER)
    assert list(found.dataset["id"]) == ["p0", "p1", "p3"] and found.rates.tolist() == [0, 0.5, 0.25]
    taken = stage_of(curriculum={"pass_rate": "gaussian", "unseen": 0.3})
    assert selected(stream_of(COUNT).dataset, taken, 1, EARLIER).rates.tolist() == [0, 0.5, 1, 0.25, 1, 0.3, 0.3, 0.3]


def curriculum(steps: int = 11, count: int = 200, **options: Any) -> Curriculum:
    chosen = CurriculumConfig(pass_rate="gaussian", **options)
    return Curriculum(stream_of(count), np.linspace(0, 1, count), chosen, steps)


def taken(schedule: Curriculum, step: int, *sizes: int) -> list[int]:
    schedule.begin(step)
    return [int(prompt.id[1:]) for size in sizes for prompt in schedule.take(size)]


def test_a_step_draws_what_its_mean_says_without_repetition_and_needs_no_state() -> None:
    schedule, other = curriculum(width=0.1), curriculum(width=0.1)
    for step, mean in ((1, 0.8), (6, 0.5), (11, 0.2)):
        drawn = np.array(taken(schedule, step, 40))
        assert len(set(drawn.tolist())) == 40 and abs(drawn.mean() / 199 - mean) < 0.06
        assert drawn.tolist() == taken(other, step, 15, 25), "refills go on in the draw of the step"
    assert taken(schedule, 3, 20) == taken(curriculum(width=0.1), 3, 20) != taken(schedule, 4, 20)
    assert len(set(taken(schedule, 2, 150, 100))) == 200, "once all are drawn they come again"


def test_the_shares_of_a_draw_are_the_gaussian_s() -> None:
    """Of the first prompts of many steps, against the normalised weights exp(-(p - m)^2 / (2 width^2))."""
    schedule = curriculum(steps=1, count=5, mean=[0.5, 0.5], width=0.3)
    first = np.array([schedule.order(step)[0] for step in range(4000)])
    weights = np.exp(-((np.linspace(0, 1, 5) - 0.5) ** 2) / (2 * 0.3**2))
    shares = np.bincount(first, minlength=5) / len(first)
    assert np.abs(shares - weights / weights.sum()).max() < 0.03


def in_order(rows: list[dict], take: int, **order: Any) -> list[str]:
    """The ids of the first prompts of these rows, by their number."""
    base = {"question": "q", "answer": "1", "metadata": "{}", "demonstration": None}
    dataset = datasets.Dataset.from_list([{"id": f"p{n}", **base, **row} for n, row in enumerate(rows)])
    stream = ordered(PromptStream(dataset, 0, "x"), stage_of(order=order), EARLIER)
    return [prompt.id for prompt in Schedule(stream).take(take)]


def test_prompts_come_in_the_order_that_is_asked_for_epoch_after_epoch() -> None:
    texts = [{"question": "q" * length} for length in (3, 1, 2)]
    assert in_order(texts, 6, by="length") == ["p1", "p2", "p0"] * 2
    assert in_order(texts, 6, by="length", descending=True) == ["p0", "p2", "p1"] * 2
    levels = [{"metadata": json.dumps({"level": level})} for level in (2, 10, 1)]
    assert in_order(levels, 3, by="level") == ["p2", "p0", "p1"], "by number, not by its digits"
    named = [{"metadata": json.dumps({"level": f"Level {level}"})} for level in (2, 3, 1)]
    assert in_order(named, 3, by="level") == ["p2", "p0", "p1"]
    five = [{} for _ in range(6)]
    assert in_order(five, 4, by="pass_rate", descending=True)[2:] == ["p1", "p3"], "unseen ones come last"
    assert in_order(five, 5, by="pass_rate")[:3] == ["p0", "p3", "p1"]
    assert in_order(five, 2, **{"by": "pass_rate", "from": "older"}) == ["p3", "p0"]
    ties = in_order([{}] * 40, 80, by="length")
    assert set(ties[:40]) == set(ties[40:]) and ties[:40] != ties[40:], "equal ones are shuffled"


@pytest.mark.parametrize("rows", [[{}, {}], [{"metadata": '{"level": 1}'}, {"metadata": '{"level": "x"}'}]])
def test_a_column_that_cannot_be_ordered_by_is_refused(rows: list[dict]) -> None:
    with pytest.raises(UserError) as caught:
        in_order(rows, 1, by="level")
    assert caught.value.where == "stages.x.order.by" and "length, pass_rate" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("index", "options", "said"),
    [
        (0, {"prompts": {"pass_rate": [0, 0.9]}}, r"stages.older.prompts goes by pass rates.*the first"),
        (
            1,
            {"prompts": {"pass_rate": [0, 0.9], "from": "x"}},
            r"stages.newer.prompts.from: x comes later.*one of older",
        ),
        (1, {"curriculum": {"pass_rate": "gaussian", "from": "q"}}, r"curriculum.from: q is no stage before it"),
        (1, {"prompts": {"pass_rate": [0.9, 0.1]}}, r"0.9 is more than its highest"),
        (1, {"prompts": {"pass_rate": [0, 1.1]}}, r"less than or equal to 1"),
        (1, {"prompts": {}}, r"pass_rate"),
        (0, {"prompts": {"pass_rate": [0, 0.9], "profile": 0}}, r"greater than or equal to 1"),
        (0, {"prompts": {"pass_rate": [0, 0.9], "profile": 1001}}, r"less than or equal to 1000"),
        (0, {"prompts": {"pass_rate": [0, 0.9], "profile": 2.5}}, r"valid integer"),
        (1, {"prompts": {"pass_rate": [0, 0.9], "profile": 2, "from": "older"}}, r"leave one of them out"),
        (0, {"prompts": {"profile": 2}}, r"profile finds pass rates that nothing goes by"),
        (0, {"prompts": {"profile": 2}, "order": {"by": "length"}}, r"that nothing goes by"),
        (
            1,
            {"prompts": {"profile": 2}, "curriculum": {"pass_rate": "gaussian", "from": "older"}},
            r"stages.newer.curriculum.from takes pass rates of older, and prompts.profile finds them",
        ),
        (
            1,
            {"prompts": {"profile": 2, "pass_rate": [0, 1]}, "order": {"by": "pass_rate", "from": "older"}},
            r"stages.newer.order.from",
        ),
        (0, {"order": {"by": "pass_rate"}}, r"stages.older.order goes by pass rates"),
        (1, {"order": {"by": "length", "from": "older"}}, r"the order is by length"),
        (1, {"order": {"by": ""}}, r"at least 1"),
        (1, {"order": {"by": "length"}, "curriculum": {"pass_rate": "gaussian"}}, r"which are two"),
        (1, {"curriculum": {"pass_rate": "flat"}}, r"'gaussian'"),
        (1, {"curriculum": {"pass_rate": "gaussian", "width": 0}}, r"greater than 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(index: int, options: dict, said: str) -> None:
    stages: list[dict] = [{"stage": "dapo", "name": name} for name in ("older", "newer", "x")]
    stages[index] |= options
    with pytest.raises(ValueError, match=said):
        pipeline(stages)
