"""How much better a completion is than others: the pure functions that stages are built from.

They use tensor methods only, so that importing a stage does not import torch. None of them changes its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


RESOLUTION = 2.0**-20
"""Differences below this share of a group's largest value are float32's rounding: eight units in the last place."""
TIE = 1e-9
"""Differences below this are rounding of values that should be zero."""


def group_mean(values_PK: Tensor, valid_PK: Tensor | None = None) -> Tensor:
    """Mean of each group over its valid values, kept as a column.

    Shapes: [P, K], bool [P, K] -> [P, 1]. Edge: 0 where no value of a group is valid.
    """
    valid_PK = valid(values_PK, valid_PK)
    count_P1 = valid_PK.sum(dim=-1, keepdim=True).clamp(min=1)
    return values_PK.where(valid_PK, 0).sum(dim=-1, keepdim=True) / count_P1


def rounding(values_PK: Tensor, valid_PK: Tensor | None = None) -> Tensor:
    """The largest difference in each group that may be rounding of equal values.

    Shapes: [P, K], bool [P, K] -> [P, 1].
    """
    return (
        values_PK.where(valid(values_PK, valid_PK), 0).abs().amax(dim=-1, keepdim=True).mul(RESOLUTION).clamp(min=TIE)
    )


def all_equal(values_PK: Tensor, valid_PK: Tensor | None = None) -> Tensor:
    """Whether the valid values of each group are equal, apart from rounding; true also for fewer than two.

    Shapes: [P, K], bool [P, K] -> bool [P, 1].

    >>> import torch
    >>> all_equal(torch.tensor([[0.1 + 0.2, 0.3], [0.3, 0.31]])).tolist()
    [[True], [False]]
    """
    valid_PK = valid(values_PK, valid_PK)
    highest_P1 = values_PK.where(valid_PK, -float("inf")).amax(dim=-1, keepdim=True)
    lowest_P1 = values_PK.where(valid_PK, float("inf")).amin(dim=-1, keepdim=True)
    return highest_P1 - lowest_P1 <= rounding(values_PK, valid_PK)


def tied(values_PK: Tensor) -> Tensor:
    """Whether two values of a group are equal, apart from rounding. Shapes: [P, K] -> bool [P, K, K].

    >>> import torch
    >>> tied(torch.tensor([[0.1 + 0.2, 0.3, 1.0]])).tolist()
    [[[True, True, False], [True, True, False], [False, False, True]]]
    """
    return (values_PK[:, :, None] - values_PK[:, None, :]).abs() <= rounding(values_PK)[:, :, None]


def valid(values: Tensor, known: Tensor | None) -> Tensor:
    """``known``, which says what is valid, or true everywhere where it is None."""
    return values == values if known is None else known


def centre(rewards_PK: Tensor, valid_PK: Tensor | None = None) -> Tensor:
    """A_i = r_i - mean(r): by how much a completion beats its group; those that are not valid get 0.

    Shapes: [P, K], bool [P, K] -> [P, K]. Edge: a group of equal rewards is exactly zero, whatever rounding its mean
    suffered.

    >>> import torch
    >>> centre(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist()
    [[0.75, -0.25, -0.25, -0.25]]
    >>> centre(torch.tensor([[1.0, 0.0, 9.0]]), torch.tensor([[True, True, False]])).tolist()
    [[0.5, -0.5, 0.0]]
    """
    centred_PK = rewards_PK - group_mean(rewards_PK, valid_PK)
    return centred_PK.where(valid(rewards_PK, valid_PK) & ~all_equal(rewards_PK, valid_PK), 0)


def standardise(rewards_PK: Tensor, kept_PK: Tensor | None = None) -> Tensor:
    """A_i = (r_i - mean) / std, over the group or over its kept completions; the others get 0.

    The standard deviation divides by n - 1, as in the libraries that the papers used.

    Shapes: [P, K], bool [P, K] -> [P, K]. Edge: exactly zero where fewer than two are kept, or their rewards are equal.
    Source: GRPO (arXiv 2402.03300); over kept completions, GFPO (arXiv 2508.09726).

    >>> import torch
    >>> standardise(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).mul(2).round().tolist()
    [[2.0, -2.0, -2.0, 2.0]]
    """
    kept_PK = valid(rewards_PK, kept_PK)
    count_P1 = kept_PK.sum(dim=-1, keepdim=True)
    centred_PK = (rewards_PK - group_mean(rewards_PK, kept_PK)).where(kept_PK, 0)
    variance_P1 = centred_PK.square().sum(dim=-1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    differ_P1 = ~all_equal(rewards_PK, kept_PK)  # equal rewards have a deviation of rounding alone
    return (centred_PK / variance_P1.sqrt().where(differ_P1, 1)).where(differ_P1, 0)


def overlong_penalty(lengths_PK: Tensor, longest: int, buffer: int) -> Tensor:
    """The penalty on a completion's length: 0 up to ``longest`` - ``buffer`` tokens, then linearly down to -1.

    Shapes: int64 [P, K] -> float32 [P, K]. Units: reward. Source: DAPO (arXiv 2503.14476), soft overlong punishment.

    >>> import torch
    >>> overlong_penalty(torch.tensor([[5, 8, 9, 10]]), longest=10, buffer=2).tolist()
    [[-0.0, -0.0, -0.5, -1.0]]
    """
    return -((lengths_PK - (longest - buffer)).float() / buffer).clamp(0, 1)


def best_kept(values_PK: Tensor, count_P: Tensor, valid_PK: Tensor | None = None) -> Tensor:
    """True on the ``count_P`` valid completions of each group with the highest values, and on those tied with the last.

    Ties are kept, so that the order in which a group was sampled does not matter.

    Shapes: [P, K], int64 [P], bool [P, K] -> bool [P, K]. Edge: a count of K or more keeps all that are valid.

    >>> import torch
    >>> best_kept(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), torch.tensor([2])).tolist()
    [[True, False, True, True]]
    """
    valid_PK = valid(values_PK, valid_PK)
    found_PK = values_PK.float().where(valid_PK, -float("inf"))
    last_P1 = (count_P[:, None] - 1).clamp(0, values_PK.shape[-1] - 1)
    threshold_P1 = found_PK.sort(dim=-1, descending=True).values.gather(-1, last_P1)
    return valid_PK & (found_PK >= threshold_P1 - rounding(found_PK, valid_PK))


def length_adaptive_lambda(lengths_PK: Tensor, alpha: float) -> Tensor:
    """lambda = 1 - 1 / (alpha l), at least 0: the longer a completion, the further its reward reaches back.

    Shapes: int64 [P, K] -> float32 [P, K]. Edge: 0 up to l = 1 / alpha, where GAE is the one-step temporal
    difference; so short answers need a larger alpha. Source: VAPO (arXiv 2504.05118).

    >>> import torch
    >>> length_adaptive_lambda(torch.tensor([[10, 20, 40]]), alpha=0.05).tolist()
    [[0.0, 0.0, 0.5]]
    """
    return (1 - 1 / (alpha * lengths_PK.clamp(min=1).float())).clamp(min=0)


def gae(rewards_PK: Tensor, values_PKT: Tensor, mask_PKT: Tensor, lambda_PK: Tensor) -> Tensor:
    """Generalised advantage estimation for every token, undiscounted; the reward comes with the last token.

        delta_t = r_t + V(s_(t+1)) - V(s_t)        A_t = delta_t + lambda A_(t+1)

    V(s_t) is the value before token t, and 0 after the last one.

    Shapes: rewards, lambda [P, K]; values, mask [P, K, T] -> [P, K, T], 0 outside the mask. Units: reward.
    Edge: lambda 1 gives r - V(s_t). Source: arXiv 1506.02438 with gamma = 1.

    >>> import torch
    >>> values, mask = torch.tensor([[[0.5, 0.75]]]), torch.tensor([[[True, True]]])
    >>> gae(torch.tensor([[1.0]]), values, mask, torch.tensor([[0.0]])).tolist()
    [[[0.25, 0.25]]]
    """
    steps = mask_PKT.shape[-1]
    values_PKT = values_PKT * mask_PKT
    last_PKT = mask_PKT.clone()
    last_PKT[..., :-1] &= ~mask_PKT[..., 1:]
    advantages_PKT = values_PKT.new_zeros(values_PKT.shape)
    ahead_PK = advantage_PK = values_PKT.new_zeros(rewards_PK.shape)
    for t in reversed(range(steps)):
        delta_PK = rewards_PK * last_PKT[..., t] + ahead_PK - values_PKT[..., t]
        advantage_PK = (delta_PK + lambda_PK * advantage_PK) * mask_PKT[..., t]
        advantages_PKT[..., t], ahead_PK = advantage_PK, values_PKT[..., t]
    return advantages_PKT


def mixed_baseline(rewards_PK: Tensor, values_P: Tensor, alpha: float, valid_PK: Tensor | None = None) -> Tensor:
    """A_i = r_i - alpha * mean(r) - (1 - alpha) * V(x); those that are not valid get 0.

    Shapes: [P, K], [P], bool [P, K] -> [P, K]. Units: reward. Edge: alpha 0 leaves r - V(x), alpha 1 :func:`centre`.

    >>> import torch
    >>> mixed_baseline(torch.tensor([[1.0, 0.0]]), torch.tensor([0.3]), alpha=0.5).tolist()
    [[0.6000000238418579, -0.4000000059604645]]
    """
    advantages_PK = rewards_PK - alpha * group_mean(rewards_PK, valid_PK) - (1 - alpha) * values_P[:, None]
    return advantages_PK.where(valid(rewards_PK, valid_PK), 0)


def reweighted_mean(rewards_PK: Tensor, log_odds_PK: Tensor, valid_PK: Tensor | None = None) -> Tensor:
    """The mean reward that another policy would get, from the samples of this one: sum_i w_i r_i / sum_i w_i.

    w_i = exp(log_odds_i), how much more probable completion i is to the other policy; those that are not valid count
    for nothing.

    Shapes: rewards, log_odds [P, K], bool [P, K] -> [P, K], the same for all of a group. Units: reward, nats.
    Edge: where all rewards are equal it is exactly these, whatever rounding the sum suffered. Source: self-normalised
    importance sampling (Owen, "Monte Carlo theory, methods and examples", chapter 9).

    >>> import torch
    >>> reweighted_mean(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 1.0]]).log())
    tensor([[0.7500, 0.7500]])
    """
    weights_PK = _importance(log_odds_PK, valid_PK)
    mean_P1 = (weights_PK * rewards_PK.where(valid(rewards_PK, valid_PK), 0)).sum(-1, keepdim=True)
    return mean_P1.expand_as(rewards_PK).where(~all_equal(rewards_PK, valid_PK), rewards_PK)


def effective_samples(log_odds_PK: Tensor, valid_PK: Tensor | None = None) -> Tensor:
    """How many samples of the other policy a group of this one is worth, (sum_i w_i)^2 / sum_i w_i^2: 1 to K.

    w_i as in :func:`reweighted_mean`. Shapes: log_odds [P, K], bool [P, K] -> [P]. Edge: 0 where none is valid.
    Source: Kish's effective sample size (Owen, chapter 9).

    >>> import torch
    >>> effective_samples(torch.tensor([[1.0, 1.0], [3.0, 1.0]]).log())
    tensor([2.0000, 1.6000])
    """
    squares_P = _importance(log_odds_PK, valid_PK).square().sum(-1)
    return (1 / squares_P).where(squares_P > 0, 0)


def _importance(log_odds_PK: Tensor, valid_PK: Tensor | None) -> Tensor:
    """The importance weights of each group, whose sum is 1, or 0 where none is valid. Shapes: [P, K] -> [P, K]."""
    known_PK = valid(log_odds_PK, valid_PK)
    return log_odds_PK.masked_fill(~known_PK, -1e30).softmax(-1) * known_PK


TIE_MEMORY = 0.9
"""What remains of a batch's count of pairs after each further batch."""


def tie_weight(
    rewards_PK: Tensor, order_PKK: Tensor, quality_PKK: Tensor, counted: Mapping[str, float]
) -> dict[str, float]:
    """How much an order by further keys, such as the quality of the reasoning, may say where the reward says nothing.

    ``agreement`` is the share of pairs of different reward that the keys put as the reward does, less the share that
    they put the other way round: 0 is a coin, and less counts as 0. ``tie_weight`` is that, times the pairs that the
    reward orders over those that only the keys order, or 1 where these are fewer: so a proxy never outweighs the
    reward, and teaches nothing where it has nothing to do with it. Pairs are counted over the batches so far, where
    each further one lets the earlier ones count 0.9 as much; ``counted`` is what this gave for the batch before.

    Shapes: rewards [P, K], order and quality bool [P, K, K], true where i is better than j by all keys, and by those
    other than the reward -> counts, agreement and tie_weight. Edge: no pair of different reward makes it 0.
    Source: ours.

    >>> import torch
    >>> rewards, quality = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[3.0, 2.0, 1.0]])
    >>> better = quality[:, :, None] > quality[:, None, :]
    >>> tie_weight(rewards, better, better, {})
    {'with': 2.0, 'against': 0.0, 'apart': 2.0, 'tied': 1.0, 'agreement': 1.0, 'tie_weight': 1.0}
    """
    equal_PKK = tied(rewards_PK)
    ordered_PKK = order_PKK | order_PKK.mT
    better_PKK = (rewards_PK[:, :, None] > rewards_PK[:, None, :]) & ordered_PKK & ~equal_PKK
    pairs = {"with": better_PKK & quality_PKK, "against": better_PKK & quality_PKK.mT}
    pairs |= {"apart": better_PKK, "tied": order_PKK & equal_PKK}
    now = {name: TIE_MEMORY * counted.get(name, 0.0) + float(found.sum()) for name, found in pairs.items()}
    agreement = max(0.0, now["with"] - now["against"]) / max(1e-9, now["with"] + now["against"])
    share = min(1.0, now["apart"] / now["tied"]) if now["tied"] else 1.0
    return {**now, "agreement": agreement, "tie_weight": agreement * share}


def preference_pull(scores_PK: Tensor, order_PKK: Tensor) -> Tensor:
    """-dL/ds of the pairwise preference loss L(s) = -sum_{(i,j)} log sigmoid(s_i - s_j), i ranked above j.

    Each pair pulls its better member up and its worse member down by sigmoid(s_j - s_i): strongly where the policy
    has the wrong order, and hardly where it has the right one. L depends on the policy only through s, so using this
    as a weight on s gives exactly the gradient of L.

    Shapes: scores [P, K], order bool [P, K, K] (true at [p, i, j] where i is better than j) -> [P, K].
    Edge: a group without pairs is exactly zero; the sum over every group is zero.

    >>> import torch
    >>> order = torch.tensor([[[False, True], [False, False]]])
    >>> preference_pull(torch.tensor([[0.0, 0.0]]), order).tolist()
    [[0.5, -0.5]]
    """
    pull_PKK = (scores_PK[:, None, :] - scores_PK[:, :, None]).sigmoid() * order_PKK
    return pull_PKK.sum(dim=2) - pull_PKK.sum(dim=1)
