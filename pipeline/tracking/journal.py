"""The journal: everything that tracking shows, appended line by line while a run trains.

The training process only appends to local files; an uploader reads them and sends them to MLflow. So the journal is
complete, and a tracking server that is slow, dead or absent does not affect training.

Each line is one JSON object with at least ``kind`` and ``time`` (milliseconds since the epoch). A process that is
killed while it writes leaves an incomplete last line: readers wait for its newline, and the next writer supplies one.
"""

from __future__ import annotations

import errno
import json
import math
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

JournalEvent = dict[str, Any]
"""One line of a journal."""

MAX_NAME = 250
"""Longest metric, parameter or tag name that MLflow accepts."""


def tracked_name(name: str) -> str:
    """The nearest name that MLflow accepts for a metric, parameter or tag.

    >>> tracked_name("pass@1"), tracked_name("reward//mean "), tracked_name("share (%)")
    ('pass_at_1', 'reward/mean', 'share _percent')
    """
    name = str(name)
    if re.fullmatch(r"[A-Za-z0-9_./ -]{1,250}", name) and posixpath.normpath(name) == name and name[0] not in "./":
        return name
    name = name.replace("@", "_at_").replace("%", "percent")
    name = re.sub(r"[^A-Za-z0-9_./ -]", "_", name)
    parts = [part.strip() for part in posixpath.normpath(name).split("/")]
    name = "/".join(re.sub(r"_{2,}", "_", part).rstrip("_ ") for part in parts if part.strip(" .") != "")
    return name[:MAX_NAME].rstrip("/ ") or "unnamed"


class EventLog:
    """Appends events to one file. Appending never raises: an event that a full disk refuses is counted in ``lost``."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lost = 0
        """Events that could not be written."""
        self._file: int | None = None
        self._torn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def sync(self) -> None:
        """Make everything appended so far durable. Raises: OSError where that fails, or an event was lost earlier."""
        if self.lost:
            raise OSError(errno.ENOSPC, f"{self.lost} events could not be written", str(self.path))
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, kind: str, **fields: Any) -> None:
        event = {"kind": kind, "time": int(time.time() * 1000), **_plain(fields)}
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        try:
            if self._file is None:
                self._file = self._open()
            if self._torn:
                line = b"\n" + line
            self._torn = os.write(self._file, line) != len(line)  # one write, so that lines never interleave
        except OSError:
            self._torn = True
        if self._torn:
            self.lost += 1

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(descriptor).st_size
        self._torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        return descriptor


class Journal(EventLog):
    """The journal of a run or a stage: one method for each kind of event."""

    def start(self, name: str, tags: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None) -> None:
        """The run starts, or resumes after an interruption; ``params`` are flat, with dotted keys."""
        self._append("start", name=str(name), tags=dict(tags or {}), params=dict(params or {}))

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers at one step. Non-finite numbers would distort a chart's axis, so they are dropped and counted."""
        finite: dict[str, float] = {}
        for name, value in values.items():
            number = _finite(value)
            if number is not None:
                finite[tracked_name(name)] = number
        if dropped := sum(_finite(value) is None for value in values.values()):
            finite["tracking/nonfinite_dropped"] = float(dropped)
        if finite:
            self._append("metrics", step=int(step), values=finite)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """A distribution at one step, shown as quantile curves and a figure."""
        numbers = _plain(values)
        finite = [number for value in numbers if (number := _finite(value)) is not None]
        if finite:
            self._append("histogram", step=int(step), name=tracked_name(name), values=finite)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of text and numbers, such as sample completions."""
        self._append("table", name=tracked_name(name), step=int(step), rows=[dict(row) for row in rows])

    def rollouts(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        """Groups of completions that a step sampled, as ``RolloutRecord`` keeps them."""
        self._append("rollouts", step=int(step), groups=[dict(group) for group in groups])

    def dataset(
        self, name: str, source: str, digest: str, rows: int, context: str, columns: Sequence[str] = ()
    ) -> None:
        """A data set that the run reads; ``context`` is its purpose (training, evaluation)."""
        self._append(
            "dataset", name=name, source=source, digest=digest, rows=int(rows), context=context, columns=list(columns)
        )

    def model(self, name: str, path: str | Path, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """A checkpoint and its scores; tracking records its path and copies nothing."""
        finite = {tracked_name(k): number for k, v in (metrics or {}).items() if (number := _finite(v)) is not None}
        self._append("model", name=name, path=self._stored(path), step=int(step), metrics=finite)

    def artifact(self, path: str | Path) -> None:
        """A small file that is uploaded."""
        self._append("artifact", path=self._stored(path))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Tags of the run; ``mlflow.note.content`` is its description, in Markdown."""
        self._append("tags", values=dict(values))

    def end(self, status: str = "FINISHED") -> None:
        """The run ends: FINISHED, FAILED or KILLED."""
        self._append("end", status=status)

    def _stored(self, path: str | Path) -> str:
        """A path as the journal holds it: relative to the journal's folder where it is in the run, which may move."""
        place = Path(path).absolute()
        inside = place.is_relative_to(run_dir_of(self.path))
        return os.path.relpath(place, self.path.absolute().parent) if inside else str(place)


class SilentJournal(Journal):
    """The journal of a rank that does not lead: it writes nothing."""

    def _append(self, kind: str, **fields: Any) -> None:
        pass


def iter_events(path: str | Path, offset: int = 0) -> Iterator[tuple[JournalEvent | None, int]]:
    """The journal's complete lines from byte ``offset`` on: (event, offset after it), with None for a damaged line.

    A last line without its newline is not yielded: it is still being written, or its writer was killed.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; a generator's with would hide the missing file)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            yield (event if isinstance(event, dict) and "kind" in event else None), offset


def read_events(path: str | Path, offset: int = 0) -> tuple[list[JournalEvent], int]:
    """Every readable event from byte ``offset`` on, and the offset to continue from."""
    events: list[JournalEvent] = []
    for event, behind in iter_events(path, offset):
        offset = behind
        if event is not None:
            events.append(event)
    return events, offset


def located(journal: Path, stored: str) -> Path:
    """Where a file is now that a journal names.

    Journals of earlier versions hold absolute paths; if the run has moved since, the file has moved with it.
    """
    run_dir, path = run_dir_of(journal), Path(stored)
    if not path.is_absolute():
        return Path(os.path.normpath(journal.absolute().parent / path))
    names = [place for place, part in enumerate(path.parts) if part == run_dir.name]
    moved = [run_dir.joinpath(*path.parts[place + 1 :]) for place in reversed(names)]
    return next((each for each in moved if each.exists()), path)


def run_dir_of(journal: Path) -> Path:
    """The folder of the run that a journal belongs to: its own folder, or, for a stage's journal, two above."""
    folder = journal.absolute().parent
    return folder.parents[1] if folder.parent.name == "stages" else folder


def journals(run_dir: str | Path) -> list[tuple[str, Path]]:
    """(label, file) of every journal of a run folder that exists: the parent ("") first, then the stages in order."""
    run_dir = Path(run_dir)
    stages = sorted(path for path in run_dir.glob("stages/*/journal.jsonl"))
    parent = run_dir / "journal.jsonl"
    return ([("", parent)] if parent.exists() else []) + [(path.parent.name, path) for path in stages]


def metric_history(path: str | Path) -> dict[str, dict[int, float]]:
    """metric -> step -> value. A resumed run repeats steps with the same values; the first one written is used."""
    history: dict[str, dict[int, float]] = {}
    for event, _ in iter_events(path):
        if event is not None and event["kind"] == "metrics":
            for name, value in event["values"].items():
                history.setdefault(name, {}).setdefault(event["step"], value)
    return history


def _plain(value: Any) -> Any:
    """``value`` as plain data for JSON: non-finite numbers become None, tensors and arrays lists, the rest text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # a tensor or an array, of any rank
        return _plain(value.tolist())
    return str(value)


def _finite(value: Any) -> float | None:
    """``value`` as a finite float, or None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
