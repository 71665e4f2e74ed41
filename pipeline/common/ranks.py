"""The processes that train a stage together (ranks), seen from one of them. One process alone is a group of size 1.

Every rank goes through the same steps and takes the same decisions. Only the expensive work is divided: each rank
samples, scores and trains on its share of the batch. The results are gathered on every rank, so that all of them know
the whole batch and compute the same from it. What differs between processes, such as clocks and interrupts, is agreed
on before it decides anything.
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
    """The inverse of :meth:`Ranks.share`, from the parts of all n ranks: item i is item i // n of part i % n.

    >>> interleaved([[10, 13], [11, 14], [12]])
    [10, 11, 12, 13, 14]
    """
    whole: list[Any] = [None] * sum(map(len, parts))
    for n, part in enumerate(parts):
        whole[n :: len(parts)] = part
    return whole


@dataclass(frozen=True)
class Ranks:
    """One process among ``size``. All of them must call the methods that communicate, in the same order."""

    rank: int = 0
    """This process's number, from 0."""
    size: int = 1
    shard: bool = False
    """Whether the trained weights are sharded over the processes."""

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, metrics and results; exactly one does."""
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """This rank's part, by position: items 0, size, 2 * size ... for rank 0.

        >>> Ranks(1, 3).share([10, 11, 12, 13, 14])
        [11, 14]
        """
        return items[self.rank :: self.size]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks; anything that can be pickled."""
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
        """Wait until every rank has called this (a barrier)."""
        self.any(False)

    def rounds(self, items: Iterator[T]) -> Iterator[T | None]:
        """This rank's items, followed by None until the rank with the most items has no more."""
        item = next(items, None)
        while self.any(item is not None):
            yield item
            item = next(items, None)


ALONE = Ranks()


def join(device: str, shard: bool, time_limit: float) -> Ranks:
    """Join the process group that torchrun's environment describes, on ``device`` (``cpu`` or ``cuda``).

    With GPUs, each rank uses the one of its local rank; objects and flags are still exchanged between CPUs.
    """
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=time_limit))
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), shard)
