"""How often each token is drawn: exact frequencies after top-k and top-p, by evenly spaced uniform numbers."""

from __future__ import annotations

import math

import pytest
import torch

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.rollouts.builtin.draw import draw_tokens, truncate

PROBABILITIES = [0.1, 0.4, 0.2, 0.3]
"""Of four tokens, the most probable one not first, so that what is sorted has to be put back."""
COUNT = 36_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        # top-k 2 keeps 0.4 and 0.3, which share all of the mass: 4/7 and 3/7
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        # top-p 0.6: 0.4 does not reach it, 0.4 + 0.3 does
        ({"top_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        # top-p 0.8 needs a third token, 0.4 + 0.3 + 0.2 = 0.9: 4/9, 2/9 and 3/9
        ({"top_p": 0.8}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        # top-k first: 0.9 of the mass is left, of which top-p 0.75 is 0.675, and 0.4 + 0.3 reaches that, but not 0.75
        ({"top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),
        # at temperature 1/2 probabilities are squared: 0.01, 0.16, 0.04, 0.09; of the largest two 16/25 and 9/25
        ({"temperature": 0.5, "top_k": 2}, [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_tokens_are_drawn_in_proportion_to_what_is_kept(options: dict, expected: list[float]) -> None:
    logits = torch.tensor(PROBABILITIES).log().expand(COUNT, 4) + 3.0  # a constant changes no probability
    uniforms = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
    tokens, _, _ = draw_tokens(logits, uniforms.float(), SamplingConfig(**options))
    counts = torch.bincount(tokens, minlength=4).tolist()
    assert counts == pytest.approx([share * COUNT for share in expected], abs=3)  # rounding at a border moves a draw


def test_log_probabilities_and_entropies_are_those_before_anything_is_dropped() -> None:
    logits = torch.tensor(PROBABILITIES).log().expand(2, 4)
    # uniforms 0.1 and 0.9 among 4/7 and 3/7: the tokens 1 and 3, whose log-probabilities are log 0.4 and log 0.3
    options = SamplingConfig(top_k=2, top_p=0.99)
    tokens, logprobs, entropies = draw_tokens(logits, torch.tensor([0.1, 0.9]), options)
    assert tokens.tolist() == [1, 3]
    assert logprobs.tolist() == pytest.approx([math.log(0.4), math.log(0.3)], rel=1e-5)
    entropy = -sum(p * math.log(p) for p in PROBABILITIES)  # 1.27985 nats
    assert entropies.tolist() == pytest.approx([entropy, entropy], rel=1e-5)


def test_what_reaches_top_p_exactly_is_enough() -> None:
    # 0.5 + 0.25 is 0.75, without rounding: no third token is needed
    found = truncate(torch.tensor([[0.125, 0.5, 0.125, 0.25]]), SamplingConfig(top_p=0.75))
    assert found.tolist() == [[0, 0.5, 0, 0.25]]


def test_ties_at_the_border_of_top_k_are_kept_and_those_of_top_p_in_order() -> None:
    tied = torch.tensor([[0.25, 0.125, 0.25, 0.375]])
    assert truncate(tied, SamplingConfig(top_k=2)).tolist() == [[0.25, 0, 0.25, 0.375]]
    assert truncate(tied, SamplingConfig(top_p=0.5)).tolist() == [[0.25, 0, 0, 0.375]]
