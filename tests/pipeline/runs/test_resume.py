"""Resume means: as if nothing had happened. Runs that were killed and went on equal runs that were not, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed_runs import INT, KILL, TERM, assert_same, run_lives
from small_pipeline import pipeline

from gradus.pipeline.common import yaml_text
from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history

STEPS = 6
LIMITS = {"max_tokens": 10, "min_tokens": 3, "stop": ["1", "+ "], "ban": [7, "="]}
STAGES = [
    {"stage": "sft", "eval_every": 2, "handover": "best"},
    {"stage": "dapo", "group_size": 3},
    {"stage": "vapo", "group_size": 3},
    {"stage": "gfpo", "group_size": 3, "ranking": ["reward", "equation_steps", "shorter"], "updates_per_batch": 2},
    {"stage": "srpo", "group_size": 2, "refresh": 3, "advantage": "combined", "baseline": "mean", "sampling": LIMITS},
]
PAPER = [
    {"stage": "dapo", "group_size": 3, "refills": 2, "overlong": 0.5},
    {"stage": "vapo", "group_size": 3, "critic_warmup": 2, "critic_lr": 1e-3, "updates_per_batch": 2},
    {"stage": "gfpo", "group_size": 4, "keep": [2, 2, 3, 4]},
    {"stage": "srpo", "group_size": 3, "minibatches": 2, "async": 1},
]
STAGES += [{**stage, "name": f"{stage['stage']}-paper", "variant": "paper"} for stage in PAPER]
LABELS = [str(stage.get("name", stage["stage"])) for stage in STAGES]
PUBLISHED = [label for label in LABELS if label.endswith("-paper")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of every stage, with a checkpoint every other step."""
    folder = tmp_path_factory.mktemp("resume")
    stages = [{**stage, "steps": STEPS} for stage in STAGES]
    graded = {"reward": "length", "params": {"max": 5, "falloff": 15}}  # one that a new policy earns in part
    options = {"rewards": [graded, {"reward": "equation_steps"}], "evaluation": {"threshold": 0.5}}
    config = pipeline(stages, checkpoints={"every_steps": 2}, **options)
    (folder / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> RunFolder:
    return run_lives(folder, "undisturbed", "-")


def test_every_part_of_the_state_matters_here(undisturbed: RunFolder) -> None:
    """Or equality would prove little: every stage moves, the critic learns, the reference is refreshed."""
    for index in range(len(STAGES)):
        curves = metric_history(undisturbed.stage_dir(index) / "journal.jsonl")
        norms = [value for value in curves["update/gradient_norm"].values() if value > 1e-3]
        assert len(norms) == STEPS or (LABELS[index] in PUBLISHED and len(norms) >= 2), "some drop whole steps"
        moving = {"vapo": "critic/value_mean", "srpo": "reference/reward_mean", "vapo-paper": "critic/value_mean"}.get(
            LABELS[index], "completion/length"
        )
        assert len(set(curves[moving].values())) > 2


def test_killed_in_every_stage_at_the_first_the_last_and_a_random_step(folder: Path, undisturbed: RunFolder) -> None:
    chance = random.Random()
    steps = [
        (label, step)
        for label in LABELS
        for step in (0, chance.randrange(2, STEPS - 1), STEPS - 1, STEPS)
        if label not in PUBLISHED or 0 < step < STEPS - 1
    ]
    lives = [f"{label}:{step}:{chance.random():.3f}:{KILL}" for label, step in steps]
    print("lives:", lives)  # shown when the test fails
    assert_same(undisturbed, run_lives(folder, "killed", *lives, "-"))


def test_asked_to_end_in_every_stage_at_the_first_the_last_and_a_random_step(
    folder: Path, undisturbed: RunFolder
) -> None:
    chance = random.Random()
    steps = [
        (label, step)
        for label in LABELS
        for step in (0, chance.randrange(1, STEPS - 1), STEPS - 1)
        if label not in PUBLISHED or 0 < step < STEPS - 1
    ]
    lives = [f"{label}:{step}:{chance.random():.3f}:{chance.choice([TERM, INT])}" for label, step in steps]
    print("lives:", lives)
    assert_same(undisturbed, run_lives(folder, "ended", *lives, "-"))


def test_a_first_signal_finishes_the_step_and_keeps_it(folder: Path) -> None:
    run = run_lives(folder, "polite", f"dapo:3:0.5:{TERM}")
    assert [step for step, _ in checkpoints_in(run.stage_dir(1))] == [4, 2], "step 4 was finished and kept"
    assert run.state() == "stopped"
