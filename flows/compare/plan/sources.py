"""Where the stages of an arm come from: the entries of ``--arms``, written ``SOURCE`` or ``LABEL=SOURCE``.

SOURCE is one of

    staged       the configuration's own stages after SFT, in their order
    gfpo         one algorithm alone, also ``package.module:STAGE``. It has the options of the configuration's stage of
                 that algorithm or, if there is none, those on which all its stages after SFT agree
    other.yaml   the stages after SFT of another configuration: a file, the name of a packaged one, or the name of a run
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradus.flows.compare.plan.arms import ALL, BASE, STAGED, Arm, StageOptions
from gradus.flows.compare.plan.budget import Budget
from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.graph.picture import check_chain
from gradus.pipeline.config.loading import find_config, load_config, packaged_configs
from gradus.pipeline.config.options import NAME_PATTERN, differences, identity
from gradus.pipeline.config.outside import StageLike, default_label, find_stage
from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE
from gradus.pipeline.stage import Stage


@dataclass(frozen=True)
class ArmSources:
    """What the entries of ``--arms`` may refer to."""

    config: PipelineConfig
    """The comparison's configuration."""
    path: Path
    """Its file."""
    after: Sequence[StageConfig]
    """Its stages after the shared ones."""
    stages: Mapping[str, Stage]
    runs: Path

    @cached_property
    def given(self) -> list[StageOptions]:
        """The options of ``after`` as they were given."""
        return [given_options(stage) for stage in self.after]

    def arm(self, text: str) -> Arm:
        """The arm that one entry of ``--arms`` describes. Raises: UserError."""
        label, equals, source = text.partition("=")
        source = source if equals else text
        named = default_label(source) if ":" in source else Path(source).name
        label = label if equals else Path(source).stem if source.endswith((".yaml", ".yml")) else named
        if not re.fullmatch(NAME_PATTERN, label) or label in (BASE, ALL):
            expected = "a short name of letters, digits and dashes, neither `base` nor `all`"
            raise UserError("an arm cannot have this label", where="--arms", got=text, expected=expected)
        if source == STAGED:
            return Arm(label, source, tuple(self.given), self._shares(self.after))
        stage = self.stages.get(source) or find_stage(source, "--arms")
        if stage is not None:
            if trains_on_demonstrations(stage):
                fix = "leave it out; its accuracy is in the report"
                raise UserError(f"`{source}` is what all arms start from", where="--arms", got=text, fix=fix)
            same = next((options for options in self.given if options["stage"] == source), None)
            return Arm(label, source, (same or self._agreed_options(source),))
        return self._arm_of_config(label, source)

    def _agreed_options(self, algorithm: str) -> StageOptions:
        """Options for an algorithm without a stage in the configuration: the general ones on which its stages agree."""
        general = {field.alias or name for name, field in StageConfig.model_fields.items()} - {"stage", "steps", "name"}
        first, *others = self.given or [{}]
        agreed = {
            key: value
            for key, value in first.items()
            if key in general and all(options.get(key) == value for options in others)
        }
        return {"stage": algorithm, "steps": 1, **agreed}

    def _arm_of_config(self, label: str, source: str) -> Arm:
        """Another configuration, or that of a run, as an arm; the task must be the same. Raises: UserError."""
        configs = [stage.config for stage in self.stages.values()]
        # the arms' runs look for code in the folder of the comparison's configuration
        other = load_config(str(self._file(source)), [], configs, self.path.parent).config
        ours, theirs = _compared(self.config), _compared(other)
        if changed := differences(ours, theirs):
            raise UserError(
                f"the arm `{label}` has another task or model, so that its accuracy would mean something else",
                where=f"--arms {source}",
                got="\n            ".join(changed),
                expected=f"what {self.path.name} has; only stages and the weights of rewards may differ",
                fix="compare it on its own, or align the two files",
            )
        _, after = split(other, self.stages)
        if not after:
            raise UserError(f"the arm `{label}` has no stages after SFT", where=f"--arms {source}")
        rewards = other.model_dump(mode="json")["rewards"]
        own = None if rewards == self.config.model_dump(mode="json")["rewards"] else rewards
        return Arm(label, source, tuple(map(given_options, after)), self._shares(after), rewards=own)

    def _file(self, source: str) -> Path:
        """The file of a configuration or a run. Raises: UserError."""
        if (self.runs / source / RUN_FILE).is_file():
            return self.runs / source / CONFIG_FILE
        try:
            return Path(find_config(source))
        except UserError:
            algorithms = (name for name, stage in self.stages.items() if not trains_on_demonstrations(stage))
            known = {STAGED, *packaged_configs(), *algorithms}
            known |= {path.parent.name for path in self.runs.glob(f"[!.]*/{RUN_FILE}")}
            expected, fix = "`staged`, an algorithm, a configuration or a run", did_you_mean(source, known)
            raise UserError(f"unknown arm `{source}`", where="--arms", expected=expected, fix=fix) from None

    def _shares(self, after: Sequence[StageConfig]) -> tuple[float, ...]:
        """The share of each stage in the rollouts that these stages spend."""
        spent = [Budget.of([stage], self.stages).amount for stage in after]
        return tuple(each / sum(spent) for each in spent)


def split(config: PipelineConfig, stages: Mapping[str, Stage]) -> tuple[list[StageConfig], list[StageConfig]]:
    """The stages on demonstrations at the beginning, which all arms share, and the others. Raises: UserError."""
    message = "a comparison is of chains, and these stages are none"
    fix = "leave out `from` and merges, or train the branches as runs of their own"
    check_chain(config.stages, message, "stages", fix)
    on_demonstrations = [stages[each.stage].needs(each).completions == "demonstrations" for each in config.stages]
    count = on_demonstrations.index(False) if False in on_demonstrations else len(on_demonstrations)
    if not count:
        names = " or ".join(sorted(name for name, stage in stages.items() if trains_on_demonstrations(stage)))
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


def given_options(stage: StageConfig) -> StageOptions:
    """The options that a configuration gives a stage, without its name and without the preset of its variant."""
    given = stage.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    preset = getattr(stage, "presets", {}).get(given.get("variant"), {})
    return {key: value for key, value in given.items() if key not in preset or _as_in_file(preset[key]) != value}


def trains_on_demonstrations(stage: StageLike) -> bool:
    """Whether the stage, with its defaults, trains on demonstrations instead of sampled completions."""
    with_defaults = stage.config.model_construct(stage=stage.name, steps=1)
    return stage.needs(with_defaults).completions == "demonstrations"


def _as_in_file(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _compared(config: PipelineConfig) -> dict[str, Any]:
    """What arms have in common: the policy, the tasks, and how completions are sampled and judged."""
    values: dict[str, Any] = {key: identity(getattr(config, key)) for key in ("policy", "sampling", "evaluation")}
    values |= identity(config.data_options())
    for task in values.get("tasks", {"": values.get("task")}).values():
        task.pop("validation", None)
    for name, judged in config.judgements.items():
        reward = next(each for each in judged.rewards if each.label == judged.accuracy_reward)
        kept = {key: value for key, value in identity(reward).items() if key != "weight"}
        values[f"accuracy reward {name}".strip()] = kept
    return values
