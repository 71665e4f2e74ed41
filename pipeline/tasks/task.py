"""A task's data on disk: checked before a run, made once, and loaded.

``check_task`` finds in a second what is wrong with a configuration, ``build_task`` makes the task's folder, and
``load_task`` reads it. The folder contains train, validation and heldout as Parquet with the columns id, question,
answer, metadata (JSON), demonstration and more (JSON), and ``data.json``, written last, with hashes, sizes and notes.

The prompts whose questions have the lowest hashes are held out, wherever they are in the source. So rows that are
appended to the source change the held-out set only by those among them that are held out.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import folder_in_the_making, sha256
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.common.sources import Seen, look_at
from gradus.pipeline.config.task import FileTask, HubTask, ReasoningGymTask
from gradus.pipeline.tasks.data import TaskData
from gradus.pipeline.tasks.hub import check_hub, read_hub
from gradus.pipeline.tasks.metadata import BATCH, Batch
from gradus.pipeline.tasks.reasoning_gym import check_gym, read_gym
from gradus.pipeline.tasks.splits import SPLITS, content_hash, distinct, split, with_system_text
from gradus.pipeline.tasks.tables import Found, check_files, read_files

if TYPE_CHECKING:
    import pyarrow

    AnyTask = ReasoningGymTask | FileTask | HubTask

FORMAT = 1
"""Version of the folder's layout; a folder of another version is made again."""


def check_task(task: AnyTask, base_dir: Path) -> Found:
    """Check a task as far as possible before any compute is spent; relative paths start at ``base_dir``.

    Returns what was found in its first rows. Raises: UserError.
    """
    found = Found()
    if isinstance(task, ReasoningGymTask):
        check_gym(task)
        return found
    if task.demonstrations == "solver":
        raise UserError(
            "the solver works on reasoning_gym's arithmetic only",
            where="task.demonstrations",
            got="solver",
            expected="none or column",
            fix="name the column of worked solutions in task.columns.demonstration",
        )
    if isinstance(task, HubTask):
        check_hub(task, base_dir, found)
        return found
    needed = 1 + task.validation + (0 if task.heldout_path else task.heldout)
    check_files(task, base_dir, "task.path", needed, found)
    if task.heldout_path is not None:
        check_files(task, base_dir, "task.heldout_path", task.heldout, found)
    return found


def build_task(task: AnyTask, base_dir: Path, folder: Path) -> TaskData:
    """Read or generate the prompts, split them, and write them to ``folder``; returns the loaded task.

    A folder made from the same configuration is reused, even if the source has changed since: a run keeps its data.
    Raises: UserError where too few prompts are left, or the source cannot be read.
    """
    make_task(task, base_dir, folder)
    return load_task(folder)


def make_task(task: AnyTask, base_dir: Path, folder: Path) -> None:
    """Like :func:`build_task`, but the folder is not loaded."""
    task, record = task.of_data(), read_record(folder)
    if record is not None and _is_same(record["config"], task):
        return
    notes: list[str] = []
    sources = {key: look_at(path) for key, path in task_sources(task, base_dir).items()}
    main, held = _read(task, base_dir, notes)
    splits = split(distinct(main, notes), held and distinct(held, notes), task.heldout, task.validation, notes)
    if task.demonstrations == "column":
        shown = splits["train"].filter(splits["train"]["demonstration"].is_valid())
        if missing := splits["train"].num_rows - shown.num_rows:
            notes.append(f"{missing} training prompts without a demonstration removed")
        if shown.num_rows == 0:
            raise UserError(
                "no training prompt has a demonstration",
                where="task.columns.demonstration",
                got=f"{missing} prompts without one",
                expected="worked solutions",
                fix="name the column that holds them, or set task.demonstrations to none",
            )
        splits["train"] = shown
    if task.system is not None:
        splits = {name: with_system_text(table, task.system) for name, table in splits.items()}
    _write(folder, splits, task, notes, sources)


def load_task(folder: Path, name: str = "") -> TaskData:
    """The task that :func:`build_task` wrote, under this name. Raises: UserError where it is missing or damaged."""
    import pyarrow.parquet
    from datasets import Dataset

    record = read_record(folder)
    if record is None:
        raise UserError("the task's data is missing or damaged", where=str(folder), fix="start a new run")
    train, validation, heldout = (Dataset(pyarrow.parquet.read_table(folder / f"{split}.parquet")) for split in SPLITS)
    return TaskData(
        train,
        validation,
        heldout,
        hashes=record["hashes"],
        sizes=record["sizes"],
        notes=record["notes"],
        source=record["source"],
        has_demonstrations=record["has_demonstrations"],
        name=name,
    )


def _read(task: AnyTask, base_dir: Path, notes: list[str]) -> tuple[Iterator[Batch], Iterator[Batch] | None]:
    """The rows to split, and the rows of a separate held-out source where there is one."""
    if isinstance(task, ReasoningGymTask):
        return read_gym(task, notes), None
    if isinstance(task, FileTask):
        main = read_files(task, base_dir, "task.path", notes)
        return main, None if task.heldout_path is None else read_files(task, base_dir, "task.heldout_path", notes)
    main = read_hub(task, base_dir, task.split, "task.split", notes)
    if task.heldout_split is None:
        return main, None
    return main, read_hub(task, base_dir, task.heldout_split, "task.heldout_split", notes)


def task_sources(task: AnyTask, base_dir: Path) -> dict[str, Path]:
    """Option -> the local file or folder that it names."""
    if isinstance(task, FileTask):
        named = {"task.path": task.path, "task.heldout_path": task.heldout_path}
    else:
        named = {"task.dataset": task.dataset if isinstance(task, HubTask) else None}
    paths: dict[str, Path] = {}
    for key, given in named.items():
        each = {f"{key}.{n}": path for n, path in enumerate(given)} if isinstance(given, list) else {key: given}
        for place, name in each.items():
            found = [base_dir / Path(name).expanduser()] if name else []
            if found and not found[0].exists():  # a pattern
                found = [Path(path) for path in sorted(glob.glob(str(found[0]), recursive=True))]
            paths |= {place if len(found) == 1 else f"{place} ({path.name})": path for path in found}
    return paths


def rewrite_task(folder: Path, splits: dict[str, pyarrow.Table], note: str) -> None:
    """Replace the splits in a task's folder, for a reason that is noted there. Raises: UserError."""
    record = read_record(folder)
    if record is None:
        raise UserError("the task's data is missing or damaged", where=str(folder), fix="start a new run")
    _store(folder, splits, {**record, "notes": [*record["notes"], note]})


def _write(
    folder: Path, splits: dict[str, pyarrow.Table], task: AnyTask, notes: list[str], sources: dict[str, Seen]
) -> None:
    record = {
        "format": FORMAT,
        "source": _describe(task),
        "config": task.model_dump(mode="json"),
        "sources": sources,
        "has_demonstrations": task.demonstrations != "none",
        "notes": notes,
    }
    _store(folder, splits, record)


def _store(folder: Path, splits: dict[str, pyarrow.Table], record: dict[str, Any]) -> None:
    """Write the folder, completely or not at all."""
    import pyarrow.parquet

    with folder_in_the_making(folder) as making:
        for name, table in splits.items():
            pyarrow.parquet.write_table(table, making / f"{name}.parquet", row_group_size=50 * BATCH)
        made = {
            "hashes": {name: content_hash(table) for name, table in splits.items()},
            "sizes": {name: table.num_rows for name, table in splits.items()},
            "files": {f"{name}.parquet": sha256(making / f"{name}.parquet") for name in splits},
        }
        write_sealed(making / "data.json", record | made)


def _is_same(known: dict[str, Any], task: AnyTask) -> bool:
    """Whether data were made from this configuration; those of an earlier version lack options that have come since."""
    try:
        return type(task).model_validate(known).of_data() == task
    except ValueError:
        return False


def _describe(task: AnyTask) -> str:
    if isinstance(task, ReasoningGymTask):
        return f"reasoning_gym {version('reasoning_gym')}: {task.dataset}, seed {task.seed}"
    if isinstance(task, FileTask):
        return f"file {task.path if isinstance(task.path, str) else ', '.join(task.path)}"
    return f"data set {task.dataset}, split {task.split}" + (f", revision {task.revision}" if task.revision else "")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The content of data.json, if it and the files that it lists are intact; else None."""
    try:
        record = read_sealed(folder / "data.json") or {}
        intact = record["format"] == FORMAT and all(
            sha256(folder / name) == digest for name, digest in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if intact else None
