""""""

from __future__ import annotations

import torch

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.process import keep_freed_memory, usable_cores
from gradus.pipeline.config import PipelineConfig, PolicyConfig
from gradus.pipeline.policy.policy import Policy


def pick_device(wanted: str) -> torch.device:
    """The device that was asked for, or the best there is.

    Raises: UserError where the machine lacks it.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in there.items() if present)
    if not there[wanted]:
        present = [name for name, is_there in there.items() if is_there]
        raise UserError(
            f"this machine has no usable {wanted} device",
            where="policy.device",
            got=wanted,
            expected=f"one of {', '.join(present)}",
            fix="set policy.device to auto",
        )
    return torch.device(wanted)


def use_threads(config: PolicyConfig, processes: int = 1) -> None:
    """Set this process up to compute: as many CPU threads as the configuration says, or, shared with others that
    compute, one less than there are cores; and memory that stays once it is there."""
    torch.set_num_threads(config.threads or max(1, (usable_cores() - 1) // processes))
    keep_freed_memory()


def autocasts(policy: Policy, config: PolicyConfig) -> bool:
    """Whether the learner's matrix products are in bfloat16."""
    return policy.device.type == "cuda" if config.autocast == "auto" else config.autocast == "bfloat16"


def check_devices(config: PipelineConfig) -> None:
    """There is a device for every process. Raises: UserError."""
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
