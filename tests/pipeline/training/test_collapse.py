"""A learning rate far too high destroys a real, if tiny, policy within steps; the guard takes the stage back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from killed_runs import assert_same, run_lives
from small_pipeline import Notes, launch, pipeline
from tracking_runs import client

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.runs.checkpoint import checkpoints_in, read_record
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history, read_events
from gradus.pipeline.tracking.position import read_run_ids
from gradus.pipeline.tracking.uploader import sync_run

RUINOUS = 0.05
"""Learning rate. AdamW's first step moves every weight by the rate itself, half of the deviation that weights begin
with: the policy is ruined before the first evaluation, at step 2."""
ALARM = 4
"""The step of the guard's alarm: the second evaluation that is significantly below the best, which is that before the
stage."""
ALGORITHMS: list[dict[str, Any]] = [
    {"stage": "dapo"},
    {"stage": "srpo", "refresh": 3, "advantage": "combined", "async": 1, "group_size": 2},
    {"stage": "vapo", "variant": "paper", "updates_per_batch": 1, "critic_warmup": 1},
]
"""What is rolled back differs: an optimizer alone, a reference policy and a batch under way, a token critic."""


def write_copying(folder: Path) -> None:
    """Name the last of three digits: learned in fifteen steps."""
    triples = random.Random(0).sample([(a, b, c) for a in range(10) for b in range(10) for c in range(10)], 500)
    rows = [{"question": f"{a} {b} {c} =", "answer": str(c), "solution": f"answer: {c}"} for a, b, c in triples]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))


def copying(*stages: dict[str, Any], **options: Any) -> PipelineConfig:
    """SFT until it is learned, then these stages with the ruinous rate."""
    architecture = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    architecture |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.1}
    task = {"source": "file", "path": "task.jsonl", "heldout": 50, "validation": 100, "demonstrations": "column"}
    sft = {"stage": "sft", "steps": 60, "lr": 1e-2, "prompts_per_step": 16, "eval_every": 5}
    ruinous = {"lr": RUINOUS, "steps": 16, "prompts_per_step": 8, "group_size": 4, "kl_every": 0, "eval_every": 2}
    return pipeline(
        [{**sft, "until": {"accuracy": 0.7}}, *({**ruinous, **stage} for stage in stages)],
        policy={"architecture": architecture, "device": "cpu"},
        task=task | {"columns": {"demonstration": "solution"}},
        rewards=[{"reward": "exact_answer"}],
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collapse")
    write_copying(folder)
    return folder


def accuracies(run: RunFolder, index: int = 1) -> dict[int, float]:
    return metric_history(run.stage_dir(index) / "journal.jsonl")["validation/accuracy"]


def test_without_the_guard_the_run_ends_far_below_its_best(folder: Path) -> None:
    run = launch(folder, copying({"stage": "dapo"}), "unguarded")
    before, after = run.result(1)["accuracy_before"], run.result(1)["accuracy_after"]
    assert before > 0.8 and after < 0.2 and run.result(1)["events"] == []


def test_with_it_the_run_ends_with_its_best(folder: Path) -> None:
    notes, acted = list[str](), list[tuple[str, Any]]()
    observer = Notes(notes)
    observer.rule_acted = lambda label, event: acted.append((label, event))
    run = launch(folder, copying({"stage": "dapo", "guard": {}}), "guarded", observer=observer)
    result, curve = run.result(1), accuracies(run)
    best = max(curve, key=lambda step: (curve[step], -step))
    assert min(curve.values()) < 0.2, "it did collapse"
    assert result["accuracy_after"] >= result["accuracy_before"] - 0.05
    assert result["checkpoint"].endswith(f"step-{best:06d}")
    (event,) = result["events"]
    assert (event["rule"], event["action"]) == ("guard", "roll back")
    assert list(curve) == [0, 2, 4] and best == 0
    assert event["step"] == result["steps"] == ALARM, "two evaluations below the best are enough, and one is not"
    assert "2 times in a row" in event["reason"]
    assert f"at step {best} to {curve[event['step']]:.3f}" in event["reason"]
    assert any(event["reason"] in note for note in notes) and acted == [
        ("sft", run.result(0)["events"][0]),
        ("dapo", event),
    ]
    shown = read_events(run.stage_dir(1) / "journal.jsonl")[0]
    tags = {key: value for each in shown if each["kind"] == "tags" for key, value in each["values"].items()}
    assert tags["gradus.ended_by"] == "guard" and event["reason"] in tags["gradus.events"]
    assert metric_history(run.stage_dir(1) / "journal.jsonl")["switch/guard"] == {event["step"]: 1.0}


def test_the_pipelines_curves_go_on_behind_a_stage_that_was_rolled_back(folder: Path) -> None:
    """Its steps count, whichever checkpoint it hands over, so that the next stage's follow the last of them."""
    run = launch(
        folder, copying({"stage": "dapo", "guard": {}}, {"stage": "dapo", "name": "next", "steps": 2}), "goes-on"
    )
    sft, rolled_back, after = (run.result(index) or {} for index in range(3))
    assert sft["steps"] < 60 and rolled_back["steps"] == ALARM and after["steps"] == 2
    assert sync_run(run.path).message == ""
    of_pipeline = client(run.path.parent).get_metric_history
    numbers = of_pipeline(read_run_ids(run.path)[""], "stage/index")
    expected = [1.0] * sft["steps"] + [2.0] * ALARM + [3.0] * 2
    assert [(point.step, point.value) for point in sorted(numbers, key=lambda each: each.step)] == [
        *enumerate(expected, 1)
    ]
    measured = of_pipeline(read_run_ids(run.path)[""], "validation/accuracy")
    begins, ends = sft["steps"], sft["steps"] + ALARM
    own = {begins + step: share for step, share in accuracies(run).items() if step}
    assert {point.step: point.value for point in measured if begins < point.step <= ends} == own
    assert len({point.step for point in measured}) == len(measured)


def test_the_guard_of_the_reward_goes_back_as_well(folder: Path) -> None:
    guard = {"watch": "reward", "every": 6}
    slowly = {"eval_every": 0, "steps": 48, "warmup": 60}  # the reward rises for half of the stage before it falls
    run = launch(folder, copying({"stage": "dapo", "guard": guard, **slowly}), "by-reward")
    result = run.result(1)
    rewards = metric_history(run.stage_dir(1) / "journal.jsonl")["reward/mean"]
    assert [(event["rule"], event["action"]) for event in result["events"]] == [("guard", "roll back")]
    means = {first: sum(rewards[step] for step in range(first, first + 6)) / 6 for first in range(1, 37, 6)}
    best = max(means, key=lambda first: means[first]) - 1
    assert result["checkpoint"].endswith(f"step-{best:06d}"), "the policy that the best measurement began with"
    assert rewards[max(rewards)] < 0.1 and result["accuracy_after"] > 0.4


def test_slower_goes_on_from_the_best_and_counts_on(folder: Path) -> None:
    guard = {"then": "slower", "factor": 0.01}
    run = launch(folder, copying({"stage": "dapo", "guard": guard}, checkpoints={"every_steps": 1}), "slower")
    result, curves = run.result(1), metric_history(run.stage_dir(1) / "journal.jsonl")
    (event,) = result["events"]
    assert event["action"] == "slower" and event["step"] == ALARM and result["steps"] == 16
    assert list(curves["update/learning_rate"].values()) == pytest.approx(
        [RUINOUS if step <= event["step"] else RUINOUS / 100 for step in range(1, 17)]
    )
    steps = [
        e["step"] for e in read_events(run.stage_dir(1) / "journal.jsonl")[0] if "time/step" in e.get("values", {})
    ]
    assert steps == list(range(1, 17)), "no step is counted twice"
    assert result["accuracy_after"] >= result["accuracy_before"] - 0.1, "50 prompts: a tenth is noise"
    assert curves["reward/mean"][event["step"] + 1] > 0.2, "the step after it is the best policy's"


def test_after_the_last_smaller_rate_it_hands_over(folder: Path) -> None:
    guard = {"then": "slower", "factor": 0.99, "times": 1}
    result = launch(folder, copying({"stage": "dapo", "guard": guard}), "again").result(1)
    assert [event["action"] for event in result["events"]] == ["slower", "roll back"]
    assert result["events"][1]["reason"].endswith("which is handed over after 1 smaller learning rates")


def test_stop_fails_the_stage_and_says_what_to_do(folder: Path) -> None:
    config = copying({"stage": "dapo", "guard": {"then": "stop"}})
    said = []
    for _ in range(2):  # going on with it changes nothing
        with pytest.raises(
            StageFailed, match=r"the guard stopped it: .* --set stages.dapo.lr=0.02 --runs \S+` tries"
        ) as failure:
            launch(folder, config, "stopped")
        said.append(str(failure.value))
    assert said[0] == said[1]
    run = RunFolder.create(folder / "runs", config, "stopped", folder / "tiny.yaml", [type(s) for s in config.stages])
    kept = [str(path) for step, path in checkpoints_in(run.stage_dir(1)) if str(path) in said[0]]
    assert len(kept) == 1 and read_record(Path(kept[0])).resumable
    assert "the guard stopped it" in run.failure(1)["error"]


def test_killed_around_the_way_back_and_gone_on_with(tmp_path: Path) -> None:
    """As if nothing had happened: the same bytes, events and curves, whatever had to be rolled back."""
    write_copying(tmp_path)
    guarded = [{**each, "name": f"{each['stage']}-guarded", "steps": 8} for each in ALGORITHMS]
    slower = {"guard": {"then": "slower", "factor": 0.1}}
    config = copying(*({**each, **slower, "handover": "best"} for each in guarded), checkpoints={"every_steps": 3})
    (tmp_path / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    lives = []
    for index, stage in enumerate(config.stages[1:], 1):
        event = undisturbed.result(index)["events"][0]
        assert event["action"] == "slower", stage.label
        lives += [f"{stage.label}:{event['step'] + offset}:0.5:9" for offset in (-1, 0, 1)]
    assert_same(undisturbed, run_lives(tmp_path, "killed", *lives, "-"))
