"""How many copies of the logits exist at the same time while tokens are drawn; a test measures them.

Units: float32 [rows, vocabulary]. This module does not import torch.
"""

from __future__ import annotations

from gradus.pipeline.config import SamplingConfig

PLAIN = 4.0
"""Logits, probabilities, a finite copy of the logits, and its product with the probabilities."""
NUCLEUS = 9.25
"""While the probabilities are sorted for ``top_p``."""
MASK = 0.25
"""A byte for each token that says whether it may be drawn."""


def copies(sampling: SamplingConfig, cuda: bool = False, greedy: bool = False) -> float:
    """The copies while tokens are drawn with these options, or taken greedily with them.

    On a GPU sums are taken of integers, which are a further copy where the probabilities were cut.
    """
    cut = 0 if greedy else sampling.top_k > 0
    count = PLAIN + cut * cuda
    if sampling.top_p < 1 and not greedy:
        count = NUCLEUS + cut + cuda
    masked = bool(sampling.ban) or (sampling.min_tokens or 1) > 1
    return count + (sampling.temperature != 1.0) + MASK * masked
