"""The least work of a case: every necessary token once, without padding, and the prompt of a group once.

Only matrix products count: 2 operations per weight and token forward, and 4 more backward. The last token of a
completion needs no forward pass, neither in sampling nor in training; the head is needed where a token is drawn or
trained. Attention, 2 products of each query with all that it attends to, is counted separately. Groups with equal
rewards need no training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.workload import Case

from gradus.pipeline.policy.policy import Policy

BYTES = 4
"""Of a weight, fp32."""
OPTIMIZER_BYTES = 7 * BYTES
"""AdamW reads weight, gradient and both moments, and writes all but the gradient."""


@dataclass(frozen=True)
class Size:
    """What the work depends on in a model."""

    layers: int
    """Weights of the linear layers, without the head."""
    head: int
    """Weights of the head."""
    queries: int
    """Width of the queries, summed over the layers."""
    cache: int
    """Keys and values of one token, in numbers, summed over the layers."""
    parameters: int
    """All of it."""

    @classmethod
    def of(cls, policy: Policy) -> Size:
        head, config = policy.model.get_output_embeddings(), policy.model.config
        assert isinstance(head, torch.nn.Linear)
        linear = [m.weight.numel() for m in policy.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        depth, width = config.num_hidden_layers, config.head_dim
        return cls(
            layers=sum(linear),
            head=head.weight.numel(),
            queries=depth * config.num_attention_heads * width,
            cache=depth * 2 * config.num_key_value_heads * width,
            parameters=sum(p.numel() for p in policy.model.parameters()),
        )


@dataclass(frozen=True)
class Work:
    """Operations, and the bytes that have to come from memory where a model is larger than the processor's caches."""

    linear: float
    attention: float
    traffic_bound: float = 0.0
    """Bytes of those decoding steps that take longer to read than to compute, in excess of their computing."""

    def __add__(self, other: Work) -> Work:
        sums = (getattr(self, f) + getattr(other, f) for f in ("linear", "attention", "traffic_bound"))
        return Work(*sums)


def sampling(case: Case, size: Size, step: int, balance: float) -> Work:
    """Prefill of each prompt, then one token a row and step; ``balance`` is the machine's operations per byte."""
    lengths = np.minimum(case.lengths(step), case.new_tokens)
    prompt, decoded = case.prompts * case.prompt_tokens, int((lengths - 1).sum())
    linear = 2.0 * (size.layers * (prompt + decoded) + size.head * (case.prompts + decoded))
    excess = 0.0
    for position in range(1, int(lengths.max())):
        rows = int((lengths > position).sum())
        groups = int((lengths > position).any(axis=1).sum())
        seen = groups * case.prompt_tokens + rows * position
        read = BYTES * (size.layers + size.head + size.cache * seen)
        excess += max(0.0, read - 2.0 * (size.layers + size.head) * rows / balance)
    return Work(linear, _attention(case, size, lengths, case.prompts), excess)


def learning(case: Case, size: Size, step: int) -> Work:
    """Forward and backward of the groups whose rewards differ."""
    lengths = np.minimum(case.lengths(step), case.new_tokens)
    if case.uniform_groups:
        lengths = lengths[1::2]
    groups = len(lengths)
    tokens = groups * case.prompt_tokens + int((lengths - 1).sum())
    linear = 2.0 * (size.layers * tokens + size.head * int(lengths.sum()))
    return Work(3 * linear, 3 * _attention(case, size, lengths, groups))


def _attention(case: Case, size: Size, lengths: np.ndarray, groups: int) -> float:
    """Causal: each token sees itself and all before it."""
    prompt = groups * case.prompt_tokens * (case.prompt_tokens + 1) / 2
    inputs = lengths - 1.0
    completions = float((inputs * case.prompt_tokens + inputs * (inputs + 1) / 2).sum())
    return 4.0 * size.queries * (prompt + completions)
