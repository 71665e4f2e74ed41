"""The memory of prompts: one record of fixed width for each group that a stage scored, in one file of its folder.

Records are only appended, in the order in which groups are scored. A checkpoint holds how many there were and their
sha256, so that a resume cuts the file back to what the checkpoint knows, with anything that a kill left half-written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import read_json, sync_folder

if TYPE_CHECKING:
    from gradus.pipeline.types import Rollouts, State

MEMORY_FILE = "prompts.bin"
"""The name of the file, in a stage's folder."""
FIELDS = [
    ("id", "<u8"),
    ("step", "<u4"),
    ("correct", "<u2"),
    ("valid", "<u2"),
    ("reward", "<f4"),
    ("length", "<f4"),
]
"""A record: the prompt; the step that trained on it, 0 where the starting policy was measured; how many completions
were correct and how many could be scored; the mean reward of these, NaN where there are none; their mean tokens, or
those of all where none could be scored."""
BYTES = 24
"""Bytes of a record."""
GROWTH = 1024
"""The fewest records by which memory grows."""


@functools.cache
def dtype() -> Any:
    """The type of a record, for numpy."""
    import numpy

    return numpy.dtype(FIELDS)


def key_of(prompt_id: str) -> int:
    """The number by which the memory knows a prompt: the 16 hexadecimal digits of its id.

    >>> key_of("00000000000000ff")
    255
    """
    with contextlib.suppress(ValueError):
        if len(prompt_id) == 16:
            return int(prompt_id, 16)
    return int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8], "big")


class PromptMemory:
    """The records of one stage. One thread at a time adds to them; they are written when their step has been trained.

    The rows are a function of the stage and the step alone: a batch that is sampled ahead is read only from its own
    step on, and is forgotten where it is not trained on.
    """

    def __init__(self, path: Path, writes: bool = True):
        """``path``: the file; one of the ranks ``writes`` it."""
        self.path, self.writes, self.count = path, writes, 0
        self._rows, self._digest = _empty(0), hashlib.sha256()
        self._written = 0
        """Records that are in the file."""
        self._cut = True
        """Whether the file may have more records than were written."""

    def add(self, rollouts: Rollouts, step: int) -> None:
        """Remember the scored groups of a batch of ``step``."""
        from gradus.pipeline.advantages import group_mean

        assert rollouts.rewards_PK is not None and rollouts.correct_PK is not None and rollouts.valid_PK is not None
        valid_PK = rollouts.valid_PK
        known_P = valid_PK.any(-1)
        counted_PK = valid_PK | ~known_P[:, None]
        new = _empty(len(rollouts.prompts))
        new["id"], new["step"] = [key_of(prompt.id) for prompt in rollouts.prompts], step
        new["correct"], new["valid"] = (rollouts.correct_PK & valid_PK).sum(-1), valid_PK.sum(-1)
        new["reward"] = group_mean(rollouts.rewards_PK, valid_PK)[:, 0].where(known_P, float("nan"))
        new["length"] = group_mean(rollouts.lengths_PK.float(), counted_PK)[:, 0]
        self._append(new)

    @property
    def rows(self) -> Any:
        """All records so far, oldest first; their steps never fall."""
        return self._rows[: self.count]

    def means(self, step: int) -> Any:
        """The mean rewards of the groups of the steps from 1 to ``step`` of which some completion could be scored."""
        rows = self.rows
        rows = rows[(rows["step"] >= 1) & (rows["step"] <= step)]
        return rows["reward"][rows["valid"] > 0]

    def solved(self, begin: int, end: int) -> set[int]:
        """The prompts all of whose scored completions were correct in some of the records from ``begin`` to ``end``."""
        rows = self.rows[begin:end]
        return set(rows["id"][(rows["valid"] > 0) & (rows["correct"] == rows["valid"])].tolist())

    def write(self, step: int) -> None:
        """Append the records of the steps up to ``step`` to the file. What a full disk refuses is tried again later."""
        with contextlib.suppress(OSError):
            self._write(_until(self.rows, step))

    def sync(self) -> None:
        """Make all records durable, those of a batch that was sampled ahead included. Raises: OSError."""
        self._write(self.count, durably=True)

    def finish(self, step: int) -> State:
        """The stage ends with ``step``: keep what belongs to it, durably; returns the last state.

        Raises: OSError.
        """
        kept = _until(self.rows, step)
        self.restore({"records": kept, "sha256": hashlib.sha256(self.rows[:kept].tobytes()).hexdigest()})
        self.sync()
        return self.state()

    def state(self) -> State:
        """How many records there are, and their hash."""
        return {"records": self.count, "sha256": self._digest.hexdigest()}

    def restore(self, state: State | None) -> None:
        """Continue with the records that :meth:`state` counted, from this process or, where it is new, from the file.

        A checkpoint of an earlier version has no such state: nothing is remembered then. Raises: StageFailed.
        """
        state = state or NOTHING
        count = state["records"]
        if count > self.count:
            self._rows = read_rows(self.path, count)
            self.count = self._written = len(self._rows)
        self.count, self._written, self._cut = min(self.count, count), min(self._written, count), True
        self._digest = hashlib.sha256(self.rows.tobytes())
        if self.state() != state:
            what = f"its first {count:,} records are not those that the checkpoint was written with"
            raise StageFailed(f"{self.path} is damaged: {what}")

    def _append(self, new: Any) -> None:
        if self.count + len(new) > len(self._rows):
            grown = _empty(max(2 * len(self._rows), self.count + len(new), GROWTH))
            grown[: self.count] = self.rows
            self._rows = grown
        self._rows[self.count : self.count + len(new)] = new
        self.count += len(new)
        self._digest.update(new.tobytes())

    def _write(self, end: int, durably: bool = False) -> None:
        if not self.writes or (end == 0 and not self.path.exists()):
            return
        self.path.touch()
        with self.path.open("r+b") as file:
            if self._cut:
                file.truncate(self._written * BYTES)
            file.seek(self._written * BYTES)
            file.write(self._rows[self._written : end].tobytes())
            file.flush()
            if durably:
                os.fsync(file.fileno())
        if durably:
            sync_folder(self.path.parent)
        self._written, self._cut = max(self._written, end), False


NOTHING: dict[str, Any] = {"records": 0, "sha256": hashlib.sha256().hexdigest()}
"""The state of a memory without records."""


def _empty(count: int) -> Any:
    import numpy

    return numpy.zeros(count, dtype())


def _until(rows: Any, step: int) -> int:
    """How many records belong to the steps up to ``step``."""
    return int(rows["step"].searchsorted(step, side="right"))


def read_rows(file: Path, count: int = -1) -> Any:
    """The whole records of a file, or the first ``count`` of them; none where there is no such file."""
    import numpy

    return numpy.fromfile(file, dtype(), count) if file.is_file() else _empty(0)


def checked_rows(file: Path, state: dict[str, Any] | None, fix: str) -> Any:
    """The records of a stage that is done, whose success record has ``state`` of them. Raises: UserError."""
    if wrong := memory_damage(file, state or NOTHING):
        raise UserError("the memory of prompts is damaged", where=str(file), got=wrong, fix=fix)
    return read_rows(file, (state or NOTHING)["records"])


def memory_damage(file: Path, state: dict[str, Any]) -> str:
    """What is wrong with the first records of a file, in a few words; empty where they are those of ``state``."""
    left = state["records"] * BYTES
    if not left:
        return ""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while left and (part := stream.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
    except FileNotFoundError:
        return f"missing: {file.name}"
    except OSError as error:
        return f"{file.name}: {error.strerror}"
    return "" if digest.hexdigest() == state["sha256"] else f"altered: {file.name}"


def remembered_by(checkpoint_state: Path) -> dict[str, Any]:
    """What a checkpoint says of the memory, read from the JSON of its state; nothing where it says nothing."""
    source = (read_json(checkpoint_state) or {}).get("source") or {}
    return source.get("groups", source).get("memory") or NOTHING
