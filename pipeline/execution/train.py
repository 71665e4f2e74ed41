"""Train one stage in this process: load the parent's policy, train, evaluate, and return the success record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.process import started_up
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.common.shown import shown_share
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.execution.measured import accuracy_before, asked_after, heldout_before, tasks_record
from gradus.pipeline.execution.other_policies import other_policies
from gradus.pipeline.execution.prompt_choice import demonstrated, earlier_records
from gradus.pipeline.policy.devices import settle_process
from gradus.pipeline.policy.fit import long_demonstrations
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.lora import add_adapters
from gradus.pipeline.policy.policy import TEMPLATE_FILE, Policy
from gradus.pipeline.policy.thoughts import stored_thoughts
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.factory import sampler_for
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, RESUME, CheckpointRecord, read_record
from gradus.pipeline.runs.description import flatten, journal_datasets, stage_lineage_tags
from gradus.pipeline.runs.run_folder import HELDOUT_FILE, RunFolder
from gradus.pipeline.runs.task_accuracies import fell
from gradus.pipeline.stage import Stage
from gradus.pipeline.tasks.data import Tasks
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.training.evaluation import Evaluation, evaluate
from gradus.pipeline.training.learner.state_files import read_state
from gradus.pipeline.training.metrics import heldout_curves, sample_rows
from gradus.pipeline.training.profile import profiled
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.training.trainer import Trainer

DEMONSTRATIONS = 1000
"""How many demonstrations are measured before a stage learns from them."""


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


def train(
    work: StageWork, stage: Stage, suite: RewardSuite, journal: Journal, observer: Observer, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Train the stage and evaluate it; returns its success record.

    Under torchrun every rank calls this; only the leading rank writes files.
    """
    run, index = work.run, work.index
    config, parent = run.config.stages[index], work.parent_record.content
    settle_process(run.config.policy, ranks.size)
    started_up()
    policy = _parent_policy(work)
    pipeline, own = run.config.in_stage(config), run.config.shares(config)
    before = accuracy_before(run, index, own)
    _start_journal(journal, work, stage, before, ranks)
    sampler = sampler_for(run.config, policy, work.parent, run.path, index)
    tasks = demonstrated(run, index, work.tasks).asked(run.config.asked(config))
    setup = profiled(Setup(
        policy, stage, config, pipeline, tasks.only(run.config.used_tasks(config)), suite, journal, observer,
        folder=run.stage_dir(index), earlier=earlier_records(run, index),
        parent_folder=work.parent, parent=parent, fingerprint=work.fingerprint, resume_from=work.resume_from,
        carried=read_state(work.parent / RESUME) if config.carry else None, ranks=ranks, sampler=sampler,
        others=other_policies(run, index, work.parent, policy),
    ))  # fmt: skip
    _look_at_given(setup)
    trainer = Trainer(setup)
    checkpoint, progress = trainer.train(), trainer.progress
    whole = evaluate(policy, asked_after(run.config, index, tasks), suite, pipeline, ranks, sampler)
    after = whole.of(own)
    if several := tasks_record(whole, heldout_before(run, index)):
        several["trained_on"] = list(own)
        for task in fell(several["tasks"]):
            observer.note(f"{config.label}: accuracy on {task} fell, p = {several['tasks'][task]['fell']:.1g}")
    curves = heldout_curves(after.record(), several)
    _end_journal(journal, work, trainer, checkpoint, before["accuracy"], after, curves)
    if problem := after.problem():
        observer.note(f"{config.label}: {problem}")
    if ranks.leads:
        write_sealed(run.stage_dir(index) / HELDOUT_FILE, {"step": progress.step, "correct": whole.by_prompt()})
    return {
        "name": config.label,
        "variant": config.variant,
        "steps": progress.step,
        "accuracy_before": before["accuracy"],
        "accuracy_after": after.accuracy,
        "interval": after.interval and list(after.interval),
        "rollouts": progress.rollouts,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "checkpoint": f"{CHECKPOINTS}/{checkpoint.name}",
        "algorithm": stage.name,
        "parent": parent,
        "carried": ["weights", "tokenizer", "template", *config.carry],
        "fingerprint": work.fingerprint,
        "content": read_record(checkpoint).content,
        "prompts": after.prompts,
        "verifier_errors": after.errors,
        "events": [asdict(event) for event in trainer.stopping.events],
        **{**several, **setup.finish(progress.step)},
    }


def _look_at_given(setup: Setup) -> None:
    """Before a stage learns from demonstrations or pairs, tell the user of those that completions could not be as long
    as. Raises: UserError where rows have no pairs."""
    if setup.needs.completions != "policy" and setup.resume_from is None:
        for task in setup.tasks.only(setup.shares).values():
            shown = task.prompts(task.train, range(min(DEMONSTRATIONS, len(task.train))))
            lacking = sum(not (prompt.rejected and prompt.demonstration) for prompt in shown)
            if setup.needs.completions == "pairs" and lacking:
                raise UserError(
                    f"the stage `{setup.config.label}` learns from pairs, which rows of its task do not have",
                    where=f"the task {task.name}" if task.name else "task",
                    got=f"{lacking:,} of the first {len(shown):,} prompts without a chosen or a rejected completion",
                    expected="format: preference, whose rows have both",
                    fix="name such data, or `demonstrations: {from: STAGE, keep: pairs}` of a stage that samples",
                )
            if told := long_demonstrations(setup.policy, shown, setup.pipeline.sampling.max_tokens):
                setup.observer.note(f"{task.name}: {told}" if task.name else told)


def _parent_policy(work: StageWork) -> Policy:
    """The policy that the stage starts from, with new adapters when LoRA is configured."""
    run, index = work.run, work.index
    policy = load_policy(work.parent, run.config.policy)
    if policy.template.digest != work.parent_record.template:
        raise UserError("the prompt template differs from the one the parent was trained with", where=str(work.parent))
    if run.config.policy.lora is not None:
        policy.adapters = add_adapters(policy.model, run.config.policy.lora, run.config.seed + index)
    return policy


def _start_journal(journal: Journal, work: StageWork, stage: Stage, before: dict[str, Any], ranks: Ranks) -> None:
    """Open the stage's journal; a stage that starts also records its data and the parent's accuracy."""
    run, index = work.run, work.index
    config = run.config.stages[index]
    tags = {"gradus.stage": config.label, "gradus.algorithm": stage.name, "gradus.variant": config.variant}
    tags |= {"gradus.parent_checkpoint": work.parent_record.content, "gradus.fingerprint": work.fingerprint}
    tags |= stage_lineage_tags(run, index) | ({"gradus.processes": str(ranks.size)} if ranks.size > 1 else {})
    params = flatten(config.model_dump(mode="json")) | {"seed": run.config.seed}
    journal.start(f"{run.name}: {index + 1} {config.label}", tags, params)  # a chart's legend shows the name alone
    if work.resume_from is None:
        journal_datasets(journal, run)
        journal.metrics(0, heldout_curves(before))


def _end_journal(
    journal: Journal,
    work: StageWork,
    trainer: Trainer,
    checkpoint: Path,
    before: float | None,
    after: Evaluation,
    curves: dict[str, float],
) -> None:
    """Record the held-out accuracy, what ended the stage, some completions and the checkpoint."""
    run, step, end = work.run, trainer.progress.step, trainer.stopping.end
    journal.metrics(step, curves | {"time/evaluate": after.seconds})
    tags = {"gradus.accuracy_before": shown_share(before, 4), "gradus.accuracy_after": shown_share(after.accuracy, 4)}
    journal.tags(tags | {"gradus.ended_by": end.rule if end is not None else "steps"})
    journal.table("samples", step, sample_rows(after, run.config))
    heldout = {name: value for name, value in curves.items() if name == "heldout/accuracy"}
    journal.model(f"{run.name}-{run.config.stages[work.index].label}", checkpoint, step, heldout)
    journal.end("FINISHED")
    journal.sync()


def reward_suite(run: RunFolder, start: Path, pipeline: PipelineConfig, processes: int = 1) -> RewardSuite:
    """The rewards of a run's pipeline, or of one as it is in a stage, with their workers started, for completions of
    the policy in the folder ``start``.

    ``processes`` is the number of processes that score at the same time and share the machine. What a reward prints
    goes to ``rewards.log`` in the run folder.
    """
    thoughts, log = stored_thoughts(start / TEMPLATE_FILE), run.path / "rewards.log"
    suite = RewardSuite(pipeline.rewards_by_task, run.config.reward_workers, log, processes, thoughts)
    try:
        suite.wait_ready()
    except BaseException:
        suite.close()
        raise
    return suite
