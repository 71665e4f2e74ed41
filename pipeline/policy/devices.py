"""Devices, CPU threads and the precision of matrix products, as the configuration asks for them."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.process import keep_freed_memory, usable_cores
from gradus.pipeline.config import PipelineConfig, PolicyConfig
from gradus.pipeline.policy.policy import Policy


def pick_device(wanted: str) -> torch.device:
    """The requested device, or the best one of this machine. Raises: UserError where the machine does not have it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in available.items() if present)
    if not available[wanted]:
        present = [name for name, is_there in available.items() if is_there]
        raise UserError(
            f"this machine has no usable {wanted} device",
            where="policy.device",
            got=wanted,
            expected=f"one of {', '.join(present)}",
            fix="set policy.device to auto",
        )
    return torch.device(wanted)


def settle_process(config: PolicyConfig, processes: int = 1) -> None:
    """Set what belongs to the whole process: CPU threads, the heap that keeps freed memory, and determinism.

    Without a configured number of threads, the training processes share all cores but one.
    """
    torch.set_num_threads(config.threads or max(1, (usable_cores() - 1) // processes))
    keep_freed_memory()
    if config.deterministic and pick_device(config.device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
        torch.use_deterministic_algorithms(True)
        # Filling helps only where reading it is a mistake, and is slow. PyTorch's types do not know the name.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]


def autocasts(policy: Policy, config: PolicyConfig) -> bool:
    """Whether the learner computes matrix products in bfloat16."""
    return policy.device.type == "cuda" if config.autocast == "auto" else config.autocast == "bfloat16"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU, on the device. The host does not wait until a GPU has computed what it was given before."""
    if device.type in ("cpu", "mps"):
        return tensor.to(device)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def check_devices(config: PipelineConfig) -> None:
    """Check that there is a device for every process. Raises: UserError."""
    wanted = config.launch.processes
    if wanted == 1:
        return
    device = pick_device(config.policy.device).type
    there = torch.cuda.device_count() if device == "cuda" else wanted
    if device == "mps" or there < wanted:
        raise UserError(
            "there is no device for every process",
            where="launch.processes",
            got=f"{wanted} processes on {device}" + (f", of which there are {there}" if device == "cuda" else ""),
            expected="a GPU for each of them, or policy.device: cpu",
            fix="lower launch.processes, or set policy.device",
        )
