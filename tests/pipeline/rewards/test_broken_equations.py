"""Where the wrong equations of a text stand."""

from __future__ import annotations

import random

import pytest

from gradus.pipeline.rewards.broken_equations import _plain_with_places, broken_equations
from gradus.pipeline.rewards.equations import _plain, equation_share, judged


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5+6=11; 11+2=13; answer: 13", []),
        ("5+6=12; 12+2=14", [("5+6=12", "false")]),
        ("so 5 + 6 = 11, then 11 + 3 = 14.", [("11 + 3 = 14", "does not follow")]),
        ("5+6=11; 5+6=11; 11+2=13", [("5+6=11", "repeated")]),
        ("\\(5 \\times 6 = 31\\) and $5 x 2 = 11$", [("5 \\times 6 = 31", "false"), ("5 x 2 = 11", "false")]),
        ("5\N{MULTIPLICATION SIGN}6 = 1,030 \N{MINUS SIGN} no", [("5\N{MULTIPLICATION SIGN}6 = 1,030", "false")]),
        ("5+6=12=6+6", [("5+6=12", "false")]),
        ("5/0=5", [("5/0=5", "false")]),
        ("no equation, x = 5, 5 < 6", []),
        ("", []),
    ],
)
def test_each_is_named_with_its_reason(text: str, found: list[tuple[str, str]]) -> None:
    assert [(text[a:b], why) for a, b, why in broken_equations("5, 6, 2", text)] == found


def test_they_are_those_that_the_reward_does_not_count() -> None:
    draw, parts = (
        random.Random(0),
        ["5+6=11", "\\times ", " 2 ", "so ", "1,000", "=", "7x3=21", "\\(", "$", "\N{MULTIPLICATION SIGN}", "\n"],
    )
    broken = 0
    for _ in range(3000):
        text = "".join(draw.choice([*parts, *"0123456789+-*/()=., "]) for _ in range(draw.randint(0, 30)))
        plain, places = _plain_with_places(text)
        assert plain == _plain(text) and len(plain) == len(places)
        total, spans = len([*judged("5 + 6", plain.split("="))]), broken_equations("5 + 6", text)
        assert equation_share("5 + 6", text) == ((total - len(spans)) / total if total else 0.0)
        for begin, end, _ in spans:
            assert 0 <= begin < text.index("=", begin) < end <= len(text)
            broken += 1
    assert broken > 200
