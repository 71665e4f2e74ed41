"""The recipes of the package at toy size: a tiny model, made-up rows, small numbers; all else is the recipe's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradus.pipeline.common import yaml_text
from gradus.pipeline.config.loading import PACKAGED, LoadedConfig, load_config
from gradus.stages import discover

RECIPES = sorted(path.stem for path in (PACKAGED / "recipes").glob("*.yaml"))
ROWS, SHORTER = 24, 2048
"""Rows of a task, and what every limit is divided by."""
LARGEST = {"steps": 2, "prompts_per_step": 2, "group_size": 3, "minibatches": 2, "warmup": 1, "token_budget": 4096}
"""option of a stage -> its largest value."""
REACHED = {"reward": "length", "params": {"max": 1, "falloff": 400}}
"""A reward that a model which knows nothing gets more or less of, so that there is something to learn from."""


def toy_recipe(name: str, folder: Path, model: Path) -> LoadedConfig:
    """The recipe with this model, on rows that are written below ``folder``, with small numbers in their proportion."""
    raw = yaml_text.parse((PACKAGED / "recipes" / f"{name}.yaml").read_text(), name).data
    raw["policy"]["path"] = str(model)
    raw["rollouts"]["engine"], raw["launch"] = "transformers", {}
    for label, task in (raw.get("tasks") or {"task": raw["task"]}).items():
        _use_rows(task, folder / label)
    for sampling in [raw.get("sampling"), *(stage.get("sampling") for stage in raw["stages"])]:
        if sampling is not None:
            sampling["max_tokens"] = max(2, sampling["max_tokens"] // SHORTER)
    for stage in raw["stages"]:
        stage.update({key: min(most, stage[key]) for key, most in LARGEST.items() if key in stage})
        stage["extra_rewards"] = [REACHED]
        if "profile" in stage.get("prompts", {}):
            stage["prompts"]["profile"] = 2
        if stage.pop("until", None) is not None:  # a plateau is longer than these stages
            stage["eval_every"] = 1
    (folder / f"{name}.yaml").write_text(yaml_text.dump(raw))
    kinds = [stage.config for stage in discover().values()]
    return load_config(str(folder / f"{name}.yaml"), [], kinds, code_dir=PACKAGED / "recipes")


def _use_rows(task: dict[str, Any], folder: Path) -> None:
    """Let a task read made-up rows, with its own columns and split, in place of the Hub's."""
    task.pop("subset", None)
    task |= {"dataset": str(folder), "heldout": 4}
    if "validation" in task:
        task["validation"] = 4
    split = task.get("split", "train")
    (folder / "data").mkdir(parents=True)
    code = any(reward["reward"].startswith("code_tests:") for reward in task.get("rewards", ()))
    rows = [_row(task["columns"], number, code) for number in range(ROWS)]
    (folder / "data" / f"{split}-00000-of-00001.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _row(columns: dict[str, str], number: int, code: bool) -> dict[str, Any]:
    """A sum, in the form that the columns of the data set have; for code, its answer is tests."""
    question: Any = f"Calculate {number} + {number + 1}"
    answer = str(2 * number + 1)
    if code:
        answer = json.dumps({"inputs": [f"{number}\n"], "outputs": [answer]})
    if columns["question"] == "prompt":
        question = [{"role": "user", "content": question}]
    row: dict[str, Any] = {columns["question"]: question}
    *outer, last = columns["answer"].split(".")
    place = row
    for key in outer:
        place = place.setdefault(key, {})
    place[last] = answer
    return row
