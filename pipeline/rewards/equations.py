"""Equation steps: how much of the reasoning is arithmetic that is true and follows from what came before.

Nothing is handed to ``eval``: a text becomes tokens, and tokens are evaluated exactly, in integers and fractions,
without recursion. One pass over the completion, so that degenerate text costs no more than its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

MAX_DIGITS = 40
"""A longer number makes its equation false."""
MAX_TOKENS = 200
"""A longer left side makes its equation false."""
MAX_BITS = 512
"""A larger intermediate result makes its equation false."""

SIGNS = str.maketrans(
    {
        "\N{MULTIPLICATION SIGN}": "*",
        "\N{MIDDLE DOT}": "*",
        "\N{DOT OPERATOR}": "*",
        "\N{ASTERISK OPERATOR}": "*",
        "\N{DIVISION SIGN}": "/",
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{NO-BREAK SPACE}": " ",
    }
)
LATEX = re.compile(r"\\(?:(times|cdot)|(div)|[()\[\],;!])")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
LETTER_X = re.compile(r"(?<=[\d)])[ \t]*[xX][ \t]*(?=[\d(])")
NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]")
LEFT = "0123456789.+-*/() \t"
VALUE = re.compile(r"[ \t]*(?:\*\*)?[ \t]*(-?)[ \t]*(\d+(?:\.\d+)?|\.\d+)(?:[ \t]*/[ \t]*(\d+)(?![\d.]))?")
MORE = re.compile(r"[A-Za-z^%!(_]|\.\d|[ \t]*[-+*/]+[ \t]*[\d(.]")
"""After a value: the right side continues, so it is not a plain value."""
UNREADABLE = frozenset("^_√%!]}'")
"""Before a left side: part of the expression is in a notation this reward does not read."""
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "~": 3}

Rational = int | Fraction


class _TooLarge(ArithmeticError):
    """A number or an expression beyond the limits above."""


def equation_share(question: str, reasoning: str, count_missing: bool = False) -> float:
    """The share of the reasoning's equations that are true and follow, in [0, 1]; 0 where there is no equation.

    An equation is ``left = value``: ``left`` has at least one operation (+ - * /, in any usual notation; a minus before
    a bracket will do), ``value`` is one number or fraction. It counts if it is exactly true, every number on its left
    stands in the question or is the value of an earlier equation (a false one too: the mistake is charged once), and it
    was not written before. Equations with variables, powers or an expression on the right are passed over.

    With ``count_missing`` the share is of at least as many equations as it takes to combine the question's numbers.

    >>> equation_share("(17 * 23) - 19", "17*23=381; 381-19=362;")
    0.5
    >>> equation_share("(17 * 23) - 19", "17*23=391;"), equation_share("(17 * 23) - 19", "17*23=391;", True)
    (1.0, 0.5)
    """
    total = good = 0
    for _, _, wrong in judged(question, _plain(reasoning).split("=")):
        total += 1
        good += not wrong
    if count_missing and total:
        total = max(total, len(NUMBER.findall(_plain(question))) - 1)
    return good / total if total else 0.0


def judged(question: str, parts: list[str]) -> Iterator[tuple[int, list[str], str]]:
    """(number of its sign ``=``, left side, what is wrong with it) of every equation that counts.

    ``parts``: a text in its simplest form, split at the signs.
    """
    known = set(_numbers(question)) if len(parts) > 1 else set[Rational]()
    seen: set[tuple[str, ...]] = set()
    for i, (before, after) in enumerate(pairwise(parts)):
        left = _left_side(before, "=" if i else "\n")
        right = _right_side(after, chained=i + 2 < len(parts))
        if left is None or right is None:
            continue
        wrong = ""
        try:
            value = _signed(right)
            if _evaluate(left) != value:
                wrong = "false"
            elif not _follows(left, known):
                wrong = "does not follow"
        except ValueError:
            continue
        except ArithmeticError:
            yield i, left, "false"
            continue
        written = (*left, "=", *right)
        yield i, left, wrong or ("repeated" if written in seen else "")
        seen.add(written)
        known.add(value)
        if right[2]:
            known.update((_number(right[1]), _number(right[2])))


def _plain(text: str) -> str:
    """The text with every accepted notation of an operator or a number in its simplest form."""
    if not text.isascii():
        text = text.translate(SIGNS)
    if "\\" in text:
        text = LATEX.sub(of_latex, text)
    if "$" in text:
        text = text.replace("$", "")
    if "," in text:
        text = THOUSANDS.sub("", text)
    if "x" in text or "X" in text:
        text = LETTER_X.sub("*", text)
    return text


def of_latex(found: re.Match[str]) -> str:
    """The simplest form of what LATEX finds."""
    return "*" if found[1] else "/" if found[2] else " "


@lru_cache(maxsize=4096)
def _numbers(question: str) -> frozenset[Rational]:
    """The numbers of a question, without their signs."""
    return frozenset(_number(text) for text in NUMBER.findall(_plain(question)) if len(text) <= MAX_DIGITS)


def _number(text: str) -> Rational:
    if len(text) > MAX_DIGITS:
        raise _TooLarge
    return Fraction(text) if "." in text else int(text)


def _right_side(part: str, chained: bool) -> tuple[str, str, str] | None:
    """(sign, number, denominator or "") at the beginning of what follows ``=``; None where it is not a plain value."""
    match = VALUE.match(part)
    if match is None or MORE.match(part, match.end()):
        return None
    sign, number, denominator = match.groups("")
    if denominator and chained and not part[match.end() :].strip():
        return None  # 12-6=6/2=3: this 6/2 is the next left side
    return sign, number, denominator


def _signed(right: tuple[str, str, str]) -> Rational:
    sign, number, denominator = right
    value = _number(number)
    if denominator:
        value = _divide(value, _number(denominator))
    return -value if sign else value


def _left_side(part: str, preceding: str) -> list[str] | None:
    """Tokens of the expression that ends just before ``=``; None where there is none that can be read."""
    tail = part[len(part.rstrip(LEFT)) :]
    tokens = TOKEN.findall(tail)
    if len(tokens) < 3:
        return None
    start = _expression_start(tokens)
    if start is None:
        return None
    if start == 0:
        before = part[-len(tail) - 1] if len(part) > len(tail) else preceding
        drop = _leading(tail, tokens[0], before)
        if drop is None:
            return None
        start = drop
    return tokens[start:]


def _expression_start(tokens: list[str]) -> int | None:
    """Where the longest readable expression begins that ends with the last token; None where there is none."""
    depth, start = 0, len(tokens)
    following = ""
    for i in range(len(tokens) - 1, -1, -1):
        token = tokens[i]
        if token not in "+-*/(" and following == "(":
            return None  # 3(4+1): an implicit product
        if token == ")":
            if following and following not in "+-*/)":
                break
            depth += 1
        elif token == "(":
            if depth == 0:
                break
            depth -= 1
        elif token not in "+-*/" and following and following not in "+-*/)":
            break  # two numbers side by side: the first is prose
        start, following = i, token
    return start if depth == 0 else None


def _leading(tail: str, first: str, before: str) -> int | None:
    """How many tokens at the tail's beginning are layout (bullets, bold); None where the expression began before it.

    ``before`` is the character before the tail.
    """
    text = tail.lstrip()
    spaced = len(text) < len(tail)
    if before in UNREADABLE:
        return None
    if first not in "+-*/":
        return None if before.isalnum() and not spaced else 0
    if before == "\n" and first != "/" and text[1:2].isspace():
        return 1
    if text.startswith("**"):
        return 2
    if first != "-":
        return None
    # "so -3+4" opens with a sign, "x - 3+4" and "x-3+4" continue from the x
    return 0 if not before.isalnum() or (spaced and not text[1:2].isspace()) else None


def _follows(left: list[str], known: set[Rational]) -> bool:
    """Whether every number of the left side is known; after a minus its negative will do."""
    for i, token in enumerate(left):
        if token in "+-*/()":
            continue
        number = _number(token)
        if number not in known and not (i and left[i - 1] == "-" and -number in known):
            return False
    return True


def _evaluate(tokens: list[str]) -> Rational:
    """The exact value of an expression (shunting-yard).

    Raises: ValueError where it is malformed or a mere number; ArithmeticError where it divides by
    zero or is beyond the limits.
    """
    if len(tokens) > MAX_TOKENS:
        raise _TooLarge
    values: list[Rational] = []
    operators: list[str] = []
    operand_next, operation = True, False
    for token in tokens:
        if token == "(" or token not in "+-*/)":
            if not operand_next:
                raise ValueError("two operands side by side")
            if token == "(":
                operation |= bool(operators) and operators[-1] == "~"
                operators.append(token)
            else:
                values.append(_number(token))
                operand_next = False
        elif token == ")":
            if operand_next:
                raise ValueError("an operand is missing")
            while operators[-1] != "(":
                _apply(operators.pop(), values)
            operators.pop()
        elif operand_next:
            if token != "-":
                raise ValueError("an operand is missing")
            operators.append("~")
        else:
            while operators and operators[-1] != "(" and PRECEDENCE[operators[-1]] >= PRECEDENCE[token]:
                _apply(operators.pop(), values)
            operators.append(token)
            operand_next = operation = True
    if operand_next or not operation:
        raise ValueError("an operand or an operator is missing")
    while operators:
        _apply(operators.pop(), values)
    return values[0]


def _apply(operator: str, values: list[Rational]) -> None:
    right = values.pop()
    if operator == "~":
        values.append(-right)
        return
    left = values.pop()
    if operator == "+":
        result = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        result = left * right
    else:
        result = _divide(left, right)
    if result.numerator.bit_length() > MAX_BITS or result.denominator.bit_length() > MAX_BITS:
        raise _TooLarge
    values.append(result)


def _divide(left: Rational, right: Rational) -> Rational:
    """Exact quotient; stays an integer where it is one, which keeps the common case quick."""
    if isinstance(left, int) and isinstance(right, int) and right and left % right == 0:
        return left // right
    return Fraction(left) / right
