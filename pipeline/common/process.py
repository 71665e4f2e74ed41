"""What a process may use of the machine: cores to share, memory to keep."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import site
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gradus


def usable_cores() -> int:
    """Cores that this process may run on, at least one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let the C library keep what was freed instead of giving it back: the next step needs it again.

    By default every tensor beyond some 100 kB is new memory whose pages the kernel has to clear; sampling from a model
    of a million parameters was a quarter slower for it. All threads share one heap: with heaps of their own, what the
    threads of an evaluation had freed was of no use to a training step, a sixth more memory at the peak.
    Does nothing where the C library is another than glibc.
    """
    trim, top_pad, mmap, heaps = -1, -2, -3, -8  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((mmap, 32 << 20), (trim, 2**31 - 1), (top_pad, 64 << 20), (heaps, 1)):
            mallopt(option, value)


@contextlib.contextmanager
def starting_up() -> Iterator[None]:
    """No search for garbage until :func:`started_up`, or else the end of this block.

    Importing torch, transformers and Prefect makes a million objects that stay; looking through them over and over
    took a fifth of the time.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


def started_up() -> None:
    """Search for garbage again, but no longer among what there is; outside of :func:`starting_up`, change nothing."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Set before MLflow is imported: it must not phone home, retry for minutes, or talk on our terminal."""


def child_environment() -> dict[str, str]:
    """This process's environment, quiet MLflow added, and this package importable wherever it runs from."""
    return {**ENVIRONMENT, **os.environ, **search_path()}


def search_path() -> dict[str, str]:
    """PYTHONPATH for a child process that imports this package; nothing where it finds the package without it.

    A folder of installed packages is not named: it would come before the standard library, and before the packages of
    another Python that a descendant may start.
    """
    root, given = str(Path(gradus.__file__).absolute().parents[1]), os.environ.get("PYTHONPATH", "")
    if root in (*site.getsitepackages(), site.getusersitepackages(), *given.split(os.pathsep)):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, given)))}


def process_start(pid: int) -> str | None:
    """When the process with this id began, as an opaque text; None where there is no such process.

    Together with the id it names one process for good, because ids are used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return None if not shown or shown[0].startswith("Z") else " ".join(shown[1:])
