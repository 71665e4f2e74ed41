"""The statistics of a comparison of training methods: pure functions on plain numbers, each one stated in full.

Methods are compared on S seeds and N held-out prompts. Every seed has one starting checkpoint, which all methods share,
and all are measured on the same prompts: so differences are taken within a seed and a prompt before anything else.
Both the seeds and the prompts are samples of what could have been drawn, and an interval that forgets either one is
too narrow. With three seeds, the seeds decide: an interval over three values is t(0.975, 2) = 4.30 standard errors to
either side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from gradus.pipeline.statistics.intervals import _mean

LEVEL = 0.95
"""Confidence of every interval."""

Verdict = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean with what is known about its error."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval; None where there is no telling (one seed)."""
    high: float | None
    p: float | None = None
    """Two-sided probability of a mean this far from zero, were the true one zero."""
    df: float | None = None
    """Degrees of freedom of the t distribution behind the interval."""


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value a seed, with Student's t interval.

    mean +- t(0.975, S - 1) * sd / sqrt(S). Edge: one seed has no interval; equal values have one without a width.

    >>> found = over_seeds([0.70, 0.74, 0.78])
    >>> [round(each, 4) for each in (found.mean, found.low, found.high)]
    [0.74, 0.6406, 0.8394]
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, None, None)
    return _student(mean, float(np.std(values, ddof=1)) / math.sqrt(count), count - 1.0)


def over_prompts(correct_SN: np.ndarray) -> Estimate:
    """Mean accuracy of these very policies, with the interval over prompts alone: what other prompts could change.

    The accuracy of a prompt is its mean over the seeds; mean +- 1.96 * sd(prompts) / sqrt(N).
    Shapes: correct [S, N], 0 or 1.
    """
    each_N = np.asarray(correct_SN, dtype=float).mean(0)
    half = stats.norm.ppf((1 + LEVEL) / 2) * each_N.std(ddof=1) / math.sqrt(len(each_N)) if len(each_N) > 1 else 0.0
    return Estimate(float(each_N.mean()), float(each_N.mean() - half), float(each_N.mean() + half))


def paired(differences_SN: np.ndarray) -> Estimate:
    """Mean difference of two methods, of seeds and prompts that both are random: the paired test of a comparison.

    The model is d[s, n] = mu + seed_s + prompt_n + rest, all but mu random. With the mean squares of a two-way analysis
    of variance, MS_seed (S - 1 degrees of freedom), MS_prompt (N - 1) and MS_rest ((S - 1)(N - 1)), the variance of the
    grand mean is estimated without bias by (MS_seed + MS_prompt - MS_rest) / (S N); here never by less than MS_seed or
    MS_prompt alone would give. The statistic is compared with a t distribution whose degrees of freedom are
    Satterthwaite's, (a sum of mean squares)^2 / sum(MS^2 / df): close to S - 1 where the seeds make the difference.

    Shapes: differences [S, N], usually of 0/1 correctness: -1, 0 or 1.
    Edge: with one seed the seeds' part cannot be estimated: no interval and no p. Without any difference p is 1.
    Source: H. Scheffe (1959), The Analysis of Variance, ch. 7; F. E. Satterthwaite (1946).
    """
    d_SN = np.asarray(differences_SN, dtype=float)
    seeds, prompts = d_SN.shape
    mean = float(d_SN.mean())
    if seeds < 2 or prompts < 2:
        return Estimate(mean, None, None)
    by_seed_S, by_prompt_N = d_SN.mean(1), d_SN.mean(0)
    rest_SN = d_SN - by_seed_S[:, None] - by_prompt_N + mean
    of_seeds = prompts * float(by_seed_S.var(ddof=1))
    of_prompts = seeds * float(by_prompt_N.var(ddof=1))
    rest_df = (seeds - 1) * (prompts - 1)
    of_rest = float((rest_SN**2).sum()) / rest_df
    total = max(of_seeds + of_prompts - of_rest, of_seeds, of_prompts)
    parts = of_seeds**2 / (seeds - 1) + of_prompts**2 / (prompts - 1) + of_rest**2 / rest_df
    df = max(1.0, total**2 / parts) if parts else float(rest_df)
    return _student(mean, math.sqrt(total / (seeds * prompts)), df)


def _student(mean: float, error: float, df: float) -> Estimate:
    """The interval and the p of a mean with this standard error."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, df)) if error > 0 else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, p, df)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of a family of tests: below 0.05 for any false one in at most 5 % of all families.

    The i-th smallest of m (i from 0) is multiplied by m - i, and none is less than a smaller one's.
    Source: S. Holm (1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(difference: Estimate, margin: float) -> Verdict:
    """Whether "the difference is above zero" holds, by its 95 % interval.

    *Supported* where the whole interval is above zero; *not supported* where the whole interval is below ``margin``,
    the smallest difference worth a claim; *undecided* otherwise, and always without an interval.
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    if difference.low > 0:
        return "supported"
    return "not supported" if difference.high < margin else "undecided"


def best_of_all(differences: Sequence[Estimate], margin: float) -> Verdict:
    """Whether one method is above every other, given its difference to each: all of a family, so Holm's p decides.

    *Supported* where every difference is positive with an adjusted p below 0.05; *not supported* where at least one
    whole interval is below ``margin``; *undecided* otherwise.
    """
    if not differences or any(each.p is None for each in differences):
        return "undecided"
    adjusted = holm([each.p for each in differences if each.p is not None])
    if all(each.mean > 0 and p < 1 - LEVEL for each, p in zip(differences, adjusted, strict=True)):
        return "supported"
    return "not supported" if any(verdict(each, margin) == "not supported" for each in differences) else "undecided"


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim of several parts: supported where all are, not supported where one is not, else undecided."""
    if "not supported" in verdicts:
        return "not supported"
    return "supported" if set(verdicts) == {"supported"} else "undecided"


def paired_drop(best: Sequence[float], now: Sequence[float]) -> float:
    """McNemar's exact test on the same prompts: the p-value of "now is no worse than the best".

    Only prompts that were answered differently tell anything. Of b that were right and are wrong now, and c the other
    way round, b is binomial(b + c, 1/2) where nothing has changed: p = P(B >= b).

    Shapes: a 0 or 1 for each prompt, in the same order.

    >>> paired_drop([1, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1])  # b = 3, c = 1: (4 + 1) / 16
    0.3125
    """
    from scipy.special import bdtrc

    lost = sum(before > after for before, after in zip(best, now, strict=True))
    won = sum(before < after for before, after in zip(best, now, strict=True))
    return float(bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0


def mean_drop(best: Sequence[float], now: Sequence[float]) -> float:
    """Welch's test on two sets of independent measurements: the p-value of "now is no worse than the best".

    t = (mean best - mean now) / sqrt(e1^2 + e2^2), with Welch's and Satterthwaite's degrees of freedom.
    Edge: where neither has any spread, 0 for a lower mean and 1 for any other.

    >>> round(mean_drop([0.8, 0.9, 1.0], [0.3, 0.5, 0.4]), 4)  # t = 0.5 / sqrt(2 * 0.01 / 3) = 6.12, 4 degrees
    0.0018
    """
    from scipy.special import stdtr

    (high, e1, n1), (low, e2, n2) = _mean(best), _mean(now)
    variance = e1 * e1 + e2 * e2
    if variance == 0:
        return 0.0 if low < high else 1.0
    freedom = variance**2 / (e1**4 / n1 + e2**4 / n2)
    return float(stdtr(freedom, (low - high) / math.sqrt(variance)))


def alarm_level(risk: float, looks: int) -> float:
    """The p-value under which a comparison with the best is an alarm, so that its risk in a whole stage is ``risk``.

    The best is the luckiest of all measurements so far, and every new one is compared with it. At look t it is one of
    t earlier ones, the start included, so over all looks there are looks (looks + 1) / 2 pairs that could alarm; each
    gets an equal part (Bonferroni). A fall must show in several measurements, which only makes false alarms rarer.

    >>> alarm_level(0.01, 4)
    0.001
    """
    return risk / (looks * (looks + 1) / 2)
