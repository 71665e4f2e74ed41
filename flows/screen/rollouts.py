"""Sampled groups of completions, one below the other, as a person reads them.

What a model wrote stands behind a bar at the left, so that none of it can pass for a line of ours. It is shown without
markup, and what could control a terminal is written as an escape.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from gradus.flows.screen.text import count
from gradus.pipeline.common.shown import visible
from gradus.pipeline.rewards.broken_equations import broken_equations

BAR = "    | "
"""What stands before each line that a model, or the task, wrote."""
RIGHT, WRONG, BROKEN, QUIET = "bold green", "bold red", "red underline", "dim"
LISTED = 12
"""Most steps that are listed."""


def print_rollouts(found: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`gradus.pipeline.runs.sampled.read.sampled_groups` found."""
    groups, steps = found["groups"], found["steps"]
    kept = [str(each) for each in steps]
    kept = kept if len(kept) <= LISTED else [*kept[: LISTED // 2], "...", *kept[-LISTED // 2 :]]
    shown = list(dict.fromkeys(group["step"] for group in groups))
    where = f"step {shown[0]}" if len(shown) == 1 else f"{len(shown)} steps"
    _say(console, Text(f"{found['run']}, {found['stage']}, {where}; groups are kept of steps {', '.join(kept)}"))
    for number, group in enumerate(groups, 1):
        _say(console, Text())
        _print_group(group, f"group {number} of {len(groups)}", len(shown) > 1, found["equations"], console)


def _print_group(group: Mapping[str, Any], title: str, dated: bool, strict: bool, console: Console) -> None:
    mean = "none" if group["mean_reward"] is None else f"{group['mean_reward']:.3g}"
    parts = [f"step {group['step']}"] * dated + [f"task {group['task']}"] * bool(group["task"])
    parts += [f"prompt {group['prompt']}", f"{group['correct']} of {group['size']} right", f"mean reward {mean}"]
    _say(console, Text(" ".join(f"{title}: {', '.join(parts)}".split()), "bold"))
    _print_text(group["question"], console, "question")
    _print_text(group["answer"], console, "answer")
    for completion, times in _alike(group["completions"]):
        _print_completion(completion, times, group["question"], strict, console)
    if left := group["size"] - len(group["completions"]):
        _say(
            console,
            Text(f"  {count(left)} further completions were left out of the record, which they are too long for"),
        )


def _alike(completions: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The distinct completions, best rank first and those without one last, with how often each was sampled."""
    times = Counter(json.dumps(each, sort_keys=True) for each in completions)
    distinct = {json.dumps(each, sort_keys=True): each for each in completions}
    ordered = sorted(distinct, key=lambda text: (distinct[text]["rank"] is None, distinct[text]["rank"]))
    return [(distinct[text], times[text]) for text in ordered]


def _print_completion(completion: Mapping[str, Any], times: int, question: str, strict: bool, console: Console) -> None:
    """A line on what became of it, its text with the broken equations marked, and these by their reasons."""
    correct, scored = completion["correct"], completion["reward"] is not None
    verdict = ("right", RIGHT) if correct else ("wrong", WRONG) if scored else ("not scored", WRONG)
    rank = "no rank" if completion["rank"] is None else f"rank {completion['rank']}"
    parts = [
        rank,
        _named("reward", completion["reward"]),
        _named("weight", completion["weight"], "+.3g" if completion["weight"] else ".3g"),
    ]
    parts += [_named(name, value) for name, value in completion["components"].items()]
    parts += [f"{count(completion['tokens'])} tokens"]
    line = Text.assemble("  ", verdict, f"{f' x {times}' if times > 1 else ''}: {', '.join(parts)}")
    if completion["truncated"]:
        line.append(", ").append("truncated", "yellow")
    _say(console, line)
    broken = _broken(completion, question, strict and not completion.get("cut"))
    _print_text(completion["text"], console, spans=broken)
    if broken:
        text = completion["text"]
        told = "; ".join(f"{' '.join(text[begin:end].split())} ({why})" for begin, end, why in broken)
        _say(console, Text.assemble("      ", ("broke at ", WRONG), visible(told)))


def _broken(completion: Mapping[str, Any], question: str, strict: bool) -> list[tuple[int, int, str]]:
    """The broken equations of a completion; ``strict``: those too that are true and do not follow, or were repeated."""
    found = broken_equations(question, completion["text"])
    return [each for each in found if strict or each[2] == "false"]


def _named(name: str, value: float | None, form: str = ".3g") -> str:
    return f"{name} {'none' if value is None else format(value, form)}"


def _print_text(text: str, console: Console, name: str = "", spans: list[tuple[int, int, str]] = []) -> None:  # noqa: B006
    """A text behind a bar; lines are wrapped for a terminal, and left whole in a file or a pipe."""
    if name:
        _say(console, Text(f"  {name}:"))
    parts, at = list[tuple[str, str]](), 0
    for begin, end, _ in spans:
        parts += [(visible(text[at:begin]), ""), (visible(text[begin:end]), BROKEN)]
        at = end
    whole = Text.assemble(*parts, visible(text[at:]))
    whole.expand_tabs(4)
    width = max(20, console.width - len(BAR))
    for line in whole.split("\n", allow_blank=True):
        for piece in line.wrap(console, width) if console.is_terminal and line else [line]:
            console.print(Text.assemble((BAR, QUIET), piece), highlight=False, markup=False, soft_wrap=True)


def _say(console: Console, line: Text) -> None:
    """Print a line of ours; a terminal that is too narrow for it gets it in several, the further ones indented."""
    fits = not console.is_terminal or line.cell_len <= console.width
    first, *more = [line] if fits else line.wrap(console, max(20, console.width - len(BAR)))
    for each in (first, *(Text.assemble(" " * len(BAR), piece) for piece in more)):
        each.rstrip()
        console.print(each, highlight=False, markup=False, soft_wrap=True)
