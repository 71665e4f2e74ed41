"""What a run remembers of its prompts goes through kills, damage, forks and roll-backs as everything else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killed_runs import KILL, TERM, assert_same, run_lives
from small_pipeline import pipeline
from trained_chain import Chain, flip

from gradus.pipeline.common import yaml_text
from gradus.pipeline.tasks.prompts.memory import BYTES, read_rows
from gradus.pipeline.tasks.prompts.rates import pooled

STAGES = [
    {"stage": "srpo", "variant": "paper", "group_size": 2, "async": 1},
    {"stage": "dapo", "variant": "paper", "group_size": 2, "refills": 1},
    {"stage": "gfpo", "variant": "paper", "group_size": 4, "keep": [2, 2, 3, 4]},
]
GRADED = {"reward": "length", "params": {"max": 5, "falloff": 15}}


def test_a_killed_run_remembers_the_same(tmp_path: Path) -> None:
    """One that resamples by its history, one that refills, one that goes by difficulty."""
    stages = [{**stage, "steps": 5, "prompts_per_step": 9} for stage in STAGES]
    options = {"rewards": [GRADED, {"reward": "equation_steps"}], "evaluation": {"threshold": 0.4}}
    config = pipeline(stages, checkpoints={"every_steps": 2}, **options)
    (tmp_path / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    lives = [f"srpo:1:0.5:{KILL}", f"srpo:3:0.5:{TERM}", f"dapo:3:0.7:{KILL}", f"gfpo:3:0.5:{KILL}"]
    killed = run_lives(tmp_path, "killed", *lives, "-")
    assert_same(undisturbed, killed)
    for index in range(3):
        rows = read_rows(killed.memory(index))
        assert rows.tobytes() == read_rows(undisturbed.memory(index)).tobytes()
        assert set(rows["step"].tolist()) == set(range(1, 6)) and len(rows) >= 45
        assert (killed.result(index) or {})["memory"]["records"] == len(rows)
    assert len(read_rows(killed.memory(1))) > 45, "those that refills drop, too"
    assert 0 < rows["correct"].sum() < rows["valid"].sum()


@pytest.mark.usefixtures("quiet_process", "untracked")
def test_damage_is_passed_over_and_verify_finds_it(chain: Chain) -> None:
    undisturbed, label = chain.contents(), chain.run().config.stages[2].label
    file = chain.run().memory(2)
    whole = file.read_bytes()
    assert f"{label}: prompts" in chain.tell("verify", "chain")
    flip(file)
    said = chain.tell("verify", "chain", code=1)
    assert "altered: prompts.bin" in said and f"gradus resume chain --from {label}" in said
    file.write_bytes(whole)
    chain.stop_after(2, 2)
    file.write_bytes(whole[:-1] + b"\xff")  # a record of step 2; those of step 1 are whole
    said = chain.tell("resume", "chain")
    assert "the checkpoint of step 2 is damaged (altered: prompts.bin); the one before it is used" in said
    assert chain.contents() == undisturbed and file.read_bytes() == whole


@pytest.mark.usefixtures("quiet_process", "untracked")
def test_a_fork_remembers_what_it_shares(chain: Chain) -> None:
    labels = [stage.label for stage in chain.run().config.stages]
    chain.tell("fork", "chain", "--from", labels[2], "--name", "other", "--set", f"stages.{labels[2]}.steps=1")
    fork = chain.run("other")
    remembered = fork.memory(1).read_bytes()
    assert remembered == chain.run().memory(1).read_bytes() != b""
    assert f"{labels[1]}: prompts (shared with chain)" in chain.tell("verify", "other")
    chain.tell("resume", "chain", "--from", labels[1])  # sets aside what the fork refers to
    assert fork.memory(1).read_bytes() == remembered


@pytest.mark.usefixtures("quiet_process", "untracked")
def test_a_run_of_an_earlier_version_goes_on(chain: Chain) -> None:
    """Its checkpoints count no records, and its folder has no memory: it begins with the next step."""
    undisturbed = chain.contents()
    chain.stop_after(2, 1)
    folder = chain.run().stage_dir(2)
    (folder / "prompts.bin").unlink()
    checkpoint = folder / "checkpoints" / "step-000001"
    _rewrite_state(checkpoint)
    chain.tell("resume", "chain")
    assert chain.contents() == undisturbed
    rows = read_rows(folder / "prompts.bin")
    assert set(rows["step"].tolist()) == {2} and (folder / "prompts.bin").stat().st_size == len(rows) * BYTES


def _rewrite_state(checkpoint: Path) -> None:
    """Make a checkpoint one that an earlier version wrote: its state says nothing of a memory."""
    from gradus.pipeline.common.files import sha256
    from gradus.pipeline.common.records import write_sealed

    state = checkpoint / "resume" / "state.json"
    values = json.loads(state.read_text())
    del values["source"]["memory"]
    state.write_text(json.dumps(values))
    record = json.loads((checkpoint / "gradus.json").read_text())
    del record["record"]
    record["files"]["resume/state.json"] = sha256(state)
    write_sealed(checkpoint / "gradus.json", record)


CHOICE = [
    {"stage": "dapo", "group_size": 4, "steps": 6},
    {
        "stage": "dapo",
        "name": "filtered",
        "group_size": 2,
        "prompts": {"pass_rate": [0.2, 0.9], "unseen": False},
        "order": {"by": "pass_rate"},
    },
    {"stage": "dapo", "name": "moving", "group_size": 2, "curriculum": {"pass_rate": "gaussian", "unseen": 0.5}},
]


def test_a_killed_run_chooses_the_same_prompts(tmp_path: Path) -> None:
    """By a range of pass rates, and by a curriculum that is sampled ahead."""
    stages = [{"steps": 4, "prompts_per_step": 4, **stage} for stage in CHOICE]
    stages[2] |= {"async": 1}
    options = {"rewards": [GRADED, {"reward": "equation_steps"}], "evaluation": {"threshold": 0.4}}
    config = pipeline(stages, checkpoints={"every_steps": 2}, **options)
    (tmp_path / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    lives = [f"filtered:1:0.5:{KILL}", f"filtered:3:0.5:{TERM}", f"moving:1:0.5:{KILL}", f"moving:3:0.7:{TERM}"]
    assert_same(undisturbed, run_lives(tmp_path, "killed", *lives, "-"))
    first, filtered, moving = (pooled(read_rows(undisturbed.memory(index))) for index in range(3))
    within = set(first.key[(first.rate >= 0.2) & (first.rate <= 0.9)].tolist())
    assert set(filtered.key.tolist()) <= within and len(within) < len(first.key)
    assert len(moving.key) > 4


@pytest.mark.usefixtures("quiet_process", "untracked")
def test_a_choice_that_cannot_be_made_is_refused(chain: Chain) -> None:
    """Before compute where the configuration shows it; before the stage's first step where only the records do."""
    config = str(chain.config)
    said = chain.tell("check", config, "--set", "stages.gfpo.prompts={pass_rate: [0, 0.9], from: sft}", code=2)
    assert "chain.yaml, stages.gfpo.prompts.from" in said and "sft, which samples and scores nothing" in said
    assert "dapo" in said.partition("expected")[2]
    said = chain.tell("check", config, "--set", "stages.dapo.prompts={pass_rate: [0, 0.9]}", code=2)
    assert "stages.dapo.prompts" in said and "an earlier stage that samples completions" in said
    said = chain.tell("check", config, "--set", "stages.gfpo.prompts={pass_rate: [0, 0.9], from: gfpo}", code=2)
    assert "gfpo is no stage before it" in said and "chain.yaml" in said
    none_left = "stages.gfpo.prompts={pass_rate: [0.5, 0.6], unseen: false}"
    said = chain.tell("fork", "chain", "--from", "gfpo", "--name", "narrow", "--set", none_left, code=None)
    assert chain.code == 2 and "too few prompts left" in said and "stages.gfpo.prompts.pass_rate" in said
    assert "Traceback" not in said and not (chain.run("narrow").stage_dir(2) / "checkpoints").exists()
    flip(chain.run().memory(1))
    wide = "stages.gfpo.prompts={pass_rate: [0, 1]}"
    said = chain.tell("fork", "chain", "--from", "gfpo", "--name", "damaged", "--set", wide, code=None)
    assert chain.code == 2 and "the memory of prompts is damaged" in said and "altered: prompts.bin" in said
