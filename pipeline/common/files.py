"""Atomic writes: after a crash a file or folder is either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically and durably: temporary name, flush, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("x") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically with ``value`` as indented JSON; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in ``path``, or None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def sha256(path: Path) -> str:
    """Content hash of a file, as hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def folder_in_the_making(final: Path) -> Iterator[Path]:
    """A temporary folder beside ``final``, which is renamed to it when the block ends and all in it is durable.

    An existing folder of that name is replaced. After an error the temporary folder is removed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    making = _beside(final)
    making.mkdir()
    try:
        yield making
        for path in sorted(making.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            elif path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        sync_folder(making)
        if final.exists():
            shutil.rmtree(final)
        os.replace(making, final)
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left below ``folder``; no other process may be writing there.

    The uploader's temporary files are kept: it may outlive the process that it served.
    """
    for path in list(folder.rglob(".*")):
        if path.name.startswith(".mlflow"):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable (fsync)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """A new hidden name next to ``path``. Unlike mkstemp's, the file gets the permissions that the umask gives."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
