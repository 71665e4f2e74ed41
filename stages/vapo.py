"""VAPO: look past this one group, what does this prompt usually score?

    manual   A_i = r_i - alpha * mean(r) - (1 - alpha) * V(x), alpha = 0 leaves r_i - V(x)
             L   = -(1/K) * sum_i A_i * log pi(y_i | x)
    paper    A_(i,t) = GAE of a token critic's V(x, y before t), gamma 1, lambda = 1 - 1 / (length_alpha * length)
             L   = -(1/tokens) * sum over tokens of min(ratio A, clip(ratio, 0.8, 1.28) A)
                   - likelihood * mean log pi over the tokens of correct completions

V(x) is a value head on the policy's hidden state at the prompt's last token, which is detached: the critic learns from
the policy and never moves it. V(x, y before t) is a network of its own that starts as a copy of the policy. It is first
trained alone, on the rewards of the policy that stays as it is, and keeps lambda = 1 (both halves of decoupled GAE).

Source: operating manual, table of the four algorithms; for ``variant: paper`` arXiv 2504.05118.
Departure (manual): ``score: mean`` averages the log-probability over a completion's tokens; the manual sums.
Departure (paper): the critic starts from the policy, not from a reward model, which checkable answers do not need;
``length_alpha`` is the paper's 0.05, with which lambda is 0 up to 20 tokens: raise it for short answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from gradus.pipeline.advantages import gae, length_adaptive_lambda, mixed_baseline
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Critic, Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class VAPOConfig(StageConfig):
    """Options of VAPO."""

    presets: ClassVar = {
        "paper": {
            "critic": "token", "critic_lr": 2e-4, "critic_warmup": 10, "critic_clip": 0.2,
            "score": "batch", "clip": (0.2, 0.28), "likelihood": 0.1,
        }
    }  # fmt: skip
    stage: Literal["vapo"]
    """Discriminator: selects VAPO."""
    critic: Literal["prompt", "token"] = "prompt"
    """A value of the prompt, from a head on the policy; or of every position, from a network of its own."""
    alpha: float = Field(0.5, ge=0, le=1)
    """With a prompt's critic: share of the group's mean in the baseline; 0 is the critic alone, 1 the group alone."""
    length_alpha: float = Field(0.05, gt=0)
    """With a token's critic: the alpha of length-adaptive GAE; a reward reaches back over this share of a length."""
    critic_lr: float = Field(1e-2, gt=0)
    """Learning rate of the critic."""
    critic_warmup: int = Field(0, ge=0)
    """First steps, of ``steps``, in which the critic alone is trained."""
    critic_clip: float | None = Field(None, gt=0)
    """With a token's critic: the change of a value by one batch's updates that the critic's loss rewards; null: any."""
    likelihood: float = Field(0.0, ge=0)
    """Factor of the likelihood loss on correct completions."""

    @model_validator(mode="after")
    def _critic_warms_up_within_the_stage(self) -> VAPOConfig:
        if self.critic_warmup >= self.steps:
            raise ValueError(f"`critic_warmup` {self.critic_warmup} leaves the policy none of the {self.steps} steps")
        return self


def weigh(signals: Signals, config: VAPOConfig) -> Tensor:
    """A_i, or A_(i,t); the 1/K of the loss is the core's.

    Shapes: rewards [P, K] and values [P] -> [P, K]; rewards [P, K], values and mask [P, K, T] -> [P, K, T].
    Edge: equal rewards do not weigh zero where alpha < 1: the group may still differ from what the critic expected.

    >>> import torch
    >>> signals = Signals(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), values_P=torch.tensor([0.5]))
    >>> weigh(signals, VAPOConfig(stage="vapo", steps=1, alpha=0.0)).tolist()
    [[0.5, -0.5]]
    """
    if config.critic == "token":
        assert signals.values_PKT is not None and signals.mask_PKT is not None
        lambda_PK = length_adaptive_lambda(signals.lengths_PK, config.length_alpha)
        return gae(signals.rewards_PK, signals.values_PKT, signals.mask_PKT, lambda_PK)
    assert signals.values_P is not None
    return mixed_baseline(signals.rewards_PK, signals.values_P, config.alpha, signals.valid_PK)


STAGE = Stage(
    name="vapo",
    summary="reward against a learned expectation, of the prompt or of every token; steady on noisy rewards",
    config=VAPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(
        critic=Critic(config.critic, config.critic_lr, config.critic_warmup, config.critic_clip),
        likelihood=config.likelihood,
    ),
)
