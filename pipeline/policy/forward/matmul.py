"""Matrix products with the weights of linear layers, by oneDNN instead of MKL where that is faster.

On x86, PyTorch multiplies float32 matrices with MKL, and includes oneDNN for other operations. On AMD processors oneDNN
was measured to be faster (docs/speed.md). With AVX2 it is a tenth faster on many rows; on few rows it is 1.2 to 2 times
as fast where a weight was converted to its layout beforehand, or is too large for a cache. With AVX-512, which MKL does
not use there, it is 2.3 times as fast on all but the smallest products. The operators are those that torch.compile
generates calls of. They are not a public interface, so they are tested before they are used.
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
class Thresholds:
    """The sizes from which on oneDNN is faster than MKL, for one kind of processor."""

    terms: int
    """Length of the sums (columns of the weight)."""
    rows: int
    """Rows, with a weight in its usual layout."""
    work: int
    """Rows times numbers in a weight, in its usual layout."""
    laid_out: int
    """Numbers in a weight that is worth converting to oneDNN's layout."""
    gradients: bool
    """Whether oneDNN is also faster for the gradients of weights."""


AVX2 = Thresholds(terms=256, rows=128, work=0, laid_out=2**17, gradients=False)
AVX512 = Thresholds(terms=1, rows=2, work=2**20, laid_out=2**15, gradients=True)
HUGE = 2**22
"""Numbers in a weight too large for any cache: oneDNN is faster from two rows on, and a conversion takes too long."""
LAID_OUT_FOR = 64
"""Number of rows for which oneDNN chooses a layout; it suits other numbers of rows as well."""

_ops: Any = torch.ops.mkldnn


def linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """states @ weight.T + bias, differentiable.

    Shapes: [..., D], [V, D], [V] -> [..., V].
    """
    rows = states.numel() // states.shape[-1]
    if not (_suits(states, weight) and _pays(rows, weight)):
        return torch.nn.functional.linear(states, weight, bias)
    return _Linear.apply(states, weight, bias)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """left.T @ right, as in the gradient of a weight. Shapes: [R, V], [R, D] -> [V, D]."""
    plain = thresholds().gradients and left.numel() * right.shape[1] >= thresholds().work and _suits(left, right)
    if not plain:
        return left.t() @ right
    left, right = _filled(left), _filled(right)
    # oneDNN transposes its first operand before it multiplies, so that should be the narrower one.
    swapped = left.shape[1] > right.shape[1]
    return _product(right.t(), left.t()).t().contiguous() if swapped else _product(left.t(), right.t())


class Packed:
    """A copy of a linear layer in oneDNN's layout, for products without a gradient. Shapes: weight [V, D], bias [V]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.bias, self.laid_out = bias, thresholds().laid_out <= weight.numel() < HUGE and _suits(weight, weight)
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
def onednn_layers(model: torch.nn.Module) -> Iterator[None]:
    """Within this block, the linear layers of a model use :func:`linear` where oneDNN may be faster."""
    plain = [m for m in model.modules() if type(m) is torch.nn.Linear and "forward" not in vars(m)]
    layers = [layer for layer in plain if _suits(layer.weight, layer.weight)]
    for layer in layers:
        layer.forward = lambda input, layer=layer: linear(input, layer.weight, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def fill(rows: int, device: torch.device) -> int:
    """Number of rows to append so that oneDNN sees only few different numbers of rows; 0 where oneDNN is not used.

    A caller that appends them once for a whole pass saves each product from doing so.
    """
    return _missing(rows) if device.type == "cpu" and onednn() else 0


@cache
def onednn() -> bool:
    """Whether oneDNN exists for this processor, and multiplies correctly."""
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
def thresholds() -> Thresholds:
    """The thresholds of this processor. They are not measured here, so that a resumed run computes the same."""
    described = ""
    with contextlib.suppress(OSError):
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return AVX512 if wide and "AuthenticAMD" in described else AVX2


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


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product by oneDNN. Shapes: [..., D], [V, D], [V] -> [..., V]."""
    return _multiplied(states.flatten(0, -2), weight, bias).view(*states.shape[:-1], -1)


def _multiplied(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Shapes: [R, D], [V, D], [V] -> [R, V]."""
    filled = _filled(rows)
    found = _product(filled, weight, bias)
    return found if filled is rows else found[: rows.shape[0]]


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _ops._linear_pointwise.default(rows, weight, bias, "none", [], "")


def _missing(rows: int) -> int:
    """Number of rows up to the next allowed number, of which there are sixteen per power of two.

    oneDNN compiles a kernel of half a megabyte for each number of rows, and keeps it: with a new number in every step,
    memory would grow as long as training continues.

    >>> _missing(16), _missing(31), _missing(33), _missing(1000)
    (0, 0, 1, 24)
    """
    return -rows % (1 << max(0, rows.bit_length() - 5))


def _filled(rows: Tensor) -> Tensor:
    """``rows`` with the missing rows appended as zeros. Shapes: [R, D] -> [R', D]."""
    more = _missing(rows.shape[0])  # len() takes a microsecond
    return torch.nn.functional.pad(rows, (0, 0, 0, more)) if more else rows


def _suits(states: Tensor, weight: Tensor) -> bool:
    if weight.shape[1] < thresholds().terms:
        return False
    plain = states.dtype == weight.dtype == torch.float32 and states.device.type == weight.device.type == "cpu"
    return plain and not torch.is_autocast_enabled("cpu") and onednn()


def _pays(rows: int, weight: Tensor) -> bool:
    """Whether oneDNN is faster on this number of rows, with a weight in its usual layout."""
    return rows >= (2 if weight.numel() >= HUGE else thresholds().rows) and rows * weight.numel() >= thresholds().work
