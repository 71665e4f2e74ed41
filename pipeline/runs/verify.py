"""Verification of a run: whether its data and its checkpoints are as they were written, by their hashes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import leftovers, read_json, sha256
from gradus.pipeline.runs.checkpoint import checkpoints_in, content_of, damaged_files, step_of
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.run_records import DATA_FILE


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    """What was checked: ``start``, a stage's label, ``data: SPLIT``."""
    path: Path
    step: int | None = None
    bytes: int = 0
    damage: str = ""
    """What is missing or altered; empty where nothing is."""
    remedy: str = ""
    """What to do about the damage."""
    leftover: bool = False
    """It is a temporary file or folder of a process that has ended, which is no damage."""


def verify(run: RunFolder) -> Iterator[Finding]:
    """Check the data, the start, and every checkpoint of the stages and of their earlier attempts, in that order."""
    yield from _data(run)
    start = run.start()
    if start is not None:
        yield _start(run, start)
    for index, stage in enumerate(run.config.stages):
        yield from _stage(run, index)
        for folder in run.attempts(index):
            label = f"{stage.label}, attempt {folder.suffix.removeprefix('.attempt-')}"
            remedy = f"only a fork may still need it; otherwise {folder.name} may be removed"
            for step, path in checkpoints_in(folder):
                yield Finding(label, path, step, _size(path), damage(path), remedy)
    for path in leftovers(run.path):
        yield Finding("left by a process that ended", path, None, _size(path), leftover=True)


def damage(checkpoint: Path, for_resume: bool = True) -> str:
    """What is wrong with a checkpoint, in a few words; empty where nothing is.

    ``for_resume``: also look at the files that only a resume of its stage needs.
    """
    if not checkpoint.is_dir():
        return "missing"
    try:
        found = damaged_files(checkpoint, for_resume)
    except UserError as error:
        return str(error.got or error.expected.replace("a folder with", "no"))
    altered = [name for name in found if (checkpoint / name).is_file()]
    missing = [name for name in found if name not in altered]
    parts = [f"{word}: {', '.join(names)}" for word, names in (("altered", altered), ("missing", missing)) if names]
    return "; ".join(parts)


def handover_damage(made: dict[str, Any]) -> str:
    """What is wrong with the checkpoint that a success record names and the next stage gets; empty where nothing is."""
    checkpoint = Path(made["checkpoint"])
    return damage(checkpoint, for_resume=False) or _replaced(checkpoint, made)


def _data(run: RunFolder) -> Iterator[Finding]:
    """The files of the data, once they are prepared."""
    owner = run.data_dir.resolve().parent.name
    shared = "" if run.data_dir.resolve().parent == run.path.resolve() else f" (shared with {owner})"
    remedy = "the data cannot be made again within a run: start a new run"
    record: Any = None
    try:
        record = read_json(run.data_dir / DATA_FILE)
        files = sorted((record or {"files": {}})["files"].items())
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding(f"data{shared}", run.data_dir / DATA_FILE, damage=f"{DATA_FILE} cannot be read", remedy=remedy)
        return
    if record is None and run.start() is not None:
        yield Finding(f"data{shared}", run.data_dir / DATA_FILE, damage=f"missing: {DATA_FILE}", remedy=remedy)
    for name, digest in files:
        path = run.data_dir / name
        wrong = f"missing: {name}" if not path.is_file() else f"altered: {name}" if sha256(path) != digest else ""
        yield Finding(f"data: {path.stem}{shared}", path, None, _size(path), wrong, remedy)


def _start(run: RunFolder, start: dict[str, Any]) -> Finding:
    """The policy before any stage."""
    path = Path(start["checkpoint"])
    if run.origin is not None:
        owner = path.parent.name
        return Finding(f"start (shared with {owner})", path, 0, _size(path), damage(path), _ask(owner))
    first = run.config.stages[0].label
    remedy = f"`gradus resume {run.name}` makes it again"
    if run.result(0) is not None:
        remedy = f"nothing needs it any more; `gradus resume {run.name} --from {first}` makes it and all after it again"
    return Finding("start", path, 0, _size(path), damage(path), remedy)


def _stage(run: RunFolder, index: int) -> Iterator[Finding]:
    """The checkpoints of one stage, oldest first, with the one that was handed over even where it no longer exists."""
    label, folder, result = run.config.stages[index].label, run.stage_dir(index), run.result(index)
    handed = Path(result["checkpoint"]) if result else None
    if result is not None and handed is not None and "shared" in result:
        owner = result["shared"]
        wrong, step = damage(handed) or _replaced(handed, result), step_of(handed)
        yield Finding(f"{label} (shared with {owner})", handed, step, _size(handed), wrong, _ask(owner))
        return
    for step, path in reversed(checkpoints_in(folder)):
        wrong = damage(path)
        if path == handed and result is not None:
            wrong = wrong or _replaced(path, result)
        if path.exists():  # a run that is being trained removes old ones
            yield Finding(label, path, step, _size(path), wrong, _remedy(run, index, path, handed))
    if handed is not None and not handed.exists():
        yield Finding(label, handed, step_of(handed), 0, f"missing: {handed.name}", _remedy(run, index, handed, handed))


def _replaced(checkpoint: Path, made: dict[str, Any]) -> str:
    """Whether an undamaged checkpoint is another one than its success record names."""
    return "" if content_of(checkpoint) == made["content"] else "another checkpoint is in its place"


def _remedy(run: RunFolder, index: int, checkpoint: Path, handed: Path | None) -> str:
    """What to do about a damaged checkpoint of one of the run's own stages.

    ``handed``: the checkpoint that the stage hands over; None before the stage is done.
    """
    stages, last = run.config.stages, index + 1 == len(run.config.stages)
    if handed is None:
        return f"`gradus resume {run.name}` continues from the undamaged one before it"
    if checkpoint != handed:
        return "nothing needs it any more"
    if not damage(checkpoint, for_resume=False) and (last or not stages[index + 1].carry):
        return "what it hands over is undamaged; the state of the finished stage in it is no longer needed"
    if last or run.result(index + 1) is None:
        return f"`gradus resume {run.name}` makes it again"
    again = f"`gradus resume {run.name} --from {stages[index + 1].label}` makes it and what follows again"
    return f"this run no longer needs it, forks of it may; {again}"


def _ask(owner: str) -> str:
    return f"`gradus verify {owner}` says what can be done"


def _size(path: Path) -> int:
    """Bytes of a file or of everything in a folder. A file that is removed meanwhile counts as nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total
