"""Drawing tokens: counter-based random numbers, and the distribution that turns them into tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradus.pipeline.config import SamplingConfig


@dataclass(frozen=True)
class DrawKey:
    """What the random numbers of a batch depend on, beside the prompt, the sample and the position."""

    seed: int
    stage: str
    step: int

    def uniforms(self, prompt_id: str, index: int, count: int) -> np.ndarray:
        """``count`` numbers in [0, 1), from a counter-based stream for this completion."""
        key = np.frombuffer(self._digest(f"{prompt_id}|{index}"), dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32)

    def number(self, prompt_id: str) -> int:
        """A seed for this prompt, in [0, 2**62), for an engine with its own random streams."""
        return int.from_bytes(self._digest(prompt_id)[:8], "little") >> 2

    def _digest(self, what: str) -> bytes:
        text = f"{self.seed}|{self.stage}|{self.step}|{what}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


def draw_tokens(
    logits_RV: Tensor, uniforms_R: Tensor | None, options: SamplingConfig, forbidden_RV: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row, by inverting the cumulative distribution at the row's uniform number; greedy without one.

    ``forbidden_RV``: tokens that are not drawn, whatever their probability.

    Shapes: [R, V], [R], bool [R, V] -> tokens int64 [R], their log-probabilities float32 [R], entropies float32 [R].
    Units: nats, of the temperature-scaled distribution before anything is left out: the policy that training sees.
    """
    logits_RV = logits_RV.float()
    if options.temperature != 1.0:
        logits_RV = logits_RV / options.temperature
    # Every pass over [R, V] is expensive where the vocabulary is large. So the normaliser is computed from the largest
    # logit and its probability, and the entropy is log Z minus the mean logit.
    probs_RV = logits_RV.softmax(-1)
    top_R1, best_R1 = logits_RV.max(-1, keepdim=True)
    log_normaliser_R = (top_R1 - probs_RV.gather(-1, best_R1).log())[:, 0]
    # Where a logit is -inf, its probability is 0, and so is its contribution to the mean.
    entropy_R = log_normaliser_R - torch.linalg.vecdot(probs_RV, logits_RV.clamp(min=-1e30))
    token_R = best_R1[:, 0]
    if forbidden_RV is not None:
        token_R = logits_RV.masked_fill(forbidden_RV, -torch.inf).argmax(-1)
        probs_RV = probs_RV.masked_fill(forbidden_RV, 0.0)
    if uniforms_R is not None:
        cdf_RV = running_sums(summable(truncate(probs_RV, options)))
        target_R1 = (uniforms_R[:, None] * cdf_RV[:, -1:]).to(cdf_RV.dtype)
        drawn_R = torch.searchsorted(cdf_RV, target_R1, right=True)[:, 0]
        # Rounding can put the target at the very end of the distribution, behind the last token.
        token_R = torch.where(drawn_R < cdf_RV.shape[-1], drawn_R, token_R)
    return token_R, logits_RV.gather(-1, token_R[:, None])[:, 0] - log_normaliser_R, entropy_R


def truncate(probs_RV: Tensor, options: SamplingConfig) -> Tensor:
    """Probabilities with everything outside top-k and top-p set to zero; not renormalised.

    Edge: the most probable token always stays; ties at the border of top-p are kept by their order in a stable sort.
    """
    vocabulary = probs_RV.shape[-1]
    if 0 < options.top_k < vocabulary:
        threshold_R1 = probs_RV.topk(options.top_k, dim=-1).values[:, -1:]
        probs_RV = probs_RV.masked_fill(probs_RV < threshold_R1, 0.0)
    if options.top_p < 1:
        sorted_RV, index_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
        parts_RV = summable(sorted_RV)
        before_RV = running_sums(parts_RV) - parts_RV
        dropped_RV = before_RV >= options.top_p * parts_RV.sum(-1, keepdim=True)
        probs_RV = torch.zeros_like(probs_RV).scatter(-1, index_RV, sorted_RV.masked_fill(dropped_RV, 0.0))
    return probs_RV


def summable(probs_RV: Tensor) -> Tensor:
    """Probabilities, or integers in proportion to them, whose sums do not depend on the order of addition.

    A GPU may add the numbers of a long row in another order each time, so the same draw could end at another token;
    PyTorch refuses such sums where algorithms have to be deterministic. Integers add up to the same in every order. A
    token of less than 2**-31 becomes 0; the random numbers themselves are multiples of 2**-24.

    >>> summable(torch.tensor([[0.25, 0.75]])).tolist()
    [[0.25, 0.75]]
    """
    return probs_RV if probs_RV.device.type == "cpu" else as_integers(probs_RV)


def as_integers(probs_RV: Tensor) -> Tensor:
    """Integers in proportion to probabilities, at most about 2**30 in all."""
    return (probs_RV * 2**30).round().to(torch.int32)


def running_sums(values_RV: Tensor) -> Tensor:
    """The sum of each value and those before it in its row, in the values' own type."""
    return values_RV.cumsum(-1, dtype=values_RV.dtype)
