"""The number of threads changes nothing."""

from __future__ import annotations

import pytest

from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.training import evaluation
from gradus.pipeline.types import Prompt


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
