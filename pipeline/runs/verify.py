"""Whether everything a run has on the disk is as it was written: every checkpoint and the data, by their hashes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json, sha256
from gradus.pipeline.runs.checkpoint import checkpoints_in, content_of, damaged_files, step_of
from gradus.pipeline.runs.run_folder import RESULT_FILE, RunFolder

DATA_FILE = "data.json"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    """In words: ``start``, a stage's label, ``data``."""
    path: Path
    step: int | None = None
    bytes: int = 0
    damage: str = ""
    """What is missing or altered; empty where all is as it was written."""
    remedy: str = ""
    """What to do about the damage."""
    leftover: bool = False
    """A temporary file or folder of a process that is gone: no damage."""


def damage(checkpoint: Path, for_resume: bool = True) -> str:
    """What is wrong with a checkpoint, in a few words, or nothing."""
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


def verify(run: RunFolder) -> Iterator[Finding]:
    """Look at the data, the start, every stage's checkpoints and those of numbered attempts, one after the other."""
    yield from _data(run)
    start = run.start()
    if start is not None:
        yield _start(run, start)
    for index, stage in enumerate(run.config.stages):
        yield from _stage(run, index)
        for folder in run.attempts(index):
            label = f"{stage.label}, attempt {folder.suffix.removeprefix('.attempt-')}"
            remedy = f"only a fork may still need it; else it may be removed, with all of {folder.name}"
            for step, path in checkpoints_in(folder):
                yield Finding(label, path, step, _size(path), damage(path), remedy)
    for path in sorted(run.path.rglob(".*")):
        if not path.name.startswith(".mlflow"):
            yield Finding("left by a process that ended", path, None, _size(path), leftover=True)


def _data(run: RunFolder) -> Iterator[Finding]:
    """The prompts, file by file, where they are ready."""
    owner = run.data_dir.resolve().parent.name
    shared = "" if run.data_dir.resolve().parent == run.path.resolve() else f" (shared with {owner})"
    remedy = "the data cannot be made again within a run: begin a new one"
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
    """The checkpoints of one stage, oldest first; the one that was handed over counts as missing where it is gone."""
    label, folder, result = run.config.stages[index].label, run.stage_dir(index), run.result(index)
    handed = Path(result["checkpoint"]) if result else None
    if result is not None and handed is not None and "shared" in result:
        owner = result["shared"]
        wrong, step = damage(handed) or _other_content(handed, result), step_of(handed)
        yield Finding(f"{label} (shared with {owner})", handed, step, _size(handed), wrong, _ask(owner))
        return
    for step, path in reversed(checkpoints_in(folder)):
        wrong = damage(path)
        if path == handed and result is not None:
            wrong = wrong or _other_content(path, result)
        if path.exists():  # a run that is at work removes old ones
            yield Finding(label, path, step, _size(path), wrong, _remedy(run, index, path, handed))
    if handed is not None and not handed.exists():
        yield Finding(label, handed, step_of(handed), 0, f"missing: {handed.name}", _remedy(run, index, handed, handed))


def _other_content(checkpoint: Path, result: dict[str, Any]) -> str:
    """Whether a whole checkpoint is another one than the stage's result tells of."""
    return "" if content_of(checkpoint) == result["content"] else f"not the checkpoint that {RESULT_FILE} tells of"


def _remedy(run: RunFolder, index: int, checkpoint: Path, handed: Path | None) -> str:
    """What to do about a damaged checkpoint of a run's own stage, which hands over ``handed`` once it is done."""
    stages, last = run.config.stages, index + 1 == len(run.config.stages)
    if handed is None:
        return f"`gradus resume {run.name}` goes on from the whole one before it"
    if checkpoint != handed:
        return "nothing needs it any more"
    if not damage(checkpoint, for_resume=False) and (last or not stages[index + 1].carry):
        return "what it hands over is whole; the state of the finished stage in it is needed no more"
    if last or run.result(index + 1) is None:
        return f"`gradus resume {run.name}` makes it again"
    again = f"`gradus resume {run.name} --from {stages[index + 1].label}` makes it and what follows again"
    return f"this run no longer needs it, forks of it may; {again}"


def _ask(owner: str) -> str:
    return f"`gradus verify {owner}` says what can be done"


def _size(path: Path) -> int:
    """Bytes of a file or of everything in a folder; what is removed meanwhile counts nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def handover_damage(made: dict[str, Any]) -> str:
    """What is wrong with the checkpoint that a success record tells of and that is to be handed over, or nothing."""
    checkpoint = Path(made["checkpoint"])
    try:
        altered = ", ".join(damaged_files(checkpoint, for_resume=False))
    except UserError as error:
        return error.what
    return altered or ("" if content_of(checkpoint) == made["content"] else "another one is in its place")
