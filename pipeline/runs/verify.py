"""Verification of a run: whether its data and its checkpoints are as they were written, by their hashes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import leftovers, sha256
from gradus.pipeline.common.shown import gradus_command
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.runs.checkpoint import checkpoints_in, content_of, damaged_files, step_of
from gradus.pipeline.runs.lineage import needs_checkpoint, needs_start
from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE, START_FILE, RunFolder
from gradus.pipeline.runs.run_paths import REMEDIES, typed
from gradus.pipeline.runs.run_records import DATA_FILE, answers_of
from gradus.pipeline.tasks.prompts.memory import NOTHING, memory_damage


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
    """Check the records, the data, the start, and every checkpoint of the stages and of their earlier attempts.

    Without run.json and config.yaml nothing is known of the rest, so that it is not looked at.
    """
    damaged = list(_damaged_records(run))
    yield from damaged or [Finding("records", run.path, None, sum(map(_size, _records(run))))]
    if {finding.path.name for finding in damaged} & {RUN_FILE, CONFIG_FILE}:
        return
    yield from _data(run)
    start = _readable(run.start)
    if start is not None:
        yield _start(run, start)
        yield from _answers(run, None, "start")
    for index, stage in enumerate(run.config.stages):
        yield from _stage(run, index)
        yield from _memory(run, index)
        yield from _completions(run, index)
        yield from _answers(run, index, stage.label)
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


def _records(run: RunFolder) -> list[Path]:
    """The records of the run and of its stages, those that were set aside included."""
    files = [run.path / name for name in REMEDIES] + [
        file for name in REMEDIES for file in sorted(run.path.glob(f"stages/*/{name}"))
    ]
    return [file for file in files if file.is_file()]


def _damaged_records(run: RunFolder) -> Iterator[Finding]:
    for file in _records(run):
        try:
            run.config_text() if file.name == CONFIG_FILE else run.read(file)
        except UserError as error:
            if error.where == str(file):  # and not run.json, which has the hash of config.yaml
                name, remedy = str(file.relative_to(run.path)), error.fix
                yield Finding(name, file, None, _size(file), f"damaged: {error.got}", remedy)


def _readable(read: Callable[[], Any]) -> Any:
    """A record, or what follows from some; None also where one is damaged, which has been reported."""
    with contextlib.suppress(UserError):
        return read()
    return None


def data_damage(run: RunFolder) -> str:
    """What is wrong with the run's data, in a few words; empty where nothing is."""
    return "; ".join(finding.damage for finding in _data(run) if finding.damage)


def _data(run: RunFolder) -> Iterator[Finding]:
    """The files of the data, once they are prepared."""
    owner = run.data_dir.resolve().parent.name
    shared = "" if run.data_dir.resolve().parent == run.path.resolve() else f" (shared with {owner})"
    remedy = "the data cannot be made again within a run: start a new run"
    record = _readable(run.data)
    if record is None:
        yield Finding(f"data{shared}", run.data_dir / DATA_FILE, damage=f"{DATA_FILE} cannot be read", remedy=remedy)
        return
    if not record and (run.path / START_FILE).is_file():
        yield Finding(f"data{shared}", run.data_dir / DATA_FILE, damage=f"missing: {DATA_FILE}", remedy=remedy)
    for name, digest in sorted(record.get("files", {}).items()):
        path = run.data_dir / name
        wrong = _wrong(path, digest, name)
        split = name.removesuffix(".parquet").replace("/", " ")
        yield Finding(f"data: {split}{shared}", path, None, _size(path), wrong, remedy)


def _wrong(path: Path, digest: str, name: str) -> str:
    """What is wrong with a file that has this hash, in a few words; empty where nothing is."""
    if not path.is_file():
        return f"missing: {name}"
    return "" if sha256(path) == digest else f"altered: {name}"


def _start(run: RunFolder, start: dict[str, Any]) -> Finding:
    """The policy before any stage."""
    path = Path(start["checkpoint"])
    if run.origin is not None:
        owner = path.parent.name
        return Finding(f"start (shared with {owner})", path, 0, _size(path), damage(path), _ask(run, owner))
    remedy = f"{typed(run, 'resume')} makes it again"
    if _readable(lambda: needs_start(run)) is False:
        again = typed(run, "resume", "--from", run.config.stages[0].label)
        remedy = f"nothing needs it any more; {again} makes it and all after it again"
    return Finding("start", path, 0, _size(path), damage(path), remedy)


def _stage(run: RunFolder, index: int) -> Iterator[Finding]:
    """The checkpoints of one stage, oldest first, with the one that was handed over even where it no longer exists."""
    label, folder, result = run.config.stages[index].label, run.stage_dir(index), _readable(lambda: run.result(index))
    handed = Path(result["checkpoint"]) if result else None
    if result is not None and handed is not None and "shared" in result:
        owner = result["shared"]
        wrong, step = damage(handed) or _replaced(handed, result), step_of(handed)
        yield Finding(f"{label} (shared with {owner})", handed, step, _size(handed), wrong, _ask(run, owner))
        return
    for step, path in reversed(checkpoints_in(folder)):
        wrong = damage(path)
        if path == handed and result is not None:
            wrong = wrong or _replaced(path, result)
        if path.exists():  # a run that is being trained removes old ones
            yield Finding(label, path, step, _size(path), wrong, _remedy(run, index, path, handed))
    if handed is not None and not handed.exists():
        yield Finding(label, handed, step_of(handed), 0, f"missing: {handed.name}", _remedy(run, index, handed, handed))


def _memory(run: RunFolder, index: int) -> Iterator[Finding]:
    """What a stage that is done remembers of its prompts. While a stage trains, its checkpoints vouch for it."""
    label, result = run.config.stages[index].label, _readable(lambda: run.result(index))
    state = (result or {}).get("memory") or NOTHING
    if result is None or not state["records"]:
        return
    file, owner = run.memory(index), result.get("shared")
    again = typed(run, "resume", "--from", label)
    remedy = _ask(run, owner) if owner else f"no weights depend on it any more; {again} makes the stage again"
    what = f"{label}: prompts" + (f" (shared with {owner})" if owner else "")
    yield Finding(what, file, None, _size(file), memory_damage(file, state), remedy)


def _completions(run: RunFolder, index: int) -> Iterator[Finding]:
    """What a stage that is done wrote for a later one to learn from."""
    label, result = run.config.stages[index].label, _readable(lambda: run.result(index)) or {}
    if kept := result.get("completions"):
        file = run.completions(index)
        wrong = _wrong(file, kept, file.name)
        again = f"{typed(run, 'resume', '--from', label)} makes the stage again"
        remedy = _ask(run, result["shared"]) if "shared" in result else again
        yield Finding(f"{label}: completions", file, None, _size(file), wrong, remedy)


def _answers(run: RunFolder, index: int | None, label: str) -> Iterator[Finding]:
    """The answers to the held-out prompts that were written with a success record."""
    found = _readable(lambda: answers_of(run, index))
    if found is not None and found[1]:
        file, digest = found
        wrong = _wrong(file, digest, file.name)
        yield Finding(f"{label}: answers", file, None, _size(file), wrong, "only `gradus diff` shows them")


def _replaced(checkpoint: Path, made: dict[str, Any]) -> str:
    """Whether an undamaged checkpoint is another one than its success record names."""
    return "" if content_of(checkpoint) == made["content"] else "another checkpoint is in its place"


def _remedy(run: RunFolder, index: int, checkpoint: Path, handed: Path | None) -> str:
    """What to do about a damaged checkpoint of one of the run's own stages.

    ``handed``: the checkpoint that the stage hands over; None before the stage is done.
    """
    stages, later = run.config.stages, graph.readers(run.config.stages, index)
    if handed is None:
        return f"{typed(run, 'resume')} continues from the undamaged one before it"
    if checkpoint != handed:
        return "nothing needs it any more"
    carried = any(stages[each].carry for each in later if graph.parent(stages, each) == index)
    if not damage(checkpoint, for_resume=False) and not carried:
        return "what it hands over is undamaged; the state of the finished stage in it is no longer needed"
    if _readable(lambda: needs_checkpoint(run, index)) is not False:
        return f"{typed(run, 'resume')} makes it again"
    again = f"{typed(run, 'resume', '--from', stages[later[0]].label)} makes it and what follows again"
    return f"this run no longer needs it, forks of it may; {again}"


def _ask(run: RunFolder, owner: str) -> str:
    return f"`{gradus_command('verify', owner, runs=run.path.parent)}` says what can be done"


def _size(path: Path) -> int:
    """Bytes of a file or of everything in a folder. A file that is removed meanwhile counts as nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total
