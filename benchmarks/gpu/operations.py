"""Where the time goes: the operations of a decoding step and of a learner step, by PyTorch's profiler.

A decoding step is the difference between sampling with a high and with a low limit, so that reading the prompts and
collecting the results do not count. "Busy" is the share of the time in which the device computes; the rest are gaps, in
which it waits for the next operation to be started.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from benchmarks.gpu.findings import Findings, Setup
from benchmarks.gpu.shapes import case as case_of
from benchmarks.workload import Gradus, make_policy, waiting
from torch.profiler import ProfilerActivity, profile

SYNCHRONISING = ("aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize",
                 "cudaEventSynchronize")  # fmt: skip
STARTED = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync",
           "cudaMemsetAsync")  # fmt: skip


@dataclass
class Trace:
    """What the profiler saw in a piece of work."""

    seconds: float
    """Wall time without the profiler."""
    counts: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    """Operation -> seconds on the device, or on the CPU where that computes."""

    def __sub__(self, other: Trace) -> Trace:
        counts = Counter({name: n - other.counts[name] for name, n in self.counts.items()})
        busy = Counter({name: s - other.busy[name] for name, s in self.busy.items()})
        return Trace(self.seconds - other.seconds, counts, busy)


def traced(work: Callable[[], object], device: torch.device) -> Trace:
    """Run a piece of work three times: to warm up, by the clock, and under the profiler."""
    wait = waiting(device)
    work()
    wait()
    began = time.perf_counter()
    work()
    wait()
    trace, cuda = Trace(time.perf_counter() - began), device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        work()
        wait()
    for event in profiler.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        trace.counts[event.key] += event.count
        if on_device == cuda:
            trace.busy[event.key] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
    return trace


def run(setup: Setup, found: Findings) -> None:
    """Decoding, then learning."""
    device = setup.device
    case = replace(case_of(setup.tiny, variable=False), prompt_tokens=16)
    system = Gradus(case, make_policy(case.model, device=device), autocast=True)
    few, many = (4, 8) if setup.tiny else (8, 40)
    traces = []
    for limit in (few, many):
        system.options = system.options.model_copy(update={"max_tokens": limit})
        traces.append(traced(lambda: system.sample(0), torch.device(device)))
    _told("decoding step", traces[1] - traces[0], many - few, setup, found)
    system.case = replace(case, new_tokens=many)
    system.options = system.options.model_copy(update={"max_tokens": many})
    rollouts = system.score(system.sample(0))
    _told("learner step", traced(lambda: system.update(rollouts, 1), torch.device(device)), 1, setup, found)


def _told(name: str, trace: Trace, steps: int, setup: Setup, found: Findings) -> None:
    """The figures of one step."""
    found.add(f"{name}: time", trace.seconds / steps * 1e3, "ms")
    if setup.device == "cuda":
        found.add(f"{name}: device busy", sum(trace.busy.values()) / trace.seconds)
        found.add(f"{name}: operations started", sum(trace.counts[key] for key in STARTED) / steps)
    else:
        found.add(f"{name}: operations", sum(n for key, n in trace.counts.items() if key.startswith("aten::")) / steps)
    for key in SYNCHRONISING:
        if trace.counts[key] > 0:
            found.add(f"{name}: {key}", trace.counts[key] / steps, "a step")
    for place, (key, seconds) in enumerate(trace.busy.most_common(10), 1):
        share = seconds / max(sum(trace.busy.values()), 1e-12)
        found.add(f"{name}: no. {place}", f"{key[:80]}: {seconds / steps * 1e3:.3f} ms, {share:.0%}")
