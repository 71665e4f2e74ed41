"""Where the final answer of a completion is found: markers, thoughts, and markers without an answer."""

from __future__ import annotations

import pytest

from gradus.pipeline.rewards import extract_answer
from gradus.pipeline.rewards.extraction import find_answer
from gradus.pipeline.rewards.library import equation_steps, exact_answer, numeric_answer
from gradus.pipeline.types import Prompt

FOUND = {
    "<think>answer: 3</think>4": "4",
    "<think>answer: 3</think>\n\n**4**": "4",
    "<think>answer: 3": None,
    "thought...</think>The answer is 4.": "4",
    "<think>a</think>answer: 2<think>answer: 3": None,
    "<think>3</think>\nSo we have\nno marker 5": None,
    "[THINK]answer: 3[/THINK]4": "4",
    "<think></think>": None,
    "The answer is 72": "72",
    "The final answer is **72**.": "72",
    "#### 72": "72",
    "so \\fbox{72}": "72",
    "48/2=24\n48+24=72\n#### 72": "72",
    "#### Step 1\nanswer: 5\n#### 2. Next\nfoo": "5",
    "#### 72\n\nHope this helps": "72",
    "#### Final answer\n72": None,
    "The final answer is: $\\boxed{72}$. I hope it is correct.": "72",
    "The answer is $72$.": "72",
    "The answer is \\(72\\).": "72",
    "**The answer is 72.**": "72",
    "The answer is **72** clips.": "72 clips",
    "The answer is: **72**": "72",
    "The answer is:\n72": "72",
    "The answer is:\n\n72\n\nbecause": None,
    "\\boxed{8} and then \\boxed{9": None,
    "\\boxed{8} then \\boxed{}": None,
    "\\boxed{8} then \\boxed{ }": None,
    "<answer>1</answer> <answer>2": None,
    "<answer>1</answer><answer></answer>": None,
    "answer: 5\nanswer:": None,
    "\\boxed{} but answer: 5": "5",
    "\\boxed{\\boxed{5}}": "5",
    "answer: 372": "372",
    "answer: 1\nno, answer: 2; surely": "2",
    "**Answer:** 5\n": "5",
    "**Answer: 5**": "5",
    "<answer>\n1 2\n3 4\n</answer>": "1 2\n3 4",
    "<answer>answer: 7</answer>": "7",
    "<answer>The answer is 7</answer>": "7",
    "<answer>The answer is 7.</answer>": "7",
    "so \\boxed{\\frac{1}{2}} it is": "\\frac{1}{2}",
    "answer: \\boxed{8}": "8",
    "answer:\nanswer: ;": None,
    "the cat sat": None,
    "": None,
    "answer: 5. So the answer is correct.": "5. So the answer is correct.",
    "answer: 5\nSo the answer is correct.": "5",
    "answer: 5\nThe answer is in the box": "5",
    "If the answer is 72, then": None,
    "answer: 5\nif the answer is 6, then": "5",
    "Bob's answer is 5": None,
    "The answer is 72 because 48+24=72.": "72",
    "The answer is not 72": "not 72",
    "The answer isn't 72": None,
    "The answer is Paris.": "Paris",
    "The answer is (B).": "(B)",
    "Answer = 5": "5",
    "The answer to the problem is 72.": "72",
    "The answer is 3.5.": "3.5",
    "The answer is $1,234.50.": "$1,234.50",
    "the answer would be 7": "7",
    "The answer is **72**.": "72",
    "**Final Answer:**\n72": "72",
    "**Answer:**\n\nThe sum.\n72": None,
    "Answer: 5 apples": "5 apples",
    "The answer is": None,
    "answer: 5. The answer is": None,
    "The correct answer is **B**.": "B",
    "The answer is therefore 7": "7",
    "Answer (in dollars): 72": "72",
    "The answer is \\boxed{5": None,
    "The answer is **B) 72**.": "B) 72",
    "<|channel|>analysis<|message|>answer: 3<|end|><|start|>assistant<|channel|>final<|message|>**4**": "4",
    "answer_is = 5": None,
    "So, the answer is 72 clips!": "72 clips",
    "The answer is **5** or **6**.": "5 or 6",
    "My answer is *5*.": "5",
    "The answer is 2**3": "2**3",
    "**The answer is** 72": "72",
    "<think>\\boxed{3}</think>": None,
    "\\boxed{8}. Wait: \\boxed{": None,
    "\\fbox{8} \\boxed{9}": "9",
    "\\boxed{8} \\fbox{}": None,
    "<seed:think>answer: 1</seed:think>The answer is 2.": "2",
    "<|begin_of_thought|>answer: 1<|end_of_thought|>\nanswer: 2": "2",
    "<thinking>hm</thinking> <thinking>answer: 3": None,
    "<think>a</think>\n": None,
}
"""completion -> its answer by ``auto``."""


@pytest.mark.parametrize("completion", FOUND)
def test_the_last_answer_is_found_or_there_is_none(completion: str) -> None:
    assert extract_answer(completion) == FOUND[completion]


def test_thoughts_are_searched_by_no_way_of_extraction() -> None:
    thought = "<think>a=1; answer: 1</think>a=2"
    assert extract_answer(thought, r"a=(\d)") == "2" and extract_answer(thought, "whole") == "a=2"
    assert extract_answer("<think>a=1", r"a=(\d)") is None and extract_answer("<think>a=1", "whole") is None
    found = find_answer(thought, r"a=(\d)")
    assert found is not None and thought[found.start :] == "a=2"
    assert equation_steps(Prompt("p", "2 and 3", "5"), "<think>2+3=5</think>5") == 1


def test_an_answer_may_have_to_come_after_a_text() -> None:
    """Where the template opens the thought in the prompt, a completion that was cut off shows no tag at all."""
    prompt, behind = Prompt("p", "?", "4"), {"answer_after": "</think>"}
    for score in (exact_answer, numeric_answer):
        assert score(prompt, "so answer: 4") == 1 and score(prompt, "so answer: 4", **behind) == 0
        assert score(prompt, "so answer: 3</think>4", **behind) == 1
        assert score(prompt, "ANSWER 4 <end of thought> 4", extract="whole", answer_after="<end of thought>") == 1


def test_a_second_marker_pays_for_no_first_one() -> None:
    """A policy that marks a guess and then opens another marker would otherwise be paid for either."""
    prompt = Prompt("p", "?", "8")
    for empty in (
        "\\boxed{}",
        "\\boxed{",
        "\\fbox{ }",
        "<answer>",
        "<answer></answer>",
        "\nanswer:",
        "\nThe answer is",
    ):
        for first in ("answer: 8\n", "\\boxed{8} ", "<answer>8</answer> ", "The answer is 8. ", "#### 8\n"):
            assert numeric_answer(prompt, first) == 1 and numeric_answer(prompt, first + empty) == 0, first + empty
