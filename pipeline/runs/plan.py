""""""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs.checkpoint import CheckpointRecord, checkpoints_in, read_record, step_of
from gradus.pipeline.runs.identity import (
    STAGE_FILE,
    _config_drift,
    _drift,
    code_changes,
    code_version,
    stage_identity,
    wanted,
)
from gradus.pipeline.runs.run_folder import RunFolder


@dataclass(frozen=True)
class StagePlan:
    """What a launch would do about one stage, and why."""

    label: str
    steps: int
    """Steps that the configuration asks for."""
    action: Literal["reuse", "resume", "run"]
    step: int = 0
    """Steps that are done already."""
    why: str = ""
    changes: tuple[str, ...] = ()
    """What drifted, ``key: old -> new``; the stage's own options go by its label."""
    code: tuple[str, ...] = ()
    """Code that changed since the stage began; what is done is kept all the same."""


def plan(run: RunFolder | None, config: PipelineConfig, anew: int | None = None) -> list[StagePlan]:
    """What a launch with this configuration would do about every stage of ``run``; without a run, of a new one.

    From stage ``anew`` on everything is to begin again. Reads records only: damage is found when a checkpoint is used,
    or by ``gradus verify``.
    """
    if run is None:
        return [StagePlan(stage.label, stage.steps, "run", why="new run") for stage in config.stages]
    start, plans = run.start(), list[StagePlan]()
    parent = start
    names = ("policy", "task")
    changed = [name for name in names if identity(getattr(run.config, name)) != identity(getattr(config, name))]
    if changed:
        waiting = f"the {' and the '.join(changed)} changed"
    elif start is None:
        waiting = "the policy and the data are not prepared yet"
    else:
        waiting = "" if run.result(0) or _record(start) else f"{start['checkpoint']} is gone or damaged"
    labels, known = ([stage.label for stage in each.stages] for each in (config, run.config))
    for index, stage in enumerate(config.stages):
        here = known[: index + 1] == labels[: index + 1]
        drift = tuple(_asked(run, config, index, changed)) if here else ()
        if anew is not None and index >= anew:
            plans.append(StagePlan(stage.label, stage.steps, "run", why=_begun_again(run, index)))
        elif waiting:
            plans.append(StagePlan(stage.label, stage.steps, "run", why=waiting, changes=drift))
        elif not here or parent is None:
            plans.append(StagePlan(stage.label, stage.steps, "run", why="the run has no such stage here"))
        else:
            plans.append(_plan_stage(run, config, index, parent, drift, anew))
        if plans[-1].action == "reuse":
            parent = run.result(index)
        elif not waiting:
            waiting = f"comes after {stage.label}"
    return plans


def _asked(run: RunFolder, config: PipelineConfig, index: int, names: list[str]) -> list[str]:
    """How what is asked of a stage, and of the pipeline's parts of these names, differs from what the run asks for."""
    pairs = [(name, identity(getattr(run.config, name)), identity(getattr(config, name))) for name in names]
    common = [line for name, old, new in pairs for line in differences(old, new, name)]
    own = _config_drift(wanted(run.config, index), wanted(config, index))
    return common + [line for line in own if line not in common]


def _record(made: dict[str, Any] | None) -> CheckpointRecord | None:
    """The record of a success record's checkpoint; None where there is none that can be read."""
    try:
        return read_record(Path(made["checkpoint"])) if made else None
    except UserError:
        return None


def _begun_again(run: RunFolder, index: int) -> str:
    """Why a stage is trained although it was: as asked, or because one before it is."""
    if not run.stage_dir(index).exists():
        return "not begun"
    earlier = run.attempts(index)
    number = int(earlier[-1].suffix.removeprefix(".attempt-")) + 1 if earlier else 1
    return f"anew, as asked; what is there is kept as attempt {number}"


def _plan_stage(
    run: RunFolder,
    config: PipelineConfig,
    index: int,
    parent: dict[str, Any],
    drift: tuple[str, ...],
    anew: int | None,
) -> StagePlan:
    """One stage whose parent is there; ``drift`` is how the configuration differs from the run's."""
    stage, folder, result = config.stages[index], run.stage_dir(index), run.result(index)
    known, record = read_json(folder / STAGE_FILE), _record(parent)
    if known and result is None and record is not None:
        data = (read_json(run.data_dir / "data.json") or {}).get("hashes", {})
        drift = tuple(_drift(known, stage_identity(config, index, record, data)))
    code = tuple(code_changes(known["code"], code_version(config, stage))) if known and not drift else ()

    def planned(action: Literal["reuse", "resume", "run"], why: str, step: int = 0) -> StagePlan:
        return StagePlan(stage.label, stage.steps, action, step, why, drift, code if action != "run" else ())

    if result is not None and not drift:
        following = index + 1 < len(run.config.stages) and index + 1 != anew and run.result(index + 1)
        if not following and _record(result) is None:
            return made_again(run, index, planned("run", f"its checkpoint is gone or damaged: {result['checkpoint']}"))
        if result["parent"] != parent["content"]:
            return planned("run", "the stage before it has another result now")
        shared, change = result.get("shared"), "{accuracy_before:.3f} -> {accuracy_after:.3f}".format(**result)
        return planned("reuse", f"shared with {shared}" if shared else f"done, {change}", result["steps"])
    if known is None and result is None:
        return planned("run", "not begun")
    if drift:
        why = "its parent changed" if known and known["parent"] != parent["content"] else "its configuration changed"
        return planned("run", why)
    step, failure = _newest_step(folder, parent["content"]), run.failure(index)
    stopped = f"stopped after step {step}" if step is not None else "stopped before its first checkpoint"
    why = f"failed: {failure['error']}" if failure else stopped
    return planned("run", why) if step is None else planned("resume", why, step)


def made_again(run: RunFolder, index: int, planned: StagePlan) -> StagePlan:
    """The plan of a finished stage whose checkpoint is damaged: it goes on from the one before that, or begins anew."""
    result = run.result(index) or {}
    step = _newest_step(run.stage_dir(index), result["parent"], step_of(Path(result["checkpoint"])))
    return replace(planned, action="run" if step is None else "resume", step=step or 0)


def _newest_step(stage_dir: Path, parent: str, before: int | None = None) -> int | None:
    """The step of the newest checkpoint that the stage can go on from, as far as records tell; one below ``before``."""
    known = checkpoints_in(stage_dir)
    found = ((step, _record({"checkpoint": path})) for step, path in known if before is None or step < before)
    return next((step for step, record in found if record and record.parent == parent and record.resumable), None)
