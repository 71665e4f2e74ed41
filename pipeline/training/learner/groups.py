"""Selecting groups of a batch and joining batches."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.common.ranks import interleaved
from gradus.pipeline.types import Rollouts


def groups_of(rollouts: Rollouts, chosen: list[int]) -> Rollouts:
    """Some groups of a batch, in the order of ``chosen``."""
    places = torch.tensor(chosen, dtype=torch.long)
    return replace(rollouts, **{each.name: _chosen(getattr(rollouts, each.name), places) for each in fields(rollouts)})


def joined(parts: list[Rollouts]) -> Rollouts:
    """The groups of several batches with the same rewards and group size as one batch."""
    longest = max(part.tokens_PKT.shape[-1] for part in parts)
    values = {each.name: [getattr(part, each.name) for part in parts] for each in fields(Rollouts)}
    return Rollouts(**{name: _joined(found, longest) for name, found in values.items()})


def regathered(parts: list[Rollouts]) -> Rollouts:
    """One batch from the ranks' shares of it, in the order of the prompts."""
    if len(parts) == 1:
        return parts[0]
    ends = accumulate(len(part.prompts) for part in parts)
    places = [range(end - len(part.prompts), end) for end, part in zip(ends, parts, strict=True)]
    return groups_of(joined(parts), interleaved(places))


def uniform_groups(rollouts: Rollouts) -> Tensor:
    """True on groups whose scored completions are all correct or all wrong, so that comparing them gives no signal.

    Shapes: -> bool [P]. Edge: a completion that could not be scored counts as neither.
    """
    assert rollouts.correct_PK is not None and rollouts.valid_PK is not None
    right_P = (rollouts.correct_PK & rollouts.valid_PK).any(-1)
    wrong_P = (~rollouts.correct_PK & rollouts.valid_PK).any(-1)
    return ~(right_P & wrong_P)


def uniform_share(uniform_P: Tensor, valid_PK: Tensor) -> float:
    """Share of uniform groups among those in which some completion could be scored; not a number without any."""
    return float(uniform_P[valid_PK.any(-1)].float().mean())


def _chosen(value: Any, places: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[places]
    if isinstance(value, dict):
        return {key: item[places] for key, item in value.items()}
    return [value[place] for place in places.tolist()] if isinstance(value, list) else value


def _joined(values: list[Any], longest: int) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        wide = [
            torch.nn.functional.pad(value, (0, longest - value.shape[-1])) if value.dim() == 3 else value
            for value in values
        ]
        return torch.cat(wide)
    if isinstance(first, dict):
        return {key: torch.cat([value[key] for value in values]) for key in first}
    return [item for value in values for item in value] if isinstance(first, list) else first
