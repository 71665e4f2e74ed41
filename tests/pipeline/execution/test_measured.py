"""Which held-out prompts are answered after a stage, and what is compared with what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from small_pipeline import TASK, pipeline, write_task

from gradus.pipeline.execution.measured import asked_after, tasks_record
from gradus.pipeline.runs.task_accuracies import fell, pooled
from gradus.pipeline.tasks.several.build import build_tasks
from gradus.pipeline.training.evaluation import Evaluation
from gradus.pipeline.types import Prompt

TASKS = {"a": {**TASK, "heldout": 12}, "b": {**TASK, "heldout": 9}}


def asked(folder: Path, **evaluation: int) -> list[dict[str, int]]:
    """name -> prompts, after each of four stages on a, b, a and both."""
    stages = [{"stage": "dapo", "task": task} for task in ("a", "b", "a", {"a": 1, "b": 1})]
    config = pipeline(stages, task=None, tasks=TASKS, evaluation=evaluation)
    tasks = build_tasks(config.named_tasks, folder, folder / "data")
    return [dict(Counter(p.task for p in asked_after(config, index, tasks))) for index in range(4)]


def test_other_tasks_are_measured_as_often_and_as_much_as_asked(tmp_path: Path) -> None:
    write_task(tmp_path)
    assert asked(tmp_path) == [{"a": 12, "b": 9}] * 4
    assert asked(tmp_path, prompts=5) == [{"a": 12, "b": 5}, {"a": 5, "b": 9}, {"a": 12, "b": 5}, {"a": 12, "b": 9}]
    assert asked(tmp_path, every=2) == [{"a": 12}, {"a": 12, "b": 9}, {"a": 12}, {"a": 12, "b": 9}]
    assert asked(tmp_path, every=9)[:3] == [{"a": 12}, {"b": 9}, {"a": 12}]


def evaluation(correct: str) -> Evaluation:
    """Of task a, and of b, prompts that are answered correctly where there is a 1."""
    answers = [(Prompt(f"{n}", "?", "", task="ab"[n % 2]), "") for n in range(len(correct))]
    return Evaluation(0.0, answers, [float(one) for one in correct], [False] * len(correct))


def test_what_fell_is_told_by_the_prompts_that_both_were_asked() -> None:
    before, now = evaluation("11" * 8), evaluation("01" * 8)
    tasks = tasks_record(now, before.by_prompt())["tasks"]
    assert (tasks["a"]["accuracy"], tasks["b"]["accuracy"]) == (0.0, 1.0)
    assert tasks["a"]["fell"] == 0.5**8 and tasks["b"]["fell"] == 1.0 and fell(tasks) == ["a"]
    assert pooled(tasks)["accuracy"] == 0.5 and pooled(tasks, ["b"])["accuracy"] == 1.0
    half = {key: value for key, value in before.by_prompt().items() if int(key[2:]) < 8}
    assert tasks_record(now, half)["tasks"]["a"]["fell"] == 0.5**4
    assert tasks_record(now, {})["tasks"]["a"]["fell"] is None


def test_one_task_has_no_matrix() -> None:
    alone = Evaluation(0.0, [(Prompt("1", "?", ""), "")], [1.0], [False])
    assert tasks_record(alone, {}) == {}
