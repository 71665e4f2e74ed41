"""A pipeline with branches as a Prefect flow: one after the other, side by side, and with a branch that fails."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from dry_execution import Rehearsal
from flow_runs import api, artifacts, flow_run, task_states, work
from small_pipeline import STAGE_CONFIGS, pipeline

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.runs.run_folder import RunFolder

BRANCHES = [
    {"stage": "sft"},
    {"stage": "dapo", "name": "math", "group_size": 2},
    {"stage": "dapo", "name": "code", "from": "sft", "group_size": 2},
    {"stage": "merge", "name": "soup", "of": ["math", "code"]},
]
LABELS = ["prepare", "sft", "math", "code", "soup"]


def open_run(folder: Path, name: str, most: int = 2) -> RunFolder:
    config = pipeline(BRANCHES, launch={"side_by_side": most})
    return RunFolder.create(folder, config, name, folder / "tiny.yaml", STAGE_CONFIGS)


def test_branches_are_tasks_one_after_the_other(staged: Any, tmp_path: Path) -> None:
    run, execution = open_run(tmp_path, "chained", most=1), Rehearsal()
    summary = staged.run_staged(run.path, Observer(), work(run, execution))
    assert execution.order == LABELS and summary == execution.finish(run)
    record = flow_run(run)
    assert task_states(record["id"], 5) == dict.fromkeys(LABELS, "Completed")
    drawn = artifacts(record["id"])["chained-stages"]["description"].split("```")[1]
    assert drawn.splitlines()[1:] == ["start", "└── sft", "    ├── math", "    │   └── soup = math + code",
                                        "    └── code"]  # fmt: skip


def test_branches_are_tasks_that_overlap(staged: Any, tmp_path: Path) -> None:
    run, together = open_run(tmp_path, "abreast"), threading.Barrier(2, timeout=120)
    execution = Rehearsal(math=together.wait, code=together.wait)
    summary = staged.run_staged(run.path, Observer(), work(run, execution))
    assert summary == execution.finish(run) and execution.order[-1] == "soup"
    record = flow_run(run)
    assert record["state_name"] == "Completed"
    assert task_states(record["id"], 5) == dict.fromkeys(LABELS, "Completed")
    found = api("/task_runs/filter", {"flow_runs": {"id": {"any_": [record["id"]]}}})
    times = {each["name"]: (each["start_time"], each["end_time"]) for each in found}
    assert times["math"][0] < times["code"][1] and times["code"][0] < times["math"][1]
    shown = artifacts(record["id"])
    assert {"abreast-progress-math", "abreast-progress-code", "abreast-stages"} <= set(shown)


def test_a_branch_that_fails_is_named_and_the_other_one_is_done(staged: Any, tmp_path: Path) -> None:
    run, failed = open_run(tmp_path, "failing"), threading.Event()

    def fail() -> None:
        failed.set()
        raise StageFailed("no luck")

    with pytest.raises(StageFailed, match="no luck"):
        staged.run_staged(run.path, Observer(), work(run, Rehearsal(code=fail, math=lambda: failed.wait(120))))
    record = flow_run(run)
    assert (record["state_name"], record["state"]["message"]) == ("Failed", "stage 'code' failed: no luck")
    expected = {"prepare": "Completed", "sft": "Completed", "math": "Completed", "code": "Failed"}
    assert task_states(record["id"], 4) == expected and run.result(1) is not None
