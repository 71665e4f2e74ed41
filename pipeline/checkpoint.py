"""A checkpoint: an ordinary Hugging Face folder plus one record, written last, that proves it whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import folder_in_the_making, read_json, sha256, write_json

if TYPE_CHECKING:
    from pipeline.policy import Policy

RECORD_FILE = "gradus.json"


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint says of itself."""

    stage: str
    """Label of the stage that wrote it; ``start`` for the policy before any stage."""
    step: int
    parent: str | None
    """Content hash of the checkpoint it was trained from."""
    fingerprint: str
    """Hash of the configuration that produced it."""
    template: str
    """Hash of the prompt template; the next stage must see the same."""
    files: dict[str, str] = field(default_factory=dict)
    """file -> sha256 of everything in the folder but this record."""

    @property
    def content(self) -> str:
        """One hash of the whole checkpoint."""
        import hashlib

        listing = "\n".join(f"{name} {digest}" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(listing.encode()).hexdigest()[:16]


def save_checkpoint(policy: Policy, folder: Path, stage: str, step: int, parent: str | None, fingerprint: str) -> Path:
    """Write the policy under a temporary name, hash it, write its record, flush, rename; returns ``folder``.

    An interruption at any point leaves either the whole checkpoint or none.
    """
    with folder_in_the_making(folder) as making:
        policy.save(making)
        files = {str(p.relative_to(making)): sha256(p) for p in sorted(making.rglob("*")) if p.is_file()}
        record = CheckpointRecord(stage, step, parent, fingerprint, policy.template.digest, files)
        write_json(making / RECORD_FILE, asdict(record))
    return folder


def read_record(folder: Path) -> CheckpointRecord:
    """The record of a checkpoint.

    Raises: UserError where the folder is not a checkpoint.
    """
    raw: Any = read_json(folder / RECORD_FILE) if folder.is_dir() else None
    if raw is None:
        raise UserError(
            "this is not a checkpoint",
            where=str(folder),
            expected=f"a folder with a {RECORD_FILE}",
            fix="name a folder that `gradus status NAME` lists",
        )
    return CheckpointRecord(**raw)


def damaged_files(folder: Path) -> list[str]:
    """Files of a checkpoint that are missing or differ from what its record says."""
    record = read_record(folder)
    return [
        name
        for name, digest in record.files.items()
        if not (folder / name).is_file() or sha256(folder / name) != digest
    ]


def verified_record(folder: Path) -> CheckpointRecord:
    """The record of a checkpoint whose every file is as it was written.

    Raises: UserError that names the damaged files.
    """
    damaged = damaged_files(folder)
    if damaged:
        raise UserError(
            "this checkpoint is damaged",
            where=str(folder),
            got=f"missing or altered: {', '.join(damaged)}",
            expected=f"the files whose hashes are in {RECORD_FILE}",
            fix="remove this stage's folder from the run and launch it again; the stage is then trained anew",
        )
    return read_record(folder)
