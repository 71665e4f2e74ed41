"""What a comparison compares: one configuration, the stages that all arms share, and every arm within the budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradus.flows.compare.plan.arms import STAGED, Arm, StageOptions, changed_stages, named_stages, with_own_changes
from gradus.flows.compare.plan.budget import UNLIMITED_STEPS, Budget, divide_budget, rollouts_per_step
from gradus.flows.compare.plan.sources import ArmSources, given_options, split
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.explain import Origin, explain
from gradus.pipeline.config.pipeline import model_for
from gradus.pipeline.stage import Stage

EVALUATIONS = 20
"""About how many evaluations on the validation prompts an arm's learning curve has."""
VALIDATION_PROMPTS = 300
"""How many prompts are kept for validation if the configuration keeps none."""
DEFAULT_ROLLOUTS = 40_000
"""What an arm is assumed to spend if the configuration has no stages after the shared ones."""


@dataclass(frozen=True)
class ComparisonPlan:
    """A configuration, split into the stages that all arms share and the arms."""

    config: PipelineConfig
    """All arms share everything in it except the stages after the shared ones."""
    path: Path
    before: tuple[StageOptions, ...]
    """The stages that all arms share."""
    arms: tuple[Arm, ...]
    budget: Budget
    rollouts: float
    """What the configuration's own stages after the shared ones spend."""
    stages: Mapping[str, Stage]
    notes: list[str] = field(default_factory=list)

    def base(self, seed: int) -> PipelineConfig:
        """The shared stages as a pipeline of their own; the last one is also evaluated at its end."""
        last = dict(self.before[-1])
        last["eval_every"] = last.get("eval_every") or last["steps"]
        return self._pipeline(seed, [*self.before[:-1], last], None)

    def arm(self, arm: Arm, seed: int) -> PipelineConfig:
        """An arm's whole pipeline: the shared stages and its own within the budget. Raises: UserError."""
        shared = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.base(seed).stages]
        own = named_stages(changed_stages(arm), {stage.get("name") or stage["stage"] for stage in shared})
        # the resolved options decide how many steps the budget pays for
        unlimited = [{**options, "eval_every": 1, "steps": UNLIMITED_STEPS} for options in own]
        resolved = self._pipeline(seed, [*shared, *unlimited], arm).stages[len(shared) :]
        parts = divide_budget(self.budget, arm.label, resolved, arm.shares, self.stages)
        for options, part, config in zip(own, parts, resolved, strict=True):
            between = self.rollouts_per_arm / EVALUATIONS / rollouts_per_step(config, self.stages)
            options |= {**part, "eval_every": max(1, round(between))}
        return self._pipeline(seed, [*shared, *own], arm)

    @property
    def rollouts_per_arm(self) -> float:
        """About how many rollouts an arm spends; what the configuration spends if the budget has another unit."""
        return self.budget.amount if self.budget.unit == "rollouts" else self.rollouts

    def _pipeline(self, seed: int, stages: Sequence[StageOptions], arm: Arm | None) -> PipelineConfig:
        raw = self.config.model_dump(mode="json", exclude={"stages"}) | {"seed": seed, "stages": list(stages)}
        raw["evaluation"] |= {"prompts": None}  # arms that train on different tasks are judged by the same prompts
        raw |= {"rewards": arm.rewards} if arm is not None and arm.rewards is not None else {}
        model = model_for(raw, [stage.config for stage in self.stages.values()], str(self.path))
        try:
            return model.model_validate(raw)
        except ValueError as error:
            raise _invalid(error, raw, model, arm) from None


def make_plan(
    loaded: Any, stages: Mapping[str, Stage], arms: str, budget: Budget | None, changes: Sequence[str], runs: Path
) -> ComparisonPlan:
    """The comparison that a command asks for; ``loaded`` is the checked configuration. Raises: UserError."""
    config, notes = loaded.config, list[str]()
    before, after = split(config, stages)
    if not after and STAGED in re.split(r"[,=]", arms):
        raise UserError("the configuration has no stages after SFT", where=str(loaded.path), fix="leave out `staged`")
    if not all(task.validation for task in config.named_tasks.values()):
        config = config.with_tasks(
            lambda _, task: task if task.validation else task.model_copy(update={"validation": VALIDATION_PROMPTS})
        )
        notes.append(
            f"the configuration keeps no validation prompts; {VALIDATION_PROMPTS} are taken for the learning curves"
        )
    own = Budget.of(after, stages)
    if budget is None and not after:
        raise UserError("the configuration has no stages after SFT that decide what to spend", fix="give --budget")
    sources = ArmSources(config, loaded.path, after, stages, runs)
    found = _distinct([sources.arm(text) for text in filter(None, map(str.strip, arms.split(",")))], arms)
    plan = ComparisonPlan(
        config,
        loaded.path,
        tuple(map(given_options, before)),
        tuple(with_own_changes(found, changes)),
        budget or own,
        own.amount or DEFAULT_ROLLOUTS,
        stages,
        notes,
    )
    if plan.budget.unit != "rollouts":
        notes.append(f"a learning rate that falls with the steps does not fall within a budget of {plan.budget.unit}")
    trained = [plan.arm(arm, config.seed) for arm in plan.arms]  # raises every error before anything is trained
    if len({tuple(sorted(each.shares(stage).items())) for each in trained for stage in each.stages}) > 1:
        notes.append(
            "stages train on different tasks: curves, early gains and worst drops are of each stage's own validation "
            "prompts, and say nothing of one arm against another; the accuracies at the end are on the same prompts"
        )
    return plan


def _distinct(found: list[Arm], arms: str) -> list[Arm]:
    """The arms, if there are at least two and their labels differ. Raises: UserError."""
    if len(found) < 2:
        raise UserError("a comparison needs two arms", where="--arms", got=arms, fix="such as --arms gfpo,staged")
    labels = [arm.label for arm in found]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        fix = f"give each a label of its own: `{repeated[0]}-2={repeated[0]}`"
        raise UserError(f"two arms are called `{repeated[0]}`", where="--arms", got=arms, fix=fix)
    return found


def _invalid(error: ValueError, raw: dict[str, Any], model: Any, arm: Arm | None) -> Exception:
    """The explanation of what is wrong with an arm's options."""
    from pydantic import ValidationError

    where = f"the arm `{arm.label}`" if arm is not None else "the stages that all arms share"
    if not isinstance(error, ValidationError):
        return UserError(str(error), where=where)
    return explain(error, raw, model, Origin(where, yaml_text.Document(raw, {}), {}))
