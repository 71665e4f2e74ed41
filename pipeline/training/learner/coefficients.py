"""Factors on a token's log-probability besides its completion's weight, and metrics of how far the policy moved."""

from __future__ import annotations

import torch
from torch import Tensor

from gradus.pipeline.training.learner.losses import importance_weights
from gradus.pipeline.types import Rollouts


def engine_correction(rollouts: Rollouts, cap: float) -> tuple[Tensor, dict[str, float]]:
    """Importance weights of tokens that another engine sampled, and their metrics; 1 where the policy sampled them.

    Shapes: -> float32 [P, K, T], or a scalar.
    """
    if rollouts.engine_logprobs_PKT is None:
        return torch.ones(()), {}
    mask = rollouts.mask_PKT
    weights = importance_weights(rollouts.rollout_logprobs_PKT, rollouts.engine_logprobs_PKT, mask, cap)
    capped = float((weights[mask] >= cap).float().mean())
    return weights, {"update/importance": float(weights[mask].mean()), "update/importance_capped": capped}


def likelihood_coefficients(rollouts: Rollouts, factor: float) -> Tensor:
    """Coefficients of the likelihood loss, a mean over the tokens of correct completions, at the objective's scale.

    Shapes: -> float32 [P, K, T].
    """
    assert rollouts.correct_PK is not None
    chosen_PKT = rollouts.mask_PKT & (rollouts.correct_PK & rollouts.scored_PK)[..., None]
    return chosen_PKT * (factor * rollouts.truncated_PK.numel() / chosen_PKT.sum().clamp(min=1))


def drift_metrics(differences: Tensor, clip: tuple[float, float] | None) -> dict[str, float]:
    """How far the policy's log-probabilities are from the sampler's, and how many ratios are out of bounds.

    ``differences``: the policy's log-probability of each token minus the sampler's, in nats.
    """
    metrics = {"update/train_sample_mismatch": float(differences.abs().mean())}
    if clip is not None:
        ratio, (low, high) = differences.exp(), clip
        metrics["update/clipped_share"] = float(((ratio < 1 - low) | (ratio > 1 + high)).float().mean())
    return metrics
