"""The command ``gradus compare`` on a tiny pipeline: two arms and their shared start, two seeds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from paths import search_path
from small_pipeline import STAGE_CONFIGS, pipeline, write_task

from gradus.pipeline.common import yaml_text
from gradus.pipeline.runs.run_folder import RunFolder

NAMES = ["base-seed-0", "base-seed-1", "gfpo-seed-0", "gfpo-seed-1", "staged-seed-0", "staged-seed-1"]
PATIENCE = 280.0
"""Seconds: a bound against waiting for ever. On a busy machine a process takes a minute to import everything."""
ARMS = ["--arms", "gfpo,staged", "--seeds", "2", "--budget", "720", "--parallel", "2"]


class Comparison:
    """The command in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "runs" / "tiny-compare"
        self.started: list[subprocess.Popen[str]] = []
        write_task(folder)
        small = {"prompts_per_step": 3, "group_size": 4}
        stages = [
            {"stage": "sft"},
            {"stage": "dapo", **small},
            {"stage": "srpo", "baseline": "mean", "steps": 4, **small},
        ]
        config = pipeline(stages, checkpoints={"every_steps": 5}, rewards=[{"reward": "exact_answer"}])
        (folder / "tiny.yaml").write_text(yaml_text.dump(config.model_dump(mode="json", exclude_defaults=True)))

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gradus", "compare", "tiny.yaml", *ARMS, *more]
        environment = {**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT
        )
        self.started.append(process)
        return process

    def tell(self, *more: str, code: int = 0) -> str:
        process = self.start(*more)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, said
        return said

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / name, STAGE_CONFIGS)

    def exists(self, name: str) -> bool:
        return (self.path / name / "run.json").is_file()

    def holder(self, name: str) -> int | None:
        """The process that trains this run."""
        found = self.run(name).holder() if self.exists(name) else None
        return found and found.get("pid")

    def wait_for(self, *names: str, patience: float = PATIENCE) -> int:
        """Until one of these runs is at work in its first own stage; its process."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for name in names:
                journal = self.path / name / "stages" / "02-gfpo" / "journal.jsonl"
                if (pid := self.holder(name)) and journal.exists():
                    return pid
            time.sleep(0.01)
        raise AssertionError("no arm began")
