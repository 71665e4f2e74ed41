"""Statistics of groups of completions: shares with intervals over prompts, pass@k, and parts of the variance.

Prompts are the units of every interval: the completions of one prompt resemble each other, so P x K of them carry less
information than as many independent completions would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from gradus.pipeline.statistics.intervals import share_bounds


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(total: int, correct: int, k: int) -> float:
    """Probability that k completions drawn without replacement from ``total`` contain a correct one.

        1 - C(total - correct, k) / C(total, k)

    the unbiased estimate of 1 - (1 - p)^k. Source: Chen et al. 2021 (arXiv 2107.03374), section 2.1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    assert 0 <= correct <= total and 1 <= k <= total
    return 1 - math.comb(total - correct, k) / math.comb(total, k)


def alike(sizes: Sequence[int], k: int) -> float:
    """Probability that k completions drawn without replacement all fall into one class.

        sum over classes of C(size, k) / C(total, k)

    the unbiased estimate of the sum of p^k: how often a group of k is uniform. With the classes right and wrong it is
    the share of all-right and all-wrong groups; with classes of equal keys, the share of groups that a ranking cannot
    order.

    >>> alike([3, 1], 2)  # 3 of the 6 pairs are both right, none both wrong
    0.5
    """
    total = sum(sizes)
    assert 1 <= k <= total
    return sum(math.comb(size, k) for size in sizes) / math.comb(total, k)


def share(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate | None:
    """The ratio sum(numerators) / sum(denominators), between 0 and 1, with an interval over the prompts.

    The standard error is that of the delete-one-prompt jackknife. The interval is Wilson's, with the number of trials
    that would give that error, and at least one trial for each prompt with a denominator above 0: so the interval has
    a width even where all prompts agree.

    Shapes: one number per prompt in each. Edge: None where all denominators are 0; a ratio above 1 counts as 1.
    Source: Efron and Stein 1981 (jackknife); Wilson 1927; Korn and Graubard 1998 (effective number of trials).

    >>> share([1, 0, 1, 1], [1, 1, 1, 1])
    Estimate(value=0.75, low=0.3006, high=0.9544)
    """
    pairs = [(a, b) for a, b in zip(numerators, denominators, strict=True) if b > 0]
    if not pairs:
        return None
    above, below, count = sum(a for a, _ in pairs), sum(b for _, b in pairs), len(pairs)
    value = min(1.0, max(0.0, above / below))
    left_out = [(above - a) / (below - b) for a, b in pairs if below - b > 0]
    error2 = (count - 1) / count * sum((x - fmean(left_out)) ** 2 for x in left_out) if len(left_out) == count else 0.0
    trials = max(float(count), value * (1 - value) / error2) if error2 > 0 else float(count)
    low, high = share_bounds(value * trials, trials)
    return Estimate(value, round(low, 4), round(high, 4))


def variance_parts(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Variance within and between the groups, by one-way analysis of variance.

        within  = weighted mean of the groups' unbiased variances, by their degrees of freedom
        between = variance of the groups' means - within * mean(1 / size), at least 0

    The subtraction removes the part by which the means differ by chance alone.
    Source: Searle, Casella, McCulloch 1992, ch. 3 (method of moments, unweighted means).

    >>> variance_parts([[1.0, 0.0], [1.0, 1.0]])  # 0.5 and 0; means 0.5 and 1, 0.125 - 0.25 / 2
    (0.25, 0.0)
    """
    whole = [group for group in groups if len(group) >= 2]
    if not whole:
        return 0.0, 0.0
    freedom = sum(len(group) - 1 for group in whole)
    within = sum(variance(group) * (len(group) - 1) for group in whole) / freedom
    if len(whole) < 2:
        return within, 0.0
    chance = within * fmean(1 / len(group) for group in whole)
    return within, max(0.0, variance([fmean(group) for group in whole]) - chance)


def success_histogram(counts: Sequence[tuple[int, int]]) -> list[int]:
    """Numbers of prompts by their share of correct completions: none, up to 1/4, up to 1/2, up to 3/4, below 1, all.

    >>> success_histogram([(0, 8), (1, 8), (2, 8), (3, 8), (7, 8), (8, 8)])
    [1, 2, 1, 0, 1, 1]
    """
    found = [0] * 6
    for right, total in counts:
        found[5 if right == total else math.ceil(4 * right / total)] += 1
    return found
