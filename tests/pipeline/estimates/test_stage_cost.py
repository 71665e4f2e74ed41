"""What a stage is estimated to cost."""

from __future__ import annotations

import pytest
from small_pipeline import pipeline

from gradus.pipeline.estimates.probe import Speed
from gradus.pipeline.estimates.stage_cost import stage_cost
from gradus.stages import discover


def test_a_profile_costs_its_completions_before_the_steps() -> None:
    speed = Speed(1000.0, 0.01, 500.0, 0.5, 10**6, 10**5, None)
    stage = {"stage": "dapo", "steps": 10, "prompts_per_step": 4, "group_size": 5}
    chosen = {**stage, "name": "chosen", "prompts": {"profile": 3, "pass_rate": [0, 0.9]}}
    plain, profiled = (
        stage_cost(each, discover()["dapo"].needs(each), speed, 20.0, None, prompts=700)
        for each in pipeline([stage, chosen]).stages
    )
    assert (plain.profile_rollouts, profiled.profile_rollouts) == (0, 2100)
    assert profiled.seconds == pytest.approx(plain.seconds + 2100 * (20 / 1000 + 0.01))
    assert profiled.step_seconds == plain.step_seconds == plain.seconds / 10


@pytest.mark.parametrize(
    ("options", "completions", "readings"),
    [
        ({"stage": "srpo"}, 20, 1),  # the reference reads what the policy wrote
        ({"stage": "srpo", "baseline": "mean"}, 40, 0),  # and here writes as much itself
        ({"stage": "srpo", "baseline": "mean", "advantage": "combined"}, 40, 1),
        ({"stage": "dapo", "kl": 0.1}, 20, 1),
        ({"stage": "opd", "teacher": "start", "kl": 0.1}, 20, 2),
    ],
)
def test_whoever_reads_or_writes_completions_is_paid(options: dict, completions: int, readings: int) -> None:
    speed = Speed(1000.0, 0.01, 500.0, 0.5, 10**6, 10**5, None)
    (stage,) = pipeline([{**options, "steps": 1, "prompts_per_step": 4, "group_size": 5}]).stages
    found = stage_cost(stage, discover()[stage.stage].needs(stage), speed, 20.0, None)
    sampling, update = completions * (20 / 1000 + 0.01), 20 * 20 / 500
    assert found.seconds == pytest.approx(sampling + update + readings * update / 3)
