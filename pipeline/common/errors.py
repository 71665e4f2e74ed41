"""The two kinds of failure that are reported in words instead of a traceback, and hints at the word that was meant."""

from __future__ import annotations

from collections.abc import Iterable

from gradus.pipeline.common.shown import visible


class UserError(ValueError):
    """Something the user can put right before any compute is spent; the command line exits with 2.

    The message says what is wrong, where, what was got, what was expected and what to do, each only where it applies.
    """

    def __init__(self, what: str, *, where: str = "", got: object = None, expected: str = "", fix: str = ""):
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        super().__init__(self.render())

    def render(self) -> str:
        """The message as the terminal shows it, one aspect a line."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where:    {self.where}")
        if self.got is not None:
            lines.append(f"  got:      {self.got}")
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.fix:
            lines.append(f"  do:       {self.fix}")
        return visible("\n".join(lines))  # what was got may be anything


class StageFailed(RuntimeError):
    """A stage could not continue (for example: too many non-finite updates in a row); the command line exits with 1."""


NO_MEMORY = ("DefaultCPUAllocator: ", "out of memory", "STATUS_ALLOC_FAILED")
"""How torch says that memory ran out, of the CPU, of a GPU, and for a library on a GPU: in RuntimeErrors."""


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, and so nothing about what was computed."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return said or isinstance(error, MemoryError)


def closest(word: str, known: Iterable[str]) -> str:
    """A question that proposes the closest of the known words; empty where none is close.

    >>> closest("dappo", ["dapo", "gfpo"]), closest("xyz", ["dapo", "gfpo"])
    ('did you mean `dapo`?', '')
    """
    import difflib  # takes milliseconds, and only mistakes need it

    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """:func:`closest`, or a list of the known words; empty where there are none."""
    names = sorted(known)
    return closest(word, names) or (f"use one of: {', '.join(names)}" if names else "")
