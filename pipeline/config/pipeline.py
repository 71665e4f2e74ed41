"""The typed configuration: one YAML file is one pipeline. Every option is documented where it is declared.

Unknown keys are refused, values are never coerced silently, and nothing here imports torch: a configuration is checked
in a fraction of a second. Stages bring their own option classes; :func:`pipeline_model` joins them into one model.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field, create_model, model_validator

from gradus.pipeline.common.yaml_text import Path
from gradus.pipeline.config.checks import check_carry, check_prompts, check_switching
from gradus.pipeline.config.compute import LaunchConfig, RolloutConfig
from gradus.pipeline.config.explain import combined
from gradus.pipeline.config.graph.inputs import check_graph, is_chain
from gradus.pipeline.config.graph.merge import MergeConfig
from gradus.pipeline.config.options import RUNTIME, Name, Options
from gradus.pipeline.config.outside import default_label, option_classes
from gradus.pipeline.config.policy import PolicyConfig
from gradus.pipeline.config.rewards import EvaluationConfig, RewardConfig
from gradus.pipeline.config.stage import SamplingConfig, StageConfig
from gradus.pipeline.config.task import Task, TaskChoice
from gradus.pipeline.config.tasks import AllTasks, check_labels, check_tasks


class TrackingConfig(Options):
    """MLflow, and what is recorded there."""

    uri: str | None = None
    """MLflow tracking URI; default: an SQLite file in the runs folder."""
    experiment: str = "gradus"
    """MLflow experiment."""
    histogram_every: int = Field(20, ge=0)
    """Steps between histograms of the advantages; 0 draws none."""
    samples: int = Field(16, ge=0)
    """Completions in each stage's table of samples."""
    rollouts_every: int = Field(20, ge=0)
    """Steps between two of which sampled groups are kept to be read (`gradus rollouts`), beside the first; 0 keeps
    none."""
    rollouts_groups: int = Field(4, ge=0, le=64)
    """Groups that are kept of such a step."""
    rollouts_bytes: int = Field(32768, ge=2048)
    """Most bytes of such a group; of longer texts the middle is left out."""


class CheckpointConfig(Options):
    """When a stage writes a checkpoint that it can resume from, besides its last one."""

    every_seconds: float = Field(10.0, gt=0)
    """Seconds of training between two; longer where writing one takes more than a twentieth of that."""
    every_steps: int | None = Field(None, ge=1)
    """Steps between two, instead of seconds."""
    keep: int = Field(2, ge=2)
    """How many of the newest are kept, so that a damaged one costs little; the best one and the one that is handed over
    are always kept."""


class PipelineConfig(AllTasks, Options):
    """One pipeline: a policy is taken through stages, in order, on one task or on several."""

    name: Annotated[Name, RUNTIME]
    """Name of the pipeline; runs are named after it."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the new weights, the order of prompts and every sampled token."""
    policy: PolicyConfig
    """The model to train."""
    task: TaskChoice | None = None
    """Where prompts, answers and demonstrations come from; beside ``tasks``, the name of the one to train on, or a
    mixture, in stages that choose none."""
    tasks: dict[Name, Task] | None = None
    """Several tasks by name, for stages to choose from: ``task: math``, or ``task: {math: 0.7, code: 0.3}``."""
    rewards: list[RewardConfig] = Field(default_factory=list)
    """How completions are scored, where neither their task nor the stage says otherwise: a weighted sum."""
    reward_workers: Annotated[int | None, RUNTIME] = Field(None, ge=1)
    """Processes that score, beside the sampler, with rewards that can hang (math-verify, reasoning_gym, your own);
    default: one less than there are cores, four at most. Other rewards need none."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are drawn."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How accuracy is measured."""
    tracking: Annotated[TrackingConfig, RUNTIME] = TrackingConfig()
    """MLflow, and what is recorded there."""
    checkpoints: Annotated[CheckpointConfig, RUNTIME] = CheckpointConfig()
    """How often a stage writes a checkpoint that it can resume from."""
    rollouts: Annotated[RolloutConfig, RUNTIME] = RolloutConfig()
    """The engine that generates completions: built in, or vLLM."""
    launch: Annotated[LaunchConfig, RUNTIME] = LaunchConfig()
    """The processes, one for each GPU, that train each stage."""
    stages: Annotated[list[Any], Field(min_length=1)]
    """The stages, in order; any order and repetition works. Each starts from the one before it, or from where its
    ``from`` says."""

    @model_validator(mode="before")
    @classmethod
    def _number_repeated_stages(cls, raw: Any) -> Any:
        """Give every stage a distinct name: gfpo, gfpo-2, ..."""
        if not isinstance(raw, dict) or not isinstance(raw.get("stages"), list):
            return raw
        stages, taken = [], {s.get("name") for s in raw["stages"] if isinstance(s, dict)}
        for entry in raw["stages"]:
            if isinstance(entry, dict) and entry.get("name") is None and isinstance(entry.get("stage"), str):
                base, n = default_label(entry["stage"]), 1
                name = base
                while name in taken:
                    n += 1
                    name = f"{base}-{n}"
                taken.add(name)
                entry = {**entry, "name": name}
            stages.append(entry)
        return {**raw, "stages": stages}

    @model_validator(mode="after")
    def _consistent(self) -> PipelineConfig:
        check_labels("stage", [stage.label for stage in self.stages])
        check_graph(self.stages)
        check_tasks(self)
        check_prompts(self.stages)
        check_carry(self.stages)
        if self.rollouts.engine == "vllm" and self.launch.processes > 1:
            raise ValueError(
                "`rollouts.engine: vllm` starts vLLM in the training process, and `launch.processes` asks for several; "
                "take `vllm-server`"
            )
        if self.rollouts.external and self.abreast > 1:
            raise ValueError(
                "`rollouts.engine` is one engine that gets the weights of one stage at a time, and "
                "`launch.side_by_side` trains several at once: set that to 1"
            )
        for stage in self.trained:
            prompts = {name: self.named_tasks[name].validation for name in self.used_tasks(stage)}
            check_switching(stage, prompts, self.shares(stage))
            if stage.async_ and self.launch.processes > 1:
                raise ValueError(
                    f"stage {stage.label!r} samples ahead (`async: 1`), which one process alone can: several share the "
                    "sampling out already; leave it out, or set `launch.processes` to 1"
                )
        return self

    @property
    def trained(self) -> list[StageConfig]:
        """The stages that take steps of an algorithm; the others make their checkpoints otherwise."""
        return [stage for stage in self.stages if stage.trains]

    @property
    def abreast(self) -> int:
        """How many stages are trained at the same time at most; in a chain no two can be."""
        return 1 if is_chain(self.stages) else self.launch.side_by_side

    @property
    def samplings(self) -> list[SamplingConfig]:
        """Every way in which completions are drawn."""
        return list(self.placed_samplings.values())

    @property
    def placed_samplings(self) -> dict[str, SamplingConfig]:
        """key -> the way in which completions are drawn that stands there."""
        own = {f"stages.{stage.label}.sampling": stage.sampling for stage in self.trained if stage.sampling is not None}
        return {"sampling": self.sampling, **own}


def pipeline_model(stage_configs: Sequence[type[StageConfig]]) -> type[PipelineConfig]:
    """The pipeline with these stages' own options: what a YAML file is validated against, and its JSON schema."""
    union = functools.reduce(operator.or_, (*stage_configs, MergeConfig))
    entry = Annotated[union, Field(discriminator="stage")]
    field = (Annotated[list[entry], Field(min_length=1)], Field(description="The stages, in order."))  # type: ignore[valid-type]
    return create_model("Pipeline", __base__=PipelineConfig, __doc__=PipelineConfig.__doc__, stages=field)


_cached_model = functools.cache(pipeline_model)


def model_for(
    data: Any, stage_configs: Sequence[type[StageConfig]], file: str, where: Callable[[Path], str] | None = None
) -> type[PipelineConfig]:
    """The pipeline with the options of these stages and of those from outside that the raw data names.

    Equal stages give one and the same model, so that equal configurations compare equal. ``where`` says where the value
    at a path stands. Raises: UserError that names every stage that cannot be found.
    """
    where = where or (lambda path: f"{file}, {'.'.join(map(str, path))}")
    outside, problems = option_classes(data, (*stage_configs, MergeConfig), where)
    if problems:
        raise combined(problems, file)
    return _cached_model((*stage_configs, *outside))
