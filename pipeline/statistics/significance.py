"""Tests and intervals for a comparison of training methods.

Methods are compared on S seeds and N held-out prompts. Each seed has one starting checkpoint, which all methods share,
and all methods are measured on the same prompts. So differences are taken within a seed and a prompt before anything
else. Both the seeds and the prompts are samples, and an interval that ignores either of them is too narrow. With three
seeds the seeds dominate: an interval over three values is t(0.975, 2) = 4.30 standard errors to either side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Confidence of every interval."""

Verdict = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class MeanEstimate:
    """A mean with its interval and its test against zero; with one seed, neither can be estimated."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval; None with a single seed."""
    high: float | None
    """Upper end of the 95 % interval; None with a single seed."""
    p: float | None = None
    """Two-sided p-value of the hypothesis that the true mean is zero."""
    df: float | None = None
    """Degrees of freedom of the t distribution behind the interval."""


def over_seeds(values: Sequence[float]) -> MeanEstimate:
    """Mean of one value per seed, with Student's t interval.

    mean +- t(0.975, S - 1) * sd / sqrt(S). Edge: one seed has no interval; the interval of equal values has no width.

    >>> found = over_seeds([0.70, 0.74, 0.78])
    >>> [round(each, 4) for each in (found.mean, found.low, found.high)]
    [0.74, 0.6406, 0.8394]
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return MeanEstimate(mean, None, None)
    return _student(mean, float(np.std(values, ddof=1)) / math.sqrt(count), count - 1.0)


def over_prompts(correct_SN: np.ndarray) -> MeanEstimate:
    """Mean accuracy of the given policies, with the interval over prompts alone: how far other prompts could move it.

    The accuracy of a prompt is its mean over the seeds; mean +- 1.96 * sd(prompts) / sqrt(N).
    Shapes: correct [S, N], 0 or 1.
    """
    each_N = np.asarray(correct_SN, dtype=float).mean(0)
    half = stats.norm.ppf((1 + LEVEL) / 2) * each_N.std(ddof=1) / math.sqrt(len(each_N)) if len(each_N) > 1 else 0.0
    return MeanEstimate(float(each_N.mean()), float(each_N.mean() - half), float(each_N.mean() + half))


def paired(differences_SN: np.ndarray) -> MeanEstimate:
    """Mean difference of two methods where both seeds and prompts are random: the paired test of a comparison.

    The model is d[s, n] = mu + seed_s + prompt_n + rest, all but mu random. With the mean squares of a two-way analysis
    of variance, MS_seed (S - 1 degrees of freedom), MS_prompt (N - 1) and MS_rest ((S - 1)(N - 1)), the variance of the
    grand mean is estimated without bias by (MS_seed + MS_prompt - MS_rest) / (S N); here the estimate is never less
    than MS_seed or MS_prompt alone would give. The statistic is compared with a t distribution whose degrees of freedom
    are Satterthwaite's, (a sum of mean squares)^2 / sum(MS^2 / df): close to S - 1 where the seeds dominate.

    Shapes: differences [S, N], usually of 0/1 correctness: -1, 0 or 1.
    Edge: one seed does not show how seeds vary, so there is no interval and no p. Without any difference p is 1.
    Source: H. Scheffe (1959), The Analysis of Variance, ch. 7; F. E. Satterthwaite (1946).
    """
    d_SN = np.asarray(differences_SN, dtype=float)
    seeds, prompts = d_SN.shape
    mean = float(d_SN.mean())
    if seeds < 2 or prompts < 2:
        return MeanEstimate(mean, None, None)
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


def _student(mean: float, error: float, df: float) -> MeanEstimate:
    """The interval and the p-value of a mean with this standard error."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, df)) if error > 0 else float(mean == 0)
    return MeanEstimate(mean, mean - half, mean + half, p, df)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: with a threshold of 0.05, at most 5 % of all families contain a false positive.

    The i-th smallest of m p-values (i from 0) is multiplied by m - i, and no adjusted value is less than that of a
    smaller p-value.
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


def verdict(difference: MeanEstimate, margin: float) -> Verdict:
    """The verdict on "the difference is above zero", from its 95 % interval.

    *Supported* where the whole interval is above zero; *not supported* where the whole interval is below ``margin``,
    the smallest difference worth a claim; *undecided* otherwise, and always without an interval.
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    if difference.low > 0:
        return "supported"
    return "not supported" if difference.high < margin else "undecided"


def best_of_all(differences: Sequence[MeanEstimate], margin: float) -> Verdict:
    """The verdict on "this method is above every other", from its difference to each; Holm's correction applies.

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
    """The verdict on a claim of several parts: supported if all are, not supported if one is not, else undecided."""
    if "not supported" in verdicts:
        return "not supported"
    return "supported" if set(verdicts) == {"supported"} else "undecided"
