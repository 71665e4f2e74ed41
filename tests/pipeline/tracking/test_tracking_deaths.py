"""An uploader that dies at any of its requests while the run goes on: MLflow ends up with what the journals say.

What was written first counts: a resumed stage repeats steps with new times, and none of them may arrive twice.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tracking_runs import client

from gradus.pipeline.common.addresses import resolve_uri
from gradus.pipeline.common.files import write_json
from gradus.pipeline.tracking import events
from gradus.pipeline.tracking.curves import figure
from gradus.pipeline.tracking.journal import Journal, journals, metric_history
from gradus.pipeline.tracking.position import Position, count_undelivered
from gradus.pipeline.tracking.uploader import Uploader

STAGE = "01-first"


class Death(BaseException):
    """Nothing in the uploader may catch it, as nothing can catch SIGKILL."""


class Mortal:
    """Wraps an MLflow object. At the fated request it dies, before the request is made or before the answer is used."""

    def __init__(self, real: Any, fate: Fate, names: tuple[str, ...] = ()):
        self.real, self.fate, self.names = real, fate, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not callable(found) or (self.names and name not in self.names):
            return found

        def request(*args: Any, **options: Any) -> Any:
            self.fate.before()
            answer = found(*args, **options)
            self.fate.after()
            return answer

        return request


class Fate:
    """Death before or after the k-th request."""

    def __init__(self, number: int, before: bool):
        self.number, self.unheard, self.made = number, before, 0

    def before(self) -> None:
        self.made += 1
        if self.unheard and self.made == self.number:
            raise Death

    def after(self) -> None:
        if not self.unheard and self.made == self.number:
            raise Death


def deliver(runs: Path, run: Path, number: int = 0, before: bool = True) -> bool:
    """One pass of a new uploader; false where it died at the fated request."""
    uploader = Uploader(run, resolve_uri(None, runs), "gradus")
    fate = Fate(number, before)
    store = uploader._connected()
    mlflow = Mortal(store.mlflow, fate, ("create_external_model",))
    uploader._store = replace(store, client=Mortal(store.client, fate), mlflow=mlflow)
    try:
        report = uploader.sync()
    except Death:
        return False
    assert (report.error, report.rejected, report.undelivered) == (None, 0, 0)
    return True


class Life:
    """Writes the events of a run to its journals, with other times in each life."""

    def __init__(self, run: Path):
        self.run, self.clock = run, 1_700_000_000_000

    def journal(self, folder: Path) -> Journal:
        """A journal whose lines are a second apart, so that no two lives share a time."""
        journal = Journal(folder / "journal.jsonl")
        append = journal._append

        def at_its_time(kind: str, **fields: Any) -> None:
            self.clock += 1000
            append(kind, **{**fields, "time": self.clock})

        journal._append = at_its_time  # type: ignore[method-assign]
        return journal

    def begin(self, first_step: int, lr: float, last_step: int) -> tuple[Journal, Journal]:
        parent, stage = self.journal(self.run), self.journal(self.run / "stages" / STAGE)
        parent.start(self.run.name, {"gradus.pipeline": "tiny"}, {"seed": 0})
        parent.dataset("sums-train", "sums", "d" * 16, 10, "training")
        parent.artifact(self.run / "config.yaml")
        if first_step == 1:
            parent.metrics(0, {"accuracy": 0.1})
        stage.start("1 first", {"gradus.stage": "first"}, {"lr": lr})
        if first_step == 1:
            stage.dataset("sums-train", "sums", "d" * 16, 10, "training")
            stage.metrics(0, {"heldout/accuracy": 0.1})
        for step in range(first_step, last_step + 1):
            # a repeated step takes another time, and computes the same
            stage.metrics(step, {"reward/mean": step / 7, "time/step": self.clock / 1e12})
            if step % 2 == 0:
                stage.histogram(step, "advantage", [float(step), 2.0, 3.0])
        return parent, stage

    def first(self) -> None:
        """Dies after the fourth step; its last checkpoint is that of the second."""
        self.begin(1, 1e-4, 4)

    def second(self) -> None:
        """Goes on from the checkpoint, and stops between what it has evaluated and its record of success."""
        _, stage = self.begin(3, 2e-4, 5)
        stage.metrics(5, {"heldout/accuracy": 0.5})
        stage.table("samples", 5, [{"question": "1+1"}])
        stage.model("try-first", self.run / "checkpoints", 5, {"heldout/accuracy": 0.5})
        stage.end("KILLED")

    def third(self) -> None:
        parent, stage = self.begin(6, 1e-4, 5)
        stage.metrics(5, {"heldout/accuracy": 0.5})
        stage.tags({"gradus.accuracy_after": "0.5"})
        stage.table("samples", 5, [{"question": "1+1"}])
        stage.model("try-first", self.run / "checkpoints", 5, {"heldout/accuracy": 0.5})
        stage.end("FINISHED")
        write_json(stage.path.parent / "result.json", {"steps": 5, "rollouts": 0, "tokens": 0, "accuracy_after": 0.5})
        parent.metrics(1, {"accuracy": 0.5})
        parent.tags({"mlflow.note.content": "learned"})
        parent.end("FINISHED")


def pipeline_curves(run: Path) -> dict[str, dict[int, float]]:
    """What the pipeline's run has of its only stage."""
    stage = metric_history(run / "stages" / STAGE / "journal.jsonl")
    own = {name: stage[name] for name in ("reward/mean", "time/step")}
    return own | {"stage/index": dict.fromkeys(stage["time/step"], 1.0)}


def assert_told_once(runs: Path, run: Path) -> None:
    """MLflow has this run once: the first value of every metric, one of everything else, and the last status."""
    mlflow, experiment = client(runs), Position.read(run / "journal.jsonl").experiment_id
    for label, path in journals(run):
        run_id = Position.read(path).run_id
        found = mlflow.get_run(run_id)
        points = {name: mlflow.get_metric_history(run_id, name) for name in found.data.metrics}
        for name, history in points.items():
            assert len({p.step for p in history}) == len(history), f"{label}: {name} has a step twice"
        curves = {name: {p.step: p.value for p in history} for name, history in points.items()}
        expected = metric_history(path) | ({} if label else pipeline_curves(run))
        assert {n: c for n, c in curves.items() if not n.startswith("advantage/")} == expected
        assert [d.dataset.name for d in found.inputs.dataset_inputs] == ["sums-train"]
        assert found.info.status == "FINISHED"
        if label:
            assert curves["advantage/p50"] == {2: 2.0, 4: 3.0}
            assert (found.data.params, found.data.tags["param_changed.lr"]) == ({"lr": "0.0001"}, "0.0001")
            (output,) = found.outputs.model_outputs
            (model,) = mlflow.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
            assert output.model_id == model.model_id
            assert [(m.key, m.value, m.step) for m in model.metrics] == [("heldout/accuracy", 0.5, 5)]
            assert json.loads(found.data.tags["mlflow.loggedArtifacts"]) == [
                {"path": "samples/step-000005.json", "type": "table"}
            ]
    named = [r for r in mlflow.search_runs([experiment]) if run.name in r.data.tags["gradus.key"].split("__")]
    assert len(named) == 2, "the pipeline and its stage, each one MLflow run"


def new_run(runs: Path, name: str) -> Path:
    run = runs / name
    run.mkdir()
    (run / "config.yaml").write_text(json.dumps({"tracking": {"uri": None, "experiment": "gradus"}}))
    return run


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One figure, drawn once: drawing is most of a delivery's time."""
    import matplotlib.figure

    plain = matplotlib.figure.Figure(figsize=(0.5, 0.5), dpi=20)
    monkeypatch.setattr(events, "histogram_figure", lambda *_: plain)
    monkeypatch.setattr(figure, "pipeline_figure", lambda *_: plain)


@pytest.mark.parametrize("before", [True, False], ids=["the request was not made", "the answer was not heard"])
def test_an_uploader_that_dies_at_any_request_of_a_run_in_three_lives(
    runs: Path, plain_figures: None, before: bool
) -> None:
    number, alive = 0, False
    while not alive:
        number += 1
        run = new_run(runs, f"run-{number}")
        life = Life(run)
        life.first()
        alive = deliver(runs, run, number, before)
        life.second()
        alive &= deliver(runs, run, number, before)  # an uploader of the second launch, which dies as well
        life.third()
        assert deliver(runs, run)
        assert_told_once(runs, run)
    assert number > 20, "it died often enough"


def test_one_uploader_dies_again_and_again_over_the_whole_story(runs: Path, plain_figures: None) -> None:
    """Late delivery, as by `gradus sync` after a server was down; every death happens one request later."""
    run = new_run(runs, "late")
    life = Life(run)
    life.first(), life.second(), life.third()
    deaths = 0
    for number in (7, 5, 9, 6, 4, 8) * 20:
        if deliver(runs, run, number, before=deaths % 2 == 0):
            break
        deaths += 1
    assert deaths > 5 and count_undelivered(run) == 0
    assert_told_once(runs, run)


def test_positions_that_are_lost_cost_nothing_but_time(runs: Path, plain_figures: None) -> None:
    run = new_run(runs, "lost")
    life = Life(run)
    for lived in (life.first, life.second, life.third):
        lived()
        assert deliver(runs, run)
        for record in run.rglob("mlflow.json"):
            record.unlink()
    assert deliver(runs, run)
    assert_told_once(runs, run)


def test_what_a_killed_uploader_left_half_written_is_removed(runs: Path) -> None:
    from gradus.pipeline.tracking.uploader import sync_run

    run = new_run(runs, "half")
    Life(run).first()
    left = [run / ".mlflow.json.00abc123", run / "stages" / STAGE / ".mlflow.json.00def456"]
    left.append(run / ".mlflow-curves.json.00abc789")
    for path in left:
        path.write_text("{")
    assert sync_run(run).error is None
    assert not any(map(os.path.exists, left))
    assert sorted(p.name for p in run.rglob(".*")) == []
