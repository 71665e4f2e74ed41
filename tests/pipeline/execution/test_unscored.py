"""A reward that fails on every completion: no accuracy is claimed, and a stage that would learn from it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_pipeline import STAGE_CONFIGS, pipeline, write_task

from gradus.flows.screen.tables import print_stages
from gradus.flows.screen.text import Lines
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.observer import Observer, Observers
from gradus.pipeline.execution.inference import evaluate_checkpoint
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.execution.summary import finish
from gradus.pipeline.runs.description import description
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.training.progress import Progress
from gradus.stages import discover

BROKEN = [{"reward": "exact_answer", "params": {"reference": "auto"}}]
"""The references are bare numbers, in which this finds no answer."""
WHY = "holds no answer to compare with"


class Notes(Observer):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def begun(tmp_path: Path, stages: list[dict], **options: Any) -> tuple[RunFolder, Notes, Observers, Console, str]:
    write_task(tmp_path)
    run = RunFolder.create(
        tmp_path / "runs", pipeline(stages, rewards=BROKEN, **options), "run", tmp_path / "tiny.yaml", STAGE_CONFIGS
    )
    notes, console = Notes(), Console(record=True, width=300, force_terminal=False)
    observer = Observers(notes, Lines(console))
    return run, notes, observer, console, prepare(run, observer)["checkpoint"]


def test_where_nothing_could_be_scored_there_is_no_accuracy(tmp_path: Path) -> None:
    run, notes, observer, console, start = begun(tmp_path, [{"stage": "sft"}])
    observer.stage_finished("sft", run_stage(run, 0, start, discover()["sft"], observer))
    summary = finish(run)
    assert summary["accuracy_start"] is summary["accuracy_end"] is summary["stages"][0]["interval"] is None
    said = [text for text in notes.texts if "12 of 12 completions could not be scored, so there is no accuracy" in text]
    assert len(said) == 2 and all(WHY in text for text in said)
    print_stages(summary["stages"], console)
    shown = console.export_text()
    assert "start: held-out accuracy none\n" in shown and "sft: held-out accuracy none -> none in 2 steps" in shown
    assert "0.000" not in shown and "0.000" not in description(run, summary)
    assert plan(run, run.config)[0].why == "done, none -> none"
    assert "heldout/accuracy" not in metric_history(run.stage_dir(0) / "journal.jsonl")
    found = evaluate_checkpoint(run.path, STAGE_CONFIGS)
    assert found["accuracy"] is None and found["errors"] == 12 and WHY in found["problem"]


def test_a_stage_fails_after_some_steps_of_which_nothing_could_be_scored(tmp_path: Path) -> None:
    rules = {"eval_every": 1, "handover": "best", "until": {"accuracy": 0.3}}
    run, notes, observer, _, start = begun(tmp_path, [{"stage": "dapo", "steps": 9, "max_skipped": 3, **rules}])
    for _ in range(2):  # the second launch begins with the step that failed
        with pytest.raises(StageFailed, match=rf"no completion could be scored in 3 steps in a row[\s\S]*{WHY}"):
            run_stage(run, 0, start, discover()["dapo"], observer)
        assert max(metric_history(run.stage_dir(0) / "journal.jsonl")["reward/invalid_share"]) == 2
    assert any("validation prompts: 6 of 6 completions could not be scored" in text for text in notes.texts)


def test_the_count_is_part_of_what_a_resume_starts_from() -> None:
    assert Progress(**{**Progress(step=2).state(), "unscored": 2}).state()["unscored"] == 2
    assert Progress(step=1, rollouts=2, tokens=3, seconds=4.0).unscored == 0, "of an earlier version's checkpoint"
