"""What survives a loss of power: the order of write, fsync, rename and fsync of the folder, in all that is kept.

Each system call is recorded with the inode that it concerns, so that a file under its final name can be recognised as
the very one that was flushed under another.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scored_batches import scored, stream_of
from small_pipeline import pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import folder_in_the_making, write_json, write_text
from gradus.pipeline.common.ranks import ALONE
from gradus.pipeline.config.pipeline import TrackingConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.runs.checkpoint import (
    RECORD_FILE,
    content_of,
    damaged_files,
    newest_whole,
    read_record,
    save_checkpoint,
)
from gradus.pipeline.runs.sampled.record import ROLLOUTS_FILE, RolloutRecord
from gradus.pipeline.tasks.prompts.completions import COMPLETIONS_FILE, KeptCompletions
from gradus.pipeline.tasks.prompts.memory import MEMORY_FILE, PromptMemory, read_rows
from gradus.pipeline.tracking.journal import Journal, read_events
from gradus.pipeline.training import checkpoints
from gradus.pipeline.training.checkpoints import StageCheckpoints
from gradus.pipeline.training.learned import Learned
from gradus.pipeline.types import State

STATE: State = {"moments": torch.arange(4.0)}


class Calls:
    """Records fsync, replace and appending writes: (name, inode)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.made: list[tuple[str, int]] = []
        fsync, replace, write = os.fsync, os.replace, os.write

        def recorded_fsync(descriptor: int) -> None:
            self.made.append(("fsync", os.fstat(descriptor).st_ino))
            fsync(descriptor)

        def recorded_replace(source: Any, target: Any) -> None:
            self.made.append(("rename", os.stat(source).st_ino))
            replace(source, target)

        def recorded_write(descriptor: int, data: bytes) -> int:
            self.made.append(("write", os.fstat(descriptor).st_ino))
            return write(descriptor, data)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "replace", recorded_replace)
        monkeypatch.setattr(os, "write", recorded_write)

    def place(self, name: str, path: Path) -> int:
        """When the call was made for what is at ``path`` now. It fails where it was not."""
        return self.made.index((name, path.stat().st_ino))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.mark.parametrize("write", [write_text, write_json])
def test_a_file_is_flushed_then_renamed_then_its_folder_is_flushed(tmp_path: Path, calls: Calls, write: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text("the earlier one")
    earlier = path.stat().st_ino
    write(path, "text")
    assert path.stat().st_ino != earlier, "the earlier file is not written into"
    assert calls.made == [
        ("fsync", path.stat().st_ino),
        ("rename", path.stat().st_ino),
        ("fsync", tmp_path.stat().st_ino),
    ]


def test_all_of_the_text_is_written_before_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not still in a buffer of this process."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    write_text(tmp_path / "a", "text")
    assert sizes[0] == 4


def test_a_folder_s_files_and_folders_are_flushed_before_it_gets_its_name(tmp_path: Path, calls: Calls) -> None:
    final = tmp_path / "final"
    with folder_in_the_making(final) as making:
        (making / "deep" / "er").mkdir(parents=True)
        for name in ("one", "deep/two", "deep/er/three"):
            (making / name).write_text(name)
        assert not final.exists()
    renamed = calls.place("rename", final)
    for path in (final, *final.rglob("*")):
        assert calls.place("fsync", path) < renamed, f"{path} was not durable when it got its name"
    assert calls.made[-1] == ("fsync", tmp_path.stat().st_ino) and len(calls.made) - 1 > renamed


def test_a_checkpoint_s_record_is_written_last_and_all_of_it_is_flushed(
    policy: Policy, tmp_path: Path, calls: Calls
) -> None:
    def write_state(resume: Path) -> None:
        assert not (resume.parent / RECORD_FILE).exists()
        (resume / "state.json").write_text("{}")

    folder = save_checkpoint(policy, tmp_path / "step-000001", "a", 1, "parent", "f", write_state)
    renamed = calls.place("rename", folder)
    paths = [folder, *folder.rglob("*")]
    assert {"model.safetensors", "state.json", RECORD_FILE} <= {path.name for path in paths}
    assert all(calls.place("fsync", path) < renamed for path in paths)
    assert calls.made[-1] == ("fsync", tmp_path.stat().st_ino)


def test_curves_are_durable_before_the_checkpoint_that_they_lead_to(tmp_path: Path, calls: Calls) -> None:
    """So that no resume begins behind the end of its curves."""
    journal = Journal(tmp_path / "journal.jsonl")
    setup: Any = SimpleNamespace(
        policy=tiny_policy(), journal=journal, folder=tmp_path, ranks=ALONE, parent="p", fingerprint="f",
        resume_from=None, pipeline=pipeline([{"stage": "sft"}]), config=SimpleNamespace(label="sft"),
        memory=PromptMemory(tmp_path / MEMORY_FILE), completions=KeptCompletions(tmp_path / COMPLETIONS_FILE, []),
        rollout_record=RolloutRecord(tmp_path / ROLLOUTS_FILE, TrackingConfig(), writes=False),
    )  # fmt: skip
    taken = stream_of(2).at(0, 2)
    setup.memory.add(scored(taken, [[True, False]] * 2), 1)
    journal.metrics(1, {"loss": 1.0})
    folder = StageCheckpoints(setup).save(1, lambda: STATE, ())
    written, flushed = calls.place("write", journal.path), calls.place("fsync", journal.path)
    assert written < flushed < calls.place("rename", folder)
    assert calls.place("fsync", setup.memory.path) < calls.place("rename", folder)
    assert len(read_rows(setup.memory.path)) == 2


def test_an_event_that_was_lost_is_no_durable_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint must not be written over curves that lack a step."""
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics(1, {"loss": 1.0})
    journal.sync()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
        journal.metrics(2, {"loss": 1.0})
    with pytest.raises(OSError, match="1 events could not be written"):
        journal.sync()


def test_an_event_is_one_write_of_a_whole_line(tmp_path: Path, calls: Calls) -> None:
    """Lines of several processes never interleave, and nothing waits in a buffer."""
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics(1, {"loss": 1.0})
    journal.metrics(2, {"loss": 0.5})
    assert [name for name, _ in calls.made if name == "write"] == ["write", "write"]
    assert [event["step"] for event in read_events(journal.path)[0]] == [1, 2]


# -- what a checkpoint says of itself


def save(policy: Policy, stage_dir: Path, step: int, parent: str) -> Path:
    return save_checkpoint(
        policy, stage_dir / "checkpoints" / f"step-{step:06d}", "a", step, parent, "f",
        lambda resume: (resume / "state.json").write_text("{}"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [("step", 9), ("parent", "other"), ("stage", "b"), ("fingerprint", "g"), ("template", "t")]
)
def test_a_record_that_was_altered_is_damaged_although_its_files_are_whole(
    policy: Policy, tmp_path: Path, field: str, value: Any
) -> None:
    folder = save(policy, tmp_path, 1, "parent")
    assert damaged_files(folder) == []
    record = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps(record | {field: value}))
    with pytest.raises(UserError, match="not a checkpoint") as refused:
        read_record(folder)
    assert refused.value.got == f"a damaged {RECORD_FILE}"
    assert content_of(folder) is None
    said: list[str] = []
    assert newest_whole(tmp_path, "parent", said.append) is None and "damaged gradus.json" in said[0]


def test_a_record_without_a_hash_is_damaged(policy: Policy, tmp_path: Path) -> None:
    folder = save(policy, tmp_path, 1, "parent")
    record = json.loads((folder / RECORD_FILE).read_text())
    del record["record"]
    (folder / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="not a checkpoint"):
        read_record(folder)


def test_a_stage_never_resumes_from_a_checkpoint_of_another_parent(policy: Policy, tmp_path: Path) -> None:
    """Such a one is whole, so nothing is reported; the newest of this parent counts, if there is one."""
    said: list[str] = []
    own = save(policy, tmp_path, 1, "parent")
    save(policy, tmp_path, 2, "another")
    assert newest_whole(tmp_path, "parent", said.append) == own
    assert newest_whole(tmp_path, "a third", said.append) is None
    assert said == []


def test_the_state_of_a_checkpoint_of_another_parent_is_not_taken_over(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where one is named: neither its weights nor its optimizer."""
    folder, learned = save(policy, tmp_path, 1, "another"), Learned.__new__(Learned)
    learned.setup = SimpleNamespace(parent="parent")  # type: ignore[assignment]
    monkeypatch.setattr(Learned, "restore_weights", lambda *_: pytest.fail("the weights were taken over"))
    with pytest.raises(AssertionError, match="resumes from its own checkpoints"):
        learned.restore(folder)


def test_a_stage_s_checkpoints_say_whose_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer writes its own parent, fingerprint and label into them, and every state before the record."""
    setup: Any = SimpleNamespace(
        policy=tiny_policy(), journal=Journal(tmp_path / "journal.jsonl"), folder=tmp_path, ranks=ALONE, parent="p",
        fingerprint="f", resume_from=None, pipeline=pipeline([{"stage": "sft"}]), config=SimpleNamespace(label="sft"),
        memory=PromptMemory(tmp_path / MEMORY_FILE), completions=KeptCompletions(tmp_path / COMPLETIONS_FILE, []),
        rollout_record=RolloutRecord(tmp_path / ROLLOUTS_FILE, TrackingConfig(), writes=False),
    )  # fmt: skip
    order: list[str] = []
    monkeypatch.setattr(setup.journal, "sync", lambda: order.append("curves"))
    monkeypatch.setattr(checkpoints, "write_state", lambda folder, state: order.append("state"))
    folder = StageCheckpoints(setup).save(3, lambda: STATE, ())
    record = read_record(folder)
    assert (record.stage, record.step, record.parent, record.fingerprint) == ("sft", 3, "p", "f")
    assert order == ["curves", "state"]
