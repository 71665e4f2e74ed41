"""The diagnosis of a policy on a task, computed from P groups of K scored completions. No tensors, no model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance

import numpy as np

from gradus.pipeline.statistics.groups import Estimate, alike, pass_at_k, share, success_histogram, variance_parts

TIE_DIGITS = 9
"""Scores that agree to this many decimals count as equal, as in a ranking."""


@dataclass(frozen=True)
class Group:
    """The completions of one prompt. All lists have one entry per completion; NaN where it could not be scored."""

    rewards: list[float]
    """Weighted reward."""
    again: list[float]
    """The weighted reward of the same completions, scored a second time."""
    correct: list[float]
    """1 where the completion counts as correct, else 0."""
    correct_again: list[float]
    """``correct`` by the second scoring."""
    lengths: list[int]
    """Tokens of each completion."""
    truncated: list[bool]
    """Whether the completion was cut off at max_tokens."""
    components: dict[str, list[float]] = field(default_factory=dict)
    """label of a reward -> scores."""

    def key(self, name: str) -> list[float]:
        """A ranking key's values, higher is better: ``reward``, ``shorter``, ``longer`` or a reward's label."""
        if name in ("shorter", "longer"):
            return [float(length if name == "longer" else -length) for length in self.lengths]
        return self.rewards if name == "reward" else self.components[name]


@dataclass(frozen=True)
class KeyUse:
    """How a ranking key relates to the reward."""

    key: str
    breaks: Estimate | None
    """Share of the pairs with equal reward that it tells apart; None where there are no such pairs."""
    agrees: Estimate | None
    """Share of the pairs that reward and key both tell apart in which they prefer the same one; 0.5 is a coin."""


@dataclass(frozen=True)
class Diagnosis:
    """All statistics that the decision rules use or that are shown."""

    prompts: int
    samples: int
    """Completions per prompt."""
    pass_at: dict[int, Estimate]
    """k -> pass@k."""
    mixed: dict[int, Estimate]
    """K -> expected share of groups of K with right and wrong completions."""
    all_wrong: dict[int, Estimate]
    """K -> expected share of groups without a right completion."""
    all_right: dict[int, Estimate]
    """K -> expected share of groups without a wrong completion."""
    useful: dict[int, Estimate]
    """K -> expected share of groups whose rewards are not all equal; other groups have zero advantage everywhere."""
    ordered: dict[int, Estimate]
    """K -> expected share of groups in which ``ranking`` tells at least two completions apart."""
    success: list[int]
    """Prompts by their share of right completions: 0, four equal steps in between, 1."""
    reward_mean: float
    within: float
    """Variance of the reward among completions of one prompt, in reward units squared."""
    between: float
    """Variance of the expected reward among prompts."""
    noise: Estimate | None
    """Share of ``within`` that is noise of the scorer; None where no group has unequal rewards."""
    flips: Estimate
    """Share of completions that count as right by one scoring and as wrong by the other."""
    failed: Estimate
    """Share of completions that could not be scored."""
    ties: Estimate
    """Share of pairs within a group whose rewards are equal."""
    ranking: tuple[str, ...]
    """The keys behind ``ordered`` and ``ranked_ties``, the most important first."""
    ranked_ties: Estimate | None
    """Share of the pairs with equal reward that the keys of ``ranking`` tell apart; None where there are none."""
    keys: list[KeyUse]
    length_mean: float
    length_high: int
    """95th percentile of the completion lengths, in tokens."""
    max_tokens: int
    truncated: Estimate


def noise_share(groups: Sequence[Group]) -> Estimate | None:
    """Share of the variance within groups that is noise of the scorer, which may give one completion two rewards.

        sum over prompts of var(r - r') / 2   over   sum over prompts of (var(r) + var(r')) / 2

    The true reward cancels in r - r', which leaves the noise of two scorings. Noise that a whole group shares, as where
    equal texts are scored once, is in neither sum: the group's mean removes it.
    Edge: None where no group's rewards differ.
    """
    noises, variances = [], []
    for group in groups:
        pairs = [(a, b) for a, b in zip(group.rewards, group.again, strict=True) if not math.isnan(a + b)]
        if len(pairs) >= 2:
            noises.append(variance([a - b for a, b in pairs]) / 2)
            variances.append((variance([a for a, _ in pairs]) + variance([b for _, b in pairs])) / 2)
    return share(noises, variances)


def key_use(groups: Sequence[Group], key: str) -> KeyUse:
    """How a ranking key relates to the reward, over the pairs within each group that have both."""
    broken, tied, same, both = [], [], [], []
    for group in groups:
        pairs = np.array([group.rewards, group.key(key)], dtype=float).round(TIE_DIGITS)
        pairs = pairs[:, ~np.isnan(pairs).any(0)]
        first, second = np.triu_indices(pairs.shape[1], k=1)
        by_reward, by_key = np.sign(pairs[:, first] - pairs[:, second])
        tied.append(int((by_reward == 0).sum()))
        broken.append(int(((by_reward == 0) & (by_key != 0)).sum()))
        both.append(int((by_reward * by_key != 0).sum()))
        same.append(int((by_reward * by_key > 0).sum()))
    return KeyUse(key, share(broken, tied), share(same, both))


def classes(group: Group, keys: Sequence[str]) -> list[int]:
    """Sizes of the classes of completions with equal values of all keys; completions without a score are left out.

    >>> classes(Group([1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [4, 4, 5], [False] * 3), ["reward"])
    [1, 2]
    """
    values = zip(*(group.key(key) for key in keys), strict=True)
    found: list[Hashable] = [tuple(round(v, TIE_DIGITS) for v in row) for row in values if not math.isnan(sum(row))]
    return list(Counter(found).values())


def diagnose(groups: Sequence[Group], ranking: Sequence[str], max_tokens: int) -> Diagnosis:
    """All statistics of a probe. ``ranking``: the keys that a ranked stage would use, the reward first.

    Every other reward component and ``shorter`` are examined as keys too.
    Edge: at least one completion must have a score.
    """
    samples = max(len(group.rewards) for group in groups)
    sizes = group_sizes(groups)
    right: list[Sequence[int]] = [[int(c) for c in group.correct if not math.isnan(c)] for group in groups]
    rewards = [[r for r in group.rewards if not math.isnan(r)] for group in groups]
    within, between = variance_parts(rewards)
    others = [*dict.fromkeys([*ranking, *groups[0].components, "shorter"])]
    lengths = sorted(length for group in groups for length in group.lengths)
    pairs = [[(a, b) for a, b in zip(g.correct, g.correct_again, strict=True) if not math.isnan(a + b)] for g in groups]
    by_reward: list[Sequence[int]] = [classes(group, ["reward"]) for group in groups]
    return Diagnosis(
        prompts=len(groups),
        samples=samples,
        pass_at=_by_size([1, *sizes], right, lambda c, k: pass_at_k(len(c), sum(c), k)),
        mixed=_by_size(sizes, right, lambda c, k: 1 - alike([sum(c), len(c) - sum(c)], k)),
        all_wrong=_by_size(sizes, right, lambda c, k: 1 - pass_at_k(len(c), sum(c), k)),
        all_right=_by_size(sizes, right, lambda c, k: math.comb(sum(c), k) / math.comb(len(c), k)),
        useful=_by_size(sizes, by_reward, lambda c, k: 1 - alike(c, k), size=sum),
        ordered=ordered_groups(groups, ranking),
        success=success_histogram([(sum(c), len(c)) for c in right if c]),
        reward_mean=fmean(r for group in rewards for r in group),
        within=within,
        between=between,
        noise=noise_share(groups),
        flips=_certain(share([sum(a != b for a, b in group) for group in pairs], [len(group) for group in pairs])),
        failed=_certain(
            share([len(g.rewards) - len(r) for g, r in zip(groups, rewards, strict=True)], _counts(groups))
        ),
        ties=_certain(share([_pairs(c) for c in by_reward], [math.comb(sum(c), 2) for c in by_reward])),
        ranking=tuple(ranking),
        ranked_ties=ranked_ties(groups, ranking),
        keys=[key_use(groups, key) for key in others if key != "reward"],
        length_mean=fmean(lengths),
        length_high=lengths[math.ceil(0.95 * len(lengths)) - 1],
        max_tokens=max_tokens,
        truncated=_certain(share([sum(group.truncated) for group in groups], _counts(groups))),
    )


def group_sizes(groups: Sequence[Group]) -> list[int]:
    """The powers of two from 2 up to the completions of a prompt."""
    samples = max(len(group.rewards) for group in groups)
    return [2**n for n in range(1, samples.bit_length()) if 2**n <= samples]


def ordered_groups(groups: Sequence[Group], ranking: Sequence[str]) -> dict[int, Estimate]:
    """K -> expected share of groups of K in which these keys tell at least two completions apart."""
    found: list[Sequence[int]] = [classes(group, ranking) for group in groups]
    return _by_size(group_sizes(groups), found, lambda c, k: 1 - alike(c, k), size=sum)


def ranked_ties(groups: Sequence[Group], ranking: Sequence[str]) -> Estimate | None:
    """Share of the pairs with equal reward that at least one key of ``ranking`` tells apart."""
    ties, broken = [], []
    for group in groups:
        scored = [all(not math.isnan(group.key(key)[i]) for key in ranking) for i in range(len(group.rewards))]
        usable = _only(group, scored)
        ties.append(_pairs(classes(usable, ["reward"])))
        broken.append(ties[-1] - _pairs(classes(usable, ["reward", *ranking])))
    return share(broken, ties)


def _by_size(
    sizes: Sequence[int],
    rows: Sequence[Sequence[int]],
    chance: Callable[[Sequence[int], int], float],
    size: Callable[[Sequence[int]], int] = len,
) -> dict[int, Estimate]:
    """size -> mean over the prompts of the chance that a group of this size has the property.

    Prompts with fewer scored completions than that are left out.
    """
    found = {}
    for k in sizes:
        values = [chance(row, k) for row in rows if size(row) >= k]
        estimate = share(values, [1] * len(values))
        if estimate is not None:
            found[k] = estimate
    return found


def _only(group: Group, kept: Sequence[bool]) -> Group:
    """The group with only the completions that are kept; its second scoring is not."""
    pick = [i for i, keep in enumerate(kept) if keep]
    rewards, lengths = [group.rewards[i] for i in pick], [group.lengths[i] for i in pick]
    components = {label: [values[i] for i in pick] for label, values in group.components.items()}
    return Group(rewards, rewards, rewards, rewards, lengths, [group.truncated[i] for i in pick], components)


def _pairs(sizes: Sequence[int]) -> int:
    return sum(math.comb(size, 2) for size in sizes)


def _counts(groups: Sequence[Group]) -> list[int]:
    return [len(group.rewards) for group in groups]


def _certain(estimate: Estimate | None) -> Estimate:
    """The estimate, or, where there was nothing to count, 0 with the interval from 0 to 1."""
    return estimate or Estimate(0.0, 0.0, 1.0)
