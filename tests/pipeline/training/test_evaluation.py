"""What an evaluation says: the same with any number of threads, and the same as training says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradus.pipeline.config import PipelineConfig, SamplingConfig
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rewards.scoring import rewarded
from gradus.pipeline.rollouts.builtin import sample
from gradus.pipeline.rollouts.sampler import Sampler
from gradus.pipeline.training import evaluation
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages.dapo import DAPOConfig


def judged_by_length(most: int, falloff: int, **evaluation: float) -> PipelineConfig:
    options = {"policy": {"architecture": {"model_type": "llama"}}, "stages": [{"stage": "dapo", "steps": 1}]}
    options |= {"name": "x", "task": {"source": "reasoning_gym", "dataset": "chain_sum"}, "evaluation": evaluation}
    rewards = [{"reward": "length", "params": {"max": most, "falloff": falloff}}]
    return pipeline_model([DAPOConfig]).model_validate({"rewards": rewards, **options})


def test_training_and_evaluation_agree_on_what_is_correct(policy: Policy, prompts: list[Prompt]) -> None:
    completions = sample(policy, prompts[:1], 1, judged_by_length(1, 1).sampling, None)
    longest = len(completions.texts[0][0])
    assert longest > 9
    config = judged_by_length(longest - 9, 10, threshold=0.1)  # 1 - 9 / 10 is a little less than 0.1
    with RewardSuite(config.rewards) as suite:
        found = evaluation.evaluate(policy, prompts[:1], suite, config)
        trained = rewarded(completions, suite.score(prompts[:1], completions.texts), config)
    assert found.answers == [(prompts[0], completions.texts[0][0])]
    assert trained.correct_PK is not None and trained.correct_PK.tolist() == [[True]] and found.accuracy == 1.0


def test_threads_change_nothing(policy: Policy, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    config = judged_by_length(5, 15)
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(evaluation, "usable_cores", lambda cores=cores: cores)
        with RewardSuite(config.rewards) as suite:
            found.append(evaluation.evaluate(policy, prompts[:3], suite, config))
    assert found[0].answers == found[1].answers
    assert [prompt for prompt, _ in found[0].answers] == prompts[:3]
    assert found[0].components == found[1].components


class OnAGpu(Policy):
    """A policy that says so; whoever computes with it uses another one."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


@pytest.mark.parametrize(("kind", "parts"), [(Policy, [2, 2]), (OnAGpu, [4])])
def test_a_gpu_gets_all_prompts_at_once(
    policy: Policy, prompts: list[Prompt], kind: type[Policy], parts: list[int]
) -> None:
    asked = []

    class Recording(Sampler):
        def __call__(
            self, _: Policy, part: list[Prompt], *options: Any, on_group: Any = None, **named: Any
        ) -> Rollouts:
            asked.append(len(part))
            return sample(policy, part, 1, SamplingConfig(max_tokens=3), None, on_group=on_group)

    config, told = judged_by_length(5, 15), kind(policy.model, policy.tokenizer, policy.template)
    with RewardSuite(config.rewards) as suite:
        found = evaluation.evaluate(told, prompts, suite, config, sampler=Recording())
    assert asked == parts and [prompt for prompt, _ in found.answers] == prompts
