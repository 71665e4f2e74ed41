"""Prompts that leave a model too few positions for a completion: refused, left out, or cut from the left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.tasks import key_of
from gradus.pipeline.policy.fit import position_limit
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.tasks.data import TaskData, Tasks
from gradus.pipeline.tasks.several.build import folder_of, seal, told_of
from gradus.pipeline.tasks.shortening import Changes, changed, cut, long_prompts
from gradus.pipeline.types import Prompt


def all_fitted(tasks: Tasks, policy: Policy, config: PipelineConfig, data: Path | None) -> Tasks:
    """Like :func:`fitted`, of all tasks; ``data``: the folder with their data."""
    found = Tasks()
    for name, task in tasks.items():
        with told_of(key_of(config, name)):
            found[name] = fitted(task, policy, config, data and folder_of(data, name))
    if data is not None and found != tasks:
        seal(data, found)
    return found


def fitted(task: TaskData, policy: Policy, config: PipelineConfig, folder: Path | None) -> TaskData:
    """The task without prompts that are too long, as ``task.overlong_prompts`` says; ``folder``: where its data lie.

    Without a folder nothing is changed. Raises: UserError.
    """
    positions = position_limit(policy)
    if positions is None:
        return task
    max_tokens = max(option.max_tokens for option in config.samplings)
    first = task.prompts(task.train, [0])[0]
    limit, around = positions - max_tokens, len(policy.encode_prompt(_without_text(first)))
    found = [
        (split, row, prompt, length)
        for split, row, prompt in long_prompts(task, limit - around)
        if (length := len(policy.encode_prompt(prompt))) > limit
    ]
    if not found:
        return task
    longest, wanted = max(length for *_, length in found), config.named_tasks[task.name].overlong_prompts
    told = f"{len(found):,} prompts have more than {limit:,} tokens, the longest {longest:,}"
    if wanted == "error" or folder is None:
        raise UserError(
            "the model takes fewer tokens than the longest prompt and its completion have",
            where="sampling.max_tokens",
            got=f"{max_tokens:,}, after a prompt of {longest:,} tokens; {told}",
            expected=f"{positions:,} tokens at most together, the model's max_position_embeddings",
            fix="lower sampling.max_tokens, set task.overlong_prompts to drop or truncate_left, "
            "or choose a model with more positions",
        )
    changes: Changes = {}
    for split, row, prompt, _ in found:
        changes.setdefault(split, {})[row] = _cut_to(prompt, policy, limit) if wanted == "truncate_left" else None
    done = "cut from the left" if wanted == "truncate_left" else "left out"
    return changed(task, folder, changes, f"{told}; they are {done} (task.overlong_prompts)")


def _without_text(prompt: Prompt) -> Prompt:
    return replace(prompt, question="", turns=tuple({**turn, "content": ""} for turn in prompt.turns))


def _cut_to(prompt: Prompt, policy: Policy, limit: int) -> Prompt | None:
    """The prompt with as few characters cut as it takes; None where what remains is too long for itself."""
    least, most = 0, sum(len(turn["content"]) for turn in prompt.conversation if turn["role"] != "system")
    best = None
    while least < most:
        middle = (least + most) // 2
        shorter = cut(prompt, middle)
        if shorter is None or len(policy.encode_prompt(shorter)) <= limit:
            best, most = shorter or best, middle
        else:
            least = middle + 1
    return best
