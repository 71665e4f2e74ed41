"""Run folders with journals, and an MLflow store whose tables are already made, for the tests of tracking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gradus.pipeline.common.addresses import resolve_uri
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.position import read_run_ids
from gradus.pipeline.tracking.uploader import _import_mlflow


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data base with MLflow's tables; creating them takes seconds, copying the file none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    _import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("gradus")
    return path


@pytest.fixture(name="runs")
def runs_folder(empty_store: Path, tmp_path: Path) -> Path:
    """A runs folder with an initialised store."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def new_run(runs: Path, name: str = "try", uri: str | None = None) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"tracking": {"uri": uri, "experiment": "gradus"}}))
    Journal(folder / "journal.jsonl").start(name, {"pipeline": name}, {"seed": 0})
    return folder


def new_stage(run: Path, label: str = "01-first", steps: int = 0) -> Journal:
    journal = Journal(run / "stages" / label / "journal.jsonl")
    journal.start(f"{int(label[:2])} {label[3:]}", {"gradus.stage": label[3:]}, {"lr": 1e-4})
    log_steps(journal, range(1, steps + 1))
    return journal


def log_steps(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.metrics(step, {"reward/mean": step / 7, "reward/std": 0.5})


def completion(text: str, rank: int | None, **fields: Any) -> dict[str, Any]:
    """A completion as a stage keeps it."""
    scores = {"reward": 1.0, "weight": -0.5, "components": {"exact": 1.0, "eq": None}}
    return {"text": text, "tokens": 3, "rank": rank, "truncated": False, "correct": True, **scores, **fields}


def group(step: int, *completions: dict[str, Any], number: int = 0, **fields: Any) -> dict[str, Any]:
    """A group of them."""
    given = {"step": step, "group": number, "task": "", "prompt": "0a1b", "question": "1 + 1 =", "answer": "2"}
    counted = {"ranking": ["reward"], "size": 2, "correct": 1, "mean_reward": 0.5}
    return {**given, **counted, "completions": [*completions], **fields}


def client(runs: Path) -> Any:
    return _import_mlflow().MlflowClient(tracking_uri=resolve_uri(None, runs))


def steps_of(runs: Path, run: Path, label: str = "01-first", metric: str = "reward/mean") -> list[int]:
    """Steps of every point MLflow holds, repeated points included."""
    return sorted(point.step for point in client(runs).get_metric_history(read_run_ids(run)[label], metric))


def full_run(runs: Path) -> Path:
    """A run with one record of every kind."""
    run = new_run(runs)
    stage = new_stage(run, "01-first", steps=3)
    stage.dataset("sums", "reasoning_gym:chain_sum", "d" * 64, 100, "training", ["question", "answer"])
    stage.histogram(3, "advantage", [0.0, 1.0, 2.0, 3.0, 4.0])
    stage.table("samples", 3, [{"question": "1+1", "reward": 1.0}, {"question": "2+2", "length": 4}])
    stage.rollouts(3, [group(3, completion("2", 1), completion("3", 2, correct=False))])
    stage.metrics(3, {"heldout/accuracy": 0.5})
    stage.model("try/first: 3", run / "checkpoints", 3, {"heldout/accuracy": 0.5})
    stage.artifact(run / "config.yaml")
    stage.tags({"mlflow.note.content": "what happened"})
    stage.end()
    new_stage(run, "02-second", steps=2).end("FAILED")
    Journal(run / "journal.jsonl").end()
    return run
