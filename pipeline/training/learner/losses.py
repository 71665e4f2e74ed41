"""The one objective every stage shares, as pure tensor functions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def spread_PK(mask_PKT: Tensor, score: Literal["sum", "mean", "batch"], dtype: torch.dtype = torch.float32) -> Tensor:
    """The factor that turns a completion's summed log-probability into its score.

    sum: 1. mean: one over the completion's own length. batch: one over the mean length in the batch, so that every
    token counts the same while the scale stays that of ``mean``.

    Shapes: [P, K, T] -> ``dtype`` [P, K]. Edge: an empty completion counts as one token long.

    >>> mask = torch.tensor([[[True, True, True, True], [True, True, False, False]]])
    >>> [spread_PK(mask, score).tolist() for score in ("sum", "mean")]
    [[[1.0, 1.0]], [[0.25, 0.5]]]
    """
    lengths_PK = mask_PKT.sum(-1).clamp(min=1).to(dtype)
    if score == "sum":
        return torch.ones_like(lengths_PK)
    return 1.0 / lengths_PK if score == "mean" else torch.full_like(lengths_PK, 1.0 / float(lengths_PK.mean()))


def token_weights(weights: Tensor, mask_PKT: Tensor, score: Literal["sum", "mean", "batch"]) -> Tensor:
    """Coefficients c of the objective sum(c * log pi(token)) / (P * K).

    Shapes: weights [P, K] or [P, K, T], mask [P, K, T] -> [P, K, T], 0 outside the mask.
    """
    weights_PKT = weights[..., None] if weights.dim() == 2 else weights
    return weights_PKT * spread_PK(mask_PKT, score, weights.dtype)[..., None] * mask_PKT


def weighted_likelihood(
    logprobs: Tensor, coefficients: Tensor, rollout_logprobs: Tensor, clip: tuple[float, float] | None
) -> Tensor:
    """sum(c * log pi), or with a clip its off-policy form sum(min(c * ratio, c * clipped ratio)).

    The ratio is pi(token) / pi_sampler(token). At ratio 1, the first update of a batch, both have the same gradient.

    Shapes: all alike -> scalar. Units: nats times weight. Source: for the clip, PPO's surrogate (arXiv 1707.06347)
    with separate bounds below and above.
    """
    if clip is None:
        return (coefficients * logprobs).sum()
    # Far outside the clip the ratio's value no longer matters; the bound keeps exp from overflowing.
    ratio = (logprobs - rollout_logprobs).clamp(max=20.0).exp()
    bounded = ratio.clamp(1 - clip[0], 1 + clip[1])
    return torch.minimum(coefficients * ratio, coefficients * bounded).sum()


def importance_weights(policy_logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(pi(token) / pi_engine(token), cap), 1 outside the mask: makes a batch that an engine drew, which rounds in
    other places than the learner, count as the policy's own.

    Shapes: all alike -> float32. Source: truncated importance sampling (Ionides, 2008), a token at a time: without the
    cap the gradient's mean is the policy's own, with it no token can rule a batch.

    >>> policy, engine = torch.tensor([0.2, 0.6, 0.5]).log(), torch.tensor([0.4, 0.2, 0.5]).log()
    >>> [round(w, 4) for w in importance_weights(policy, engine, torch.tensor([True, True, False]), 2.0).tolist()]
    [0.5, 2.0, 1.0]
    """
    ratio = (policy_logprobs - engine_logprobs).clamp(max=20.0).exp().clamp(max=cap)
    return torch.where(mask, ratio, 1.0)


def kl_penalty(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(d) - 1 - d, d = log pi_ref - log pi, of each token that the policy drew: its mean is KL(pi || pi_ref).

    Shapes: alike -> alike. Units: nats. Edge: beyond d = 20 it goes on with the slope that it has there, so that it
    does not overflow. Source: the "k3" estimator, J. Schulman, "Approximating KL divergence" (2020), as the penalty of
    GRPO (arXiv 2402.03300). Its gradient is (1 - exp(d)) d log pi.

    >>> policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log()
    >>> [round(value, 4) for value in kl_penalty(policy, reference).tolist()]
    [0.1931, 0.0]
    """
    difference = reference_logprobs - policy_logprobs
    bounded = difference.clamp(max=20.0)
    return torch.expm1(bounded) * (1 + difference - bounded) - difference


def kl_estimate(policy_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> float:
    """KL(policy || reference) a token, on tokens the policy drew: mean of exp(-d) - 1 + d, d the log-ratio.

    Never negative. Units: nats a token. Source: the "k3" estimator, J. Schulman, "Approximating KL divergence" (2020).
    """
    difference = (policy_logprobs - reference_logprobs)[mask].double()
    return float((torch.expm1(-difference) + difference).mean()) if difference.numel() else 0.0
