"""A task of growing difficulty: turn a dial of ten, and write down where it stands after every place.

    python dial_task.py             # writes easy.jsonl, middle.jsonl, hard.jsonl and mixed.jsonl beside this file

A problem reads ``..3.9..5....``. The dial begins at 0; a digit turns it on by as much, a dot leaves it. The answer
``003322277777`` says where it stands at every place, and is right only where all of it is. The more digits, the harder.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

PLACES = 12
"""How long a problem is."""
LEVELS = {"easy": (2, 3), "middle": (4, 7), "hard": (8, 12)}
"""Level -> the fewest and the most digits of its problems."""
EACH = 2_000
"""How many problems a level has."""
MIXED = 1_000
"""How many problems of all levels are in the mixture."""


def problem(places: str) -> dict[str, str]:
    """One row of the data.

    >>> problem("..3.9..5....")
    {'question': '..3.9..5....', 'answer': '003322277777'}
    """
    answer, dial = "", 0
    for place in places:
        dial = (dial + int(place.replace(".", "0"))) % 10
        answer += str(dial)
    return {"question": places, "answer": answer}


def problems(name: str, count: int, levels: list[str]) -> list[dict[str, str]]:
    """Distinct problems, as many of each level; the same in every call."""
    chance, found = random.Random(name), dict[str, dict[str, str]]()
    while len(found) < count:
        digits = chance.randint(*LEVELS[levels[len(found) % len(levels)]])
        at = set(chance.sample(range(PLACES), digits))
        places = "".join(str(chance.randint(1, 9)) if place in at else "." for place in range(PLACES))
        found[places] = problem(places)
    return list(found.values())


def main() -> None:
    """Write the data."""
    for name, count in (dict.fromkeys(LEVELS, EACH) | {"mixed": MIXED}).items():
        path = Path(__file__).with_name(f"{name}.jsonl")
        rows = problems(name, count, [name] if name in LEVELS else list(LEVELS))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{count} problems in {path}")


if __name__ == "__main__":
    main()
