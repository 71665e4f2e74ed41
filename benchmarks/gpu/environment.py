"""The machine: its device and versions, and how fast its products and its memory really are."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata

import torch
from benchmarks.gpu.findings import Findings, Setup
from benchmarks.measuring import processor
from benchmarks.workload import waiting


def run(setup: Setup, found: Findings) -> None:
    """Facts first, then rates. Raises: RuntimeError where there is no such device."""
    cuda = setup.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no CUDA device; --device cpu checks this machine's processor")
    found.add("Python", platform.python_version())
    for name in ("torch", "transformers", "tokenizers", "peft"):
        found.add(name, metadata.version(name))
    found.add("processor", f"{processor()}, {os.cpu_count()} cores")
    if cuda:
        device = torch.cuda.get_device_properties(0)
        found.add("device", device.name)
        found.add("memory", device.total_memory / 1e9, "GB")
        found.add("multiprocessors", device.multi_processor_count)
        found.add("CUDA of PyTorch", torch.version.cuda)
        found.add("driver", _driver())
    else:
        found.add("device", "cpu")
    _rates(setup, found)


def _driver() -> str:
    """The driver's version, as the tool that comes with it says."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return "unknown"


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 5, warm_up: int = 2) -> float:
    """The median of the seconds that ``work`` takes on a device."""
    wait, taken = waiting(device), []
    for turn in range(warm_up + times):
        wait()
        began = time.perf_counter()
        work()
        wait()
        if turn >= warm_up:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _rates(setup: Setup, found: Findings) -> None:
    """Products of square matrices of random numbers, and a copy, counting bytes read and written."""
    device, side = torch.device(setup.device), 512 if setup.tiny else 8192
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
    ):
        if tf32 and device.type != "cuda":
            continue
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = seconds_of(lambda left=left, right=right: left @ right, device)
        found.add(f"{name} products", 2 * side**3 / seconds / 1e12, "TFLOP/s")
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty(2**24 if setup.tiny else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), device)
    found.add("copy bandwidth", 2 * source.numel() / seconds / 1e9, "GB/s")
