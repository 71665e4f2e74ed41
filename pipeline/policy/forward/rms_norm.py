"""RMS norms with a closed-form gradient, which reads and writes memory half as often as transformers' version.

Apart from matrix products, norms take the most time of a training step: transformers writes one as seven operations,
whose derivatives are another dozen. The closed form needs three and six.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """states / sqrt(mean of their squares + eps) * weight, differentiable once.

    Shapes: [..., D], [D] -> [..., D].
    """
    return _RMSNorm.apply(states, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(states, 2, -1, True)
        scale = norm.square_().div_(states.shape[-1]).add_(eps).rsqrt_()
        normed = states * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normed, scale, weight = ctx.saved_tensors
        along = by_output * normed
        by_weight = along.reshape(-1, weight.shape[0]).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None
        # d/dx of x * s(x), with s = (|x|^2 / D + eps)^(-1/2) and n = x * s, is s * (g - n * mean(g * n)).
        mean = (along @ weight).div_(normed.shape[-1])[..., None]
        return (by_output * weight).addcmul_(normed, mean, value=-1).mul_(scale), by_weight, None


@contextlib.contextmanager
def closed_form_norms(model: torch.nn.Module) -> Iterator[None]:
    """Within this block, the float32 RMS norms of a model use :func:`rms_norm`."""
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm") and "forward" not in vars(m)]
    replaced = []
    for norm in norms:
        offset, weight = _offset(type(norm)), getattr(norm, "weight", None)
        if offset is not None and weight is not None and weight.dtype == torch.float32:
            norm.forward = _Forward(norm, offset)
            replaced.append(norm)
    try:
        yield
    finally:
        for norm in replaced:
            del norm.forward


class _Forward:
    """Replaces the ``forward`` of a norm."""

    def __init__(self, norm: Any, offset: float):
        self.norm, self.offset, self.eps = norm, offset, _eps(norm)

    def __call__(self, states: Tensor) -> Tensor:
        if states.dtype != torch.float32:
            return type(self.norm).forward(self.norm, states)
        weight = self.norm.weight
        return rms_norm(states, weight + self.offset if self.offset else weight, self.eps)


def _eps(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


@cache
@torch.no_grad()
def _offset(kind: type) -> float | None:
    """The number that this kind of norm adds to its weights before it multiplies, 0 or 1; None for other norms."""
    try:
        norm = kind(3, eps=0.5)
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        states = torch.tensor([[1.0, 2.0, -3.0]])
        found = norm(states)
        for offset in (0.0, 1.0):
            if torch.allclose(found, rms_norm(states, norm.weight + offset, _eps(norm))):
                return offset
    except (AttributeError, RuntimeError, TypeError):
        pass
    return None
