"""The journals of a run's stages in the order of the pipeline, wherever they lie. Imports nothing slow."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.tracking.journal import iter_events

RESULT_FILE = "result.json"
"""In a stage's folder once it is done; in a fork, also in those of the stages that another run has done for it."""


@dataclass(frozen=True)
class StagePlace:
    """One attempt at a stage."""

    label: str
    """The name of the stage's folder, ``02-dapo``."""
    key: str
    """Which attempt at the stage this is: the time of its journal's first event; of a shared one, its content."""
    journal: Path
    closed: bool
    """Whether nothing will be added to the journal."""
    result: dict[str, Any]
    """The success record; empty where there is none."""

    @property
    def number(self) -> int:
        """Its place in the list of stages, from 1."""
        return int(self.label.partition("-")[0])


def stage_places(run_dir: Path) -> Iterator[StagePlace]:
    """The stages that have begun, in the order of the list, up to the first one that has not."""
    folders = {int(path.name.partition("-")[0]): path for path in run_dir.glob("stages/*") if _is_stage(path.name)}
    for number in range(1, len(folders) + 1):
        if number not in folders or (place := _place(folders[number])) is None:
            return
        yield place


def find_attempt(run_dir: Path, label: str, key: str) -> StagePlace | None:
    """An attempt at a stage, in the stage's folder or, where it was set aside, beside it; None where it is gone."""
    here = run_dir / "stages" / label
    if here.is_dir() and (place := _place(here)) is not None and place.key == key:
        return place
    for folder in here.parent.glob(f"{label}.attempt-*"):
        if _key(folder / "journal.jsonl") == key:
            return StagePlace(label, key, folder / "journal.jsonl", closed=True, result={})
    return None


def _is_stage(name: str) -> bool:
    return re.match(r"\d+-", name) is not None and re.search(r"\.attempt-\d+$", name) is None


def _place(folder: Path) -> StagePlace | None:
    """The stage in a folder; None where it has not begun."""
    result = _result(folder)
    journal = (_owner(folder, result) if "shared" in result else folder) / "journal.jsonl"
    key = str(result["content"]) if "shared" in result else _key(journal)
    return StagePlace(folder.name, key, journal, bool(result), result) if key else None


def _owner(folder: Path, result: dict[str, Any]) -> Path:
    """The folder of the stage whose result a fork shares; the run that owns it may have trained the stage again."""
    owner = (folder / str(result.get("checkpoint", ""))).resolve().parent.parent
    candidates = [owner, *owner.parent.glob(f"{owner.name}.attempt-*")]
    return next((each for each in candidates if _result(each).get("content") == result.get("content")), owner)


def _result(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / RESULT_FILE).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _key(journal: Path) -> str:
    first = next((event for event, _ in iter_events(journal) if event), None)
    return str(first["time"]) if first and "time" in first else ""
