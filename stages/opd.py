"""OPD: on-policy distillation. The student writes, and its teacher says of every token how likely it would have been.

    A_(i,t) = log pi_teacher(token) - log pi(token) + reward * (r_i - mean(r))
    L       = -(1/tokens) * sum over tokens of A_(i,t) log pi(token)

A_(i,t) is taken without a gradient. Its expected gradient, at a position that the student has come to, is that of the
reverse divergence KL(pi || pi_teacher) there: the student learns to write nothing that its teacher would not. With one
teacher for each task of a mixture it is the multi-teacher distillation (MOPD) that ends recent recipes.

Source: on-policy distillation, arXiv 2306.13649 (GKD) with the reverse divergence and samples of the student alone, as
a policy gradient of every token by itself (Thinking Machines, "On-Policy Distillation", 2025); with several teachers
and a reward beside them, MiMo-V2-Flash (arXiv 2601.02780).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gradus.pipeline.advantages import centre
from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.training.objective import PolicyChoice
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class OPDConfig(StageConfig):
    """Options of on-policy distillation."""

    other_policies: ClassVar[tuple[str, ...]] = ("reference", "teacher")
    stage: Literal["opd"]
    """Discriminator: selects on-policy distillation."""
    teacher: PolicyChoice
    """The policy to learn from: an earlier stage, a folder or a Hub id, of the same vocabulary; or one for each task,
    such as ``{math: math-expert, code: code-expert}``."""
    reward: float = Field(0.0, ge=0)
    """Factor of the reward against its group's mean, added to what the teacher says of each token; 0: none."""
    bound: float = Field(5.0, gt=0)
    """Largest weight, in nats, that the teacher gives a token in either direction."""
    score: Literal["sum", "mean", "batch"] = "batch"
    """How a completion's weight spreads over its tokens; ``batch``: every token of the batch counts the same."""


def weigh(signals: Signals, config: OPDConfig) -> Tensor:
    """log pi_teacher - log pi of every token, and the reward where it counts.

    Shapes: log-probabilities [P, K, T], rewards [P, K] -> [P, K, T]. Edge: exactly zero where both agree.

    >>> import torch
    >>> student, teacher = torch.tensor([[[0.5, 0.25]]]).log(), torch.tensor([[[0.25, 0.25]]]).log()
    >>> signals = Signals(torch.zeros(1, 1), torch.full((1, 1), 2), policy_logprobs_PKT=student,
    ...                   teacher_logprobs_PKT=teacher)
    >>> [round(weight, 4) for weight in weigh(signals, OPDConfig(stage="opd", steps=1, teacher="math"))[0, 0].tolist()]
    [-0.6931, 0.0]
    """
    assert signals.policy_logprobs_PKT is not None and signals.teacher_logprobs_PKT is not None
    said_PKT = (signals.teacher_logprobs_PKT - signals.policy_logprobs_PKT).clamp(-config.bound, config.bound)
    if not config.reward:
        return said_PKT
    return said_PKT + config.reward * centre(signals.rewards_PK, signals.valid_PK)[..., None]


STAGE = Stage(
    name="opd",
    summary="on-policy distillation: what a teacher, or one for each task, says of every token that the policy writes",
    config=OPDConfig,
    weigh=weigh,
    needs=lambda config: Needs(policy_logprobs=True, teacher_logprobs=True),
)
