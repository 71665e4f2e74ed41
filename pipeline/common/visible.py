"""Text from elsewhere, such as completions, made safe to show: no character in it can control a terminal."""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1: escape sequences, bells, carriage returns
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing: text that reads in another order than it is
    "\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f]"  # more line ends, what no encoding has, and invisible tags
)


def visible(text: str) -> str:
    r"""The text with every character that could control a terminal, or hide text in it, written as an escape.

    >>> visible("7\x1b[2J\x9b1A\n\u202e8\t\ud800 é")
    '7\\x1b[2J\\x9b1A\n\\u202e8\t\\ud800 é'
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
