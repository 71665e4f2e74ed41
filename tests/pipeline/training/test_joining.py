"""Batches of different lengths that become one: where the padding is, and that no token moves."""

from __future__ import annotations

from dataclasses import replace

import torch
from scored_batches import scored

from gradus.pipeline.training.learner.groups import groups_of, joined, regathered
from gradus.pipeline.types import Prompt, Rollouts


def batch(name: str, lengths: list[int], width: int, first: int) -> Rollouts:
    """One group whose tokens are ``first``, ``first`` + 1, ... in every completion."""
    made = scored([Prompt(name, "q", "1")], [[True] * len(lengths)])
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    tokens = (first + torch.arange(width)) * mask
    return replace(
        made,
        tokens_PKT=tokens[None],
        mask_PKT=mask[None],
        rollout_logprobs_PKT=-tokens[None].float(),
        entropy_PKT=tokens[None].float() / 8,
    )


def test_padding_is_on_the_right_and_tokens_stay_in_place() -> None:
    both = joined([batch("a", [2, 1], 2, 5), batch("b", [4, 3], 4, 7)])
    assert both.tokens_PKT.tolist() == [[[5, 6, 0, 0], [5, 0, 0, 0]], [[7, 8, 9, 10], [7, 8, 9, 0]]]
    assert both.mask_PKT.long().tolist() == [[[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]]]
    assert torch.equal(both.rollout_logprobs_PKT, -both.tokens_PKT.float())
    assert both.entropy_PKT is not None and torch.equal(both.entropy_PKT, both.tokens_PKT.float() / 8)
    assert [prompt.id for prompt in both.prompts] == ["a", "b"]


def test_shares_of_ranks_are_put_back_in_the_order_of_the_prompts() -> None:
    """Of five prompts, rank 0 of 2 has the first, third and fifth, with other lengths than rank 1."""
    one = joined([batch(name, [1, 1], 1, first) for name, first in (("a", 1), ("c", 3), ("e", 5))])
    two = joined([batch(name, [3, 2], 3, first) for name, first in (("b", 20), ("d", 40))])
    whole = regathered([one, two])
    assert [prompt.id for prompt in whole.prompts] == ["a", "b", "c", "d", "e"]
    assert whole.tokens_PKT[:, 0].tolist() == [[1, 0, 0], [20, 21, 22], [3, 0, 0], [40, 41, 42], [5, 0, 0]]
    assert groups_of(whole, [3, 0]).tokens_PKT[:, 1].tolist() == [[40, 41, 0], [1, 0, 0]]
