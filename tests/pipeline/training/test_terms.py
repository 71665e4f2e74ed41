"""Terms of the objective beside the weights: divergence from a reference, entropy, and what masks leave out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_pipeline import pipeline
from tiny_policies import tiny_policy
from torch import Tensor

from gradus.pipeline.common.ranks import ALONE
from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.forward.padded import completion_logits
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.training.given_batches import PairBatches
from gradus.pipeline.training.learner.coefficients import kept_tokens
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.training.learner.losses import kl_penalty
from gradus.pipeline.training.learner.terms import EntropyTerm
from gradus.pipeline.training.other_policies import OtherPolicies
from gradus.pipeline.types import Prompt, Rollouts

WEIGHTS = torch.tensor([[1.0, -1.0, 0.0]] * 4)


def stage_of(**options: Any) -> Any:
    return pipeline([{"stage": "dapo", "steps": 10, "prompts_per_step": 4, "score": "mean", **options}]).stages[0]


@pytest.fixture
def rollouts(policy: Policy, prompts: list[Prompt]) -> Rollouts:
    batch = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    other = tiny_policy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(2.0)
    return replace(batch, reference_logprobs_PKT=batch_logprobs(other, batch, 1.0, 10_000))


def gradients(policy: Policy, rollouts: Rollouts, **options: Any) -> dict[str, Tensor]:
    """Those that the learner gives its optimizer."""
    learner, found = Learner(policy, stage_of(grad_clip=1e9, **options), temperature=1.0), dict[str, Tensor]()
    learner.optimizer.step = lambda: found.update(  # type: ignore[method-assign]
        {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    )
    learner.update(learner.prepared(rollouts, 1), 1, lambda update, groups: WEIGHTS[groups])
    return found


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    "options", [{"kl": 0.3}, {"entropy": {"weight": 0.2}}, {"kl": 0.3, "entropy": {"weight": 0.2}}]
)
def test_terms_have_the_gradient_of_their_literal_formulas(
    rollouts: Rollouts, packs: bool, options: dict[str, Any]
) -> None:
    """Autograd through -(1/PK) sum over tokens of (W log pi - kl k3 + weight H) / length, in float64."""
    policy, literal = tiny_policy(), tiny_policy()
    policy.packs = packs
    found = gradients(policy, rollouts, **options)
    literal.model.double()
    total = torch.zeros((), dtype=torch.float64)
    assert rollouts.reference_logprobs_PKT is not None
    for p, tokens in enumerate(rollouts.prompt_tokens):
        logits = completion_logits(literal, [tokens] * 3, rollouts.tokens_PKT[p], 1.0).double().log_softmax(-1)
        logprobs = logits.gather(-1, rollouts.tokens_PKT[p][..., None])[..., 0]
        d = rollouts.reference_logprobs_PKT[p] - logprobs
        term = WEIGHTS[p][:, None] * logprobs - options.get("kl", 0.0) * (d.exp() - 1 - d)
        term = term + options.get("entropy", {}).get("weight", 0.0) * -(logits.exp() * logits).sum(-1)
        total = total - (term * rollouts.mask_PKT[p] / rollouts.lengths_PK[p][:, None]).sum() / 12
    total.backward()
    for name, parameter in literal.model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad.float(), rtol=2e-4, atol=2e-6)


def test_the_penalty_is_the_divergence_and_does_not_overflow() -> None:
    # d = log(0.25 / 0.5) = -0.693147: e^d - 1 - d = 0.5 - 1 + 0.693147 = 0.193147
    # d = log(0.5 / 0.25) = 0.693147: 2 - 1 - 0.693147 = 0.306853
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    assert kl_penalty(policy, reference).tolist() == pytest.approx([0.193147, 0.306853], rel=1e-4)
    far = torch.tensor([-100.0], requires_grad=True)
    kl_penalty(far, torch.zeros(1)).sum().backward()
    assert far.grad is not None and math.isfinite(far.grad.item()) and far.grad.item() < 0


def with_ratios(ratios: list[list[list[float]]]) -> Rollouts:
    """A batch of tokens that the policy finds so much more probable than their sampler did."""
    ratio = torch.tensor(ratios)
    shape = ratio.shape
    return Rollouts(
        prompts=[Prompt("1", "?", "")] * shape[0],
        prompt_tokens=[[1]] * shape[0],
        tokens_PKT=torch.ones(shape, dtype=torch.long),
        mask_PKT=ratio > 0,
        rollout_logprobs_PKT=ratio.clamp(min=1e-9).log() * (ratio > 0),
        engine_logprobs_PKT=torch.zeros(shape),
        truncated_PK=torch.tensor([[False, True]] * shape[0]),
        texts=[["", ""]] * shape[0],
    )


def test_masks_leave_out_what_is_too_far_from_its_sampler() -> None:
    # one group: ratios [2, 0.5] (geometric mean 1) and [1.2, none] (1.2)
    batch = with_ratios([[[2.0, 0.5], [1.2, 0.0]]])
    found, shares = kept_tokens(batch, stage_of(mask_sequences=[0.9, 1.1]))
    assert found is not None and found.tolist() == [[[True, True], [False, False]]]
    assert shares == {"mask/sequences": 0.5}
    found, shares = kept_tokens(batch, stage_of(mask_tokens=[0.6, 3]))
    assert found is not None and found.tolist() == [[[True, False], [True, True]]]
    assert shares["mask/tokens"] == pytest.approx(1 / 3)
    found, shares = kept_tokens(batch, stage_of(mask_truncated=True))
    assert found is not None and found.tolist() == [[[True, True], [False, False]]]
    assert shares == {"mask/truncated": 0.5}
    assert kept_tokens(batch, stage_of()) == (None, {})


def test_a_masked_completion_gives_no_gradient_whatever_the_terms(rollouts: Rollouts) -> None:
    cut = replace(rollouts, truncated_PK=torch.ones_like(rollouts.truncated_PK))
    options = {"mask_truncated": True, "kl": 0.3, "entropy": {"weight": 0.2}}
    assert gradients(tiny_policy(), cut, **options) == {}, "no row takes part"
    some = replace(rollouts, truncated_PK=torch.tensor([[True, False, False]] * 4))
    masked = gradients(tiny_policy(), some, mask_truncated=True)
    assert any(gradient.abs().max() > 0 for gradient in masked.values())


def test_masks_compare_with_a_pass_of_the_present_policy(rollouts: Rollouts) -> None:
    """Samples of an earlier policy: the present one's log-probabilities are the denominators, and what it sampled with
    is what masks and importance weights compare with."""
    policy = tiny_policy()
    learner = Learner(policy, stage_of(mask_sequences=[0.5, 2.0]), temperature=1.0)
    stale = replace(rollouts, rollout_logprobs_PKT=rollouts.rollout_logprobs_PKT - 1.0 * rollouts.mask_PKT, staleness=1)
    ready = learner.prepared(stale, 1)
    assert ready.keep_PKT is not None and not ready.keep_PKT.any(), "a ratio of e = 2.7 everywhere"
    torch.testing.assert_close(ready.rollout_logprobs_PKT, rollouts.rollout_logprobs_PKT, rtol=1e-4, atol=1e-5)
    assert ready.engine_logprobs_PKT is stale.rollout_logprobs_PKT and ready.staleness == 0


def test_the_entropy_s_factor_holds_its_target(rollouts: Rollouts) -> None:
    # weight 0.01, step 0.005, target 1: entropies 0.5, 0.5, 2, 0.5
    # factors 0.01, 0.015, 0 (above the target; c was 0.02), then c = 0.015
    term = EntropyTerm(stage_of(entropy={"weight": 0.01, "target": 1.0}))
    found = []
    for entropy in (0.5, 0.5, 2.0, 0.5):
        found.append(term.weight(replace(rollouts, entropy_PKT=torch.full(rollouts.tokens_PKT.shape, entropy))))
    assert found == pytest.approx([0.01, 0.015, 0.0, 0.015])
    other = EntropyTerm(stage_of(entropy={"weight": 0.01, "target": 1.0}))
    other.restore(term.state())
    assert other.held == term.held == pytest.approx(0.02)
    assert EntropyTerm(stage_of(entropy={"weight": 0.01})).state() == {}


def test_each_prompt_is_read_by_the_policy_of_its_task(rollouts: Rollouts) -> None:
    one, two = tiny_policy(), tiny_policy()
    with torch.no_grad():
        for parameter in two.model.parameters():
            parameter.mul_(1.5)
    tasks = ["a", "b", "b", "a"]
    mixed = replace(rollouts, prompts=[replace(p, task=t) for p, t in zip(rollouts.prompts, tasks, strict=True)])
    found = OtherPolicies({"a": one, "b": two}).logprobs(mixed, 1.0, 10_000, ALONE)
    own = {"a": batch_logprobs(one, rollouts, 1.0, 10_000), "b": batch_logprobs(two, rollouts, 1.0, 10_000)}
    for row, task in enumerate(tasks):
        torch.testing.assert_close(found[row], own[task][row], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1], own["a"][1], atol=1e-2)


def test_a_pair_is_read_by_the_policy_that_the_batch_begins_with(policy: Policy) -> None:
    given = [
        Prompt("1", "1 + 2 =", "3", demonstration="3", rejected="4"),
        Prompt("2", "7 =", "7", demonstration="7", rejected="no 8"),
    ]
    config = pipeline([{"stage": "dpo", "steps": 3, "prompts_per_step": 2}]).stages[0]
    pairs = PairBatches(policy, None, config).given(given)  # type: ignore[arg-type]
    assert pairs.texts == [["3", "4"], ["7", "no 8"]] and pairs.rewards_PK is not None
    assert pairs.rewards_PK.tolist() == [[1, 0], [1, 0]] and pairs.correct_PK is not None
    assert pairs.correct_PK.tolist() == [[True, False]] * 2
    wanted = batch_logprobs(policy, pairs, 1.0, 10_000)
    assert torch.equal(pairs.rollout_logprobs_PKT, wanted) and wanted[pairs.mask_PKT].max() < 0
