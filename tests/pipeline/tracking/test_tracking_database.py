"""MLflow's database, interrupted while it is made: the next delivery makes it, and leaves nothing else behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import search_path
from tracking_runs import client, new_run

from gradus.pipeline.tracking import ui
from gradus.pipeline.tracking.position import Position
from gradus.pipeline.tracking.uploader import sync_run

INTERRUPTED = """
import os, resource, signal, sys
from alembic.ddl.impl import DefaultImpl
from gradus.pipeline.tracking.uploader import main

def interrupt(*arguments, **options):
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(28, "No space left on device")

if sys.argv[1] == "no room":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # as a disk that is full: writes fail in the middle
else:
    DefaultImpl.drop_table = interrupt  # a table has been copied to its temporary successor
sys.exit(main(sys.argv[2:]))
"""


def interrupted(how: str, *arguments: str) -> int:
    environment = {**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, how, *arguments], env=environment, capture_output=True, timeout=120
    ).returncode


@pytest.mark.parametrize(("how", "code"), [("killed", -signal.SIGKILL), ("no room", 1), ("refused", 1)])
def test_a_delivery_that_is_interrupted_while_it_makes_the_data_base(tmp_path: Path, how: str, code: int) -> None:
    run = new_run(tmp_path / "runs")
    assert interrupted(how, str(run)) == code
    assert not (run.parent / "mlflow.db").exists()
    report = sync_run(run)
    assert (report.error, report.undelivered) == (None, 0)
    assert client(run.parent).get_run(Position.read(run / "journal.jsonl").run_id).data.params == {"seed": "0"}
    assert sorted(path.name for path in run.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock", "try"]


def test_the_ui_has_a_new_data_base_made_in_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mlflow.db"
    assert interrupted("killed", "--make-database", str(path)) == -signal.SIGKILL
    assert not path.exists()
    with (tmp_path / "log").open("wb") as log:
        ui._ensure_database(f"sqlite:///{path}", log)
    assert [found.name for found in path.parent.iterdir()] == ["mlflow.db"], (tmp_path / "log").read_text()
    assert client(path.parent).get_experiment("0").name == "Default"
