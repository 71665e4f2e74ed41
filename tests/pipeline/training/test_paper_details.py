"""Details of the published variants that equal numbers would hide: which alpha, which quarter, and inexact means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradus.pipeline.advantages import centre, standardise
from gradus.pipeline.stage import Signals
from gradus.stages import discover


def weights_of(name: str, signals: Signals, **options: Any) -> Tensor:
    stage = discover()[name]
    return stage.weigh(signals, stage.config(**{"stage": name, "steps": 20, **options}))


def test_vapo_s_two_alphas_are_not_each_other_s() -> None:
    # token critic: 4 tokens, reward 1, every value 0.5: delta is 0 but for the last token, where it is 0.5
    # length_alpha 0.8: lambda = 1 - 1 / (0.8 * 4) = 0.6875, so 0.5 * [0.6875^3, 0.6875^2, 0.6875, 1]
    # (alpha 0.3 in its place: lambda = 1 - 1 / 1.2 = 1/6)
    signals = Signals(
        rewards_PK=torch.ones(1, 1),
        lengths_PK=torch.tensor([[4]]),
        mask_PKT=torch.ones(1, 1, 4, dtype=torch.bool),
        values_PKT=torch.full((1, 1, 4), 0.5),
    )
    found = weights_of("vapo", signals, variant="paper", alpha=0.3, length_alpha=0.8)
    assert found.flatten().tolist() == pytest.approx([0.16247559, 0.23632813, 0.34375, 0.5], rel=1e-6)
    # prompt critic: mean 0.5, V 0.2, alpha 0.3: 1 - 0.3 * 0.5 - 0.7 * 0.2 = 0.71, and 0.71 - 1 = -0.29
    signals = Signals(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), values_P=torch.tensor([0.2]))
    found = weights_of("vapo", signals, alpha=0.3, length_alpha=0.8)
    assert found.flatten().tolist() == pytest.approx([0.71, -0.29], rel=1e-6)


def test_a_difficulty_belongs_to_the_quarter_that_it_lies_in() -> None:
    # four times 0.2, 0.24, 0.45, 0.7, 0.9 is 0.8, 0.96, 1.8, 2.8, 3.6: quarters 0, 0, 1, 2, 3 (rounded: 1, 1, 2, 3, 4)
    # 0.25, 0.5 and 0.75 begin a quarter; 1 is in the last
    difficulty = [0.2, 0.24, 0.45, 0.7, 0.9, 0.25, 0.5, 0.75, 1.0, 0.0]
    kept = [2, 2, 3, 4, 5, 3, 4, 5, 5, 2]
    lengths = torch.tensor([[1, 2, 3, 4, 5, 6, 7]] * len(kept))
    # rewards of which every kept part is mixed and without its mean among them
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]] * len(kept))
    signals = Signals(rewards, lengths, difficulty_P=torch.tensor(difficulty))
    found = weights_of("gfpo", signals, variant="paper", keep=(2, 3, 4, 5), group_size=7)
    assert (found != 0).sum(-1).tolist() == kept


@pytest.mark.parametrize("count", [3, 5, 6, 7, 9, 11, 13])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3])
def test_equal_rewards_weigh_exactly_nothing_where_their_mean_is_inexact(count: int, value: float) -> None:
    """0.1 times 4 is exact in float32, 0.1 times 7 is not: the mean of seven is one unit in the last place off."""
    rewards = torch.full((2, count), value)
    assert (standardise(rewards) == 0).all() and (centre(rewards) == 0).all()
    signals = Signals(rewards, torch.ones(2, count, dtype=torch.long), longest=100)
    assert (weights_of("dapo", signals, variant="paper") == 0).all()
    assert (weights_of("srpo", signals, variant="paper") == 0).all()


def test_some_of_these_means_are_inexact() -> None:
    """Or the test above would show nothing."""
    means = [
        torch.full((count,), value).sum() / count for count in (3, 5, 6, 7, 9, 11, 13) for value in (0.1, 0.3, 0.7)
    ]
    values = [torch.tensor(value) for _ in range(7) for value in (0.1, 0.3, 0.7)]
    assert any(mean != value for mean, value in zip(means, values, strict=True))
