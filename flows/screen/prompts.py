"""What a run remembers of its prompts, as bars, tables and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from gradus.flows.screen.text import Lines, count, print_table
from gradus.pipeline.common.shown import shown_share

WIDTH = 40
"""The longest bar, in characters."""
LONGEST = 100
"""Characters of a question that are shown."""


def print_prompts(seen: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`gradus.pipeline.runs.prompts_seen.prompts_seen` found."""
    say = Lines(console).say
    for stage in seen["stages"]:
        say(f"{stage['stage']}: {count(stage['prompts'])} prompts in {count(stage['groups'])} groups")
        for task in stage["tasks"]:
            _print_histogram(task, console)
    last = seen["stages"][-1]
    for what in ("hardest", "easiest"):
        say(f"{last['stage']}, the {what}:")
        rows = [
            [f"{each['correct']}/{each['scored']}", count(each["visits"]), each["task"], _short(each["question"])]
            for each in last[what]
        ]
        print_table(console, ["correct", "visits", "task", "question"], rows, ("correct", "visits"))
    for move in seen["moves"]:
        changed = {name: n for name, n in move["counts"].items() if n and len(set(name.split(" -> "))) > 1}
        told = ", ".join(f"{name} {count(n)}" for name, n in changed.items()) or "nothing"
        say(f"{move['from']} to {move['to']}, of {count(sum(move['counts'].values()))} prompts of both: {told}")


def _print_histogram(task: Mapping[str, Any], console: Console) -> None:
    """One bar for each range of pass rates."""
    counts, total = task["counts"], sum(task["counts"])
    name = f"{task['task']}: " if task["task"] else ""
    shared = f"; {count(task['shared'])} that another of its tasks has too are apart" if task["shared"] else ""
    Lines(console).say(f"{name}mean pass rate {shown_share(task['mean'])}, {count(task['unseen'])} never seen{shared}")
    parts = len(counts) - 2
    ranges = ["0", *(f"{at / parts:.1f} to {(at + 1) / parts:.1f}" for at in range(parts)), "1"]
    most = max(1, *counts)
    rows = [
        [name, count(n), f"{n / max(total, 1):.1%}", "█" * -(-n * WIDTH // most)]
        for name, n in zip(ranges, counts, strict=True)
    ]
    print_table(console, ["pass rate", "prompts", "share", ""], rows, ("prompts", "share"))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
