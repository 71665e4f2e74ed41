"""What an orchestrator calls: prepare a run, train a stage, write the summary. Paths and plain data go in and out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipeline.checkpoint import read_record, save_checkpoint, verified_record
from pipeline.config import PipelineConfig
from pipeline.creation import create_policy
from pipeline.errors import UserError
from pipeline.evaluation import Evaluation, evaluate
from pipeline.files import read_json, write_json
from pipeline.journal import Journal
from pipeline.observer import Observer
from pipeline.policy import Policy, load_policy, use_threads
from pipeline.rewards import RewardSuite
from pipeline.runs import (
    FAILURE_FILE,
    RESULT_FILE,
    SUMMARY_FILE,
    SUMMARY_KEYS,
    RunFolder,
    fingerprint,
)
from pipeline.stage import Stage
from pipeline.tasks import TaskData, build_task, load_task, texts
from pipeline.tracking_client import read_run_ids
from pipeline.trainer import Trainer, all_prompts

START_FILE = "start.json"


def prepare(run: RunFolder, observer: Observer) -> dict[str, Any]:
    """Build the task's data and the policy before any stage, and measure that policy; what is already there is reused.

    Returns ``{"checkpoint": path, "accuracy": share, "interval": [low, high], "seconds": s, "reused": bool}``.
    """
    known = read_json(run.path / START_FILE)
    reused = known is not None
    if known is None:
        began, config = time.perf_counter(), run.config
        use_threads(config.policy)
        task = build_task(config.task, run.base_dir, run.path / "data")
        for text in task.notes:
            observer.note(text)
        policy = _starting_policy(config, task, run.base_dir)
        folder = run.path / "start"
        identity = fingerprint(config.policy.model_dump(mode="json"), config.seed, task.hashes)
        save_checkpoint(policy, folder, stage="start", step=0, parent=None, fingerprint=identity)
        _open_parent_journal(run, task, policy)
        with _suite(run) as suite:
            evaluation = evaluate(policy, all_prompts(task, "heldout"), suite, config)
        Journal(run.path / "journal.jsonl").metrics(0, {"accuracy": evaluation.accuracy})
        known = {"checkpoint": str(folder), **evaluation.record(), "seconds": time.perf_counter() - began}
        known["policy"] = policy.describe()
        write_json(run.path / START_FILE, known)
    elif run.summary() is None:
        Journal(run.path / "journal.jsonl").start(run.name)  # the run goes on
    shown = "{model_type}, {parameters:,} parameters, {dtype} on {device}, {attention} attention, template {template}"
    observer.note("policy: " + shown.format(**known["policy"]))
    observer.prepared(known["accuracy"], tuple(known["interval"]))
    return {**known, "reused": reused}


def _suite(run: RunFolder) -> RewardSuite:
    """The run's rewards, their workers ready; what a reward prints goes to ``rewards.log``."""
    suite = RewardSuite(run.config.rewards, log=run.path / "rewards.log")
    try:
        suite.wait_ready()
    except BaseException:
        suite.close()
        raise
    return suite


def _starting_policy(config: PipelineConfig, task: TaskData, base_dir: Path) -> Policy:
    """From scratch, from a folder (relative to the configuration file), or from the Hub."""
    if config.policy.path is None:
        return create_policy(config.policy, texts(task), config.seed)
    local = base_dir / config.policy.path
    return load_policy(local if local.is_dir() else config.policy.path, config.policy)


def run_stage(run: RunFolder, index: int, parent: str, stage: Stage, observer: Observer) -> dict[str, Any]:
    """Train stage ``index`` from the checkpoint ``parent`` and return its success record, or the one it already has.

    The record is written last: a stage that was interrupted has none, and starts again from its parent. What it left
    behind is kept as a numbered attempt.

    Raises: StageFailed, UserError; the reason is also written to the stage's folder.
    """
    config, done = run.config.stages[index], run.result(index)
    total = len(run.config.stages)
    if done is not None and done["parent"] == read_record(Path(parent)).content:
        observer.note(f"stage {config.label} is done already: its checkpoint is reused")
        return {**done, "reused": True}
    observer.stage_started(config.label, index, total, config.steps)
    _set_aside_earlier_attempt(run, index)
    folder = run.stage_dir(index)
    journal = Journal(folder / "journal.jsonl")
    try:
        with _suite(run) as suite:
            result = _train(run, index, Path(parent), stage, suite, journal, observer)
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        if not killed:
            line = str(error).splitlines()[0] if str(error) else repr(error)
            write_json(folder / FAILURE_FILE, {"error": line, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        for ended in (journal, Journal(run.path / "journal.jsonl")):
            ended.end("KILLED" if killed else "FAILED")
        raise
    write_json(folder / RESULT_FILE, result)
    Journal(run.path / "journal.jsonl").metrics(index + 1, {"accuracy": result["accuracy_after"]})
    observer.stage_finished(config.label, result)
    return result


def _train(
    run: RunFolder, index: int, parent: Path, stage: Stage, suite: RewardSuite, journal: Journal, observer: Observer
) -> dict[str, Any]:
    """Load, train, evaluate; returns the success record."""
    began, config, task = time.perf_counter(), run.config.stages[index], load_task(run.path / "data")
    use_threads(run.config.policy)
    parent_record = verified_record(parent)
    policy = load_policy(parent, run.config.policy)
    if policy.template.digest != parent_record.template:
        raise UserError("the prompt template differs from the one the parent was trained with", where=str(parent))
    before = _accuracy_before(run, index, parent)
    identity = fingerprint(config.model_dump(mode="json"), run.config.seed, parent_record.content, task.hashes)
    display = f"{index + 1} {config.label}"
    tags = {"gradus.stage": config.label, "gradus.algorithm": config.stage, "gradus.variant": config.variant}
    tags |= {"gradus.parent_checkpoint": parent_record.content, "gradus.fingerprint": identity}
    journal.start(display, tags, flatten(config.model_dump(mode="json")) | {"seed": run.config.seed})
    _journal_datasets(journal, run, task)
    journal.metrics(0, _heldout(before))
    trainer = Trainer(
        policy, stage, config, run.config, task, suite, journal, observer,
        checkpoints=run.stage_dir(index) / "checkpoints", parent=parent_record.content, fingerprint=identity,
    )  # fmt: skip
    checkpoint = trainer.train()
    after = evaluate(trainer.policy, all_prompts(task, "heldout"), suite, run.config)
    journal.metrics(trainer.step, _heldout(after.record()) | {"time/evaluate": after.seconds})
    journal.tags(
        {"gradus.accuracy_before": f"{before['accuracy']:.4f}", "gradus.accuracy_after": f"{after.accuracy:.4f}"}
    )
    journal.table("samples", trainer.step, _sample_rows(after, run.config))
    journal.model(f"{run.name}-{config.label}", checkpoint, trainer.step, {"heldout/accuracy": after.accuracy})
    journal.end("FINISHED")
    return {
        "name": config.label,
        "variant": config.variant,
        "steps": trainer.step,
        "accuracy_before": before["accuracy"],
        "accuracy_after": after.accuracy,
        "interval": list(after.interval),
        "rollouts": trainer.rollouts,
        "tokens": trainer.tokens,
        "seconds": round(time.perf_counter() - began, 3),
        "checkpoint": str(checkpoint),
        "algorithm": config.stage,
        "parent": parent_record.content,
        "fingerprint": identity,
        "content": read_record(checkpoint).content,
        "prompts": after.prompts,
        "verifier_errors": after.errors,
    }


def _heldout(measured: dict[str, Any]) -> dict[str, float]:
    """Held-out accuracy with its 95 % interval, as curves."""
    low, high = measured["interval"]
    return {"heldout/accuracy": measured["accuracy"], "heldout/accuracy_low": low, "heldout/accuracy_high": high}


def _accuracy_before(run: RunFolder, index: int, parent: Path) -> dict[str, Any]:
    """Accuracy of the parent, measured when it was made."""
    if index == 0:
        return read_json(run.path / START_FILE)
    result = run.result(index - 1)
    assert result is not None and result["checkpoint"] == str(parent), "a stage starts from the stage before it"
    return {"accuracy": result["accuracy_after"], "interval": result["interval"]}


def _set_aside_earlier_attempt(run: RunFolder, index: int) -> None:
    """Rename the folder of an unfinished attempt, so that the new one starts clean and nothing is overwritten."""
    folder = run.stage_dir(index)
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.attempt-{number}")).exists():
        number += 1
    if run.failure(index) is None and run.result(index) is None:
        Journal(folder / "journal.jsonl").end("KILLED")
    folder.rename(aside)


def _open_parent_journal(run: RunFolder, task: TaskData, policy: Policy) -> None:
    """The pipeline's own run in the tracking store."""
    journal, config = Journal(run.path / "journal.jsonl"), run.config
    order = " -> ".join(stage.label for stage in config.stages)
    params = flatten(config.model_dump(mode="json", exclude={"stages"}))
    params |= {f"policy.{name}": value for name, value in policy.describe().items()}
    journal.start(run.name, {"gradus.pipeline": config.name, "gradus.stages": order}, params)
    _journal_datasets(journal, run, task)
    journal.artifact(run.path / "config.yaml")


def _journal_datasets(journal: Journal, run: RunFolder, task: TaskData) -> None:
    """The data set's splits, by content hash."""
    source = str(getattr(run.config.task, "dataset", None) or getattr(run.config.task, "path", ""))
    for split, context in (("train", "training"), ("heldout", "evaluation")):
        journal.dataset(f"{source}-{split}", source, task.hashes[split][:16], task.sizes[split], context)


def _sample_rows(evaluation: Evaluation, config: PipelineConfig) -> list[dict[str, Any]]:
    """The first held-out prompts with what the policy answers and how each reward scores it."""
    rollouts, count = evaluation.rollouts, config.tracking.samples
    prompts, answers = rollouts.prompts[:count], rollouts.texts[:count]
    return [
        {
            "question": prompt.question,
            "completion": answers[row][0],
            "answer": prompt.answer,
            **{f"reward/{label}": values[row][0] for label, values in evaluation.components.items()},
        }
        for row, prompt in enumerate(prompts)
    ]


def finish(run: RunFolder) -> dict[str, Any]:
    """Write and return the run's summary; every stage must be done."""
    start, results = read_json(run.path / START_FILE), [run.result(i) for i in range(len(run.config.stages))]
    assert start is not None and all(results), "the summary is written when every stage is done"
    ids = read_run_ids(run.path)
    stages: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        entry: dict[str, Any] = {**(result or {}), "mlflow_run_id": ids.get(run.stage_dir(index).name)}
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
        journal.metrics(0, {"accuracy/start": summary["accuracy_start"]} | accuracies)
        journal.metrics(0, {"accuracy/end": summary["accuracy_end"], "time/total": summary["seconds"]})
        journal.tags({"mlflow.note.content": _description(summary)})
        journal.end("FINISHED")
    write_json(run.path / SUMMARY_FILE, summary)
    return summary


def _description(summary: dict[str, Any]) -> str:
    """The run's page in MLflow opens with this table (Markdown)."""
    lines = ["| stage | steps | held-out accuracy before | after (95 % interval) | seconds |", "|---|---|---|---|---|"]
    for stage in summary["stages"]:
        low, high = stage["interval"]
        after = f"{stage['accuracy_after']:.3f} ({low:.3f} to {high:.3f})"
        cells = (stage["name"], stage["steps"], f"{stage['accuracy_before']:.3f}", after, f"{stage['seconds']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested options as dotted keys, the way tracking lists parameters.

    >>> flatten({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c': '[2, 3]'}
    """
    if isinstance(value, dict) and value:
        return {
            k: v for key, inner in value.items() for k, v in flatten(inner, f"{path}.{key}" if path else key).items()
        }
    return {path: str(value) if isinstance(value, list | dict) else value}
