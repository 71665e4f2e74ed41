"""A device that exists nowhere: its tensors say that they are on it, and the CPU computes for them.

PyTorch treats them like those of any other device, and they refuse what CUDA's refuse: operands of the CPU beside
operands of the device, and NumPy. What makes the host wait for a real device is counted, so that a test can bound it.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _foreach_supported_types
from torch.utils import backend_registration

NAME = "pretend"
DEVICE = torch.device("cpu")
"""The device, once :func:`pretend_device` has been called."""
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default: "scalar",
    aten.equal.default: "scalar",
    aten.nonzero.default: "nonzero",
    aten.bincount.default: "nonzero",
    aten.masked_select.default: "nonzero",
    aten.repeat_interleave.Tensor: "nonzero",
}
"""Operators whose result the host has to know."""
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""Operators that take indices from the CPU too."""
counts: Counter[str] = Counter()
"""What made the host wait so far: scalars, sizes (``nonzero``), copies to the host and from it."""


class PretendTensor(Tensor):
    """A tensor on the device; ``held`` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"PretendTensor({self.held!r})"

    # What PyTorch refuses for a subclass, and a tensor on a device has.

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def storage(self) -> Any:
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    # These two tell ``Module.to`` to keep its parameters, so that tied ones remain tied.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> PretendTensor:
        return PretendTensor(inner["held"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            found = PretendTensor(self.held.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(found, self.requires_grad) if is_parameter else found
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what a device would compute, or raise what it would raise."""
    if kwargs.get("generator") is not None:  # there are none of this device
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found {kwargs['generator'].device}")
    target = kwargs.get("device")
    to_host = target is not None and torch.device(target).type == "cpu"
    _count(func, args, kwargs, to_host)
    here, away = list[Tensor](), list[Tensor]()
    held_args = [_held(value, here, away) for value in args]
    held_kwargs = {name: _held(value, here, away) for name, value in kwargs.items() if name != "pin_memory"}
    _refuse_mixed(func, args, here, away)
    if target is not None:
        held_kwargs["device"] = "cpu"
    found = func(*held_args, **held_kwargs)
    if func is aten._to_copy.default and to_host:
        return found
    if _in_place(func) and found is not None:
        return args[0]
    return kwargs["out"] if "out" in kwargs else _wrapped(found)


@functools.cache
def _in_place(func: Any) -> bool:
    """Whether an operator returns its first operand, which it has changed."""
    return func._schema.name.endswith("_")


def _held(value: Any, here: list[Tensor], away: list[Tensor]) -> Any:
    """An argument with the numbers of the device's tensors; the tensors in it are added to the lists."""
    if isinstance(value, PretendTensor):
        here.append(value)
        return value.held
    if isinstance(value, Tensor):
        away.append(value)
    return [_held(item, here, away) for item in value] if isinstance(value, list | tuple) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return PretendTensor(value)
    return type(value)(_wrapped(item) for item in value) if isinstance(value, list | tuple) else value


def _refuse_mixed(func: Any, args: Any, here: list[Tensor], away: list[Tensor]) -> None:
    """CUDA takes CPU tensors beside its own only as numbers (without a dimension), as indices, and to copy them."""
    if func in INDEXED:
        if not isinstance(args[0], PretendTensor):
            raise RuntimeError(f"{func} of a tensor on the cpu, with others on {DEVICE}")
        away = [value for value in args[2:3] if isinstance(value, Tensor) and not isinstance(value, PretendTensor)]
    if func is not aten.copy_.default and here and any(value.dim() for value in away):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu, in {func}")
    if (
        _in_place(func)
        and func is not aten.copy_.default
        and isinstance(args[0], Tensor)
        and not isinstance(args[0], PretendTensor)
    ):
        raise RuntimeError(f"{func} on a tensor of the cpu, with others on {DEVICE}")


def _count(func: Any, args: Any, kwargs: Any, to_host: bool) -> None:
    if func in WAITS:
        counts[WAITS[func]] += 1
    elif func in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        counts["nonzero"] += 1
    elif func is aten._to_copy.default and to_host and not kwargs.get("non_blocking"):
        counts["to_host"] += 1
    elif func is aten.copy_.default and not ((len(args) > 2 and args[2]) or kwargs.get("non_blocking")):
        if not isinstance(args[1], PretendTensor):
            counts["from_host"] += 1
        elif not isinstance(args[0], PretendTensor):
            counts["to_host"] += 1


def _made(func: Any) -> Any:
    """A factory of the device's tensors."""

    def make(*args: Any, **kwargs: Any) -> PretendTensor:
        return PretendTensor(func(*args, **kwargs | {"device": "cpu", "pin_memory": False}))

    return make


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """The copy at the end of ``torch.tensor(..., device=...)``, which passes ``__torch_dispatch__`` by."""
    return _run(aten.copy_.default, (target, source, non_blocking), {})


class _Module(backend_registration._DummyBackendModule):
    """``torch.pretend``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@contextlib.contextmanager
def waits() -> Iterator[Counter[str]]:
    """Counts what made the host wait in this block."""
    before, found = counts.copy(), Counter[str]()
    yield found
    found.update(counts - before)


def pretend_device() -> torch.device:
    """The device, registered with PyTorch once per process."""
    global DEVICE
    if DEVICE.type == NAME:
        return DEVICE
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    DEVICE = torch.device(NAME, 0)
    factories = torch.library.Library("aten", "IMPL")
    for func in (aten.empty.memory_format, aten.empty_strided.default, aten.arange.default, aten.arange.start,
                 aten.arange.start_step):  # fmt: skip
        factories.impl(func, _made(func), "PrivateUse1")
    factories.impl(aten._copy_from.default, _copied, "PrivateUse1")
    pretend_device.library = factories  # type: ignore[attr-defined]  # it ends with its object
    _foreach_supported_types.append(PretendTensor)
    return DEVICE
