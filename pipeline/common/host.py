"""What a host may leave undone for a process: a home folder, standard streams; and variables that are not for it."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from gradus.pipeline.common.errors import UserError

LAUNCHERS = (
    "PET_",
    "TORCHELASTIC_",
    "SLURM_",
    "SLURMD_",
    "PMI_",
    "PMIX_",
    "OMPI_",
    "HYDRA_",
    "MPI_",
    "ACCELERATE_",
    "FSDP_",
)
"""Beginnings of variables by which schedulers and launchers describe jobs of their own, or set up torchrun."""
RENDEZVOUS = (
    "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
    "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "GLOO_SOCKET_IFNAME",
)  # fmt: skip
"""Variables by which torch's processes find each other; those of another launch must not reach ours."""
SOCKET_PATH_BYTES = 100
"""Longest path that the address of a local socket surely takes."""


def without_launchers(environment: dict[str, str]) -> dict[str, str]:
    """The environment for a launch of several processes on this host, without what describes another launch.

    ``PET_NNODES=2`` alone, which Kubeflow sets, would make torchrun wait for a second host for ever.
    """
    return {
        name: value for name, value in environment.items() if not name.startswith(LAUNCHERS) and name not in RENDEZVOUS
    }


def settle_environment() -> None:
    """Mend what would break the libraries that this process and its children import.

    A level that logging does not know, and ``LOGLEVEL=info`` is one, makes the import of torch fail. With a width of 0,
    as some containers set it, rich prints nothing.
    """
    settle_home()
    if (level := os.environ.get("LOGLEVEL")) is not None:
        os.environ.pop("LOGLEVEL")
        if level.upper() in logging.getLevelNamesMapping():
            os.environ["LOGLEVEL"] = level.upper()
    for name in ("COLUMNS", "LINES"):
        if not (os.environ.get(name) or "0").strip("0"):
            os.environ.pop(name, None)


def settle_home() -> None:
    """Give this process and its children a home folder where there is none: libraries fail, or make a folder ``~``.

    In containers a user often has an id without a name, and HOME is unset or names a folder that does not exist.
    """
    try:
        exists = Path.home().is_dir()
    except RuntimeError:
        exists = False
    if not exists:
        os.environ["HOME"] = str(private_folder())


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder that exists, or in one that is to be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def private_folder() -> Path:
    """A folder among the temporary files that belongs to this user alone. Raises: UserError."""
    folder = Path(tempfile.gettempdir()) / f"gradus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(
            "there is no home folder, and the folder in its place is not private",
            where=str(folder),
            expected="a folder that belongs to this user alone (mode 0700)",
            fix="set HOME to a folder of your own",
        )
    return folder


def socket_folder() -> str | None:
    """Where to make a temporary folder for a local socket: the usual place, unless its path is too long for one."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= SOCKET_PATH_BYTES - len("/gradus-xxxxxxxx/s") else "/tmp"
