"""A task of one's own: sort digits by insertion, out loud. Its data, and a reward for the reasoning.

    python sorting_task.py          # writes digits.jsonl beside this file
    gradus run sorting.yaml

A problem reads ``Sort 5 3 9 1``, a worked solution ``5; 35; 359; 1359; answer: 1359``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PROBLEMS, FEWEST, MOST = 12_000, 4, 7


def insertions(digits: list[int]) -> list[str]:
    """The sorted digits after each insertion.

    >>> insertions([5, 3, 9])
    ['5', '35', '359']
    """
    return ["".join(map(str, sorted(digits[:count]))) for count in range(1, len(digits) + 1)]


def problem(digits: list[int]) -> dict[str, str]:
    """One row of the data."""
    steps = insertions(digits)
    return {
        "question": f"Sort {' '.join(map(str, digits))}",
        "answer": steps[-1],
        "solution": "; ".join([*steps, f"answer: {steps[-1]}"]),
    }


def steps_right(prompt: Any, completion: str) -> float:
    """Share of the insertions that are right; one that is missing is not."""
    wanted = insertions([int(word) for word in prompt.question.split()[1:]])
    written = [step.strip() for step in completion.split("answer:")[0].split(";")]
    return sum(one == other for one, other in zip(wanted, written, strict=False)) / len(wanted)


def main() -> None:
    """Write the data."""
    chance = random.Random(0)
    rows = [problem([chance.randrange(10) for _ in range(chance.randint(FEWEST, MOST))]) for _ in range(PROBLEMS)]
    path = Path(__file__).with_name("digits.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} problems in {path}")


if __name__ == "__main__":
    main()
