"""What every stage leaves behind, however it makes its checkpoint: its journal, and its success record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.common.shown import shown_share
from gradus.pipeline.config.graph.inputs import parent_label
from gradus.pipeline.execution.measured import accuracy_before, asked_after, heldout_before, tasks_record
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.sampler import BUILT_IN, Sampler
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, CheckpointRecord, read_record
from gradus.pipeline.runs.description import flatten, journal_datasets, stage_lineage_tags
from gradus.pipeline.runs.run_folder import HELDOUT_FILE, RunFolder
from gradus.pipeline.runs.task_accuracies import fell
from gradus.pipeline.tasks.data import Tasks
from gradus.pipeline.tasks.prompts.answers import ANSWERS_FILE, write_answers
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.training.early_stopping import RuleEvent
from gradus.pipeline.training.evaluation import Evaluation, evaluate
from gradus.pipeline.training.metrics import heldout_curves, sample_rows


@dataclass(frozen=True)
class StageWork:
    """The inputs of one stage: its run, its parent checkpoint, its data, and the checkpoint to resume from."""

    run: RunFolder
    index: int
    parent: Path
    parent_record: CheckpointRecord
    tasks: Tasks
    fingerprint: str
    """Hash of the stage's identity."""
    resume_from: Path | None
    """The stage's newest undamaged checkpoint; None when the stage starts."""


@dataclass(frozen=True)
class Made:
    """The checkpoint that a stage hands over, and what it took to make it."""

    checkpoint: Path
    step: int
    seconds: float
    rollouts: int = 0
    tokens: int = 0
    events: list[RuleEvent] = field(default_factory=list)
    ended_by: str = ""
    """What ended the steps; empty where there were none."""


def start_journal(journal: Journal, work: StageWork, algorithm: str, ranks: Ranks = ALONE) -> None:
    """Open the stage's journal; a stage that begins to train also records its data and the parent's accuracy."""
    run, index = work.run, work.index
    config = run.config.stages[index]
    tags = {"gradus.stage": config.label, "gradus.algorithm": algorithm, "gradus.variant": config.variant}
    tags |= {"gradus.from": parent_label(run.config.stages, index)}
    tags |= {"gradus.parent_checkpoint": work.parent_record.content, "gradus.fingerprint": work.fingerprint}
    tags |= stage_lineage_tags(run, index) | ({"gradus.processes": str(ranks.size)} if ranks.size > 1 else {})
    params = flatten(config.model_dump(mode="json")) | {"seed": run.config.seed}
    journal.start(f"{run.name}: {index + 1} {config.label}", tags, params)  # a chart's legend shows the name alone
    if work.resume_from is None:
        journal_datasets(journal, run)
    if work.resume_from is None and config.trains:
        journal.metrics(0, heldout_curves(accuracy_before(run, index, run.config.shares(config))))


def conclude(
    work: StageWork,
    algorithm: str,
    made: Made,
    policy: Policy,
    suite: RewardSuite,
    tasks: Tasks,
    journal: Journal,
    observer: Observer,
    ranks: Ranks = ALONE,
    sampler: Sampler = BUILT_IN,
) -> dict[str, Any]:
    """Measure the policy that a stage hands over; returns the stage's success record.

    ``tasks``: as they are asked in the stage. Under torchrun every rank calls this; only the leading rank writes files.
    """
    run, index, parent = work.run, work.index, work.parent_record.content
    config = run.config.stages[index]
    pipeline, own = run.config.in_stage(config), run.config.shares(config)
    before = accuracy_before(run, index, own)["accuracy"]
    whole = evaluate(policy, asked_after(run.config, index, tasks), suite, pipeline, ranks, sampler)
    after = whole.of(own)
    if several := tasks_record(whole, heldout_before(run, index)):
        several["trained_on"] = list(own)
        for task in fell(several["tasks"]):
            observer.note(f"{config.label}: accuracy on {task} fell, p = {several['tasks'][task]['fell']:.1g}")
    _end_journal(journal, work, made, before, after, heldout_curves(after.record(), several))
    if problem := after.problem():
        observer.note(f"{config.label}: {problem}")
    answers = ""
    if ranks.leads:
        write_sealed(run.stage_dir(index) / HELDOUT_FILE, {"step": made.step, "correct": whole.by_prompt()})
        answers = write_answers(run.stage_dir(index) / ANSWERS_FILE, whole.answered())
    return {
        "name": config.label,
        "variant": config.variant,
        "steps": made.step,
        "accuracy_before": before,
        "accuracy_after": after.accuracy,
        "interval": after.interval and list(after.interval),
        "rollouts": made.rollouts,
        "tokens": made.tokens,
        "seconds": round(made.seconds, 3),
        "checkpoint": f"{CHECKPOINTS}/{made.checkpoint.name}",
        "algorithm": algorithm,
        "parent": parent,
        "carried": ["weights", "tokenizer", "template", *config.carry],
        "fingerprint": work.fingerprint,
        "content": read_record(made.checkpoint).content,
        "prompts": after.prompts,
        "answers": answers,
        "verifier_errors": after.errors,
        "events": [asdict(event) for event in made.events],
        **several,
    }


def _end_journal(
    journal: Journal, work: StageWork, made: Made, before: float | None, after: Evaluation, curves: dict[str, float]
) -> None:
    """Record the held-out accuracy, what ended the stage, some completions and the checkpoint."""
    run, step = work.run, made.step
    journal.metrics(step, curves | {"time/evaluate": after.seconds})
    tags = {"gradus.accuracy_before": shown_share(before, 4), "gradus.accuracy_after": shown_share(after.accuracy, 4)}
    journal.tags(tags | ({"gradus.ended_by": made.ended_by} if made.ended_by else {}))
    journal.table("samples", step, sample_rows(after, run.config))
    heldout = {name: value for name, value in curves.items() if name == "heldout/accuracy"}
    journal.model(f"{run.name}-{run.config.stages[work.index].label}", made.checkpoint, step, heldout)
    journal.end("FINISHED")
    journal.sync()
