"""The processes that train a stage together, as one of them sees them. One process alone is a group of one.

Every rank goes through the same steps and takes the same decisions. What is shared out is what costs: prompts are
sampled and scored by rank, rows are trained on by rank. What comes of it is given to all, so that each rank knows the
whole batch and everything computed from it is the same everywhere; what clocks and signals say is agreed on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """What :meth:`Ranks.share` divided, put together again: item i is item i // n of part i % n, of n parts.

    >>> interleaved([[10, 13], [11, 14], [12]])
    [10, 11, 12, 13, 14]
    """
    whole: list[Any] = [None] * sum(map(len, parts))
    for n, part in enumerate(parts):
        whole[n :: len(parts)] = part
    return whole


@dataclass(frozen=True)
class Ranks:
    """One process among ``size``; every method that exchanges something is called by all of them, in one order."""

    rank: int = 0
    """This process, from 0."""
    size: int = 1
    shard: bool = False
    """Whether the trained weights are spread over the processes."""

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, curves and results; exactly one does."""
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """This rank's part, by position: 0, size, 2 * size ... for the first.

        >>> Ranks(1, 3).share([10, 11, 12, 13, 14])
        [11, 14]
        """
        return items[self.rank :: self.size]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in the ranks' order; anything that can be pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def same(self, value: T) -> T:
        """Rank 0's value."""
        if self.size == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on some rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def meet(self) -> None:
        """Wait for the others."""
        self.any(False)

    def rounds(self, items: Iterator[T]) -> Iterator[T | None]:
        """As many as the rank with the most items has; None where this one has run out."""
        item = next(items, None)
        while self.any(item is not None):
            yield item
            item = next(items, None)


ALONE = Ranks()


def join(device: str, shard: bool, time_limit: float) -> Ranks:
    """Become the rank that torchrun's environment names, on ``device`` (``cpu`` or ``cuda``).

    On GPUs each rank has the one of its local number. Objects and flags travel between CPUs even then.
    """
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=time_limit))
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), shard)
