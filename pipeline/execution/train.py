"""Train one stage in this process: load the parent's policy, train, evaluate, and return the success record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.process import started_up
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.tasks import template_arguments
from gradus.pipeline.execution.other_policies import other_policies
from gradus.pipeline.execution.prompt_choice import demonstrated, earlier_records
from gradus.pipeline.execution.work.recorded import Made, StageWork, conclude, start_journal
from gradus.pipeline.policy.devices import settle_process
from gradus.pipeline.policy.fit import long_demonstrations
from gradus.pipeline.policy.loading import load_policy, load_prompts
from gradus.pipeline.policy.lora import add_adapters
from gradus.pipeline.policy.policy import TEMPLATE_FILE, Policy
from gradus.pipeline.policy.thoughts import asked_thoughts, stored_thoughts
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.factory import sampler_for
from gradus.pipeline.runs.checkpoint import RESUME
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.stage import Stage
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.training.learner.state_files import read_state
from gradus.pipeline.training.profile import profiled
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.training.trainer import Trainer

DEMONSTRATIONS = 1000
"""How many demonstrations are measured before a stage learns from them."""


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
    start_journal(journal, work, stage.name, ranks)
    sampler = sampler_for(run.config, policy, work.parent, run.path, index)
    tasks = demonstrated(run, index, work.tasks).asked(run.config.asked(config))
    setup = profiled(Setup(
        policy, stage, config, run.config.in_stage(config), tasks.only(run.config.used_tasks(config)), suite, journal,
        observer, folder=run.stage_dir(index), earlier=earlier_records(run, index),
        parent_folder=work.parent, parent=parent, fingerprint=work.fingerprint, resume_from=work.resume_from,
        carried=read_state(work.parent / RESUME) if config.carry else None, ranks=ranks, sampler=sampler,
        others=other_policies(run, index, work.parent, policy),
    ))  # fmt: skip
    _look_at_given(setup)
    trainer = Trainer(setup)
    checkpoint = trainer.train()
    progress, end = trainer.progress, trainer.stopping.end
    made = Made(
        checkpoint, progress.step, progress.seconds, progress.rollouts, progress.tokens, trainer.stopping.events,
        ended_by=end.rule if end is not None else "steps",
    )  # fmt: skip
    result = conclude(work, stage.name, made, policy, suite, tasks, journal, observer, ranks, sampler)
    return result | setup.finish(progress.step)


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


def reward_suite(run: RunFolder, start: Path, pipeline: PipelineConfig, processes: int = 1) -> RewardSuite:
    """The rewards of a run's pipeline, or of one as it is in a stage, with their workers started, for completions of
    the policy in the folder ``start``.

    ``processes`` is the number of processes that score at the same time and share the machine. What a reward prints
    goes to ``rewards.log`` in the run folder.
    """
    thoughts, log = stored_thoughts(start / TEMPLATE_FILE), run.path / "rewards.log"
    if thoughts.pairs and (arguments := template_arguments(run.config)):
        thoughts = asked_thoughts(thoughts, load_prompts(start, run.config.policy), arguments)
    suite = RewardSuite(pipeline.rewards_by_task, run.config.reward_workers, log, processes, thoughts)
    try:
        suite.wait_ready()
    except BaseException:
        suite.close()
        raise
    return suite
