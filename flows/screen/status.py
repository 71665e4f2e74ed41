"""The state of runs, read from their folders without importing torch; and the search for a run or a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.locks import holder
from gradus.pipeline.config import StageConfig
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, checkpoints_in, step_of
from gradus.pipeline.runs.fork import forks_in
from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE, START_FILE, RunFolder
from gradus.pipeline.runs.run_paths import typed
from gradus.pipeline.runs.task_accuracies import matrix, pooled

TAIL_BYTES = 65_536
"""How much of the end of a journal is read to find a stage's last step."""
STEP_METRIC = "time/step"
"""A metric that every step has, and no other event."""
Status = dict[str, Any]
"""What :func:`run_status` returns."""
Mark = tuple[tuple[str, int], ...]
"""What :func:`changes_mark` returns."""
Known = dict[Path, tuple[Mark | None, Status]]
"""Run folder -> what its status was made from, and the status."""
Forks = dict[str, list[dict[str, str]]]
"""What :func:`gradus.pipeline.runs.fork.forks_in` returns."""


def all_runs(runs_dir: Path, stage_configs: list[type[StageConfig]], known: Known | None = None) -> list[Status]:
    """All runs in the folder, oldest first; the state of a run that cannot be read says why.

    ``known``: what an earlier call has found, kept up to date here; only what has changed since is read again.
    """
    forks, statuses = forks_in(runs_dir), []
    for file in Path(runs_dir).glob(f"[!.]*/{RUN_FILE}"):
        mark = changes_mark(file.parent) if known is not None else None
        if known is not None and mark is not None and known.get(file.parent, (None,))[0] == mark:
            statuses.append(known[file.parent][1] | {"forks": forks.get(file.parent.name, [])})
            continue
        try:
            run = RunFolder(file.parent, stage_configs)
        except UserError:  # it has been removed since it was listed
            continue
        status = _unknown(run)
        try:
            _fill(status, run, forks)
        except UserError as error:  # whatever is wrong with this run, the others are still listed
            status["state"] = f"unreadable: {str(error).splitlines()[0]}"
        statuses.append(status)
        if known is not None:
            known[file.parent] = (mark, status)
    return sorted(statuses, key=lambda status: (str(status["created"]), status["name"]))


def changes_mark(run_dir: Path) -> Mark | None:
    """What changes when anything changes that the status of a run says; None while a process works on the run.

    Records are replaced by renaming, which changes the time of the folder that they lie in.
    """
    if holder(run_dir) is not None:
        return None
    try:
        folders = [run_dir, run_dir / RUN_FILE, run_dir / CONFIG_FILE]
        for stage in sorted(run_dir.glob("stages/*")):
            folders += [stage, stage / CHECKPOINTS]
        return tuple((str(path), os.stat(path).st_mtime_ns if path.exists() else 0) for path in folders)
    except OSError:  # it is being removed
        return None


def run_status(run: RunFolder) -> Status:
    """One run: its state, finished and total stages, accuracy at the start and now, origin and forks, every stage.

    ``stage``, ``step`` and ``steps`` are the position of an unfinished run; without a step the stage has not begun.
    Raises: UserError where the run's files cannot be read.
    """
    status = _unknown(run)
    _fill(status, run, forks_in(run.path.parent))
    return status


def _unknown(run: RunFolder) -> Status:
    status: Status = {"name": run.name, "path": str(run.path), "state": "", "created": "", "seed": None}
    status |= {"done": 0, "total": 0, "accuracy_start": None, "accuracy_end": None, "stages": []}
    return status | {"stage": None, "step": None, "steps": None, "fork": None, "forks": [], "folders": []}


def _fill(status: Status, run: RunFolder, forks: Forks) -> None:
    try:
        _read(status, run, forks)
    except UserError:
        raise
    except Exception as error:  # the files may hold anything
        fix = f"{typed(run, 'verify')} looks at its files"
        raise UserError(str(error) or type(error).__name__, where=str(run.path), fix=fix) from error


def _read(status: Status, run: RunFolder, forks: Forks) -> None:
    run.config_text()  # a damaged one is told, but it takes too long to interpret those of hundreds of runs
    record, start = run.record, run.read(run.path / START_FILE) or {}
    status |= {key: record[key] for key in ("created", "seed") if key in record}
    status |= {"accuracy_start": start.get("accuracy"), "accuracy_end": start.get("accuracy")}
    status |= {"fork": run.origin, "forks": forks.get(run.name, [])}
    summary, running = run.summary(), run.holder() is not None
    indices = range(len(run.outline))
    status["folders"] = [_stage_folder(run, index) for index in indices]
    if summary is not None and not running:
        stages = summary["stages"]
        status |= {"state": "done", "done": len(stages), "total": len(stages), "stages": stages}
        status |= {key: summary[key] for key in ("accuracy_start", "accuracy_end", "seconds")}
        status |= {"tasks": summary["tasks"]} if "tasks" in summary else {}
        return
    status["stages"] = [_stage_entry(run, index, running) for index in indices]
    finished = [stage for stage in status["stages"] if "accuracy_after" in stage]
    status |= {"state": run.state(), "done": len(finished), "total": len(status["stages"])}
    if finished:
        status["accuracy_end"] = finished[-1]["accuracy_after"]
    if rows := matrix(run):
        status |= {"tasks": rows, "accuracy_end": pooled(rows[-1]["tasks"])["accuracy"]}
    unfinished = [entry for entry in status["stages"] if "accuracy_after" not in entry]
    at_work = [entry for entry in unfinished if entry["state"] == "running"]
    status |= next(map(_position, [*at_work, *unfinished]), {})


def _position(entry: dict[str, Any]) -> dict[str, Any]:
    """The position of a run, by the entry of its first stage at work, or of its first unfinished one."""
    return {"stage": entry["name"], "step": entry.get("step"), "steps": entry["steps"]}


def _stage_entry(run: RunFolder, index: int, running: bool) -> dict[str, Any]:
    """A stage's result, or its state if it has none yet; ``step`` if it has begun."""
    result, planned, folder = run.result(index), run.outline[index], run.stage_dir(index)
    if result is not None:
        return result | {key: value for key, value in planned.items() if key == "from"}
    entry: dict[str, Any] = {**planned}
    if not folder.is_dir():
        return entry | {"state": "waiting"}
    step = next((step for step, _ in checkpoints_in(folder)), 0)
    failure = run.failure(index)
    if running and not failure:  # another stage beside one that failed may run
        return entry | {"state": "running", "step": last_step(folder / "journal.jsonl") or step}
    return entry | {"state": f"failed: {failure['error']}" if failure else "stopped", "step": step}


def last_step(journal: Path) -> int | None:
    """The last step in a journal; None if a resume, which starts at a checkpoint, came after it."""
    try:
        with journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
            if event["kind"] == "start":
                return None
            if event["kind"] == "metrics" and STEP_METRIC in event["values"]:
                return event["step"]
        except (ValueError, KeyError, TypeError):
            continue  # the first line is incomplete, and others may be damaged
    return None


def _stage_folder(run: RunFolder, index: int) -> dict[str, Any]:
    """The content of a stage's folder: its checkpoints, newest first, and earlier attempts, oldest first."""
    result, folder = run.result(index), run.stage_dir(index)
    handed = result["checkpoint"] if result else None
    shared = result.get("shared") if result else None
    found = [(step_of(Path(handed)), Path(handed))] if shared and handed else checkpoints_in(folder)
    checkpoints = [{"step": step, "path": str(path), "handed_over": str(path) == handed} for step, path in found]
    return {
        "stage": run.outline[index]["name"],
        "path": str(folder),
        "shared": shared,
        "checkpoints": checkpoints,
        "attempts": [str(path) for path in run.attempts(index)],
    }


def checkpoint_or_run(text: str, runs: Path, hub: bool = False) -> Path:
    """The folder of this path, or of the run of this name; with ``hub``, an id of the Hub is accepted, too.

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
