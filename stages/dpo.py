"""DPO: of two given completions of a prompt, the chosen one becomes more probable than the rejected one.

    d_c, d_r   beta (log pi(y | x) - log pi_ref(y | x)) of the chosen and the rejected one
    sigmoid    L = -log sigmoid(d_c - d_r)
    apo_zero   L = -sigmoid(d_c) + sigmoid(d_r): the chosen one up and the rejected one down, each by itself
    apo_down   L = sigmoid(d_c) - sigmoid(d_c - d_r): both down, the rejected one more, where the chosen ones are not
               better than what the policy writes

The loss reaches the policy through d alone, so the shared learner takes -K dL/ds, K = 2, as a completion's weight. The
pairs are the columns ``demonstration`` (chosen) and ``rejected`` of the task. ``score: sum`` is the literal DPO,
``score: mean`` its length-normalised form.

Source: arXiv 2305.18290; for the APO losses arXiv 2408.06266; normalised by length, Tulu 3 (arXiv 2411.15124).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gradus.pipeline.advantages import preference_pull
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor


class DPOConfig(StageConfig):
    """Options of direct preference optimisation."""

    stage: Literal["dpo"]
    """Discriminator: selects DPO."""
    loss: Literal["sigmoid", "apo_zero", "apo_down"] = "sigmoid"
    """Which loss of the two log-ratios."""
    beta: float = Field(0.1, gt=0)
    """Factor of a log-ratio, in the inverse of nats: smaller lets the policy go further from its reference."""
    prompts_per_step: int = Field(32, ge=1)
    """Pairs in a batch."""
    group_size: Literal[2] = 2  # type: ignore[assignment]
    """A chosen completion and a rejected one."""
    lr: float = Field(5e-5, gt=0)
    """Peak learning rate of AdamW; 5e-7 to 1e-6 for a model of billions of weights."""
    score: Literal["sum", "mean"] = "sum"  # type: ignore[assignment]
    """A completion's log-ratio: its tokens' sum, or their mean."""


def weigh(signals: Signals, config: DPOConfig) -> Tensor:
    """-K dL/ds of the chosen and the rejected completion.

    Shapes: policy_scores, reference_scores [P, 2], order [P, 2, 2] -> [P, 2].

    >>> import torch
    >>> order = torch.tensor([[[False, True], [False, False]]])
    >>> signals = Signals(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), order_PKK=order,
    ...                   policy_scores_PK=torch.zeros(1, 2), reference_scores_PK=torch.zeros(1, 2))
    >>> weigh(signals, DPOConfig(stage="dpo", steps=1, beta=0.5)).tolist()
    [[0.5, -0.5]]
    """
    assert signals.policy_scores_PK is not None and signals.reference_scores_PK is not None
    assert signals.order_PKK is not None
    ratio_PK = config.beta * (signals.policy_scores_PK - signals.reference_scores_PK)
    factor = config.beta * ratio_PK.shape[-1]
    if config.loss == "sigmoid":
        return factor * preference_pull(ratio_PK, signals.order_PKK)
    slope_PK = ratio_PK.sigmoid() * (1 - ratio_PK.sigmoid())
    better_PK, worse_PK = signals.order_PKK.sum(2), signals.order_PKK.sum(1)
    if config.loss == "apo_zero":
        return factor * slope_PK * (better_PK - worse_PK)
    margin_PKK = (ratio_PK[:, :, None] - ratio_PK[:, None, :]).sigmoid()
    apart_PKK = margin_PKK * (1 - margin_PKK) * signals.order_PKK
    return factor * (apart_PKK.sum(2) - apart_PKK.sum(1) - slope_PK * better_PK)


STAGE = Stage(
    name="dpo",
    summary="preferences between given pairs, chosen and rejected, against a reference policy",
    config=DPOConfig,
    weigh=weigh,
    needs=lambda config: Needs(
        completions="pairs", ranking=("reward",), policy_scores=True, reference=True, reference_logprobs=True
    ),
)
