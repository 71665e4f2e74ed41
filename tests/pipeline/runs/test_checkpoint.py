"""Checkpoints are whole or absent, and say so."""

from __future__ import annotations

import json

import pytest

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.runs.checkpoint import damaged_files, read_record, save_checkpoint, verified_record


def save(policy, folder):
    return save_checkpoint(policy, folder, stage="a", step=3, parent="abc", fingerprint="f")


def test_the_record_tells_what_it_is(policy, tmp_path):
    folder = save(policy, tmp_path / "step-000003")
    record = verified_record(folder)
    assert (record.stage, record.step, record.parent, record.template) == ("a", 3, "abc", policy.template.digest)
    assert "model.safetensors" in record.files and "gradus.json" not in record.files
    assert [p.name for p in tmp_path.iterdir()] == ["step-000003"], "no temporary folder stays behind"


def test_equal_weights_have_equal_content(policy, tmp_path):
    one, two = save(policy, tmp_path / "one"), save(policy, tmp_path / "two")
    assert read_record(one).content == read_record(two).content
    policy.model.lm_head.weight.data[0, 0] += 1
    assert read_record(save(policy, tmp_path / "three")).content != read_record(one).content


def test_damage_is_found_and_named(policy, tmp_path):
    folder = save(policy, tmp_path / "c")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    (folder / "tokenizer.json").unlink()
    assert damaged_files(folder) == ["model.safetensors", "tokenizer.json"]
    with pytest.raises(UserError, match=r"model.safetensors, tokenizer.json"):
        verified_record(folder)


def test_a_failure_while_saving_leaves_the_earlier_checkpoint_whole(policy, tmp_path, monkeypatch):
    folder = save(policy, tmp_path / "c")
    before = json.loads((folder / "gradus.json").read_text())
    real = Policy.save

    def disk_full(self, target):
        real(self, target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Policy, "save", disk_full)
    with pytest.raises(StageFailed, match="no room for the checkpoint of step 3"):
        save(policy, folder)
    assert json.loads((folder / "gradus.json").read_text()) == before and not damaged_files(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_folder_without_a_record_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint"):
        read_record(tmp_path)
