"""One run in several lives: each but the last is ended by a signal at a moment of its own.

As a script: ``python killed_runs.py FOLDER NAME LIFE ...`` where a life is ``label:step:share:signal``: once that step
of that stage, or a later one, is done, the signal comes after that share of a further step's time; ``-`` lets a life
end undisturbed. In place of a step, ``profile-N`` is the N-th part of a profile that a life completes: the signal comes
before its record is written where the share is 0, and after that where it is 1. Every life is a process of its own,
forked from one that has imported everything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from paths import HELPERS, search_path
from small_pipeline import STAGE_CONFIGS, write_task

from gradus.flows.order import run_plain
from gradus.pipeline.common import interruption, yaml_text
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.same_outcome import outcome_differences
from gradus.pipeline.training import profile

KILL, TERM, INT = int(signal.SIGKILL), int(signal.SIGTERM), int(signal.SIGINT)


class Fate(Observer):
    """Sends this process a signal while it is in the step after the fated one, or later where that is done already."""

    def __init__(self, life: str, labels: list[str]):
        label, step, share, number = life.split(":")
        self.labels, self.fated, self.share, self.number = labels, (labels.index(label), int(step)), share, number
        self.strike: threading.Thread | None = None

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        self._strike_later((index, done), 0.1)

    def step_done(self, label: str, step: int, steps: int, metrics: Any) -> None:
        if self.strike is not None:
            self.strike.join()  # however fast a step is, its signal comes before its end
        self._strike_later((self.labels.index(label), step), metrics["time/step"])

    def _strike_later(self, now: tuple[int, int], seconds: float) -> None:
        def strike() -> None:
            time.sleep(float(self.share) * seconds)
            os.kill(os.getpid(), int(self.number))

        if now >= self.fated and self.strike is None:
            self.strike = threading.Thread(target=strike, daemon=True)
            self.strike.start()


class ProfilesFate(Observer):
    """Sends this process a signal when a profile has answered some of its parts."""

    def __init__(self, life: str):
        self.label, part, share, number = life.split(":")
        self.left, self.after, self.number = int(part.removeprefix("profile-")), share == "1", int(number)
        self.write, profile.write_sealed = profile.write_sealed, self.written

    def written(self, path: Path, fields: dict[str, Any]) -> None:
        self.left -= self.label in path.parent.name
        if not self.left and not self.after:
            os.kill(os.getpid(), self.number)
        self.write(path, fields)
        if not self.left and self.after:
            os.kill(os.getpid(), self.number)


def fate(life: str, labels: list[str]) -> Observer:
    """What ends a life."""
    if life == "-":
        return Observer()
    return ProfilesFate(life) if ":profile-" in life else Fate(life, labels)


def live(run: RunFolder, life: str) -> int:
    """The exit status of a process that works on the run until it is done or struck."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        labels = [stage.label for stage in run.config.stages]
        with run.lock(), interruption.handled():
            run_plain(run.path, fate(life, labels))
        code = 0
    except SystemExit as ending:
        code = int(ending.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(folder: Path, name: str, *lives: str) -> None:
    torch.set_num_threads(1)
    raw = yaml_text.parse((folder / "config.yaml").read_text(), "config.yaml").data
    config = pipeline_model(STAGE_CONFIGS).model_validate(raw)
    if not (folder / "task.jsonl").exists():
        write_task(folder)
    for life in lives:
        run = RunFolder.create(folder / "runs", config, name, folder / "config.yaml", STAGE_CONFIGS)
        expected = {0} if life == "-" else {-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT}
        status = live(run, life)
        assert status in expected, f"life {life} ended with {status}"
        print(life, status, flush=True)


def run_lives(folder: Path, name: str, *lives: str) -> RunFolder:
    """The run after these lives, see :func:`main`."""
    environment = {**os.environ, "PYTHONPATH": search_path(HELPERS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HELPERS / "killed_runs.py"), str(folder), name, *lives]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return RunFolder(folder / "runs" / name, STAGE_CONFIGS)


def assert_same(undisturbed: RunFolder, run: RunFolder) -> None:
    """The two runs have the same outcome, bit for bit, and nothing half-made was left behind."""
    assert outcome_differences(undisturbed, run) == []
    assert run.state() == "done"
    assert not [path for path in run.path.rglob("*") if "attempt" in path.name]
    leftovers = [path.name for path in run.path.rglob(".*") if not path.name.startswith(".mlflow")]
    assert not leftovers


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
