"""Intervals by hand, and threads that change nothing."""

from __future__ import annotations

import pytest

from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.training import evaluation
from gradus.pipeline.training.evaluation import wilson_interval
from gradus.pipeline.types import Prompt


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # z^2/n = 3.841459/10 = 0.384146; centre (0.8 + 0.192073) / 1.384146 = 0.716740;
        # half 1.959964 * sqrt(0.8 * 0.2 / 10 + 3.841459 / 400) / 1.384146 = 0.226579
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),  # 0.384146 / 1.384146
        (10, 10, 0.722467, 1.0),
        (500, 1000, 0.469069, 0.530931),
    ],
)
def test_wilson(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), rel=1e-5, abs=1e-9)


def test_threads_change_nothing(policy: Policy, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"policy": {"architecture": {"model_type": "llama"}}, "stages": [{"stage": "x", "steps": 1}]}
    task = {"source": "reasoning_gym", "dataset": "chain_sum"}
    rewards = [{"reward": "length", "params": {"max": 5, "falloff": 15}}]
    config = pipeline_model([StageConfig]).model_validate({"name": "x", "task": task, "rewards": rewards, **options})
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(evaluation, "usable_cores", lambda cores=cores: cores)
        with RewardSuite(config.rewards) as suite:
            found.append(evaluation.evaluate(policy, prompts[:3], suite, config))
    assert found[0].answers == found[1].answers
    assert [prompt for prompt, _ in found[0].answers] == prompts[:3]
    assert found[0].components == found[1].components
