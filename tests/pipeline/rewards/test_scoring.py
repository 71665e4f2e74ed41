"""From scores to rewards: what counts, what does not, and which completions are correct."""

from __future__ import annotations

import math

import pytest
import torch
from small_pipeline import pipeline

from gradus.pipeline.config.rewards import EvaluationConfig
from gradus.pipeline.rewards import Scores
from gradus.pipeline.rewards.scoring import rewarded
from gradus.pipeline.types import Prompt, Rollouts

NAN = math.nan


def scored(rewards: list[dict], threshold: float = 0.5, **scores: list[list[float]]) -> Rollouts:
    config = pipeline([{"stage": "sft"}], rewards=rewards, evaluation={"threshold": threshold})
    shape = torch.tensor(next(iter(scores.values()))).shape
    zeros = torch.zeros(*shape, 1)
    rollouts = Rollouts(
        prompts=[Prompt(str(p), "q", "a") for p in range(shape[0])], prompt_tokens=[[1]] * shape[0],
        tokens_PKT=zeros.long(), mask_PKT=zeros == 0, rollout_logprobs_PKT=zeros,
        truncated_PK=torch.zeros(shape, dtype=torch.bool), texts=[["x"] * shape[1]] * shape[0],
    )  # fmt: skip
    return rewarded(
        rollouts, Scores(components=scores, errors={}, kinds={}, examples={}, seconds=0.0, hidden=0.0), config
    )


ANSWER, STEPS = {"reward": "exact_answer"}, {"reward": "equation_steps", "weight": 0.5}


def test_the_total_is_weighted_and_a_failure_marks_the_completion_alone() -> None:
    found = scored([ANSWER, STEPS], exact_answer=[[1.0, 0.0, NAN, 1.0]], equation_steps=[[0.5, 1.0, 1.0, NAN]])
    assert found.rewards_PK is not None and found.valid_PK is not None and found.correct_PK is not None
    assert found.valid_PK.tolist() == [[True, True, False, False]]
    assert found.rewards_PK[0, :2].tolist() == [1.25, 0.5]  # 1 + 0.5 * 0.5; 0 + 0.5 * 1
    assert found.rewards_PK[0, 2:].tolist() == [0.875, 0.875], "the mean of 1.25 and 0.5, which no statistic uses"
    assert found.correct_PK.tolist() == [[True, False, False, True]], "a failed verifier is not a correct answer"


def test_a_component_without_weight_spoils_nothing() -> None:
    found = scored([ANSWER, {**STEPS, "weight": 0}], exact_answer=[[1.0, 0.0]], equation_steps=[[NAN, NAN]])
    assert found.rewards_PK is not None and found.valid_PK is not None
    assert found.rewards_PK.tolist() == [[1.0, 0.0]] and found.valid_PK.all()


@pytest.mark.parametrize(("score", "correct"), [(0.74, False), (0.75, True), (0.76, True)])
def test_a_completion_is_correct_from_the_threshold_on(score: float, correct: bool) -> None:
    found = scored([ANSWER], threshold=0.75, exact_answer=[[score]])
    assert found.correct_PK is not None and found.correct_PK.tolist() == [[correct]]


def test_equal_totals_are_equal_numbers_whatever_they_are_made_of() -> None:
    # in float32, 0.1 + 0.2 is one unit in the last place above 0.3
    found = scored([ANSWER, {**STEPS, "weight": 1.0}], exact_answer=[[0.1, 0.3]], equation_steps=[[0.2, 0.0]])
    assert found.rewards_PK is not None and found.rewards_PK[0, 0] == found.rewards_PK[0, 1]


@pytest.mark.parametrize(
    ("score", "threshold", "correct"),
    [
        (0.6 + 0.3 + 0.1, 1.0, True),  # 0.9999999999999999
        (1 - 9 / 10, 0.1, True),
        (float(torch.tensor([0.1] * 10).cumsum(0)[-1]), 1.0, True),  # 1.0000001, in float32
        (float(torch.tensor([0.7]) + torch.tensor([0.1])), 0.8, True),  # 0.8000000119
        (0.79999995, 0.8, True),  # an ulp of float32 below
        (999_999.9999, 1_000_000.0, True),
        (0.99999, 1.0, False),
        (-1e-5, 0.0, False),
        (NAN, 0.0, False),
    ],
)
def test_rounding_decides_no_more_in_training_than_in_an_evaluation(
    score: float, threshold: float, correct: bool
) -> None:
    found = scored([ANSWER], threshold=threshold, exact_answer=[[score]])
    assert found.correct_PK is not None and found.correct_PK.tolist() == [[correct]]
    assert EvaluationConfig(threshold=threshold).is_correct(score) == correct
