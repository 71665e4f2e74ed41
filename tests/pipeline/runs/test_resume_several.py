"""A run on several tasks: mixed, guarded, judged and asked differently from stage to stage, and killed on the way."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed_runs import KILL, TERM, assert_same, run_lives
from small_pipeline import TASK, pipeline

from gradus.pipeline.common import yaml_text
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.task_accuracies import matrix
from gradus.pipeline.tracking.journal import metric_history

STEPS = 6
GRADED = {"reward": "length", "params": {"max": 5, "falloff": 15}}  # one that a new policy earns in part
TASKS = {
    "sums": {**TASK, "validation": 8, "rewards": [GRADED], "evaluation": {"threshold": 0.5}},
    "more": {**TASK, "heldout": 10, "validation": 8, "rewards": [GRADED, {"reward": "equation_steps"}]},
}
STAGES = [
    {"stage": "sft", "task": "sums", "system": "Add."},
    {"stage": "dapo", "task": {"sums": 2, "more": 1}, "group_size": 3, "eval_every": 2, "handover": "best"},
    {"stage": "gfpo", "task": "more", "group_size": 3, "extra_rewards": [{"reward": "numeric_answer"}],
     "ranking": ["reward", "numeric_answer"], "eval_every": 2, "guard": {"tasks": "all", "risk": 0.4}},
    {"stage": "srpo", "variant": "paper", "task": {"more": 1, "sums": 1}, "group_size": 2, "async": 1,
     "rewards": [GRADED], "evaluation": {"threshold": 0.25}},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    stages = [{**stage, "steps": STEPS} for stage in STAGES]
    config = pipeline(stages, task=None, tasks=TASKS, rewards=[], checkpoints={"every_steps": 2})
    (folder / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> RunFolder:
    return run_lives(folder, "undisturbed", "-")


def test_each_task_is_measured_after_each_stage(undisturbed: RunFolder) -> None:
    rows = matrix(undisturbed)
    assert [row["after"] for row in rows] == ["start", "sft", "dapo", "gfpo", "srpo"]
    assert [row["trained"] for row in rows] == [[], ["sums"], ["sums", "more"], ["more"], ["more", "sums"]]
    assert all([each["prompts"] for each in row["tasks"].values()] == [12, 10] for row in rows)
    summary = undisturbed.summary()
    assert summary is not None and summary["tasks"] == rows
    result = undisturbed.result(2)
    assert result is not None and result["accuracy_after"] == rows[3]["tasks"]["more"]["accuracy"]
    assert result["accuracy_before"] == rows[2]["tasks"]["more"]["accuracy"]
    curves = metric_history(undisturbed.path / "journal.jsonl")
    assert [list(curves[f"accuracy/{name}"].values()) for name in ("sums", "more")] == [
        [row["tasks"][name]["accuracy"] for row in rows] for name in ("sums", "more")
    ]


def test_the_guard_looks_at_the_other_task_too(undisturbed: RunFolder) -> None:
    curves = metric_history(undisturbed.stage_dir(2) / "journal.jsonl")
    assert set(curves["validation/accuracy/sums"]) == set(curves["validation/accuracy/more"]) != set()
    assert not any(name.endswith("/sums") for name in metric_history(undisturbed.stage_dir(0) / "journal.jsonl")
                   if name.startswith("validation"))  # fmt: skip


def test_a_batch_has_its_tasks_rewards(undisturbed: RunFolder) -> None:
    both = metric_history(undisturbed.stage_dir(1) / "journal.jsonl")
    assert {"reward/length", "reward/equation_steps"} <= both.keys() and "reward/numeric_answer" not in both
    assert "reward/numeric_answer" in metric_history(undisturbed.stage_dir(2) / "journal.jsonl")


def test_a_run_that_was_killed_in_every_stage_is_the_same(folder: Path, undisturbed: RunFolder) -> None:
    chance = random.Random()
    lives = [
        f"{stage['stage']}:{chance.randrange(1, STEPS)}:{chance.random():.3f}:{how}"
        for stage in STAGES
        for how in (KILL, TERM)
    ]
    print("lives:", lives)  # shown when the test fails
    assert_same(undisturbed, run_lives(folder, "killed", *lives, "-"))


def test_a_change_of_one_tasks_rewards_concerns_the_stages_that_train_on_it(undisturbed: RunFolder) -> None:
    config = undisturbed.config
    assert [each.action for each in plan(undisturbed, config)] == ["reuse"] * 4
    other = config.with_tasks(
        lambda name, task: task.model_copy(update={"rewards": task.rewards[:1]}) if name == "more" else task
    )
    assert [each.action for each in plan(undisturbed, other)] == ["reuse", "run", "run", "run"]
    data = config.with_tasks(lambda name, task: task.model_copy(update={"heldout": 9}))
    assert [each.action for each in plan(undisturbed, data)] == ["run"] * 4
