"""math_verify and words, units and money: what a reader of LaTeX takes for products and delimiters."""

from __future__ import annotations

import pytest

from gradus.pipeline.rewards.math_words import plain_words

pytest.importorskip("math_verify")

EQUAL = [
    ("east", "east"), ("East", r"\text{east}"), (r"\text{New York}", "new  york."), ("yes", "Yes"),
    (r"\$32,\!348", "32348"), (r"\$32,\!348", r"\$32,348"), ("$32,348", r"$\boxed{\$32,\!348}$"), (r"\$18.90", "18.9"),
    ("5 million", "5000000"), (r"5{,}000{,}000", r"5\text{ million}"), ("72", "72 apples"), (r"\frac{1}{2}", "0.5"),
    ("xy", "yx"), ("abc", "cba"), (r"x^2+1", "1+x^2"), (r"2\pi", r"2\cdot\pi"), (r"\infty", r"\infty"),
    (r"\sqrt{5}", r"5^{1/2}"), ("B", "B"), (r"(3,\frac{\pi}{2})", r"\left(3, \pi/2\right)"),
]  # fmt: skip
DIFFERENT = [
    ("east", "seat"), ("even", "neve"), (r"\text{listen}", "silent"), ("no", "on"), ("AB", "east"), ("12", "twelve"),
    ("5 million", "5"), ("5", "5 million"), ("1 east", "east"), (r"\text{true}", r"\text{false}"),
    (r"\$32,\!348", "32"), ("x", "unknown"), ("Paris, France", "France, Paris"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer", "score"), [(*p, 1) for p in EQUAL] + [(*p, 0) for p in DIFFERENT])
def test_words_are_words_and_money_is_a_number(reference: str, answer: str, score: int) -> None:
    from gradus.pipeline.rewards.library import math_verify
    from gradus.pipeline.types import Prompt

    prompt = Prompt("p", "?", reference)
    assert math_verify(prompt, f"<answer>{answer}</answer>") == score
    if "boxed" not in answer:
        assert math_verify(prompt, f"So it is $\\boxed{{{answer}}}$", extract="whole") == score


@pytest.mark.parametrize(
    "text", ["x", "xy", "ab", "kx", "mgh", "pi", r"\pi", "2 cats", "x + y", r"\sqrt{x}", "", "$", "sin"]
)
def test_what_may_be_mathematics_is_not_a_word(text: str) -> None:
    assert plain_words(text) is None
