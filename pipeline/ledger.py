"""What each stage of a run is, what may be reused of it, and why. Reads small files only; no torch.

A stage's identity is what its result depends on: its options, the seed, how completions are scored, sampled and judged,
the contents of the parent checkpoint and of the data, and the code that interprets all of these. It is written to the
stage's folder when the stage begins. What merely says how to compute (device, threads, budgets, tracking) is no part
of it; see :data:`pipeline.config_base.RUNTIME`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.checkpoint import CheckpointRecord, checkpoints_in, read_record
from pipeline.config import PipelineConfig, StageConfig
from pipeline.config_base import identity
from pipeline.files import read_json, write_json
from pipeline.rewards.custom import source_file
from pipeline.runs import FAILURE_FILE, RunFolder, differences

STAGE_FILE = "stage.json"
CODE = ("advantages", "critic", "evaluation", "learner", "losses", "policy", "sampler", "scoring", "signals", "sources")
CODE += ("tasks", "trainer", "rewards/equations", "rewards/extraction", "rewards/gym", "rewards/library")
CODE += ("rewards/ranking", "rewards/suite")
"""The core's files that a stage's result depends on."""
LIBRARIES = ("torch", "transformers", "tokenizers")


def fingerprint(*parts: Any) -> str:
    """Hash of plain values: equal exactly where they are equal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def wanted(config: PipelineConfig, index: int) -> dict[str, Any]:
    """The part of a stage's identity that the configuration decides."""
    policy = {k: v for k, v in identity(config.policy).items() if k in ("dtype", "autocast")}
    shared = {name: identity(getattr(config, name)) for name in ("seed", "rewards", "sampling", "evaluation")}
    return {"stage": identity(config.stages[index]), "policy": policy, **shared}


def code_version(config: PipelineConfig, stage: StageConfig) -> dict[str, str]:
    """file or library -> short hash or version, of all the code that a stage's result depends on."""
    core = Path(__file__).parent
    files = {f"pipeline/{name}.py": core / f"{name}.py" for name in CODE}
    files[f"stages/{stage.stage}"] = Path(inspect.getfile(type(stage)))
    files |= {reward.reward: path for reward in config.rewards if (path := source_file(reward.reward)) is not None}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:8] for name, path in files.items()}
    return hashes | {name: importlib.metadata.version(name) for name in LIBRARIES}


def stage_identity(
    config: PipelineConfig, index: int, parent: CheckpointRecord, data: dict[str, str]
) -> dict[str, Any]:
    """Everything that a stage's result depends on; ``data`` are content hashes."""
    stage = config.stages[index]
    made_of = {"config": wanted(config, index), "parent": parent.content, "data": data}
    return made_of | ({"state": parent.state} if stage.carry else {}) | {"code": code_version(config, stage)}


def begin_stage(run: RunFolder, index: int, wanted_identity: dict[str, Any]) -> Path:
    """The folder to train in: what an interrupted attempt at the same thing left, or a new one.

    What belongs to another parent, configuration or data is kept as a numbered attempt. Other code goes on, so that an
    upgrade costs no work; :func:`plan` and the run tell of it.
    """
    folder = run.stage_dir(index)
    known = read_json(folder / STAGE_FILE)
    if known is not None and not _drift(known, wanted_identity):
        (folder / FAILURE_FILE).unlink(missing_ok=True)
    else:
        if folder.exists() and any(folder.iterdir()):
            run.set_aside(index)
        write_json(folder / STAGE_FILE, {"fingerprint": fingerprint(wanted_identity), **wanted_identity})
    return folder


def _drift(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a stage was begun with and is not asked for any more, code apart."""
    old, new = known["config"], now["config"]
    changes = differences(old["stage"], new["stage"])
    changes += [line for key in new if key != "stage" for line in differences(old.get(key), new[key], key)]
    if known["parent"] != now["parent"]:
        changes.append(f"parent checkpoint: {known['parent']} -> {now['parent']}")
    if known.get("state") != now.get("state"):
        changes.append(f"the parent's state: {known.get('state')} -> {now.get('state')}")
    return changes + [f"data.{change}" for change in differences(known["data"], now["data"])]


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
    """What drifted, ``key: old -> new``."""
    code: tuple[str, ...] = ()
    """Code that changed since the stage began; what is done is kept all the same."""


def plan(run: RunFolder | None, config: PipelineConfig) -> list[StagePlan]:
    """What a launch with this configuration would do about every stage of ``run``; without a run, of a new one.

    Reads records only: damage is found when a checkpoint is used, or by ``gradus verify``.
    """
    labels = [stage.label for stage in config.stages]
    if run is None:
        return [StagePlan(stage.label, stage.steps, "run", why="new run") for stage in config.stages]
    start, plans = run.start(), list[StagePlan]()
    known_labels = [stage.label for stage in run.config.stages]
    parent = read_record(Path(start["checkpoint"])) if start and Path(start["checkpoint"]).is_dir() else None
    data = (read_json(run.data_dir / "data.json") or {}).get("hashes", {})
    waiting = "" if parent else "the policy and the data are not prepared yet"
    for index, stage in enumerate(config.stages):
        if waiting:
            made = StagePlan(stage.label, stage.steps, "run", why=waiting)
        elif known_labels[: index + 1] != labels[: index + 1]:
            made = StagePlan(stage.label, stage.steps, "run", why="the run has no such stage here")
        else:
            assert parent is not None
            made = _plan_stage(run, config, index, parent, data)
        plans.append(made)
        if made.action == "reuse" and not waiting:
            parent = read_record(Path((run.result(index) or {})["checkpoint"]))
        elif not waiting:
            waiting = f"comes after {stage.label}"
    return plans


def _plan_stage(
    run: RunFolder, config: PipelineConfig, index: int, parent: CheckpointRecord, data: dict[str, str]
) -> StagePlan:
    """One stage whose parent is there."""
    stage, folder, result = config.stages[index], run.stage_dir(index), run.result(index)
    known = read_json(folder / STAGE_FILE)
    begun_with, now = known or {}, stage_identity(config, index, parent, data)
    changes = tuple(_drift(begun_with, now)) if known else ()
    code = tuple(differences(begun_with["code"], now["code"])) if known and not changes else ()

    def planned(action: Literal["reuse", "resume", "run"], why: str, step: int = 0) -> StagePlan:
        return StagePlan(stage.label, stage.steps, action, step, why, changes, code)

    if result is not None and not changes:
        if not Path(result["checkpoint"]).is_dir():
            return planned("run", f"its checkpoint is gone: {result['checkpoint']}")
        if result["parent"] != parent.content:
            return planned("run", "the stage before it has another result now")
        if shared := result.get("shared"):
            return planned("reuse", f"shared with {shared}", result["steps"])
        return planned(
            "reuse", f"done, {result['accuracy_before']:.3f} -> {result['accuracy_after']:.3f}", result["steps"]
        )
    if changes:
        return planned(
            "run", "its configuration changed" if begun_with["parent"] == parent.content else "its parent changed"
        )
    steps = [step for step, _ in checkpoints_in(folder)]
    if known is None or not steps:
        return planned("run", "stopped before its first checkpoint" if known else "not begun")
    failure = run.failure(index)
    return planned("resume", f"failed: {failure['error']}" if failure else f"stopped after step {steps[0]}", steps[0])
