"""Products with the weights of linear layers, by oneDNN instead of MKL where both are there.

PyTorch multiplies float32 matrices on x86 with MKL, and brings oneDNN for what MKL lacks. On the AMD processors that it
was measured on (docs/speed.md) oneDNN is faster: with AVX2 by a tenth on many rows, and by 1.2 to 2 times on few rows
where a weight has been laid out for it beforehand, or is too large for a cache; with AVX-512, which MKL leaves unused
there, by 2.3 times on everything but the smallest products. The operators are those that torch.compile's own code
calls; since they are not a public interface, they are tried before they are used.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Worth:
    """From where on oneDNN is the faster one, on some kind of processor."""

    terms: int
    """Of a sum."""
    rows: int
    """With a weight as it is."""
    work: int
    """Rows times numbers in a weight, as it is."""
    laid_out: int
    """Numbers in a weight that is worth laying out."""
    gradients: bool
    """Whether it is for the weights' own gradients, too."""


AVX2 = Worth(terms=256, rows=128, work=0, laid_out=2**17, gradients=False)
AVX512 = Worth(terms=1, rows=2, work=2**20, laid_out=2**15, gradients=True)
HUGE = 2**22
"""Numbers in a weight that no cache holds: oneDNN is faster from two rows on, and laying it out takes too long."""
LAID_OUT_FOR = 64
"""Rows that a layout is chosen for; it serves other numbers of rows as well."""

_ops: Any = torch.ops.mkldnn


@cache
def onednn() -> bool:
    """Whether oneDNN is there, for a processor that it is made for, and multiplies."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    left, right = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(5, 4)
    try:
        laid_out = _ops._reorder_linear_weight(right, LAID_OUT_FOR)
        found = [_linear(left, weight, None) for weight in (right, laid_out)]
        found.append(_ops._linear_pointwise.binary(left, torch.zeros(3, 5), laid_out, None, "add"))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(torch.equal(product, left @ right.t()) for product in found)


@cache
def worth() -> Worth:
    """Of this processor; a property of it and no measurement, so that a run that goes on computes the same."""
    described = ""
    with contextlib.suppress(OSError):
        described = Path("/proc/cpuinfo").read_text()
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return AVX512 if wide and "AuthenticAMD" in described else AVX2


def linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """states @ weight.T + bias, differentiable.

    Shapes: [..., D], [V, D], [V] -> [..., V].
    """
    rows = states.numel() // states.shape[-1]
    if not (_suits(states, weight) and _pays(rows, weight)):
        return torch.nn.functional.linear(states, weight, bias)
    return _Linear.apply(states, weight, bias)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """left.T @ right, which a weight's gradient is. Shapes: [R, V], [R, D] -> [V, D]."""
    plain = worth().gradients and left.numel() * right.shape[1] >= worth().work and _suits(left, right)
    if not plain:
        return left.t() @ right
    left, right = _filled(left), _filled(right)
    # oneDNN turns its first operand round before it multiplies: the narrower one.
    turned = left.shape[1] > right.shape[1]
    return _product(right.t(), left.t()).t().contiguous() if turned else _product(left.t(), right.t())


def _pays(rows: int, weight: Tensor) -> bool:
    """Whether oneDNN is faster on so many rows with a weight as it is."""
    return rows >= (2 if weight.numel() >= HUGE else worth().rows) and rows * weight.numel() >= worth().work


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return _linear(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, by_product: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        states, weight = ctx.saved_tensors
        by_states, by_weight, by_bias = ctx.needs_input_grad
        rows = by_product.flatten(0, -2)
        return (
            _linear(by_product.contiguous(), weight.t(), None) if by_states else None,
            outer(rows, states.flatten(0, -2)) if by_weight else None,
            rows.sum(0) if by_bias else None,
        )


class Packed:
    """A linear layer as it is now, laid out for products without a gradient. Shapes: weight [V, D], bias [V]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.bias, self.laid_out = bias, worth().laid_out <= weight.numel() < HUGE and _suits(weight, weight)
        self.weight = _ops._reorder_linear_weight(weight, LAID_OUT_FOR) if self.laid_out else weight

    def __call__(self, states: Tensor) -> Tensor:
        """states @ weight.T + bias. Shapes: [R, D] -> [R, V]."""
        if not self.laid_out:
            return linear(states, self.weight, self.bias)
        return _multiplied(states, self.weight, self.bias)

    def added(self, to: Tensor, states: Tensor) -> Tensor:
        """to + states @ weight.T + bias. Shapes: [R, V], [R, D] -> [R, V]."""
        if self.laid_out:
            filled = _filled(states)
            found = _ops._linear_pointwise.binary(filled, _filled(to), self.weight, self.bias, "add")
            return found if filled is states else found[: states.shape[0]]
        return torch.addmm(to if self.bias is None else to + self.bias, states, self.weight.t())


@contextlib.contextmanager
def in_layers(model: torch.nn.Module) -> Iterator[None]:
    """The linear layers of a model that oneDNN can be faster for multiply as :func:`linear` does."""
    plain = [m for m in model.modules() if type(m) is torch.nn.Linear and "forward" not in vars(m)]
    layers = [layer for layer in plain if _suits(layer.weight, layer.weight)]
    for layer in layers:
        layer.forward = lambda input, layer=layer: linear(input, layer.weight, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN. Shapes: [..., D], [V, D], [V] -> [..., V]."""
    return _multiplied(states.flatten(0, -2), weight, bias).view(*states.shape[:-1], -1)


def _multiplied(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Shapes: [R, D], [V, D], [V] -> [R, V]."""
    filled = _filled(rows)
    found = _product(filled, weight, bias)
    return found if filled is rows else found[: rows.shape[0]]


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _ops._linear_pointwise.default(rows, weight, bias, "none", [], "")


def fill(rows: int, device: torch.device) -> int:
    """Rows to add, so that oneDNN meets few numbers of rows; none where it does not multiply.

    Whoever adds them once spares every product of a pass from doing so.
    """
    return _missing(rows) if device.type == "cpu" and onednn() else 0


def _missing(rows: int) -> int:
    """Rows up to the next of sixteen numbers an octave. oneDNN makes a kernel for each number that it meets, half a
    megabyte, and keeps it: with a new number a step, memory would grow as long as training goes on.

    >>> _missing(16), _missing(31), _missing(33), _missing(1000)
    (0, 0, 1, 24)
    """
    return -rows % (1 << max(0, rows.bit_length() - 5))


def _filled(rows: Tensor) -> Tensor:
    """With the rows that are missing, of zeros. Shapes: [R, D] -> [R', D]."""
    more = _missing(rows.shape[0])  # len() takes a microsecond
    return torch.nn.functional.pad(rows, (0, 0, 0, more)) if more else rows


def _suits(states: Tensor, weight: Tensor) -> bool:
    if weight.shape[1] < worth().terms:
        return False
    plain = states.dtype == weight.dtype == torch.float32 and states.device.type == weight.device.type == "cpu"
    return plain and not torch.is_autocast_enabled("cpu") and onednn()
