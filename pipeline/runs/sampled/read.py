"""Reads what stages kept of the groups that they sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import StageConfig
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.run_paths import typed
from gradus.pipeline.runs.sampled.record import ROLLOUTS_FILE
from gradus.pipeline.stage import Stage
from gradus.pipeline.tasks.prompts.step_lines import step_lines

EQUATIONS = "equation_steps"
"""The reward of the library that asks of every equation whether it follows from those before it."""
LISTED = 12
"""Most steps that a message lists."""


def sampled_groups(
    run: RunFolder,
    stages: Mapping[str, Stage],
    label: str | None = None,
    step: int | None = None,
    prompt: str | None = None,
    best: int = 0,
    worst: int = 0,
) -> dict[str, Any]:
    """The kept groups of one step: of the last one of the last stage that has any, unless ``label`` and ``step`` say
    otherwise. ``prompt``: only those of the prompt whose id begins so, of every step; ``best``, ``worst``: only so
    many, with the highest and the lowest mean rewards, of every step.

    ``stages``: the known algorithms by name. Raises: UserError where there is nothing, with the reason.
    """
    index, groups = _of_stage(run, stages, label)
    steps = list(dict.fromkeys(group["step"] for group in groups))
    if step is None and prompt is None and not best and not worst:
        step = steps[-1]
    if step is not None and step not in steps:
        shown = [str(each) for each in steps]
        shown = shown if len(shown) <= LISTED else [*shown[: LISTED // 2], "...", *shown[-LISTED // 2 :]]
        raise UserError(
            f"no groups of step {step} were kept", where=f"--step {step}", expected=f"one of {', '.join(shown)}",
            fix=f"`tracking.rollouts_every` ({run.config.tracking.rollouts_every}) says how often some are",
        )  # fmt: skip
    found = [group for group in groups if step in (None, group["step"])]
    if prompt is not None:
        found = [group for group in found if group["prompt"].startswith(prompt)]
        if not found:
            fix = f"{typed(run, 'prompts')} has what is known of every prompt"
            raise UserError("no group of this prompt was kept", where=f"--prompt {prompt}", fix=fix)
    if best or worst:
        ordered = sorted((group for group in found if group["mean_reward"] is not None), key=lambda g: g["mean_reward"])
        low, high = ordered[:worst], ordered[max(0, len(ordered) - best) :] if best else []
        found = [*reversed(high), *(group for group in low if group not in high)]
    stage = run.config.stages[index]
    judged = [reward.reward for each in run.config.in_stage(stage).rewards_by_task.values() for reward in each]
    told = {"run": run.name, "stage": stage.label, "steps": steps, "equations": EQUATIONS in judged}
    return told | {"groups": found}


def _of_stage(run: RunFolder, stages: Mapping[str, Stage], label: str | None) -> tuple[int, list[dict[str, Any]]]:
    """A stage and its kept groups; without a label the last stage that has some. Raises: UserError."""
    given = None if label is None else run.stage_index(label, "--stage")
    places = [given] if given is not None else range(len(run.config.stages) - 1, -1, -1)
    for index in places:
        if found := [line for _, line in step_lines(run.made_in(index) / ROLLOUTS_FILE) if line is not None]:
            return index, found
    if given is not None:
        why = _nothing(run, run.config.stages[given], stages)
        raise UserError(
            f"there are no sampled groups of the stage `{label}` to show", where=f"--stage {label}", got=why
        )
    reasons = [f"{each.label}: {_nothing(run, each, stages)}" for each in run.config.stages]
    raise UserError(
        f"there are no sampled groups of the run {run.name!r} to show",
        where=str(run.path),
        got="\n            ".join(reasons),
        fix=f"{typed(run, 'status')} says what was done",
    )


def _nothing(run: RunFolder, stage: StageConfig, stages: Mapping[str, Stage]) -> str:
    """Why a stage has no sampled groups."""
    if not stage.trains:
        return "it is made from other checkpoints, and nothing is sampled for that"
    given = stages[stage.stage].needs(stage).completions
    if given != "policy":
        return f"it learns from {given} that are given, and samples nothing"
    options = run.config.tracking
    if not (options.rollouts_every and options.rollouts_groups):
        return "`tracking.rollouts_every` or `tracking.rollouts_groups` is 0, so that none are kept"
    index = run.stage_index(stage.label)
    done = run.result(index) is not None
    if done:
        return "it was trained by a version that kept none, or its file is gone or damaged"
    return "it has not taken a step yet" if not run.stage_dir(index).exists() else "it has kept none yet"
