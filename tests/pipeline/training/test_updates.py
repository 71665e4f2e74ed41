"""Single updates: clipped gradients, rows whose weights cancel, steps before the policy trains, and kept moments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import tiny_policy

from gradus.pipeline.config import SamplingConfig, StageConfig
from gradus.pipeline.policy.forward.padded import completion_logprobs
from gradus.pipeline.policy.policy import Policy, copy_parameters, parameters
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.stage import Critic, Needs
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.training.learner.state_files import read_state, write_state
from gradus.pipeline.types import Prompt, Rollouts

WEIGHTS = torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [2.0, 0.0, -0.5], [0.1, 0.2, 0.3]])


@pytest.fixture
def rollouts(policy: Policy, prompts: list[Prompt]) -> Rollouts:
    return sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))


def learner_of(policy: Policy, needs: Needs | None = None, **options: Any) -> Learner:
    config = StageConfig(**{"stage": "x", "steps": 10, "lr": 1e-3, "warmup": 0, "grad_clip": 1e9, **options})
    return Learner(policy, config, temperature=1.0, needs=needs)


def gradients_of_an_update(
    rollouts: Rollouts, weights: torch.Tensor, **options: Any
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """The metrics of an update of a new policy, and the gradients that the optimizer gets."""
    policy, seen = tiny_policy(), list[torch.Tensor]()
    learner = learner_of(policy, **options)
    step = learner.optimizer.step

    def record() -> None:
        seen.extend(p.grad.clone() for p in policy.model.parameters() if p.grad is not None)
        step()

    learner.optimizer.step = record  # type: ignore[method-assign]
    return learner.update(rollouts, 1, lambda update, groups: weights)[0], seen


def norm_of(gradients: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_a_gradient_above_the_bound_is_scaled_to_it_as_a_whole(rollouts: Rollouts, share: float) -> None:
    metrics, whole = gradients_of_an_update(rollouts, WEIGHTS)
    norm = norm_of(whole)
    assert metrics["update/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    clipped_metrics, clipped = gradients_of_an_update(rollouts, WEIGHTS, grad_clip=share * norm)
    assert norm_of(clipped) == pytest.approx(share * norm, rel=1e-4)
    for got, wanted in zip(clipped, whole, strict=True):
        torch.testing.assert_close(got, share * wanted, rtol=1e-4, atol=1e-9)
    assert clipped_metrics["update/gradient_norm"] == pytest.approx(norm, rel=1e-5), "logged is the norm before it"


def test_a_gradient_below_the_bound_is_left_alone(rollouts: Rollouts) -> None:
    metrics, whole = gradients_of_an_update(rollouts, WEIGHTS)
    _, bounded = gradients_of_an_update(rollouts, WEIGHTS, grad_clip=1.01 * metrics["update/gradient_norm"])
    assert all(map(torch.equal, bounded, whole))


@pytest.mark.parametrize("packs", [True, False])
def test_a_row_whose_token_weights_sum_to_zero_is_trained(rollouts: Rollouts, packs: bool) -> None:
    """Weights +1 and -1 on the first two tokens of one completion, 0 everywhere else: their sum is 0."""
    weights = torch.zeros(rollouts.tokens_PKT.shape)
    weights[2, 1, 0], weights[2, 1, 1] = 1.0, -1.0
    assert rollouts.lengths_PK[2, 1] >= 2
    policy, literal = tiny_policy(), tiny_policy()
    policy.packs = packs
    learner, seen = learner_of(policy, score="sum"), list[torch.Tensor]()
    learner.optimizer.step = lambda: seen.extend(  # type: ignore[method-assign]
        p.grad.clone() for p in policy.model.parameters() if p.grad is not None
    )
    metrics, _ = learner.update(rollouts, 1, lambda update, groups: weights)
    logprobs = completion_logprobs(literal, [rollouts.prompt_tokens[2]], rollouts.tokens_PKT[2, [1]], 1.0)
    (-(logprobs[0, 0] - logprobs[0, 1]) / 12).backward()  # P K = 4 * 3 completions
    assert metrics["update/rows"] == 1
    for got, parameter in zip(seen, literal.model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 2])
def test_steps_in_which_the_critic_trains_alone_leave_no_trace_in_the_policy(rollouts: Rollouts, warmup: int) -> None:
    """Not even in its moments: the first step after them is the first step of a stage without a critic."""
    policy, without = tiny_policy(), tiny_policy()
    learner = learner_of(policy, Needs(critic=Critic("token", 1e-3, warmup=2)), warmup=warmup)
    for step in (1, 2):
        metrics, weights = learner.update(rollouts, step, lambda update, groups: WEIGHTS)
        assert metrics == {"update/rows": 0.0} and weights.shape == (4, 3) and not weights.any()
        assert learner.state()["optimizer"] == {}, "no moments"
    plain = learner_of(without, warmup=warmup, steps=8)
    metrics, weights = learner.update(rollouts, 3, lambda update, groups: WEIGHTS)
    wanted, _ = plain.update(rollouts, 1, lambda update, groups: WEIGHTS)
    assert torch.equal(weights, WEIGHTS) and torch.equal(weights_of(policy), weights_of(without))
    assert metrics["update/learning_rate"] == wanted["update/learning_rate"]
    assert metrics["update/learning_rate"] == 1e-3 / max(warmup, 1)


def test_moments_come_back_bit_for_bit_those_of_vectors_included(
    rollouts: Rollouts, prompts: list[Prompt], tmp_path: Path
) -> None:
    policy = tiny_policy()
    learner = learner_of(policy, betas=(0.9, 0.99))
    for step in (1, 2):
        learner.update(rollouts, step, lambda update, groups: WEIGHTS)
    write_state(tmp_path, learner.state())
    named = dict(policy.model.named_parameters())
    assert {parameter.dim() for parameter in named.values()} == {1, 2}, "or no vector would be tested"
    stored = read_state(tmp_path)["optimizer"]
    assert stored.keys() == named.keys()
    for name, parameter in named.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert stored[name][moment].dtype == torch.float32, (name, moment)
            assert torch.equal(stored[name][moment], learner.optimizer.state[parameter][moment]), (name, moment)
        assert float(stored[name]["step"]) == 2

    again = tiny_policy()
    copy_parameters(parameters(policy), again)
    resumed = learner_of(again, betas=(0.9, 0.99))
    resumed.restore(read_state(tmp_path))
    for each in (learner, resumed):
        each.update(rollouts, 3, lambda update, groups: WEIGHTS)
    assert torch.equal(weights_of(again), weights_of(policy)), "the step after it is the same step"
