"""What was guessed, section by section of the configuration, and why."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradus.pipeline.common.errors import UserError


@dataclass
class Guesses:
    """Section of the configuration -> what was guessed for it, one line each."""

    told: dict[str, list[str]] = field(default_factory=dict)

    def add(self, section: str, text: str) -> None:
        """Keep one guess with its reason, on one line."""
        self.told.setdefault(section, []).append(" ".join(text.split()))

    def lines(self) -> list[str]:
        """Every guess, with its section before it."""
        return [f"{section}: {text}" for section, texts in self.told.items() for text in texts]


def percentile(numbers: Sequence[int], share: float) -> int:
    """The smallest of the numbers that is not below this share of them; 0 where there are none.

    >>> percentile([4, 1, 3, 2], 0.5), percentile([4, 1, 3, 2], 0.99), percentile([], 0.5)
    (2, 4, 0)
    """
    ordered = sorted(numbers)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0


def as_written(path: str, folder: Path) -> str:
    """A path of the command line as it stands in a configuration in ``folder``, where relative paths start."""
    here = folder.absolute() == Path.cwd() and not path.startswith("~")
    return path if here else str(Path(path).expanduser().absolute())


@contextlib.contextmanager
def given_as(option: str, key: str) -> Iterator[None]:
    """Let an error about a key of the configuration name the option of the command line that it came from."""
    try:
        yield
    except UserError as error:
        where = option if error.where == key else error.where
        raise UserError(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error
