"""The accuracy of every task after every stage: measured, stored, and compared with what it was before."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.task_accuracies import pooled
from gradus.pipeline.statistics.drops import paired_drop
from gradus.pipeline.tasks.data import Tasks
from gradus.pipeline.training.evaluation import Evaluation
from gradus.pipeline.types import Prompt


def tasks_record(whole: Evaluation, before: dict[str, bool]) -> dict[str, Any]:
    """The part of a success record on each task: accuracy, interval, number of prompts, and ``fell``, the p-value of
    "no worse than before the stage" (McNemar's exact test on the same prompts), None where that is not known. Empty
    where there is one task.
    """
    by_task = whole.by_task()
    if list(by_task) == [""]:
        return {}
    now = whole.by_prompt()
    for name, record in by_task.items():
        both = [key for key in now if key.startswith(f"{name}/") and key in before]
        pairs = [(before[key], now[key]) for key in both]
        record["fell"] = paired_drop([old for old, _ in pairs], [new for _, new in pairs]) if pairs else None
    return {"tasks": by_task}


def asked_after(config: PipelineConfig, index: int, tasks: Tasks) -> list[Prompt]:
    """The held-out prompts that are answered after a stage: all of the tasks that it trains on; of the others as many,
    and after as few stages, as ``evaluation`` says."""
    own, wanted = config.shares(config.stages[index]), config.evaluation
    due = not graph.readers(config.stages, index) or (index + 1) % (wanted.every or 1) == 0
    prompts: list[Prompt] = []
    for name, task in tasks.items():
        count = len(task.heldout)
        if name not in own:
            count = min(count, wanted.prompts or count) if due else 0
        prompts += task.prompts(task.heldout, range(count))
    return prompts


def heldout_before(run: RunFolder, index: int) -> dict[str, bool]:
    """id of a held-out prompt -> whether the policy that a stage starts from answered it right, as last measured."""
    known = dict((run.start() or {}).get("correct", {}))
    for earlier in graph.lineage(run.config.stages, index):
        known |= run.heldout(earlier) or {}
    return known


def accuracy_before(run: RunFolder, index: int, tasks: Collection[str]) -> dict[str, Any]:
    """The held-out accuracy on these tasks of the policy that a stage starts from, as last measured."""
    made = [run.start() or {}, *(run.result(earlier) or {} for earlier in graph.lineage(run.config.stages, index))]
    known: dict[str, Any] = {name: record for each in made for name, record in each.get("tasks", {}).items()}
    if known:
        return pooled(known, tasks)
    return {"accuracy": made[-1]["accuracy_after" if len(made) > 1 else "accuracy"], "interval": made[-1]["interval"]}
