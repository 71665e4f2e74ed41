"""Metrics of a step and of an evaluation. Every stage uses the same names, so that its curves share one chart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.advantages import all_equal, effective_samples
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.training.evaluation import Evaluation
from gradus.pipeline.training.learner.groups import uniform_share
from gradus.pipeline.training.learner.losses import kl_estimate
from gradus.pipeline.types import Rollouts


def rollout_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Lengths; the divergence from a reference and from teachers where the stage has them; also rewards, their spread
    within groups and entropy where the batch was sampled and scored.

    Entropy is in nats a token, averaged over all tokens of the batch; a group is uniform where its rewards are equal.
    How many samples of the reference a group is worth is averaged over groups: few, where the reference is far away.
    Only completions whose reward could be computed count; what none of them gives is not a number.
    """
    metrics = {
        "completion/length": float(rollouts.lengths_PK.float().mean()),
        "completion/truncated_share": float(rollouts.truncated_PK.float().mean()),
    }
    if rollouts.entropy_PKT is not None:
        metrics["policy/entropy"] = float(rollouts.entropy_PKT[rollouts.mask_PKT].mean())
    if rollouts.engine_logprobs_PKT is not None:
        differences = rollouts.rollout_logprobs_PKT - rollouts.engine_logprobs_PKT
        metrics["sampler/mismatch"] = float(differences[rollouts.mask_PKT].abs().mean())
    others = {"reference": rollouts.reference_logprobs_PKT, "teacher": rollouts.teacher_logprobs_PKT}
    for name, logprobs_PKT in others.items():
        if logprobs_PKT is not None:
            metrics[f"policy/kl_to_{name}"] = kl_estimate(
                rollouts.rollout_logprobs_PKT, logprobs_PKT, rollouts.mask_PKT
            )
    if rollouts.components:
        assert rollouts.rewards_PK is not None and rollouts.valid_PK is not None
        valid_PK = rollouts.valid_PK
        scored = rollouts.rewards_PK[valid_PK]
        metrics |= {
            "reward/mean": float(scored.mean()),
            "reward/std": float(scored.std(unbiased=False)) if len(scored) else math.nan,
            "reward/invalid_share": 1.0 - float(valid_PK.float().mean()),
            "group/uniform_share": uniform_share(all_equal(rollouts.rewards_PK, valid_PK)[:, 0], valid_PK),
        }
        metrics |= {f"reward/{label}": float(values.nanmean()) for label, values in rollouts.components.items()}
        if rollouts.reference_logprobs_PKT is not None:
            log_odds_PK = (rollouts.reference_logprobs_PKT - rollouts.rollout_logprobs_PKT).sum(-1)
            metrics["reference/effective_samples"] = float(effective_samples(log_odds_PK, valid_PK).mean())
    return metrics


def advantage_metrics(weights: Tensor) -> dict[str, float]:
    """Mean, spread and extremes of a batch's weights, zeros included."""
    return {
        "advantage/mean": float(weights.mean()),
        "advantage/std": float(weights.std(unbiased=False)),
        "advantage/min": float(weights.min()),
        "advantage/max": float(weights.max()),
        "advantage/nonzero_share": float((weights != 0).float().mean()),
    }


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Without the values that are not numbers, such as the mean of a component that failed everywhere."""
    return {name: value for name, value in metrics.items() if torch.isfinite(torch.tensor(value))}


def sample_rows(evaluation: Evaluation, config: PipelineConfig) -> list[dict[str, Any]]:
    """The first held-out prompts with what the policy answers and how each reward scores it."""
    return [
        {
            "question": prompt.question,
            "completion": completion,
            "answer": prompt.answer,
            **{f"reward/{label}": values[row][0] for label, values in evaluation.components.items()},
        }
        for row, (prompt, completion) in enumerate(evaluation.answers[: config.tracking.samples])
    ]


def heldout_curves(measured: dict[str, Any], several: dict[str, Any] | None = None) -> dict[str, float]:
    """Held-out accuracy with its 95 % interval, as curves; none where there is no accuracy.

    ``several``: the record of each task, where there are several.
    """
    tasks = (several or {}).get("tasks", {})
    curves = {f"heldout/accuracy/{n}": each["accuracy"] for n, each in tasks.items() if each["accuracy"] is not None}
    if measured["accuracy"] is None:
        return curves
    low, high = measured["interval"]
    whole = {"heldout/accuracy": measured["accuracy"], "heldout/accuracy_low": low, "heldout/accuracy_high": high}
    return whole | curves
