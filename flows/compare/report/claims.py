"""The manual's claims about the algorithms as rules that a comparison decides. docs/claims.md explains them.

Every rule compares the arm with the algorithm's name to the other arms of a single algorithm ("the others"). A claim
stays undecided if one of these arms was not compared, or if there are fewer than two seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradus.flows.compare.plan.arms import STAGED
from gradus.pipeline.statistics.significance import (
    MeanEstimate,
    Verdict,
    all_of,
    best_of_all,
    over_seeds,
    paired,
    verdict,
)

MARGIN = 0.01
"""The smallest difference in accuracy that a claim is about: one percentage point."""
EARLY_SHARE = 0.25
"""The share of the budget that counts as early."""
SINGLE = ("dapo", "vapo", "gfpo", "srpo")
"""The arms of a single algorithm."""


@dataclass(frozen=True)
class Facts:
    """What the rules use, for the arms that were compared."""

    early: Mapping[str, Mapping[int, float]]
    """arm -> seed -> mean gain over the first quarter of the budget, on the validation prompts."""
    drop: Mapping[str, Mapping[int, float]]
    """arm -> seed -> worst drop of the smoothed validation curve from its peak."""
    correct: Mapping[str, Mapping[int, Mapping[str, bool]]]
    """arm -> seed -> prompt id -> whether the final policy answers it."""

    def others(self, arm: str) -> list[str]:
        """The single algorithms besides this one."""
        return [each for each in SINGLE if each != arm and each in self.correct]

    def missing(self) -> list[str]:
        """A note if one of the single algorithms was not compared; the claims are about all four."""
        absent = [each for each in SINGLE if each not in self.correct]
        return [f"{', '.join(absent)} not compared"] if absent else []

    def above_others(self, measure: Mapping[str, Mapping[int, float]], arm: str) -> MeanEstimate | None:
        """An arm's measure minus the mean of the others, over the seeds that all of them have; None without others."""
        others = self.others(arm)
        if arm not in measure or not others:
            return None
        seeds = sorted(set(measure[arm]).intersection(*(measure[each] for each in others)))
        if not seeds:
            return None
        return over_seeds([measure[arm][s] - float(np.mean([measure[each][s] for each in others])) for s in seeds])

    def answers(self, arms: Sequence[str]) -> np.ndarray | None:
        """Correctness [A, S, N] of these arms on the seeds and prompts that all have; None if there are none."""
        if not arms or any(arm not in self.correct for arm in arms):
            return None
        seeds = sorted(set.intersection(*(set(self.correct[arm]) for arm in arms)))
        if not seeds:
            return None
        ids = sorted(set.intersection(*(set(self.correct[arm][seed]) for arm in arms for seed in seeds)))
        rows = [[[self.correct[arm][seed][each] for each in ids] for seed in seeds] for arm in arms]
        return np.array(rows, dtype=float) if ids else None

    def final(self, arm: str, against: Sequence[str]) -> MeanEstimate | None:
        """An arm's final accuracy minus the mean of the arms ``against``, paired by seed and prompt."""
        found = self.answers([arm, *against]) if against else None
        return None if found is None else paired(found[0] - found[1:].mean(0))


@dataclass(frozen=True)
class Claim:
    """One claim with its rule, the verdict and the reason for it."""

    claim: str
    rule: str
    verdict: Verdict
    because: str
    parts: dict[str, dict[str, Any]]
    """The differences that decide it: name -> estimate."""


def judge(facts: Facts) -> list[Claim]:
    """The verdict on every claim."""
    first, share = "the first quarter of the budget", f"{MARGIN:.2f}"
    early = f"mean gain in validation accuracy over {first}"
    drop = "worst drop from its peak of the smoothed validation curve"
    rest = f"Supported if the whole 95 % interval over seeds is above 0, not supported if it is below {share}."
    pairs = "paired over seeds and prompts"

    def more(measure: Mapping[str, Mapping[int, float]], arm: str, sign: float = 1.0) -> MeanEstimate | None:
        return _times(facts.above_others(measure, arm), sign)

    def gains_less(arm: str) -> MeanEstimate | None:
        return _times(facts.final(arm, facts.others(arm)), -1.0)

    return [
        _claim(
            facts,
            "DAPO is fast",
            f"DAPO's {early} minus the others' mean. {rest}",
            {"early": more(facts.early, "dapo")},
        ),
        _claim(
            facts,
            "DAPO is prone to collapse",
            f"DAPO's {drop} minus the others' mean. {rest}",
            {"drop": more(facts.drop, "dapo")},
        ),
        _claim(
            facts,
            "VAPO is stable",
            f"The others' mean {drop} minus VAPO's. {rest}",
            {"drop": more(facts.drop, "vapo", -1.0)},
        ),
        _claim(
            facts,
            "VAPO is slow",
            f"The others' {early} minus VAPO's. {rest}",
            {"early": more(facts.early, "vapo", -1.0)},
        ),
        _claim(
            facts,
            "SRPO is very stable",
            f"The others' mean {drop} minus SRPO's. {rest}",
            {"drop": more(facts.drop, "srpo", -1.0)},
        ),
        _claim(
            facts,
            "SRPO gains little",
            f"The others' mean held-out accuracy minus SRPO's, {pairs}. {rest}",
            {"accuracy": gains_less("srpo")},
        ),
        _best("GFPO is the best of the four", facts, "gfpo", pairs),
        _best("Staged is better than any one", facts, STAGED, pairs),
    ]


def _claim(facts: Facts, text: str, rule: str, parts: dict[str, MeanEstimate | None]) -> Claim:
    """A claim that is supported if each part's difference is above zero; undecided if a single arm is missing."""
    known = {name: each for name, each in parts.items() if each is not None}
    because = "; ".join([*(f"difference {shown(each)}" for each in known.values()), *facts.missing()])
    complete = len(known) == len(parts) and not facts.missing()
    found: Verdict = all_of([verdict(each, MARGIN) for each in known.values()]) if complete else "undecided"
    return Claim(text, rule, found, because, {name: asdict(each) for name, each in known.items()})


def _best(text: str, facts: Facts, arm: str, pairs: str) -> Claim:
    """The claim that an arm is above each of the single arms."""
    rule = (
        f"Its held-out accuracy minus each other single arm's, {pairs}. Supported if every difference is positive with "
        f"Holm's p below 0.05, not supported if one whole 95 % interval is below {MARGIN:.2f}."
    )
    found = {other: facts.final(arm, [other]) for other in facts.others(arm)} if arm in facts.correct else {}
    known = {other: each for other, each in found.items() if each is not None}
    missing = facts.missing() if arm in facts.correct else [f"{arm} not compared"]
    because = "; ".join([*(f"against {other} {shown(each)}" for other, each in known.items()), *missing])
    result: Verdict = "undecided" if missing else best_of_all(list(known.values()), MARGIN)
    return Claim(text, rule, result, because, {other: asdict(each) for other, each in known.items()})


def _times(estimate: MeanEstimate | None, sign: float) -> MeanEstimate | None:
    """The estimate, or that of the opposite difference if ``sign`` is -1."""
    if estimate is None or sign > 0:
        return estimate
    low = None if estimate.high is None else -estimate.high
    high = None if estimate.low is None else -estimate.low
    return MeanEstimate(-estimate.mean, low, high, estimate.p, estimate.df)


def shown(estimate: MeanEstimate) -> str:
    """A difference with its interval, or only its mean if there is one seed.

    >>> shown(MeanEstimate(0.0312, -0.0041, 0.0662)), shown(MeanEstimate(-0.02, None, None))
    ('+0.031 (-0.004 to 0.066)', '-0.020 (one seed: no interval)')
    """
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.3f} (one seed: no interval)"
    return f"{estimate.mean:+.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
