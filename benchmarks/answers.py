"""How often the rewards that compare answers are wrong, on completions in the styles of ten families of models.

    python benchmarks/answers.py            the table of docs/rewards.md
    python benchmarks/answers.py --wrong    and every completion that a reward misjudges

Each line of tests/data/completions.jsonl is a completion with its reference, and whether a person finds it right.
A reward is measured where it can read the reference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gradus.pipeline.rewards.registry import find
from gradus.pipeline.types import Prompt

COMPLETIONS = Path(__file__).parents[1] / "tests" / "data" / "completions.jsonl"
REWARDS = {
    "exact_answer": ("exact_answer", {}),
    "exact_answer, `ignore_case: true`": ("exact_answer", {"ignore_case": True}),
    "numeric_answer": ("numeric_answer", {}),
    "math_verify": ("math_verify", {}),
    "math_verify, `extract: whole`": ("math_verify", {"extract": "whole"}),
}
"""What the table calls it -> the reward and its options."""


def completions() -> list[dict[str, Any]]:
    """The rows of the file."""
    return [json.loads(line) for line in COMPLETIONS.read_text(encoding="utf-8").splitlines()]


def measured(name: str) -> dict[str, list[dict[str, Any]]]:
    """``scored``: the rows that the reward can judge; those it pays wrongly and those it wrongly does not pay."""
    reward, options = REWARDS[name]
    found: dict[str, list[dict[str, Any]]] = {"scored": [], "false positive": [], "false negative": []}
    for row in completions():
        prompt = Prompt("p", "?", row["reference"])
        try:
            paid = find(reward).score(prompt, row["completion"], options) == 1
        except ValueError:
            continue  # a reference that this reward cannot read
        found["scored"].append(row)
        if paid != row["right"]:
            found["false positive" if paid else "false negative"].append(row)
    return found


def table() -> str:
    """The table, in Markdown."""
    lines = ["| reward | completions | false positives | false negatives |", "|---|---|---|---|"]
    for name in REWARDS:
        counts = {kind: len(rows) for kind, rows in measured(name).items()}
        lines.append(f"| {name} | {counts['scored']} | {counts['false positive']} | {counts['false negative']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrong", action="store_true", help="also print what was misjudged")
    arguments = parser.parse_args()
    print(table())
    for name in REWARDS if arguments.wrong else ():
        for kind, rows in list(measured(name).items())[1:]:
            for row in rows:
                print(f"\n{name}, {kind}, {row['family']}, reference {row['reference']}:\n{row['completion']}")


if __name__ == "__main__":
    main()
