"""The identity of a stage: everything that its result depends on. Reads small files only; no torch.

It consists of the stage's options, the seed, how completions are sampled, scored and judged, the contents of the parent
checkpoint and of the data, and the code that interprets all of these. It is written to the stage's folder when the
stage starts. Options that only say how to compute (device, threads, budgets, tracking) are no part of it; see
:data:`gradus.pipeline.config.options.RUNTIME`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.config.outside import source_of
from gradus.pipeline.rewards.user_functions import source_file
from gradus.pipeline.runs.checkpoint import CheckpointRecord
from gradus.pipeline.runs.run_folder import FAILURE_FILE, RunFolder
from gradus.pipeline.tasks.splits import SPLITS, named

STAGE_FILE = "stage.json"
"""In a stage's folder: the identity that the stage was started with."""
CODE = (
    "advantages.py",
    "policy",
    "rewards",
    "rollouts",
    "stage.py",
    "statistics",
    "tasks/prompt_order.py",
    "tasks/prompts",
    "training",
    "types.py",
)
"""The packages and modules of the core that a stage's result depends on."""
LIBRARIES = ("torch", "transformers", "tokenizers")
"""The libraries whose versions a stage's result depends on."""


def stage_identity(
    config: PipelineConfig,
    index: int,
    parent: CheckpointRecord,
    data: dict[str, str],
    beside: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Everything that a stage's result depends on; ``data`` are the content hashes of the data of all tasks, ``beside``
    those of the other results, see :meth:`gradus.pipeline.runs.run_records.RunRecords.beside`.
    """
    stage = config.stages[index]
    used = {named(task, split) for task in config.used_tasks(stage) for split in SPLITS}
    own = {key: digest for key, digest in data.items() if key in used}
    made_of = {"config": wanted(config, index), "parent": parent.content, "data": own}
    made_of |= {"state": parent.state} if stage.carry else {}
    made_of |= {"inputs": dict(beside)} if beside else {}
    return made_of | {"code": code_version(config, stage)}


def wanted(config: PipelineConfig, index: int) -> dict[str, Any]:
    """The part of a stage's identity that the configuration decides."""
    policy = {k: v for k, v in identity(config.policy).items() if k in ("dtype", "autocast", "lora")}
    shared = {name: identity(getattr(config, name)) for name in ("seed", "rewards", "sampling", "evaluation")}
    stage, judged = config.stages[index], config.in_stage(config.stages[index]).judgements
    used = {name: judged[name] for name in config.used_tasks(stage)}
    if len(config.named_tasks) == 1:
        used = {name: each for name, each in used.items() if each != (config.rewards, config.evaluation)}
    if given := {name: each for name in config.used_tasks(stage) if (each := config.named_tasks[name].template_args)}:
        shared["template_args"] = given
    if used:  # a task or a stage says how it is judged
        shared["rewards"] = {name: identity(each.rewards) for name, each in used.items()}
        shared["evaluation"] = {name: identity(each.evaluation) for name, each in used.items()}
    own = {key: value for key, value in identity(stage).items() if stage.earlier.get(key, ...) != value}
    if graph.parent(config.stages, index) == (index - 1 if index else None):
        own.pop("from")  # it starts from the stage before it, whether it says so or not
    return {"stage": own, "policy": policy, **shared}


def code_version(config: PipelineConfig, stage: StageConfig) -> dict[str, str]:
    """package, file or library -> short hash or version, of all the code that a stage's result depends on."""
    core = Path(__file__).parents[1]
    paths = {_module_name(name): core / name for name in CODE}
    paths[f"stages/{stage.stage}"] = source_of(type(stage))
    judged = config.in_stage(stage).rewards_by_task
    names = dict.fromkeys(reward.reward for task in config.used_tasks(stage) for reward in judged[task])
    paths |= {name: path for name in names if (path := source_file(name)) is not None}
    hashes = {name: _source_hash(path) for name, path in paths.items()}
    return hashes | {name: importlib.metadata.version(name) for name in LIBRARIES}


def fingerprint(*parts: Any) -> str:
    """Hash of plain values; equal values have equal hashes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def begin_stage(run: RunFolder, index: int, wanted_identity: dict[str, Any]) -> Path:
    """The folder to train in: that of an interrupted attempt with the same identity, or a new one.

    An attempt with another parent, configuration or data is kept as a numbered attempt. An attempt with other code is
    continued, so that an upgrade costs no work; :func:`gradus.pipeline.runs.plan.plan` reports it.
    """
    folder = run.stage_dir(index)
    known = run.read(folder / STAGE_FILE)
    if known is not None and not identity_changes(known, wanted_identity):
        (folder / FAILURE_FILE).unlink(missing_ok=True)
    else:
        if folder.exists() and any(folder.iterdir()):
            run.set_aside(index)
        write_sealed(folder / STAGE_FILE, {"fingerprint": fingerprint(wanted_identity), **wanted_identity})
    return folder


def identity_changes(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How two identities of a stage differ, code apart, one ``key: old -> new`` a line."""
    changes = config_changes(known["config"], now["config"])
    if known["parent"] != now["parent"]:
        changes.append(f"parent checkpoint: {known['parent']} -> {now['parent']}")
    if known.get("state") != now.get("state"):
        changes.append(f"the parent's state: {known.get('state')} -> {now.get('state')}")
    beside, now_beside = known.get("inputs", {}), now.get("inputs", {})
    for line in differences(beside, {**beside, **_recorded(now_beside, beside)}):
        changes.append(f"the model {line}" if line.startswith("/") else f"the result of {line}")
    return changes + [f"data.{change}" for change in differences(known["data"], now["data"])]


def _recorded(now: Mapping[str, str | None], known: Mapping[str, str | None]) -> dict[str, str | None]:
    """What a stage depends on now, without the folders that it did not look at when it was started: an earlier version
    did not, and one that is gone is told by whoever needs it."""
    return {name: content for name, content in now.items() if name in known or not Path(name).is_absolute()}


def config_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """How two results of :func:`wanted` differ; the keys of the stage's own options start with its label."""
    label = new["stage"].get("name") or new["stage"]["stage"]
    shared = [key for key in new if key != "stage"]
    changes = differences(old["stage"], new["stage"], label)
    return changes + [line for key in shared for line in differences(old.get(key), new[key], key)]


def code_changes(known: dict[str, str], now: dict[str, str]) -> list[str]:
    """How the code that a stage was started with differs from today's, one ``key: old -> new`` a line.

    Earlier versions recorded the hashes of single files, which cannot be compared with those of packages; one line
    then says that the code is another one.
    """
    if not known.keys() & {_module_name(name) for name in CODE}:
        return ["gradus: an earlier version -> this one"]
    return differences(known, now)


def _module_name(path: str) -> str:
    """The import name of an entry of :data:`CODE`.

    >>> _module_name("tasks/prompt_order.py")
    'gradus.pipeline.tasks.prompt_order'
    """
    return "gradus.pipeline." + path.removesuffix(".py").replace("/", ".")


def _source_hash(path: Path) -> str:
    """Short hash of a module, or of all modules of a package with their paths in it."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        digest.update(f"{file.relative_to(path)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]
