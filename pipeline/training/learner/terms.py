"""The terms of the objective, token by token: their factors, and what is made of log-probabilities and entropies.

    objective = sum over tokens of  pull * log pi  (or its clipped form)      the stage's weights
                                  + likelihood * log pi                       correct completions
                                  - kl * (exp(d) - 1 - d),  d = log pi_ref - log pi
                                  + entropy * H(pi)

Each factor has the scale of the weights: the learner divides the whole by the number of completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.config import StageConfig
from gradus.pipeline.training.learner.coefficients import likelihood_coefficients
from gradus.pipeline.training.learner.losses import kl_penalty, spread_PK, token_weights, weighted_likelihood
from gradus.pipeline.types import Rollouts, State


@dataclass(frozen=True)
class Terms:
    """Factors of the terms, and the log-probabilities that they compare with; None: the objective has no such term.

    Shapes: float32, all alike: [P, K, T], or [R, T], or those of some tokens.
    """

    pull: Tensor
    old_logprobs: Tensor
    """By the policy that sampled, in nats: the denominator of a clipped ratio."""
    likelihood: Tensor | None = None
    kl: Tensor | None = None
    reference_logprobs: Tensor | None = None
    entropy: Tensor | None = None

    @classmethod
    def of(
        cls, rollouts: Rollouts, weights: Tensor, config: StageConfig, likelihood: float, entropy_weight: float
    ) -> Terms:
        """Those of a batch whose completions have these weights, [P, K] or [P, K, T]. Shapes: -> [P, K, T] each."""
        mask_PKT, keep_PKT = rollouts.mask_PKT, rollouts.keep_PKT
        taking_part_PKT = mask_PKT if keep_PKT is None else mask_PKT & keep_PKT
        even_PKT = spread_PK(mask_PKT, config.score)[..., None] * taking_part_PKT
        pull_PKT = token_weights(weights, mask_PKT, config.score)
        return cls(
            pull=pull_PKT if keep_PKT is None else pull_PKT * keep_PKT,
            old_logprobs=rollouts.rollout_logprobs_PKT,
            likelihood=likelihood_coefficients(rollouts, likelihood) * taking_part_PKT if likelihood else None,
            kl=config.kl * even_PKT if config.kl else None,
            reference_logprobs=rollouts.reference_logprobs_PKT if config.kl else None,
            entropy=entropy_weight * even_PKT if entropy_weight else None,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Terms:
        """The same with every tensor changed."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})

    def active(self) -> list[int]:
        """The rows whose factors are not all zero, of terms [R, T]."""
        factors = [part for part in (self.pull, self.likelihood, self.kl, self.entropy) if part is not None]
        return torch.stack([part.abs().sum(-1) for part in factors]).sum(0).nonzero()[:, 0].tolist()

    def value(self, logprobs: Tensor, clip: tuple[float, float] | None, piece: slice = slice(None)) -> Tensor:
        """The objective of some tokens, but for the entropy's term. Shapes: [M] -> scalar."""
        total = weighted_likelihood(logprobs, self.pull[piece], self.old_logprobs[piece], clip)
        if self.likelihood is not None:
            total = total + (self.likelihood[piece] * logprobs).sum()
        if self.kl is not None:
            assert self.reference_logprobs is not None, "the batch was prepared without its reference"
            total = total - (self.kl[piece] * kl_penalty(logprobs, self.reference_logprobs[piece])).sum()
        return total


class EntropyTerm:
    """The factor of the entropy's term: fixed, or moved so that the entropy of what is sampled holds a target.

        c grows by ``step`` after a batch below the target, and shrinks by as much after one above it, down to 0
        factor = c where the batch is at the target or below it, 0 above it

    Source: adaptive entropy control of Skywork-OR1 (arXiv 2505.22312).
    """

    def __init__(self, config: StageConfig):
        self.options = config.entropy
        self.held = self.options.weight if self.options is not None else 0.0

    def weight(self, rollouts: Rollouts) -> float:
        """The factor for a batch, after which the next one's is settled."""
        options = self.options
        if options is None or options.target is None:
            return self.held
        assert rollouts.entropy_PKT is not None, "the entropy of demonstrations is not known"
        measured, held = float(rollouts.entropy_PKT[rollouts.mask_PKT].mean()), self.held
        below = measured < options.target
        self.held = max(0.0, held + (options.step if below else -options.step))
        return held if measured <= options.target else 0.0

    def state(self) -> State:
        """What the next batch's factor depends on; empty where it is fixed."""
        return {"entropy": self.held} if self.options is not None and self.options.target is not None else {}

    def restore(self, state: State) -> None:
        self.held = state.get("entropy", self.held)
