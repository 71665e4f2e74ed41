"""The one number of an answer: each notation that is read, and whatever else makes it no number."""
# ruff: noqa: RUF001 - the signs that people write

from __future__ import annotations

from decimal import Decimal

import pytest

from gradus.pipeline.rewards.library import numeric_answer
from gradus.pipeline.rewards.numbers import read_number
from gradus.pipeline.types import Prompt

READ = {
    "-1,234.50": "-1234.50", "−3": "-3", "- 3": "-3", "$5 a day": "5", "1e3": "1000", "x = .5": "0.5",
    r"\frac{3}{4}": "0.75", "-3 / 4": "-0.75", "50%": "50", "-(5)": "-5", "–5": "-5", "—5": "-5", "negative 5": "-5",
    "minus 5": "-5", "Minus 5": "-5", "|-5|": "5", "(5)": "5", "-(-5)": "5", "5 million": "5000000", "1.5k": "1500",
    "$2.5M": "2500000", "5 billion dollars": "5000000000", "3 hundred": "300", r"\$5": "5", "$5$": "5", r"\(5\)": "5",
    "**5**": "5", "5 apples": "5", "Natalia sold 72 clips in May.": "72", "72 clips!": "72", "5 km/h": "5",
    "5 m/s^2": "5", "5 m²": "5", r"5\text{ cm}^2": "5", "5 square meters": "5", "5kg": "5", "5 kg": "5", "5°": "5",
    r"5^\circ": "5", r"5^{\circ}": "5", r"50\%": "50", "€5": "5", "5€": "5", "5 €": "5", "-$5": "-5", "$-5": "-5",
    r"3.5 \times 10^5": "350000", "3.5 x 10^-2": "0.035", "2 × 10³": "2000", "½": "0.5", "1,234,567": "1234567",
    r"1\,234": "1234", "32{,}348": "32348", r"\$32,\!348": "32348", "x = 5": "5", "x=-5": "-5", "x = - 5": "-5",
    "x is 5": "5", "The total is 5": "5", "5.": "5", "5 times": "5", "5-year-old": "5", '"5"': "5", r"\boxed{5}": "5",
    r"-\frac{3}{4}": "-0.75", r"\dfrac{1}{2}": "0.5", r"\frac12": "0.5", r"\text{-}5": "-5", "5 hours per day": "5",
    "5 more apples": "5", "5 dollars": "5", "so 5": "5", "approximately 5": "5", "≈ 5": "5", r"\approx 5": "5",
    "= 5": "5", "n = 5": "5", "Total: 5": "5", r"5\ \text{meters}": "5", r"5 \text{ million}": "5000000", "+5": "5",
    "5个": "5", "5 元": "5", "5 яблок": "5", r"\mathbf{5}": "5", r"\left(5\right)": "5", "{5}": "5", "[5]": "5",
    r"-\$5": "-5", "7 a.m.": "7", "5 m": "5", "a = 5 cm": "5", "She has 5 left": "5", "3/4 of the cake": "0.75",
    "18 dollars every day at the farmers' market": "18", "it's 5": "5", "2,000 calories": "2000", "5 per day": "5",
    "(3/4)": "0.75", "$5": "5", "５": "5", "$5/hour": "5", "5 hundred": "500", "-5 °C": "-5", "5 °C": "5",
    "答案是5": "5",
    "5 µm": "5", "5 less": "5", "= -5": "-5", r"\$-5": "-5", "5 fewer apples": "5", "x = -(5)": "-5", "(-5)": "-5",
    "-( -5 )": "5", "| -5 |": "5", "-|5|": "-5", "about 5 minutes": "5", "+ 5": "5", "$1,234.5 million": "1234500000",
    "5 x 10^3 kg": "5000", "6.02×10²³": "602000000000000000000000", "θ = 5": "5",
}  # fmt: skip
"""text -> the number that it states."""

CHANGED = [
    r"\sqrt{5}", "5²", "5^2", "5^{2}", "e^5", "e^{5}", "sin(5)", "sin 5", r"\sin 5", "2x", "2 x", "2xy", "2π",
    r"2\pi", "x > 5", "x ≥ 5", "x<5", "≤ 5", "≠ 5", "±5", r"\pm 5", "f(5)", "5!", "5/x", "5 or more", "at least 5",
    "more than 5", "less than 5", "5 and a half", "5 dozen", "5 halves", "half of 5", "twice 5", "not 5",
    "it isn't 5", "5i", "5 + x", "x + 5", "x - 5", "y = x + 5", "log 5", r"\log_{10} 5", "5%5", "5-3", "x-5", "2^10",
    "3!", "1 3/4", "5½", "3/0", "1e9999999", "nothing", "5–7", "5 to 7", "5, 6", "0,125", "1,23", "1234,567", "5万",
    "负5", "5 миллионов", "5 millones", "5 Millionen", r"\frac{x}{5}", r"\frac{5}{x}", "5 hundredths", "5 thirds",
    "5th", "5/", "/5", "√5", "∛5", "5‰", "5e", r"\overline{5}", r"0.\overline{3}", "0.333...", "0.333…", "5 squared",
    "5 cubed", "the square root of 5", r"\lfloor 5 \rfloor", "x^5", "a_5", "5_8", "[5, ∞)", "(5, x)", "5:30", "--5",
    "-+5", "the total - 5", "5 mod 3", "5 (mod x)", "5 below zero", "five or 5", "10% of x", "x = 5y", "5 = x + y",
    "$5 to $6", "5 ab", "5 per x", "min(5)", "max 5", "5 choose k", "C(5, k)", "5*x", "5·x", "5 × x", "A5", "5A5",
    r"\vec{5}", "5'", "1.2.3", "5 minus x", r"\text{not } 5", r"5\text{ dozen}", "minus x 5", "5 over x", r"\log 5",
    "base 5", r"\binom{5}{x}", "x = ±5", "x = 5 or x = y", "#5", "5 times x", "5 out of ten", "~x 5", "10^5",
    r"5 \pmod{x}", "5°5", "less 5", "5 thousandths", r"\ln(5)", "sqrt5", "sqrt(5)", "5sin", "0x5", r"5 \times y",
    "|5|x", "(5)(x)", "x(5)", "-x5", "5a", "5 π", "5-x", "5/pi", "5-dozen", "5/xy", "== 5", "v5", "x^2 = 5",
    r"\sqrt{x} = 5", "||5|", "5 − 3", "zero 5", "5 and x", "5 plus", "not equal to 5", "5 +", "- -5", "5∞",
    "5 m 30 s", '5\' 3"', "|5 - x|", "5^{th}", "9" * 500,
]  # fmt: skip
"""Texts that state no number, or another one than the digits in them."""


@pytest.mark.parametrize("text", READ)
def test_a_number_is_read_with_what_belongs_to_it(text: str) -> None:
    assert read_number(text) == Decimal(READ[text])


@pytest.mark.parametrize("text", CHANGED)
def test_what_may_change_a_number_makes_it_none(text: str) -> None:
    assert read_number(text) is None
    assert numeric_answer(Prompt("p", "?", "5"), f"answer: {text}") == 0


@pytest.mark.parametrize("answer", [r"\sqrt{5}", "5 or 6", "x > 5", "five"])
def test_a_reference_that_is_no_number_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError, match="not one number"):
        numeric_answer(Prompt("p", "?", answer), "answer: 5")


def test_no_text_takes_long() -> None:
    parts = [
        "(",
        "-",
        "1,",
        "$",
        "*",
        "{",
        "\\text{",
        "_ ",
        " x",
        "\\frac{",
        "(|",
        "a",
        "a ",
        "million ",
        "5e",
        "=",
        "!",
    ]
    for part in parts:
        for text in (
            part * 400,
            (part * 400)[:390] + "5",
            "5" + (part * 400)[:390],
            (part * 200)[:190] + "5" + part * 190,
        ):
            assert read_number(text[:400]) is None or "5" in text or "1" in text
