"""The rewards of the library: golden values by hand, what is refused before compute, and text made to be expensive."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_code import forgotten  # noqa: F401 - a fixture

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import RewardConfig
from gradus.pipeline.rewards import check_rewards, describe, extract_answer
from gradus.pipeline.rewards.equations import equation_share
from gradus.pipeline.rewards.library import equation_steps, exact_answer, format, length, numeric_answer
from gradus.pipeline.rewards.numbers import read_number
from gradus.pipeline.rewards.registry import Reward, find
from gradus.pipeline.tasks.arithmetic import solve
from gradus.pipeline.types import Prompt

QUESTION = "(17 \N{MULTIPLICATION SIGN} 23) \N{MINUS SIGN} 19"
MANUAL = Prompt("manual", QUESTION, "372")


def prompt(answer: str, question: str = "?") -> Prompt:
    return Prompt(id=answer, question=question, answer=answer)


def test_answers_by_own_pattern_and_whole() -> None:
    assert extract_answer("a=1 b=2 a=3", r"a=(\d)") == "3"
    assert extract_answer("b=2", r"a=(\d)") is None
    assert extract_answer("  the lot \n", "whole") == "the lot"
    assert extract_answer(" \n", "whole") is None


def test_exact_answer() -> None:
    assert exact_answer(MANUAL, "answer: 372") == 1
    assert exact_answer(MANUAL, "answer: 371") == 0
    assert exact_answer(MANUAL, "372") == 0  # no answer is named
    assert exact_answer(MANUAL, "372", extract="whole") == 1
    assert exact_answer(prompt("New  York"), "answer: New York") == 1
    assert exact_answer(prompt("Yes"), "answer: yes") == 0
    assert exact_answer(prompt("Yes"), "answer: yes", ignore_case=True) == 1
    assert exact_answer(prompt("48/2=24 ... #### 72"), "answer: 72", reference="#### (.*)") == 1
    with pytest.raises(ValueError, match="holds no answer"):
        exact_answer(prompt(""), "answer: 1")


def test_numeric_answer() -> None:
    assert numeric_answer(MANUAL, "answer: 372.0") == 1
    assert numeric_answer(MANUAL, "answer: 372.1") == 0
    assert numeric_answer(MANUAL, "answer: 372.1", tolerance=0.1) == 1
    # 1 % of 372 is 3.72
    assert numeric_answer(MANUAL, "answer: 375.72", relative_tolerance=0.01) == 1
    assert numeric_answer(MANUAL, "answer: 375.73", relative_tolerance=0.01) == 0
    assert numeric_answer(MANUAL, "no idea") == 0
    # far more digits than a float has
    assert numeric_answer(prompt("10000000000000000000001"), "answer: 10000000000000000000000", tolerance=0) == 0
    assert numeric_answer(prompt("1/3"), "answer: 2/6", tolerance=0) == 1
    with pytest.raises(ValueError, match="not one number"):
        numeric_answer(prompt("3 or 4"), "answer: 3")


def test_format_and_length() -> None:
    pattern = r"(\S+=\S+; )*answer: \d+"
    assert format(MANUAL, "17*23=391; answer: 391\n", pattern=pattern) == 1
    assert format(MANUAL, "well, answer: 391", pattern=pattern) == 0
    assert format(MANUAL, "well, answer: 391", pattern=pattern, match="search") == 1
    sizes = {9: 0.9, 10: 1.0, 20: 1.0, 25: 0.5, 29: 0.1, 30: 0.0, 99: 0.0}  # 1 - distance / 10
    assert {n: pytest.approx(length(MANUAL, "x" * n, min=10, max=20, falloff=10)) for n in sizes} == sizes
    assert [length(MANUAL, "x" * n, max=3, falloff=0) for n in (3, 4)] == [1, 0]


def test_equation_steps_on_the_manuals_example() -> None:
    assert equation_steps(MANUAL, "17*23=391; 391-19=372; answer: 372") == 1
    assert equation_steps(MANUAL, "17*23=391; 391-19=372; answer: 371") == 1
    assert equation_steps(MANUAL, "17*23=381; 381-19=362; answer: 362") == 0.5
    assert equation_steps(MANUAL, "the cat sat") == 0


@pytest.mark.parametrize(
    ("question", "reasoning", "expected"),
    [
        ("2 3 4", "2+3=5; 5+4=9", 1),
        ("2 3 4", "2+3=5; 6+4=10", 1 / 2),  # true, but 6 comes from nowhere
        ("2 3 4", "2+3=5; 2+3=5; 2+3=5", 1 / 3),  # once is enough
        ("2 3 4", "2+3=6; 6+4=10", 1 / 2),  # the slip is charged once
        ("2 3 4", "5=5; 7; x+2=3; 2x+3=4; 2^3+4=12", 0),  # nothing here is an equation between numbers
        ("2 3", "2^2+3=7; 2+3=5", 1),  # what can't be read is passed over
        ("9 4 2", "4-9=-5; -5+2=-3", 1),
        ("5 3", "5--3=8", 1),
        ("5 3", "5--3=8; -(8)=-8; -8+5=-3", 1),
        ("7 2", "7/2=3.5; 3.5*2=7", 1),
        ("1 3 2", "1/3=0.3333; ", 0),  # exactly, or not at all
        ("1 2 4", "1/2+1/4=3/4; 3/4-1/4=2/4", 1),
        ("2 3 4", "2+3*4=20", 0),
        ("2 3 4", "(2+3)*4=20", 1),
        ("2 3 4", "((2+3)*4=20)", 1),
        (
            "2 3",
            "2 \N{MULTIPLICATION SIGN} 3 = 6, 6 \N{DIVISION SIGN} 3 = 2. So 2 \N{MINUS SIGN} 3 = \N{MINUS SIGN}1",
            1,
        ),
        ("2 3", "\\(2 \\times 3 = 6\\) and $6 \\div 3 = 2$", 1),
        ("2 3", "2 x 3 = 6", 1),
        ("1,200 and 3", "1,200*3=3,600", 1),
        ("2 3", "- 2+3=5\n- 5*3=15\n1. 15-3=12\n2) 12/2=6", 1),  # a list
        ("2 3", "**2*3 = 6**\n2+3 = **5**", 1),
        ("2 3", "2+3=5 apples - they are red", 1),
        ("12 6 2", "12-6=6/2=3", 1),  # 12-6 is not 6/2: only 6/2=3 is read, and 6 and 2 are in the question
        ("2 3 4", "2+3=5-4=1", 0),  # only 5-4=1 is read, and its 5 was never shown
        ("2 3", "2/0=3; 2/(3-3)=2", 0),
        ("2 3", "2+3=", 0),
        ("2 3", "=5=2+3=5=", 1),
    ],
)
def test_equations_are_true_and_follow(question: str, reasoning: str, expected: float) -> None:
    assert equation_share(question, reasoning) == pytest.approx(expected)


BIG = str(10**38)
"""39 digits and 127 bits: the fourth power has 505 bits, the fifth 632, and 512 are the bound."""


@pytest.mark.parametrize(
    ("left", "value", "expected"),
    [
        ("9" * 40 + "-1", "9" * 39 + "8", 1),
        ("9" * 41 + "-1", "9" * 40 + "8", 0),  # 41 digits
        ("1-0", "0" * 39 + "1", 1),
        ("1-0", "0" * 40 + "1", 0),
        (f"{BIG}*{BIG}*{BIG}*{BIG}/{BIG}/{BIG}/{BIG}", BIG, 1),
        (f"{BIG}*{BIG}*{BIG}*{BIG}*{BIG}/{BIG}/{BIG}/{BIG}/{BIG}", BIG, 0),
        (f"1/{BIG}/{BIG}/{BIG}/{BIG}*{BIG}*{BIG}*{BIG}*{BIG}", "1", 1),
        (f"1/{BIG}/{BIG}/{BIG}/{BIG}/{BIG}*{BIG}*{BIG}*{BIG}*{BIG}*{BIG}", "1", 0),
        (f"{2**127}*{2**127}*{2**127}*{2**127}*8/{2**127}/{2**127}/{2**127}/{2**127}", "8", 1),  # 2^511 has 512 bits
        (f"{2**127}*{2**127}*{2**127}*{2**127}*16/{2**127}/{2**127}/{2**127}/{2**127}", "16", 0),
        ("+".join("1" * 100), "100", 1),  # 199 numbers and signs
        ("+".join("1" * 101), "101", 0),
    ],
)
def test_true_equations_count_up_to_the_bounds_on_their_numbers(left: str, value: str, expected: float) -> None:
    """Beyond them a text of a few kilobytes could ask for numbers of any size."""
    question = f"1 0 8 16 {BIG} {2**127} {'9' * 40} {'9' * 41}"
    assert equation_share(question, f"{left}={value}") == expected


@pytest.mark.parametrize("power", ["2^10", "2**10", "10^10^10", "9**9**9**9", "2^(10)", "2_10", "10!"])
def test_powers_are_read_by_no_reward_of_numbers(power: str) -> None:
    assert equation_share("2 3 9 10", f"{power}+3=1024; 2+{power}=1026") == 0
    assert read_number(power) is None


def test_every_worked_solution_scores_one() -> None:
    draw = random.Random(0)
    for _ in range(300):
        terms = [str(draw.randint(-99, 99)) for _ in range(draw.randint(2, 6))]
        expression = terms[0]
        for term in terms[1:]:
            operator = draw.choice("+-*")
            expression = (
                f"-({expression}) {operator} {term}" if draw.random() < 0.3 else f"{expression} {operator} {term}"
            )
        solution = solve(expression)
        assert equation_steps(prompt("", expression), solution) == 1, (expression, solution)


@pytest.mark.parametrize(
    "text",
    [
        "1+" * 50_000 + "1=1",
        "(" * 50_000 + "1+1=2",
        "(" * 50_000 + "1" + ")" * 50_000 + "+1=2",
        "9" * 50_000 + "*9=1",
        "9" * 30 + "*9" * 90 + "=1",
        "1+1=2" * 20_000,
        "=" * 100_000,
        "1 " * 50_000 + "= 2",
        "answer: " * 15_000,
        "<answer>" * 15_000,
        "\\boxed{" * 15_000,
        "1 x " * 25_000,
        "1," * 50_000,
    ],
)
def test_degenerate_text_costs_no_more_than_its_length(text: str) -> None:
    started = time.monotonic()
    score = equation_steps(prompt("", "1"), text)
    exact_answer(MANUAL, text), numeric_answer(MANUAL, text)
    assert 0 <= score <= 1
    assert time.monotonic() - started < 2  # microseconds per character even on a busy machine


def test_a_score_outside_the_documented_range_is_an_error() -> None:
    def double(prompt: Prompt, completion: str) -> float:
        """Too much."""
        return 2.0

    with pytest.raises(ValueError, match=r"outside its range \[0, 1\]"):
        Reward("double", double, 0, 1).score(MANUAL, "", {})


@pytest.mark.parametrize(
    ("config", "where", "message"),
    [
        ({"reward": "exact_anser"}, "rewards.0.reward", "did you mean `exact_answer`?"),
        ({"reward": "length", "params": {"maxx": 3}}, "rewards.0.params.maxx", "did you mean `max`?"),
        ({"reward": "length"}, "rewards.0.params", "needs the option 'max'"),
        ({"reward": "length", "params": {"max": "3"}}, "rewards.0.params.max", "a whole number"),
        ({"reward": "length", "params": {"max": True}}, "rewards.0.params.max", "a whole number"),
        ({"reward": "length", "params": {"max": 3, "min": 4}}, "rewards.0.params", "0 <= min <= max"),
        ({"reward": "format", "params": {"pattern": "("}}, "rewards.0.params", "not a regular expression"),
        ({"reward": "format", "params": {"pattern": "a", "match": "fully"}}, "rewards.0.params.match", "'search'"),
        ({"reward": "exact_answer", "params": {"extract": "a=.*"}}, "rewards.0.params", "exactly one group"),
        ({"reward": "exact_answer", "params": {"answer_after": ""}}, "rewards.0.params", "such as </think>"),
        ({"reward": "numeric_answer", "params": {"tolerance": -1}}, "rewards.0.params.tolerance", "finite number >= 0"),
        ({"reward": "numeric_answer", "params": {"tolerance": math.inf}}, "params.tolerance", "a finite number >= 0"),
        ({"reward": "numeric_answer", "params": {"relative_tolerance": "0"}}, "tolerance", "a finite number >= 0"),
        ({"reward": "length", "params": {"max": 3, "falloff": -2}}, "params.falloff", "a whole number >= 0"),
        ({"reward": "length", "params": {"max": math.nan}}, "params.max", "a whole number >= 0"),
        ({"reward": "no_such_module:f"}, "rewards.0", "no module 'no_such_module'"),
        ({"reward": "mine:"}, "rewards.0", "not the name of a function"),
        ({"reward": "mine.deeper:f"}, "rewards.0", "no module 'mine.deeper'"),
        ({"reward": "mine:socre"}, "rewards.0", "did you mean `score`?"),
        ({"reward": "mine:LIMIT"}, "rewards.0", "not a plain function"),
        ({"reward": "mine:later"}, "rewards.0", "not a plain function"),
        ({"reward": "mine:alone"}, "rewards.0", "a prompt and a completion"),
        ({"reward": "mine:score", "params": {"bonsu": 1}}, "rewards.0.params.bonsu", "did you mean `bonus`?"),
        ({"reward": "mine:needy"}, "rewards.0", "needs the option 'must'"),
        ({"reward": "broken:f"}, "broken.py:1", "can't be imported"),
    ],
)
def test_mistakes_are_told_before_compute(
    config: dict, where: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "mine.py").write_text(
        "raise SystemExit('checking must not run this')\n"
        "LIMIT = 3\n"
        "async def later(prompt, completion): ...\n"
        "def alone(prompt): ...\n"
        "def needy(prompt, completion, *, must): ...\n"
        "def score(prompt, completion, *, bonus=0.0): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        check_rewards([RewardConfig(**config)])
    assert caught.value.where.endswith(where)
    assert message in str(caught.value)


def test_functions_of_all_kinds_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "judges" / "deep"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("1 / 0\n")
    (package / "mine.py").write_text(
        "from functools import partial\nfrom math import *\n"
        "try:\n    from fast import score\nexcept ImportError:\n    def score(prompt, completion, **options): ...\n"
        "short = partial(score, limit=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    params = {"anything": 1}
    check_rewards([RewardConfig(reward="judges.deep.mine:score", params=params)])
    check_rewards([RewardConfig(reward="judges.deep.mine:short", params=params)])
    check_rewards([RewardConfig(reward="judges.deep.mine:from_math")])
    with pytest.raises(UserError, match="only prompts that reasoning_gym generated"):
        check_rewards([RewardConfig(reward="reasoning_gym")], source="file")


def test_rewards_are_described() -> None:
    rows = {row["name"]: row for row in describe()}
    assert rows["length"]["options"] == "max: int, min: int = 0, falloff: int = 100"
    assert rows["format"]["runs"] == "worker"
    assert all(row["summary"] and row["range"] for row in rows.values())
    # a pattern of the user's own may take exponential time; the built-in ones can't
    assert find("exact_answer").is_isolated({"extract": "(a+)+$"})
    assert not find("exact_answer").is_isolated({"extract": "whole"})


def test_importing_the_library_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "sympy", "reasoning_gym", "math_verify", "pydantic", "multiprocessing"}
    code = f"import sys, gradus.pipeline.rewards; print(*({heavy!r} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == []


def test_equation_steps_can_count_the_steps_that_were_left_out() -> None:
    problem = prompt("14", "State the answer: 4 + 3 - 2 + 9 =")
    whole, short = "4+3=7; 7-2=5; 5+9=14; answer: 14", "4+3=7; answer: 7"
    assert equation_steps(problem, short) == 1
    assert equation_steps(problem, short, missing="count") == pytest.approx(1 / 3)
    assert equation_steps(problem, whole, missing="count") == 1
    assert equation_steps(prompt("5", "What is 5?"), "answer: 5", missing="count") == 0
    assert equation_steps(MANUAL, "17*23=391; 391-19=372; answer: 371", missing="count") == 1
