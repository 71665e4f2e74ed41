"""Data made in the background are the same, and the background process never outlives its purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.task import ReasoningGymTask
from gradus.pipeline.tasks import background
from gradus.pipeline.tasks import task as tasks
from gradus.pipeline.tasks.task import build_task


def task(**options: object) -> ReasoningGymTask:
    fields = {"dataset": "chain_sum", "size": 60, "heldout": 10, "validation": 5, **options}
    return ReasoningGymTask.model_validate({"source": "reasoning_gym", **fields})


def test_the_same_data_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = build_task(task(), tmp_path, tmp_path / "direct")
    with background.data_ahead({"": task()}, tmp_path, tmp_path / "ahead"):
        background.wait_for_data(tmp_path / "ahead")
        monkeypatch.setattr(tasks, "_write", None)  # it is there
        found = build_task(task(), tmp_path, tmp_path / "ahead")
    assert (found.hashes, found.notes) == (direct.hashes, direct.notes)


def test_what_is_wrong_is_told_by_whoever_needs_the_data(tmp_path: Path) -> None:
    narrow = task(params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, heldout=5000)
    with background.data_ahead({"": narrow}, tmp_path, tmp_path / "data"):
        background.wait_for_data(tmp_path / "data")
        with pytest.raises(UserError):
            build_task(narrow, tmp_path, tmp_path / "data")


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with background.data_ahead({"": task(size=100_000)}, tmp_path, tmp_path / "data"):
        process = background._under_way[tmp_path / "data"]
    assert process.poll() is not None
    background.wait_for_data(tmp_path / "data")  # nobody is making it
