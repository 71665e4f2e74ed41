"""Stages side by side: what may run together does, and a signal, a kill and an error leave what they must."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from dry_execution import Rehearsal
from pydantic import ValidationError
from small_pipeline import STAGE_CONFIGS, pipeline, write_task

from gradus.flows.order import PipelineWork, run_plain
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer, Observers
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.same_outcome import outcome_differences
from gradus.stages import discover

BRANCHES = [
    {"stage": "sft"},
    {"stage": "dapo", "name": "math", "group_size": 2},
    {"stage": "dapo", "name": "code", "from": "sft", "group_size": 2},
    {"stage": "merge", "name": "soup", "of": ["math", "code"]},
    {"stage": "dapo", "name": "more", "from": "math", "group_size": 2},
]


def open_run(folder: Path, config: PipelineConfig, name: str = "run") -> RunFolder:
    return RunFolder.create(folder / "runs", config, name, folder / "tiny.yaml", STAGE_CONFIGS)


def rehearse(folder: Path, **surprises: Any) -> tuple[RunFolder, list[str]]:
    """A run of the branches, two at a time, without training; returns the order in which stages were begun."""
    run, execution = open_run(folder, pipeline(BRANCHES, launch={"side_by_side": 2})), Rehearsal(**surprises)
    try:
        run_plain(run.path, Observers(Observer()), PipelineWork(run, discover(), execution))
    finally:
        order = list(execution.order)
    return run, order


def test_what_does_not_depend_on_each_other_runs_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=60)
    _, order = rehearse(tmp_path, math=together.wait, code=together.wait)
    assert order[:2] == ["prepare", "sft"] and set(order[2:4]) == {"math", "code"} and len(order) == 6


def test_a_failure_is_told_when_the_others_are_done(tmp_path: Path) -> None:
    failed, notes = threading.Event(), list[str]()

    def fail() -> None:
        failed.set()
        raise StageFailed("no luck")

    run = open_run(tmp_path, pipeline(BRANCHES, launch={"side_by_side": 2}))
    execution = Rehearsal(code=fail, math=lambda: failed.wait(60))

    class Said(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    with pytest.raises(StageFailed, match="no luck"):
        run_plain(run.path, Said(), PipelineWork(run, discover(), execution))
    assert [run.result(index) is not None for index in range(5)] == [True, True, False, False, True]
    assert notes == ["stage 'code' failed; what does not depend on it is done first"]


def test_what_would_share_what_cannot_be_shared_is_refused() -> None:
    for more, said in (
        ({"launch": {"side_by_side": 2, "processes": 2}}, "would both share out this machine"),
        ({"launch": {"side_by_side": 2}, "rollouts": {"engine": "vllm-server"}}, "one engine that gets the weights"),
    ):
        with pytest.raises(ValidationError, match=said):
            pipeline(BRANCHES, **more)
    chain = pipeline(BRANCHES[:2], launch={"side_by_side": 4}, rollouts={"engine": "vllm-server"})
    assert chain.abreast == 1, "in a chain no two stages can run at the same time"


class Fate(Observer):
    """Once: ends this launch when both branches train, or kills the process of one of them when that trains."""

    def __init__(self, kill: bool):
        self.kill, self.seen, self.done = kill, set[str](), False

    def step_done(self, label: str, step: int, steps: int, metrics: Any) -> None:
        self.seen.add(label)
        if self.done or (label != "code" if self.kill else len(self.seen) < 2):
            return
        self.done = True
        if not self.kill:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended and was not waited for yet, too
                words = child.cmdline()
                if words[3:5] == ["-m", "gradus.pipeline.execution.rank_process"] and '"index": 1' in words[5]:
                    child.kill()


def test_signals_and_kills_side_by_side_leave_what_one_after_the_other_makes(tmp_path: Path) -> None:
    """One life ends by SIGTERM in both branches, one by SIGKILL in one of them; the last one is undisturbed."""
    write_task(tmp_path)
    graded = {"reward": "length", "params": {"max": 5, "falloff": 15}}
    branch = {"stage": "dapo", "group_size": 2, "steps": 40, "lr": 1e-3, "from": "start"}
    stages = [{**branch, "name": "math"}, {**branch, "name": "code"}, {**BRANCHES[3]}]
    options = {"rewards": [graded], "evaluation": {"threshold": 0.4}, "checkpoints": {"every_steps": 2}}
    undisturbed = open_run(tmp_path, pipeline(stages, **options), "undisturbed")
    run_plain(undisturbed.path, Observer())
    run = open_run(tmp_path, pipeline(stages, launch={"side_by_side": 2}, **options))
    with pytest.raises(Interrupted):
        run_plain(run.path, Observers(Fate(kill=False)))
    assert all(checkpoints_in(run.stage_dir(index)) for index in (0, 1)), "both finished their step"
    assert run.result(2) is None
    with pytest.raises(StageFailed, match="ended by SIGKILL"):
        run_plain(run.path, Observers(Fate(kill=True)))
    assert [each.action for each in plan(run, run.config)] == ["reuse", "resume", "run"]
    run.adopt(pipeline(stages, **options))
    run_plain(run.path, Observer())
    assert outcome_differences(undisturbed, RunFolder(run.path, STAGE_CONFIGS)) == []
