"""A stage that chooses its prompts by what earlier stages found out: whether it can, and what they found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import sha256
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.checks import by_pass_rate, profile_size
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.run_paths import typed
from gradus.pipeline.stage import Stage
from gradus.pipeline.tasks.data import Tasks
from gradus.pipeline.tasks.prompts.completions import taught
from gradus.pipeline.tasks.prompts.memory import checked_rows


def _sampling_before(config: PipelineConfig, stage: StageConfig, stages: Mapping[str, Stage]) -> list[str]:
    """The labels of the stages before this one that sample completions and score them."""
    before = itertools.takewhile(lambda each: each.label != stage.label, config.trained)
    return [each.label for each in before if stages[each.stage].needs(each).completions == "policy"]


def _ancestors(config: PipelineConfig, stage: StageConfig) -> list[str]:
    """The labels of the stages that a stage's policy comes from."""
    place = [each.label for each in config.stages].index(stage.label)
    return [config.stages[each].label for each in graph.ancestors(config.stages, place)]


def check_choice(config: PipelineConfig, stage: StageConfig, stages: Mapping[str, Stage]) -> None:
    """The stages that a stage chooses its prompts by score completions. Raises: UserError."""
    given = stages[stage.stage].needs(stage).completions
    if (samples := profile_size(stage)) and given != "policy":
        raise UserError(
            f"the stage `{stage.label}` learns from {given}, and a profile samples completions and scores them",
            where=f"stages.{stage.label}.prompts.profile",
            got=samples,
            expected="a stage that samples completions",
            fix="leave `profile` out; `prompts.pass_rate` goes by what earlier stages found",
        )
    every = _sampling_before(config, stage, stages)
    before = _ancestors(config, stage)
    for key, options in by_pass_rate(stage).items():
        named = [] if options.from_ is None else [options.from_]
        scoring = every if named else [label for label in every if label in before]
        if not scoring or not set(named) <= set(scoring):
            raise UserError(
                f"the stage `{stage.label}` chooses prompts by pass rates that no stage finds out",
                where=f"stages.{stage.label}.{key}" + (".from" if named else ""),
                got=f"{', '.join(named or before)}, which samples and scores nothing",
                expected=" or ".join(scoring) or "an earlier stage that samples completions",
                fix=f"name another stage, or leave `{key}` out",
            )
    if stage.curriculum is not None and stages[stage.stage].needs(stage).resample:
        raise UserError(
            f"the stage `{stage.label}` draws prompts in two ways at once",
            where=f"stages.{stage.label}.curriculum",
            got="a curriculum beside history resampling",
            expected="one of them",
            fix="leave the curriculum out, or switch history resampling off",
        )


def earlier_records(run: RunFolder, index: int) -> dict[str, Any]:
    """Label -> records of the stages that the policy of stage ``index`` comes from, the newest first, and then of
    others that the stage names; none where it does not go by them.

    Raises: UserError where they are damaged, or the one that is named has none.
    """
    stages, asked = run.config.stages, by_pass_rate(run.config.stages[index])
    found: dict[str, Any] = {}
    own = graph.ancestors(stages, index)
    others = [place for place in graph.inputs(stages, index) if place not in own]
    for before in [*reversed(own), *reversed(others)] if asked else []:
        label, result = stages[before].label, run.result(before) or {}
        again = f"{typed(run, 'resume', '--from', label)} trains the stage again"
        found[label] = checked_rows(run.memory(before), result.get("memory"), again)
        for key, options in asked.items():
            if options.from_ == label and not len(found[label]):
                raise UserError(
                    f"the stage `{label}` remembers nothing of its prompts",
                    where=f"stages.{stages[index].label}.{key}.from",
                    got=label,
                    expected="a stage that this version trained",
                    fix=again,
                )
    return found


def check_demonstrations(config: PipelineConfig, stage: StageConfig, stages: Mapping[str, Stage]) -> None:
    """A stage that learns from another's completions can, and the other one writes some before. Raises: UserError."""
    if stage.demonstrations is None:
        return
    writing = _sampling_before(config, stage, stages)
    takes = {"demonstrations": "correct", "pairs": "pairs"}.get(stages[stage.stage].needs(stage).completions)
    where, asked = f"stages.{stage.label}.demonstrations", stage.demonstrations
    if takes is None:
        raise UserError(
            f"the stage `{stage.label}` learns from no demonstrations",
            where=where,
            got=asked.from_,
            expected="a stage that learns from demonstrations or pairs",
            fix="leave it out",
        )
    if asked.keep != takes:
        raise UserError(
            f"the stage `{stage.label}` learns from other completions than it is to be given",
            where=f"{where}.keep",
            got=asked.keep,
            expected=takes,
            fix=f"write `keep: {takes}`",
        )
    if asked.from_ not in writing:
        raise UserError(
            f"the stage `{stage.label}` learns from completions that no earlier stage writes",
            where=f"{where}.from",
            got=asked.from_,
            expected=" or ".join(writing) or "an earlier stage that samples completions",
            fix="name another stage",
        )


def demonstrated(run: RunFolder, index: int, tasks: Tasks) -> Tasks:
    """The tasks with what a stage takes as its demonstrations: its tasks' own, or completions of an earlier stage.

    Raises: UserError where these were not kept, are damaged, or none was correct.
    """
    stage = run.config.stages[index]
    if (asked := stage.demonstrations) is None:
        return tasks
    place, where = run.stage_index(asked.from_, "--from"), f"stages.{stage.label}.demonstrations.from"
    kept, file = (run.result(place) or {}).get("completions"), run.completions(place)
    intact = bool(kept) and file.is_file() and sha256(file) == kept
    if kept != "" and not intact:
        raise UserError(
            f"the completions of the stage `{asked.from_}` " + ("are damaged" if kept else "were not kept"),
            where=where,
            got=str(file) if kept else "a stage that was trained when no later one asked for them",
            expected="what it wrote while it trained",
            fix=f"{typed(run, 'resume', '--from', asked.from_)} trains that stage again, and keeps them",
        )
    own = run.config.shares(stage)
    given = {name: taught(task, file, asked, where) if name in own else task for name, task in tasks.items()}
    return Tasks(given)
