"""The state of a stage that an exact resume needs, as files: tensors as safetensors, everything else as JSON.

The parts of a trainer describe their state as nested mappings of tensors and plain values; here these become two files
and are read back bit for bit. Random numbers need no state: draws, prompts and learning rates are functions of the
step. Tensors that are spread over ranks are in :mod:`gradus.pipeline.training.learner.shards`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gradus.pipeline.common.files import read_json, write_json
from gradus.pipeline.training.learner.replicas import is_spread
from gradus.pipeline.training.learner.shards import SHARDS, stored_in
from gradus.pipeline.types import State

TENSORS, VALUES = "state.safetensors", "state.json"


def write_state(folder: Path, state: State) -> None:
    """Write a state into an existing folder, without what is spread over ranks."""
    tensors: dict[str, Tensor] = {}
    values = _without_tensors(state, "", tensors)
    whole = {path: tensor.contiguous() for path, tensor in tensors.items() if not is_spread(tensor)}
    save_file(whole, folder / TENSORS)
    write_json(folder / VALUES, values)


def read_state(folder: Path) -> State:
    """The state that :func:`write_state` wrote, on the CPU; a tensor that was spread over ranks is a ``Stored``."""
    state = read_json(folder / VALUES)
    found: State = {**load_file(folder / TENSORS), **stored_in(folder / SHARDS)}
    for path, tensor in found.items():
        *parents, name = path.split("/")
        place = state
        for parent in parents:
            place = place[parent]
        place[name] = tensor
    return state


def spread_tensors(state: State) -> dict[str, Tensor]:
    """The tensors of a state that are spread over ranks, by the path of their keys."""
    tensors: dict[str, Tensor] = {}
    _without_tensors(state, "", tensors)
    return {path: tensor for path, tensor in tensors.items() if is_spread(tensor)}


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The same mappings with their tensors moved to ``tensors``, under the path of their keys."""
    if not isinstance(value, dict):
        return value
    kept: State = {}
    for key, item in value.items():
        here = f"{path}/{key}" if path else key
        if isinstance(item, Tensor):
            tensors[here] = item.detach()
        else:
            kept[key] = _without_tensors(item, here, tensors)
    return kept
