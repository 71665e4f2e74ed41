"""Which reward fits the answers, and where it finds the answer in a completion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gradus.flows.init.data import MARKED, Data, share_marked
from gradus.flows.init.guesses import Guesses
from gradus.pipeline.rewards.extraction import extract_answer
from gradus.pipeline.rewards.numbers import read_number

CHOICE = re.compile(r"\s*[(\[]?([A-Ja-j])[)\].:]?\s*")
CHOSEN = r"(?i)(?:\banswer\b(?:\s+is)?\s*:?|\\boxed\{|####|<answer>)[\s*(\[]*(?:\\text\{)?([A-J])\b"
"""Where a completion says which choice is right: ``answer: B``, ``The answer is (B)``, ``\\boxed{B}``, ``#### B``."""
LETTER = "([A-Ja-j])"
LATEX = re.compile(r"\\[a-zA-Z]+|[$^_{}]|^[\w\s.,+\-*/=<>()\[\]|:%]*[+\-*/=<>][\w\s.,+\-*/=<>()\[\]|:%]*$")
SHORT = 40
"""Characters of an answer that can be compared as text."""
PLACEHOLDER = {"reward": "length", "weight": 0.0, "params": {"max": 1000}}
"""A reward that pays nothing, because a pipeline needs one."""


def rewards_for(data: Data, guesses: Guesses) -> list[dict[str, Any]] | None:
    """The section ``rewards``; None where no reward that comes with gradus fits, which is told."""
    if data.task["source"] == "reasoning_gym":
        return _generated(data, guesses)
    if data.tests is not None:
        return _none(f"{data.tests!r} holds a program's tests", guesses)
    if data.pairs and data.same:
        return _none("a chosen completion is one of many that are right; no stage that comes with gradus takes pairs, "
                     "and sft imitates the chosen ones", guesses)  # fmt: skip
    if not data.answers:
        return _none("there are no answers to compare with", guesses)
    params: dict[str, Any] = {}
    answers = data.answers
    if share_marked(answers) >= MARKED:
        params["reference"] = "auto"
        answers = [text for text in map(extract_answer, answers) if text]
        guesses.add("rewards", f"reference auto: the answers are worked out, and end like {_ending(data.answers[0])}")
    elif data.same or _are_answers(data):
        params["extract"] = "whole"
    kind = _kind(answers, labels=data.same and "reference" not in params)
    example = " ".join(answers[0].split())[:SHORT]
    if kind is None:
        return _none(f"the answers are free text, such as {example!r}", guesses)
    name, why, more = kind
    if "extract" in params:
        guesses.add("rewards", "extract whole: the demonstrations are the answer, and nothing marks it")
    guesses.add("rewards", f"{name}: {why}, such as {example!r}")
    if data.choices is not None:
        guesses.add("rewards", f"the choices are in {data.choices!r}, which prompts do not show: write them into the "
                    "questions, or no answer can be right")  # fmt: skip
    shown = share_marked(data.demonstrations)
    if data.demonstrations and not params and "extract" not in more and shown < MARKED:
        guesses.add("rewards", f"only {shown:.0%} of the demonstrations mark their answer (answer: X, #### X, \\boxed)")
    merged = more | params
    return [{"reward": name, **({"params": merged} if merged else {})}]


def _kind(answers: Sequence[str], labels: bool) -> tuple[str, str, dict[str, Any]] | None:
    """(reward, why, its options) for these answers; None where none fits.

    ``labels``: the answers are whole completions, so that only those of a few labels can be compared as text.
    """
    numbers = sum(read_number(text) is not None for text in answers)
    if numbers == len(answers) and not any("\\" in text for text in answers):
        return "numeric_answer", "all answers are numbers", {}
    chosen = [CHOICE.fullmatch(text) for text in answers]
    if all(chosen):
        plain = all(len(text.strip()) == 1 for text in answers)
        options: dict[str, Any] = {"extract": CHOSEN, "ignore_case": True}
        return "exact_answer", "the answers are letters of choices", options | ({} if plain else {"reference": LETTER})
    formulas = sum(read_number(text) is not None or LATEX.search(text) is not None for text in answers)
    if formulas >= MARKED * len(answers):
        return "math_verify", "the answers are formulas and numbers", {}
    short = sum(len(text) <= SHORT and "\n" not in text.strip() for text in answers)
    if short >= MARKED * len(answers) and not (labels and len({*answers}) > len(answers) / 4):
        return "exact_answer", "the answers are short texts", {"ignore_case": True}
    return None


def _are_answers(data: Data) -> bool:
    """Whether the demonstrations are the answers and nothing else."""
    return bool(data.demonstrations) and {*data.demonstrations} == {*data.answers}


def _generated(data: Data, guesses: Guesses) -> list[dict[str, Any]]:
    if not data.demonstrated:
        guesses.add("rewards", "reasoning_gym: the data set's own scorer")
        return [{"reward": "reasoning_gym"}]
    guesses.add("rewards", "exact_answer: the solver's demonstrations end with `answer: X`")
    guesses.add("rewards", "equation_steps is logged, and ranked by in gfpo: the solver writes equations")
    return [{"reward": "exact_answer"}, {"reward": "equation_steps", "weight": 0.0, "params": {"missing": "count"}}]


def _none(why: str, guesses: Guesses) -> None:
    guesses.add(
        "rewards",
        f"none fits: {why}. `length` with weight 0 stands here because a pipeline needs a reward; it pays nothing. "
        "Write one of your own (docs/rewards.md) and put package.module:function in its place",
    )


def _ending(text: str) -> str:
    return repr(" ".join(text.split())[-24:])
