"""Closed-form RMS norms have the values and gradients of the formula and of transformers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from gradus.pipeline.policy.forward.rms_norm import closed_form_norms, rms_norm


def literal(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def test_by_hand() -> None:
    # mean of squares (9 + 16) / 2 = 12.5, with eps 3.5 it is 16, its root 4
    found = rms_norm(torch.tensor([3.0, -4.0]), torch.tensor([2.0, 1.0]), 3.5)
    assert found.tolist() == [1.5, -1.0]


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 4, 5)])
def test_gradients_are_those_of_the_formula_in_float64(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    states = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(shape, dtype=torch.float64)
    found, wanted = rms_norm(states, weight, 0.1), literal(states, weight, 0.1)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(found, (states, weight), pull),
        torch.autograd.grad(wanted, (states, weight), pull),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(lambda s, w: rms_norm(s, w, 0.1), (states, weight))


def test_what_needs_no_gradient_gets_none() -> None:
    states, weight = torch.randn(4, 3, requires_grad=True), torch.ones(3)
    rms_norm(states, weight, 1e-6).sum().backward()
    assert states.grad is not None and weight.grad is None
    weight.requires_grad_()
    rms_norm(states.detach(), weight, 1e-6).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm, Gemma3RMSNorm])
def test_replaces_the_modules_of_transformers(kind: Any) -> None:
    torch.manual_seed(0)
    norm = kind(8, eps=1e-5)
    norm.weight.data.normal_()
    model, states, pull = torch.nn.ModuleList([norm]), torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8)

    def results() -> tuple[Tensor, ...]:
        output = norm(states)
        return output, *torch.autograd.grad(output, (states, norm.weight), pull)

    wanted = results()
    with closed_form_norms(model):
        assert "RMSNorm" in type(norm(states).grad_fn).__name__
        found = results()
        with closed_form_norms(model):
            norm(states)
        assert "RMSNorm" in type(norm(states).grad_fn).__name__, "an inner block leaves it as it was"
        rounded = norm(states.bfloat16())
    assert "RMSNorm" not in type(norm(states).grad_fn).__name__
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(rounded, norm(states.bfloat16())), "other types round as the model does"


class CubeRMSNorm(torch.nn.Module):
    """It has the name of an RMS norm, but another formula."""

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(size)), eps

    def forward(self, states: Tensor) -> Tensor:
        return states**3 * self.weight


class GatedRMSNorm(CubeRMSNorm):
    """A norm whose forward needs more than the states."""

    def forward(self, states: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return states * gate


@pytest.mark.parametrize("kind", [CubeRMSNorm, GatedRMSNorm])
def test_leaves_others_alone(kind: Any) -> None:
    norm = kind(8)
    with closed_form_norms(torch.nn.ModuleList([norm])):
        assert "forward" not in vars(norm)
