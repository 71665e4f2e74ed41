"""Rankings: the manual's own example, the laws of an order, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import RewardConfig
from gradus.pipeline.rewards import RewardSuite, check_keys, order_PKK
from gradus.pipeline.types import Prompt


def order(keys: list[str], rewards: list, lengths: list, valid: list | None = None, **components: list) -> list:
    """The pairs (i, j) of a single group in which i is better than j."""
    tensors = {name: torch.tensor([values]) for name, values in components.items()}
    valid_PK = torch.tensor([valid or [True] * len(rewards)])
    found_PKK = order_PKK(keys, torch.tensor([rewards]), tensors, torch.tensor([lengths]), valid_PK)
    assert found_PKK.dtype == torch.bool
    return found_PKK[0].nonzero().tolist()


def test_the_manuals_example() -> None:
    prompt = Prompt("manual", "(17 \N{MULTIPLICATION SIGN} 23) \N{MINUS SIGN} 19", "372")
    texts = [
        "17*23=391; 391-19=372; answer: 372",
        "17*23=381; 381-19=362; answer: 362",  # one wrong step
        "17*23=391; 391-19=372; answer: 371",  # nearly right
        "the cat sat",
    ]
    rewards = [RewardConfig(reward="exact_answer"), RewardConfig(reward="equation_steps", weight=0.0)]
    with RewardSuite(rewards) as suite:
        components = suite.score([prompt], [texts]).components
    assert components["exact_answer"] == [[1, 0, 0, 0]]  # the binary reward sees one good answer and three equal ones
    tensors = {name: torch.tensor(values) for name, values in components.items()}
    everything_PK = torch.ones(1, 4)
    found = order_PKK(["reward", "equation_steps"], tensors["exact_answer"], tensors, everything_PK, everything_PK)
    # y1 > y3 > y2 > y4
    y1, y2, y3, y4 = range(4)
    assert found[0].nonzero().tolist() == sorted([[y1, y3], [y1, y2], [y1, y4], [y3, y2], [y3, y4], [y2, y4]])


def test_the_first_key_that_differs_decides() -> None:
    rewards, lengths = [1.0, 1.0, 0.0, 0.0], [9, 5, 3, 3]
    assert order(["reward"], rewards, lengths) == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert order(["reward", "shorter"], rewards, lengths) == [[0, 2], [0, 3], [1, 0], [1, 2], [1, 3]]
    assert order(["longer", "reward"], rewards, lengths) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    # 2 and 3 are equal in every key: no pair in either direction
    assert order(["reward", "tidy"], rewards, lengths, tidy=[0.0, 0.0, 0.0, 1e-12]) == order(
        ["reward"], rewards, lengths
    )


def test_what_could_not_be_scored_is_in_no_pair() -> None:
    rewards, lengths = [1.0, 0.5, 0.0], [1, 1, 1]
    assert order(["reward"], rewards, lengths, valid=[True, False, True]) == [[0, 2]]
    assert order(["reward", "tidy"], rewards, lengths, tidy=[1.0, 1.0, math.nan]) == [[0, 1]]
    # a component that failed spoils only the rankings that use it
    assert order(["reward"], rewards, lengths, tidy=[1.0, 1.0, math.nan]) == [[0, 1], [0, 2], [1, 2]]


def test_laws_of_an_order() -> None:
    generator = torch.Generator().manual_seed(0)
    P, K = 20, 8
    draw = lambda high: torch.randint(0, high, (P, K), generator=generator).float()  # noqa: E731
    rewards, steps, lengths, valid = draw(2), draw(3), draw(4), draw(5) > 0
    components, keys = {"steps": steps}, ["reward", "steps", "shorter"]
    better = order_PKK(keys, rewards, components, lengths, valid)
    assert not (better & better.transpose(1, 2)).any()  # never both
    chained = (better.float() @ better.float()) > 0
    assert not (chained & ~better).any()  # transitive
    assert better.sum() > P * K
    shuffle = torch.randperm(K, generator=generator)
    shuffled = order_PKK(
        keys, rewards[:, shuffle], {"steps": steps[:, shuffle]}, lengths[:, shuffle], valid[:, shuffle]
    )
    assert torch.equal(shuffled, better[:, shuffle][:, :, shuffle])


def test_keys_are_checked() -> None:
    labels = ["exact_answer", "equation_steps"]
    check_keys(["reward", "equation_steps", "shorter"], labels)
    check_keys([], labels)
    with pytest.raises(UserError, match="did you mean `equation_steps`"):
        check_keys(["equation_step"], labels)
    with pytest.raises(UserError, match="stands twice"):
        check_keys(["reward", "shorter", "reward"], labels)
    with pytest.raises(UserError, match="both shorter and longer"):
        check_keys(["shorter", "longer"], labels)
    with pytest.raises(UserError, match="also what a reward is called"):
        check_keys(["reward"], ["reward"])
