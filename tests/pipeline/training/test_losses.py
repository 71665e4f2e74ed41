"""The shared objective: golden values by hand, and equality with its literal definition."""

from __future__ import annotations

import math

import pytest
import torch

from gradus.pipeline.training.learner.losses import kl_estimate, spread_PK, token_weights, weighted_likelihood

MASK = torch.tensor([[[True, True, True], [True, False, False]]])  # lengths 3 and 1, mean length 2


@pytest.mark.parametrize(
    ("score", "expected"),
    [("sum", [[1.0, 1.0]]), ("mean", [[1 / 3, 1.0]]), ("batch", [[0.5, 0.5]])],
)
def test_spread(score, expected):
    torch.testing.assert_close(spread_PK(MASK, score), torch.tensor(expected))


def test_token_weights_are_zero_on_padding_and_accept_a_weight_a_token():
    per_row = token_weights(torch.tensor([[2.0, -4.0]]), MASK, "mean")
    torch.testing.assert_close(per_row, torch.tensor([[[2 / 3, 2 / 3, 2 / 3], [-4.0, 0.0, 0.0]]]))
    per_token = token_weights(torch.ones(1, 2, 3), MASK, "sum")
    torch.testing.assert_close(per_token, MASK.float())


def test_without_a_clip_it_is_the_weighted_sum():
    # 2 * (-0.5) + (-1) * (-0.25) = -1 + 0.25 = -0.75
    objective = weighted_likelihood(torch.tensor([-0.5, -0.25]), torch.tensor([2.0, -1.0]), torch.zeros(2), None)
    assert objective.item() == pytest.approx(-0.75, rel=1e-6)


@pytest.mark.parametrize(
    ("coefficient", "ratio", "value", "slope"),
    [
        (1.0, 1.0, 1.0, 1.0),  # on-policy: ratio 1, the gradient of the plain likelihood
        (1.0, 1.5, 1.28, 0.0),  # already much likelier: held at 1 + high, no more pull
        (1.0, 0.5, 0.5, 0.5),  # a good token that became unlikelier still pulls, by c * ratio
        (-1.0, 0.5, -0.8, 0.0),  # a bad token already pushed down: held at 1 - low
        (-1.0, 1.5, -1.5, -1.5),  # a bad token that became likelier is pushed down
    ],
)
def test_clip(coefficient, ratio, value, slope):
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, weight = torch.zeros(1, dtype=torch.float64), torch.tensor([coefficient], dtype=torch.float64)
    objective = weighted_likelihood(logprob, weight, old, (0.2, 0.28))
    objective.backward()
    assert objective.item() == pytest.approx(value, rel=1e-6)
    assert logprob.grad.item() == pytest.approx(slope, rel=1e-6)


def test_kl_estimate_by_hand():
    # d = log pi - log ref = [0.5, -0.5]
    # exp(-d) - 1 + d = [e^-0.5 - 0.5, e^0.5 - 1.5] = [0.106531, 0.148721]; mean 0.127626
    policy, reference = torch.tensor([-1.0, -1.5, -9.0]), torch.tensor([-1.5, -1.0, 0.0])
    mask = torch.tensor([True, True, False])
    assert kl_estimate(policy, reference, mask) == pytest.approx(0.127626, rel=1e-5)
    assert kl_estimate(policy, policy, mask) == 0.0
