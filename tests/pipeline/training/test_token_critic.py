"""How a token critic trains: pieces of a batch, the bound on its values and on its gradient, the number of updates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_pipeline import pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.stage import Critic
from gradus.pipeline.training.learner.critics import TokenCritic
from gradus.pipeline.training.learner.groups import groups_of
from gradus.pipeline.types import Prompt, Rollouts


@pytest.fixture
def rollouts(policy: Policy, prompts: list[Prompt]) -> Rollouts:
    batch = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    return replace(batch, rewards_PK=(batch.tokens_PKT[..., 0] % 3).float())


def critic_of(clip: float | None = None, packs: bool = True, **options: Any) -> TokenCritic:
    stage = {"stage": "vapo", "variant": "paper", "steps": 20, "updates_per_batch": 1, "grad_clip": 1e9, **options}
    critic = TokenCritic(tiny_policy(), Critic("token", lr=1e-2, clip=clip), pipeline([stage]).stages[0])
    critic.network.packs = packs
    return critic


def recorded(critic: TokenCritic) -> list[dict[str, torch.Tensor]]:
    """The gradients that the critic's optimizer will get, update by update."""
    seen: list[dict[str, torch.Tensor]] = []
    step = critic.optimizer.step

    def record() -> None:
        named = critic.module.named_parameters()
        seen.append({name: value.grad.clone() for name, value in named if value.grad is not None})
        step()

    critic.optimizer.step = record  # type: ignore[method-assign]
    return seen


def norm_of(gradients: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))


@pytest.mark.parametrize("packs", [True, False])
def test_pieces_of_a_batch_change_nothing(rollouts: Rollouts, packs: bool) -> None:
    """One row at a time, or all at once: one update of the same gradient, and the same loss."""
    found = []
    for budget in (1, 100_000):
        critic = critic_of(packs=packs, token_budget=budget)
        seen = recorded(critic)
        metrics = critic.train(rollouts, critic.predict(rollouts))
        assert len(seen) == 1, "pieces are not updates"
        found.append((metrics["critic/loss"], seen[0]))
    (loss, gradients), (whole_loss, whole) = found
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    for name, wanted in whole.items():
        torch.testing.assert_close(gradients[name], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_loss_is_the_mean_over_tokens_of_the_bounded_error(rollouts: Rollouts, clip: float | None) -> None:
    """Against a loop in float64. The values before were 0.3 lower than now, further than the bound of 0.1."""
    critic = critic_of(clip)
    now = critic.predict(rollouts)
    old = (now - 0.3) * rollouts.mask_PKT
    assert rollouts.rewards_PK is not None
    total, count = 0.0, 0
    for value, before, reward, real in zip(
        now.flatten().tolist(),
        old.flatten().tolist(),
        rollouts.rewards_PK[..., None].expand_as(now).flatten().tolist(),
        rollouts.mask_PKT.flatten().tolist(),
        strict=True,
    ):
        if real:
            error = 0.5 * (value - reward) ** 2
            held = 0.5 * (before + min(max(value - before, -0.1), 0.1) - reward) ** 2
            total, count = total + (max(error, held) if clip else error), count + 1
    assert critic.train(rollouts, old)["critic/loss"] == pytest.approx(total / count, rel=1e-5)


def test_its_gradient_is_clipped_like_the_policy_s(rollouts: Rollouts) -> None:
    free = critic_of()
    unbounded = recorded(free)
    free.train(rollouts, free.predict(rollouts))
    norm = norm_of(unbounded[0])
    bounded = critic_of(grad_clip=norm / 4)
    seen = recorded(bounded)
    bounded.train(rollouts, bounded.predict(rollouts))
    assert norm_of(seen[0]) == pytest.approx(norm / 4, rel=1e-4)
    for name, gradient in unbounded[0].items():
        torch.testing.assert_close(seen[0][name], gradient / 4, rtol=1e-4, atol=1e-9)


def test_its_updates_are_on_the_minibatches_of_the_policy(rollouts: Rollouts) -> None:
    """Parts of two, one and one groups, twice, are six calls on these groups alone. The third part has no reward."""
    valid = torch.ones(4, 3, dtype=torch.bool)
    valid[2] = False
    batch = replace(rollouts, valid_PK=valid)
    cut, one = critic_of(minibatches=3, updates_per_batch=2), critic_of()
    old, _ = cut.predict(batch), one.predict(batch)
    seen, alone = recorded(cut), recorded(one)
    cut.train(batch, old)
    for groups in ([0, 1], [3], [0, 1], [3]):
        part = groups_of(batch, groups)
        one.train(part, old[groups][..., : part.tokens_PKT.shape[-1]])
    assert len(seen) == len(alone) == 4
    for ours, wanted in zip(seen, alone, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-7)


def test_it_gets_as_many_updates_as_the_policy_each_with_a_new_gradient(rollouts: Rollouts) -> None:
    """Three in one call are three calls of one each, with the values that were predicted before the first."""
    three, one = critic_of(updates_per_batch=3), critic_of()
    seen, seen_alone = recorded(three), recorded(one)
    old, _ = three.predict(rollouts), one.predict(rollouts)
    loss, losses = three.train(rollouts, old)["critic/loss"], []
    for _ in range(3):
        losses.append(one.train(rollouts, old)["critic/loss"])
        assert all(parameter.grad is None for parameter in one.module.parameters()), "none is added to the next"
    assert len(seen) == len(seen_alone) == 3
    for got, wanted in zip(seen, seen_alone, strict=True):
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert loss == losses[-1] < losses[0], "logged is the loss of the last update"
