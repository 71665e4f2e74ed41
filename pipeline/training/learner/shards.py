"""Tensors that are spread over ranks, on disk: each rank writes its part, and any number of ranks can read them.

``torch.distributed.checkpoint`` records in each part which piece of which tensor it is, so that one process reads them
back whole, and another number of processes cuts them again. The parts are safetensors files, because its usual
pickles could run any code when they are read.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.ranks import Ranks

SHARDS = "shards"
"""Folder, beside a state's other files, of what is spread."""
NO_GROUP = "torch.distributed is disabled"
"""A warning that one process gets."""


@dataclass(frozen=True)
class Stored:
    """A tensor that is on disk in parts."""

    folder: Path
    path: str
    """Its name there."""


def write_shards(folder: Path, tensors: dict[str, Tensor], ranks: Ranks) -> bool:
    """Write this rank's parts into a new ``folder``, together with the other ranks; returns whether there are any.

    Raises: StageFailed where some rank cannot write.
    """
    if not tensors:
        return False
    import torch.distributed.checkpoint as distributed
    from torch.distributed.checkpoint import HuggingFaceStorageWriter as writer
    from torch.distributed.checkpoint.api import CheckpointException

    if ranks.leads:
        shutil.rmtree(folder, ignore_errors=True)
    ranks.meet()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NO_GROUP)
            distributed.save(dict(tensors), storage_writer=writer(str(folder), save_distributed=True))
    except (CheckpointException, OSError) as error:
        failures = error.failures if isinstance(error, CheckpointException) else {ranks.rank: (error, None)}
        causes = "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in failures.items())
        raise StageFailed(
            f"a checkpoint's shards could not be written to {folder}, perhaps because the disk is full ({causes}). "
            "Earlier checkpoints are whole; resume the run once there is room"
        ) from error
    return True


def stored_in(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder that :func:`write_shards` wrote, by name; nothing where there is none."""
    if not folder.is_dir():
        return {}
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    names = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: Stored(folder, name) for name in names}


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill these tensors, whole or spread, with what was written under their names. All ranks call it together."""
    import torch.distributed.checkpoint as distributed

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NO_GROUP)
        distributed.load(dict(tensors), storage_reader=distributed.HuggingFaceStorageReader(str(folder)))
