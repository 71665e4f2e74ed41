"""A launch as a user makes it, killed in the middle of a stage: nothing survives it but the server and what is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from flow_runs import STAGE_CONFIGS, api, flow_run, task_states
from paths import search_path
from prefect_home import servers_of
from small_pipeline import pipeline, write_task
from tracking_runs import client

from gradus.pipeline.common import yaml_text
from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import journals, metric_history
from gradus.pipeline.tracking.position import count_undelivered, read_run_ids
from gradus.pipeline.tracking.uploader import sync_run

STEPS = 60


def launch(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gradus", "run", "tiny.yaml", "--name", "run"]
    environment = {**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def statuses(run: RunFolder) -> dict[str, str]:
    mlflow = client(run.path.parent)
    return {label: mlflow.get_run(run_id).info.status for label, run_id in read_run_ids(run.path).items()}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_launch_leaves_no_process_and_the_next_one_goes_on(home: Path, tmp_path: Path) -> None:
    write_task(tmp_path)
    rewards = [{"reward": "exact_answer"}, {"reward": "format", "params": {"pattern": "[0-9]+"}}]
    stages = [{"stage": "sft", "steps": 2}, {"stage": "dapo", "group_size": 3, "steps": STEPS}]
    config = pipeline(stages, rewards=rewards, checkpoints={"every_steps": 5})
    (tmp_path / "tiny.yaml").write_text(yaml_text.dump(config.model_dump(mode="json", exclude_defaults=True)))
    folder, first = tmp_path / "runs" / "run", launch(tmp_path)
    while not checkpoints_in(folder / "stages" / "02-dapo"):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.005)
    family = psutil.Process(first.pid).children(recursive=True)
    roles = [" ".join(process.cmdline()) for process in family]
    assert any("gradus.pipeline.tracking.uploader" in role for role in roles), "the uploader"
    assert len(family) >= 2, "and a worker for the rewards"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _, alive = psutil.wait_procs(family, timeout=120)  # the uploader may take a minute for what is left
    assert not alive and len(servers_of(home)) == 1, "the server alone stays"

    run = RunFolder(folder, STAGE_CONFIGS)
    assert run.holder() is None and run.state() == "stopped"
    killed, ids = flow_run(run), read_run_ids(folder)
    assert statuses(run) == {"": "KILLED", "01-sft": "FINISHED", "02-dapo": "KILLED"}
    assert count_undelivered(folder) == 0
    said, _ = launch(tmp_path).communicate(timeout=120)
    assert run.state() == "done", said
    sync_run(folder)  # a launch waits for MLflow for a limited time, which a busy machine may exceed
    assert (read_run_ids(folder), set(statuses(run).values())) == (ids, {"FINISHED"})
    for label, path in journals(folder):
        for name, wanted in metric_history(path).items():
            points = client(folder.parent).get_metric_history(ids[label], name)
            assert sorted(wanted.items()) == sorted((p.step, p.value) for p in points), f"{label}: {name}"
    assert api(f"/flow_runs/{killed['id']}")["state_name"] == "Crashed"
    record = flow_run(run)
    assert record["state_name"] == "Completed" and "resumed" in record["tags"]
    expected = {"prepare": "Reused", "sft": "Reused", "dapo": "Completed"}
    assert task_states(record["id"], 3) == expected
