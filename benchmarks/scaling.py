"""How the cost of a step grows with prompt length, group size, completion length, width, vocabulary and threads.

    python -m benchmarks.scaling [--quick] [--axes prompt group ...] [--runs 3] [--out scaling.png] [--json FILE]

One quantity at a time is doubled, from a small model with variable lengths. Each point is a separate process, so that
its memory is known, and all points of an axis take turns. "exponent" is the slope of log cost over the upper half of
the points: 1 is proportional, and less than 1 means that fixed costs still matter. The exponent of the least work
(`benchmarks/flops.py`, with attention) is shown beside it; memory is what the steps added to the process. An exponent
well above that of the work shows a hidden quadratic cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.flops import Size, learning, sampling
from benchmarks.measuring import Worker, alternate, machine, peak_memory, spread, table
from benchmarks.workload import MODELS, Case, Gradus

MODEL = MODELS["tiny"] | {"vocab_size": 512}
BASE = Case("scaling", MODEL, variable=True, prompts=4, group_size=8, prompt_tokens=32, new_tokens=64)
COSTS = {"step": "CPU s a step", "sample": "sampling", "learn": "learning", "memory": "memory MB"}


@dataclass(frozen=True)
class Axis:
    """One quantity and its values."""

    label: str
    values: Sequence[int]
    threads: bool = False

    def case(self, name: str, value: int) -> Case:
        """The base case with one value changed."""
        match name:
            case "prompt":
                return replace(BASE, prompt_tokens=value)
            case "group":
                return replace(BASE, group_size=value)
            case "completion":
                return replace(BASE, new_tokens=value, variable=False)
            case "width":
                heads = {"num_attention_heads": value // 32, "num_key_value_heads": value // 32}
                return replace(BASE, model=MODEL | heads | {"hidden_size": value, "intermediate_size": 4 * value})
            case "vocabulary":
                return replace(BASE, model=MODEL | {"vocab_size": value})
            case _:
                return replace(BASE, model=MODELS["small"])


AXES = {
    "prompt": Axis("prompt tokens", (32, 64, 128, 256, 512, 1024)),
    "group": Axis("K, completions of a prompt", (4, 8, 16, 32, 64)),
    "completion": Axis("completion tokens, all alike", (32, 64, 128, 256, 512)),
    "width": Axis("width of the model", (64, 128, 256, 512)),
    "vocabulary": Axis("vocabulary", (512, 2048, 8192, 32768, 131072)),
    "threads": Axis("threads, model of 15 M", (1, 2), threads=True),
}


def worker(pipe: Any, case: Case, threads: int) -> None:
    """Whole steps of one case; answers with their seconds and the memory they added."""
    torch.set_num_threads(threads)
    system, number = Gradus(case), 1
    held, size = peak_memory(), Size.of(system.policy)
    pipe.send(None)
    while pipe.recv():
        system.step(number)
        work = sampling(case, size, number, 1.0) + learning(case, size, number)
        added = {"memory": (peak_memory() - held) / 1e6, "work": work.linear + work.attention}
        pipe.send(system.clock.take() | added)
        number += 1


def measure(name: str, runs: int, values: Sequence[int]) -> dict[str, Any]:
    """All points of an axis in turns, after a warm-up each."""
    axis = AXES[name]
    workers = {
        str(value): Worker(
            worker, axis.case(name, value), value if axis.threads else 1, threads=value if axis.threads else 1
        )
        for value in values
    }
    for each in workers.values():
        each.answer()
    alternate(workers, 1, 1)
    turns = alternate(workers, runs, 1)
    for each in workers.values():
        each.stop()
    return {"axis": name, "values": list(values), "turns": [turns[str(value)] for value in values]}


def medians(result: dict[str, Any], key: str) -> list[float]:
    """Of every point."""
    return [statistics.median(turn[key] for turn in turns) for turns in result["turns"]]


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log(cost) over log(value), least squares on the upper half of the points, two at least."""
    upper = max(2, (len(values) + 1) // 2)
    x, y = (np.log(np.asarray(part[-upper:], dtype=float)) for part in (values, costs))
    return float(np.polyfit(x, y, 1)[0])


def report(result: dict[str, Any]) -> None:
    """A table of one axis; for threads, what a second one gains."""
    axis, values = AXES[result["axis"]], result["values"]
    rows = []
    for value, turns in zip(values, result["turns"], strict=True):
        cells = [spread([turn[key] for turn in turns], ".3f") for key in ("step", "sample", "learn")]
        wall, tokens = (statistics.median(turn[key] for turn in turns) for key in ("step wall", "tokens"))
        memory = max(turn["memory"] for turn in turns)
        rows.append([f"{value:,}", *cells, f"{wall:.3f}", f"{memory:,.0f}", f"{tokens:,.0f}"])
    if axis.threads:
        walls = [min(turn["step wall"] for turn in turns) for turns in result["turns"]]
        rows.append(["gain", "", "", "", f"{walls[0] / walls[-1]:.2f} x (best turns)", "", ""])
    else:
        slopes = [f"{exponent(values, medians(result, key)):.2f}" for key in ("step", "sample", "learn")]
        memory = f"{exponent(values, [max(m, 1e-3) for m in medians(result, 'memory')]):.2f}"
        work = f"{exponent(values, medians(result, 'work')):.2f} (work)"
        rows.append(["exponent", *slopes, work, memory, f"{exponent(values, medians(result, 'tokens')):.2f}"])
    print(
        table([axis.label, *list(COSTS.values())[:3], "wall s", COSTS["memory"], "tokens"], rows),
        end="\n\n",
        flush=True,
    )


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Cost against each quantity, both logarithmic, with proportionality as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [result for result in results if not AXES[result["axis"]].threads]
    figure, panels = pyplot.subplots(2, len(drawn), figsize=(3.4 * len(drawn), 6), squeeze=False, sharex="col")
    for column, result in enumerate(drawn):
        values = np.asarray(result["values"], dtype=float)
        for row, keys in enumerate((("step", "sample", "learn"), ("memory",))):
            panel = panels[row][column]
            for key in keys:
                panel.plot(values, medians(result, key), marker="o", label=COSTS[key])
            top = medians(result, keys[0])[-1]
            panel.plot(values, top * values / values[-1], "--", color="grey", label="proportional")
            panel.set(xscale="log", yscale="log")
            panel.legend(fontsize=7)
        panels[0][column].set_title(AXES[result["axis"]].label, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help=", ".join(AXES))
    parser.add_argument("--runs", type=int, default=3, help="turns of each point")
    parser.add_argument("--quick", action="store_true", help="the first three points of each axis, one turn")
    parser.add_argument("--out", type=Path, help="draw the curves into this PNG")
    parser.add_argument("--json", type=Path, help="also write every turn's figures here")
    options = parser.parse_args()
    results = []
    for name in options.axes:
        print(f"{name} ...", file=sys.stderr, flush=True)
        values = AXES[name].values[: 3 if options.quick else None]
        results.append(measure(name, 1 if options.quick else options.runs, values))
        report(results[-1])
    print("Median (smallest..largest); the exponents are those of the upper half of the points.")
    print(machine("torch", "transformers"))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.out and any(not AXES[result["axis"]].threads for result in results):
        plot(results, options.out)
        print(f"Curves in {options.out}")


if __name__ == "__main__":
    main()
