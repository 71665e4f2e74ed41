"""A checkpoint: an ordinary Hugging Face folder plus one record, written last, that proves it whole.

Two operations use it and are never confused. *Hand-over*: the next stage takes the weights, the tokenizer and the
template, whose hash is the checkpoint's ``content``; everything else starts fresh. *Resume*: the same stage goes on
and also takes what lies in ``resume/``: optimizer, critic, reference policy, counters.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import folder_in_the_making, read_json, sha256, write_json

if TYPE_CHECKING:
    from gradus.pipeline.policy.policy import Policy

RECORD_FILE = "gradus.json"
CHECKPOINTS = "checkpoints"
"""Folder of a stage's checkpoints, in the stage's folder."""
RESUME = "resume"
"""Folder, in a checkpoint, of what only the same stage needs."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint says of itself."""

    stage: str
    """Label of the stage that wrote it; ``start`` for the policy before any stage."""
    step: int
    parent: str | None
    """Content hash of the checkpoint it was trained from."""
    fingerprint: str
    """Hash of the identity of the stage that produced it."""
    template: str
    """Hash of the prompt template; the next stage must see the same."""
    files: dict[str, str] = field(default_factory=dict)
    """file -> sha256 of everything in the folder but this record."""

    @property
    def content(self) -> str:
        """One hash of everything that is handed over."""
        return self._hash_of(name for name in self.files if not _only_for_resume(name))

    @property
    def state(self) -> str:
        """One hash of the state that a resume needs, and that a stage may carry over from its parent."""
        return self._hash_of(filter(_only_for_resume, self.files))

    def _hash_of(self, names: Iterable[str]) -> str:
        listing = "\n".join(f"{name} {self.files[name]}" for name in sorted(names))
        return hashlib.sha256(listing.encode()).hexdigest()[:16]

    @property
    def resumable(self) -> bool:
        """Whether the stage that wrote it can go on from it."""
        return any(map(_only_for_resume, self.files))


def _only_for_resume(name: str) -> bool:
    return name.startswith(f"{RESUME}/")


def save_checkpoint(
    policy: Policy,
    folder: Path,
    stage: str,
    step: int,
    parent: str | None,
    fingerprint: str,
    write_state: Callable[[Path], None] | None = None,
) -> Path:
    """Write the policy under a temporary name, hash it, write its record, flush, rename; returns ``folder``.

    ``write_state`` fills the folder that it is given with what a resume needs. An interruption at any point leaves
    either the whole checkpoint or none.
    Raises: StageFailed where the disk is full; OSError where it fails otherwise.
    """
    try:
        with folder_in_the_making(folder) as making:
            policy.save(making)
            if write_state is not None:
                (making / RESUME).mkdir()
                write_state(making / RESUME)
            files = {str(p.relative_to(making)): sha256(p) for p in sorted(making.rglob("*")) if p.is_file()}
            record = CheckpointRecord(stage, step, parent, fingerprint, policy.template.digest, files)
            fields = asdict(record)
            write_json(making / RECORD_FILE, fields | {"record": _digest(fields)})
    except Exception as error:  # the libraries that write weights and tokenizers have errors of their own
        if not _no_room(error):
            raise
        raise StageFailed(
            f"there is no room for the checkpoint of step {step} ({folder}): {error}. Earlier checkpoints are whole; "
            "free some space and resume the run"
        ) from error
    return folder


def _no_room(error: Exception) -> bool:
    """Whether a full disk, a quota or a size limit is behind an error of whatever library."""
    return getattr(error, "errno", None) in NO_ROOM or any(f"os error {number}" in str(error) for number in NO_ROOM)


def _digest(fields: dict[str, Any]) -> str:
    """Hash of a record's fields, which it carries itself: nothing else would tell of a flipped bit in it."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def read_record(folder: Path) -> CheckpointRecord:
    """The record of a checkpoint.

    Raises: UserError where the folder is not a checkpoint.
    """
    raw: Any = None
    try:
        raw = read_json(folder / RECORD_FILE) if folder.is_dir() else None
        got = None
        if raw is not None:
            digest = raw.pop("record")
            if digest == _digest(raw):
                return CheckpointRecord(**raw)
            got = f"a damaged {RECORD_FILE}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        got = f"a damaged {RECORD_FILE}: {error}"
    raise UserError(
        "this is not a checkpoint",
        where=str(folder),
        got=got,
        expected=f"a folder with a {RECORD_FILE}",
        fix="name a folder that `gradus status NAME` lists",
    )


def content_of(folder: Path) -> str | None:
    """The content of a checkpoint, as its record tells it; None where it has no whole record."""
    try:
        return read_record(folder).content
    except UserError:
        return None


def damaged_files(folder: Path, for_resume: bool = True) -> list[str]:
    """Files of a checkpoint that are missing or differ from what its record says."""
    return [
        name
        for name, digest in read_record(folder).files.items()
        if (for_resume or not _only_for_resume(name))
        and (not (folder / name).is_file() or sha256(folder / name) != digest)
    ]


def verified_record(folder: Path, with_state: bool = False) -> CheckpointRecord:
    """The record of a checkpoint of which everything that is handed over is as it was written.

    ``with_state`` looks at what a resume needs as well.

    Raises: UserError that names the damaged files.
    """
    damaged = damaged_files(folder, for_resume=with_state)
    if damaged:
        raise UserError(
            "this checkpoint is damaged",
            where=str(folder),
            got=f"missing or altered: {', '.join(damaged)}",
            expected=f"the files whose hashes are in {RECORD_FILE}",
            fix="`gradus resume NAME` makes it again from the checkpoint before it",
        )
    return read_record(folder)


def checkpoints_in(stage_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a stage's checkpoints, newest first, whether they are whole or not."""
    named = [(step_of(path), path) for path in (stage_dir / CHECKPOINTS).glob("step-*")]
    return sorted(((step, path) for step, path in named if step is not None), reverse=True)


def step_of(checkpoint: Path) -> int | None:
    """The step that a stage's checkpoint is called after."""
    step = checkpoint.name.removeprefix("step-")
    return int(step) if step.isdigit() else None


def newest_whole(stage_dir: Path, parent: str, tell: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that the stage can go on from, every file as it was written; damaged ones are told of."""
    for step, path in checkpoints_in(stage_dir):
        try:
            record, damaged = read_record(path), ", ".join(damaged_files(path))
        except UserError as error:
            record, damaged = None, error.got or f"no {RECORD_FILE}"
        if damaged:
            tell(f"the checkpoint of step {step} is damaged ({damaged}); the one before it is used")
        elif record is not None and record.parent == parent and record.resumable:
            return path
    return None


def prune(stage_dir: Path, step: int, keep: int, also: set[int]) -> None:
    """Remove checkpoints but the newest ``keep`` up to ``step`` and those of the steps in ``also``.

    One beyond ``step`` was found damaged when the stage went on from an earlier one.
    """
    older = [each for each, _ in checkpoints_in(stage_dir) if each <= step]
    kept = {f"step-{each:06d}" for each in {*older[:keep], *also}}
    for path in (stage_dir / CHECKPOINTS).iterdir():
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def discard_from(stage_dir: Path, damaged: Path) -> None:
    """Remove a damaged checkpoint and those that were made after it, newest first, so that they are made again."""
    for _, path in checkpoints_in(stage_dir):
        if path.name >= damaged.name:
            shutil.rmtree(path, ignore_errors=True)
