"""The plan of a launch: whether each stage is reused, resumed or run, and why. Reads small files only; no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.records import read_sealed
from gradus.pipeline.common.shown import shown_share
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.config.graph.picture import entries
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs.checkpoint import CheckpointRecord, checkpoints_in, read_record, step_of
from gradus.pipeline.runs.identity import (
    STAGE_FILE,
    code_changes,
    code_version,
    config_changes,
    identity_changes,
    stage_identity,
    wanted,
)
from gradus.pipeline.runs.lineage import beside, made_otherwise, needs_checkpoint, needs_start, parent_of
from gradus.pipeline.runs.run_folder import PROFILE_FILE, RunFolder


@dataclass(frozen=True)
class StagePlan:
    """What a launch would do with one stage, and why."""

    label: str
    steps: int
    """The steps that the configuration asks for."""
    action: Literal["reuse", "resume", "run"]
    step: int = 0
    """The steps that are already done."""
    why: str = ""
    changes: tuple[str, ...] = ()
    """What changed since the stage was started, ``key: old -> new``; keys of its own options start with its label."""
    code: tuple[str, ...] = ()
    """The code that changed since the stage was started. It does not undo what is done."""
    origins: tuple[str, ...] = ()
    """The names of what the stage starts from, or is made of; empty where the stages are a chain."""


def plan(run: RunFolder | None, config: PipelineConfig, restart_from: int | None = None) -> list[StagePlan]:
    """What a launch with this configuration would do with every stage of ``run``, or of a new run.

    ``restart_from``: the index of the stage that is to start again, as all that depend on it then do. Only records
    are read: damage is found when a checkpoint is used, or by ``gradus verify``.
    """
    named = {label: tuple(names) for label, names in entries(config.stages)}
    return [replace(each, origins=named.get(each.label, ())) for each in _plans(run, config, restart_from)]


def _plans(run: RunFolder | None, config: PipelineConfig, restart_from: int | None) -> list[StagePlan]:
    if run is None:
        return [StagePlan(stage.label, stage.steps, "run", why="new run") for stage in config.stages]
    start, plans = run.start(), list[StagePlan]()
    old, new = _sources(run.config), _sources(config)
    changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    if changed:
        waiting = f"the {' and the '.join(changed)} changed"
    elif start is None:
        waiting = "the policy and the data are not prepared yet"
    else:
        waiting = "" if _record(start) or not needs_start(run) else f"{start['checkpoint']} is gone or damaged"
    labels, known = ([stage.label for stage in each.stages] for each in (config, run.config))
    again = [] if restart_from is None else [restart_from, *graph.dependents(run.config.stages, restart_from)]
    first: dict[int, str] = {}  # what keeps a stage, and all that depends on it, from being reused
    for index, stage in enumerate(config.stages):
        here = known[: index + 1] == labels[: index + 1]
        drift = tuple(_asked(run, config, index, changed)) if here else ()
        after = next((first[each] for each in graph.inputs(config.stages, index) if each in first), "")
        if index in again:
            plans.append(StagePlan(stage.label, stage.steps, "run", why=_why_again(run, index)))
        elif waiting or after:
            why = waiting or f"comes after {after}"
            plans.append(StagePlan(stage.label, stage.steps, "run", why=why, changes=drift))
        elif not here:
            plans.append(StagePlan(stage.label, stage.steps, "run", why="the run has no such stage here"))
        else:
            plans.append(_plan_stage(run, config, index, drift, again))
        if plans[-1].action != "reuse":
            first[index] = after or stage.label
    return plans


def _sources(config: PipelineConfig) -> dict[str, Any]:
    """What the policy before any stage and the data are made from."""
    return {"policy": identity(config.policy), **identity(config.data_options())}


def made_again(run: RunFolder, index: int, planned: StagePlan) -> StagePlan:
    """The plan of a finished stage whose checkpoint is damaged.

    It is resumed from the checkpoint before that one, or starts again where there is none.
    """
    result = run.result(index) or {}
    step = _newest_step(run.stage_dir(index), result["parent"], step_of(Path(result["checkpoint"])))
    return replace(planned, action="run" if step is None else "resume", step=step or 0)


def _asked(run: RunFolder, config: PipelineConfig, index: int, names: list[str]) -> list[str]:
    """How a configuration differs from the run's in one stage and in the parts of the pipeline that ``names`` gives."""
    old, new = _sources(run.config), _sources(config)
    common = [line for name in names for line in differences(old.get(name), new.get(name), name)]
    own = config_changes(wanted(run.config, index), wanted(config, index))
    return common + [line for line in own if line not in common]


def _why_again(run: RunFolder, index: int) -> str:
    """Why a stage that ``restart_from`` covers is run."""
    if not run.stage_dir(index).exists():
        return "not begun"
    return f"again, as asked; what is there is kept as attempt {run.next_attempt(index)}"


def _plan_stage(
    run: RunFolder,
    config: PipelineConfig,
    index: int,
    drift: tuple[str, ...],
    again: Collection[int],
) -> StagePlan:
    """The plan of a stage whose inputs are available; ``drift``: how the configuration differs from the run's."""
    stage, folder, result = config.stages[index], run.stage_dir(index), run.result(index)
    known, parent = run.read(folder / STAGE_FILE), parent_of(run, index) or {}
    record = _record(parent)
    if known and result is None and record is not None:
        made_of = stage_identity(config, index, record, run.data().get("hashes", {}), beside(run, index))
        drift = tuple(identity_changes(known, made_of))
    code = tuple(code_changes(known["code"], code_version(config, stage))) if known and not drift else ()

    def planned(action: Literal["reuse", "resume", "run"], why: str, step: int = 0) -> StagePlan:
        return StagePlan(stage.label, stage.steps, action, step, why, drift, code if action != "run" else ())

    if result is not None and not drift:
        if needs_checkpoint(run, index, again) and _record(result) is None:
            return made_again(run, index, planned("run", f"its checkpoint is gone or damaged: {result['checkpoint']}"))
        if other := made_otherwise(run, index, result):
            return planned("run", other)
        shared = result.get("shared")
        change = f"{shown_share(result['accuracy_before'])} -> {shown_share(result['accuracy_after'])}"
        return planned("reuse", f"shared with {shared}" if shared else f"done, {change}", result["steps"])
    if known is None and result is None:
        return planned("run", "not begun")
    if drift:
        why = (
            "its parent changed" if known and known["parent"] != parent.get("content") else "its configuration changed"
        )
        return planned("run", why)
    step, failure = _newest_step(folder, parent.get("content")), run.failure(index)
    before = f"stopped before its first checkpoint{_profiled(folder)}"
    stopped = before if step is None else f"stopped after step {step}"
    why = f"failed: {failure['error']}" if failure else stopped
    return planned("run", why) if step is None else planned("resume", why, step)


def _profiled(stage_dir: Path) -> str:
    """How many prompts a stage without a checkpoint has profiled; empty where there are none."""
    with contextlib.suppress(UserError):  # what is damaged is made anew
        if (known := read_sealed(stage_dir / PROFILE_FILE)) is not None:
            return f", with {known['memory']['records']:,} prompts profiled"
    return ""


def _newest_step(stage_dir: Path, parent: str | None, before: int | None = None) -> int | None:
    """The step of the newest checkpoint that the stage can resume from, judged by the records alone.

    ``before``: only checkpoints of earlier steps count.
    """
    known = checkpoints_in(stage_dir)
    found = ((step, _record({"checkpoint": path})) for step, path in known if before is None or step < before)
    return next((step for step, record in found if record and record.parent == parent and record.resumable), None)


def _record(made: dict[str, Any] | None) -> CheckpointRecord | None:
    """The record of a success record's checkpoint; None where it cannot be read."""
    try:
        return read_record(Path(made["checkpoint"])) if made else None
    except UserError:
        return None
