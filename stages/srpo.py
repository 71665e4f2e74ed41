"""SRPO: compares the policy with an earlier one. Or, as published: practises what is not solved yet.

    reward_gap   A_i = r(y_i) - r(y_i_ref),  y_ref sampled from the reference policy for the same prompt
    log_ratio    A_i = log pi(y_i | x) - log pi_ref(y_i | x)
    combined     A_i = r(y_i) - r(y_i_ref) - beta * (log pi(y_i | x) - log pi_ref(y_i | x))
    L = -sum_i A_i * log pi(y_i | x)

    paper        A_i = (r_i - mean(r)) / std(r), and after an epoch prompts whose completions were all correct leave

The reference is the policy at the stage's start or some steps ago (``refresh``), or one that ``reference`` names.

Source: operating manual, table of the four algorithms and pseudo-code (which has the minus sign that the text of the
log-ratio lost); for ``variant: paper`` arXiv 2504.14286.
Departure: the default is ``reward_gap``. ``log_ratio``, the manual's other form, contains no reward and is zero until
the policy has left its reference, so that it never moves, or reinforces any drift. ``combined`` is ours.
Departure: the reference's expected reward is taken from the policy's own group, sum_i w_i r_i / sum_i w_i with w_i =
pi_ref(y_i | x) / pi(y_i | x): a forward pass in place of a second group (``baseline: reweighted``). The literal form
samples y_i_ref (``paired``), and ``mean`` is the mean of these K, of the same expectation and with less noise.
Departure: the sum over i is divided by K, as in the other losses; ``normalise: none`` is literal.
The paper's phases are two stages (``configs/recipes/srpo.yaml``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from gradus.pipeline.advantages import group_mean, reweighted_mean, standardise
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class SRPOConfig(StageConfig):
    """Options of SRPO."""

    presets: ClassVar = {"paper": {"advantage": "standardised", "resample": True, "score": "batch", "clip": (0.2, 0.2)}}
    stage: Literal["srpo"]
    """Discriminator: selects SRPO."""
    advantage: Literal["reward_gap", "log_ratio", "combined", "standardised"] = "reward_gap"
    """Which comparison with the reference weighs a completion; or, without one, the group's standardised rewards."""
    resample: bool = False
    """After an epoch, leave out the prompts whose completions were all correct; where all are, begin again."""
    beta: float = Field(0.05, ge=0)
    """For ``combined``: reward units that one nat of departure from the reference costs."""
    baseline: Literal["reweighted", "mean", "paired"] = "reweighted"
    """Compare a reward with what the reference would score on average, found from the policy's own group by importance
    weights; or let it sample a group too: with the mean of that, or with its completion of the same index."""
    refresh: int = Field(20, ge=0)
    """Steps between refreshes of the reference; 0 keeps the stage's start. A chosen ``reference`` is always kept."""
    normalise: Literal["group", "none"] = "group"
    """Divide a group's sum by K, or take it as it is."""

    @model_validator(mode="after")
    def _one_policy_samples(self) -> SRPOConfig:
        if isinstance(self.reference, dict) and _gap(self, "mean", "paired"):
            raise ValueError("a `reference` for each task cannot be sampled from: leave `baseline` out, or name one")
        return self


def weigh(signals: Signals, config: SRPOConfig) -> Tensor:
    """The comparison with the reference, by ``config.advantage``; times K where the loss is the literal sum.

    Shapes: rewards, reference_rewards, log_ratio [P, K] -> [P, K].

    >>> import torch
    >>> signals = Signals(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), reference_rewards_PK=torch.tensor([[0.0, 1.0]]))
    >>> weigh(signals, SRPOConfig(stage="srpo", steps=1, baseline="paired")).tolist()
    [[1.0, -1.0]]
    """
    if config.advantage == "standardised":
        return standardise(signals.rewards_PK, signals.valid_PK)
    if config.advantage == "log_ratio":
        assert signals.log_ratio_PK is not None
        advantages_PK = signals.log_ratio_PK
    else:
        advantages_PK = signals.rewards_PK - _baseline(signals, config)
    if config.advantage == "combined":
        assert signals.log_ratio_PK is not None
        advantages_PK = advantages_PK - config.beta * signals.log_ratio_PK
    if signals.reference_valid_PK is not None:  # without a reward of the reference there is nothing to compare with
        valid_PK = signals.reference_valid_PK
        comparable_PK = valid_PK.any(-1, keepdim=True) if config.baseline == "mean" else valid_PK
        advantages_PK = advantages_PK.where(comparable_PK, 0)
    return advantages_PK if config.normalise == "group" else advantages_PK * signals.rewards_PK.shape[-1]


def _gap(config: SRPOConfig, *baselines: str) -> bool:
    """Is a reward compared with what the reference scores, by one of these baselines?"""
    return config.advantage in ("reward_gap", "combined") and config.baseline in baselines


def _baseline(signals: Signals, config: SRPOConfig) -> Tensor:
    """The reward that the reference got, or would get. Shapes: -> [P, K] or [P, 1]."""
    if config.baseline == "reweighted":
        assert signals.reference_logprobs_PKT is not None and signals.rollout_logprobs_PKT is not None
        log_odds_PK = (signals.reference_logprobs_PKT - signals.rollout_logprobs_PKT).sum(-1)
        return reweighted_mean(signals.rewards_PK, log_odds_PK, signals.valid_PK)
    rewards_PK = signals.reference_rewards_PK
    assert rewards_PK is not None
    return group_mean(rewards_PK, signals.reference_valid_PK) if config.baseline == "mean" else rewards_PK


STAGE = Stage(
    name="srpo",
    summary="reward against what a reference policy scores on the same prompts; stabilises long runs",
    config=SRPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(
        reference=config.advantage != "standardised",
        refresh_reference=config.refresh,
        reference_rewards=_gap(config, "mean", "paired"),
        reference_logprobs=_gap(config, "reweighted"),
        log_ratio=config.advantage in ("log_ratio", "combined"),
        resample=config.resample,
    ),
)
