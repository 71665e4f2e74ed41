"""Prepare a run: build the task's data and the policy before any stage, and measure that policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.config import PipelineConfig, PolicyConfig
from gradus.pipeline.config.options import identity
from gradus.pipeline.config.tasks import key_of
from gradus.pipeline.execution.measured import tasks_record
from gradus.pipeline.execution.overlong import all_fitted
from gradus.pipeline.execution.train import reward_suite
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.devices import check_devices, settle_process
from gradus.pipeline.policy.fit import check_finite, shown_prompt, template_notes
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.lora import check_adapters
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.templates import check_arguments
from gradus.pipeline.rollouts.builtin.limits import Limits
from gradus.pipeline.rollouts.factory import sampler_for
from gradus.pipeline.runs.changed_sources import policy_seen
from gradus.pipeline.runs.checkpoint import read_record, save_checkpoint
from gradus.pipeline.runs.description import open_parent_journal
from gradus.pipeline.runs.identity import fingerprint
from gradus.pipeline.runs.lineage import needs_start
from gradus.pipeline.runs.run_folder import START_FILE, RunFolder
from gradus.pipeline.runs.task_accuracies import accuracy_curves
from gradus.pipeline.runs.verify import handover_damage
from gradus.pipeline.tasks.background import wait_for_data
from gradus.pipeline.tasks.data import Tasks, first_prompt, longest_prompts, texts
from gradus.pipeline.tasks.prompts.answers import ANSWERS_FILE, write_answers
from gradus.pipeline.tasks.several.build import build_tasks, contradictions
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.training.evaluation import evaluate


def prepare(run: RunFolder, observer: Observer) -> dict[str, Any]:
    """Build the task's data and the starting policy, and measure that policy; what exists and is undamaged is reused.

    Returns ``{"checkpoint": path, "accuracy": share, "interval": [low, high], "seconds": s, "reused": bool}``; accuracy
    and interval are None where no completion could be scored.
    """
    check_devices(run.config)
    known = run.start()
    reused = known is not None and _still_good(run, known, observer)
    if known is None or not reused:
        known = _prepare(run, observer)
    elif run.summary() is None:
        open_parent_journal(run, known["policy"])  # a resumed run, or a new fork
    shown = "{model_type}, {parameters:,} parameters, {dtype} on {device}, {attention} attention, template {template}"
    observer.note("policy: " + shown.format(**known["policy"]))
    observer.prepared(known["accuracy"], known["interval"] and tuple(known["interval"]))
    return {**known, "reused": reused}


def _prepare(run: RunFolder, observer: Observer) -> dict[str, Any]:
    began, config = time.perf_counter(), run.config
    settle_process(config.policy)
    wait_for_data(run.data_dir)
    tasks = build_tasks(config.named_tasks, run.base_dir, run.data_dir)
    sources = policy_seen(config, run.base_dir)
    policy, tasks = starting_policy(config, tasks, run.base_dir, run.data_dir)
    for text in (*tasks.notes, *contradictions(tasks)):
        observer.note(text)
    first = first_prompt(tasks)
    observer.note(f"first prompt: {shown_prompt(policy.prompts, first)!r}")
    for text in template_notes(policy.prompts, first):
        observer.note(text)
    folder = run.path / "start"
    made_of = fingerprint(identity(config.policy), config.seed, tasks.hashes)
    save_checkpoint(policy, folder, stage="start", step=0, parent=None, fingerprint=made_of)
    open_parent_journal(run, policy.describe())
    with reward_suite(run, folder, config) as suite:
        sampler = sampler_for(config, policy, folder, run.path)
        evaluation = evaluate(policy, tasks.prompts("heldout"), suite, config, sampler=sampler)
    several = tasks_record(evaluation, {})
    with Journal(run.path / "journal.jsonl") as journal:
        journal.metrics(0, accuracy_curves(evaluation.accuracy, several))
    if problem := evaluation.problem():
        observer.note(f"start: {problem}")
    made = {"checkpoint": folder.name, **evaluation.record(), "seconds": time.perf_counter() - began}
    if several:
        made |= several | {"correct": evaluation.by_prompt()}
    made |= {"answers": write_answers(run.path / ANSWERS_FILE, evaluation.answered())}
    made |= {"policy": policy.describe(), "content": read_record(folder).content, "sources": sources}
    write_sealed(run.path / START_FILE, made)
    known = run.start()
    assert known is not None
    return known


def _still_good(run: RunFolder, known: dict[str, Any], observer: Observer) -> bool:
    """Whether the starting policy can be reused: it is undamaged, shared, or no stage needs it any more."""
    if run.origin is not None or not needs_start(run):
        return True
    damaged = handover_damage(known)
    if damaged:
        observer.note(f"the policy before any stage is damaged ({damaged}); it is made again")
    return not damaged


def starting_policy(config: PipelineConfig, tasks: Tasks, base_dir: Path, data: Path | None) -> tuple[Policy, Tasks]:
    """The policy before any stage: a new one, or one from a folder (relative to the configuration) or from the Hub.

    Returns it with the tasks as it can do them; ``data`` is their folder, None where that may not be changed.
    Raises: UserError where it cannot do one of them.
    """
    if config.policy.path is None:
        policy = create_policy(config.policy, texts(tasks), config.seed)
    else:
        policy = load_policy(source(config.policy, base_dir), config.policy)
    if config.policy.lora is not None:
        check_adapters(policy.model.config, config.policy)
    for where, options in config.placed_samplings.items():
        Limits(policy, options, where)
    for name, options in config.named_tasks.items():
        check_arguments(policy.template.text, options.template_args or {}, key_of(config, name))
    for stage in config.stages:
        check_arguments(policy.template.text, stage.template_args or {}, f"stages.{stage.label}")
    tasks = all_fitted(tasks.asked(config.asked(None)), policy, config, data)
    check_finite(policy, [first_prompt(tasks), longest_prompts(tasks)[0]])
    return policy, tasks


def source(policy: PolicyConfig, base_dir: Path) -> Path | str:
    """Where the policy comes from: a folder, or a Hub id."""
    local = base_dir / (policy.path or "")
    return local if local.is_dir() else policy.path or ""
