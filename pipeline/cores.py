"""What a process may use of the machine: cores to share, memory to keep."""

from __future__ import annotations

import contextlib
import ctypes
import os


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
