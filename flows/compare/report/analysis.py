"""The numbers of a comparison, from the measures of every arm on every seed; the content of report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

import numpy as np

from gradus.flows.compare.measures import Measures
from gradus.flows.compare.plan.arms import STAGED
from gradus.flows.compare.report.claims import EARLY_SHARE, MARGIN, Facts, judge
from gradus.pipeline.statistics.curves import crossing, early_gain, smooth, tail_mean, worst_drop
from gradus.pipeline.statistics.significance import MeanEstimate, holm, over_prompts, over_seeds, paired

NEAR_BEST = 0.9
"""Speed is measured by when a curve first reaches this share of the best gain."""
TAIL = 0.1
"""The share at the end of the curves of entropy and length whose mean is reported."""

ByArm = dict[str, dict[int, Measures]]


def by_arm(measured: Sequence[Measures], order: Sequence[str]) -> ByArm:
    """arm -> seed -> measures; the comparison's own arms come first, in their order."""
    labels = list(dict.fromkeys([*order, *(each["arm"] for each in measured)]))
    found = {label: {each["seed"]: each for each in measured if each["arm"] == label} for label in labels}
    return {label: seeds for label, seeds in found.items() if seeds}


def analyse(measured: Sequence[Measures], order: Sequence[str], early_until: float | None = None) -> dict[str, Any]:
    """The numbers of every arm, the differences of every pair, and the verdicts on the claims.

    ``early_until`` is the number of rollouts that count as early; default: a quarter of the longest arm.
    """
    arms = by_arm(measured, order)
    spent = max((each["rollouts"] for each in measured), default=0)
    until = early_until or EARLY_SHARE * spent
    targets = _targets(arms)
    facts = Facts(
        early={arm: {s: early_gain(m["curve"], until) for s, m in seeds.items()} for arm, seeds in arms.items()},
        drop={arm: {s: worst_drop(m["curve"]) for s, m in seeds.items()} for arm, seeds in arms.items()},
        correct={arm: {s: m["heldout"] for s, m in seeds.items() if m["heldout"]} for arm, seeds in arms.items()},
    )
    rows = [_arm_row(arm, seeds, facts, targets) for arm, seeds in arms.items()]
    starts = {each["seed"]: each["start"] | {"seed": each["seed"]} for each in measured}
    return {
        "starts": [starts[seed] for seed in sorted(starts)],
        "arms": rows,
        "early_until": until,
        "margin": MARGIN,
        "heldout_prompts": max((len(each["heldout"]) for each in measured), default=0),
        "pairs": _pairs(facts, list(arms)),
        "tasks": _tasks(facts, list(arms)),
        "claims": [asdict(claim) for claim in judge(facts)],
    }


def _targets(arms: ByArm) -> dict[int, float]:
    """seed -> the validation accuracy 90 % of the way from the start to the best point of all smoothed curves."""
    targets = {}
    for seed in {seed for seeds in arms.values() for seed in seeds}:
        curves = [seeds[seed]["curve"] for seeds in arms.values() if seed in seeds]
        start = curves[0][0][1]
        best = max(height for curve in curves for _, height in smooth(curve))
        targets[seed] = start + NEAR_BEST * (best - start)
    return targets


def _arm_row(arm: str, seeds: Mapping[int, Measures], facts: Facts, targets: Mapping[int, float]) -> dict[str, Any]:
    """The numbers of one arm over its seeds."""
    each = [seeds[seed] for seed in sorted(seeds)]
    accuracy = over_seeds([m["accuracy"] for m in each])
    answers = facts.answers([arm])
    prompts = over_prompts(answers[0]) if answers is not None else None
    reached = [crossing(smooth(m["curve"]), targets[m["seed"]]) for m in each]
    known = [x for x in reached if x is not None]
    return {
        "arm": arm,
        "seeds": sorted(seeds),
        "accuracy": accuracy.mean,
        "accuracy_each": [m["accuracy"] for m in each],
        "interval_seeds": [accuracy.low, accuracy.high],
        "interval_prompts": [prompts.low, prompts.high] if prompts else [None, None],
        "gain": _mean([m["accuracy"] - m["start"]["accuracy"] for m in each if "accuracy" in m["start"]]),
        "early_gain": asdict(over_seeds([facts.early[arm][m["seed"]] for m in each])),
        "near_best_at": _mean(known) if len(known) == len(reached) else None,
        "near_best_reached": len(known),
        "worst_drop": asdict(over_seeds([facts.drop[arm][m["seed"]] for m in each])),
        "entropy": _mean([tail_mean(m["entropy"], TAIL) for m in each if m["entropy"]]),
        "length": _mean([tail_mean(m["length"], TAIL) for m in each if m["length"]]),
        **{key: _mean([m[key] for m in each]) for key in ("rollouts", "tokens", "seconds")},
        "marks": [m["marks"] for m in each],
        "stages": each[0]["stages"],
    }


def _tasks(facts: Facts, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Of several tasks, each by itself: the accuracy of every arm on every seed, and the differences of all pairs.

    Ids of held-out prompts begin with their task: ``sums/8ee887370c72f685``.
    """
    ids = [key for seeds in facts.correct.values() for correct in seeds.values() for key in correct if "/" in key]
    found = []
    for task in dict.fromkeys(key.partition("/")[0] for key in ids):
        own = {
            arm: {s: {k: v for k, v in correct.items() if k.startswith(f"{task}/")} for s, correct in seeds.items()}
            for arm, seeds in facts.correct.items()
        }
        each = {arm: {s: _mean([*answers.values()]) for s, answers in seeds.items()} for arm, seeds in own.items()}
        prompts = max(len(answers) for seeds in own.values() for answers in seeds.values())
        found.append(
            {"task": task, "prompts": prompts, "each": each, "pairs": _pairs(replace(facts, correct=own), arms)}
        )
    return found


def _pairs(facts: Facts, arms: Sequence[str]) -> list[dict[str, Any]]:
    """The paired difference of every two arms, pairs with the staged arm first; p values corrected by Holm."""
    ordered = sorted(combinations(arms, 2), key=lambda pair: STAGED not in pair)
    pairs = [(b, a) if b == STAGED else (a, b) for a, b in ordered]
    found: list[tuple[str, str, MeanEstimate, int]] = []
    for a, b in pairs:
        answers = facts.answers([a, b])
        if answers is not None:
            found.append((a, b, paired(answers[0] - answers[1]), answers.shape[1]))
    tested = [each for _, _, each, _ in found if each.p is not None]
    adjusted = iter(holm([each.p for each in tested if each.p is not None]))
    return [
        {"a": a, "b": b, "seeds": seeds, **asdict(each), "p_holm": next(adjusted) if each.p is not None else None}
        for a, b, each, seeds in found
    ]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
