"""The speed of gradus relative to the limits of the machine.

    python -m benchmarks.roofline [--quick] [--cases 'small variable' ...] [--runs 5] [--json FILE]

First the limits are measured, with one thread in fp32: matrix products of several shapes, and the memory bandwidth.
Then whole steps run in the same process, each beside a measurement of the fastest shape, and are compared with the
least work of the case (`benchmarks/flops.py`):

* "of the peak": linear layers and head alone, at the speed of the fastest product;
* "with attention": the products of attention are counted too;
* "of the limit": memory is counted too, for models that do not fit the last cache: decoding steps that read weights and
  cache for longer than they compute, and the optimizer's pass over its state.

Norms, activations, rotations, softmax, drawing, tokenising and decoding are not counted, so 100 % cannot be reached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.flops import OPTIMIZER_BYTES, Size, Work, learning, sampling
from benchmarks.measuring import machine, spread, table
from benchmarks.workload import CASES, Case, Gradus

from gradus.pipeline.common.process import keep_freed_memory
from gradus.pipeline.policy.forward.matmul import onednn

SQUARES = ((512,) * 3, (1024,) * 3, (2048,) * 3)
COPIED = 256 * 2**20
"""Bytes; far more than any cache holds."""


def rate(work: Callable[[], object], amount: float, seconds: float = 0.15) -> float:
    """``amount`` per CPU second: the fastest of three batches of calls."""
    work()
    began, calls = time.process_time(), 0
    while calls < 1 or time.process_time() - began < seconds / 3:
        work()
        calls += 1
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        for _ in range(calls):
            work()
        best = max(best, amount * calls / (time.process_time() - began))
    return best


Shape = tuple[int, int, int]


def products(shape: Shape) -> dict[str, float]:
    """Operations a second of [m, k] x [k, n], the right one being a linear layer's weight: by MKL, and where it is
    there by oneDNN, with the weight as it is and laid out beforehand."""
    m, k, n = shape
    left, right, result, amount = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n), 2.0 * m * k * n
    found = {"MKL": rate(lambda: torch.mm(left, right.T, out=result), amount)}
    if onednn():
        found["oneDNN"] = rate(lambda: multiplied(left, right), amount)
        laid_out = torch.ops.mkldnn._reorder_linear_weight(right, m)
        found["laid out"] = rate(lambda: multiplied(left, laid_out), amount)
    return found


def multiplied(left: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """left @ weight.T by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")


def product(shape: Shape) -> float:
    """Operations per second of the fastest way."""
    return max(products(shape).values())


def bandwidth() -> float:
    """Bytes a second, the better of reading, and of copying (counted twice)."""
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    return max(rate(lambda: target.copy_(source), 2.0 * COPIED), rate(source.sum, float(COPIED)))


def last_cache() -> int:
    """Bytes of the processor's last cache; 0 where the system does not report it."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size and size[-1] in units), default=0)


def shapes(names: list[str]) -> dict[str, Shape]:
    """Products to measure: squares, and layers of the cases' models on 64 rows and on a whole batch."""
    found = {f"square {shape[0]}": shape for shape in SQUARES}
    for model in {name.split()[0]: CASES[name].model for name in names}.items():
        name, options = model
        width, inner, words = (options[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
        found |= {f"{name} up, {rows} rows": (rows, width, inner) for rows in (64, 2048)}
        found[f"{name} down, 64 rows"] = (64, inner, width)
        found[f"{name} head, 64 rows"] = (64, width, words)
    return found


def measure(case: Case, fastest: Shape, stream: float, runs: int) -> dict[str, Any]:
    """One case: seconds, and the seconds that its least work takes at the limits."""
    system = Gradus(case)
    size, turns = Size.of(system.policy), []
    in_memory = size.parameters * 4 > last_cache()
    system.step(1)
    system.clock.take()
    for run in range(runs):
        numbers = range(1 + run * case.steps_a_turn, 1 + (run + 1) * case.steps_a_turn)
        peak = product(fastest)
        for number in numbers:
            system.step(number)
        seconds, zero = system.clock.take(), Work(0.0, 0.0)
        work = {
            "sample": sum((sampling(case, size, number, peak / stream) for number in numbers), zero),
            "learn": sum((learning(case, size, number) for number in numbers), zero),
        }
        turns.append({"peak": peak, **{name: limits(work[name], peak) for name in work}, "seconds": seconds})
        if in_memory:
            turns[-1]["sample"]["memory"] = work["sample"].traffic_bound / stream
            turns[-1]["learn"]["memory"] = len(numbers) * size.parameters * OPTIMIZER_BYTES / stream
        parts = (turns[-1]["sample"], turns[-1]["learn"])
        turns[-1]["step"] = {key: sum(part[key] for part in parts) for key in ("linear", "attention", "memory")}
    return {"case": case.name, "steps": case.steps_a_turn, "turns": turns}


def limits(work: Work, peak: float) -> dict[str, float]:
    """Seconds at the peak."""
    return {"linear": work.linear / peak, "attention": work.attention / peak, "memory": 0.0}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Sampler, learner and whole step of a case."""
    found = []
    for part, label in (("sample", "sampler"), ("learn", "learner"), ("step", "whole step")):
        turns, shares = result["turns"], []
        for kinds in (("linear",), ("linear", "attention"), ("linear", "attention", "memory")):
            reached = [100 * sum(turn[part][kind] for kind in kinds) / turn["seconds"][part] for turn in turns]
            shares.append(spread(reached, ".0f") + " %")
        floor = statistics.median(turn[part]["linear"] / result["steps"] for turn in turns)
        seconds = spread([turn["seconds"][part] / result["steps"] for turn in turns], ".3f")
        found.append([result["case"], label, seconds, f"{floor:.3f}", *shares])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--runs", type=int, default=5, help="turns of each case")
    parser.add_argument("--quick", action="store_true", help="the tiny cases, two turns")
    parser.add_argument("--json", type=Path, help="also write every turn's figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    names = [name for name in options.cases if not options.quick or name.startswith("tiny")]
    measured = {name: (shape, products(shape)) for name, shape in shapes(names).items()}
    stream = bandwidth()
    kinds = [*next(iter(measured.values()))[1]]
    lines = [
        [name, " x ".join(map(str, shape)), *(f"{speeds[kind] / 1e9:.1f}" for kind in kinds)]
        for name, (shape, speeds) in measured.items()
    ]
    print(table(["product, GFLOP/s", "shape", *kinds], lines))
    cache = f"{last_cache() / 2**20:.0f} MB" if last_cache() else "unknown"
    print(f"\nMemory {stream / 1e9:.1f} GB/s, last cache {cache}\n", flush=True)
    fastest, results = max(measured.values(), key=lambda pair: max(pair[1].values()))[0], []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results.append(measure(CASES[name], fastest, stream, 2 if options.quick else options.runs))
    header = ["case", "part", "CPU s a step", "floor s", "of the peak", "with attention", "of the limit"]
    print(table(header, [row for result in results for row in rows(result)]))
    print("\nMedian (smallest..largest); the floor is the linear layers' least work at the peak of the same turn.")
    print(machine("torch", "transformers"))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
