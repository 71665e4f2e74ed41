"""What a file or folder of the user's was when it was read, so that a change of it can be noticed later.

A file whose size and time of change are still the same counts as unchanged; only otherwise its content is read, of a
big file in pieces, so that gigabytes of weights cost a fraction of a second.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

PIECE_BYTES, PIECES = 1 << 20, 64
"""A larger file than all pieces together is hashed in this many pieces, spread evenly from its start to its end."""

MODEL_FILES = "*"
"""The files of a model lie in its folder itself; folders in it are of other use."""

Seen = dict[str, dict[str, Any]]
"""Name of a file -> its ``size``, the time of its last change (``changed``, nanoseconds) and its ``hash``."""


def look_at(source: Path, pattern: str = "**/*") -> Seen:
    """The file ``source``, or the visible files of that folder, as they are now; empty where there is no such thing."""
    return {name: {**_state(path), "hash": _sample(path)} for name, path in _files(source, pattern).items()}


def content_of(source: Path, pattern: str = "**/*") -> str:
    """A short hash of the file ``source``, or of that folder's visible files; empty where there is no such thing."""
    files = {name: _sample(path) for name, path in _files(source, pattern).items()}
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16] if files else ""


def altered_since(source: Path, known: Seen, pattern: str = "**/*") -> list[str]:
    """The names of files that were altered, added or removed since; none where the whole source is gone."""
    now = _files(source, pattern)
    if not now:
        return []
    both = [name for name in known if name in now]
    suspects = [name for name in both if not _state(now[name]).items() <= known[name].items()]
    altered = [name for name in suspects if _sample(now[name]) != known[name]["hash"]]
    return sorted({*altered, *(known.keys() ^ now.keys())})


def _files(source: Path, pattern: str) -> dict[str, Path]:
    if source.is_file():
        return {source.name: source}
    found = sorted(path for path in source.glob(pattern) if path.is_file()) if source.is_dir() else []
    names = {str(path.relative_to(source)): path for path in found}
    return {name: path for name, path in names.items() if not any(part.startswith(".") for part in Path(name).parts)}


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "changed": status.st_mtime_ns}


def _sample(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        if size <= PIECES * PIECE_BYTES:
            digest.update(stream.read())
        else:
            for piece in range(PIECES):
                stream.seek(piece * (size - PIECE_BYTES) // (PIECES - 1), os.SEEK_SET)
                digest.update(stream.read(PIECE_BYTES))
    return digest.hexdigest()
