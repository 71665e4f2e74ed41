"""What an orchestrator calls: prepare a run, train a stage, write the summary. Paths and plain data go in and out."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.process import started_up
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.options import identity
from gradus.pipeline.execution.launch import check_devices, launched
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.lora import add_adapters
from gradus.pipeline.policy.policy import Policy, load_policy, use_threads
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.factory import sampler_for
from gradus.pipeline.runs.checkpoint import (
    CHECKPOINTS,
    RESUME,
    CheckpointRecord,
    content_of,
    damaged_files,
    discard_from,
    newest_whole,
    read_record,
    save_checkpoint,
    verified_record,
)
from gradus.pipeline.runs.description import (
    description,
    flatten,
    heldout_curves,
    journal_datasets,
    open_parent_journal,
    sample_rows,
    stage_lineage_tags,
)
from gradus.pipeline.runs.identity import begin_stage, fingerprint, stage_identity
from gradus.pipeline.runs.run_folder import (
    FAILURE_FILE,
    HELDOUT_FILE,
    RESULT_FILE,
    START_FILE,
    SUMMARY_FILE,
    SUMMARY_KEYS,
    RunFolder,
)
from gradus.pipeline.stage import Stage
from gradus.pipeline.tasks.background import wait_for_data
from gradus.pipeline.tasks.task import TaskData, build_task, load_task, texts
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.position import read_run_ids
from gradus.pipeline.training.evaluation import evaluate
from gradus.pipeline.training.learner.state_files import read_state
from gradus.pipeline.training.trainer import Trainer, all_prompts


def prepare(run: RunFolder, observer: Observer) -> dict[str, Any]:
    """Build the task's data and the policy before any stage, and measure that policy; what is already there is reused.

    Returns ``{"checkpoint": path, "accuracy": share, "interval": [low, high], "seconds": s, "reused": bool}``.
    """
    check_devices(run.config)
    known = run.start()
    reused = known is not None and _still_good(run, known, observer)
    if known is None or not reused:
        known = _prepare(run, observer)
    elif run.summary() is None:
        open_parent_journal(run, known["policy"])  # the run goes on, or begins as a fork
    shown = "{model_type}, {parameters:,} parameters, {dtype} on {device}, {attention} attention, template {template}"
    observer.note("policy: " + shown.format(**known["policy"]))
    observer.prepared(known["accuracy"], tuple(known["interval"]))
    return {**known, "reused": reused}


def _prepare(run: RunFolder, observer: Observer) -> dict[str, Any]:
    began, config = time.perf_counter(), run.config
    use_threads(config.policy)
    wait_for_data(run.data_dir)
    task = build_task(config.task, run.base_dir, run.data_dir)
    for text in task.notes:
        observer.note(text)
    policy = starting_policy(config, task, run.base_dir)
    folder = run.path / "start"
    made_of = fingerprint(identity(config.policy), config.seed, task.hashes)
    save_checkpoint(policy, folder, stage="start", step=0, parent=None, fingerprint=made_of)
    open_parent_journal(run, policy.describe())
    with reward_suite(run) as suite:
        sampler = sampler_for(config, policy, folder, run.path)
        evaluation = evaluate(policy, all_prompts(task, "heldout"), suite, config, sampler=sampler)
    Journal(run.path / "journal.jsonl").metrics(0, {"accuracy": evaluation.accuracy})
    made = {"checkpoint": folder.name, **evaluation.record(), "seconds": time.perf_counter() - began}
    write_json(run.path / START_FILE, made | {"policy": policy.describe(), "content": read_record(folder).content})
    known = run.start()
    assert known is not None
    return known


def _still_good(run: RunFolder, known: dict[str, Any], observer: Observer) -> bool:
    """Whether the policy before any stage is whole, or no longer needed because the first stage is done."""
    if run.result(0) is not None or run.origin is not None:
        return True
    damaged = _damage(known)
    if damaged:
        observer.note(f"the policy before any stage is damaged ({damaged}); it is made again")
    return not damaged


def _damage(made: dict[str, Any]) -> str:
    """What is wrong with the checkpoint that a success record tells of and that is to be handed over, or nothing."""
    checkpoint = Path(made["checkpoint"])
    try:
        altered = ", ".join(damaged_files(checkpoint, for_resume=False))
    except UserError as error:
        return error.what
    return altered or ("" if content_of(checkpoint) == made["content"] else "another one is in its place")


def reward_suite(run: RunFolder, processes: int = 1) -> RewardSuite:
    """The run's rewards, their workers ready, for one of so many processes that score; what a reward prints goes to
    ``rewards.log``."""
    suite = RewardSuite(run.config.rewards, run.config.reward_workers, run.path / "rewards.log", processes)
    try:
        suite.wait_ready()
    except BaseException:
        suite.close()
        raise
    return suite


def starting_policy(config: PipelineConfig, task: TaskData, base_dir: Path) -> Policy:
    """From scratch, from a folder (relative to the configuration file), or from the Hub."""
    if config.policy.path is None:
        return create_policy(config.policy, texts(task), config.seed)
    local = base_dir / config.policy.path
    return load_policy(local if local.is_dir() else config.policy.path, config.policy)


def run_stage(run: RunFolder, index: int, parent: str, stage: Stage, observer: Observer) -> dict[str, Any]:
    """Train stage ``index`` from the checkpoint ``parent`` and return its success record, or the one it already has.

    The record is written last: a stage that was interrupted has none, and goes on from its newest whole checkpoint.

    Raises: StageFailed, UserError, Interrupted; a failure's reason is also written to the stage's folder.
    """
    config, total = run.config.stages[index], len(run.config.stages)
    if _done(run, index, observer):
        observer.note(f"stage {config.label} is done already: its checkpoint is reused")
        return {**(run.result(index) or {}), "reused": True}
    parent_record, task = verified_record(Path(parent), with_state=bool(config.carry)), load_task(run.data_dir)
    made_of = stage_identity(run.config, index, parent_record, task.hashes)
    folder = begin_stage(run, index, made_of)
    checkpoint = newest_whole(folder, parent_record.content, observer.note)
    observer.stage_started(config.label, index, total, config.steps, read_record(checkpoint).step if checkpoint else 0)
    journals = Journal(folder / "journal.jsonl"), Journal(run.path / "journal.jsonl")
    work = StageWork(run, index, Path(parent), parent_record, task, fingerprint(made_of), checkpoint)
    try:
        if run.config.launch.processes > 1:
            result = launched(run, index, stage, {"parent": parent, "resume_from": checkpoint}, observer)
        else:
            with reward_suite(run) as suite:
                result = train(work, stage, suite, journals[0], observer)
        attempts = len(run.attempts(index))
        journals[1].metrics(index + 1 + attempts * total, {"accuracy": result["accuracy_after"]})
        write_json(folder / RESULT_FILE, result)
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        if not killed:
            line = str(error).splitlines()[0] if str(error) else repr(error)
            with contextlib.suppress(OSError):  # a full disk may be the very reason
                write_json(folder / FAILURE_FILE, {"error": line, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        for journal in journals:
            journal.end("KILLED" if killed else "FAILED")
        raise
    finished = run.result(index)
    assert finished is not None
    observer.stage_finished(config.label, finished)
    interruption.leave_if_requested()
    return finished


def _done(run: RunFolder, index: int, observer: Observer) -> bool:
    """Whether the stage has a result from what is before it now, whose checkpoint is whole where it is still needed."""
    done, before = run.result(index), run.result(index - 1) if index else run.start()
    if done is None:
        return False
    if before is None or done["parent"] != before["content"]:
        run.set_aside(index)
        return False
    needed = index + 1 == len(run.config.stages) or run.result(index + 1) is None
    damaged = _damage(done) if needed else ""
    if damaged and "shared" in done:
        raise UserError(
            f"the checkpoint that this run shares with {done['shared']} is damaged",
            where=done["checkpoint"],
            got=damaged,
            fix=f"`gradus verify {done['shared']}` says what can be done; a new fork starts from what is there now",
        )
    if damaged:
        observer.note(f"the result of stage {done['name']} is damaged ({damaged}); it is made again")
        (run.stage_dir(index) / RESULT_FILE).unlink()
        discard_from(run.stage_dir(index), Path(done["checkpoint"]))
    return not damaged


@dataclass(frozen=True)
class StageWork:
    """What one stage works on and from where."""

    run: RunFolder
    index: int
    parent: Path
    parent_record: CheckpointRecord
    task: TaskData
    fingerprint: str
    """Hash of the stage's identity."""
    resume_from: Path | None
    """Its newest whole checkpoint, or None where it begins."""


def train(
    work: StageWork, stage: Stage, suite: RewardSuite, journal: Journal, observer: Observer, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Load, train, evaluate; returns the success record. Of several ranks, which all call it, one writes."""
    run, index, task = work.run, work.index, work.task
    config, parent = run.config.stages[index], work.parent_record.content
    use_threads(run.config.policy, ranks.size)
    started_up()
    policy = load_policy(work.parent, run.config.policy)
    if policy.template.digest != work.parent_record.template:
        raise UserError("the prompt template differs from the one the parent was trained with", where=str(work.parent))
    if run.config.policy.lora is not None:
        add_adapters(policy, run.config.policy.lora, run.config.seed + index)
    before = _accuracy_before(run, index, work.parent)
    tags = {"gradus.stage": config.label, "gradus.algorithm": config.stage, "gradus.variant": config.variant}
    tags |= {"gradus.parent_checkpoint": parent, "gradus.fingerprint": work.fingerprint}
    tags |= stage_lineage_tags(run, index) | ({"gradus.processes": str(ranks.size)} if ranks.size > 1 else {})
    params = flatten(config.model_dump(mode="json")) | {"seed": run.config.seed}
    journal.start(f"{run.name}: {index + 1} {config.label}", tags, params)  # all that a chart's legend shows
    if work.resume_from is None:
        journal_datasets(journal, run)
        journal.metrics(0, heldout_curves(before))
    sampler = sampler_for(run.config, policy, work.parent, run.path, index)
    trainer = Trainer(
        policy, stage, config, run.config, task, suite, journal, observer, folder=run.stage_dir(index),
        parent_folder=work.parent, parent=parent, fingerprint=work.fingerprint, resume_from=work.resume_from,
        carried=read_state(work.parent / RESUME) if config.carry else None, ranks=ranks, sampler=sampler,
    )  # fmt: skip
    checkpoint = trainer.train()
    after = evaluate(trainer.policy, all_prompts(task, "heldout"), suite, run.config, ranks, sampler)
    progress = trainer.progress
    journal.metrics(progress.step, heldout_curves(after.record()) | {"time/evaluate": after.seconds})
    tags = {"gradus.accuracy_before": f"{before['accuracy']:.4f}", "gradus.accuracy_after": f"{after.accuracy:.4f}"}
    end = trainer.switches.end
    journal.tags(tags | {"gradus.ended_by": end.rule if end is not None else "steps"})
    journal.table("samples", progress.step, sample_rows(after, run.config))
    journal.model(f"{run.name}-{config.label}", checkpoint, progress.step, {"heldout/accuracy": after.accuracy})
    journal.end("FINISHED")
    journal.sync()
    if ranks.leads:
        write_json(run.stage_dir(index) / HELDOUT_FILE, {"step": progress.step, "correct": after.by_prompt()})
    return {
        "name": config.label,
        "variant": config.variant,
        "steps": progress.step,
        "accuracy_before": before["accuracy"],
        "accuracy_after": after.accuracy,
        "interval": list(after.interval),
        "rollouts": progress.rollouts,
        "tokens": progress.tokens,
        "seconds": round(trainer.seconds, 3),
        "checkpoint": f"{CHECKPOINTS}/{checkpoint.name}",
        "algorithm": config.stage,
        "parent": parent,
        "carried": ["weights", "tokenizer", "template", *config.carry],
        "fingerprint": work.fingerprint,
        "content": read_record(checkpoint).content,
        "prompts": after.prompts,
        "verifier_errors": after.errors,
        "events": [asdict(event) for event in trainer.switches.events],
    }


def _accuracy_before(run: RunFolder, index: int, parent: Path) -> dict[str, Any]:
    """Accuracy of the parent, measured when it was made."""
    if index == 0:
        return run.start() or {}
    result = run.result(index - 1)
    assert result is not None and result["checkpoint"] == str(parent), "a stage starts from the stage before it"
    return {"accuracy": result["accuracy_after"], "interval": result["interval"]}


def finish(run: RunFolder) -> dict[str, Any]:
    """Write and return the run's summary; every stage must be done."""
    start, results = run.start(), [run.result(i) for i in range(len(run.config.stages))]
    assert start is not None and all(results), "the summary is written when every stage is done"
    ids = read_run_ids(run.path)
    stages: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        tracked = ids.get(run.stage_dir(index).name)
        entry: dict[str, Any] = {"mlflow_run_id": tracked, "events": [], **(result or {})}
        stages.append({key: entry[key] for key in SUMMARY_KEYS} | {"algorithm": entry["algorithm"]})
    summary = {
        "name": run.name,
        "seed": run.config.seed,
        "stages": stages,
        "accuracy_start": start["accuracy"],
        "accuracy_end": stages[-1]["accuracy_after"],
        "seconds": round(start["seconds"] + sum(stage["seconds"] for stage in stages), 3),
    }
    if run.summary() is None:
        journal = Journal(run.path / "journal.jsonl")
        accuracies = {f"accuracy/{stage['name']}": stage["accuracy_after"] for stage in stages}
        again = sum(len(run.attempts(index)) for index in range(len(stages)))
        journal.metrics(again, {"accuracy/start": summary["accuracy_start"]} | accuracies)
        journal.metrics(again, {"accuracy/end": summary["accuracy_end"], "time/total": summary["seconds"]})
        journal.tags({"mlflow.note.content": description(run, summary)})
        journal.end("FINISHED")
    write_json(run.path / SUMMARY_FILE, summary)
    return summary
