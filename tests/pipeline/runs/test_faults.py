"""What a checkpoint survives: a failure, a full disk or a kill at every single change that writing it makes."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from pathlib import Path

import pytest
import torch
from faults import Faults, Killed, largest_file
from small_pipeline import STAGE_CONFIGS, pipeline, write_task

from gradus.flows.order import run_plain
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.files import remove_leftovers
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.runs.checkpoint import (
    checkpoints_in,
    damaged_files,
    newest_whole,
    prune,
    read_record,
    save_checkpoint,
)
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.same_outcome import outcome_differences
from gradus.pipeline.training.learner.state_files import read_state, write_state

STATE = {"learner": {"moments": torch.arange(2000.0)}, "progress": {"step": 2}}
PARENT = "parent"


@pytest.fixture
def stage_dir(policy: Policy, tmp_path: Path) -> Path:
    """A stage's folder with the checkpoint of step 1."""
    folder = tmp_path / "stages" / "01-any"
    save(policy, folder, 1)
    return folder


def save(policy: Policy, stage_dir: Path, step: int) -> Path:
    folder = stage_dir / "checkpoints" / f"step-{step:06d}"
    return save_checkpoint(policy, folder, "any", step, PARENT, "f", lambda at: write_state(at, STATE))


def told(_: str) -> None:
    raise AssertionError("no checkpoint may be damaged")


def changes_of_a_save(faults: Faults, policy: Policy, stage_dir: Path) -> int:
    with faults.watching(stage_dir) as clean:
        shutil.rmtree(save(policy, stage_dir, 2))
    wanted = {"open", "os.mkdir", "os.rename", "os.fsync"}
    assert wanted <= set(clean.seen)
    last = len(clean.seen) - 1 - clean.seen[::-1].index("os.fsync")
    return last + 1


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_every_change_leaves_the_one_before(
    faults: Faults, policy: Policy, stage_dir: Path, error: int
) -> None:
    total = changes_of_a_save(faults, policy, stage_dir)
    for number in range(1, total + 1):
        expected = StageFailed if error == errno.ENOSPC else OSError
        with faults.watching(stage_dir, fail_at=number, error=error), pytest.raises(expected, match="injected at"):
            save(policy, stage_dir, 2)
        whole = newest_whole(stage_dir, PARENT, told)
        assert whole is not None
        # The very last change makes the folder's new name durable: the checkpoint is there, whole.
        assert whole.name == ("step-000002" if number == total else "step-000001")
        assert [p.name for p in whole.parent.iterdir() if p.name.startswith(".")] == [], "nothing is left behind"
    save(policy, stage_dir, 2)
    assert newest_whole(stage_dir, PARENT, told) == stage_dir / "checkpoints" / "step-000002"


def test_a_kill_before_every_change_leaves_a_whole_one(faults: Faults, policy: Policy, stage_dir: Path) -> None:
    total = changes_of_a_save(faults, policy, stage_dir)
    for number in range(1, total + 1):
        with faults.watching(stage_dir, die_at=number), pytest.raises(Killed):
            save(policy, stage_dir, 2)
        whole = newest_whole(stage_dir, PARENT, told)
        assert whole is not None and not damaged_files(whole)
        remove_leftovers(stage_dir)
        assert sorted(p.name for p in whole.parent.iterdir()) in (["step-000001"], ["step-000001", "step-000002"])
    assert whole.name == "step-000002", "only its durability was missing"


def test_a_kill_while_a_damaged_one_is_replaced(faults: Faults, policy: Policy, stage_dir: Path) -> None:
    def damaged() -> None:
        remove_leftovers(stage_dir)
        shutil.rmtree(stage_dir / "checkpoints" / "step-000002", ignore_errors=True)
        (save(policy, stage_dir, 2) / "model.safetensors").write_bytes(b"")

    damaged()
    with faults.watching(stage_dir) as clean:
        save(policy, stage_dir, 2)
    assert {"os.remove", "os.rmdir"} & set(clean.seen)
    for number in range(1, clean.count + 1):
        damaged()
        with faults.watching(stage_dir, die_at=number), pytest.raises(Killed):
            save(policy, stage_dir, 2)
        whole = newest_whole(stage_dir, PARENT, lambda text: None)
        assert whole is not None and whole.name in ("step-000001", "step-000002")


def test_a_kill_while_old_ones_are_removed(faults: Faults, policy: Policy, stage_dir: Path) -> None:
    for step in (2, 3, 4):
        save(policy, stage_dir, step)
    with faults.watching(stage_dir) as clean:
        prune(stage_dir, 4, 2, {1})
    assert [step for step, _ in checkpoints_in(stage_dir)] == [4, 3, 1], "the newest two, and the best"
    for number in range(1, clean.count + 1):
        save(policy, stage_dir, 2)
        with faults.watching(stage_dir, die_at=number), pytest.raises(Killed):
            prune(stage_dir, 4, 2, {1})
        assert newest_whole(stage_dir, PARENT, told) == stage_dir / "checkpoints" / "step-000004"


def test_no_room_for_any_of_its_files(policy: Policy, stage_dir: Path) -> None:
    """The kernel refuses a write in the middle of every file, those that Rust writes included."""
    sizes = [path.stat().st_size for path in (stage_dir / "checkpoints").rglob("*") if path.is_file()]
    for size in sorted({size - 1 for size in sizes} | {size // 2 for size in sizes}):
        with largest_file(size), pytest.raises(StageFailed, match="no room for the checkpoint of step 2"):
            save(policy, stage_dir, 2)
        assert [p.name for p in (stage_dir / "checkpoints").iterdir()] == ["step-000001"]
        assert newest_whole(stage_dir, PARENT, told) is not None
    save(policy, stage_dir, 2)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("file", ["model.safetensors", "resume/state.safetensors", "gradus.json"])
def test_a_damaged_checkpoint_is_passed_over_and_told_of(
    policy: Policy, stage_dir: Path, damage: str, file: str
) -> None:
    path = save(policy, stage_dir, 2) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    {"flip": lambda: path.write_bytes(data), "cut": lambda: path.write_bytes(data[:-9]), "remove": path.unlink}[
        damage
    ]()
    notes: list[str] = []
    assert newest_whole(stage_dir, PARENT, notes.append) == stage_dir / "checkpoints" / "step-000001"
    assert len(notes) == 1 and "step 2" in notes[0] and "damaged" in notes[0]


def test_what_is_read_back_is_what_was_written(policy: Policy, stage_dir: Path) -> None:
    state = read_state(stage_dir / "checkpoints" / "step-000001" / "resume")
    assert torch.equal(state["learner"]["moments"], STATE["learner"]["moments"]) and state["progress"] == {"step": 2}


def test_content_is_what_is_handed_over(policy: Policy, stage_dir: Path, tmp_path: Path) -> None:
    plain = save_checkpoint(policy, tmp_path / "plain", "any", 9, None, "g")
    record = read_record(stage_dir / "checkpoints" / "step-000001")
    assert record.resumable and not read_record(plain).resumable
    assert record.content == read_record(plain).content


def whole_run(folder: Path, name: str) -> RunFolder:
    """Two stages from the data to the summary, all that a launch writes."""
    config = pipeline([{"stage": "sft"}, {"stage": "vapo", "group_size": 2}], checkpoints={"every_steps": 1})
    run = RunFolder.create(folder / "runs", config, name, folder / "tiny.yaml", STAGE_CONFIGS)
    with run.lock():
        run_plain(run.path, Observer())
    return run


def test_a_kill_before_any_change_of_a_whole_run(faults: Faults, tmp_path: Path) -> None:
    write_task(tmp_path)
    with faults.watching(tmp_path / "runs") as clean:
        undisturbed = whole_run(tmp_path, "undisturbed")
    moments = sorted(random.sample(range(1, clean.count + 1), 15))
    print("moments:", moments, "of", clean.count)
    for number in moments:
        with contextlib.suppress(Killed), faults.watching(tmp_path / "runs", die_at=number):
            whole_run(tmp_path, f"killed-{number}")
        run = whole_run(tmp_path, f"killed-{number}")
        assert outcome_differences(undisturbed, run) == []
        assert run.state() == "done" and not list(run.path.rglob(".*")) and not list(run.path.rglob("*.attempt-*"))
