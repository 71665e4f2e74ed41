"""Factors on a token's log-probability besides its completion's weight, and metrics of how far the policy moved."""

from __future__ import annotations

import torch
from torch import Tensor

from gradus.pipeline.config import StageConfig
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


def kept_tokens(rollouts: Rollouts, config: StageConfig) -> tuple[Tensor | None, dict[str, float]]:
    """Which tokens take part, by the stage's options ``mask_...``, and the shares that do not; None: all.

    A ratio is that of the policy before the batch's first update to whatever sampled the tokens.

    Shapes: -> bool [P, K, T]. Source: for sequences, the geometric mean of GSPO (arXiv 2507.18071); for tokens, IcePop
    (Ring-1T, arXiv 2510.18855); for what is cut off, the overlong filter of DAPO (arXiv 2503.14476).
    """
    mask_PKT, metrics = rollouts.mask_PKT, dict[str, float]()
    if not (config.mask_truncated or config.masks):
        return None, metrics
    keep_PKT = torch.ones_like(mask_PKT)
    if config.mask_truncated:
        keep_PKT &= ~rollouts.truncated_PK[..., None]
        metrics["mask/truncated"] = float(rollouts.truncated_PK.float().mean())
    if config.masks:
        assert rollouts.engine_logprobs_PKT is not None, "the batch was not prepared"
        log_ratio_PKT = (rollouts.rollout_logprobs_PKT - rollouts.engine_logprobs_PKT) * mask_PKT
        if config.mask_sequences is not None:
            outside_PK = _outside(log_ratio_PKT.sum(-1) / rollouts.lengths_PK.clamp(min=1), config.mask_sequences)
            keep_PKT &= ~outside_PK[..., None]
            metrics["mask/sequences"] = float(outside_PK.float().mean())
        if config.mask_tokens is not None:
            outside_PKT = _outside(log_ratio_PKT, config.mask_tokens)
            keep_PKT &= ~outside_PKT
            metrics["mask/tokens"] = float(outside_PKT[mask_PKT].float().mean())
    return keep_PKT, metrics


def _outside(log_ratio: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Where the ratio is below the lower bound or above the upper one. Shapes: any -> the same."""
    ratio = log_ratio.clamp(max=20.0).exp()
    return (ratio < bounds[0]) | (ratio > bounds[1])


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
