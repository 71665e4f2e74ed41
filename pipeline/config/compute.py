"""The options of a launch on several devices: how many processes train a stage, and what each of them holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gradus.pipeline.config.options import Options


class LaunchConfig(Options):
    """How many processes train a stage together. None of it changes what a run is: it may go on with other values."""

    processes: int = Field(1, ge=1)
    """Processes on this machine, started by torchrun, one a GPU where the policy is on GPUs. They share out the prompts
    to sample and to score, and the rows to train on."""
    shard: Literal["none", "fsdp"] = "none"
    """fsdp: each process keeps and trains its part of every layer's weights, gradients and optimizer state (FSDP2); a
    whole copy of the weights, without gradients, remains for sampling. none: each process trains a whole copy. With one
    process there is nothing to share out."""
    time_limit: float = Field(1800.0, gt=0)
    """Seconds that a process waits for the others before the stage fails."""
