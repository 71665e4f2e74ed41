"""Which prompts come next: refills, history resampling; and what the core does with the published stages' needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import datasets
import pytest
import torch
from small_pipeline import pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.stage import Critic, Needs
from gradus.pipeline.tasks.prompt_order import HistoryResampling, PromptStream, Schedule
from gradus.pipeline.training.batches import SampledBatches
from gradus.pipeline.training.learner.critics import TokenCritic
from gradus.pipeline.training.learner.groups import groups_of, joined, uniform_groups
from gradus.pipeline.training.learner.learner import Learner, Weigh
from gradus.pipeline.training.learner.losses import token_weights
from gradus.pipeline.types import Prompt, Rollouts

GRADED = [{"reward": "length", "params": {"max": 4, "falloff": 8}}]


def stream_of(count: int) -> PromptStream:
    rows = [
        {"id": f"p{n}", "question": f"{n} + {n} =", "answer": str(2 * n), "metadata": "{}", "demonstration": None}
        for n in range(count)
    ]
    return PromptStream(datasets.Dataset.from_list(rows), seed=0, stage_label="x")


def scored(prompts: list[Prompt], correct: list[list[bool]], valid: list[list[bool]] | None = None) -> Rollouts:
    right = torch.tensor(correct)
    shape = right.shape
    return Rollouts(
        prompts=prompts,
        prompt_tokens=[[1]] * len(prompts),
        tokens_PKT=torch.zeros((*shape, 2), dtype=torch.long),
        mask_PKT=torch.ones((*shape, 2), dtype=torch.bool),
        rollout_logprobs_PKT=torch.zeros((*shape, 2)),
        truncated_PK=torch.zeros(shape, dtype=torch.bool),
        texts=[["t"] * shape[1]] * len(prompts),
        rewards_PK=right.float(),
        components={"exact_answer": right.float()},
        valid_PK=torch.ones(shape, dtype=torch.bool) if valid is None else torch.tensor(valid),
        correct_PK=right,
    )


# --- cutting and joining ----------------------------------------------------------------------------------------------


def test_groups_that_are_cut_and_joined_are_the_batch_again(policy: Policy, prompts: list[Prompt]) -> None:
    from gradus.pipeline.config import SamplingConfig

    whole = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    again = joined([groups_of(whole, [0, 2]), groups_of(whole, [3, 1])])
    assert [prompt.id for prompt in again.prompts] == ["p0", "p2", "p3", "p1"]
    back = groups_of(again, [0, 3, 1, 2])
    assert torch.equal(back.tokens_PKT, whole.tokens_PKT) and torch.equal(back.mask_PKT, whole.mask_PKT)
    assert torch.equal(back.rollout_logprobs_PKT, whole.rollout_logprobs_PKT) and back.texts == whole.texts


def test_joined_batches_of_other_lengths_are_padded() -> None:
    prompt = Prompt("a", "q", "1")
    short = scored([prompt], [[True, False]])
    long = replace(short, tokens_PKT=torch.ones(1, 2, 5, dtype=torch.long), mask_PKT=torch.ones(1, 2, 5).bool())
    long = replace(long, rollout_logprobs_PKT=torch.zeros(1, 2, 5))
    both = joined([short, long])
    assert both.mask_PKT.sum(-1).tolist() == [[2, 2], [5, 5]]


def test_uniform_groups_are_told_by_correctness_and_not_by_reward() -> None:
    prompts = [Prompt(str(n), "q", "1") for n in range(4)]
    rollouts = scored(
        prompts,
        [[True, True], [False, False], [True, False], [True, False]],
        [[True, True], [True, True], [True, True], [True, False]],
    )
    rollouts = replace(rollouts, rewards_PK=torch.rand(4, 2))
    assert uniform_groups(rollouts).tolist() == [True, True, False, True], "what could not be scored counts as neither"


# --- refilling --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config() -> PipelineConfig:
    stages = [{"stage": "dapo", "steps": 3, "prompts_per_step": 4, "group_size": 3}]
    return pipeline(stages, rewards=GRADED, evaluation={"threshold": 0.9})


def groups(config: PipelineConfig, policy: Policy, refills: int) -> SampledBatches:
    source = SampledBatches(
        policy, Schedule(stream_of(50)), RewardSuite(config.rewards), config, config.stages[0], refills=refills
    )
    return source


def test_refilling_replaces_uniform_groups_and_counts_what_it_cost(config: PipelineConfig, policy: Policy) -> None:
    plain = groups(config, policy, refills=0).batch(1)
    assert uniform_groups(plain).any() and not uniform_groups(plain).all(), "or the test shows nothing"
    source = groups(config, policy, refills=9)
    batch = source.batch(1)
    assert len(batch.prompts) == 4 and not uniform_groups(batch).any()
    mixed = [prompt.id for prompt, uniform in zip(plain.prompts, uniform_groups(plain), strict=True) if not uniform]
    assert [prompt.id for prompt in batch.prompts][: len(mixed)] == mixed, "those of the first round come first"
    rounds = int(source.metrics["refill/rounds"])
    assert 1 <= rounds <= 9 and source.cost.rollouts == 12 * (rounds + 1)
    assert source.cost.tokens > int(batch.mask_PKT.sum())
    assert source.metrics["refill/dropped_groups"] == 4 * (rounds + 1) - 4
    assert source.metrics["refill/rollouts_per_kept"] == rounds + 1
    assert source.metrics["group/uniform_share"] > 0, "told of all that was drawn"
    assert source.state() == {"place": 4 * (rounds + 1)}
    following = source.batch(2)
    assert not {p.id for p in following.prompts} & {p.id for p in batch.prompts}, "the schedule has moved on"


def test_refilling_ends_where_nothing_can_be_compared(config: PipelineConfig, policy: Policy) -> None:
    hopeless = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"threshold": 2.0})})
    source = groups(hopeless, policy, refills=2)
    batch = source.batch(1)
    assert source.cost.rollouts == 3 * 12 and source.metrics["refill/rounds"] == 2
    assert len(batch.prompts) == 1, "a step goes by with one group"


def test_a_prompt_that_comes_twice_in_a_step_is_drawn_anew(config: PipelineConfig, policy: Policy) -> None:
    source = groups(config, policy, refills=1)
    prompts = source.schedule.take(2)
    one, two = source.of(prompts, 1), source.of(prompts, 1, ":refill-1")
    assert one.texts != two.texts


# --- history resampling -----------------------------------------------------------------------------------------------


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


# --- several updates a batch ------------------------------------------------------------------------------------------


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


# --- the token critic -------------------------------------------------------------------------------------------------


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
