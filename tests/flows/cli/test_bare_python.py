"""Training needs neither Prefect nor MLflow: in a Python without them, a run keeps its curves in its folder."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest
from paths import search_path
from small_pipeline import STAGE_CONFIGS, pipeline, write_task

from gradus.pipeline.common import yaml_text
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history

MISSING = ("prefect", "mlflow", "gradus", "_gradus", "__editable__")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with every package of this one but Prefect's and MLflow's."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    venv.create(folder, with_pip=False)
    here, there = Path(pytest.__file__).parents[1], next(folder.glob("lib/python*/site-packages"))
    for entry in here.iterdir():
        if not entry.name.lower().startswith(MISSING):
            (there / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_task(tmp_path)
    config = pipeline([{"stage": "sft"}, {"stage": "dapo", "group_size": 2}])
    text = yaml_text.dump(config.model_dump(mode="json", exclude_defaults=True))
    (tmp_path / "tiny.yaml").write_text(text)
    return tmp_path


def gradus(python: Path, folder: Path, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "gradus", *words]
    both = subprocess.STDOUT
    done = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=both)
    return done.returncode, done.stdout


def test_a_pipeline_trains_without_prefect_and_mlflow(bare_python: Path, project: Path) -> None:
    for name in ("prefect", "mlflow"):
        assert subprocess.run([bare_python, "-c", f"import {name}"], stderr=subprocess.DEVNULL).returncode == 1
    code, said = gradus(bare_python, project, "run", "tiny.yaml", "--engine", "none", "--name", "run")
    assert code == 0, said
    assert "MLflow is not installed in this Python" in said and "they are kept in the run folder" in said
    run = RunFolder(project / "runs" / "run", STAGE_CONFIGS)
    assert run.summary() is not None
    journals = sorted(run.path.glob("stages/*/journal.jsonl"))
    assert [len(metric_history(journal)["update/loss"]) for journal in journals] == [2, 2]
    assert not (run.path.parent / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "tiny.yaml", "--name", "new"], "--engine none: the same stages, without Prefect's pages"),
        (["check", "tiny.yaml"], "pip install prefect"),
        (["ui"], "pip install mlflow"),
    ],
    ids=["run", "check", "ui"],
)
def test_what_needs_them_says_so_before_anything_is_made(
    words: list[str], message: str, bare_python: Path, project: Path
) -> None:
    (project / "runs").mkdir()
    code, said = gradus(bare_python, project, *words)
    assert code == 2 and message in said and "Traceback" not in said
    assert not (project / "runs" / "new").exists()
