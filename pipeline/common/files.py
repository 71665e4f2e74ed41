"""Atomic writes: after a crash a file or folder is either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically and durably with a text in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` atomically and durably: temporary name, flush, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
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
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def sha256(path: Path) -> str:
    """Content hash of a file, as hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def folder_in_the_making(final: Path, replace: bool = True) -> Iterator[Path]:
    """A temporary folder beside ``final``, which is renamed to it when the block ends and all in it is durable.

    An existing folder of that name is replaced; without ``replace`` only if it is empty. After an error the temporary
    folder is removed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    making = beside(final)
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
        if replace and final.exists():
            shutil.rmtree(final)
        os.replace(making, final)
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def leftovers(folder: Path) -> Iterator[Path]:
    """The temporary files and folders that killed processes left below ``folder``.

    The uploader's are left out: it may outlive the process that it served. Hidden files of other names are the user's.
    """
    for place, folders, files in os.walk(folder):
        for name in sorted((*folders, *files)):
            meant = temporary_for(name)
            if meant is not None and not meant.startswith("mlflow"):
                yield Path(place, name)
        folders[:] = [name for name in folders if not name.startswith(".")]


def remove_leftovers(folder: Path) -> None:
    """Remove what :func:`leftovers` finds; no other process may be writing there."""
    for path in list(leftovers(folder)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_for(name: str) -> str | None:
    """The name that a temporary file or folder of ours would have got; None for any other name.

    >>> temporary_for(".run.json.0a1b2c3d"), temporary_for(".gitignore"), temporary_for("run.json.0a1b2c3d")
    ('run.json', None, None)
    """
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}", name)
    return found and found[1]


def beside(path: Path, tag: str | None = None) -> Path:
    """A temporary name next to ``path``: a new one, or, with ``tag``, the same in every process.

    Unlike mkstemp's file, what is made under it gets the permissions that the umask gives.
    """
    digits = secrets.token_hex(4) if tag is None else hashlib.sha256(tag.encode()).hexdigest()[:8]
    return path.with_name(f".{path.name}.{digits}")


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable (fsync)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
