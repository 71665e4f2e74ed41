"""A checkpoint: an ordinary Hugging Face folder and a record with the hashes of its files, which is written last.

A checkpoint is used in two ways. *Hand-over*: the next stage takes the weights, the tokenizer and the template, whose
hash is the checkpoint's ``content``; everything else starts fresh. *Resume*: the same stage continues, and also takes
the files in ``resume/``: optimizer, critic, reference policy, counters.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import folder_in_the_making, read_json, sha256
from gradus.pipeline.common.records import SEAL, digest_of, write_sealed
from gradus.pipeline.tasks.prompts.memory import MEMORY_FILE, memory_damage, remembered_by

if TYPE_CHECKING:
    from gradus.pipeline.policy.prompts import Template

RECORD_FILE = "gradus.json"
"""The record of a checkpoint, in its folder."""
CHECKPOINTS = "checkpoints"
"""The folder of a stage's checkpoints, in the stage's folder."""
RESUME = "resume"
"""The folder in a checkpoint with the files that only a resume of the same stage needs."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota and a size limit."""


@dataclass(frozen=True)
class CheckpointRecord:
    """The record of a checkpoint: where it comes from, and the hashes of its files."""

    stage: str
    """The label of the stage that wrote it; ``start`` for the policy before any stage."""
    step: int
    parent: str | None
    """The content hash of the checkpoint that it was trained from."""
    fingerprint: str
    """Hash of the identity of the stage that produced it."""
    template: str
    """Hash of the prompt template; the next stage must see the same."""
    files: dict[str, str] = field(default_factory=dict)
    """file -> sha256, for every file in the folder except this record."""

    @property
    def content(self) -> str:
        """One hash of all files that are handed over."""
        return self._hash_of(name for name in self.files if not _only_for_resume(name))

    @property
    def state(self) -> str:
        """One hash of the state that a resume needs, which the next stage can carry over."""
        return self._hash_of(filter(_only_for_resume, self.files))

    def _hash_of(self, names: Iterable[str]) -> str:
        listing = "\n".join(f"{name} {self.files[name]}" for name in sorted(names))
        return hashlib.sha256(listing.encode()).hexdigest()[:16]

    @property
    def resumable(self) -> bool:
        """Whether the stage that wrote it can be resumed from it."""
        return any(map(_only_for_resume, self.files))


def _only_for_resume(name: str) -> bool:
    return name.startswith(f"{RESUME}/")


class Saved(Protocol):
    """What a checkpoint is made of: a policy, or what can be written as one."""

    @property
    def template(self) -> Template: ...
    def save(self, folder: Path) -> None: ...


def save_checkpoint(
    policy: Saved,
    folder: Path,
    stage: str,
    step: int,
    parent: str | None,
    fingerprint: str,
    write_state: Callable[[Path], None] | None = None,
) -> Path:
    """Write the policy under a temporary name, hash it, write its record, flush, and rename; returns ``folder``.

    ``write_state`` writes what a resume needs into the folder that it gets. An interruption at any point leaves either
    the complete checkpoint or none.

    Raises: StageFailed where the disk is full; OSError where writing fails otherwise.
    """
    try:
        with folder_in_the_making(folder) as making:
            policy.save(making)
            if write_state is not None:
                (making / RESUME).mkdir()
                write_state(making / RESUME)
            files = {str(p.relative_to(making)): sha256(p) for p in sorted(making.rglob("*")) if p.is_file()}
            record = CheckpointRecord(stage, step, parent, fingerprint, policy.template.digest, files)
            write_sealed(making / RECORD_FILE, asdict(record))
    except Exception as error:  # the libraries that write weights and tokenizers raise their own errors
        if not _no_room(error):
            raise
        raise StageFailed(
            f"there is no room for the checkpoint of step {step} ({folder}): {error}. Earlier checkpoints are whole; "
            "free some space and resume the run"
        ) from error
    return folder


def _no_room(error: Exception) -> bool:
    """Whether an error, of any library, was caused by a full disk, a quota or a size limit."""
    return getattr(error, "errno", None) in NO_ROOM or any(f"os error {number}" in str(error) for number in NO_ROOM)


def read_record(folder: Path) -> CheckpointRecord:
    """The record of a checkpoint. Raises: UserError where the folder has no undamaged one."""
    raw: Any = None
    try:
        raw = read_json(folder / RECORD_FILE) if folder.is_dir() else None
        got = None
        if raw is not None:
            digest = raw.pop(SEAL)
            if digest == digest_of(raw):
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
    """The content hash in the record of a checkpoint; None where there is no undamaged record."""
    try:
        return read_record(folder).content
    except UserError:
        return None


def damaged_files(folder: Path, for_resume: bool = True) -> list[str]:
    """The files of a checkpoint that are missing or differ from its record."""
    return [
        name
        for name, digest in read_record(folder).files.items()
        if (for_resume or not _only_for_resume(name))
        and (not (folder / name).is_file() or sha256(folder / name) != digest)
    ]


def verified_record(folder: Path, with_state: bool = False) -> CheckpointRecord:
    """The record of a checkpoint, once the hashes of all files that are handed over have been checked.

    ``with_state``: also check the files that a resume needs. Raises: UserError that names the damaged files.
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
    """(step, folder) of all checkpoints of a stage, newest first; they are not checked for damage."""
    named = [(step_of(path), path) for path in (stage_dir / CHECKPOINTS).glob("step-*")]
    return sorted(((step, path) for step, path in named if step is not None), reverse=True)


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a stage's checkpoint; None where there is none."""
    step = checkpoint.name.removeprefix("step-")
    return int(step) if step.isdigit() else None


def newest_whole(stage_dir: Path, parent: str, report: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint that the stage can resume from; ``report`` is called for each damaged one."""
    for step, path in checkpoints_in(stage_dir):
        try:
            record, damaged = read_record(path), ", ".join(damaged_files(path))
            damaged = damaged or memory_damage(stage_dir / MEMORY_FILE, remembered_by(path / RESUME / "state.json"))
        except UserError as error:
            record, damaged = None, error.got or f"no {RECORD_FILE}"
        if damaged:
            report(f"the checkpoint of step {step} is damaged ({damaged}); the one before it is used")
        elif record is not None and record.parent == parent and record.resumable:
            return path
    return None


def prune(stage_dir: Path, step: int, keep: int, also: set[int]) -> None:
    """Remove all checkpoints except the newest ``keep`` up to ``step`` and those of the steps in ``also``.

    Checkpoints after ``step`` were found damaged when the stage was resumed from an earlier one.
    """
    older = [each for each, _ in checkpoints_in(stage_dir) if each <= step]
    kept = {f"step-{each:06d}" for each in {*older[:keep], *also}}
    for _, path in checkpoints_in(stage_dir):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def discard_from(stage_dir: Path, damaged: Path) -> None:
    """Remove a damaged checkpoint and all later ones, newest first, so that they are made again."""
    for _, path in checkpoints_in(stage_dir):
        if path.name >= damaged.name:
            shutil.rmtree(path, ignore_errors=True)
