"""A profile at a stage's start: the same after kills, counted, refused where it leaves too little, made anew after
damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killed_runs import KILL, TERM, assert_same, run_lives
from small_pipeline import TASK, launch, pipeline
from trained_chain import Chain, flip

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.runs.prompts_seen import prompts_seen
from gradus.pipeline.tasks.prompts.memory import read_rows
from gradus.pipeline.tasks.prompts.rates import parted, pooled, train_keys
from gradus.pipeline.tracking.journal import metric_history

GRADED = {"reward": "length", "params": {"max": 5, "falloff": 15}}
SCORED = {"rewards": [GRADED, {"reward": "equation_steps"}], "evaluation": {"threshold": 0.4}}
TASKS = {"sums": {**TASK, **SCORED}, "more": {**TASK, "heldout": 10, **SCORED}}
STAGES = [
    {"stage": "dapo", "name": "filtered", "prompts": {"profile": 3, "pass_rate": [0.2, 0.9], "unseen": False},
     "order": {"by": "pass_rate"}, "task": "sums", "group_size": 4},
    {"stage": "srpo", "variant": "paper", "name": "history", "prompts": {"profile": 1, "pass_rate": [0, 0.5]},
     "task": {"sums": 1, "more": 1}},
    {"stage": "gfpo", "variant": "paper", "group_size": 4, "keep": [2, 2, 3, 4], "name": "moving", "async": 1,
     "prompts": {"profile": 2}, "curriculum": {"pass_rate": "gaussian"}, "task": {"sums": 2, "more": 1}},
]  # fmt: skip


def test_a_killed_profile_goes_on_to_the_same_choice(tmp_path: Path) -> None:
    """Filtered and in order; two tasks with history resampling; a curriculum sampled ahead that goes by difficulty."""
    stages = [{"group_size": 2, **stage, "steps": 3, "prompts_per_step": 4} for stage in STAGES]
    config = pipeline(stages, task=None, tasks=TASKS, rewards=[], checkpoints={"every_steps": 2})
    (tmp_path / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    lives = [
        f"filtered:profile-2:0:{KILL}",
        f"filtered:profile-1:1:{TERM}",
        f"history:profile-3:1:{KILL}",
        f"history:2:0.5:{TERM}",
        f"moving:1:0.5:{KILL}",  # between its profile and its first checkpoint
    ]
    killed = run_lives(tmp_path, "killed", *lives, "-")
    assert_same(undisturbed, killed)
    for index, stage in enumerate(config.stages):
        rows, result = read_rows(killed.memory(index)), undisturbed.result(index) or {}
        assert rows.tobytes() == read_rows(undisturbed.memory(index)).tobytes()
        profile, trained = parted(rows)
        keys = [key for task in config.shares(stage) for key in train_keys(killed.data_dir / task).tolist()]
        assert profile["id"].tolist() == keys, "each prompt once"
        assert stage.prompts is not None and set(profile["valid"].tolist()) == {stage.prompts.profile}
        curves = metric_history(killed.stage_dir(index) / "journal.jsonl")
        assert curves["profile/rollouts"] == {0: len(keys) * (stage.prompts.profile or 0)}
        assert result["rollouts"] == curves["profile/rollouts"][0] + sum(trained["valid"])
        assert result["tokens"] > curves["profile/tokens"][0] and len(curves["time/profile"]) == 1
    profile, trained = map(pooled, parted(read_rows(killed.memory(0))))
    within = set(profile.key[(profile.rate >= 0.2) & (profile.rate <= 0.9)].tolist())
    assert set(trained.key.tolist()) <= within and 4 <= len(within) < len(profile.key)
    seen = prompts_seen(killed, "moving")
    assert [each["stage"] for each in seen["stages"]] == ["moving (profile)", "moving"]
    assert [(each["from"], each["to"]) for each in seen["moves"]] == [
        ("history", "moving (profile)"), ("moving (profile)", "moving")
    ]  # fmt: skip


@pytest.mark.usefixtures("quiet_process", "untracked")
def test_a_profile_that_leaves_too_little_or_is_damaged(chain: Chain) -> None:
    config = str(chain.config)
    said = chain.tell("check", config, "--set", "stages.sft.prompts={pass_rate: [0, 0.9], profile: 2}", code=2)
    assert "stages.sft.prompts.profile" in said and "demonstrations" in said
    chosen = "stages.gfpo.prompts={profile: 2, pass_rate: [0.5, 0.6], unseen: false}"
    said = chain.tell("fork", "chain", "--from", "gfpo", "--name", "narrow", "--set", chosen, code=2)
    run = chain.run("narrow")
    count = len(train_keys(run.data_dir))
    assert "too few prompts left" in said and f"0 of {count} prompts are left, without {count} below 0.5" in said
    assert f"2 completions of each of {count} prompts" in said and not (run.stage_dir(2) / "checkpoints").exists()
    memory, record = run.memory(2), run.stage_dir(2) / "profile.json"
    (run.stage_dir(2) / "failure.json").unlink()
    assert f"before its first checkpoint, with {count} prompts profiled" in chain.tell("plan", "--name", "narrow")
    whole = memory.read_bytes(), json.loads(record.read_text())
    said = chain.tell("resume", "narrow", code=2)
    assert "too few prompts left" in said and "completions of each" not in said, "what was found is kept"
    for file in (memory, record):
        flip(file)
        if file == record:
            assert "profile.json" in chain.tell("verify", "narrow", code=1)
        assert "profiled anew" in chain.tell("resume", "narrow", code=2)
        assert memory.read_bytes() == whole[0]
        assert json.loads(record.read_text())["memory"] == whole[1]["memory"]


def test_where_nothing_can_be_scored_the_profile_ends_early(tmp_path: Path) -> None:
    broken = [{"reward": "exact_answer", "params": {"reference": "auto"}}]
    stage = {"stage": "dapo", "prompts": {"profile": 2, "pass_rate": [0, 1]}, "max_skipped": 2, "prompts_per_step": 2}
    with pytest.raises(StageFailed, match="profile of the prompts: no completion could be scored in 2 steps in a row"):
        launch(tmp_path, pipeline([stage], rewards=broken))
