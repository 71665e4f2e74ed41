"""The second layer of a run folder: the records of what is done. Nothing is guessed from the dates of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.records import read_sealed
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, content_of
from gradus.pipeline.runs.run_paths import RunPaths, attempts_beside
from gradus.pipeline.tasks.prompts.answers import ANSWERS_FILE
from gradus.pipeline.tasks.prompts.completions import COMPLETIONS_FILE
from gradus.pipeline.tasks.prompts.memory import MEMORY_FILE

DATA_FILE = "data.json"
"""In the folder of the data, written last: the hash of every file."""
START_FILE = "start.json"
"""What was measured of the policy before any stage."""
SUMMARY_FILE = "summary.json"
"""The summary of a complete run."""
RESULT_FILE = "result.json"
"""In a stage's folder: its success record."""
FAILURE_FILE = "failure.json"
"""In a stage's folder: why it failed."""
HELDOUT_FILE = "heldout.json"
"""In a stage's folder: which held-out prompts its result answers correctly, by their ids."""

PROFILE_FILE = "profile.json"
"""In a stage's folder: how far the profile of its prompts has come, and what it cost."""


class RunRecords(RunPaths):
    """What a run has done, read from its records."""

    @property
    def origin(self) -> dict[str, Any] | None:
        """What this run was forked from: ``run``, ``stage``, ``checkpoint``, ``changes`` and ``mlflow_run_id``."""
        return self.record.get("fork")

    def start(self) -> dict[str, Any] | None:
        """The record of the policy before any stage, with the checkpoint's absolute path; None before it is written."""
        start = self.read(self.path / START_FILE)
        return start and start | {"checkpoint": str(_found(self.path / start["checkpoint"], start))}

    def result(self, index: int) -> dict[str, Any] | None:
        """A stage's success record, with the checkpoint's absolute path; None before it is written."""
        folder = self.stage_dir(index)
        result = self.read(folder / RESULT_FILE)
        return result and result | {"checkpoint": str(_found(folder / result["checkpoint"], result))}

    def own_copies(self) -> set[str]:
        """The sources that the run needs no more, by their sections of the configuration: it has copies of them.

        ``task`` once it has data, and ``policy`` once it has the policy before any stage; a fork shares both.
        """
        copies = {"task": self.data_dir / DATA_FILE, "policy": self.path / START_FILE}
        return {section for section, file in copies.items() if file.is_file()}

    def heldout(self, index: int) -> dict[str, bool] | None:
        """id of a held-out prompt -> whether the stage's result answers it correctly; None before the stage is done."""
        found = self.read(self.made_in(index) / HELDOUT_FILE) if self.result(index) else None
        return found and found["correct"]

    def made_in(self, index: int) -> Path:
        """The folder with what a stage has written; of one that a fork shares it is in the run that owns it."""
        result = self.result(index) or {}
        return Path(result["checkpoint"]).parents[1] if "shared" in result else self.stage_dir(index)

    def memory(self, index: int) -> Path:
        """The file in which a stage remembers its prompts."""
        return self.made_in(index) / MEMORY_FILE

    def completions(self, index: int) -> Path:
        """The file of the correct completions that a stage keeps for a later one."""
        return self.made_in(index) / COMPLETIONS_FILE

    def failure(self, index: int) -> dict[str, Any] | None:
        """A stage's failure record; None where it has not failed, or succeeded later."""
        if self.result(index):
            return None
        try:
            return read_sealed(self.stage_dir(index) / FAILURE_FILE)
        except UserError as error:
            return {"error": f"for a reason that cannot be read: {error.what}", "time": ""}

    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run, with the paths where the checkpoints are now; None before it is complete."""
        summary = self.read(self.path / SUMMARY_FILE)
        for index, stage in enumerate(summary["stages"] if summary else ()):
            stage["checkpoint"] = (self.result(index) or stage)["checkpoint"]
        return summary

    def summary_damaged(self) -> bool:
        """Whether there is a summary that is not as it was written."""
        try:
            self.read(self.path / SUMMARY_FILE)
        except UserError:
            return True
        return False

    def data(self) -> dict[str, Any]:
        """The record of the data; empty before they are made."""
        return self.read(self.data_dir / DATA_FILE) or {}


def answers_of(run: RunRecords, index: int | None) -> tuple[Path, str]:
    """The file of the answers that a stage's result gave to the held-out prompts, or of the policy before any stage
    (None), and its hash; the hash is empty where an earlier version, which kept none, has measured it."""
    if index is None:
        start = run.start() or {"checkpoint": str(run.path / "start")}
        return Path(start["checkpoint"]).parent / ANSWERS_FILE, start.get("answers", "")
    return run.made_in(index) / ANSWERS_FILE, (run.result(index) or {}).get("answers", "")


def _found(path: Path, result: dict[str, Any]) -> Path:
    """Where the checkpoint of a success record is now.

    The origin of a fork may have set aside the stage that made it, and trained that stage again.
    """
    path = Path(os.path.normpath(path))
    in_place = content_of(path) == result.get("content") if "shared" in result else path.is_dir()
    if in_place or "content" not in result:
        return path
    candidates = [folder / CHECKPOINTS / path.name for folder in attempts_beside(path.parent.parent)]
    return next((each for each in candidates if content_of(each) == result["content"]), path)
