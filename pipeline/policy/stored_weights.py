"""The weights in a model's folder, from the headers of its safetensors files: nothing is loaded, torch is not imported.

A header is preceded by its length in bytes, a 64-bit little-endian number. It maps the names of the tensors to their
types, shapes and places; the places end where the file ends.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The names that transformers looks for: all weights in one file, or the list of several."""
AGAIN = "copy or download the model again"


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every weight that a model would be loaded from; empty where the folder has no weights.

    Raises: UserError that names the file which is missing or damaged.
    """
    if (folder / WHOLE).is_file():
        return _shapes(folder / WHOLE)
    files = stored_files(folder)
    shapes: dict[str, list[int]] = {}
    for name in sorted(set(files.values())):
        shapes |= _shapes(folder / name)
    if lacking := [weight for weight in files if weight not in shapes]:
        raise UserError("the files lack weights that their index names", where=str(folder), got=lacking[0], fix=AGAIN)
    return shapes


def stored_files(folder: Path) -> dict[str, str]:
    """Name of every weight -> the file that holds it; empty where the folder has no weights.

    Raises: UserError that names the file which is missing or damaged.
    """
    if (folder / WHOLE).is_file():
        return dict.fromkeys(_shapes(folder / WHOLE), WHOLE)
    return _indexed(folder) if (folder / INDEX).is_file() else {}


def stored_parameters(folder: Path) -> int:
    """The number of parameters in the weights of a folder; 0 where there are none. Raises: UserError."""
    return sum(map(math.prod, stored_shapes(folder).values()))


def check_layers(folder: Path, layers: int) -> None:
    """The weights have as many layers as ``config.json`` says; transformers would make up the others at random.

    Weights without a number in their name are in no list of layers, and where no weight has one, nothing can be said.
    Raises: UserError.
    """
    lists: dict[str, set[int]] = {}
    for name in stored_shapes(folder):
        parts = name.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
        if place is not None:
            lists.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    stored = max(lists.values(), key=lambda found: sum(layer < layers for layer in found), default=None)
    first = next(layer for layer in itertools.count() if layer not in stored) if stored is not None else layers
    if first < layers:
        raise UserError(
            "the weights lack layers that the model's description has",
            where=str(folder),
            got=f"no weights of layer {first}, counted from 0",
            expected=f"the {layers:,} layers of config.json",
            fix=f"{AGAIN}, or correct the number of layers in config.json",
        )


def _indexed(folder: Path) -> dict[str, str]:
    """Weight -> file, from the index. Raises: UserError where it cannot be read, or a file is not there."""
    index = folder / INDEX
    try:
        files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        missing = sorted(name for name in set(files.values()) if not (folder / name).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, str(error) or type(error).__name__) from None
    if missing:
        raise UserError("files of the model's weights are missing", where=str(index), got=missing[0], fix=AGAIN)
    return files


def _shapes(file: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor of a file. Raises: UserError where the file is damaged."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise _damaged(file, f"{size:,} bytes" if size else "an empty file")
            header: dict[str, Any] = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: [int(width) for width in entry["shape"]] for name, entry in tensors.items()}
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _damaged(file, "a header that cannot be read") from None
    if end != size:
        raise _damaged(file, f"{size:,} bytes, where the header describes {end:,}")
    return shapes


def _damaged(file: Path, got: str) -> UserError:
    expected = "a whole safetensors file" if file.suffix == ".safetensors" else "weights and the files that hold them"
    return UserError("a file of the model's weights is damaged", where=str(file), got=got, expected=expected, fix=AGAIN)
