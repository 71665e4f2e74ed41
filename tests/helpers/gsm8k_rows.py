"""The GSM8K configuration of the package on a few made-up rows of the data set's form and a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paths import REPOSITORY
from tiny_policies import tiny_policy

from gradus.pipeline.config.loading import LoadedConfig, load_config
from gradus.stages import discover

SMALL = ["seed=1", "task.subset=null", "task.heldout=4", "task.validation=8", "sampling.max_tokens=8"]
STAGES = ("sft", "dapo", "gfpo", "srpo")


def loaded(folder: Path, *overridden: str, **architecture: Any) -> LoadedConfig:
    """The configuration, overridden so that it runs in ``folder`` on rows and a model that are written there."""
    (folder / "set").mkdir()
    (folder / "set" / "train.jsonl").write_text(rows(600, 40))
    (folder / "set" / "test.jsonl").write_text(rows(900, 40))
    policy = tiny_policy(**architecture)
    policy.model.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    overrides = [f"policy.path={folder / 'model'}", f"task.dataset={folder / 'set'}", *SMALL, *overridden]
    for stage in STAGES:
        overrides += [f"stages.{stage}.steps=1", f"stages.{stage}.prompts_per_step=2"]
    path = str(REPOSITORY / "configs" / "gsm8k-qwen.yaml")
    return load_config(path, overrides, [stage.config for stage in discover().values()])


def rows(first: int, count: int) -> str:
    """Rows as lines of JSON, numbered from ``first``."""
    written = []
    for n in range(first, first + count):
        worked = f"Ann has {n} pears and finds {n} more.\nThat is {n}+{n} = <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n:,}"
        written.append(json.dumps({"question": f"Ann has {n} pears. She finds as many. How many?", "answer": worked}))
    return "\n".join(written)
