"""What the run folders say about themselves, read without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import StageConfig
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.runs import RUN_FILE, RunFolder


def all_runs(runs_dir: Path, stage_configs: list[type[StageConfig]]) -> list[dict[str, Any]]:
    """Every run in the folder, oldest first; one that cannot be read says why in its state."""
    folders = [file.parent for file in Path(runs_dir).glob(f"*/{RUN_FILE}")]
    statuses = [run_status(RunFolder(folder, stage_configs)) for folder in folders]
    return sorted(statuses, key=lambda status: (status["created"], status["name"]))


def run_status(run: RunFolder) -> dict[str, Any]:
    """One run: state, stages done of how many, accuracy at the start and now, and an entry for every stage."""
    status: dict[str, Any] = {"name": run.name, "path": str(run.path), "state": "", "created": "", "seed": None}
    status |= {"done": 0, "total": 0, "accuracy_start": None, "accuracy_end": None, "stages": []}
    try:
        record, start = run.record or {}, read_json(run.path / "start.json") or {}
        status |= {key: record.get(key) for key in ("created", "seed") if key in record}
        status |= {"accuracy_start": start.get("accuracy"), "accuracy_end": start.get("accuracy")}
        summary = run.summary()
        if summary is not None and run.holder() is None:
            stages = summary["stages"]
            status |= {"state": "done", "done": len(stages), "total": len(stages), "stages": stages}
            return status | {key: summary[key] for key in ("accuracy_start", "accuracy_end", "seconds")}
        status["stages"] = [_stage_entry(run, index) for index in range(len(run.config.stages))]
        finished = [stage for stage in status["stages"] if "accuracy_after" in stage]
        status |= {"state": run.state(), "done": len(finished), "total": len(status["stages"])}
        if finished:
            status["accuracy_end"] = finished[-1]["accuracy_after"]
    except (ValidationError, UserError, OSError, ValueError, KeyError, TypeError) as error:
        status["state"] = f"unreadable: {str(error).splitlines()[0]}"
    return status


def _stage_entry(run: RunFolder, index: int) -> dict[str, Any]:
    """A stage's success record, or what is known of it without one."""
    result, config = run.result(index), run.config.stages[index]
    if result is not None:
        return result
    entry: dict[str, Any] = {"name": config.label, "variant": config.variant, "steps": config.steps}
    failure = run.failure(index)
    if failure is not None:
        return entry | {"state": f"failed: {failure['error']}"}
    begun = run.stage_dir(index).is_dir()
    return entry | {"state": ("running" if run.holder() is not None else "stopped") if begun else "waiting"}


def checkpoint_or_run(text: str, runs: Path, hub: bool = False) -> Path:
    """The folder that was named, or that of the run of this name; with ``hub``, a Hub id is let through.

    Raises: UserError.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return path.absolute()
    if (runs / text).is_dir():
        return (runs / text).absolute()
    if hub and not path.is_absolute() and text.count("/") == 1:
        return path
    fix = "`gradus status` lists the runs, `gradus status NAME` the checkpoints of one"
    raise UserError("there is no such checkpoint or run", got=text, where=str(runs.absolute()), fix=fix)
