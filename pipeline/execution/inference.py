"""Use a checkpoint without training: sample from it, or measure it again (``gradus sample`` and ``gradus eval``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig, SamplingConfig
from gradus.pipeline.config.tasks import template_arguments
from gradus.pipeline.execution.measured import tasks_record
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.thoughts import asked_thoughts
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.runs.checkpoint import RECORD_FILE, verified_record
from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder
from gradus.pipeline.tasks.several.build import load_tasks
from gradus.pipeline.training.evaluation import evaluate
from gradus.pipeline.types import Prompt


def find_run(path: Path, stage_configs: list) -> RunFolder:
    """The run whose folder, or one of whose checkpoints, ``path`` is. Raises: UserError where there is none."""
    for folder in (path.absolute(), *path.absolute().parents):
        if (folder / RUN_FILE).is_file():
            return RunFolder(folder, stage_configs)
    raise UserError(
        "this checkpoint lies in no run, so there is no task to evaluate it on",
        where=str(path),
        expected="a run folder, or a checkpoint inside one",
        fix="name a run, or a checkpoint that `gradus status NAME` lists",
    )


def latest_checkpoint(run: RunFolder) -> Path:
    """The checkpoint of the last stage that is done, or the policy before any stage. Raises: UserError without one."""
    done = [result for result in map(run.result, range(len(run.config.stages))) if result]
    folder = Path((done[-1] if done else run.start() or {}).get("checkpoint", run.path / "start"))
    if not (folder / RECORD_FILE).is_file():
        raise UserError(f"the run {run.name!r} has no checkpoint yet", where=str(run.path), fix="let a stage finish")
    return folder


def evaluate_checkpoint(path: Path, stage_configs: list) -> dict[str, Any]:
    """The held-out accuracy of a run's latest checkpoint, or of one checkpoint; ``path`` is the folder of either."""
    run = find_run(path, stage_configs)
    checkpoint = latest_checkpoint(run) if (path / RUN_FILE).is_file() else path
    record = verified_record(checkpoint)
    policy = load_policy(checkpoint, run.config.policy)
    config, stages = run.config, {stage.label: stage for stage in run.config.stages}
    stage = stages.get(record.stage)
    pipeline = config if stage is None else config.in_stage(stage)
    tasks = load_tasks(run.data_dir, config.named_tasks).asked(config.asked(stage))
    thoughts = asked_thoughts(policy.template.thoughts, policy.prompts, template_arguments(config))
    with RewardSuite(pipeline.rewards_by_task, config.reward_workers, thoughts=thoughts) as suite:
        evaluation = evaluate(policy, tasks.prompts("heldout"), suite, pipeline)
    return {
        "checkpoint": str(checkpoint),
        "stage": record.stage,
        "step": record.step,
        **evaluation.record(),
        **tasks_record(evaluation, {}),
        "errors": evaluation.errors,
        "problem": evaluation.problem(),
        "seconds": round(evaluation.seconds, 3),
    }


def sample_checkpoint(
    path: Path, question: str, count: int, options: SamplingConfig, seed: int = 0, system: str | None = None
) -> list[str]:
    """``count`` completions of one question, drawn with the seed. ``system``: what its task's system turn says."""
    policy = _any_policy(path)
    prompt = Prompt(id="prompt", question=question, answer="", system=system)
    return sample(policy, [prompt], count, options, DrawKey(seed, "sample", 0)).texts[0]


def _any_policy(path: Path) -> Policy:
    """The policy of a checkpoint, or of any folder or Hub id with a causal language model."""
    return load_policy(path, PolicyConfig(path=str(path)))
