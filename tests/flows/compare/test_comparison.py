"""The rules that turn the statistics of a comparison into verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from gradus.flows.compare.report.analysis import analyse
from gradus.flows.compare.report.claims import SINGLE, Facts, judge
from gradus.pipeline.statistics.significance import paired


def answers(accuracy: float, seed: int, prompts: int = 400) -> dict[str, bool]:
    draw = np.random.default_rng(seed)
    difficulty = np.random.default_rng(99).random(prompts)
    right = draw.random(prompts) < np.clip(accuracy + 0.3 * (difficulty - 0.5), 0, 1)
    return {f"p{n}": bool(one) for n, one in enumerate(right)}


def facts(accuracy: dict[str, float], early: dict[str, float], drop: dict[str, float]) -> Facts:
    seeds = range(3)
    return Facts(
        early={arm: {s: early[arm] + 0.001 * s for s in seeds} for arm in accuracy},
        drop={arm: {s: drop[arm] + 0.001 * s * n for s in seeds} for n, arm in enumerate(accuracy)},
        correct={arm: {s: answers(share, s) for s in seeds} for arm, share in accuracy.items()},
    )


def test_claims_are_supported_by_what_they_say_and_refuted_by_the_opposite() -> None:
    accuracy = {"dapo": 0.6, "vapo": 0.6, "gfpo": 0.75, "srpo": 0.45, "staged": 0.95}
    early = {"dapo": 0.1, "vapo": 0.01, "gfpo": 0.05, "srpo": 0.05, "staged": 0.1}
    drop = {"dapo": 0.2, "vapo": 0.0, "gfpo": 0.05, "srpo": 0.0, "staged": 0.1}
    found = {claim.claim: claim.verdict for claim in judge(facts(accuracy, early, drop))}
    assert set(found.values()) == {"supported"} and len(found) == 8
    opposite = {"dapo": 0.6, "vapo": 0.6, "gfpo": 0.45, "srpo": 0.75, "staged": 0.3}
    turned = [{arm: 0.2 - value for arm, value in each.items()} for each in (early, drop)]
    found = {claim.claim: claim.verdict for claim in judge(facts(opposite, *turned))}
    assert set(found.values()) == {"not supported"}


def test_claims_stay_open_without_their_arms_or_with_one_seed() -> None:
    whole = facts(dict.fromkeys(SINGLE, 0.5), dict.fromkeys(SINGLE, 0.1), dict.fromkeys(SINGLE, 0.1))
    some = Facts(*({arm: each[arm] for arm in ("dapo", "gfpo")} for each in vars(whole).values()))
    assert {claim.verdict for claim in judge(some)} == {"undecided"}
    assert any("vapo, srpo not compared" in claim.because for claim in judge(some))
    one = Facts(*({arm: {0: seeds[0]} for arm, seeds in each.items()} for each in vars(whole).values()))
    assert {claim.verdict for claim in judge(one)} == {"undecided"}


def test_the_analysis_by_hand() -> None:
    def arm(name: str, seed: int, end: float, right: list[bool]) -> dict:
        return {
            "arm": name, "seed": seed, "start": {"content": "c", "accuracy": 0.5}, "run": name,
            "marks": [[400, "ends"]], "curve": [[0, 0.5], [100, 0.5], [200, end], [300, end], [400, end]],
            "rollouts": 400, "tokens": 4000, "seconds": 10.0, "accuracy": sum(right) / 4,
            "heldout": {str(n): one for n, one in enumerate(right)},
            "entropy": [[100, 0.2], [200, 0.1]], "length": [], "reward": [], "stages": [],
        }  # fmt: skip

    measured = [arm("a", s, 0.5 + 0.1 * s, [True, False, s == 0, False]) for s in (0, 1)]
    measured += [arm("b", s, 0.8, [True, True, True, s == 1]) for s in (0, 1)]
    found = analyse(measured, ["a", "b"])
    a, b = found["arms"]
    assert (a["accuracy"], b["accuracy"]) == (0.375, 0.875) and a["accuracy_each"] == [0.5, 0.25]
    assert (a["gain"], b["gain"]) == pytest.approx((-0.125, 0.375))
    # the best smoothed point is 0.8 on both seeds: 0.5 + 0.9 x 0.3 = 0.77; b's smoothed curve is 0.5, 0.6, 0.7, 0.8
    assert a["near_best_at"] is None and a["near_best_reached"] == 0
    assert b["near_best_at"] == pytest.approx(200 + 100 * 0.7)
    (pair,) = found["pairs"]  # a minus b, prompt by prompt: seed 0, then seed 1
    differences = np.array([[0, -1, 0, 0], [0, -1, -1, -1]])
    assert pair["mean"] == differences.mean() == -0.5
    assert pair["p"] == paired(differences).p == pair["p_holm"]
    assert found["early_until"] == 100 and a["early_gain"]["mean"] == 0.0
