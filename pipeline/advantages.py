"""Who is better, and by how much: the pure functions that stages are made of.

They use tensor methods only, so that importing a stage does not import torch. None of them changes its arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def group_mean(values_PK: Tensor) -> Tensor:
    """Mean of each group, kept as a column.

    Shapes: [P, K] -> [P, 1].
    """
    return values_PK.mean(dim=-1, keepdim=True)


def centre(rewards_PK: Tensor) -> Tensor:
    """A_i = r_i - mean(r): by how much a completion beats its group.

    Shapes: [P, K] -> [P, K]. Edge: a group of equal rewards is exactly zero, whatever rounding its mean suffered.

    >>> import torch
    >>> centre(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist()
    [[0.75, -0.25, -0.25, -0.25]]
    """
    return zero_where_uniform(rewards_PK - group_mean(rewards_PK), rewards_PK)


def zero_where_uniform(advantages_PK: Tensor, rewards_PK: Tensor) -> Tensor:
    """``advantages_PK``, exactly zero where a group's rewards are all equal, so that no pass is spent on them."""
    mixed_P1 = (rewards_PK != rewards_PK[..., :1]).any(dim=-1, keepdim=True)
    return advantages_PK * mixed_P1


def mixed_baseline(rewards_PK: Tensor, values_P: Tensor, alpha: float) -> Tensor:
    """A_i = r_i - alpha * mean(r) - (1 - alpha) * V(x).

    Shapes: [P, K], [P] -> [P, K]. Units: reward. Edge: alpha 0 leaves r - V(x), alpha 1 leaves :func:`centre`.

    >>> import torch
    >>> mixed_baseline(torch.tensor([[1.0, 0.0]]), torch.tensor([0.3]), alpha=0.5).tolist()
    [[0.6000000238418579, -0.4000000059604645]]
    """
    return rewards_PK - alpha * group_mean(rewards_PK) - (1 - alpha) * values_P[:, None]


def preference_pull(scores_PK: Tensor, order_PKK: Tensor) -> Tensor:
    """-dL/ds of the pairwise preference loss L(s) = -sum_{(i,j)} log sigmoid(s_i - s_j), i ranked above j.

    Each pair pulls its better member up and its worse member down by sigmoid(s_j - s_i): strongly where the policy
    has the order wrong, hardly where it already has it right. Because L reaches the policy only through s, using this
    as a weight on s gives exactly the gradient of L.

    Shapes: scores [P, K], order bool [P, K, K] (true at [p, i, j] where i is better than j) -> [P, K].
    Edge: a group without pairs is exactly zero; every group sums to zero.

    >>> import torch
    >>> order = torch.tensor([[[False, True], [False, False]]])
    >>> preference_pull(torch.tensor([[0.0, 0.0]]), order).tolist()
    [[0.5, -0.5]]
    """
    pull_PKK = (scores_PK[:, None, :] - scores_PK[:, :, None]).sigmoid() * order_PKK
    return pull_PKK.sum(dim=2) - pull_PKK.sum(dim=1)
