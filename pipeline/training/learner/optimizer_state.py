"""The optimizer's state by parameter name, as it is written to checkpoints and restored from them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gradus.pipeline.training.learner.replicas import laid_out
from gradus.pipeline.training.learner.shards import Stored, read_shards
from gradus.pipeline.types import State


def optimizer_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> State:
    """The optimizer's moments and counts by parameter name; a parameter that had no gradient yet has none."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, state: State) -> None:
    """Give a new optimizer over the same parameters the state of an earlier one, each tensor as it was; spread over
    ranks where the parameters are, whether it was written like that or not.

    A count of steps stays on the CPU unless the optimizer is fused: on a GPU, each would make the host wait every step.
    """
    fused = {id(p): bool(group["fused"]) for group in optimizer.param_groups for p in group["params"]}
    wanted: dict[Path, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in state:
            found = optimizer.state[parameter] = {}
            for key, value in state[name].items():
                if isinstance(value, Stored):
                    found[key] = torch.zeros_like(parameter, requires_grad=False)
                    wanted.setdefault(value.folder, {})[value.path] = found[key]
                elif key == "step" and not fused[id(parameter)]:
                    found[key] = value
                else:
                    found[key] = laid_out(value, parameter)
    for folder, tensors in wanted.items():
        read_shards(folder, tensors)
