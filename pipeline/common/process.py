"""This process and its children: cores, memory, garbage collection, and what a child inherits and how it ends.

A child that must not outlive its parent holds one end of a pipe or socket, and calls :func:`on_hang_up`: the kernel
closes the other end when the parent ends in any way.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import site
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gradus

MLFLOW_ENVIRONMENT = {
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
"""Set before MLflow is imported: no telemetry, no retries for minutes, no output on our terminal."""


def usable_cores() -> int:
    """Cores that this process may run on, at least one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Make the C library keep freed memory instead of returning it to the kernel: the next step needs it again.

    By default every tensor larger than about 100 kB is new memory whose pages the kernel has to clear, which made
    sampling from a model of a million parameters a quarter slower. All threads share one heap: with separate heaps, the
    memory that an evaluation's threads had freed could not serve a training step, and the peak was a sixth higher.
    Does nothing with a C library other than glibc.
    """
    trim, top_pad, mmap, heaps = -1, -2, -3, -8  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((mmap, 32 << 20), (trim, 2**31 - 1), (top_pad, 64 << 20), (heaps, 1)):
            mallopt(option, value)


@contextlib.contextmanager
def starting_up() -> Iterator[None]:
    """Disable the garbage collector during start-up: until :func:`started_up`, at the latest until the block ends.

    Importing torch, transformers and Prefect creates a million objects that stay; visiting them again and again took a
    fifth of the start-up time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def started_up() -> None:
    """Enable the garbage collector again, except for the objects that exist now; a no-op if it is enabled."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def child_environment() -> dict[str, str]:
    """The environment for a child process: this one's, quiet settings for MLflow, and a path to this package."""
    return {**MLFLOW_ENVIRONMENT, **os.environ, **search_path()}


def search_path() -> dict[str, str]:
    """PYTHONPATH for a child process that imports this package; empty where it finds the package anyway.

    A folder of installed packages is never included: it would precede the standard library, and the packages of another
    Python that a descendant may start.
    """
    root, given = str(Path(gradus.__file__).absolute().parents[1]), os.environ.get("PYTHONPATH", "")
    if root in (*site.getsitepackages(), site.getusersitepackages(), *given.split(os.pathsep)):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, given)))}


def on_hang_up(descriptor: int, action: Callable[[], object]) -> None:
    """Call ``action`` in a thread of its own once the other end of a pipe or socket is closed. Nothing is read from it.

    Unlike PR_SET_PDEATHSIG this does not fire when only the thread ends that started this process.
    """

    def wait() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # hang-ups are always reported
        poll.poll()
        action()

    threading.Thread(target=wait, daemon=True).start()


def process_start(pid: int) -> str | None:
    """The start time of a process, as an opaque text; None where there is no such process.

    Ids are reused; an id together with the start time identifies a process for ever.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    shown = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, encoding="utf-8"
    ).stdout.split()
    return None if not shown or shown[0].startswith("Z") else " ".join(shown[1:])
