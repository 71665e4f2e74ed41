"""Which tasks a pipeline has, which of them a stage trains on, and how completions are judged there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from gradus.pipeline.config.graph.inputs import made_of
from gradus.pipeline.config.rewards import EvaluationConfig, RewardConfig
from gradus.pipeline.config.task import TaskOptions

if TYPE_CHECKING:
    from gradus.pipeline.config.stage import StageConfig, StageOptions

ONLY = ""
"""The name of the task where there is but one."""
MAIN = "task"
"""The name of the pipeline's own task where a stage brings another one."""


def key_of(config: Any, name: str) -> str:
    """The key at which a task stands in the configuration: ``task``, ``tasks.NAME`` or ``stages.LABEL.task``."""
    if name in (config.tasks or {}):
        return f"tasks.{name}"
    return f"stages.{name}.task" if name in [stage.label for stage in config.stages] else "task"


class Judgement(NamedTuple):
    """How completions of a task are judged."""

    rewards: list[RewardConfig]
    evaluation: EvaluationConfig

    @property
    def accuracy_reward(self) -> str:
        """Label of the component that decides whether a completion is correct."""
        return self.evaluation.reward or self.rewards[0].label


class AllTasks:
    """The part of :class:`PipelineConfig` that knows its tasks by name."""

    @property
    def named_tasks(self: Any) -> dict[str, Any]:
        """name -> task, of all tasks; the only one has the empty name."""
        named = dict(self.tasks or {})
        own = {stage.label: stage.task for stage in self.stages if isinstance(stage.task, TaskOptions)}
        if isinstance(self.task, TaskOptions):
            named = {MAIN if own else ONLY: self.task, **named}
        return named | own

    def shares(self: Any, stage: StageOptions) -> dict[str, float]:
        """name -> share, summing to 1, of the tasks that a stage trains on, or the stages do that it is made of."""
        chosen = self.task if stage.task is None else stage.task
        if stage.task is None and (sources := made_of(self.stages, stage)):
            own = [self.shares(source) for source in sources]
            names = dict.fromkeys(name for each in own for name in each)
            return {name: sum(each.get(name, 0.0) for each in own) / len(own) for name in names}
        if isinstance(chosen, TaskOptions):
            return {next(name for name, task in self.named_tasks.items() if task is chosen): 1.0}
        weights = {chosen: 1.0} if isinstance(chosen, str) else dict(chosen or {})
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def used_tasks(self: Any, stage: Any) -> list[str]:
        """The names of the tasks that a stage's result depends on: those it trains on, and those its guard watches."""
        watched = self.named_tasks if stage.guard is not None and stage.guard.tasks == "all" else ()
        return list(dict.fromkeys([*self.shares(stage), *watched]))

    def keeps_completions(self: Any, stage: StageConfig) -> frozenset[str]:
        """What other stages learn from of what this one writes: ``correct``, ``pairs``, both or nothing."""
        asked = [each.demonstrations for each in self.trained if each.demonstrations is not None]
        return frozenset(each.keep for each in asked if each.from_ == stage.label)

    def evaluated(self: Any, stage: Any) -> int:
        """The most prompts that an evaluation in a stage, or after it, answers."""
        heldout = sum(task.heldout for task in self.named_tasks.values())
        return max(heldout, sum(self.named_tasks[name].validation for name in self.used_tasks(stage)))

    def judgement(self: Any, task: str) -> Judgement:
        """How completions of this task are judged, stages apart."""
        options = self.named_tasks[task]
        return Judgement(options.rewards or self.rewards, options.evaluation or self.evaluation)

    @property
    def judgements(self: Any) -> dict[str, Judgement]:
        """name -> how completions are judged, of all tasks."""
        return {name: self.judgement(name) for name in self.named_tasks}

    @property
    def rewards_by_task(self: Any) -> dict[str, list[RewardConfig]]:
        """name -> rewards, of all tasks."""
        return {name: judgement.rewards for name, judgement in self.judgements.items()}

    def asked(self: Any, stage: StageOptions | None) -> dict[str, dict[str, Any]]:
        """name -> the fields of its prompts that say how a stage asks them, or an evaluation apart from any stage."""
        how: dict[str, dict[str, Any]] = {}
        own = self.shares(stage) if stage is not None else ()
        for name, task in self.named_tasks.items():
            given = dict(task.template_args or {})
            said: dict[str, Any] = {}
            if stage is not None and name in own:
                given |= stage.template_args or {}
                said = {"system": stage.system} if stage.system is not None else {}
            how[name] = {**said, **({"template_args": given} if given else {})}
        return how

    def data_options(self: Any) -> dict[str, Any]:
        """What the data depend on: ``{"task": options}``, or ``{"tasks": {name: options}}`` where there are several."""
        named = {name: task.of_data() for name, task in self.named_tasks.items()}
        return {"task": named[ONLY]} if ONLY in named else {"tasks": named}

    def in_stage(self: Any, stage: StageOptions) -> Any:
        """The configuration as it is in a stage: what the stage says of its tasks' rewards stands in the tasks."""
        if stage.rewards is None and stage.extra_rewards is None and stage.evaluation is None:
            return self
        own = self.shares(stage)

        def judged(name: str, task: Any) -> Any:
            if name not in own:
                return task
            rewards, evaluation = self.judgement(name)
            rewards = [*(stage.rewards or rewards), *(stage.extra_rewards or [])]
            return task.model_copy(update={"rewards": rewards, "evaluation": stage.evaluation or evaluation})

        return self.with_tasks(judged)

    def with_tasks(self: Any, change: Callable[[str, Any], Any]) -> Any:
        """The configuration with other options of its tasks; ``change`` gets each task's name and options."""
        names = {id(task): name for name, task in self.named_tasks.items()}

        def changed(task: Any) -> Any:
            return change(names[id(task)], task) if id(task) in names else task

        changes: dict[str, Any] = {"task": changed(self.task)}
        changes["tasks"] = self.tasks and {name: changed(task) for name, task in self.tasks.items()}
        changes["stages"] = [each.model_copy(update={"task": changed(each.task)}) for each in self.stages]
        return self.model_copy(update=changes)


def template_arguments(config: Any) -> list[dict[str, Any]]:
    """The different arguments of the chat template that prompts are asked with, beside the policy's."""
    asked = [config.asked(stage) for stage in (None, *config.stages)]
    given = [how["template_args"] for tasks in asked for how in tasks.values() if "template_args" in how]
    return [each for place, each in enumerate(given) if each not in given[:place]]


def check_labels(what: str, labels: Iterable[str]) -> None:
    """No label stands twice. Raises: ValueError."""
    seen = set[str]()
    for label in labels:
        if label in seen:
            raise ValueError(f"two {what}s are called {label!r}; give each its own `name`")
        seen.add(label)


def check_tasks(config: Any) -> None:
    """Every stage has a task that exists, and every task rewards. Raises: ValueError."""
    if config.task is None and not config.tasks:
        raise ValueError("the pipeline has no task: write `task`, or several by name under `tasks`")
    if isinstance(config.task, TaskOptions) and config.tasks:
        raise ValueError("`task` and `tasks` both declare tasks: move the one into `tasks`, under a name of its own")
    own = [stage.label for stage in config.stages if isinstance(stage.task, TaskOptions)]
    if taken := [name for name in own if name in (config.tasks or {})]:
        raise ValueError(f"the stage {taken[0]!r} has a task of its own, and `tasks` has one of that name: rename one")
    for where, chosen in [("task", config.task), *((f"stages.{s.label}.task", s.task) for s in config.stages)]:
        names = [chosen] if isinstance(chosen, str) else [] if isinstance(chosen, TaskOptions) else chosen or []
        for name in names:
            if name not in (config.tasks or {}):
                known = ", ".join(config.tasks or {}) or "none: there is no `tasks`"
                raise ValueError(f"`{where}` names the task {name!r}, which is none of `tasks`: {known}")
    for stage in config.stages:
        if not config.shares(stage):
            names = ", ".join(config.tasks or {})
            raise ValueError(f"stage {stage.label!r} does not say which task it trains on: set its `task`, to {names}")
    plain = config.policy.architecture is not None or config.policy.template == "plain"
    places: list[tuple[str, Any]] = [(key_of(config, name), task) for name, task in config.named_tasks.items()]
    for key, options in [*places, *((f"stages.{stage.label}", stage) for stage in config.stages)]:
        if plain and options.template_args:
            raise ValueError(f"`{key}.template_args` is for a chat template, and this policy has a plain one")
    for found in [config, *(config.in_stage(stage) for stage in config.stages)]:
        for name, judgement in found.judgements.items():
            _check_judgement(judgement, f"task {name!r}" if name else "pipeline")


def _check_judgement(judgement: Judgement, of: str) -> None:
    if not judgement.rewards:
        raise ValueError(f"the {of} has no rewards: nothing says which completions are good; write `rewards`")
    labels = [reward.label for reward in judgement.rewards]
    check_labels("reward", labels)
    chosen = judgement.evaluation.reward
    if chosen is not None and chosen not in labels:
        raise ValueError(f"evaluation.reward {chosen!r} is none of the rewards: {', '.join(labels)}")
