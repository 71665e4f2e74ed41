"""Whole pipelines, small and real: data, policy, stages, checkpoints and records, without an orchestrator."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_pipeline import STAGE_CONFIGS, Notes, launch, pipeline, write_task
from transformers import AutoModelForCausalLM

import gradus.stages
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.records import read_sealed, write_sealed
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.execution.summary import finish
from gradus.pipeline.policy.policy import frozen_copy
from gradus.pipeline.runs.checkpoint import checkpoints_in, damaged_files, read_record
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history, read_events
from gradus.pipeline.training.evaluation import Evaluation
from gradus.stages import discover

SUMMARY_STAGE_KEYS = {
    "name", "variant", "steps", "accuracy_before", "accuracy_after", "interval", "rollouts", "tokens", "seconds",
    "checkpoint", "mlflow_run_id",
}  # fmt: skip


EVERY_STAGE = [
    {"stage": "sft"},
    {"stage": "dapo", "group_size": 3},
    {"stage": "vapo", "group_size": 3},
    {"stage": "gfpo", "group_size": 3, "ranking": ["reward", "equation_steps", "shorter"]},
    {"stage": "gfpo", "group_size": 2, "updates_per_batch": 2, "clip": [0.2, 0.28]},
    {"stage": "srpo", "group_size": 2, "refresh": 1, "baseline": "mean"},
    {"stage": "srpo", "group_size": 2, "advantage": "combined"},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    run = launch(tmp_path_factory.mktemp("finished"), pipeline(EVERY_STAGE))
    finish(run)
    return run


def events(run: RunFolder, index: int) -> list[dict]:
    return read_events(run.stage_dir(index) / "journal.jsonl", 0)[0]


def test_the_summary_has_the_promised_keys(finished):
    summary = json.loads((finished.path / "summary.json").read_text())
    assert set(summary) >= {"name", "seed", "stages", "accuracy_start", "accuracy_end", "seconds"}
    names = [stage["name"] for stage in summary["stages"]]
    assert names == ["sft", "dapo", "vapo", "gfpo", "gfpo-2", "srpo", "srpo-2"]
    for stage in summary["stages"]:
        assert set(stage) >= SUMMARY_STAGE_KEYS
        low, high = stage["interval"]
        assert low <= stage["accuracy_after"] <= high and stage["steps"] == 2
    assert summary["stages"][1]["rollouts"] == 2 * 3 * 3
    assert summary["stages"][5]["rollouts"] == 2 * 3 * 2 * 2, "those of the reference policy count too"


def test_checkpoints_form_a_chain_of_hugging_face_folders(finished):
    parent = read_record(finished.path / "start")
    for index in range(len(EVERY_STAGE)):
        checkpoint = Path(finished.result(index)["checkpoint"])
        record = read_record(checkpoint)
        assert record.parent == parent.content and record.template == parent.template
        assert AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters() > 0
        parent = record
    assert finished.state() == "done"


def test_every_stage_moves_the_policy_it_was_given(finished):
    contents = [finished.result(index)["content"] for index in range(len(EVERY_STAGE))]
    start = read_record(finished.path / "start").content
    # A reward that a random policy never earns teaches nothing; shaped rewards and demonstrations do.
    assert contents[0] != start and len({start, *contents}) >= 3


def test_the_journal_holds_the_promised_curves(finished):
    promised = {
        "reward/mean", "reward/std", "reward/exact_answer", "reward/equation_steps", "advantage/mean", "advantage/std",
        "advantage/min", "advantage/max", "group/uniform_share", "completion/length", "completion/truncated_share",
        "policy/entropy", "policy/kl_to_start", "update/gradient_norm", "update/learning_rate",
        "throughput/tokens_per_second", "time/sample", "time/reward", "time/update",
    }  # fmt: skip
    for index in range(1, len(EVERY_STAGE)):
        logged = [e for e in events(finished, index) if e["kind"] == "metrics"]
        assert promised - {"update/gradient_norm"} <= {name for e in logged for name in e["values"]}
        assert sorted({e["step"] for e in logged}) == [0, 1, 2]
        kinds = [e["kind"] for e in events(finished, index)]
        assert {"histogram", "table", "dataset", "model"} <= set(kinds)
        assert kinds[0] == "start" and kinds[-1] == "end"
    critic = {name for e in events(finished, 2) if e["kind"] == "metrics" for name in e["values"]}
    assert {"critic/loss", "critic/value_mean"} <= critic
    sampled, reweighted = (metric_history(finished.stage_dir(index) / "journal.jsonl") for index in (5, 6))
    assert len(sampled["reference/reward_mean"]) == 2 and "reference/effective_samples" not in sampled
    counts = [*reweighted["reference/effective_samples"].values()]
    assert counts[0] == pytest.approx(2) and 1 <= counts[1] <= 2, "of groups of 2; at first it is its own reference"
    assert "reference/reward_mean" not in reweighted


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(finished, tmp_path):
    stages = EVERY_STAGE[:2]
    again = launch(tmp_path, pipeline(stages), "again")
    other = launch(tmp_path, pipeline(stages, seed=1), "other")
    assert again.result(1)["content"] == finished.result(1)["content"] != other.result(1)["content"]


def test_a_done_stage_is_reused_and_an_unfinished_one_goes_on_in_its_folder(tmp_path):
    config, stage = pipeline(EVERY_STAGE[:2]), discover()["dapo"]

    class Interrupted(Observer):
        def step_done(self, label, step, steps, metrics):
            if label == "dapo":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path, config, observer=Interrupted())
    run = RunFolder(tmp_path / "runs" / "run", STAGE_CONFIGS)
    assert run.result(0) and run.result(1) is None and run.state() == "stopped"
    first = run.result(0)
    assert read_events(run.path / "journal.jsonl", 0)[0][-1]["status"] == "KILLED"
    run = launch(tmp_path, config)
    assert run.result(0) == first
    finish(run)
    kinds = [e["kind"] for e in read_events(run.path / "journal.jsonl", 0)[0]]
    assert kinds.count("start") == 2 and kinds[-1] == "end"
    attempts = sorted(p.name for p in (run.path / "stages").iterdir())
    assert attempts == ["01-sft", "02-dapo"]
    assert run_stage(run, 1, first["checkpoint"], stage, Observer())["reused"] is True


def test_another_configuration_under_the_same_name_is_refused(finished):
    changed = pipeline([{**EVERY_STAGE[0], "lr": 0.5}, *EVERY_STAGE[1:]])
    with pytest.raises(UserError, match=r"stages\.sft\.lr: 0\.001 -> 0\.5"):
        RunFolder.create(finished.path.parent, changed, "run", Path("tiny.yaml"), STAGE_CONFIGS)


def test_a_stage_that_fails_says_why_and_keeps_its_parent(tmp_path, monkeypatch):
    config = pipeline([{"stage": "sft"}, {"stage": "dapo", "steps": 9, "max_skipped": 2}])
    broken = discover()["dapo"]
    monkeypatch.setitem(
        discover(),
        "dapo",
        type(broken)(broken.name, "", broken.config, lambda s, c: s.rewards_PK * float("nan"), broken.needs),
    )
    with pytest.raises(StageFailed, match="not finite"):
        launch(tmp_path, config)
    run = RunFolder(tmp_path / "runs" / "run", STAGE_CONFIGS)
    assert run.state().startswith("failed: the loss or its gradient was not finite in 2 updates in a row")
    assert read_record(Path(run.result(0)["checkpoint"])).stage == "sft"
    (kept,) = (run.stage_dir(1) / "checkpoints").iterdir()
    assert read_record(kept).parent == read_record(Path(run.result(0)["checkpoint"])).content
    assert events(run, 1)[-1]["status"] == "FAILED"
    assert read_events(run.path / "journal.jsonl", 0)[0][-1]["status"] == "FAILED"


def test_a_damaged_parent_is_refused_before_any_step(tmp_path):
    config = pipeline([{"stage": "sft"}, {"stage": "dapo"}])
    run = RunFolder.create(tmp_path / "runs", config, "run", tmp_path / "tiny.yaml", STAGE_CONFIGS)
    write_task(tmp_path)
    parent = prepare(run, Observer())["checkpoint"]
    checkpoint = run_stage(run, 0, parent, discover()["sft"], Observer())["checkpoint"]
    with (Path(checkpoint) / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(UserError, match=r"damaged[\s\S]*model\.safetensors"):
        run_stage(run, 1, checkpoint, discover()["dapo"], Observer())


def flip(file: Path) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("handover", ["last", "best"])
def test_a_damaged_result_is_made_again_the_same(tmp_path, handover):
    validated = {"steps": 5, "handover": handover, "eval_every": 2}
    config = pipeline([{"stage": "sft", **validated}], checkpoints={"every_steps": 2})
    run = launch(tmp_path, config)
    first, notes = run.result(0), []
    flip(Path(first["checkpoint"]) / "model.safetensors")
    again = launch(tmp_path, config, observer=Notes(notes)).result(0)
    assert "the result of stage sft is damaged (altered: model.safetensors); it is made again" in notes
    assert not damaged_files(Path(again["checkpoint"]))
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


@pytest.mark.parametrize(
    "damage", [lambda at: flip(at / "model.safetensors"), lambda at: flip(at / "gradus.json"), rmtree]
)
def test_a_damaged_result_that_is_not_needed_any_more_stays(tmp_path, damage):
    config = pipeline([{"stage": "sft"}, {"stage": "dapo"}])
    run = launch(tmp_path, config)
    damage(Path(run.result(0)["checkpoint"]))
    notes: list[str] = []
    launch(tmp_path, config, observer=Notes(notes))
    assert not [note for note in notes if "damaged" in note]


def test_a_damaged_start_is_made_again(tmp_path):
    config = pipeline([{"stage": "sft"}])
    run = RunFolder.create(tmp_path / "runs", config, "run", tmp_path / "tiny.yaml", STAGE_CONFIGS)
    write_task(tmp_path)
    first, notes = prepare(run, Observer()), []
    flip(Path(first["checkpoint"]) / "tokenizer.json")
    again = prepare(run, Notes(notes))
    assert again["content"] == first["content"] and not again["reused"]
    assert any("tokenizer.json" in note for note in notes)


def test_a_stage_whose_parent_changed_begins_anew_and_keeps_what_it_had(tmp_path):
    config = pipeline([{"stage": "sft"}, {"stage": "dapo", "steps": 3}], checkpoints={"every_steps": 1})
    run = launch(tmp_path, config)
    (run.stage_dir(1) / "result.json").unlink()
    stage_file = run.stage_dir(1) / "stage.json"
    write_sealed(stage_file, read_sealed(stage_file) | {"parent": "0" * 16})
    run = launch(tmp_path, config)
    assert [folder.name for folder in run.attempts(1)] == ["02-dapo.attempt-1"]
    assert run.result(1)["parent"] == run.result(0)["content"]
    assert checkpoints_in(run.attempts(1)[0]), "an attempt keeps its checkpoints"


def test_what_is_carried_over_is_said_and_done(tmp_path):
    graded = [{"reward": "length", "params": {"max": 5, "falloff": 15}}]
    stages = [{"stage": "vapo", "group_size": 3}, {"stage": "vapo", "group_size": 3}]
    plain = launch(tmp_path, pipeline(stages, rewards=graded), "plain")
    stages[1] |= {"carry": ["optimizer", "critic"]}
    carrying = launch(tmp_path, pipeline(stages, rewards=graded), "carrying")
    assert plain.result(1)["carried"] == ["weights", "tokenizer", "template"]
    assert carrying.result(1)["carried"] == ["weights", "tokenizer", "template", "optimizer", "critic"]
    assert plain.result(0)["content"] == carrying.result(0)["content"]
    assert plain.result(1)["content"] != carrying.result(1)["content"]
    first = {run: metric_history(run.stage_dir(1) / "journal.jsonl") for run in (plain, carrying)}
    gap = {run: abs(curves["critic/value_mean"][1] - curves["reward/mean"][1]) for run, curves in first.items()}
    assert gap[plain] < 1e-6 < 1e-3 < gap[carrying], (
        "a fresh critic starts at the batch's mean, one carried over does not"
    )
    assert len(read_json(carrying.stage_dir(1) / "stage.json")["state"]) == 16
    with pytest.raises(ValidationError, match="nothing to carry over"):
        pipeline([{"stage": "vapo", "carry": ["critic"]}])


def test_runtime_options_may_change_while_a_run_goes_on(tmp_path):
    config = pipeline([{"stage": "sft"}])
    run = launch(tmp_path, config)
    other = pipeline([{"stage": "sft", "token_budget": 77}], checkpoints={"keep": 9})
    again = RunFolder.create(tmp_path / "runs", other, "run", tmp_path / "tiny.yaml", STAGE_CONFIGS)
    assert (again.config.checkpoints.keep, again.config.stages[0].token_budget) == (9, 77)
    assert [each.action for each in plan(again, other)] == ["reuse"]
    assert run.result(0) == again.result(0)


def with_right(evaluation: Evaluation, count: int) -> Evaluation:
    """The evaluation as if its first ``count`` prompts were right, and no other."""
    correct = [float(place < count) for place in range(evaluation.prompts)]
    return replace(evaluation, correct=correct)


def test_best_hands_over_the_checkpoint_with_the_highest_validation_accuracy(tmp_path, monkeypatch):
    import gradus.pipeline.training.trainer as trainer

    right = iter([1, 4, 2, 1])
    real = trainer.evaluate

    def scripted(policy, prompts, *others):
        assert len(prompts) == 6, "the choice is made on the validation prompts, not on those that are reported"
        return with_right(real(policy, prompts, *others), next(right))

    monkeypatch.setattr(trainer, "evaluate", scripted)
    run = launch(tmp_path, pipeline([{"stage": "sft", "steps": 3, "handover": "best", "eval_every": 1}]))
    assert run.result(0)["checkpoint"].endswith("step-000001")


def test_a_stage_ends_early_once_validation_accuracy_reaches_its_goal(tmp_path, monkeypatch):
    import gradus.pipeline.training.trainer as trainer

    right = iter([4, 5, 6])
    real = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda *given: with_right(real(*given), next(right)))
    stage = {"stage": "sft", "steps": 50, "until": {"accuracy": 0.45}, "eval_every": 2}  # of 6, 4 give 0.347, 5 0.498
    run = launch(tmp_path, pipeline([stage]))
    assert run.result(0)["steps"] == 4 and run.result(0)["checkpoint"].endswith("step-000004")
    assert next(right) == 6, "the validation prompts were evaluated twice"
    (event,) = run.result(0)["events"]
    assert (event["step"], event["rule"], event["action"]) == (4, "accuracy", "end")
    assert event["reason"] == "validation accuracy 0.833 (5 of 6 prompts): its lower bound 0.498 has reached 0.45"
    assert finish(run)["stages"][0]["events"] == [event]


@pytest.mark.parametrize(
    ("stage", "validation", "expected"),
    [
        ({"until": {"accuracy": 0.4}}, 6, "set its eval_every"),
        ({"handover": "best"}, 6, "set its eval_every"),
        ({"eval_every": 1}, 0, "set task.validation"),
    ],
)
def test_choosing_by_validation_needs_prompts_and_times_to_validate(stage, validation, expected):
    task = {"source": "file", "path": "task.jsonl", "validation": validation}
    with pytest.raises(ValidationError, match=expected):
        pipeline([{"stage": "sft", **stage}], task=task)


def test_two_processes_on_one_run(finished):
    with (
        finished.lock(),
        pytest.raises(UserError, match="another process is working"),
        RunFolder(finished.path, STAGE_CONFIGS).lock(),
    ):
        pass
    with finished.lock():
        assert finished.state() == "running"
    assert finished.holder() is None


FIFTH = """
from typing import Literal
from gradus.pipeline.config.pipeline import StageConfig
from gradus.pipeline.stage import Critic, Needs, Stage

class MineConfig(StageConfig):
    stage: Literal["mine"]
    gain: float = 2.0

def weigh(signals, config):
    return config.gain * (signals.rewards_PK - signals.values_P[:, None]) - signals.reference_rewards_PK

NEEDS = Needs(critic=Critic("prompt", lr=0.1), reference=True, reference_rewards=True)
STAGE = Stage("mine", "an algorithm nobody has seen", MineConfig, weigh, lambda config: NEEDS)
"""


def test_a_built_in_algorithm_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FIFTH)
    monkeypatch.setattr(gradus.stages, "__path__", [*gradus.stages.__path__, str(tmp_path)])
    discover.cache_clear()
    try:
        configs = [stage.config for stage in discover().values()]
        assert "mine" in discover() and len(configs) == len(STAGE_CONFIGS) + 1
        run = launch(
            tmp_path, pipeline([{"stage": "sft"}, {"stage": "mine", "group_size": 2}], configs), configs=configs
        )
        assert run.result(1)["algorithm"] == "mine" and run.result(1)["steps"] == 2
    finally:
        discover.cache_clear()
        sys.modules.pop("gradus.stages.mine", None)


def test_a_reference_is_a_copy_apart(policy):
    reference = frozen_copy(policy)
    policy.model.lm_head.weight.data += 1
    assert not torch.equal(reference.model.lm_head.weight, policy.model.lm_head.weight)
    assert not any(p.requires_grad for p in reference.model.parameters())


def test_a_run_leaves_no_file_open(tmp_path: Path) -> None:
    open_files = list[list[str]]()

    class Counting(Observer):
        def stage_finished(self, label: str, result: Mapping[str, Any]) -> None:
            links = [
                os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink() and each.exists()
            ]
            open_files.append(sorted(link for link in links if link.startswith(str(tmp_path))))

    run = launch(tmp_path, pipeline([{"stage": "sft"}, {"stage": "dapo", "group_size": 2}]), observer=Counting())
    finish(run)
    Counting().stage_finished("", {})
    assert open_files == [[], [], []]
