"""Whether two runs have the same outcome, bit for bit, as a resumed run and an undisturbed one must."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gradus.pipeline.common.files import read_json
from gradus.pipeline.runs.checkpoint import RECORD_FILE, RESUME, read_record
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import iter_events, metric_history

CLOCKS = ("time/", "throughput/")
"""Prefixes of the metrics that measure time, which differ between any two runs."""


def outcome_differences(one: RunFolder, two: RunFolder) -> list[str]:
    """What differs between the results of two runs: final weights and optimizer states as bytes, records, curves.

    Times are ignored. A curve that contradicts itself, because a step was repeated with another value, is listed too.
    """
    starts = [Path((run.start() or {"checkpoint": run.path / "start"})["checkpoint"]) for run in (one, two)]
    found = _file_differences("start", *starts)
    for index, stage in enumerate(one.config.stages):
        results = one.result(index), two.result(index)
        if results[0] is None or results[1] is None:
            found.append(f"{stage.label}: not done in {one.name if results[0] is None else two.name}")
            continue
        kept = [
            {k: v for k, v in r.items() if k not in ("seconds", "checkpoint", "mlflow_run_id")} for r in results if r
        ]
        found += [
            f"{stage.label}: {k}: {kept[0].get(k)} and {kept[1].get(k)}"
            for k in kept[0]
            if kept[0][k] != kept[1].get(k)
        ]
        found += _file_differences(stage.label, *(Path(result["checkpoint"]) for result in results if result))
        journals = [run.stage_dir(index) / "journal.jsonl" for run in (one, two)]
        found += _curve_differences(stage.label, *journals)
    return found


def _file_differences(label: str, one: Path, two: Path) -> list[str]:
    """The files of two checkpoints, with their resume state, whose bytes differ."""
    found = []
    names = sorted({*read_record(one).files, *read_record(two).files})
    clock = f"{RESUME}/state.json"
    for name in (name for name in names if name not in (RECORD_FILE, clock)):
        sides = [folder / name for folder in (one, two)]
        if not all(side.is_file() for side in sides) or sides[0].read_bytes() != sides[1].read_bytes():
            found.append(f"{label}: {name} differs")
    if clock in names and _timeless(one / clock) != _timeless(two / clock):
        found.append(f"{label}: {clock} differs")
    return found


def _timeless(path: Path) -> dict[str, Any]:
    state = read_json(path) or {}
    return state | {"progress": {k: v for k, v in state.get("progress", {}).items() if k != "seconds"}}


def _curve_differences(label: str, one: Path, two: Path) -> list[str]:
    histories = [metric_history(path) for path in (one, two)]
    names = sorted(name for name in {*histories[0], *histories[1]} if not name.startswith(CLOCKS))
    found = [f"{label}: curve {n} differs" for n in names if histories[0].get(n) != histories[1].get(n)]
    return found + [
        f"{label}: {path.parent.parent.parent.name}: {text}" for path in (one, two) for text in contradictions(path)
    ]


def contradictions(journal: Path) -> list[str]:
    """The points that a journal has twice with different values; times are ignored."""
    history, found = metric_history(journal), []
    for event, _ in iter_events(journal):
        if event is not None and event["kind"] == "metrics":
            for name, value in event["values"].items():
                first = history[name][event["step"]]
                if not name.startswith(CLOCKS) and not math.isclose(first, value, rel_tol=0, abs_tol=0):
                    found.append(f"{name} at step {event['step']}: {first} and {value}")
    return found
