"""A configuration at toy size. What it does, stage by stage, stays; what that costs is cut."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gradus.flows.tiny.model import write_model
from gradus.flows.tiny.rows import write_rows
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.task import FileTask, TableOptions
from gradus.pipeline.config.training.objective import PREVIOUS, START
from gradus.pipeline.stage import Stage

FOLDER = ".tiny"
"""Where models and rows lie, in the runs folder."""
HELDOUT, VALIDATION, TRAINING = 8, 12, 20
"""Prompts of a task."""
LONGEST = 24
"""Tokens of the longest completion; other limits are cut in proportion."""
LARGEST = {
    "steps": 4, "prompts_per_step": 4, "group_size": 8, "keep": 8, "minibatches": 2, "updates_per_batch": 2,
    "warmup": 1, "critic_warmup": 1, "eval_every": 1, "kl_every": 2, "refresh": 2, "token_budget": 16_384,
}  # fmt: skip
"""option of a stage -> its largest value."""
RULES = {"accuracy": 0.5, "window": 3}
PLATEAU = 4
"""Measurements of a plateau, and the largest values of other rules that end a stage."""
NUDGE = {"reward": "length", "name": "tiny", "weight": 0.1, "params": {"max": 1, "falloff": 400}}
"""A reward that a model which knows nothing gets more or less of, so that there is something to learn from."""
SHOWN = 5
"""Names of tasks in the line about what was swapped."""
KEPT = ("system", "template_args", "template", "plain_template", "special_tokens_in_questions", "threads", "lora")
"""Options of the policy that another model takes, too."""


def make_tiny(config: PipelineConfig, stages: Mapping[str, Stage], runs: Path) -> tuple[PipelineConfig, str]:
    """The configuration at toy size, and a line about what was swapped. Its model and rows are written below ``runs``.

    Raises: UserError where what is left of the configuration makes no sense any more.
    """
    folder, given = (runs / FOLDER).absolute(), _given(config, stages)
    changed = config.with_tasks(lambda name, task: _task(config, name, task, given.get(name, ""), folder))
    data = changed.model_dump(mode="json")
    data |= {"name": f"{config.name[:59]}-tiny", "rollouts": {}, "launch": {}}
    data["tracking"]["uri"] = None
    _swap_models(data, config, folder)
    share = max(1.0, max(each.max_tokens for each in config.samplings) / LONGEST)
    _cut_sampling(data["sampling"], share)
    for stage, options in zip(config.stages, data["stages"], strict=True):
        if stage.trains:
            samples = stages[stage.stage].needs(stage).completions not in ("demonstrations", "pairs")
            _cut_stage(options, share, samples)
    try:
        tiny = type(config).model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or config.name
        fix = "leave --tiny out, or try a smaller configuration of your own (docs/recipes.md)"
        raise UserError("this makes no sense at toy size", where=where, got=problem["msg"], fix=fix) from None
    return tiny, _told(config, tiny)


def _given(config: PipelineConfig, stages: Mapping[str, Stage]) -> dict[str, str]:
    """task -> what its stages take from it in place of samples: ``demonstrations`` or ``pairs``."""
    found: dict[str, str] = {}
    for stage in config.trained:
        kind = stages[stage.stage].needs(stage).completions
        if kind in ("demonstrations", "pairs"):
            found |= {name: max(kind, found.get(name, "")) for name in config.shares(stage)}
    return found


def _swap_models(data: dict[str, Any], config: PipelineConfig, folder: Path) -> None:
    """In place of every model a tiny one, each with weights of its own."""
    number, known = itertools.count(), {START, PREVIOUS, *(stage.label for stage in config.stages)}
    written: dict[str, str] = {}
    asking = (config.policy, *config.named_tasks.values(), *config.stages)
    arguments = sorted({name for each in asking for name in each.template_args or {}} - {"tools"})

    def swapped(name: Any) -> Any:
        if isinstance(name, dict):
            return {task: swapped(each) for task, each in name.items()}
        if isinstance(name, list):
            return [swapped(each) for each in name]
        if name is None or name in known:
            return name
        if name not in written:
            path = folder / "models" / "-".join(["model", str(seed := next(number)), *arguments])
            write_model(path, seed, arguments)
            written[name] = str(path)
        return written[name]

    policy = {key: data["policy"][key] for key in KEPT} | {"path": swapped(config.policy.path or ""), "device": "cpu"}
    if config.policy.architecture is not None:
        policy["template"] = "plain"
    if policy["lora"] is not None:
        policy["lora"] |= {"rank": min(4, policy["lora"]["rank"]), "targets": "auto"}
    data["policy"] = policy
    for stage, options in zip(config.stages, data["stages"], strict=True):
        options |= {option: swapped(options[option]) for option in stage.other_policies}


def _task(config: PipelineConfig, name: str, task: Any, given: str, folder: Path) -> Any:
    """A task with few prompts: generated ones where they were generated, otherwise made-up rows."""
    counts = {"heldout": HELDOUT, "validation": VALIDATION if task.validation else 0}
    if not isinstance(task, TableOptions):
        return task.model_copy(update={**counts, "size": TRAINING})
    own = [stage.rewards or [] for stage in config.stages if name in config.shares(stage)]
    judged = itertools.chain(config.rewards_by_task[name], *own)
    orders = {stage.order.by for stage in config.trained if stage.order} - {"length", "pass_rate"}
    read = write_rows(folder / "rows", name, task, given, judged, sorted(orders), sum(counts.values()) + TRAINING)
    kept = {key: value for key, value in task.model_dump().items() if key in TableOptions.model_fields}
    shown = {"demonstrations": "column"} if given == "demonstrations" else {}
    return FileTask.model_validate(kept | counts | read | shown)


def _cut_stage(options: dict[str, Any], share: float, samples: bool) -> None:
    for key, most in LARGEST.items():
        if options.get(key) is not None:
            options[key] = _at_most(options[key], most)
    if options["sampling"] is not None:
        _cut_sampling(options["sampling"], share)
    if samples:
        options["extra_rewards"] = [*(options["extra_rewards"] or []), NUDGE]
    prompts, until = options["prompts"], options["until"]
    if prompts is not None:
        prompts["profile"] = prompts["profile"] and 2
        # A model that knows nothing solves nothing: what is never solved stays, or no prompt would be left.
        prompts["pass_rate"] = prompts["pass_rate"] and [0.0, prompts["pass_rate"][1]]
    if (options["demonstrations"] or {}).get("keep") == "correct":
        options["demonstrations"] = None
    if until is not None:
        until |= {key: _at_most(until[key], most) for key, most in RULES.items() if until[key] is not None}
        if until["plateau"] is not None:
            until["plateau"]["window"] = PLATEAU


def _cut_sampling(options: dict[str, Any], share: float) -> None:
    for key in ("max_tokens", "min_tokens"):
        options[key] = options[key] and max(2, round(options[key] / share))
    options |= {"token_budget": min(options["token_budget"], 65_536), "ban": None}


def _at_most(value: Any, most: float) -> Any:
    return [_at_most(each, most) for each in value] if isinstance(value, list) else min(value, most)


def _told(config: PipelineConfig, tiny: PipelineConfig) -> str:
    """What was swapped, in one line."""
    names = [name or "the task" for name, task in tiny.named_tasks.items() if isinstance(task, TableOptions)]
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more tasks" if len(names) > SHOWN else "")
    data = f"made-up rows for {shown}" if names else "few prompts"
    return (
        f"tiny: a new model of 0.1 million weights in place of {config.policy.path or 'the new one'}, {data}, at most "
        f"{LARGEST['steps']} steps of {LARGEST['prompts_per_step']} prompts, completions of at most {LONGEST} tokens "
        "and a small reward for short ones, the built-in sampler on the CPU, one process. It shows that everything "
        "runs, and nothing about results."
    )
