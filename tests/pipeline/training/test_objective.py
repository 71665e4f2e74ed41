"""The objective far from where it is usual: asymmetric differences of log-probabilities, and ratios that overflow."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_policies import tiny_policy

from gradus.pipeline.common.ranks import ALONE
from gradus.pipeline.config import SamplingConfig, StageConfig
from gradus.pipeline.policy.forward.padded import completion_logprobs
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.training.learner.losses import kl_estimate, weighted_likelihood
from gradus.pipeline.training.progress import StepLog
from gradus.pipeline.types import Prompt

CLIP = (0.2, 0.28)


def test_the_kl_estimate_has_its_sign() -> None:
    # d = log pi - log ref = [1, 0.5], both positive, so that a swapped sign shows
    # e^-1 - 1 + 1 = 0.367879; e^-0.5 - 1 + 0.5 = 0.106531; mean 0.237205
    # (the other sign would be e - 1 - 1 = 0.718282 and e^0.5 - 1 - 0.5 = 0.148721, mean 0.433501)
    policy, reference = torch.tensor([-1.0, -0.5]), torch.tensor([-2.0, -1.0])
    mask = torch.tensor([True, True])
    assert kl_estimate(policy, reference, mask) == pytest.approx(0.237205, rel=1e-5)
    assert kl_estimate(reference, policy, mask) == pytest.approx(0.433501, rel=1e-5)


def test_the_kl_divergence_that_is_logged_is_that_of_the_policy_to_the_start(prompts: list[Prompt]) -> None:
    """KL(policy || start): the policy that sampled comes first. Compared with a loop over the tokens in float64."""
    policy, start = tiny_policy(), tiny_policy()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(2.0)
    rollouts = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    log: Any = StepLog.__new__(StepLog)
    log.start, log.config = start, SimpleNamespace(token_budget=10_000)
    log.setup = SimpleNamespace(sampling=SimpleNamespace(temperature=1.0), ranks=ALONE)
    total = backward = 0.0
    for p, tokens in enumerate(rollouts.prompt_tokens):
        reference = completion_logprobs(start, [tokens] * 3, rollouts.tokens_PKT[p], 1.0).detach().double()
        difference = (rollouts.rollout_logprobs_PKT[p].double() - reference)[rollouts.mask_PKT[p]]
        total += float((torch.exp(-difference) - 1 + difference).sum())
        backward += float((torch.exp(difference) - 1 - difference).sum())
    count = int(rollouts.mask_PKT.sum())
    assert total / count != pytest.approx(backward / count, rel=0.05), "or the test would not see the order"
    assert log._kl_to_start(rollouts) == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(
    ("coefficient", "value"),
    [
        (1.0, 1.28),  # min(huge, 1.28): held
        (-1.0, -math.exp(20)),  # min(-huge, -1.28): the unclipped one, which is bounded at e^20
        (0.0, 0.0),  # 0 times infinity would not be a number
    ],
)
def test_a_ratio_beyond_all_bounds_gives_no_gradient_and_no_nan(coefficient: float, value: float) -> None:
    """log ratio 100: e^100 is infinite in float32, and the gradient of what is not chosen would be 0 times infinity."""
    logprobs = torch.tensor([0.0, -1.0], requires_grad=True)
    # the second token has ratio 1 and coefficient 2: it adds 2 to the value, and its gradient is 2
    rollout_logprobs, coefficients = torch.tensor([-100.0, -1.0]), torch.tensor([coefficient, 2.0])
    objective = weighted_likelihood(logprobs, coefficients, rollout_logprobs, CLIP)
    objective.backward()
    assert logprobs.grad is not None
    assert objective.item() == pytest.approx(value + 2.0, rel=1e-6)
    assert logprobs.grad.tolist() == [0.0, 2.0]


def test_a_policy_whose_ratio_overflows_is_still_trained(policy: Policy, prompts: list[Prompt]) -> None:
    """Through the learner: one token with a log ratio of 100 leaves the gradient of all others as it is."""
    rollouts = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    far = rollouts.rollout_logprobs_PKT.clone()
    far[0, 0, 0] -= 100.0
    config = StageConfig(stage="x", steps=3, warmup=0, clip=CLIP)
    metrics, _ = Learner(policy, config, temperature=1.0).update(
        replace(rollouts, rollout_logprobs_PKT=far), 1, lambda update, groups: torch.ones(4, 3)
    )
    assert metrics["update/skipped"] == 0 and math.isfinite(metrics["update/gradient_norm"])
    assert metrics["update/gradient_norm"] > 0
