"""A fork: a new run that shares, by reference, all that another run has done before a stage, and continues differently.

Only records are copied: the fork's folder refers to the data and checkpoints of its origin. A fork of a fork refers to
the run that owns what is shared. :class:`gradus.pipeline.runs.run_records.RunRecords` reads these records.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import folder_in_the_making, remove_leftovers, temporary_for, write_text
from gradus.pipeline.common.locks import ABANDONED_SECONDS, LOCK_FILE, vacant
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs.checkpoint import read_record
from gradus.pipeline.runs.identity import wanted
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import (
    CONFIG_FILE,
    RESULT_FILE,
    RUN_FILE,
    START_FILE,
    RunFolder,
    config_as_text,
    new_record,
)
from gradus.pipeline.runs.run_paths import typed
from gradus.pipeline.runs.verify import damage, data_damage
from gradus.pipeline.tracking.position import read_run_ids


def _done(run: RunFolder) -> set[int]:
    """The stages whose results a launch would reuse."""
    return {index for index, each in enumerate(plan(run, run.config)) if each.action == "reuse"}


def fork_points(run: RunFolder) -> list[int]:
    """The stages that a fork could start with: all that they depend on is done."""
    if run.start() is None:
        return []
    stages, done = run.config.stages, _done(run)
    return [index for index in range(len(stages)) if graph.needed(stages, index) <= done]


def check_shareable(origin: RunFolder, index: int) -> None:
    """Check that everything that stage ``index`` depends on is done. Raises: UserError."""
    labels, points = [stage.label for stage in origin.config.stages], fork_points(origin)
    if index not in points:
        open_ = sorted(graph.needed(origin.config.stages, index) - _done(origin))
        missing = f"the stage `{labels[open_[0]]}` has no result yet" if points else "its data and policy are not ready"
        raise UserError(
            f"a fork from {labels[index]} shares what is before it, and {origin.name!r} has not done that yet",
            where=f"--from {labels[index]}",
            got=missing,
            expected=" or ".join(f"--from {labels[place]}" for place in points),
            fix=f"{typed(origin, 'resume')} continues it",
        )


def check_parent(origin: RunFolder, index: int, config: PipelineConfig) -> None:
    """Check that what a fork at stage ``index`` needs is undamaged: the data, and the checkpoints that it reads, with
    the state that is carried over. Raises: UserError."""
    found = [("data", origin.data_dir, data_damage(origin))]
    for made in _read_by(origin, index, config):
        checkpoint = Path(made["checkpoint"])
        found.append(("checkpoint", checkpoint, damage(checkpoint, for_resume=bool(config.stages[index].carry))))
    for what, where, wrong in found:
        if not wrong:
            continue
        raise UserError(
            f"the {what} that the fork would start from is damaged",
            where=str(where),
            got=wrong,
            fix=f"{typed(origin, 'verify')} says what can be done",
        )


def check_changes(origin: RunFolder, index: int, config: PipelineConfig) -> list[str]:
    """How a fork's configuration differs from its origin's, one ``key: old -> new`` a line.

    Raises: UserError where a change concerns what the fork shares: the policy, the task or a stage before ``index``.
    """
    old, new = identity(origin.config), identity(config)
    labels, known = [stage.label for stage in config.stages], [stage.label for stage in origin.config.stages]
    label = known[index]
    changed = differences(old, new)
    data = differences(identity(origin.config.data_options()), identity(config.data_options()))
    _refuse(origin, label, [*(line for line in changed if line.startswith("policy.")), *data])
    if labels[: index + 1] != known[: index + 1]:
        raise UserError(
            f"a fork shares what is before {label}, which therefore stays stage {index + 1}",
            where="--set stages",
            got=", ".join(labels),
            expected=f"{', '.join(known[: index + 1])}, then anything",
            fix="leave these stages as they are, or start a new run",
        )
    for each in range(index):
        _refuse(
            origin, label, differences(old["stages"][each], new["stages"][each], f"stages.{known[each]}"), known[each]
        )
    return changed


def _refuse(origin: RunFolder, label: str, changes: list[str], earlier: str = "") -> None:
    if changes:
        keys = ", ".join(f"`{change.partition(': ')[0]}`" for change in changes)
        new_run = "start a new run"
        raise UserError(
            f"a fork shares what is before {label}; {keys} changes that",
            where="--set",
            got="\n            ".join(changes),
            fix=f"{typed(origin, 'fork', '--from', earlier)}, or {new_run}" if earlier else new_run,
        )


def fork(origin: RunFolder, index: int, config: PipelineConfig, folder: Path) -> RunFolder:
    """Make the run ``folder`` from ``origin``, completely or not at all. The caller has made the checks above.

    Raises: FileExistsError where something has that name, unless it is what a process that was killed left there.
    """
    folder = folder.absolute()
    remove_abandoned(folder)
    try:
        with folder_in_the_making(folder, replace=False) as making:
            write_text(making / CONFIG_FILE, config_as_text(config))
            write_sealed(making / START_FILE, _shared(origin.start() or {}, folder))
            for each in _shared_stages(origin, index, config):
                place = Path("stages") / origin.stage_dir(each).name
                write_sealed(making / place / RESULT_FILE, _shared_result(origin, each, folder / place))
            write_sealed(making / RUN_FILE, _record(origin, index, config, folder))
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(error.errno, "something has this name already", str(folder)) from None
        raise
    return RunFolder(folder, origin.stage_configs)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed while they made a run left of it: its folder, and temporary ones."""
    if not vacant(folder):
        return
    for path in folder.parent.glob(".*"):
        if temporary_for(path.name) == folder.name and path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir():
        remove_leftovers(folder)
        (folder / LOCK_FILE).unlink(missing_ok=True)


def _record(origin: RunFolder, index: int, config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """The content of the fork's run.json: its origin, and the path of its data."""
    lineage = {
        "run": origin.name,
        "stage": config.stages[index].label,
        "checkpoint": next((read_record(Path(m["checkpoint"])).content for m in _read_by(origin, index, config)), None),
        "changes": differences(identity(origin.config), identity(config)),
        "mlflow_run_id": read_run_ids(origin.path).get(""),
    }
    data = os.path.relpath(os.path.normpath(origin.data_dir), folder)
    return new_record(folder.name, config, Path(origin.record["config_file"])) | {"fork": lineage, "data": data}


def _read_by(origin: RunFolder, index: int, config: PipelineConfig) -> list[dict[str, Any]]:
    """The success records of the checkpoints that stage ``index`` reads, its parent's first, where they are done."""
    places = graph.reads(config.stages, index)
    made = [origin.result(place) for place in places] if places else [origin.start()]
    return [each for each in made if each]


def _shared_stages(origin: RunFolder, index: int, config: PipelineConfig) -> list[int]:
    """The stages whose results a fork at stage ``index`` shares: those before it that are done, and those after it that
    do not depend on it, or on another one that the fork trains, and that its configuration asks for as they are."""
    known, done, shared = origin.config.stages, _done(origin), list[int]()
    for each, (old, new) in enumerate(zip(known, config.stages, strict=False)):
        if old.label != new.label:
            break
        same = each < index or (each > index and wanted(origin.config, each) == wanted(config, each))
        if each in done and same and set(graph.inputs(config.stages, each)) <= set(shared):
            shared.append(each)
    return shared


def _shared(made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A success record with the path of its checkpoint relative to ``folder``."""
    return made | {"checkpoint": os.path.relpath(made["checkpoint"], folder)}


def _shared_result(origin: RunFolder, index: int, folder: Path) -> dict[str, Any]:
    """A stage's success record for a fork; a stage that the origin shares itself keeps its owner."""
    result = origin.result(index) or {}
    tracked = read_run_ids(origin.path).get(origin.stage_dir(index).name)
    return {"shared": origin.name, "mlflow_run_id": tracked, **_shared(result, folder)}


def forks_in(runs_dir: Path) -> dict[str, list[dict[str, str]]]:
    """run -> ``{"run": name, "stage": label}`` of each of its forks, by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for file in sorted(runs_dir.glob(f"[!.]*/{RUN_FILE}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            if (origin := (read_sealed(file) or {}).get("fork")) is not None:
                found.setdefault(origin["run"], []).append({"run": file.parent.name, "stage": origin["stage"]})
    return found
