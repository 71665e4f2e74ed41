"""Real runs: killed, resumed, branched, forked and trained again, each with the curves of its pipeline in MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed_runs import KILL, run_lives
from small_pipeline import STAGE_CONFIGS, launch, pipeline
from tracking_runs import client

from gradus.flows.order import run_plain
from gradus.flows.resume_run import restart_from
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.execution.summary import finish
from gradus.pipeline.runs import fork as forking
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.tracking.position import read_run_ids
from gradus.pipeline.tracking.uploader import sync_run

DAPO = {"stage": "dapo", "group_size": 3, "steps": 3}
STAGES = [
    {"stage": "sft", "steps": 2},
    {**DAPO, "name": "math", "eval_every": 1},
    {**DAPO, "name": "code", "from": "sft", "steps": 2},
    {"stage": "merge", "name": "soup", "of": ["math", "code"]},
]
REWARDS = [{"reward": "length", "params": {"max": 5, "falloff": 15}}]


def branches(**options) -> PipelineConfig:
    return pipeline(STAGES, checkpoints={"every_steps": 1}, rewards=REWARDS, **options)


def curve(run: RunFolder, name: str) -> dict[int, float]:
    """A curve of the pipeline's MLflow run, none of whose steps may be there twice."""
    points = client(run.path.parent).get_metric_history(read_run_ids(run.path)[""], name)
    assert len({point.step for point in points}) == len(points), f"{name} has a step twice"
    return {point.step: point.value for point in sorted(points, key=lambda point: point.step)}


def deliver(run: RunFolder) -> None:
    report = sync_run(run.path)
    assert (report.error, report.undelivered, report.rejected) == (None, 0, 0)


def one_after_the_other(name: str, *stages: Path) -> list[float]:
    """What the journals of these stages say of a metric, step by step."""
    found = [metric_history(folder / "journal.jsonl").get(name, {}) for folder in stages]
    return [history[step] for history in found for step in sorted(history) if step]


def assert_curves(run: RunFolder, *stages: Path) -> None:
    """MLflow has the steps of these stages, one after the other, and nothing twice."""
    steps = [len(one_after_the_other("time/step", stage)) for stage in stages]
    assert list(curve(run, "time/step")) == list(range(1, sum(steps) + 1))
    for name in ("reward/mean", "policy/entropy", "time/step", "completion/length", "validation/accuracy"):
        assert list(curve(run, name).values()) == one_after_the_other(name, *stages), name
    assert list(curve(run, "policy/kl").values()) == one_after_the_other("policy/kl_to_start", *stages)
    numbers = [float(stage.name[:2]) for stage in stages]
    expected = [number for number, count in zip(numbers, steps, strict=True) for _ in range(count)]
    assert list(curve(run, "stage/index").values()) == expected
    for name in ("progress/tokens", "progress/rollouts"):
        spent = list(curve(run, name).values())
        ends = [max(one_after_the_other(name, stage), default=0.0) for stage in stages]
        assert spent == sorted(spent) and spent[-1] == sum(ends)


def assert_accuracies(run: RunFolder, *now: int, steps: int = 5) -> None:
    """One curve with so many points: the start, and at ``now`` the accuracy after each stage.

    Beside it there is only what columns of the list of runs show.
    """
    history = metric_history(run.path / "journal.jsonl")
    assert curve(run, "accuracy") == history["accuracy"] and len(history["accuracy"]) == steps
    after = [(run.result(index) or {})["accuracy_after"] for index in range(len(STAGES))]
    assert [history["accuracy"][step] for step in (0, *now)] == [(run.start() or {})["accuracy"], *after]
    single = {name for name in history if name.startswith("accuracy/")}
    assert single == {"accuracy/start", "accuracy/end"} and curve(run, "accuracy/end").popitem()[1] == after[-1]


@pytest.fixture
def folder(runs: Path) -> Path:
    (runs.parent / "config.yaml").write_text(yaml_text.dump(branches().model_dump(mode="json")))
    return runs.parent


def test_killed_resumed_forked_and_trained_again(folder: Path) -> None:
    run = run_lives(folder, "run", f"math:2:0.5:{KILL}")
    deliver(run)
    killed = curve(run, "reward/mean")
    run = run_lives(folder, "run", f"code:1:0.5:{KILL}", "-")
    deliver(run)
    first = [run.stage_dir(index) for index in range(4)]
    assert_curves(run, *first)
    assert_accuracies(run, 1, 2, 3, 4)
    assert killed.items() <= curve(run, "reward/mean").items(), "it goes on where it was"
    assert (run.path / "pipeline.png").stat().st_size > 10_000

    changed = [STAGES[0], {**STAGES[1], "lr": 2e-3}, *STAGES[2:]]
    config = pipeline(changed, checkpoints={"every_steps": 1}, rewards=REWARDS)
    fork = forking.fork(run, 1, config, run.path.with_name("fork"))
    run_plain(fork.path, Observer())
    deliver(fork)
    assert_curves(fork, first[0], fork.stage_dir(1), first[2])
    assert_accuracies(fork, 1, 2, 3, 4)
    for name, shared in (("time/step", (1, 2)), ("accuracy", (0, 1, 3))):  # sft, and code beside what is changed
        ours, theirs = curve(fork, name), curve(run, name)
        assert [ours[step] for step in shared] == [theirs[step] for step in shared], name

    restart_from(run, 2)  # as `gradus resume run --from code`
    launch(folder, run.config, "run")
    finish(run)
    deliver(run)
    again = first[2].with_name(f"{first[2].name}.attempt-1")
    assert_curves(run, first[0], first[1], again, run.stage_dir(2))
    assert_accuracies(run, 1, 2, 11, 12, steps=7)  # two attempts were set aside: 2 x 4 stages + 3, + 4


def test_side_by_side_the_axis_is_that_of_one_after_the_other(folder: Path) -> None:
    run = launch(folder, branches(), "single")
    both = RunFolder.create(folder / "runs", branches(launch={"side_by_side": 2}), "both", folder / "c", STAGE_CONFIGS)
    run_plain(both.path, Observer())
    for each in (run, both):
        deliver(each)
        assert_curves(each, *(each.stage_dir(index) for index in range(3)))
    for name in ("reward/mean", "policy/kl", "progress/tokens", "stage/index", "validation/accuracy", "accuracy"):
        assert curve(run, name) == curve(both, name) != {}, name
