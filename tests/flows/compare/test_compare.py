"""A comparison from the command line: real arms in processes of their own that are killed, stopped, and go on."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from comparisons import NAMES, PATIENCE, Comparison
from flow_runs import api, artifacts, task_states
from rich.console import Console
from small_pipeline import STAGE_CONFIGS

from gradus.flows.compare.plan.budget import Budget
from gradus.flows.compare.plan.comparison import make_plan
from gradus.flows.compare.plan.job import Job
from gradus.flows.compare.plan.schedule import ComparisonWork, Tuning
from gradus.flows.compare.report.publish import publish
from gradus.flows.compare.run.jobs import LocalTrainer, do_job, run_jobs
from gradus.flows.compare.run.launch import launch, open_comparison
from gradus.flows.order import run_plain
from gradus.pipeline.common import locks
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history
from gradus.stages import discover

pytestmark = pytest.mark.timeout(600)


def arms_of(comparison: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train; one that delivers curves may outlive them for a while."""
    return [p for p in psutil.Process(comparison.pid).children() if "gradus.flows.cli.arm" in p.cmdline()]


def planned(folder: Path, name: str, tuning: Tuning | None = None) -> ComparisonWork:
    """The work of a comparison in this process."""
    loaded = load_config(str(folder / "tiny.yaml"), [], STAGE_CONFIGS)
    plan = make_plan(loaded, discover(), "gfpo,staged", Budget(720 if tuning is None else 120), [], folder / "runs")
    return open_comparison(folder / "runs", name, plan, [0], tuning, 1)


@pytest.fixture(scope="module")
def comparison(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """One comparison in three lives; the tests below look at what each left behind."""
    found = Comparison(tmp_path_factory.mktemp("compare"))
    yield found
    for process in found.started:
        process.kill()


def test_a_comparison_whose_parent_is_killed_leaves_no_process(comparison: Comparison) -> None:
    first = comparison.start("--engine", "none")
    while not locks.holder(comparison.path):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    with pytest.raises(UserError, match=r"another process is working on .*tiny-compare"):
        launch(planned(comparison.folder, "tiny-compare"), [], 1, "none", Console(), ["gradus"])
    arm = psutil.Process(comparison.wait_for("gfpo-seed-0", "gfpo-seed-1"))
    others = arms_of(first)
    first.kill()
    first.wait()
    assert not psutil.wait_procs([arm, *others], timeout=PATIENCE)[1], "an arm went on alone"
    assert not any(map(comparison.holder, NAMES))


def test_an_arm_that_is_killed_is_told_of_and_ctrl_c_stops_the_others_in_good_order(comparison: Comparison) -> None:
    second = comparison.start("--engine", "none")
    killed = comparison.wait_for("gfpo-seed-0", "gfpo-seed-1")
    os.kill(killed, signal.SIGKILL)
    assert second.stdout is not None
    said = ""
    while "failed, its process was killed (SIGKILL)" not in said:
        said += (line := second.stdout.readline())
        assert line, said
    arms = arms_of(second)
    second.send_signal(signal.SIGINT)
    rest, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 130, said + rest
    assert re.search(r"(gfpo|staged) seed [01]: (stopped|done)", rest), "an arm at work kept its step"
    assert not psutil.wait_procs(arms, timeout=PATIENCE)[1]
    assert all(comparison.run(name).state() in ("done", "stopped") for name in NAMES if comparison.exists(name))


def test_the_same_command_goes_on_and_ends_with_a_report(comparison: Comparison) -> None:
    said = comparison.tell()
    assert len(re.findall("reused", said)) >= 2 and "failed" not in said, said
    assert "curves, in MLflow: gradus ui tiny-compare\n" in said, said
    assert all(comparison.run(name).state() == "done" for name in NAMES)
    report = json.loads((comparison.path / "report.json").read_text())
    gfpo, staged = report["analysis"]["arms"]
    assert not report["missing"] and gfpo["seeds"] == staged["seeds"] == [0, 1]
    # staged: dapo spends 2 x 12, srpo 4 x 24 of 120: 1/5 and 4/5 of 720, in steps of 12 and of 24 rollouts
    assert [(s["name"], s["steps"], s["rollouts"]) for s in staged["stages"]] == [("dapo", 12, 144), ("srpo", 24, 576)]
    assert [(s["name"], s["steps"], s["rollouts"]) for s in gfpo["stages"]] == [("gfpo", 60, 720)]
    for each in report["measured"]:
        xs = [x for x, _ in each["curve"]]
        assert xs == sorted(set(xs)) and xs[0] == 0 and xs[-1] == 720, "no point twice, whatever was computed again"
        own = comparison.run(each["run"])
        correct = read_json(own.stage_dir(len(own.config.stages) - 1) / "heldout.json")["correct"]
        assert len(correct) == 12 and sum(correct.values()) / 12 == pytest.approx(each["accuracy"])
    (pair,) = report["analysis"]["pairs"]
    assert (pair["a"], pair["b"]) == ("staged", "gfpo") and pair["mean"] == pytest.approx(
        staged["accuracy"] - gfpo["accuracy"]
    )
    starts = {comparison.run(name).result(0)["content"] for name in NAMES if name.endswith("seed-1")}
    assert len(starts) == 1, "one start for all arms of a seed"
    assert not list(comparison.path.glob("gfpo-seed-*/stages/01-sft/checkpoints")), "shared, not copied"


def test_the_page_is_one_file(comparison: Comparison) -> None:
    page = (comparison.path / "report.html").read_text()
    assert page.count("<svg") >= 4 and "currentColor" in page and "Staged is better than any one" in page
    assert not re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import""", page.replace("xlink:href", "href"))
    markdown = (comparison.path / "report.md").read_text()
    assert all((comparison.path / name).is_file() for name in re.findall(r"\((figures/[^)]+)\)", markdown))


def test_prefect_shows_every_run_as_a_task_and_the_report(comparison: Comparison) -> None:
    record = read_json(comparison.path / "prefect.json")
    assert api(f"/flow_runs/{record['flow_run_id']}")["state_name"] == "Completed"
    states = task_states(record["flow_run_id"], 6)
    assert states.keys() == {name.replace("-", " ") for name in NAMES}
    assert set(states.values()) == {"Reused", "Completed"}
    (report,) = artifacts(record["flow_run_id"]).values()
    assert report["key"] == "tiny-compare-report" and "## Verdicts" in report["data"]


def test_mlflow_groups_arms_and_seeds_under_the_comparison(comparison: Comparison) -> None:
    with sqlite3.connect(comparison.folder / "runs" / "mlflow.db") as store:
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in store.execute("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
        experiments = {name for (name,) in store.execute("select name from experiments")} - {"Default"}
    assert experiments == {"tiny-compare"}
    (top,) = (run for run, each in tags.items() if each.get("gradus.arm") == "(comparison)")
    below = [each for each in tags.values() if each.get("mlflow.parentRunId") == top]
    found = sorted((each["gradus.arm"], each["gradus.seed"]) for each in below)
    assert found == [(arm, seed) for arm in ("base", "gfpo", "staged") for seed in "01"]
    assert list((comparison.folder / "runs" / "mlartifacts").rglob("report.html"))


def test_other_options_are_refused_before_any_compute(comparison: Comparison) -> None:
    said = comparison.tell("--set-arm", "gfpo.lr=5e-5", code=2)
    assert "gfpo-seed-0" in said and "stages.gfpo.lr: 0.0001 -> 5e-05" in said


class Here(LocalTrainer):
    """Trains in this very process: the same work without the seconds that a new one takes to import everything."""

    def train(self, run: RunFolder) -> None:
        with run.lock():
            run_plain(run.path, Observer())


class Silent:
    """Watches nothing."""

    def changed(self, job: Job) -> None: ...

    def refresh(self, jobs: Sequence[Job]) -> None: ...


def test_each_arm_gets_the_value_that_does_best_on_the_validation_prompts(tmp_path: Path) -> None:
    Comparison(tmp_path)
    work = planned(tmp_path, "tuned", Tuning.parse("lr=1e-5,3e-3", 9, [0]))
    trainer = Here()
    run_jobs(work.jobs, 1, lambda job: do_job(job, trainer), Silent(), trainer, lambda: None)
    assert [job.state for job in work.jobs] == ["done"] * 8
    scores = {label: chosen["scores"] for label, chosen in work.chosen.items()}
    for label, chosen in work.chosen.items():
        assert chosen["value"] == max(scores[label], key=scores[label].__getitem__)
        own = work.folder.open(f"{label}-seed-0").config.stages[1:]
        assert {stage.lr for stage in own} == {float(chosen["value"])}
        tried = work.folder.open(f"tune-{label}-lr-3e-3")
        last = metric_history(tried.stage_dir(len(tried.config.stages) - 1) / "journal.jsonl")["validation/accuracy"]
        assert 0 <= scores[label]["3e-3"] <= 1 and last
    assert {job.name for job in work.reported()} == {"gfpo-seed-0", "staged-seed-0"}
    text = publish(work, [], "gradus compare", 1)
    assert "## Tuning" in text and "lr = 3e-3" in text
