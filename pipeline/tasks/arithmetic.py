"""Worked solutions for integer arithmetic: the reasoning as a chain of equations, such as ``17*23=391; 391-19=372``.

A chain has this form, so that a simple arithmetic parser can read every equation:

- the signs are ``*`` and ``/``, whatever signs the problem uses, and an equation contains no spaces;
- a negative operand follows its operator directly: ``5--3=8``, ``-7*-7=49``;
- the minus before a bracket is a separate step, with the bracket's value in brackets: ``-(-78)=78``, ``-(38)=-38``;
- every number on a left-hand side occurs in the problem or is the result of an earlier equation;
- no equation is repeated; so in ``3+5-5+5`` the answer is the result of the first equation and not of the last one:
  ``3+5=8; 8-5=3; answer: 8``.
"""

from __future__ import annotations

import re

SOLVABLE = frozenset({"chain_sum", "basic_arithmetic"})
"""The reasoning_gym data sets whose ``metadata["expression"]`` :func:`solve` reads."""

MAX_DEPTH = 64
"""Deepest nesting of brackets that is accepted; problems have far less."""

_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))")
_PLAIN = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})  # noqa: RUF001 - these signs are replaced


def solvable(dataset_name: str) -> bool:
    """Whether the problems of this reasoning_gym data set can be solved here."""
    return dataset_name in SOLVABLE


def solve(expression: str) -> str:
    """The worked solution of an arithmetic expression over integers; ends with ``answer: N``.

    Edge: an expression without an operation gives only the answer. Raises: ValueError, as :func:`work_out`.

    >>> solve("(17 * 23) - 19")
    '17*23=391; 391-19=372; answer: 372'
    >>> solve("-( 5 - -3 )")
    '5--3=8; -(8)=-8; answer: -8'
    """
    equations, value = work_out(expression)
    return "; ".join([*equations, f"answer: {value}"])


def work_out(expression: str) -> tuple[list[str], int]:
    """The equations that lead to an expression's value, in the order of evaluation, and that value.

    Multiplication and division bind tighter than addition and subtraction; equals are evaluated from left to right.

    Raises: ValueError where the text is no such expression, brackets are nested deeper than ``MAX_DEPTH``, a division
    is by zero or leaves a remainder, or a number has more digits than Python converts (4300).

    >>> work_out("2 + 3*4")
    (['3*4=12', '2+12=14'], 14)
    """
    return _Worker(expression).run()


class _Worker:
    """A recursive-descent parser that evaluates while it reads, and records each operation."""

    def __init__(self, expression: str):
        self.tokens = _tokens(expression)
        self.position = 0
        self.depth = 0
        self.equations: dict[str, None] = {}  # a dict keeps the order and drops repetitions

    def run(self) -> tuple[list[str], int]:
        value = self.sum()
        if self.next:
            raise ValueError(f"unexpected {self.next!r} after a complete expression")
        return list(self.equations), value

    @property
    def next(self) -> str:
        return self.tokens[self.position]

    def take(self) -> str:
        token = self.next
        self.position += 1
        return token

    def sum(self) -> int:
        value = self.product()
        while self.next in ("+", "-"):
            sign, right = self.take(), self.product()
            result = value + right if sign == "+" else value - right
            value = self.write(f"{value}{sign}{right}", result)
        return value

    def product(self) -> int:
        value = self.factor()
        while self.next in ("*", "/"):
            sign, right = self.take(), self.factor()
            if sign == "*":
                result = value * right
            elif right == 0:
                raise ValueError(f"{value}/0 has no value")
            elif value % right:
                raise ValueError(f"{value}/{right} leaves a remainder")
            else:
                result = value // right
            value = self.write(f"{value}{sign}{right}", result)
        return value

    def factor(self) -> int:
        negations = 0
        while self.next in ("+", "-"):
            negations += self.take() == "-"
        token = self.take() if self.next else "the end"
        if token == "(":
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ValueError(f"brackets nest deeper than {MAX_DEPTH}")
            value = self.sum()
            if self.next != ")":
                raise ValueError(f"a bracket is closed by {self.next or 'the end'!r}")
            self.take()
            self.depth -= 1
        elif token.isdigit():
            value = int(token)
            if negations:  # the minus of a negative number is part of the number, not a step
                value, negations = -value, negations - 1
        else:
            raise ValueError(f"a number or bracket is missing before {token!r}")
        for _ in range(negations):
            value = self.write(f"-({value})", -value)
        return value

    def write(self, operation: str, result: int) -> int:
        self.equations[f"{operation}={result}"] = None
        return result


def _tokens(expression: str) -> list[str]:
    text = expression.translate(_PLAIN).rstrip()
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"not integer arithmetic at character {position + 1} of {expression[:80]!r}")
        tokens.append(match[1] or match[2])
        position = match.end()
    return [*tokens, ""]
