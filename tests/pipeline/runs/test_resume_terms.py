"""References, teachers, masks, an entropy that is held, pairs: the same after kills, refused where they cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from killed_runs import KILL, TERM, assert_same, run_lives
from small_pipeline import TASK, launch, pipeline

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.sources import content_of
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.execution.stage_checks import check_needs, check_other_policies
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.tracking.journal import metric_history
from gradus.stages import discover

GRADED = {"reward": "length", "params": {"max": 5, "falloff": 15}}  # one that a new policy earns in part
STAGES: list[dict[str, Any]] = [
    {"stage": "gspo", "group_size": 3, "updates_per_batch": 2, "prompts_per_step": 6},
    {"stage": "cispo", "group_size": 3, "async": 1, "entropy": {"target": 4.0, "weight": 0.001},
     "mask_tokens": [0.1, 9], "kl": 0.01, "reference": "start"},
    {"stage": "srpo", "group_size": 3, "refresh": 2, "mask_truncated": True},
    {"stage": "opd", "group_size": 2, "teacher": "gspo", "reward": 0.5, "kl": 0.1},
    {"stage": "dpo", "demonstrations": {"from": "gspo", "keep": "pairs"}, "updates_per_batch": 2},
]  # fmt: skip
LABELS = [str(stage["stage"]) for stage in STAGES]


def chain(stages: list[dict[str, Any]], **options: Any) -> PipelineConfig:
    return pipeline(stages, checkpoints={"every_steps": 2}, rewards=[GRADED], **options)


def test_killed_in_each_stage_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    config = chain([{**stage, "steps": 5} for stage in STAGES])
    (tmp_path / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    lives = [f"{label}:3:0.5:{TERM if label == 'opd' else KILL}" for label in LABELS]
    assert_same(undisturbed, run_lives(tmp_path, "killed", *lives, "-"))
    curves = [metric_history(undisturbed.stage_dir(index) / "journal.jsonl") for index in range(len(LABELS))]
    weights = list(curves[1]["update/entropy_weight"].values())
    assert len(set(weights)) > 2, "the factor moved"
    assert "mask/tokens" in curves[1] and "mask/truncated" in curves[2]
    assert all(rows > 0 for rows in curves[4]["update/rows"].values()), "pairs were learned from"
    assert any(value != 0 for value in curves[3]["advantage/std"].values())
    distances = [curves[index][f"policy/kl_to_{name}"] for index, name in ((1, "reference"), (3, "teacher"))]
    assert all(value > 0 for distance in distances for value in distance.values())
    kept = (undisturbed.stage_dir(0) / "completions.jsonl").read_text().splitlines()
    assert kept and all("rejected" in json.loads(line) for line in kept)


OWN = '''
from typing import Literal

from gradus.pipeline.advantages import centre
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Needs, Stage


class OwnConfig(StageConfig):
    stage: Literal["own"]


def observe(signals, state, config):
    """The mean reward of all batches, this one's included."""
    count = state.get("count", 0.0) + 1
    mean = state.get("mean", 0.0)
    return {"count": count, "mean": mean + (float(signals.rewards_PK.mean()) - mean) / count}


def weigh(signals, config):
    assert len(signals.prompts) == len(signals.rewards_PK)
    return centre(signals.rewards_PK, signals.valid_PK) + 0.1 * signals.state["count"]


STAGE = Stage("own", "keeps a state", OwnConfig, weigh, needs=lambda config: Needs(), observe=observe)
'''


def test_a_stage_s_own_state_is_part_of_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradus.flows.order import run_plain
    from gradus.pipeline.common.observer import Observer
    from gradus.pipeline.runs.run_folder import RunFolder
    from gradus.pipeline.training.checkpoints import StageCheckpoints

    (tmp_path / "statefulstage.py").write_text(OWN)
    from small_pipeline import STAGE_CONFIGS, write_task

    write_task(tmp_path)
    raw = chain([{"stage": "dapo", "group_size": 3}]).model_dump(mode="json")
    raw["stages"] = [{"stage": "statefulstage:STAGE", "steps": 6, "prompts_per_step": 3, "group_size": 3, "warmup": 0}]
    (tmp_path / "own.yaml").write_text(yaml_text.dump(raw))
    loaded = load_config(str(tmp_path / "own.yaml"), [], STAGE_CONFIGS)

    def trained(name: str) -> RunFolder:
        run = RunFolder.create(tmp_path / "runs", loaded.config, name, loaded.path, STAGE_CONFIGS)
        run_plain(run.path, Observer())
        return run

    class Cut(Exception):
        """What ends the first life."""

    save = StageCheckpoints.save

    def cut(self: Any, step: int, *rest: Any) -> Path:
        folder = save(self, step, *rest)
        if step == 4:
            raise Cut
        return folder

    whole = trained("whole")
    with monkeypatch.context() as patched:
        patched.setattr(StageCheckpoints, "save", cut)
        with pytest.raises(Cut):
            trained("cut")
    assert_same(whole, trained("cut"))
    means = metric_history(whole.stage_dir(0) / "journal.jsonl")["advantage/mean"]
    assert [round(value, 5) for value in means.values()] == [
        pytest.approx(0.1 * step, abs=1e-5) for step in range(1, 7)
    ]


SEVERAL = {"a": {**TASK}, "b": {**TASK, "heldout": 10}}


@pytest.mark.parametrize(
    ("stages", "wanted"),
    [
        ([{"stage": "opd", "teacher": "dapo"}, {"stage": "dapo"}], ["no stage before it", "stages.opd.teacher"]),
        ([{"stage": "opd", "teacher": "opd"}], ["no stage before it", "stages.opd.teacher"]),
        ([{"stage": "dapo"}, {"stage": "opd", "teacher": "dap"}], ["is unknown", "stages.opd.teacher", "dapo"]),
        ([{"stage": "dapo", "kl": 0.1, "reference": "./none"}], ["stages.dapo.reference", "./none"]),
        ([{"stage": "opd", "teacher": {"a": "start"}}], ["one policy for each task", "stages.opd.teacher"]),
        ([{"stage": "opd", "teacher": {"a": "start", "b": "start", "c": "start"}}], ["one policy for each task"]),
    ],
)
def test_a_policy_that_does_not_exist_is_told_before_any_compute(stages: list[dict], wanted: list[str]) -> None:
    mixed = [{"task": {"a": 1, "b": 1}, **stage} for stage in stages]
    config = chain(mixed, task=None, tasks=SEVERAL)
    place = next(index for index, stage in enumerate(stages) if stage["stage"] == "opd" or "reference" in stage)
    with pytest.raises(UserError) as told:
        check_other_policies(config, config.stages[place])
    assert all(word in str(told.value) for word in wanted), told.value


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        ({"stage": "dpo"}, "learns from pairs"),
        ({"stage": "sft", "entropy": {"target": 0.2}}, "entropy.target"),
        ({"stage": "sft", "mask_sequences": [0.9, 1.1]}, "mask_sequences"),
        ({"stage": "sft", "mask_truncated": True}, "mask_truncated"),
        ({"stage": "sft", "async": 1}, "async"),
    ],
)
def test_what_a_stage_of_given_completions_cannot_have(stage: dict[str, Any], wanted: str) -> None:
    task = {**TASK, "format": "prompt"} if stage["stage"] == "dpo" else TASK
    config = chain([stage], task=task)
    with pytest.raises(UserError, match=wanted):
        check_needs(config, config.stages[0], discover())


def test_rows_without_a_rejected_completion_are_told_before_a_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows of its task do not have"):
        launch(tmp_path, chain([{"stage": "dpo"}]))


def test_pairs_of_a_data_set_are_learned_from(tmp_path: Path) -> None:
    rows = [{"prompt": f"{a} + 1 =", "chosen": str(a + 1), "rejected": str(a + 2)} for a in range(40)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"source": "file", "path": "task.jsonl", "heldout": 8, "validation": 6, "format": "preference"}
    run = launch(tmp_path, chain([{"stage": "dpo", "steps": 12, "lr": 3e-3, "prompts_per_step": 26}], task=task))
    pulls = list(metric_history(run.stage_dir(0) / "journal.jsonl")["advantage/std"].values())
    assert pulls[0] == pytest.approx(0.1), "beta K / 2 of every pair, up and down, at the reference"
    assert pulls[-1] < 0.099, "less once they are apart"


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path, chat: Path) -> None:
    with pytest.raises(UserError, match="different vocabularies") as told:
        launch(tmp_path, chain([{"stage": "opd", "group_size": 2, "teacher": str(chat)}]))
    assert "stages.opd.teacher" in str(told.value)


def test_a_teacher_that_has_changed_begins_an_interrupted_stage_anew(tmp_path: Path) -> None:
    """A run has no copy of a teacher from elsewhere: what was learned from other weights is no start for the rest."""
    made = launch(tmp_path, chain([{"stage": "sft"}]), name="made")
    teacher = tmp_path / "teacher"
    shutil.copytree((made.result(0) or {})["checkpoint"], teacher)
    stages = [{"stage": "opd", "group_size": 2, "teacher": str(teacher)}]
    run = launch(tmp_path, chain(stages))
    result, inputs = run.result(0), {"teacher": content_of(teacher, "*")}
    assert result is not None and list(result["inputs"].values()) == list(inputs.values())
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert [each.action for each in plan(run, run.config)] == ["reuse"], "it was read when it was needed"
    (run.stage_dir(0) / "result.json").unlink()
    (again,) = plan(run, run.config)
    assert again.action == "run" and f"the model {teacher}: " in again.changes[0]
    shutil.rmtree(teacher)
    assert plan(run, run.config)[0].action == "resume", "one that is gone is told by who needs it"
