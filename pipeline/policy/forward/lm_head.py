"""The language-model head and its softmax, computed in pieces: the matrix [tokens, vocabulary] never exists as a whole.

Every objective is a sum over tokens, so the gradient of a piece is known as soon as its log-probabilities are. Each
piece's logits are therefore used for the objective and for its gradient, and then dropped: nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.policy.forward.matmul import HUGE, linear, outer
from gradus.pipeline.policy.policy import Policy

CELLS, CUDA_CELLS = 2**22, 2**26
"""Number of logits that exist at a time; on CUDA more of them, because the head's gradient is read and written once for
each piece, and small products leave a GPU idle."""
FEWEST = 128
"""Minimal number of tokens in a piece, so that reading the weights of a large head pays off."""

Objective = Callable[[Tensor, slice], Tensor]
"""(log-probabilities of a piece, the piece as a slice of all tokens) -> its part of the objective, a scalar."""


@torch.no_grad()
def logprobs_from_states(
    policy: Policy, hidden: Tensor, targets: Tensor, temperature: float, entropies: bool = False
) -> Tensor:
    """log pi of each target given its hidden state, and the entropies of the distributions it is from.

    Shapes: [M, D], int64 [M] -> float32 [2, M], or [1, M] without entropies.
    Units: nats, of the temperature-scaled policy.
    """
    head: Any = policy.model.get_output_embeddings()
    parts = []
    for piece in pieces(len(targets), head.weight.shape[0], hidden.device):
        logits = _logits(hidden[piece], head.weight, head.bias, _softcap(policy), temperature, sloped=False)[0]
        parts.append(logprobs_from_logits(logits, targets[piece], entropies))
    return torch.cat(parts, 1) if parts else hidden.new_zeros(1 + entropies, 0, dtype=torch.float32)


def logprobs_from_logits(logits: Tensor, targets: Tensor, entropies: bool) -> Tensor:
    """Like :func:`logprobs_from_states`, from float32 logits [M, V]."""
    found, normaliser = _target_logprobs(logits, targets)
    if not entropies:
        return found[None]
    with torch.autocast(logits.device.type, enabled=False):  # it would compute the mean in bfloat16
        # A logit of -inf has probability 0, and so it adds nothing to the mean.
        mean = torch.linalg.vecdot((logits - normaliser[:, None]).exp(), logits.clamp(min=-1e30))
    return torch.stack([found, normaliser - mean])


def objective(
    policy: Policy,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    function: Objective,
    entropy: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The objective, differentiable with respect to the hidden states and the head, and the log-probabilities.

    ``entropy``: the factor, for each token, of the entropy of the distribution that it is from, which is added.

    Shapes: [M, D], int64 [M], float32 [M] -> scalar, float32 [M] without a gradient.
    """
    head: Any = policy.model.get_output_embeddings()
    return _Pieces.apply(hidden, head.weight, head.bias, targets, _softcap(policy), temperature, function, entropy)


class _Pieces(torch.autograd.Function):
    """Computes the objective and its gradient in one pass over the pieces."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None,
                temperature: float, function: Objective, entropy: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        total = hidden.new_zeros((), dtype=torch.float32)
        found, by_hidden = [], torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if weight.requires_grad else None
        by_bias = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None
        for piece in pieces(len(targets), weight.shape[0], hidden.device):
            states = hidden[piece]
            logits, slope = _logits(states, weight, bias, softcap, temperature)
            part, normaliser = _target_logprobs(logits, targets[piece])
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                value = function(leaf, piece)
            (pull,) = torch.autograd.grad(value, leaf)
            total += value.detach()
            found.append(part)
            spread = None
            if entropy is not None:
                gained, spread = _entropy_term(logits, normaliser, entropy[piece])
                total += gained
            # d log pi / d logits = one-hot(target) - probabilities
            by_logits = logits.sub_(normaliser[:, None]).exp_().mul_(-pull[:, None])
            by_logits[torch.arange(len(pull), device=pull.device), targets[piece]] += pull
            by_logits = by_logits if spread is None else by_logits.add_(spread)
            by_logits = by_logits.div_(temperature) if temperature != 1.0 else by_logits
            by_logits = (by_logits if slope is None else by_logits.mul_(slope)).to(weight.dtype)
            autocast = torch.is_autocast_enabled(hidden.device.type)
            # Autocast remembers the weight in bfloat16, and would convert its transpose again for each piece.
            by_hidden[piece] = by_logits @ weight if autocast else linear(by_logits, weight.t(), None)
            if by_weight is not None and autocast:
                by_weight += by_logits.t() @ states
            elif by_weight is not None and by_weight.numel() < HUGE:
                by_weight += outer(by_logits, states.to(weight.dtype))
            elif by_weight is not None:  # avoids a second matrix of this size, the largest tensor of all
                by_weight.addmm_(by_logits.t(), states.to(weight.dtype))
            if by_bias is not None:
                by_bias += by_logits.sum(0)
        ctx.gradients = [by_hidden, by_weight, by_bias]
        everything = torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)
        ctx.mark_non_differentiable(everything)
        return total, everything

    @staticmethod
    def backward(ctx: Any, by_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scaled = [None if part is None else part.mul_(by_total) for part in ctx.gradients]
        ctx.gradients = []
        return (*scaled, None, None, None, None, None)


def pieces(rows: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """All rows, in pieces of at most so many logits."""
    size = max(FEWEST, (CUDA_CELLS if device.type == "cuda" else CELLS) // vocabulary)
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _softcap(policy: Policy) -> float | None:
    return getattr(policy.model.config, "final_logit_softcapping", None)


def _logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, temperature: float, sloped: bool = True
) -> tuple[Tensor, Tensor | None]:
    """float32 logits of the temperature-scaled policy; where they are soft-capped, their slope by the uncapped ones."""
    logits = linear(states, weight, bias).float()
    slope = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slope = logits.square().neg_().add_(1) if sloped else None
        logits.mul_(softcap)
    return (logits / temperature if temperature != 1.0 else logits), slope


def _target_logprobs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets, and the log-sum-exp of the logits."""
    normaliser = logits.logsumexp(-1)
    return logits.gather(-1, targets[:, None])[:, 0] - normaliser, normaliser


def _entropy_term(logits: Tensor, normaliser: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """sum of factor * H over the tokens, and its gradient with respect to the logits: -factor p (log p + H).

    Shapes: [M, V], [M], [M] -> scalar, [M, V].
    """
    logprobs = (logits - normaliser[:, None]).clamp_(min=-1e30)  # a logit of -inf has probability 0, and adds nothing
    probabilities = logprobs.exp()
    entropies = -torch.linalg.vecdot(probabilities, logprobs)
    slope = logprobs.add_(entropies[:, None]).mul_(probabilities).mul_(-factors[:, None])
    return (factors * entropies).sum(), slope
