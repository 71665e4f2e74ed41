"""The record of sampled groups: every so many steps some of a batch's groups, with all that was made of them.

It is a view: nothing depends on it. Its size is bounded, by the groups of a step and by the bytes of a group.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.rewards.ranking import order_PKK
from gradus.pipeline.tasks.prompts.step_lines import CHECK_BYTES, StepLines

if TYPE_CHECKING:
    from torch import Tensor

    from gradus.pipeline.config.pipeline import TrackingConfig
    from gradus.pipeline.types import Rollouts

ROLLOUTS_FILE = "rollouts.jsonl"
"""The name of the file, in a stage's folder."""
SHOWN_STEPS, SHOWN_COMPLETIONS = 20, 16
"""Steps of a stage, beside its first, and completions of one group of each that are shown in tracking at most: a store
takes them one by one."""
SHORTEST = 80
"""Characters that are left of a text at least, before whole completions are left out."""


class RolloutRecord(StepLines):
    """The record of a stage that trains. ``writes``: whether it samples, and this rank keeps what was sampled."""

    def __init__(
        self, path: Path, options: TrackingConfig, ranking: Sequence[str] = (), writes: bool = True, steps: int = 0
    ):
        """``ranking``: the keys by which the stage orders the completions of a group; without any, it is the reward;
        ``steps``: how many the stage may take."""
        self.every, self.groups, self.bytes = options.rollouts_every, options.rollouts_groups, options.rollouts_bytes
        super().__init__(path, writes and bool(self.every and self.groups))
        self.ranking = [*ranking] or ["reward"]
        self.shown_every = self.every * max(1, math.ceil(steps / max(1, self.every) / SHOWN_STEPS))

    def add(self, rollouts: Rollouts, weights: Tensor, step: int) -> list[dict[str, Any]]:
        """Keep groups of the batch that this step has trained on, where it is the step's turn; returns what of them
        tracking is to show too.

        ``weights``: [P, K] or [P, K, T], those that the stage gave; of a completion with one for each token the mean.
        """
        self.begin(step)
        if not self.writes or (step > 1 and step % self.every):
            return []
        size, count = len(rollouts.prompts), min(self.groups, len(rollouts.prompts))
        chosen = [
            place * size // count for place in range(count)
        ]  # in equal steps: each task of a mixture has its share
        described = _described(rollouts, weights, chosen, self.ranking)
        kept = [fitted({"step": step, **group}, self.bytes) for group in described]
        for group in kept:
            self.append(group)
        self.flush()
        return shown(kept) if step == 1 or step % self.shown_every == 0 else []


def shown(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first group whose rewards differ, or else the first; of a large one the best and the worst completions."""
    differing = (group for group in kept if len({each["reward"] for each in group["completions"]}) > 1)
    group = next(differing, kept[0])
    ordered = sorted(group["completions"], key=lambda each: (each["rank"] is None, each["rank"]))
    if len(ordered) > SHOWN_COMPLETIONS:
        ordered = ordered[: SHOWN_COMPLETIONS // 2] + ordered[-SHOWN_COMPLETIONS // 2 :]
    return [{**group, "completions": ordered}]


def _described(rollouts: Rollouts, weights: Tensor, groups: list[int], ranking: Sequence[str]) -> list[dict[str, Any]]:
    """These groups as plain data. A completion that could not be scored has no reward and no rank; a component that
    scored nothing of a group that has rewards is another task's."""
    assert rollouts.rewards_PK is not None and rollouts.correct_PK is not None
    mask, valid = rollouts.mask_PKT[groups].cpu(), rollouts.scored_PK[groups]
    lengths = mask.sum(-1)
    weights = weights[groups].float().cpu()
    if weights.dim() == 3:
        weights = (weights * mask).sum(-1) / lengths.clamp(min=1)
    rewards, components = rollouts.rewards_PK[groups], {n: v[groups] for n, v in rollouts.components.items()}
    ranks = 1 + order_PKK(ranking, rewards, components, lengths, valid).sum(1)  # how many are better, and itself
    for key in components.keys() & {*ranking}:  # what has no score of a key that others have one of is in no order
        missing = components[key].isnan()
        valid = valid & ~(missing & ~missing.all(-1, keepdim=True))
    columns = {
        "tokens": lengths.tolist(),
        "reward": rewards.where(rollouts.scored_PK[groups], math.nan).tolist(),
        "weight": weights.tolist(),
        "rank": ranks.float().where(valid, math.nan).tolist(),
        "truncated": rollouts.truncated_PK[groups].tolist(),
        "correct": rollouts.correct_PK[groups].tolist(),
    }
    scores = {name: (values.tolist(), values.isnan().all(-1)) for name, values in components.items()}
    found = list[dict[str, Any]]()
    for row, place in enumerate(groups):
        prompt, texts = rollouts.prompts[place], rollouts.texts[place]
        own = {n: values[row] for n, (values, none) in scores.items() if not (none[row] and valid[row].any())}
        completions = list[dict[str, Any]]()
        for at, text in enumerate(texts):
            given = {name: _number(column[row][at]) for name, column in columns.items()}
            given["rank"] = given["rank"] and int(given["rank"])
            completions.append(
                {"text": text, **given, "components": {n: _number(values[at]) for n, values in own.items()}}
            )
        known = [each["reward"] for each in completions if each["reward"] is not None]
        found.append({
            "group": place, "task": prompt.task, "prompt": prompt.id, "question": prompt.question,
            "answer": prompt.answer, "ranking": [*ranking], "size": len(texts),
            "correct": sum(each["correct"] for each in completions),
            "mean_reward": _number(sum(known) / len(known)) if known else None,
            "completions": completions,
        })  # fmt: skip
    return found


def _number(value: float | bool) -> float | bool | None:
    """A number with the digits that float32 has; None where it is none."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def fitted(group: dict[str, Any], most: int) -> dict[str, Any]:
    """A group whose line has ``most`` bytes at most: the middle of its longest texts is left out and, only where that
    will not do, its last completions, of which ``size`` still says how many there were."""
    longest, kept = most, len(group["completions"])
    while True:
        smaller = {
            **group,
            "question": without_middle(group["question"], longest),
            "answer": without_middle(group["answer"], longest),
            "completions": [_shortened(each, longest) for each in group["completions"][:kept]],
        }
        if len(json.dumps(smaller)) + CHECK_BYTES <= most or not longest:
            return smaller
        if longest > SHORTEST or not kept:
            longest = longest * 3 // 4
        else:
            kept //= 2


def _shortened(completion: dict[str, Any], longest: int) -> dict[str, Any]:
    text = without_middle(completion["text"], longest)
    return completion if text == completion["text"] else {**completion, "text": text, "cut": True}


def without_middle(text: str, longest: int) -> str:
    """A text with so many characters of its beginning and end; a line says how many are left out between them."""
    if len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]}\n[... {len(text) - 2 * head:,} characters left out ...]\n{text[len(text) - head :]}"
