"""The decision table: from a probe's diagnosis to advice, each with its reason and the rule behind it. Pure functions.

Rules compare intervals with limits, not points: what an interval leaves open is said to be open.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradus.pipeline.estimates.diagnosis import Diagnosis, KeyUse
from gradus.pipeline.statistics.groups import Estimate

REACHABLE = 0.1
"""Least pass@K: below it more than nine of ten groups are all wrong, and a group's mean teaches nothing there."""
REACHABLE_K = 16
"""Largest K that pass@K is asked at: of a thousand samples one is right by luck, and no stage can afford so many."""
SATURATED = 0.95
"""pass@1 from which on rewards have hardly anything to add, at most one answer in twenty."""
NOISY = 0.2
"""Share of scorer's noise in a group's variance from which on a fifth of every push is chance: worth a critic."""
FEW_USEFUL = 0.3
"""Share of useful groups below which a group's own mean wastes more than two thirds of the sampling."""
MIXED_WANTED = 0.5
"""Share of mixed groups that K is chosen for: half of what is sampled then teaches."""
MIXED_GAIN = 1.25
"""Factor by which a doubling of K must raise the share of mixed groups, where MIXED_WANTED cannot be reached: a rare
success doubles it, prompts that are always or never solved leave it as it is."""
SMALLEST_K = 4
"""The mean of K takes 1/K of a completion's own reward away; with 4 three quarters of the signal stay."""
TIES_BROKEN = 0.1
"""Share of the reward's ties that ranking keys must break, or a ranking says what the reward says."""
COIN = 0.5
"""A key that agrees with the reward less often than a coin would teach against it."""
LONG_RUN = 100
"""Steps of reinforcement from which on a run is long enough to lose again what it has gained."""
CUT_OFF = 0.05
"""Share of truncated completions that is tolerated: a cut answer is scored wrong whatever it would have been."""

Verdict = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class Situation:
    """What the rules must know besides the diagnosis."""

    untrained: bool
    """Whether the probed policy has random weights."""
    trained: bool
    """Whether it is a checkpoint rather than the policy that the configuration starts from."""
    demonstrations: bool
    """Whether the task has worked solutions to imitate."""
    group_size: int
    """K of the configuration's first sampling stage."""
    reinforcement_steps: int
    """Steps of all its sampling stages, or of those that would be added to a chain without any."""
    rewarded: tuple[str, ...]
    """Labels of rewards with a weight: they are in the reward already, and only rank through it."""


@dataclass(frozen=True)
class Advice:
    """One decision."""

    topic: str
    verdict: Verdict
    value: Any
    """What to set: a number, an algorithm's name, a list of ranking keys; None where there is nothing to set."""
    say: str
    """The decision in a few words."""
    reason: str
    """The numbers behind it."""
    rule: str
    """The rule, and whose it is: the manual's or ours."""


def decide(diagnosis: Diagnosis, situation: Situation) -> list[Advice]:
    """The whole table, in the order of the pipeline. What depends on a policy that can do something stays open until
    there is one."""
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
    rule = "manual: SFT, DAPO or VAPO, GFPO, SRPO; ours: a policy that solves nothing cannot tell which of them fit"
    return Advice("after that", "open", None, "open: K, warm-up, GFPO, SRPO", "probe again after SFT", rule)


def sft_first(diagnosis: Diagnosis, situation: Situation) -> Advice:
    """Is imitation needed before rewards can teach anything?"""
    rule = f"ours: rewards teach where pass@K reaches {REACHABLE:g}; the manual's chain begins with SFT"
    k = max(k for k in diagnosis.pass_at if k <= REACHABLE_K)
    found = diagnosis.pass_at[k]
    reason = f"pass@{k} is {_interval(found)}"
    how = "" if situation.demonstrations else "; the task has no demonstrations: set task.demonstrations"
    if situation.untrained:
        reason = f"the probed policy is new, its weights are random; {reason}{how}"
        return Advice("SFT first", "yes", "sft", "yes, then probe again", reason, rule)
    if found.high < REACHABLE:
        reason += f": nearly every group is all wrong, and all its weights are 0{how}"
        return Advice("SFT first", "yes", "sft", "yes: more of it, or an easier task", reason, rule)
    if found.low < REACHABLE:
        reason += f", which leaves open whether it is above {REACHABLE:g}: probe more prompts"
        return Advice("SFT first", "open", None, "open", reason, rule)
    say = "no more than this policy has had" if situation.trained else "not needed: rewards can teach this policy"
    return Advice("SFT first", "no", None, say, reason, rule)


def is_saturated(diagnosis: Diagnosis) -> Advice:
    """Is there anything left to learn?"""
    first = diagnosis.pass_at[1]
    rule = f"ours: from pass@1 = {SATURATED:g} on the task is solved; the manual does not say when to stop"
    reason = f"pass@1 is {_interval(first)}"
    if first.low >= SATURATED:
        say = "nothing left to learn: take a harder task"
        return Advice("already solved", "yes", None, say, reason, rule)
    k = max(diagnosis.pass_at)
    reason += f", pass@{k} {diagnosis.pass_at[k].value:.2f}: what sampling finds, rewards can make usual"
    return Advice("already solved", "no", None, "no: there is room", reason, rule)


def group_size(diagnosis: Diagnosis, situation: Situation) -> Advice:
    """The smallest K with MIXED_WANTED mixed groups, else the one that doubling raises by MIXED_GAIN at most."""
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
        reason += f"; with {situation.group_size}, as configured, {configured}, at fewer prompts a step"
    return Advice("group size K", "yes", chosen, f"K = {chosen}", reason, rule)


def warm_up(diagnosis: Diagnosis, k: int) -> Advice:
    """DAPO for a fast start, VAPO where the reward is noisy or few groups teach by their own mean."""
    rule = "manual: DAPO is fast but fragile, VAPO stable but slow and meant for noisy rewards"
    rule += f"; ours: noisy from {NOISY:g} of the variance, few groups below {FEW_USEFUL:g}"
    useful, noise = diagnosis.useful[k], diagnosis.noise
    noise_text = "no group's rewards differ" if noise is None else f"noise is {_interval(noise)} of the group variance"
    reason = f"{noise_text}; {percent(useful.value)} of groups of {k} are useful"
    if noise is not None and noise.low >= NOISY:
        reason += "; the mean of one noisy group is a poor baseline, a critic averages over many"
        return Advice("warm-up", "yes", "vapo", "VAPO", reason, rule)
    if useful.high < FEW_USEFUL:
        reason += "; VAPO's value also weighs groups that are all right or all wrong"
        return Advice("warm-up", "yes", "vapo", "VAPO", reason, rule)
    if noise is not None and noise.high >= NOISY:
        reason += f"; whether noise is above {NOISY:g} is open, so the quicker one: probe more prompts"
    return Advice("warm-up", "yes", "dapo", "DAPO", reason, rule)


def ranking(diagnosis: Diagnosis, situation: Situation, k: int) -> Advice:
    """Has GFPO an order to learn that the reward alone does not give?"""
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
    who = "the ranking breaks" if configured else "nothing but the reward ranks; it breaks"
    reason = f"{who} {_interval(broken)} of the ties"
    if configured and broken.low >= TIES_BROKEN:
        reason += f", so that {percent(diagnosis.ordered[k].value)} of groups of {k} have an order (+{percent(more)})"
        return Advice(
            "GFPO", "yes", list(diagnosis.ranking), f"yes, ranked by {', '.join(diagnosis.ranking)}", reason, rule
        )
    better = _helpful(keys)
    if better and broken.high < TIES_BROKEN:
        use = better[0]
        assert use.breaks is not None
        reason = (
            f"{use.key} breaks {percent(use.breaks.value)} of the ties and agrees with the reward on {_agreement(use)}"
        )
        return Advice("GFPO", "yes", ["reward", use.key], f"yes, ranked by reward, {use.key}", reason, rule)
    if broken.high < TIES_BROKEN:
        reason += "; a component of weight 0 that grades the reasoning would"
        return Advice("GFPO", "no", None, "no: nothing to rank beside the reward", reason, rule)
    return Advice("GFPO", "open", list(diagnosis.ranking), "open: as configured", f"{reason}: probe more prompts", rule)


def _helpful(keys: Sequence[KeyUse]) -> list[KeyUse]:
    """Keys that break enough ties and prefer the better answer where the reward tells, the most telling first."""
    good = [
        use
        for use in keys
        if use.breaks is not None and use.breaks.low >= TIES_BROKEN and use.agrees is not None and use.agrees.low > COIN
    ]
    return sorted(good, key=lambda use: -(use.agrees.value if use.agrees else 0.0))


def stabilise(diagnosis: Diagnosis, situation: Situation) -> Advice:
    """SRPO at the end of a run that is long enough to fall back."""
    rule = (
        f"manual: SRPO last, for long runs that must not regress, with small gains; ours: long from {LONG_RUN} steps on"
    )
    k, steps = max(diagnosis.pass_at), situation.reinforcement_steps
    room = diagnosis.pass_at[k].value - diagnosis.pass_at[1].value
    reason = f"{steps} steps of reinforcement; pass@{k} is {room:.2f} above pass@1; a step samples twice"
    if steps >= LONG_RUN:
        return Advice("SRPO", "yes", "srpo", "yes, last", reason, rule)
    return Advice("SRPO", "no", None, "not for so short a run", reason, rule)


def length_limit(diagnosis: Diagnosis) -> Advice:
    """Does max_tokens cut answers that might have been right?"""
    rule = f"ours: at most {percent(CUT_OFF)} of completions cut off; the manual does not speak of it"
    cut, limit = diagnosis.truncated, diagnosis.max_tokens
    reason = f"{_interval(cut)} of completions end at max_tokens = {limit}; 95 % are {diagnosis.length_high} or shorter"
    if cut.low > CUT_OFF:
        return Advice("max_tokens", "yes", 2 * limit, f"raise it to {2 * limit}", reason, rule)
    return Advice("max_tokens", "no", None, f"{limit} is enough", reason, rule)


def percent(value: float) -> str:
    """A share in words.

    >>> percent(0.594)
    '59 %'
    """
    return f"{100 * value:.0f} %"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _agreement(use: KeyUse) -> str:
    return "none" if use.agrees is None else f"{percent(use.agrees.value)}"
