"""Which equations of a text are wrong, and where they stand in it: what the reward for them did not count."""

from __future__ import annotations

import re

from gradus.pipeline.rewards.equations import LATEX, LETTER_X, SIGNS, THOUSANDS, TOKEN, VALUE, judged, of_latex

DOLLAR = re.compile(r"\$")


def broken_equations(question: str, text: str) -> list[tuple[int, int, str]]:
    r"""(begin, end, reason) of the equations in a text that :func:`equation_share` does not count as right.

    The reason is ``false``, ``does not follow`` (a number of its left side is from nowhere) or ``repeated``.

    >>> broken_equations("5 + 6 + 2 =", "5 + 6 = 12; so 12 + 3 \\times 1 = 15")
    [(0, 10, 'false'), (15, 35, 'does not follow')]
    """
    plain, places = _plain_with_places(text)
    parts = plain.split("=")
    found, begin = list[tuple[int, int, str]](), 0
    wrong_at = {at: (left, wrong) for at, left, wrong in judged(question, parts) if wrong}
    for at, part in enumerate(parts[:-1]):
        sign = begin + len(part)
        if at in wrong_at:
            left, wrong = wrong_at[at]
            first = [*TOKEN.finditer(part)][-len(left)].start()
            value = VALUE.match(parts[at + 1])
            last = sign + 1 + (value.end() if value else 0)
            found.append((places[begin + first], places[last - 1] + 1, wrong))
        begin = sign + 1
    return found


def _plain_with_places(text: str) -> tuple[str, list[int]]:
    """The text in its simplest form, and for each of its characters the place in the text that it comes from."""
    text, places = text.translate(SIGNS), list(range(len(text)))
    for pattern, put in ((LATEX, of_latex), (DOLLAR, _nothing), (THOUSANDS, _nothing), (LETTER_X, lambda _: "*")):
        parts, kept, end = list[str](), list[int](), 0
        for match in pattern.finditer(text):
            new = put(match)
            parts += [text[end : match.start()], new]
            kept += places[end : match.start()] + places[match.start() : match.start() + len(new)]
            end = match.end()
        text, places = "".join([*parts, text[end:]]), kept + places[end:]
    return text, places


def _nothing(found: re.Match[str]) -> str:
    return ""
