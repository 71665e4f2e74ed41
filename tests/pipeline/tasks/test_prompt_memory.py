"""The memory of prompts: what a record says, and what of a file counts after a crash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scored_batches import scored, stream_of

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.tasks.prompts import rates as rates_module
from gradus.pipeline.tasks.prompts.memory import BYTES, PromptMemory, dtype, key_of, memory_damage, read_rows
from gradus.pipeline.tasks.prompts.rates import among, pooled, rates


def batch(*correct: list[bool], valid: list[list[bool]] | None = None):
    return scored(stream_of(len(correct)).at(0, len(correct)), list(correct), valid)


def test_a_record_says_what_a_group_was(tmp_path: Path) -> None:
    memory = PromptMemory(tmp_path / "prompts.bin")
    rollouts = batch([True, False, True], [True, True, False], valid=[[True, True, False], [False, False, False]])
    rollouts.mask_PKT[0, 1, 1:] = False  # lengths 2, 1, 2 of the first; 2 each of the second
    memory.add(rollouts, 7)
    memory.write(7)
    first, second = read_rows(memory.path)
    assert dtype().itemsize == BYTES and BYTES < 100
    assert [int(row["id"]) for row in (first, second)] == [key_of(prompt.id) for prompt in rollouts.prompts]
    assert (first["step"], first["correct"], first["valid"], first["reward"], first["length"]) == (7, 1, 2, 0.5, 1.5)
    assert (second["correct"], second["valid"], second["length"]) == (0, 0, 2) and np.isnan(second["reward"])


def test_what_was_sampled_ahead_is_not_in_the_file_before_its_step(tmp_path: Path) -> None:
    memory = PromptMemory(tmp_path / "prompts.bin")
    for step in (1, 2, 3):
        memory.add(batch([True, False]), step)
    memory.write(2)
    assert read_rows(memory.path)["step"].tolist() == [1, 2]
    memory.sync()
    assert len(read_rows(memory.path)) == 3, "a checkpoint may count it"
    assert memory.finish(2)["records"] == len(read_rows(memory.path)) == 2, "the stage ended before it was trained on"


@pytest.mark.parametrize("tail", [b"", b"torn", bytes(2 * BYTES), bytes(5 * BYTES + 1)])
def test_a_resume_cuts_the_file_to_what_the_checkpoint_counted(tmp_path: Path, tail: bytes) -> None:
    memory = PromptMemory(tmp_path / "prompts.bin")
    memory.add(batch([True, False], [False, False]), 1)
    state = memory.state()
    memory.write(1)
    with memory.path.open("ab") as file:
        file.write(tail)
    again = PromptMemory(memory.path)
    again.restore(state)
    for each in (memory, again):
        each.add(batch([True, True]), 2)
    assert again.finish(2) == memory.state() and memory.path.stat().st_size == 3 * BYTES
    assert read_rows(memory.path).tobytes() == memory.rows.tobytes()


def test_a_checkpoint_without_a_memory_begins_one(tmp_path: Path) -> None:
    """As those of earlier versions are; what the file had is of no checkpoint."""
    (tmp_path / "prompts.bin").write_bytes(bytes(3 * BYTES))
    memory = PromptMemory(tmp_path / "prompts.bin")
    memory.restore(None)
    memory.add(batch([True, True]), 5)
    memory.write(5)
    assert read_rows(memory.path)["step"].tolist() == [5]


def test_a_batch_that_is_dropped_is_forgotten(tmp_path: Path) -> None:
    memory = PromptMemory(tmp_path / "prompts.bin")
    memory.add(batch([True, True]), 1)
    before = memory.state()
    memory.add(batch([False, False]), 2)
    memory.sync()
    memory.restore(before)
    memory.add(batch([True, False]), 2)
    memory.write(2)
    assert read_rows(memory.path)["correct"].tolist() == [2, 1]


def test_damage_is_named_and_no_one_continues_with_it(tmp_path: Path) -> None:
    memory = PromptMemory(tmp_path / "prompts.bin")
    memory.add(batch([True, True], [False, True]), 1)
    shorter = memory.state()
    memory.add(batch([True, True]), 2)
    memory.sync()
    whole = memory.path.read_bytes()
    memory.path.write_bytes(whole[:-1] + b"\xff")
    assert memory_damage(memory.path, memory.state()) == "altered: prompts.bin"
    assert memory_damage(memory.path, shorter) == "", "an older checkpoint may still agree"
    with pytest.raises(StageFailed, match="first 3 records are not those"):
        PromptMemory(memory.path).restore(memory.state())
    memory.path.write_bytes(whole[:-1])
    assert memory_damage(memory.path, memory.state()) == "altered: prompts.bin"
    memory.path.unlink()
    assert memory_damage(memory.path, memory.state()) == "missing: prompts.bin"


def test_ranks_that_do_not_lead_remember_the_same_and_write_nothing(tmp_path: Path) -> None:
    memory = PromptMemory(tmp_path / "prompts.bin", writes=False)
    memory.add(batch([True, False]), 1)
    memory.sync()
    assert memory.finish(1)["records"] == 1 and not memory.path.exists()


def test_means_are_those_of_scored_groups_that_were_trained_on() -> None:
    memory = PromptMemory(Path("unwritten"), writes=False)
    memory.add(batch([True, True]), 0)  # a profile of the starting policy
    memory.add(batch([True, False], [True, True], valid=[[True, True], [False, False]]), 1)
    memory.add(batch([False, False]), 2)  # sampled ahead
    assert torch.tensor(memory.means(1)).tolist() == [0.5]


def test_visits_are_pooled_by_prompt() -> None:
    """Also where ids differ in their lowest bits alone, by which nothing is sorted at first."""
    rows = np.zeros(7, dtype())
    rows["id"] = [9, 2**63, 8, 9, 2**63, 10, 9]
    rows["correct"], rows["valid"], rows["reward"] = [1, 4, 0, 2, 4, 0, 0], [4, 4, 4, 4, 4, 0, 0], [1, 1, 0, 2, 1, 0, 0]
    rows["reward"][5] = np.nan
    found = pooled(rows)
    assert found.key.tolist() == [8, 9, 10, 2**63] and found.visits.tolist() == [1, 3, 1, 2]
    assert found.correct.tolist() == [0, 3, 0, 8] and found.valid.tolist() == [4, 8, 0, 8]
    assert found.reward.tolist() == [0, 1, 0, 1]
    assert found.rate[[0, 1, 3]].tolist() == [0, 3 / 8, 1] and np.isnan(found.rate[2])
    assert len(pooled(rows[:0]).key) == 0
    assert among(found.key, np.array([2**63, 3, 9], "u8")).tolist() == [False, True, False, True]
    earlier = rows[[2]].copy()
    earlier["correct"], earlier["valid"] = 2, 4
    asked = np.array([8, 9, 5], "u8")
    assert rates(asked, [rows[1:2], earlier, rows]).tolist()[:2] == [0.5, 3 / 8], "the first that scored it counts"
    assert np.isnan(rates(asked, [rows])[2]) and np.isnan(rates(asked, [rows[:0]])).all()


@pytest.mark.parametrize("spread", [2**64 - 1, 300, 0])
def test_several_threads_find_what_one_finds(spread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are spread evenly, that differ in their lowest bits alone, and a single one."""
    chance = np.random.default_rng(0)
    rows = np.zeros(5000, dtype())
    rows["id"] = chance.choice(chance.integers(0, spread, 400, "u8", endpoint=True), len(rows))
    rows["step"], rows["valid"] = np.arange(len(rows)), chance.integers(0, 5, len(rows))
    rows["correct"] = chance.integers(0, rows["valid"], endpoint=True)
    rows["reward"] = np.where(rows["valid"] > 0, chance.random(len(rows)), np.nan)
    alone = pooled(rows)
    assert alone.visits.sum() == 5000 and (np.diff(alone.key.astype(object)) > 0).all()
    monkeypatch.setattr(rates_module, "MANY", 1)
    for cores in (2, 3, 4):
        monkeypatch.setattr(rates_module, "usable_cores", lambda cores=cores: cores)
        for one, several in zip(alone, pooled(rows), strict=True):
            assert one.dtype == several.dtype and one.tobytes() == several.tobytes()
