"""A comparison on several tasks: arms that end on different ones are judged by the same held-out prompts."""

from __future__ import annotations

from pathlib import Path

from small_pipeline import TASK, launch, pipeline

from gradus.flows.compare.measures import Measures, measure
from gradus.flows.compare.plan.comparison import ComparisonPlan, make_plan
from gradus.flows.compare.report.analysis import analyse
from gradus.flows.compare.report.figures import figures
from gradus.flows.compare.report.pages import table_of_tasks
from gradus.pipeline.config.loading import load_config
from gradus.stages import discover

STAGES = discover()
TASKS = {"first": TASK, "second": TASK | {"heldout": 8}}


def test_an_arm_is_measured_on_all_tasks_whatever_its_last_stage_trains_on(tmp_path: Path) -> None:
    shared = {"stage": "sft", "task": "first", "eval_every": 2}
    base = launch(tmp_path, pipeline([shared], task=None, tasks=TASKS), "base")
    run = launch(tmp_path, pipeline([shared, {"stage": "dapo", "task": "second"}], task=None, tasks=TASKS), "run")
    heldout = run.heldout(1)
    assert heldout is not None and len(heldout) == 20
    # a policy that knows nothing gets everything wrong, so let the record say which ones are right
    for each, index, right in ((base, 0, {"first": 6, "second": 2}), (run, 1, {"first": 9, "second": 1})):
        record = each.result(index)
        assert record is not None and record["trained_on"] == ["first" if index == 0 else "second"]
        for name, count in right.items():
            record["tasks"][name]["accuracy"] = count / record["tasks"][name]["prompts"]
        record["accuracy_after"] = record["tasks"][record["trained_on"][0]]["accuracy"]
        each.result = lambda _, record=record: record  # type: ignore[method-assign]
    found = measure(run, base, "arm", 0)
    assert found["start"]["accuracy"] == 8 / 20 and found["accuracy"] == 10 / 20


def test_each_task_has_its_accuracies_and_its_paired_tests() -> None:
    def arm(name: str, seed: int, right: str) -> Measures:
        heldout = {f"{'easy' if n < 4 else 'hard'}/{n}": each == "1" for n, each in enumerate(right)}
        return {
            "arm": name, "seed": seed, "start": {"content": "c", "accuracy": 0.5, "validation": None}, "run": name,
            "marks": [], "curve": [[0, 0.5], [100, 0.5]], "rollouts": 100, "tokens": 100, "seconds": 1.0, "stages": [],
            "accuracy": right.count("1") / len(right), "heldout": heldout, "entropy": [], "length": [], "reward": [],
        }  # fmt: skip

    measured = [arm("a", 0, "111110"), arm("a", 1, "111011"), arm("b", 0, "011100"), arm("b", 1, "110000")]
    found = analyse(measured, ["a", "b"])
    easy, hard = found["tasks"]
    assert (easy["task"], easy["prompts"], hard["task"], hard["prompts"]) == ("easy", 4, "hard", 2)
    assert easy["each"] == {"a": {0: 1.0, 1: 0.75}, "b": {0: 0.75, 1: 0.5}}
    assert [pair["mean"] for each in (easy, hard) for pair in each["pairs"]] == [0.25, 0.75]
    assert found["pairs"][0]["mean"] == (4 * 0.25 + 2 * 0.75) / 6, "all prompts together, as ever"
    header, rows = table_of_tasks(found)
    assert header == ["arm", "easy, 4 prompts", "hard, 2 prompts"]
    assert rows[0] == ["a", "0.875 (1.000, 0.750)", "0.750 (0.500, 1.000)"]
    drawn = figures({name: {m["seed"]: m for m in measured if m["arm"] == name} for name in "ab"}, found)
    assert "hard (2 prompts)" in drawn["accuracy-by-task"]
    alone = [each | {"heldout": {key[-1]: value for key, value in each["heldout"].items()}} for each in measured]
    assert analyse(alone, ["a", "b"])["tasks"] == [], "one task has no table of its own"


def planned(folder: Path, chosen: str) -> ComparisonPlan:
    text = f"""\
name: several
policy: {{architecture: {{model_type: llama}}}}
tasks:
  easy: {{source: reasoning_gym, dataset: chain_sum, heldout: 10, validation: 5, demonstrations: solver}}
  hard: {{source: reasoning_gym, dataset: number_sorting, heldout: 10, validation: 5}}
rewards: [{{reward: exact_answer}}]
evaluation: {{prompts: 3}}
stages:
  - {{stage: sft, steps: 3, task: easy}}
  - {{stage: dapo, steps: 3, task: {chosen}}}
"""
    (folder / "several.yaml").write_text(text)
    loaded = load_config(str(folder / "several.yaml"), [], [stage.config for stage in STAGES.values()])
    return make_plan(loaded, STAGES, "staged,gfpo", None, (), folder / "runs")


def test_all_arms_answer_all_prompts_and_a_change_of_tasks_is_told(tmp_path: Path) -> None:
    changes = planned(tmp_path, "hard")
    assert changes.arm(changes.arms[0], 0).evaluation.prompts is None, "or arms would answer different prompts"
    assert any("train on different tasks" in note for note in changes.notes)
    assert not any("train on different tasks" in note for note in planned(tmp_path, "easy").notes)
