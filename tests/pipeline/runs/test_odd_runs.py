"""A run whose files are odd is one line of the list of runs, and hides no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_pipeline import STAGE_CONFIGS, pipeline

from gradus.flows.screen.status import all_runs
from gradus.pipeline.runs.run_folder import RunFolder

MORE_STAGES = {"stages": [{"name": "sft", "checkpoint": "c"}] * 2}


@pytest.mark.parametrize(
    ("file", "content"),
    [("summary.json", MORE_STAGES), ("summary.json", 3), ("start.json", [1]), ("run.json", {"created": 7, "fork": 1})],
)
def test_an_odd_run_is_a_line_of_its_own(tmp_path: Path, file: str, content: object) -> None:
    config = pipeline([{"stage": "sft"}])
    for name in ("good", "odd"):
        RunFolder.create(tmp_path, config, name, tmp_path / "tiny.yaml", STAGE_CONFIGS)
    (tmp_path / "odd" / file).write_text(json.dumps(content))
    states = {run["name"]: run["state"] for run in all_runs(tmp_path, STAGE_CONFIGS)}
    assert states["good"] == "stopped" and states["odd"].startswith("unreadable: ")
