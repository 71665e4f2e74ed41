"""The example of two teachers: its stages can have what they name, and its picture shows what runs found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from paths import REPOSITORY

from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.execution.stage_checks import check_needs, check_other_policies
from gradus.stages import discover

FOLDER = REPOSITORY / "examples" / "teachers"


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    spec = importlib.util.spec_from_file_location("teachers_plot", FOLDER / "plot.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_stages_branch_from_one_and_its_budgets_are_equal() -> None:
    stages = discover()
    config = load_config(str(FOLDER / "teachers.yaml"), [], [stage.config for stage in stages.values()]).config
    assert [graph.parent(config.stages, index) for index in range(6)] == [None, 0, 0, 0, 0, 0]
    for stage in config.stages:
        check_needs(config, stage, stages)
        check_other_policies(config, stage)
    spent = {each.label: each.steps * each.prompts_per_step * each.group_size for each in config.stages[1:]}
    assert spent["mixed"] == spent["student"] == 15_360
    assert spent["mixed-all"] == spent["sums-teacher"] + spent["sort-teacher"] + spent["student"]


def test_the_picture_shows_every_run(plot: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, share in (("one", 0.5), ("two", 0.7)):
        rows = [{"after": "student", "tasks": {task: {"accuracy": share} for task in ("sums", "sort")}}]
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"tasks": rows}))
    runs = [plot.accuracies(tmp_path / name) for name in ("one", "two")]
    assert plot.table(runs).splitlines()[-1] == "| student | 0.600 (0.500 to 0.700) | 0.600 (0.500 to 0.700) |"
    plot.picture(runs, tmp_path / "teachers.svg")
    assert "student" in (tmp_path / "teachers.svg").read_text()
    with pytest.raises(SystemExit, match="let it finish"):
        plot.accuracies(tmp_path)
