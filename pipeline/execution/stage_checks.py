"""Whether the stages of a pipeline can have what they need, seen from the configuration alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.checks import looks_at_samples
from gradus.pipeline.config.graph.inputs import parent_label
from gradus.pipeline.config.tasks import key_of
from gradus.pipeline.config.training.objective import PREVIOUS, START, chosen_policies
from gradus.pipeline.policy.checks import check_policy
from gradus.pipeline.stage import Needs, Stage

GIVEN = {"demonstrations": "demonstrations", "pairs": "pairs of a chosen and a rejected completion"}
"""Sources of completions that nobody samples -> what they are."""


def check_needs(config: PipelineConfig, stage: StageConfig, stages: Mapping[str, Stage]) -> None:
    """A stage has what it needs: demonstrations or pairs, the rewards that its ranking names, and sampling where it
    needs it. Raises: UserError.
    """
    from gradus.pipeline.rewards.ranking import check_keys

    needs = stages[stage.stage].needs(stage)
    if needs.completions in GIVEN:
        _check_given(config, stage, needs)
    judged = config.in_stage(stage).rewards_by_task
    labels = list(dict.fromkeys(reward.label for name in config.shares(stage) for reward in judged[name]))
    try:
        check_keys(list(needs.ranking), labels)
    except UserError as error:
        where = f"stages.{stage.label}.ranking"
        raise UserError(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from None


def _check_given(config: PipelineConfig, stage: StageConfig, needs: Needs) -> None:
    """A stage of given completions finds them in its tasks, and asks nothing of samples. Raises: UserError."""
    what = GIVEN[needs.completions]
    for name in config.shares(stage) if stage.demonstrations is None else ():
        task, key = config.named_tasks[name], key_of(config, name)
        if needs.completions == "pairs" and getattr(task, "format", "prompt") not in ("auto", "preference"):
            raise UserError(
                f"the stage `{stage.label}` learns from pairs and the task has none",
                where=key,
                got=getattr(task, "format", task.source),
                expected="format: preference, whose rows have a chosen and a rejected completion",
                fix="name such data, or `demonstrations: {from: STAGE, keep: pairs}` of a stage that samples groups",
            )
        if needs.completions == "demonstrations" and task.demonstrations == "none":
            raise UserError(
                f"the stage `{stage.label}` learns from demonstrations and the task has none",
                where=f"{key}.demonstrations",
                got="none",
                expected="column (a column with worked completions) or solver (arithmetic tasks of reasoning_gym)",
                fix=f"set {key}.demonstrations, or take the stage `{stage.label}` out",
            )
    adaptive = stage.entropy is not None and stage.entropy.target is not None
    asked = {"async": bool(stage.async_), "entropy.target": adaptive, "mask_sequences": bool(stage.mask_sequences)}
    asked |= {"mask_tokens": bool(stage.mask_tokens), "mask_truncated": bool(stage.mask_truncated)}
    asked |= {rule: True for rule in [looks_at_samples(stage)] if rule}
    if option := next((option for option, is_asked in asked.items() if is_asked), None):
        raise UserError(
            f"the stage `{stage.label}` samples nothing that `{option}` could go by",
            where=f"stages.{stage.label}.{option}",
            expected=f"options of the training alone, where the completions are {what}",
            fix="leave it out",
        )


def check_carry(config: PipelineConfig, stage: StageConfig, stages: Mapping[str, Stage]) -> None:
    """A critic is carried over only between two stages with critics of one kind. Raises: UserError."""
    if "critic" not in stage.carry:
        return
    labels = [each.label for each in config.stages]
    before = config.stages[labels.index(parent_label(config.stages, labels.index(stage.label)))]
    critics = [stages[each.stage].needs(each).critic for each in (before, stage)]
    lacking = [each.label for each, critic in zip((before, stage), critics, strict=True) if critic is None]
    kinds = {critic.kind for critic in critics if critic is not None}
    if lacking or len(kinds) > 1:
        raise UserError(
            f"the stage `{stage.label}` cannot carry a critic over from `{before.label}`",
            where=f"stages.{stage.label}.carry",
            got=f"{lacking[0]}, which has none"
            if lacking
            else "a prompt's critic and a token's, which are two networks",
            expected="two stages in a row that have a critic of one kind",
            fix="leave critic out of carry",
        )


def check_other_policies(config: PipelineConfig, stage: StageConfig) -> None:
    """The reference and the teachers of a stage exist, and there is one for each of its tasks. Raises: UserError."""
    tasks, labels = set(config.shares(stage)), [each.label for each in config.stages]
    earlier = list(itertools.takewhile(lambda label: label != stage.label, labels))
    for option, by_task in chosen_policies(stage).items():
        where = f"stages.{stage.label}.{option}"
        if "" not in by_task and by_task.keys() != tasks:
            raise UserError(
                f"`{option}` does not name one policy for each task of the stage",
                where=where,
                got=", ".join(by_task),
                expected=", ".join(sorted(tasks)) if tasks != {""} else "one policy: the pipeline has one task",
                fix="name each of the stage's tasks once, or one policy for all",
            )
        for name in dict.fromkeys(by_task.values()):
            if name in (START, PREVIOUS, *earlier):
                continue
            if name in labels:
                raise UserError(
                    f"the {option} of the stage `{stage.label}` is no stage before it",
                    where=where,
                    got=name,
                    expected=", ".join((START, PREVIOUS, *earlier)),
                    fix="name an earlier stage, or change the order of the stages",
                )
            if "/" not in name and not Path(name).is_dir():
                raise UserError(
                    f"the {option} of the stage `{stage.label}` is unknown",
                    where=where,
                    got=name,
                    expected=f"{', '.join((START, PREVIOUS, *earlier))}, a folder or a Hub id",
                    fix=did_you_mean(name, [*earlier, START, PREVIOUS]),
                )
            try:
                check_policy(config.policy.model_copy(update={"path": name, "architecture": None, "lora": None}))
            except UserError as error:
                raise UserError(
                    error.what, where=where, got=error.got, expected=error.expected, fix=error.fix
                ) from None
