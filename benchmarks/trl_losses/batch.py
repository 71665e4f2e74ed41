"""The same small model three times, and the batch that both systems learn from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from benchmarks.trl_losses.cases import GROUP, LONGEST, PROMPTS, Case
from torch import Tensor

from gradus.pipeline.config import PolicyConfig, SamplingConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.training.given_batches import PairBatches
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TEXTS = [
    ("1 + 2 =", "3", "4; no"),
    ("Calculate 12 + 34 - 5 =", "12+34=46; 46-5=41; answer: 41", "41"),
    ("7 * 8 =", "7*8=56; answer: 56", "7*8=54"),
    ("Calculate 9 - 12 + 3 - 4 + 8 =", "4", "3"),
]
"""Questions, each with a chosen and a rejected completion."""


@torch.no_grad()
def tiny(noise: float) -> Policy:
    """A small policy whose weights are so many of their standard deviations from those of the one without noise."""
    policy = create_policy(PolicyConfig(architecture=ARCHITECTURE, device="cpu"), [t for row in TEXTS for t in row], 0)
    draws = torch.Generator().manual_seed(int(100 * noise))
    for parameter in policy.model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3.0)  # new weights are so small that all tokens are nearly as likely
            parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=draws))
    return policy


@dataclass
class Policies:
    """The policy that trains, the one that sampled, and the reference or teacher."""

    now: Policy = field(default_factory=lambda: tiny(0.0))
    sampler: Policy = field(default_factory=lambda: tiny(0.2))
    reference: Policy = field(default_factory=lambda: tiny(0.3))


def batch_of(case: Case, policies: Policies) -> Rollouts:
    """The scored batch: pairs as a task gives them, or completions of the sampler with made-up rewards."""
    prompts = [
        Prompt(id=f"{number:016x}", question=question, answer="", demonstration=chosen, rejected=rejected)
        for number, (question, chosen, rejected) in enumerate(TEXTS)
    ]
    config = discover()[case.stage].config(stage=case.stage, steps=1, **case.ours)
    if case.stage == "dpo":
        return PairBatches(policies.now, None, config).given(prompts)  # type: ignore[arg-type]
    sampler = policies.now if case.sampler == "itself" else policies.sampler
    sampled = sample(sampler, prompts, GROUP, SamplingConfig(max_tokens=LONGEST), DrawKey(0, "losses", 1))
    rewards_PK = case.rewards * made_up_rewards()
    scored = {"rewards_PK": rewards_PK, "valid_PK": rewards_PK >= 0, "correct_PK": rewards_PK > case.rewards / 2}
    rollouts = sampled.with_rewards(**scored)
    if case.sampler != "engine":
        return replace(rollouts, staleness=int(case.sampler == "earlier"))
    logprobs_PKT = batch_logprobs(policies.now, rollouts, 1.0, config.token_budget)
    return replace(rollouts, rollout_logprobs_PKT=logprobs_PKT, engine_logprobs_PKT=sampled.rollout_logprobs_PKT)


def made_up_rewards() -> Tensor:
    """Shapes: -> float32 [P, K], from 0 to 1."""
    return torch.rand(PROMPTS, GROUP, generator=torch.Generator().manual_seed(3))


@dataclass
class Found:
    """What one system computes for a batch."""

    gradient: dict[str, Tensor]
    loss: float
    bounded: float | None
    """Share of ratios that a bound holds, or of what a mask leaves out; None: the case has neither."""
