"""The rewards that come with the library; the registry says where each may run."""

from __future__ import annotations

import re
from decimal import Context, Decimal, localcontext
from typing import Annotated, Any, Literal

from annotated_types import Ge

from gradus.pipeline.rewards.equations import equation_share
from gradus.pipeline.rewards.extraction import check_pattern, extract_answer, find_answer, is_own_pattern
from gradus.pipeline.rewards.math_words import plain_words, without_words
from gradus.pipeline.rewards.numbers import read_number
from gradus.pipeline.rewards.registry import reward
from gradus.pipeline.types import NO_THOUGHTS, Prompt


def _check_answers(extract: str, reference: str, **others: Any) -> None:
    _check_extract(extract, **others)
    check_pattern(reference, "reference")


def _check_extract(extract: str, answer_after: str | None = None, **others: Any) -> None:
    check_pattern(extract)
    if answer_after == "":
        raise ValueError("answer_after is empty; expected the text behind which the answer begins, such as </think>")


@reward("exact_answer", isolated=is_own_pattern, check=_check_answers)
def exact_answer(
    prompt: Prompt,
    completion: str,
    *,
    extract: str = "auto",
    reference: str = "whole",
    ignore_case: bool = False,
    answer_after: str | None = None,
) -> float:
    """1 where the final answer is the reference answer, character by character; runs of whitespace count as one space.

    ``extract`` finds the answer in the completion and ``reference`` in the reference text: ``auto`` (the last of
    ``answer: X``, "the answer is X", ``#### X``, <answer>X</answer>, \\boxed{X}, \\fbox{X}), ``whole``, or a regular
    expression with one group. No answer scores 0, and so does a last one that is empty or not closed. What a model
    thinks (<think> ... </think> and the tags of other models) is not searched, and a thought without an end has no
    answer. ``answer_after``: the answer is behind the last of this text, and there is none without it, which is for
    templates that open the thought in the prompt: </think>.

    Raises: ValueError where the reference text holds no answer.
    """
    answer, expected = extract_answer(completion, extract, answer_after), _reference(prompt, reference)
    if answer is None:
        return 0.0
    answer, expected = " ".join(answer.split()), " ".join(expected.split())
    return float(answer == expected or (ignore_case and answer.casefold() == expected.casefold()))


@reward("numeric_answer", isolated=is_own_pattern, check=_check_answers)
def numeric_answer(
    prompt: Prompt,
    completion: str,
    *,
    tolerance: Annotated[float, Ge(0)] = 1e-6,
    relative_tolerance: Annotated[float, Ge(0)] = 0.0,
    extract: str = "auto",
    reference: str = "whole",
    answer_after: str | None = None,
) -> float:
    """1 where the final answer's number is the reference's, within a tolerance.

    |answer - reference| <= max(tolerance, relative_tolerance * |reference|). The answer must hold exactly one number:
    signs (minus 5), decimals, 1e5, 3 x 10^5, 1,234, 3/4, 5 million, 1.5k, -(5), |-5|, a currency sign and units are
    read; a percent sign is a unit like any other. What may change a number and is not read (2x, sin(5), x > 5, at least
    5) makes it none.
    ``extract``, ``reference`` and ``answer_after`` as in exact_answer. No answer, or one with no number or several,
    scores 0.

    Raises: ValueError where the reference is not one number.
    """
    expected = read_number(_reference(prompt, reference))
    if expected is None:
        raise ValueError(f"the reference answer {prompt.answer[:80]!r} is not one number")
    answer = read_number(extract_answer(completion, extract, answer_after) or "")
    if answer is None:
        return 0.0
    with localcontext(Context(prec=60, traps=[])):
        allowed = max(Decimal(repr(tolerance)), Decimal(repr(relative_tolerance)) * abs(expected))
        return float(answer == expected or abs(answer - expected) <= allowed)


@reward("math_verify", isolated=True, packages=("math_verify",), check=_check_answers)
def math_verify(
    prompt: Prompt, completion: str, *, extract: str = "auto", reference: str = "whole", answer_after: str | None = None
) -> float:
    """1 where the math-verify library finds the final answer mathematically equal to the reference (LaTeX is read).

    ``extract``, ``reference`` and ``answer_after`` as in exact_answer; with ``whole`` the library looks for the answer
    by itself. Words are compared as words, whatever their case, and those beside a number are units, or scales such as
    million, as in numeric_answer.

    Raises: ValueError where the library can't read the reference answer.
    """
    answer, wanted = extract_answer(completion, extract, answer_after), _reference(prompt, reference)
    if (words := plain_words(wanted)) is not None:
        named = extract_answer(completion, "auto", answer_after) if extract == "whole" else None
        return float(words == plain_words(named or answer or ""))
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        # The worker holds the clock: the library's own alarm can't interrupt sympy's inner loops.
        text = without_words(text)
        marked = "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text
        parsed = [] if marked else parse(f"${text}$", parsing_timeout=0)
        return parsed if any(not isinstance(item, str) for item in parsed) else parse(text, parsing_timeout=0)

    expected = read(wanted)
    if not expected:
        raise ValueError(f"math-verify can't read the reference answer {prompt.answer[:80]!r}")
    if answer is None or plain_words(answer) is not None:
        return 0.0
    return float(verify(expected, read(answer), timeout_seconds=0))


@reward(
    "reasoning_gym",
    isolated=True,
    packages=("reasoning_gym", "gradus.pipeline.tasks.reasoning_gym"),
    check=_check_extract,
)
def reasoning_gym(
    prompt: Prompt,
    completion: str,
    *,
    extract: str = "auto",
    unreadable: Literal["error", "zero"] = "error",
    answer_after: str | None = None,
) -> float:
    """The score that the prompt's own reasoning_gym data set gives to the final answer.

    Many data sets give part of the marks to answers that are close or merely well-formed; 1 is always full marks.
    ``extract`` and ``answer_after`` as in exact_answer: answers of several lines, such as boards, need <answer> tags,
    ``whole`` or a regular expression. A few scorers (prime_factorization, boxnet, coin_flip, game_of_life) fail on an
    answer that they can't read: ``unreadable: zero`` scores it 0, provided that the same scorer can read the reference
    answer.
    """
    from gradus.pipeline.rewards.reasoning_gym import score_answer

    answer = extract_answer(completion, extract, answer_after)
    return 0.0 if answer is None else score_answer(prompt, answer, unreadable)


def _check_format(pattern: str, **others: Any) -> None:
    check_pattern(pattern, "pattern", groups=None)


@reward("format", isolated=True, check=_check_format)
def format(prompt: Prompt, completion: str, *, pattern: str, match: Literal["full", "search"] = "full") -> float:
    """1 where the completion matches a regular expression: as a whole, or anywhere with ``match: search``.

    Whitespace around the completion is dropped first; write ``(?s)`` to let ``.`` match line breaks.
    """
    compiled = re.compile(pattern)
    find = compiled.fullmatch if match == "full" else compiled.search
    return float(find(completion.strip()) is not None)


def _check_length(min: int, max: int, falloff: int) -> None:
    if min > max:
        raise ValueError(f"min is {min} and max is {max}; expected 0 <= min <= max")


@reward("length", check=_check_length)
def length(
    prompt: Prompt,
    completion: str,
    *,
    max: Annotated[int, Ge(0)],
    min: Annotated[int, Ge(0)] = 0,
    falloff: Annotated[int, Ge(0)] = 100,
) -> float:
    """1 where the completion has ``min`` to ``max`` characters; outside it falls to 0 over ``falloff`` characters.

    1 - distance / falloff, at least 0, where distance is the number of characters too few or too many; with
    ``falloff: 0`` it drops to 0 at once.
    """
    size = len(completion)
    distance = min - size if size < min else size - max if size > max else 0
    return 1.0 if distance == 0 else 0.0 if distance >= falloff else 1 - distance / falloff


@reward("equation_steps", isolated=is_own_pattern, check=_check_extract)
def equation_steps(
    prompt: Prompt,
    completion: str,
    *,
    extract: str = "auto",
    missing: Literal["ignore", "count"] = "ignore",
    answer_after: str | None = None,
) -> float:
    """The share of the equations before the final answer that are true and follow from the question or earlier ones.

    An equation is ``left = value`` with at least one operation (+ - * /, brackets) on its left; it counts if it is
    exactly true, every number on its left is in the question or the value of an earlier equation (a false one too, so
    that a slip is charged once), and it was not written before. No equation scores 0. ``extract`` says where the final
    answer, and so the end of the reasoning, is found (``answer_after`` as in exact_answer). With ``missing: count`` the
    share is of at least one equation fewer than the question has numbers, which is what combining them all takes: a
    policy that is ranked by this reward otherwise learns to leave steps out.
    """
    found = find_answer(completion, extract, answer_after)
    ends = found is not None and extract != "whole"
    reasoning = completion[: found.start] if found and ends else completion
    return equation_share(prompt.question, reasoning, count_missing=missing == "count")


def _reference(prompt: Prompt, pattern: str) -> str:
    answer = extract_answer(prompt.answer, pattern, thoughts=NO_THOUGHTS)  # which no policy has written
    if answer is None:
        raise ValueError(f"the reference answer {prompt.answer[:80]!r} holds no answer to compare with")
    return answer
