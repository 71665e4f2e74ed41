"""Extraction of the final answer from a completion, for every reward that compares answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LABEL = re.compile(r"\banswer[ \t*_]*:[ \t*_]*([^\n;]*)", re.IGNORECASE)
OPEN_TAG, CLOSE_TAG = "<answer>", "</answer>"
BOXED = re.compile(r"\\boxed\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
BOXES_TRIED = 4
"""Boxes without a closing brace to step back over; bounds the time a degenerate completion can take."""


def extract_answer(completion: str, pattern: str = "auto") -> str | None:
    r"""The final answer, without surrounding whitespace; None where there is none, or an empty one.

    ``auto`` finds the last of ``answer: X`` (up to the line's end or ``;``), ``<answer>X</answer>`` and ``\boxed{X}``;
    ``whole`` takes the whole completion; anything else is a regular expression whose last match's group is the answer.

    >>> extract_answer("17*23=391; 391-19=372; answer: 372")
    '372'
    """
    found = find_answer(completion, pattern)
    return None if found is None else found[1]


def find_answer(completion: str, pattern: str = "auto") -> tuple[int, str] | None:
    """Like :func:`extract_answer`, with the offset at which the answer's marker begins."""
    if pattern == "whole":
        text = completion.strip()
        return (0, text) if text else None
    if pattern == "auto":
        found = [place for place in (_label(completion), _tag(completion), _boxed(completion)) if place]
        return max(found) if found else None
    last = None
    for match in re.finditer(pattern, completion):
        last = match
    text = (last.group(1) or "").strip() if last else ""
    return (last.start(), text) if last and text else None


def is_own_pattern(options: Mapping[str, Any]) -> bool:
    """Whether options hold a regular expression of the user's: matching it can take exponential time."""
    return any(options.get(key, "auto") not in ("auto", "whole") for key in ("extract", "reference"))


def check_pattern(pattern: str, option: str = "extract", groups: int | None = 1) -> None:
    """Raise ValueError unless ``pattern`` is ``auto``, ``whole`` or a regular expression with so many groups."""
    if groups is not None and pattern in ("auto", "whole"):
        return
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{option} {pattern!r} is not a regular expression: {error}") from None
    if groups is not None and compiled.groups != groups:
        raise ValueError(
            f"{option} {pattern!r} has {compiled.groups} groups; expected `auto`, `whole`, or a regular expression "
            "with exactly one group, which holds the answer (write other groups as `(?:...)`)"
        )


def _label(completion: str) -> tuple[int, str] | None:
    found = None
    for match in LABEL.finditer(completion):
        text = match.group(1).partition(CLOSE_TAG)[0].strip()
        # Markdown: **answer: X**
        text = text.removesuffix("**").rstrip()
        if text:
            found = match.start(), text
    return found


def _tag(completion: str) -> tuple[int, str] | None:
    end = completion.rfind(CLOSE_TAG)
    start = completion.rfind(OPEN_TAG, 0, end) if end >= 0 else -1
    text = completion[start + len(OPEN_TAG) : end].strip() if start >= 0 else ""
    return (start, text) if text else None


def _boxed(completion: str) -> tuple[int, str] | None:
    if "\\boxed" not in completion:
        return None
    for opening in list(BOXED.finditer(completion))[: -BOXES_TRIED - 1 : -1]:
        depth = 1
        for brace in BRACE.finditer(completion, opening.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                text = completion[opening.end() : brace.start()].strip()
                if text:
                    return opening.start(), text
                break
    return None
