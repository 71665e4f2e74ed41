"""Extraction of the final answer from a completion, for every reward that compares answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from gradus.pipeline.types import NO_THOUGHTS, Thoughts

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\N{WHITE LEFT-POINTING TRIANGLE}think\N{WHITE RIGHT-POINTING TRIANGLE}",
     "\N{WHITE LEFT-POINTING TRIANGLE}/think\N{WHITE RIGHT-POINTING TRIANGLE}"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)  # fmt: skip
"""Where models begin and end their thoughts."""
DECLARED: ContextVar[Thoughts] = ContextVar("thoughts", default=NO_THOUGHTS)
"""What the policy that wrote the completion declares beside these, while a reward scores it."""

LABEL = re.compile(r"\banswer(?:[ \t]*\([^()\n]{1,40}\))?[ \t*_]*:[ \t*_]*", re.IGNORECASE)
SENTENCE = re.compile(
    r"\banswer(?:[ \t]+(?:to|for|of)[ \t][^\n.;:?!=]{1,80}?)?[ \t*_]*"
    r"(?:\b(?:is|equals|(?:would|must|should|will)[ \t]+be)\b|=)[ \t]*(?:therefore|thus|simply|just)?[ \t]*:?[ \t]*",
    re.IGNORECASE,
)
SUPPOSED = re.compile(
    r"(?:\b(?:if|whether|unless|suppose|assume|assuming|wrong|incorrect|possible|previous|another|an)|['’]s)[ \t]+"  # noqa: RUF001
    r"(?:that[ \t]+)?(?:(?:the|my|our|your)[ \t]+)?(?:(?:final|correct)[ \t]+)?$",
    re.IGNORECASE,
)
"""Before ``answer is X``: this is not the completion's own answer."""
REMARK = re.compile(
    r"(?:correct|right|wrong|incorrect|given|found|obtained|in|as|that|clear|unique|above|below)\b", re.I
)
"""After ``the answer is``: a remark about it, and not the answer."""
SENTENCE_END = re.compile(r"(?:[.?]|(?<![\d)}])!)(?=[*_`\"']*(?:\s|$))|,?\s+(?:because|since)\b")
HEADING = re.compile(r"^####[ \t]+(\S[^\n]*)", re.MULTILINE)
NUMBER_ALONE = re.compile(r"[-+$\\€£]*\d[\d.,/]*\\?%?")
LINE = re.compile(r"[^\n;]*")
OPEN_TAG, CLOSE_TAG = "<answer>", "</answer>"
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
BOLD = re.compile(r"(?<![\w*])\*\*(?=\S)([^*]+)(?<=\S)\*\*(?![\w*])")
WRAPPED = re.compile(r"(\*\*|__|\*|_|`|\$\$|\$)(?=\S)([^*_`$]+)(?<=\S)\1|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)


class Found(NamedTuple):
    """An answer that a completion marks; its text is empty where the marker is there and the answer is not."""

    start: int
    """Where the marker begins."""
    text: str


def extract_answer(
    completion: str, pattern: str = "auto", answer_after: str | None = None, thoughts: Thoughts | None = None
) -> str | None:
    r"""The final answer, without surrounding whitespace; None where there is none, or an empty one.

    ``auto`` takes the last of ``answer: X`` (up to the line's end or ``;``), ``the answer is X`` (up to the sentence's
    end), ``#### X``, ``<answer>X</answer>``, ``\boxed{X}`` and ``\fbox{X}``. If that is empty, or was never closed,
    there is no answer: an earlier one does not count. ``whole`` takes all of the text; anything else is a regular
    expression whose last match's group is the answer. Thoughts are not searched: see :func:`answer_part`.
    ``thoughts``: how they are marked; None: as the policy does that is being scored.

    >>> extract_answer("17*23=391; 391-19=372; answer: 372"), extract_answer("<think>answer: 3</think>4")
    ('372', '4')
    """
    found = find_answer(completion, pattern, answer_after, thoughts)
    return None if found is None else found.text


def find_answer(
    completion: str, pattern: str = "auto", answer_after: str | None = None, thoughts: Thoughts | None = None
) -> Found | None:
    """Like :func:`extract_answer`, with the offset at which the answer's marker begins."""
    begin = answer_part(completion, answer_after, thoughts)
    if begin is None:
        return None
    part = completion[begin:]
    if pattern == "whole":
        found = Found(0, part.strip())
    elif pattern == "auto":
        found = _marked(part) or (_bare_line(part) if begin else None)
    else:
        last = None
        for match in re.finditer(pattern, part):
            last = match
        found = Found(last.start(), (last.group(1) or "").strip()) if last else None
    return Found(begin + found.start, found.text) if found and found.text else None


def answer_part(completion: str, answer_after: str | None = None, thoughts: Thoughts | None = None) -> int | None:
    """Where the answer part begins: behind the last thought, or behind the last ``answer_after`` where that is given.

    None where a thought has no end, or ``answer_after`` does not occur. A thought may begin in the prompt.
    """
    if answer_after is not None:
        at = completion.rfind(answer_after)
        return at + len(answer_after) if at >= 0 else None
    declared = DECLARED.get() if thoughts is None else thoughts
    text, begin = declared.opened + completion, len(declared.opened)
    for opening, closing in dict.fromkeys((*THOUGHTS, *declared.pairs)):
        end = text.rfind(closing)
        if text.rfind(opening) > end:
            return None
        begin = max(begin, end + len(closing) if end >= 0 else 0)
    return begin - len(declared.opened)


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


def _marked(part: str) -> Found | None:
    """The last marker with its answer; of two that begin at the same place, the one with a text."""
    return max(filter(None, (_label(part), _sentence(part), _heading(part), _tag(part), _boxed(part))), default=None)


def _label(part: str) -> Found | None:
    last = None
    for match in LABEL.finditer(part):
        last = match
    if last is None:
        return None
    # Markdown: **answer: X**
    text = _rest_of_line(part, last.end()).removesuffix("**").rstrip()
    return Found(last.start(), text or _only_line_behind(part, last.end()))


def _sentence(part: str) -> Found | None:
    last = None
    for match in SENTENCE.finditer(part):
        line = part[max(0, match.start() - 60) : match.start()].rpartition("\n")[2]
        if not SUPPOSED.search(line) and not REMARK.match(part, match.end()):
            last = match
    if last is None:
        return None
    text = BOLD.sub(r"\1", SENTENCE_END.split(_rest_of_line(part, last.end()), maxsplit=1)[0].strip())
    text = text.removeprefix("**").removesuffix("**")  # **The answer is X**
    return Found(last.start(), _bare(text) or _only_line_behind(part, last.end()))


def _heading(part: str) -> Found | None:
    """``#### X`` as in GSM8K: the last line of the text, or a number alone; other lines are headings of sections."""
    found = None
    for match in HEADING.finditer(part):
        text = _bare(match.group(1))
        if NUMBER_ALONE.fullmatch(text) or not part[match.end() :].strip():
            found = Found(match.start(), text)
    return found


def _tag(part: str) -> Found | None:
    start = part.rfind(OPEN_TAG)
    if start < 0:
        return None
    return Found(
        start, part[start + len(OPEN_TAG) :].partition(CLOSE_TAG)[0].strip() if CLOSE_TAG in part[start:] else ""
    )


def _boxed(part: str) -> Found | None:
    opening = None
    for match in BOXED.finditer(part):
        opening = match
    if opening is None:
        return None
    depth = 1
    for brace in BRACE.finditer(part, opening.end()):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return Found(opening.start(), part[opening.end() : brace.start()].strip())
    return Found(opening.start(), "")


def _rest_of_line(part: str, begin: int) -> str:
    """What follows a marker, up to the end of the line, of the tag, or a semicolon."""
    return LINE.match(part, begin)[0].partition(CLOSE_TAG)[0].strip()  # type: ignore[index]


def _only_line_behind(part: str, end: int) -> str:
    """The line behind a marker at a line's end; empty unless it is the only one."""
    rest = part[end:].strip()
    return _bare(rest) if part[end:].startswith("\n") and "\n" not in rest else ""


def _bare_line(part: str) -> Found | None:
    """An answer part that consists of one line: after a thought, models often give the answer alone."""
    text = part.strip()
    return Found(part.index(text), _bare(text)) if text and "\n" not in text else None


def _bare(text: str) -> str:
    """A text without a full stop, and without the Markdown or the delimiters of mathematics around it."""
    text = text.strip().removesuffix(".").rstrip()
    wrapped = WRAPPED.fullmatch(text)
    return _bare(next(filter(None, wrapped.groups()[1:]))) if wrapped else text
