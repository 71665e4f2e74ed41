"""The weights that are pushed to an engine, and a hash of them that is fast enough to compute before each batch."""

from __future__ import annotations

import functools
import hashlib
import json

import torch
from torch import Tensor

from gradus.pipeline.policy.lora import merged_state
from gradus.pipeline.policy.policy import Policy

CHUNK = 2**20
"""Numbers that are hashed at the same time."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
STEP = 0x9E3779B97F4A7C15 - 2**64
"""An odd number, by which the sum so far is multiplied before the sum of the next chunk is added."""


def pushed_weights(policy: Policy) -> dict[str, Tensor]:
    """The weights as a checkpoint has them: adapters are merged, and tied weights are there once."""
    state = policy.model.state_dict() if policy.adapters is None else merged_state(policy.model)
    names: dict[tuple[int, torch.Size], str] = {}
    for name, value in state.items():
        names.setdefault((value.data_ptr(), value.shape), name)
    return {name: state[name].contiguous() for name in names.values()}


@torch.no_grad()
def weights_digest(policy: Policy) -> str:
    """Hash of the bits of all parameters, in 16 hexadecimal digits.

    The bits of each number are multiplied by a random number for its position and added modulo 2**64, on the device of
    the weights: one pass at the speed of memory. Weights that training has changed have different hashes; the hash is
    no defence against an adversary.
    """
    named = [*policy.model.named_parameters()]
    sums = torch.stack([_sum(value) for _, value in named]).tolist()
    described = [
        (name, str(value.dtype), [*value.shape], found) for (name, value), found in zip(named, sums, strict=True)
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _sum(value: Tensor) -> Tensor:
    """The hash of a tensor as int64, on its device."""
    bits, factors = value.detach().reshape(-1).view(INTEGERS[value.element_size()]), _factors(value.device)
    total = torch.zeros((), dtype=torch.int64, device=value.device)
    for begin in range(0, len(bits), CHUNK):
        part = bits[begin : begin + CHUNK].long()
        total = total * STEP + (part * factors[: len(part)]).sum()
    return total


@functools.cache
def _factors(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (CHUNK,), generator=generator) * 2 + 1).to(device)
