"""Checks of a stage's options that need other parts of the configuration: rules that look at validation prompts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import closest
from gradus.pipeline.config.graph.inputs import ancestors, parent
from gradus.pipeline.config.stopping import Until
from gradus.pipeline.statistics.intervals import share_bounds

if TYPE_CHECKING:
    from gradus.pipeline.config.stage import StageConfig


def needs_validation(stage: StageConfig) -> str:
    """The first option of a stage that looks at the validation prompts, or nothing."""
    until, guard = stage.until or Until(), stage.guard
    wanted = {
        "handover: best": stage.handover == "best",
        "until.accuracy": until.accuracy is not None,
        "until.plateau": until.plateau is not None and until.plateau.of == "accuracy",
        "guard": guard is not None and guard.watch == "accuracy",
    }
    return next((name for name, is_wanted in wanted.items() if is_wanted), "")


def looks_at_samples(stage: StageConfig) -> str:
    """The first option of a stage that looks at rewards or entropy of what the stage samples, or nothing."""
    until, guard = stage.until or Until(), stage.guard
    wanted = {
        "until.entropy": until.entropy is not None,
        "until.uniform": until.uniform is not None,
        "until.plateau.of": until.plateau is not None and until.plateau.of == "reward",
        "guard.watch": guard is not None and guard.watch == "reward",
    }
    return next((name for name, is_wanted in wanted.items() if is_wanted), "")


def check_switching(stage: StageConfig, by_task: Mapping[str, int], trained: Collection[str]) -> None:
    """Every rule of a stage can come to act with the validation prompts of its tasks. Raises: ValueError.

    ``by_task``: those of each task that the stage trains on or its guard watches; ``trained``: the former.
    """
    validation = sum(by_task[task] for task in trained)
    name, until, guard = f"stage {stage.label!r}", stage.until or Until(), stage.guard
    if (wanted := needs_validation(stage)) and not stage.eval_every:
        raise ValueError(f"{name} has {wanted}: set its eval_every")
    if stage.eval_every and not validation:
        raise ValueError(f"{name} has eval_every: set task.validation, the prompts to evaluate on")
    if until.accuracy is not None and (best := share_bounds(validation, validation, until.errors)[0]) < until.accuracy:
        raise ValueError(
            f"{name} cannot reach until.accuracy: {until.accuracy}: with {validation} validation prompts the lower "
            f"bound is {best:.2f} even where all are right; lower it, or raise task.validation"
        )
    if until.plateau is not None:
        every = stage.eval_every if until.plateau.of == "accuracy" else 1
        if stage.steps // every < until.plateau.window:
            raise ValueError(
                f"{name} has until.plateau with a window of {until.plateau.window} measurements and makes only "
                f"{stage.steps // every} in its {stage.steps} steps; lower the window or eval_every"
            )
    if guard is not None and guard.watch == "accuracy" and 0.5**validation > guard.level(stage.steps, stage.eval_every):
        least = math.ceil(-math.log2(guard.level(stage.steps, stage.eval_every)))
        raise ValueError(
            f"{name} has a guard that could never be sure of a fall with {validation} validation prompts: set "
            f"task.validation to {least} at the very least; some hundreds see a fall by a tenth"
        )
    if guard is not None and guard.tasks == "all":
        if guard.watch == "reward":
            raise ValueError(f"{name} has a guard of all tasks, which goes by accuracy: leave its `watch` out")
        if without := [task for task, count in by_task.items() if not count]:
            raise ValueError(f"{name} has a guard of all tasks: set the validation of {without[0]}, to be watched")
    if guard is not None and guard.watch == "reward" and stage.handover == "best":
        raise ValueError(f"{name} has two ideas of its best: `handover: best` goes by accuracy, its guard by reward")


def profile_size(stage: StageConfig) -> int:
    """How often a stage answers each training prompt before its first step, for the prompt's pass rate; 0: never."""
    return (stage.prompts.profile if stage.prompts is not None else None) or 0


def goes_by_pass_rate(stage: StageConfig) -> dict[str, Any]:
    """key -> options, of those that choose prompts by pass rates, whoever finds them."""
    order = stage.order if stage.order is not None and stage.order.by == "pass_rate" else None
    prompts = stage.prompts if stage.prompts is not None and stage.prompts.pass_rate is not None else None
    asked = {"prompts": prompts, "curriculum": stage.curriculum, "order": order}
    return {key: options for key, options in asked.items() if options is not None}


def by_pass_rate(stage: StageConfig) -> dict[str, Any]:
    """key -> options, of those that choose prompts by what earlier stages found; none where a profile finds it."""
    return {} if profile_size(stage) else goes_by_pass_rate(stage)


def check_prompts(stages: Sequence[Any]) -> None:
    """What stages choose their prompts by comes from stages before them. Raises: ValueError."""
    labels = [stage.label for stage in stages]
    for index, stage in ((place, each) for place, each in enumerate(stages) if each.trains):
        if stage.order is not None and stage.curriculum is not None:
            raise ValueError(f"stages.{stage.label} has an `order` and a `curriculum`, which are two; leave one out")
        if profile_size(stage):
            _check_profile(stage)
        for key, chosen in by_pass_rate(stage).items():
            if not index or (chosen.from_ is None and not ancestors(stages, index)):
                where = "the first" if not index else "made from the policy before any stage: name one with its `from`"
                raise ValueError(
                    f"stages.{stage.label}.{key} goes by pass rates that earlier stages found, and {stage.label} is "
                    f"{where}; leave it out there"
                )
            if chosen.from_ is not None and chosen.from_ not in labels[:index]:
                why = "comes later" if chosen.from_ in labels[index + 1 :] else "is no stage before it"
                known = ", ".join(labels[:index])
                meant = closest(chosen.from_, labels[:index])
                raise ValueError(
                    f"stages.{stage.label}.{key}.from: {chosen.from_} {why}; expected one of {known}"
                    + (f"; {meant}" if meant else "")
                )


def _check_profile(stage: StageConfig) -> None:
    """Something goes by what a profile finds, and by nothing else. Raises: ValueError."""
    asked = goes_by_pass_rate(stage)
    if not asked:
        raise ValueError(
            f"stages.{stage.label}.prompts.profile finds pass rates that nothing goes by; give "
            "prompts.pass_rate, a curriculum or an order by pass_rate, or leave it out"
        )
    for key, chosen in asked.items():
        if chosen.from_ is not None:
            raise ValueError(
                f"stages.{stage.label}.{key}.from takes pass rates of {chosen.from_}, and prompts.profile finds them "
                "at the stage's start; leave one of them out"
            )


def check_carry(stages: Sequence[Any]) -> None:
    """A stage that carries something over starts from a stage that has it. Raises: ValueError."""
    for index, stage in enumerate(stages):
        place = parent(stages, index)
        if not stage.carry:
            continue
        if place is None:
            where = "is the first" if not index else "starts from the policy before any stage"
            raise ValueError(f"stage {stage.label!r} {where}: there is nothing to carry over")
        if not stages[place].trains:
            raise ValueError(
                f"stage {stage.label!r} starts from {stages[place].label!r}, which does not train: there is nothing to "
                "carry over; leave out its `carry`"
            )
