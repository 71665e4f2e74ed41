"""What the learner does with the declared needs of stages: several updates a batch, critics, a likelihood loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_pipeline import pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.stage import Critic, Needs
from gradus.pipeline.training.learner.critics import TokenCritic
from gradus.pipeline.training.learner.groups import groups_of
from gradus.pipeline.training.learner.learner import Learner, Weigh
from gradus.pipeline.training.learner.losses import token_weights
from gradus.pipeline.types import Prompt, Rollouts


def learner_of(policy: Policy, needs: Needs | None = None, **options: Any) -> Learner:
    stage = pipeline([{"stage": "dapo", "steps": 10, "prompts_per_step": 4, **options}]).stages[0]
    return Learner(policy, stage, temperature=1.0, needs=needs)


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


@pytest.fixture
def rollouts(policy: Policy, prompts: list[Prompt]) -> Rollouts:
    from gradus.pipeline.config import SamplingConfig

    batch = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    return replace(batch, correct_PK=torch.tensor([[True, False, False]] * 2 + [[True, True, False]] * 2))


def test_minibatches_are_updates_of_their_own(rollouts: Rollouts) -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(4, 3, generator=generator)
    cut, whole = tiny_policy(), tiny_policy()
    asked: list[tuple[int, list[int]]] = []

    def weigh(update: int, chosen: list[int]) -> torch.Tensor:
        asked.append((update, chosen))
        return table[chosen]

    _, first = learner_of(cut, minibatches=2, updates_per_batch=2).update(rollouts, 1, weigh)
    assert asked == [(0, [0, 1]), (1, [2, 3]), (2, [0, 1]), (3, [2, 3])] and torch.equal(first, table)
    by_hand = learner_of(whole)
    for chosen in ([0, 1], [2, 3], [0, 1], [2, 3]):
        part: Weigh = lambda update, groups, chosen=chosen: table[chosen]  # noqa: E731
        by_hand.update(groups_of(rollouts, chosen), 1, part)
    torch.testing.assert_close(weights_of(cut), weights_of(whole), rtol=1e-6, atol=1e-8)


def test_the_likelihood_loss_is_the_mean_over_correct_completions_tokens(rollouts: Rollouts) -> None:
    """Compared with autograd through 0.1 * NLL + the weighted likelihood, written out."""
    policy, factor = tiny_policy(), 0.1
    table = torch.tensor([[1.0, -1.0, 0.0]] * 4)
    learner = learner_of(policy, Needs(likelihood=factor), score="mean")
    gradients: dict[str, torch.Tensor] = {}
    learner.optimizer.step = lambda: gradients.update(  # type: ignore[method-assign]
        {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    )
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    learner.config = learner.config.model_copy(update={"grad_clip": 1e9})
    learner.update(rollouts, 1, lambda update, groups: table)

    literal = tiny_policy()
    from gradus.pipeline.policy.forward.padded import completion_logprobs
    from gradus.pipeline.training.learner.learner import CompletionRows

    rows = CompletionRows.of(rollouts)
    logprobs = completion_logprobs(literal, rows.prompts, rows.tokens_RT, 1.0)
    correct = rows.mask_RT & rollouts.correct_PK.flatten()[:, None]  # type: ignore[union-attr]
    nll = -logprobs[correct].sum() / correct.sum()
    coefficients = token_weights(table, rollouts.mask_PKT, "mean").flatten(0, 1)
    (factor * nll - (coefficients * logprobs).sum() / 12).backward()
    for name, parameter in literal.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_policy_stays_while_its_critic_warms_up(rollouts: Rollouts) -> None:
    policy = tiny_policy()
    learner, before = learner_of(policy, Needs(critic=Critic("token", 1e-3, warmup=2)), warmup=2), weights_of(policy)
    table = torch.ones(4, 3)
    for step in (1, 2):
        learner.update(rollouts, step, lambda update, groups: table)
        assert torch.equal(weights_of(policy), before)
    metrics, _ = learner.update(rollouts, 3, lambda update, groups: table)
    assert not torch.equal(weights_of(policy), before)
    assert metrics["update/learning_rate"] == learner.config.lr / 2, "the rate's own warm-up begins only now"


@pytest.mark.parametrize("packs", [True, False])
def test_a_token_critic_learns_what_a_completion_will_score(rollouts: Rollouts, packs: bool) -> None:
    policy = tiny_policy()
    stage = pipeline([{"stage": "vapo", "variant": "paper", "steps": 20, "grad_clip": 100.0}]).stages[0]
    critic = TokenCritic(policy, Critic("token", lr=3e-3), stage)
    critic.network.packs = packs
    rewarded = replace(rollouts, rewards_PK=(rollouts.tokens_PKT[..., 0] % 2).float())
    assert rewarded.rewards_PK is not None and rewarded.rewards_PK.std() > 0
    before = weights_of(policy)
    first = critic.predict(rewarded)
    torch.testing.assert_close(first[rewarded.mask_PKT].unique(), rewarded.rewards_PK.mean()[None])
    assert (first[~rewarded.mask_PKT] == 0).all()
    for _ in range(60):
        metrics = critic.train(rewarded, critic.predict(rewarded))
    assert metrics["critic/explained_variance"] > 0.5
    assert torch.equal(weights_of(policy), before), "the critic never moves the policy"
    # before the first token, the completions of a prompt cannot be distinguished; after it they can
    values = critic.predict(rewarded)
    torch.testing.assert_close(values[..., 0], values[:, :1, 0].expand(-1, 3), rtol=1e-4, atol=1e-4)
    error = (values - rewarded.rewards_PK[..., None]).abs()
    assert error[..., 1][rewarded.mask_PKT[..., 1]].mean() < error[..., 0].mean()


def test_packed_and_padded_values_agree(rollouts: Rollouts) -> None:
    stage = pipeline([{"stage": "vapo", "variant": "paper", "steps": 20}]).stages[0]
    critic = TokenCritic(tiny_policy(), Critic("token", lr=1e-2), stage)
    rewarded = replace(rollouts, rewards_PK=torch.rand(4, 3))
    critic.train(rewarded, critic.predict(rewarded))
    packed = critic.predict(rewarded)
    critic.network.packs = False
    torch.testing.assert_close(critic.predict(rewarded), packed, rtol=1e-4, atol=1e-5)


def test_scores_of_a_preference_stage_are_taken_anew_for_each_minibatch(rollouts: Rollouts) -> None:
    from gradus.pipeline.training.signals import SignalProvider

    policy = tiny_policy()
    config = pipeline([{"stage": "gfpo", "steps": 4, "prompts_per_step": 4, "group_size": 3}])
    provider = SignalProvider(
        Needs(policy_scores=True, ranking=("reward",)), config.stages[0], policy, config.sampling, lambda policy: None
    )  # type: ignore[arg-type]
    whole = replace(rollouts, rewards_PK=torch.rand(4, 3), valid_PK=torch.ones(4, 3).bool())
    signals = provider.of(whole, 1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    part = signals(1, [1, 3])
    now = batch_logprobs(policy, whole, 1.0, 10_000).sum(-1) / whole.lengths_PK
    assert part.policy_scores_PK is not None and part.order_PKK is not None
    torch.testing.assert_close(part.policy_scores_PK, now[[1, 3]], rtol=1e-4, atol=1e-5)
    assert part.rewards_PK.shape == (2, 3) and part.order_PKK.shape == (2, 3, 3)
