"""The decision table: from a probe's diagnosis to advice, each with its reason and the rule behind it. Pure functions.

Rules compare intervals with limits. If the limit lies inside the interval, the decision stays open.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradus.pipeline.estimates.diagnosis import Diagnosis, KeyUse
from gradus.pipeline.statistics.groups import Estimate

REACHABLE = 0.1
"""The least pass@K: below it more than nine of ten groups are all wrong, and such groups have no gradient."""
REACHABLE_K = 16
"""The largest K for that rule: among very many samples one is right by luck, and no stage can afford so many."""
SATURATED = 0.95
"""From this pass@1 on, rewards can improve one answer in twenty at most."""
NOISY = 0.2
"""The share of scoring noise in the variance within groups from which on a critic is worth its cost."""
FEW_USEFUL = 0.3
"""Below this share of useful groups, a group's mean as baseline wastes more than two thirds of the sampling."""
MIXED_WANTED = 0.5
"""K is chosen for this share of mixed groups, so that half of what is sampled is useful."""
MIXED_GAIN = 1.25
"""If MIXED_WANTED cannot be reached, K is doubled as long as that raises the share of mixed groups by this factor. A
rare success doubles the share; prompts that are always or never solved do not change it."""
SMALLEST_K = 4
"""The group's mean removes 1/K of a completion's own reward; with K = 4 three quarters of the signal remain."""
TIES_BROKEN = 0.1
"""The share of the reward's ties that ranking keys must break; otherwise a ranking adds nothing to the reward."""
MANY_WRONG = 0.25
"""The share of groups without a right answer from which on the user is told that the keys alone order them."""
COIN = 0.5
"""A key that agrees with the reward less often than a coin would work against the reward."""
LONG_RUN = 100
"""From this number of reinforcement steps on, a run is long enough to lose what it has gained."""
CUT_OFF = 0.05
"""The accepted share of truncated completions; a truncated answer is scored as wrong."""

Verdict = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class Situation:
    """What the rules need to know besides the diagnosis."""

    untrained: bool
    """Whether the probed policy has random weights."""
    trained: bool
    """Whether it is a trained checkpoint, not the policy with which the configuration starts."""
    demonstrations: bool
    """Whether the task has worked solutions to imitate."""
    group_size: int
    """K of the configuration's first sampling stage."""
    reinforcement_steps: int
    """Steps of all sampling stages, or of those that would be added if there are none."""
    rewarded: tuple[str, ...]
    """Labels of rewards with a weight: they are part of the reward and do not rank separately."""


@dataclass(frozen=True)
class Advice:
    """One decision."""

    topic: str
    verdict: Verdict
    value: Any
    """What to set: a number, an algorithm's name, a list of ranking keys; None if there is nothing to set."""
    say: str
    """The decision in a few words."""
    reason: str
    """The numbers behind it."""
    rule: str
    """The rule and its origin: the manual, or ours."""


def decide(diagnosis: Diagnosis, situation: Situation) -> list[Advice]:
    """Apply the whole table, in the order of the pipeline.

    Decisions that need a policy with some success stay open until there is one.
    """
    first = sft_first(diagnosis, situation)
    saturated = is_saturated(diagnosis)
    if saturated.verdict == "yes":
        return [first, saturated]
    if first.verdict == "yes":
        return [first, _after_sft()]
    size = group_size(diagnosis, situation)
    chosen = [size]
    if size.value is not None:
        chosen += [warm_up(diagnosis, size.value), ranking(diagnosis, situation, size.value)]
    return [first, saturated, *chosen, stabilise(diagnosis, situation), length_limit(diagnosis)]


def _after_sft() -> Advice:
    rule = "manual: SFT, DAPO or VAPO, GFPO, SRPO; ours: a policy that solves nothing does not show which of them fit"
    return Advice("after that", "open", None, "open: K, warm-up, GFPO, SRPO", "probe again after SFT", rule)


def sft_first(diagnosis: Diagnosis, situation: Situation) -> Advice:
    """Is imitation needed before rewards can be learned from?"""
    rule = f"ours: rewards teach where pass@K reaches {REACHABLE:g}; the manual's chain begins with SFT"
    k = max(k for k in diagnosis.pass_at if k <= REACHABLE_K)
    found = diagnosis.pass_at[k]
    reason = f"pass@{k} is {interval(found)}"
    how = "" if situation.demonstrations else "; the task has no demonstrations: set task.demonstrations"
    if situation.untrained:
        reason = f"the probed policy is new, its weights are random; {reason}{how}"
        return Advice("SFT first", "yes", "sft", "yes, then probe again", reason, rule)
    if found.high < REACHABLE:
        reason += f": nearly all groups are all wrong and give no gradient{how}"
        return Advice("SFT first", "yes", "sft", "yes: more of it, or an easier task", reason, rule)
    if found.low < REACHABLE:
        reason += f", which leaves open whether it is above {REACHABLE:g}: probe more prompts"
        return Advice("SFT first", "open", None, "open", reason, rule)
    say = (
        "no more of it: rewards can improve this policy"
        if situation.trained
        else "not needed: rewards can improve this policy"
    )
    return Advice("SFT first", "no", None, say, reason, rule)


def is_saturated(diagnosis: Diagnosis) -> Advice:
    """Is the task solved already?"""
    first = diagnosis.pass_at[1]
    rule = f"ours: from pass@1 = {SATURATED:g} on the task is solved; the manual does not say when to stop"
    reason = f"pass@1 is {interval(first)}"
    if first.low >= SATURATED:
        say = "the task is solved: take a harder task"
        return Advice("already solved", "yes", None, say, reason, rule)
    k = max(diagnosis.pass_at)
    reason += f", pass@{k} {diagnosis.pass_at[k].value:.2f}: rewards can make frequent what sampling finds"
    return Advice("already solved", "no", None, "no: there is room", reason, rule)


def group_size(diagnosis: Diagnosis, situation: Situation) -> Advice:
    """The smallest K with MIXED_WANTED mixed groups, or the one whose doubling adds MIXED_GAIN at most."""
    known = {k: e.value for k, e in diagnosis.mixed.items() if k in diagnosis.useful and k in diagnosis.ordered}
    mixed = {k: value for k, value in known.items() if k >= SMALLEST_K} or known
    rule = f"ours: the smallest K with {percent(MIXED_WANTED)} mixed groups, "
    rule += f"or that doubling raises x {MIXED_GAIN:g} at most"
    if not mixed:
        say = f"open: {situation.group_size}, as configured"
        return Advice("group size K", "open", None, say, "hardly any group has two completions with a score", rule)
    enough = next((k for k, value in mixed.items() if value >= MIXED_WANTED), None)
    sizes = list(mixed)
    flat = next((a for a, b in itertools.pairwise(sizes) if mixed[b] <= MIXED_GAIN * mixed[a]), sizes[-1])
    chosen = enough or flat
    reason = f"{percent(mixed[chosen])} of groups of {chosen} are mixed"
    if enough is None:
        wrong, right = diagnosis.all_wrong[chosen].value, diagnosis.all_right[chosen].value
        reason += f", {percent(wrong)} all wrong, {percent(right)} all right, and a larger K changes little"
        if chosen == sizes[-1]:
            reason = (
                f"{percent(mixed[chosen])} of groups of {chosen}, the largest probed, are mixed; --samples probes more"
            )
    elif situation.group_size > chosen and situation.group_size in mixed:
        configured = percent(mixed[situation.group_size])
        reason += f"; with {situation.group_size}, as configured, {configured}, with fewer prompts per step"
    return Advice("group size K", "yes", chosen, f"K = {chosen}", reason, rule)


def warm_up(diagnosis: Diagnosis, k: int) -> Advice:
    """DAPO for a fast start; VAPO if the reward is noisy or few groups are useful."""
    rule = "manual: DAPO is fast but fragile, VAPO stable but slow and meant for noisy rewards"
    rule += f"; ours: noisy from {NOISY:g} of the variance, few groups below {FEW_USEFUL:g}"
    useful, noise = diagnosis.useful[k], diagnosis.noise
    noise_text = "no group's rewards differ" if noise is None else f"noise is {interval(noise)} of the group variance"
    reason = f"{noise_text}; {percent(useful.value)} of groups of {k} are useful"
    if noise is not None and noise.low >= NOISY:
        reason += "; the mean of one noisy group is a poor baseline, a critic averages over many"
        return Advice("warm-up", "yes", "vapo", "VAPO", reason, rule)
    if useful.high < FEW_USEFUL:
        reason += "; VAPO's critic also learns from groups that are all right or all wrong"
        return Advice("warm-up", "yes", "vapo", "VAPO", reason, rule)
    if noise is not None and noise.high >= NOISY:
        reason += f"; whether noise is above {NOISY:g} is open, so the faster algorithm is advised; probe more prompts"
    return Advice("warm-up", "yes", "dapo", "DAPO", reason, rule)


def ranking(diagnosis: Diagnosis, situation: Situation, k: int) -> Advice:
    """Is there an order for GFPO that the reward alone does not give?"""
    rule = "manual: GFPO first for reasoning, because the order is denser than the reward; ours: denser means that "
    rule += f"{percent(TIES_BROKEN)} of the ties are broken, by keys that agree with the reward more often than a coin"
    keys = [use for use in diagnosis.keys if use.key not in situation.rewarded]
    configured = [use for use in keys if use.key in diagnosis.ranking]
    against = [use for use in configured if use.agrees is not None and use.agrees.high < COIN]
    if diagnosis.ties.high < TIES_BROKEN:
        reason = f"the reward itself leaves only {percent(diagnosis.ties.value)} of pairs tied: it is an order already"
        return Advice("GFPO", "yes", ["reward"], "yes, ranked by the reward alone", reason, rule)
    if diagnosis.ranked_ties is None:
        return Advice("GFPO", "open", None, "open", "no pair of completions could be compared", rule)
    if against:
        worst = min(against, key=lambda use: use.agrees.value if use.agrees else 1.0)
        reason = f"{worst.key} prefers the worse answer: it agrees with the reward on {_agreement(worst)} of the pairs"
        kept = [key for key in diagnosis.ranking if key not in {use.key for use in against}]
        return Advice("GFPO", "yes" if len(kept) > 1 else "no", kept, f"without {worst.key}", reason, rule)
    broken = diagnosis.ranked_ties
    more = diagnosis.ordered[k].value - diagnosis.useful[k].value
    who = "the ranking breaks" if configured else "only the reward ranks; it breaks"
    reason = f"{who} {interval(broken)} of the ties"
    if configured and broken.low >= TIES_BROKEN:
        reason += f", so that {percent(diagnosis.ordered[k].value)} of groups of {k} have an order (+{percent(more)})"
        reason += _unchecked(diagnosis, k)
        return Advice(
            "GFPO", "yes", list(diagnosis.ranking), f"yes, ranked by {', '.join(diagnosis.ranking)}", reason, rule
        )
    better = _helpful(keys)
    if better and broken.high < TIES_BROKEN:
        use = better[0]
        assert use.breaks is not None
        reason = (
            f"{use.key} breaks {percent(use.breaks.value)} of the ties and agrees with the reward on {_agreement(use)}"
            + _unchecked(diagnosis, k)
        )
        return Advice("GFPO", "yes", ["reward", use.key], f"yes, ranked by reward, {use.key}", reason, rule)
    if broken.high < TIES_BROKEN:
        reason += "; a reward of weight 0 that grades the reasoning would break them"
        return Advice("GFPO", "no", None, "no: nothing to rank beside the reward", reason, rule)
    return Advice("GFPO", "open", list(diagnosis.ranking), "open: as configured", f"{reason}: probe more prompts", rule)


def _unchecked(diagnosis: Diagnosis, k: int) -> str:
    """Where keys order groups in which every completion is wrong, the share of these: agreement is measured in groups
    that have right and wrong ones, and says nothing of them."""
    wrong = diagnosis.all_wrong[k]
    if wrong.high < MANY_WRONG:
        return ""
    return (
        f"; in {percent(wrong.value)} of groups of {k} every answer is wrong: no reward checks their order, so that it "
        "weighs as much as the keys agree with the reward elsewhere (`ties: agreement`)"
    )


def _helpful(keys: Sequence[KeyUse]) -> list[KeyUse]:
    """Keys that break enough ties and agree with the reward, the one with most agreement first."""
    good = [
        use
        for use in keys
        if use.breaks is not None and use.breaks.low >= TIES_BROKEN and use.agrees is not None and use.agrees.low > COIN
    ]
    return sorted(good, key=lambda use: -(use.agrees.value if use.agrees else 0.0))


def stabilise(diagnosis: Diagnosis, situation: Situation) -> Advice:
    """Is the run long enough to need SRPO at its end?"""
    rule = (
        f"manual: SRPO last, for long runs that must not regress, with small gains; ours: long from {LONG_RUN} steps on"
    )
    k, steps = max(diagnosis.pass_at), situation.reinforcement_steps
    room = diagnosis.pass_at[k].value - diagnosis.pass_at[1].value
    reason = f"{steps} steps of reinforcement; pass@{k} is {room:.2f} above pass@1"
    if steps >= LONG_RUN:
        return Advice("SRPO", "yes", "srpo", "yes, last", reason, rule)
    return Advice("SRPO", "no", None, "not for so short a run", reason, rule)


def length_limit(diagnosis: Diagnosis) -> Advice:
    """Does max_tokens truncate too many answers?"""
    rule = f"ours: at most {percent(CUT_OFF)} of completions cut off; the manual does not mention it"
    cut, limit = diagnosis.truncated, diagnosis.max_tokens
    reason = f"{interval(cut)} of completions end at max_tokens = {limit}; 95 % are {diagnosis.length_high} or shorter"
    if cut.low > CUT_OFF:
        return Advice("max_tokens", "yes", 2 * limit, f"raise it to {2 * limit}", reason, rule)
    return Advice("max_tokens", "no", None, f"{limit} is enough", reason, rule)


def percent(value: float) -> str:
    """A share in per cent.

    >>> percent(0.594)
    '59 %'
    """
    return f"{100 * value:.0f} %"


def interval(estimate: Estimate) -> str:
    """A share and its 95 % interval.

    >>> interval(Estimate(0.5, 0.4, 0.6))
    '0.50 (0.40 to 0.60)'
    """
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _agreement(use: KeyUse) -> str:
    return "none" if use.agrees is None else f"{percent(use.agrees.value)}"
