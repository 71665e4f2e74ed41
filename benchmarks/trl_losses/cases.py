"""What is compared: options of a stage, and the options of TRL that make it the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gradus.pipeline.types import Rollouts

PROMPTS, GROUP, LONGEST = 4, 6, 24
LARGE = 1e4
"""Factor on the rewards beside which TRL's 1e-4 in the denominator of an advantage is nothing."""


@dataclass(frozen=True)
class Case:
    """One algorithm with its settings in both systems."""

    stage: str
    ours: dict[str, Any]
    """Options of the stage."""
    theirs: dict[str, Any]
    """Options of TRL's configuration."""
    sampler: Literal["earlier", "engine", "itself"] = "earlier"
    """What has sampled: the policy as it was some updates ago; another engine, whose log-probabilities are not the
    policy's; or the policy itself. It is not asked of pairs, which are given."""
    rewards: float = 1.0
    """Factor on the rewards."""
    times: Callable[[Rollouts], float] = lambda rollouts: 1.0
    """Factor on TRL's loss."""
    note: str = ""
    """What else makes them the same, or why they are not."""

    @property
    def written(self) -> tuple[str, str]:
        """Both settings, as in a configuration and as in a call."""
        ours = ", ".join(f"{key}: {json.dumps(value)}" for key, value in self.ours.items()).replace('"', "")
        return ours, ", ".join(f"{key}={value!r}" for key, value in self.theirs.items()).replace("'", '"')


def kept_share(rollouts: Rollouts) -> float:
    """The share of the tokens that are in completions that were not cut off."""
    return float((rollouts.lengths_PK * ~rollouts.truncated_PK).sum() / rollouts.lengths_PK.sum())


def dapo(ours: dict[str, Any], theirs: dict[str, Any], **how: Any) -> Case:
    """The clipped ratio of tokens, with advantages that are not divided by a deviation."""
    bounded = {"epsilon": 0.2, "epsilon_high": 0.28, "scale_rewards": "none"}
    return Case("dapo", {"advantage": "centred", "clip": (0.2, 0.28)} | ours, bounded | theirs, **how)


def standardised(stage: str, ours: dict[str, Any], theirs: dict[str, Any], **how: Any) -> Case:
    """Advantages divided by the group's deviation."""
    return Case(stage, {"advantage": "standardised"} | ours, {"scale_rewards": "group"} | theirs, **how)


def dpo(loss: str, beta: float, **ours: Any) -> Case:
    """A preference loss; where it is normalised by length, TRL has a name of its own for it."""
    named = f"{loss}_norm" if ours else loss
    return Case("dpo", {"loss": loss, "beta": beta} | ours, {"loss_type": named, "beta": beta}, sampler="itself")


GSPO = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.02, "epsilon_high": 0.03}
KL, TERMS = {"use_bias_correction_kl": False, "beta": 0.3}, {"kl": 0.3, "entropy": {"weight": 0.2}}
MODE, LEAST, MOST = (f"vllm_importance_sampling_{name}" for name in ("mode", "clip_min", "clip_max"))
SCALED = {"rewards": LARGE, "note": f"rewards x {LARGE:g}"}
SAME = [
    dapo({"score": "mean"}, {"loss_type": "grpo"}),
    dapo({"score": "batch"}, {"loss_type": "bnpo"}),
    dapo({"score": "batch"}, {"loss_type": "dapo"}),
    dapo({"score": "sum"}, {"loss_type": "dr_grpo"}, times=lambda _: LONGEST, note="TRL's x max_completion_length"),
    standardised("dapo", {"clip": (0.2, 0.2)}, {"loss_type": "grpo", "epsilon": 0.2}, **SCALED),
    standardised("gspo", {"sequence_clip": (0.02, 0.03)}, GSPO, **SCALED),
    standardised("cispo", {"ratio_cap": 1.2}, {"loss_type": "cispo", "epsilon_high": 1.2}, **SCALED),
    dpo("sigmoid", 0.7),
    dpo("sigmoid", 7.0, score="mean"),
    dpo("apo_zero", 0.7),
    dpo("apo_down", 0.7),
    Case("opd", {"teacher": "start", "bound": 50.0}, {"iw_opd_gamma": 0.0}, sampler="itself"),
    dapo({"kl": 0.3}, {"loss_type": "grpo"} | KL),
    dapo({"score": "batch"} | TERMS, {"loss_type": "bnpo", "entropy_coef": 0.2} | KL),
    dapo({"mask_truncated": True}, {"loss_type": "grpo", "mask_truncated_completions": True}),
    dapo(
        {"mask_truncated": True, "score": "batch"},
        {"loss_type": "bnpo", "mask_truncated_completions": True},
        times=kept_share,
        note="TRL's x the share of tokens that are kept",
    ),
    dapo({"importance_cap": 1.2}, {"loss_type": "grpo", MODE: "token_truncate", MOST: 1.2}, sampler="engine"),
    dapo(
        {"mask_tokens": (0.9, 1.2), "importance_cap": 1.2},
        {"loss_type": "grpo", MODE: "token_mask", LEAST: 0.9, MOST: 1.2},
        sampler="engine",
    ),
]
NOT_THE_SAME = [
    standardised(
        "dapo",
        {"clip": (0.2, 0.2)},
        {"loss_type": "grpo", "epsilon": 0.2},
        note="TRL divides by the deviation + 1e-4",
    ),
    standardised(
        "cispo",
        {"ratio_cap": 1.2},
        {"loss_type": "cispo", "epsilon_high": 0.2},
        rewards=LARGE,
        note="here TRL's epsilon_high is the cap itself, and not what is added to 1",
    ),
    Case(
        "opd",
        {"teacher": "start", "bound": 50.0},
        {"distillation_objective": "jsd", "beta": 1.0, "loss_top_k": 0},
        sampler="itself",
        note="the same divergence over the whole vocabulary, equal in expectation alone",
    ),
    dapo({"kl": 0.3}, {"loss_type": "grpo", "beta": 0.3}, note="by default TRL multiplies its KL term by the ratio"),
    dapo(
        {"mask_truncated": True, "score": "batch"},
        {"loss_type": "bnpo", "mask_truncated_completions": True},
        note="gradus divides by the tokens of the batch, TRL by those that are kept",
    ),
    dapo(
        {"mask_sequences": (0.97, 1.2), "importance_cap": 1.2},
        {"loss_type": "grpo", MODE: "sequence_mask", LEAST: 0.97, MOST: 1.2},
        sampler="engine",
        note="TRL goes by the product of the tokens' ratios and multiplies by it, gradus by their geometric mean",
    ),
]
