"""The data of all tasks of a pipeline on disk.

The folder of one task is the folder of the data. Several have folders of their own names in it, and a ``data.json`` of
all of them, written last. No question that one task holds out is trained on in another: such prompts are removed.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.tasks.data import Tasks
from gradus.pipeline.tasks.metadata import BATCH
from gradus.pipeline.tasks.splits import SPLITS, folded, named
from gradus.pipeline.tasks.task import FORMAT, load_task, make_task, read_record, rewrite_task, task_sources

if TYPE_CHECKING:
    from datasets import Dataset

    from gradus.pipeline.tasks.task import AnyTask

DATA_FILE = "data.json"


def folder_of(data: Path, name: str) -> Path:
    """The folder of a task in the folder of the data."""
    return data / name if name else data


def _key(name: str) -> str:
    return f"tasks.{name}" if name else "task"


@contextlib.contextmanager
def told_of(key: str) -> Iterator[None]:
    """Let errors about a task show its own key, such as ``tasks.math``, where those about the only one say ``task``."""
    try:
        yield
    except UserError as error:
        if key == "task":
            raise
        said = {"where": error.where, "got": error.got, "expected": error.expected, "fix": error.fix}
        raise UserError(
            _renamed(error.what, key), **{name: _renamed(text, key) for name, text in said.items()}
        ) from None


def _renamed(text: Any, key: str) -> Any:
    return re.sub(r"(?<!\.)\btask(?=\.[a-z])", key, text) if isinstance(text, str) else text


def make_tasks(tasks: Mapping[str, AnyTask], base_dir: Path, data: Path) -> None:
    """Make the data of every task, unless they are there. Raises: UserError."""
    for name, task in tasks.items():
        with told_of(_key(name)):
            make_task(task, base_dir, folder_of(data, name))
    if tuple(tasks) != ("",):
        _separate(Tasks({name: load_task(folder_of(data, name), name) for name in tasks}), data)
        seal(data, tasks)


def build_tasks(tasks: Mapping[str, AnyTask], base_dir: Path, data: Path) -> Tasks:
    """Like :func:`make_tasks`; returns what was made."""
    make_tasks(tasks, base_dir, data)
    return load_tasks(data, tasks)


def load_tasks(data: Path, names: Mapping[str, Any]) -> Tasks:
    """The data of these tasks. Raises: UserError where something is missing or damaged."""
    return Tasks({name: load_task(folder_of(data, name), name) for name in names})


def all_sources(tasks: Mapping[str, AnyTask], base_dir: Path) -> dict[str, Path]:
    """Option -> the local file or folder that it names, of all tasks."""
    return {
        key.replace("task", _key(name), 1): path
        for name, task in tasks.items()
        for key, path in task_sources(task, base_dir).items()
    }


def seal(data: Path, names: Mapping[str, Any]) -> None:
    """Write the record of several tasks' data: what is in their own records, under their names."""
    if tuple(names) == ("",):
        return
    whole: dict[str, Any] = {"format": FORMAT, "tasks": [*names], "notes": [], "source": {}}
    for name in names:
        record = read_record(folder_of(data, name)) or {}
        for key in ("hashes", "sizes"):
            whole.setdefault(key, {}).update({named(name, split): value for split, value in record[key].items()})
        whole.setdefault("files", {}).update({f"{name}/{file}": digest for file, digest in record["files"].items()})
        sources = {key.replace("task", _key(name), 1): seen for key, seen in record["sources"].items()}
        whole.setdefault("sources", {}).update(sources)
        whole["notes"] += [f"{name}: {note}" for note in record["notes"]]
        whole["source"][name] = record["source"]
    write_sealed(data / DATA_FILE, whole)


def _separate(tasks: Tasks, data: Path) -> None:
    """Remove prompts from training whose question another task holds out, judged by the questions themselves."""
    held = {
        name: {key for split in ("validation", "heldout") for key in _questions(getattr(task, split))}
        for name, task in tasks.items()
    }
    for name, task in tasks.items():
        foreign = set[str]().union(*(keys for other, keys in held.items() if other != name))
        rows = [row for row, key in enumerate(_questions(task.train)) if key not in foreign]
        if (removed := len(task.train) - len(rows)) == 0:
            continue
        if not rows:
            raise UserError(
                "every training prompt of the task is held out in another",
                where=_key(name),
                got=f"{removed:,} prompts, all of them held out elsewhere",
                expected="prompts of its own to train on",
                fix="give the tasks different data, or make them one",
            )
        splits = {split: getattr(task, split).data.table for split in SPLITS}
        splits["train"] = task.train.select(rows).with_format("arrow")[:]
        note = f"{removed:,} training prompts removed because another task holds their question out"
        rewrite_task(folder_of(data, name), splits, note)


def _questions(split: Dataset) -> Iterator[str]:
    columns: Any = split.select_columns(["question"])
    for batch in columns.iter(BATCH):
        yield from map(folded, batch["question"])


def contradictions(tasks: Tasks) -> list[str]:
    """A line for each two tasks that ask the same questions and expect other answers."""
    first: dict[str, tuple[str, str]] = {}
    found = Counter[tuple[str, str]]()
    for name, task in tasks.items():
        columns: Any = task.train.select_columns(["question", "answer"])
        for batch in columns.iter(BATCH) if len(tasks) > 1 else ():
            for question, answer in zip(map(folded, batch["question"]), batch["answer"], strict=True):
                other, known = first.setdefault(question, (name, answer))
                found[other, name] += known != answer
    return [
        f"{count:,} questions are in {one} and in {other} with another answer; each is scored by its own task's"
        for (one, other), count in found.items()
        if count
    ]
