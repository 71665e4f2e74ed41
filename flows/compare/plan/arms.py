"""The arms of a comparison: what each one trains, within the same budget, from the same checkpoint.

An arm is written ``SOURCE`` or ``LABEL=SOURCE``, and SOURCE is one of

    staged       the configuration's own stages after SFT, in their order
    gfpo         one algorithm alone, also ``package.module:STAGE``, with the options of the configuration's stage of
                 that algorithm or, where it has none, with those that all its stages after SFT have in common
    other.yaml   the stages after SFT of another configuration: a file, a packaged one's name, or the name of a run
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gradus.flows.compare.plan.budget import MANY, Budget, divide_budget, rollouts_per_step
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.explain import Origin, explain
from gradus.pipeline.config.loading import find_config, load_config, packaged_configs
from gradus.pipeline.config.options import NAME_PATTERN, differences, identity
from gradus.pipeline.config.outside import StageLike, default_label, find_stage
from gradus.pipeline.config.pipeline import model_for
from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE
from gradus.pipeline.stage import Stage

STAGED, BASE, ALL = "staged", "base", "all"
"""The configuration's own chain; what the shared starting point is called; every arm, in ``--set-arm``."""
POINTS = 20
"""Evaluations on the validation prompts that an arm's learning curve has, about."""
VALIDATION = 300
"""Validation prompts where the configuration keeps none."""

StageOptions = dict[str, Any]
"""Options of one stage as they were given, defaults left out."""


@dataclass(frozen=True)
class Arm:
    """One arm: a chain of stages to train after the shared ones."""

    label: str
    source: str
    stages: tuple[StageOptions, ...]
    """Without ``name`` and with the steps of the configuration that they come from."""
    shares: tuple[float, ...] = (1.0,)
    """Of the budget, one a stage."""
    changes: tuple[str, ...] = ()
    """``KEY=VALUE`` of ``--set-arm`` and of tuning."""
    rewards: Any = None
    """Another configuration's rewards; None: the comparison's."""


@dataclass(frozen=True)
class Plan:
    """What a comparison compares: the configuration, split where the arms part, and the arms."""

    config: PipelineConfig
    """The configuration, of which every arm shares all but the stages."""
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
        """The shared part as a pipeline of its own; its last stage is evaluated where it ends."""
        last = dict(self.before[-1])
        last["eval_every"] = last.get("eval_every") or last["steps"]
        return self._pipeline(seed, [*self.before[:-1], last], None)

    def arm(self, arm: Arm, seed: int) -> PipelineConfig:
        """An arm's whole pipeline: the shared stages, and its own inside the budget. Raises: UserError."""
        shared = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.base(seed).stages]
        own = _named(with_changes(arm), {stage.get("name") or stage["stage"] for stage in shared})
        # what the options come to decides how many steps the budget pays for
        draft = self._pipeline(seed, [*shared, *({**options, "eval_every": 1, "steps": MANY} for options in own)], arm)
        parts = divide_budget(self.budget, arm.label, draft.stages[len(shared) :], arm.shares, self.stages)
        for options, part, config in zip(own, parts, draft.stages[len(shared) :], strict=True):
            between = self.usual / POINTS / rollouts_per_step(config, self.stages)
            options |= {**part, "eval_every": max(1, round(between))}
        return self._pipeline(seed, [*shared, *own], arm)

    @property
    def usual(self) -> float:
        """About as many rollouts as an arm spends; what the configuration spends where the budget is another unit."""
        return self.budget.amount if self.budget.unit == "rollouts" else self.rollouts

    def _pipeline(self, seed: int, stages: Sequence[StageOptions], arm: Arm | None) -> PipelineConfig:
        raw = self.config.model_dump(mode="json", exclude={"stages"}) | {"seed": seed, "stages": list(stages)}
        raw |= {"rewards": arm.rewards} if arm is not None and arm.rewards is not None else {}
        model = model_for(raw, [stage.config for stage in self.stages.values()], str(self.path))
        try:
            return model.model_validate(raw)
        except ValueError as error:
            raise _invalid(error, raw, model, arm) from None


def make_plan(
    loaded: Any, stages: Mapping[str, Stage], arms: str, budget: Budget | None, changes: Sequence[str], runs: Path
) -> Plan:
    """The comparison that a command asks for; ``loaded`` is the checked configuration. Raises: UserError."""
    config, notes = loaded.config, list[str]()
    before, after = split(config, stages)
    if not after and STAGED in re.split(r"[,=]", arms):
        raise UserError("the configuration has no stages after SFT", where=str(loaded.path), fix="leave out `staged`")
    if not config.task.validation:
        config = config.model_copy(update={"task": config.task.model_copy(update={"validation": VALIDATION})})
        notes.append(f"the configuration keeps no validation prompts; {VALIDATION} are taken for the learning curves")
    given, own = [_given(stage) for stage in after], Budget.of(after, stages)
    if budget is None and not after:
        raise UserError("the configuration has no stages after SFT that say what to spend", fix="give --budget")
    shared = tuple(_given(stage) for stage in before)
    plan = Plan(config, loaded.path, shared, (), budget or own, own.amount or 40_000, stages, notes)
    found = [_arm(text, plan, after, given, runs) for text in filter(None, map(str.strip, arms.split(",")))]
    if len(found) < 2:
        raise UserError("a comparison needs two arms", where="--arms", got=arms, fix="such as --arms gfpo,staged")
    labels = [arm.label for arm in found]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        fix = f"give each a label of its own: `{repeated[0]}-2={repeated[0]}`"
        raise UserError(f"two arms are called `{repeated[0]}`", where="--arms", got=arms, fix=fix)
    plan = replace(plan, arms=tuple(_with_own_changes(found, changes)))
    if plan.budget.unit != "rollouts":
        notes.append(f"a learning rate that falls with the steps does not fall within a budget of {plan.budget.unit}")
    for arm in plan.arms:
        plan.arm(arm, config.seed)  # every error before any compute
    return plan


def split(config: PipelineConfig, stages: Mapping[str, Stage]) -> tuple[list[StageConfig], list[StageConfig]]:
    """The stages that all arms share, those on demonstrations at the beginning, and the others. Raises: UserError."""
    on_demonstrations = [stages[each.stage].needs(each).completions == "demonstrations" for each in config.stages]
    count = on_demonstrations.index(False) if False in on_demonstrations else len(on_demonstrations)
    if not count:
        names = " or ".join(sorted(name for name, stage in stages.items() if _teaches(stage)))
        raise UserError(
            "the arms of a comparison start from one checkpoint, and no stage makes it",
            where="stages",
            got=f"the first stage is {config.stages[0].label}",
            expected=f"{names} first: all arms share it",
            fix=f"put a `stage: {names}` before the others",
        )
    if any(on_demonstrations[count:]):
        where = f"stages.{config.stages[on_demonstrations.index(True, count)].label}"
        raise UserError("a stage on demonstrations comes after others", where=where, fix="move it to the start")
    return list(config.stages[:count]), list(config.stages[count:])


def _teaches(stage: StageLike) -> bool:
    with_defaults = stage.config.model_construct(stage=stage.name, steps=1)
    return stage.needs(with_defaults).completions == "demonstrations"


def _given(stage: StageConfig) -> StageOptions:
    """What was said of a stage, without its name, which may be another arm's stage's, and its variant's preset."""
    said = stage.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    preset = getattr(stage, "presets", {}).get(said.get("variant"), {})
    return {key: value for key, value in said.items() if key not in preset or _plain(preset[key]) != value}


def _plain(value: Any) -> Any:
    """A value as a configuration's file has it."""
    return list(value) if isinstance(value, tuple) else value


def _arm(text: str, plan: Plan, after: Sequence[StageConfig], given: Sequence[StageOptions], runs: Path) -> Arm:
    """One entry of ``--arms``. Raises: UserError."""
    label, equals, source = text.partition("=")
    source = source if equals else text
    named = default_label(source) if ":" in source else Path(source).name
    label = label if equals else Path(source).stem if source.endswith((".yaml", ".yml")) else named
    if not re.fullmatch(NAME_PATTERN, label) or label in (BASE, ALL):
        expected = "a short name of letters, digits and dashes, neither `base` nor `all`"
        raise UserError("an arm cannot have this label", where="--arms", got=text, expected=expected)
    if source == STAGED:
        return Arm(label, source, tuple(given), _shares(after, plan.stages))
    stage = plan.stages.get(source) or find_stage(source, "--arms")
    if stage is not None:
        if _teaches(stage):
            fix = "leave it out; its accuracy is in the report"
            raise UserError(f"`{source}` is what all arms start from", where="--arms", got=text, fix=fix)
        same = next((options for options in given if options["stage"] == source), None)
        return Arm(label, source, (same or _in_common(source, given),))
    return _arm_of_config(label, source, plan, runs)


def _in_common(algorithm: str, given: Sequence[StageOptions]) -> StageOptions:
    """A stage of an algorithm that the configuration does not use: the general options on which its stages agree."""
    general = {field.alias or name for name, field in StageConfig.model_fields.items()} - {"stage", "steps", "name"}
    first = given[0] if given else {}
    agreed = {
        key: value for key, value in first.items() if key in general and all(s.get(key) == value for s in given[1:])
    }
    return {"stage": algorithm, "steps": 1, **agreed}


def _arm_of_config(label: str, source: str, plan: Plan, runs: Path) -> Arm:
    """Another configuration, or an existing run's, as an arm; the task must be the same. Raises: UserError."""
    configs = [stage.config for stage in plan.stages.values()]
    is_run = (runs / source / RUN_FILE).is_file()
    try:
        file = str(runs / source / CONFIG_FILE) if is_run else str(find_config(source))
    except UserError:
        known = {STAGED, *packaged_configs(), *(name for name, stage in plan.stages.items() if not _teaches(stage))}
        known |= {path.parent.name for path in runs.glob(f"[!.]*/{RUN_FILE}")}
        expected, fix = "`staged`, an algorithm, a configuration or a run", did_you_mean(source, known)
        raise UserError(f"unknown arm `{source}`", where="--arms", expected=expected, fix=fix) from None
    other = load_config(file, [], configs, plan.path.parent).config  # in whose folder the arms' runs look for code
    same = ("policy", "task", "sampling", "evaluation")
    ours, theirs = ({key: identity(getattr(config, key)) for key in same} for config in (plan.config, other))
    for config, said in ((plan.config, ours), (other, theirs)):
        said["task"].pop("validation", None)
        reward = next(each for each in config.rewards if each.label == config.accuracy_reward)
        said["accuracy reward"] = {key: value for key, value in identity(reward).items() if key != "weight"}
    if changed := differences(ours, theirs):
        raise UserError(
            f"the arm `{label}` has another task or model, so that its accuracy would mean something else",
            where=f"--arms {source}",
            got="\n            ".join(changed),
            expected=f"what {plan.path.name} has; only stages and the weights of rewards may differ",
            fix="compare it on its own, or align the two files",
        )
    _, after = split(other, plan.stages)
    if not after:
        raise UserError(f"the arm `{label}` has no stages after SFT", where=f"--arms {source}")
    rewards = other.model_dump(mode="json")["rewards"]
    own = None if rewards == plan.config.model_dump(mode="json")["rewards"] else rewards
    return Arm(label, source, tuple(map(_given, after)), _shares(after, plan.stages), rewards=own)


def _shares(after: Sequence[StageConfig], stages: Mapping[str, Stage]) -> tuple[float, ...]:
    """How a chain's own steps share what it spends, in rollouts."""
    spent = [Budget.of([stage], stages).amount for stage in after]
    return tuple(each / sum(spent) for each in spent)


def _with_own_changes(arms: Sequence[Arm], changes: Sequence[str]) -> list[Arm]:
    """The arms with their part of ``--set-arm ARM.KEY=VALUE``. Raises: UserError."""
    own: dict[str, list[str]] = {arm.label: [] for arm in arms}
    for change in changes:
        key, equals, _ = change.partition("=")
        label = next((each for each in (*own, ALL) if key.startswith(f"{each}.")), None)
        if not equals or label is None:
            near = did_you_mean(key.partition(".")[0], [*own, ALL])
            expected = "ARM.KEY=VALUE, such as gfpo.lr=5e-5, or staged.srpo.refresh=10; ARM `all` means every arm"
            raise UserError("this is no option of an arm", where=f"--set-arm {change}", expected=expected, fix=near)
        for each in own if label == ALL else (label,):
            own[each].append(change.removeprefix(f"{label}."))
    return [replace(arm, changes=(*arm.changes, *own[arm.label])) for arm in arms]


def with_changes(arm: Arm) -> list[StageOptions]:
    """The arm's stages as they shall be trained. ``STAGE.KEY=VALUE`` changes one of them, ``KEY=VALUE`` all.

    Raises: UserError.
    """
    stages = [dict(options) for options in arm.stages]
    names = [default_label(stage["stage"]) for stage in stages]
    for change in arm.changes:
        key, _, text = change.partition("=")
        place, dot, rest = key.partition(".")
        if dot and place not in names:
            where, fix = f"--set-arm {arm.label}.{change}", did_you_mean(place, names)
            raise UserError(f"the arm `{arm.label}` has no stage `{place}`", where=where, fix=fix)
        value = yaml_text.parse(text, f"--set-arm {arm.label}.{change}").data
        for stage in stages:
            if not dot or default_label(stage["stage"]) == place:
                stage[rest if dot else key] = value
    return stages


def _named(stages: Sequence[StageOptions], taken: set[Any]) -> list[StageOptions]:
    """A name for each stage that is not one of the shared ones'."""
    named = []
    for stage in stages:
        name, number = (base := default_label(stage["stage"])), 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        named.append({**stage, "name": name})
    return named


def _invalid(error: ValueError, raw: dict[str, Any], model: Any, arm: Arm | None) -> Exception:
    """What is wrong with an arm's options, in the user's words."""
    from pydantic import ValidationError

    where = f"the arm `{arm.label}`" if arm is not None else "the stages that all arms share"
    if not isinstance(error, ValidationError):
        return UserError(str(error), where=where)
    return explain(error, raw, model, Origin(where, yaml_text.Document(raw, {}), {}))
