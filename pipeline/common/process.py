"""What a process may use of the machine: cores to share, memory to keep."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator


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
