"""The report of a probe in the terminal: numbers with bars of text, the advice, and the estimates."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console

from gradus.flows.advise.advise import AdviceReport
from gradus.flows.advise.rules import Advice, Situation, interval, percent
from gradus.flows.screen.text import duration, print_table, size_text
from gradus.pipeline.estimates.diagnosis import Diagnosis
from gradus.pipeline.estimates.stage_cost import StageCost
from gradus.pipeline.statistics.groups import Estimate

MAX_COLUMNS = 80
"""Text is wrapped at this column even on wider screens, because long lines are hard to read."""
BAR_COLUMNS = 30
"""Columns of a full bar."""
SUCCESS = ("never", "to 1/4", "to 1/2", "to 3/4", "below 1", "always")
"""Classes of prompts by how often they are solved."""


def print_report(report: AdviceReport, costs: Sequence[StageCost], console: Console) -> None:
    """Print the whole report, from the probed policy to the estimated cost."""
    diagnosis, speed, policy = report.probe.diagnosis, report.probe.speed, report.probe.policy
    print_text(console, f"Probed {report.probed.shown}")
    parameters = policy["parameters"]
    assert isinstance(parameters, int)
    print_text(console, f"{policy['model_type']}, {parameters:,} parameters, {policy['dtype']} on {policy['device']}")
    fewer = {
        "seconds": "the time of --seconds was over, so the intervals are wider",
        "interrupt": "interrupted, so the intervals are wider",
    }
    probe = report.probe
    asked, why = (f" of {probe.planned}", f": {fewer[probe.ended]}") if probe.ended else ("", "")
    size = f"{diagnosis.prompts}{asked} training prompts x {diagnosis.samples} completions"
    print_text(console, f"{size}, {duration(probe.seconds)}{why}")
    for label, failure in report.probe.failures.items():
        print_text(console, f"the reward {label} failed on some completions: {failure}")
    print_diagnosis(diagnosis, report.situation, console)
    _print_heading(console, "Advice")
    for each in report.advice:
        print_advice(each, console)
    if not costs:
        return
    _print_heading(console, "Estimate for the advised chain on this machine")
    print_costs(costs, console)
    measured = (
        f"Measured: {speed.sample_tokens_per_second:,.0f} tokens/s sampled, {speed.score_seconds * 1000:.2g} ms a "
        f"score, {speed.update_tokens_per_second:,.0f} tokens/s in a real learner step, {size_text(speed.peak_bytes)} "
        "at most. Not included: evaluations, checkpoints, servers; lengths that change as the policy learns."
    )
    print_text(console, measured)


def print_diagnosis(diagnosis: Diagnosis, situation: Situation, console: Console) -> None:
    """Print the numbers, each share with its bar and its 95 % interval."""
    _print_heading(console, "What the policy can do (95 % intervals over prompts)")
    for k, found in diagnosis.pass_at.items():
        _print_share(console, f"pass@{k}", found)
    top = max(diagnosis.success)
    _print_heading(console, "Prompts by how often they are solved")
    for name, count in zip(SUCCESS, diagnosis.success, strict=True):
        _print_bar(console, name, count / max(1, top), f"{count}")
    sizes, rewarded = list(diagnosis.mixed), situation.rewarded
    k = max((size for size in sizes if size <= situation.group_size), default=sizes[0])
    _print_heading(console, f"Groups of {k}")
    for name, found in (
        ("all wrong", diagnosis.all_wrong),
        ("mixed", diagnosis.mixed),
        ("all right", diagnosis.all_right),
    ):
        _print_share(console, name, found[k])
    _print_heading(console, "Mixed groups by group size K")
    for size in sizes:
        _print_share(console, f"K = {size}", diagnosis.mixed[size])
    _print_heading(console, "Reward")
    _print_fact(console, "mean", f"{diagnosis.reward_mean:.3f}")
    total = diagnosis.within + diagnosis.between
    by_prompt = f" ({percent(diagnosis.between / total)} lies between prompts)" if total > 0 else ""
    _print_fact(
        console, "variance", f"within prompts {diagnosis.within:.3f}, between {diagnosis.between:.3f}{by_prompt}"
    )
    noise = "not known: no group has unequal rewards"
    if diagnosis.noise is not None:
        noise = f"{interval(diagnosis.noise)} of the variance within prompts, scored twice"
    _print_fact(console, "noise", noise)
    if diagnosis.flips.value:
        _print_fact(console, "verdict", f"changes on {interval(diagnosis.flips)}: pass@k counts lucky completions, too")
    if diagnosis.failed.value:
        _print_fact(console, "failures", f"{interval(diagnosis.failed)} of completions could not be scored")
    _print_heading(console, "Ranking: what breaks the ties that the reward leaves")
    _print_fact(console, "ties", f"{interval(diagnosis.ties)} of pairs have equal reward")
    rows = [[use.key, _or_dash(use.breaks), _or_dash(use.agrees)] for use in diagnosis.keys if use.key not in rewarded]
    print_table(console, ["key", "breaks ties", "agrees with the reward"], rows)
    _print_heading(console, "Length")
    _print_fact(
        console,
        "tokens",
        f"mean {diagnosis.length_mean:.1f}, 95 % at most {diagnosis.length_high}, limit {diagnosis.max_tokens}",
    )
    _print_share(console, "truncated", diagnosis.truncated)


def print_advice(each: Advice, console: Console) -> None:
    """Print a decision, its reason and its rule."""
    mark = {"yes": "bold green", "no": "bold", "open": "bold yellow"}[each.verdict]
    console.print(f"{each.topic:<14} {each.say}", style=mark, highlight=False, markup=False, soft_wrap=True)
    for style, text in ((None, each.reason), ("dim", f"rule: {each.rule}")):
        for line in textwrap.wrap(text, _width(console) - 15):
            console.print(f"{'':15}{line}", style=style, highlight=False, markup=False, soft_wrap=True)


def print_costs(costs: Sequence[StageCost], console: Console) -> None:
    """Print a row for each stage."""
    rows = []
    for c in costs:
        useful, step = "" if c.useful is None else percent(c.useful), f"{c.step_seconds:.2f} s"
        numbers = [f"{c.steps:,}", f"{c.rollouts:,}", useful, step, duration(c.seconds), size_text(c.memory_bytes)]
        rows.append([c.label, *numbers])
    rows.append(["all", f"{sum(c.steps for c in costs):,}", "", "", "", duration(sum(c.seconds for c in costs)), ""])
    header = ["stage", "steps", "rollouts/step", "useful groups", "one step", "all steps", "memory"]
    print_table(console, header, rows, header[1:])
    for c in costs:
        if c.profile_rollouts:
            what = f"{c.profile_rollouts:,} completions before the first step, to profile the prompts"
            print_text(console, f"{c.label}: of these {duration(c.profile_seconds)} for {what}")


def bar(value: float, width: int, plain: bool = False) -> str:
    """A share as a bar, exact to an eighth of a column unless the terminal has only ``plain`` characters.

    >>> bar(0.5, 4), bar(0.5, 4, plain=True), bar(0.0, 4), bar(0.01, 4)
    ('██', '##', '', '▏')
    """
    if plain:
        return "#" * round(value * width)
    eighths = max(1, round(value * width * 8)) if value > 0 else 0
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def _print_share(console: Console, name: str, found: Estimate) -> None:
    _print_bar(console, name, found.value, interval(found))


def _print_bar(console: Console, name: str, value: float, text: str) -> None:
    plain = not console.encoding.lower().startswith("utf")
    drawn = bar(value, BAR_COLUMNS, plain).ljust(BAR_COLUMNS)
    console.print(f"  {name:<10} {drawn} {text}", highlight=False, markup=False, soft_wrap=True)


def _print_fact(console: Console, name: str, text: str) -> None:
    for n, line in enumerate(textwrap.wrap(text, _width(console) - 13)):
        print_text(console, f"  {name if n == 0 else '':<10} {line}")


def _print_heading(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold", highlight=False, markup=False, soft_wrap=True)


def print_text(console: Console, text: str) -> None:
    """Print a paragraph, wrapped; lines after the first are indented as the first one."""
    for line in textwrap.wrap(text, _width(console), subsequent_indent="  " if text.startswith("  ") else ""):
        lead = text[: len(text) - len(text.lstrip())] if not line.startswith(" ") else ""
        console.print(lead + line, highlight=False, markup=False, soft_wrap=True)


def _or_dash(found: Estimate | None) -> str:
    return "no such pairs" if found is None else interval(found)


def _width(console: Console) -> int:
    return max(40, min(console.width, MAX_COLUMNS))
