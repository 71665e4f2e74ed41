r"""Words in mathematical answers, which a library that reads LaTeX takes for products of letters.

``east`` and ``seat`` would be equal, and ``5 million`` a product of eight factors.
"""

from __future__ import annotations

import re

from gradus.pipeline.rewards.numbers import RAISED, SUPERSCRIPTS, read_number

TEXT_IN_MATH = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed|fbox)\s*\{([^{}]*)\}")
COMMAND = re.compile(r"\\[A-Za-z]+")
AROUND = " \t\n$*_`\"'.,;:!?()"
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")  # noqa: RUF001
VOWEL = re.compile("[aeiouy]|[^\x00-\x7f]", re.IGNORECASE)
PRODUCT = re.compile("[abcd]+|[uvwxyz]+")
"""Letters that stand for variables side by side."""
SIGNS = str.maketrans({"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty "})  # noqa: RUF001
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))")
NAMES = re.compile(
    "pi|tau|phi|theta|alpha|beta|gamma|delta|lambda|sigma|omega|infinity|infty|inf|oo|sin|cos|tan|cot|sec|csc|log|ln|exp|"
    "sqrt|max|min",
    re.IGNORECASE,
)
"""Words that are mathematics."""


def plain_words(text: str) -> str | None:
    r"""A text that consists of words, in one form to compare; None where anything in it may be mathematics.

    >>> plain_words(r"\text{East}."), plain_words("New  York"), plain_words("xy"), plain_words("2 cats")
    ('east', 'new york', None, None)
    """
    words = [word.strip(AROUND) for word in TEXT_IN_MATH.sub(r" \1 ", text).strip(AROUND).split()]
    real = [_is_word(word) for word in words]
    plain = any(real) and all(is_real or len(word) == 1 for is_real, word in zip(real, words, strict=True))
    return " ".join(words).casefold() if plain and all(map(WORD.fullmatch, words)) else None


def without_words(text: str) -> str:
    r"""What a reader of LaTeX is given: signs as LaTeX writes them, no money, and a number with the words beside it.

    >>> without_words(r"\$32,\!348"), without_words("5 million"), without_words("3x² + √5")
    ('32,\\!348', '5000000', '3x^{2} + \\sqrt{5}')
    """
    text = SUPERSCRIPTS.sub(
        lambda found: f"^{{{found[0].translate(RAISED)}}}", text.replace("\\$", "").translate(SIGNS)
    )
    text = ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text)
    if text.count("$") % 2:  # a single one opens nothing
        text = text.replace("$", "")
    worded = any(_is_word(word) for word in WORD.findall(COMMAND.sub(" ", text)))
    number = read_number(text) if worded else None
    return text if number is None else f"{number:f}"


def _is_word(text: str) -> bool:
    return len(text) > 1 and bool(VOWEL.search(text)) and not PRODUCT.fullmatch(text) and not NAMES.fullmatch(text)
