"""A stage that takes no steps: it merges the checkpoints of earlier stages, and models from elsewhere, into one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.process import started_up
from gradus.pipeline.config.graph.inputs import START
from gradus.pipeline.config.graph.merge import MergeConfig
from gradus.pipeline.execution.work.recorded import Made, StageWork, conclude, start_journal
from gradus.pipeline.policy.devices import settle_process
from gradus.pipeline.policy.loading import load_policy, stored_template, weights_dtype
from gradus.pipeline.policy.merging import Merged
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.factory import sampler_for
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, save_checkpoint, verified_record
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import Journal

FILES = ("*.json", "*.safetensors")
"""What a merge reads of a model on the Hub."""


def merge(work: StageWork, suite: RewardSuite, journal: Journal, observer: Observer) -> dict[str, Any]:
    """Write the merged checkpoint, measure it, and return the stage's success record. Raises: UserError."""
    run, index = work.run, work.index
    config = run.config.stages[index]
    assert isinstance(config, MergeConfig)
    settle_process(run.config.policy)
    started_up()
    start_journal(journal, work, config.stage)
    began, parts = time.perf_counter(), [_folder(run, name) for name in config.of]
    merged = Merged(
        work.parent, parts, config.shares, config.method, weights_dtype(run.config.policy), stored_template(work.parent)
    )
    folder = run.stage_dir(index) / CHECKPOINTS / "step-000000"
    save_checkpoint(merged, folder, config.label, 0, work.parent_record.content, work.fingerprint)
    policy = load_policy(folder, run.config.policy)
    observer.note(f"{config.label}: {config.method} of {', '.join(config.of)}")
    sampler = sampler_for(run.config, policy, folder, run.path)
    tasks = work.tasks.asked(run.config.asked(config))
    made = Made(folder, 0, time.perf_counter() - began)
    return conclude(work, config.stage, made, policy, suite, tasks, journal, observer, sampler=sampler)


def _folder(run: RunFolder, name: str) -> Path:
    """The folder of a model: the checkpoint of an earlier stage, whose hashes are checked, a folder, or one of the Hub.

    Raises: UserError.
    """
    labels = [stage.label for stage in run.config.stages]
    made = run.result(labels.index(name)) if name in labels else run.start() if name == START else None
    if made is not None:
        verified_record(folder := Path(made["checkpoint"]))
        return folder
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # of the network, the Hub or the disk
        raise UserError(
            "a model to merge cannot be had",
            where=name,
            got=str(error).split("\n")[0],
            fix="check the name and the network",
        ) from error
