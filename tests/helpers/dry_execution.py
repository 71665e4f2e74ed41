"""A run without training: what an execution does to a run folder, in no time and without torch.

As a script it is a launch of its own: ``python dry_execution.py RUN_DIR SIGNAL``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradus.flows.orchestrator import server
from gradus.flows.order import PipelineWork
from gradus.pipeline.common.files import write_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.runs.run_folder import RESULT_FILE, RunFolder
from gradus.stages import discover


class Rehearsal:
    """Does everything a real execution does to a run folder, except training; ``surprises`` happen in their stage."""

    def __init__(self, **surprises: Callable[[], None]):
        self.surprises, self.order = surprises, []

    def prepare(self, run: RunFolder, observer: Observer) -> dict[str, Any]:
        self.order.append("prepare")
        observer.prepared(0.1, (0.05, 0.15))
        return {"checkpoint": str(run.path / "start"), "accuracy": 0.1, "interval": [0.05, 0.15], "seconds": 0.5}

    def run_stage(self, run: RunFolder, index: int, parent: str, stage: Any, observer: Observer) -> dict[str, Any]:
        config, done = run.config.stages[index], run.result(index)
        self.order.append(config.label)
        place = graph.parent(run.config.stages, index)
        assert Path(parent) == (run.path / "start" if place is None else run.stage_dir(place))
        assert (stage is not None and stage.name == config.stage) or not config.trains
        if done:
            return {**done, "reused": True}
        observer.stage_started(config.label, index, len(run.config.stages), config.steps, 0)
        self.surprises.get(config.label, lambda: None)()
        for step in (1, 2):
            observer.step_done(config.label, step, 2, {"reward/mean": step / 4, "throughput/tokens_per_second": 1234.5})
        result = {"name": config.label, "variant": config.variant, "steps": 2, "interval": [0.3, 0.5], "tokens": 12345}
        result |= {"accuracy_before": 0.1 + index / 10, "accuracy_after": 0.2 + index / 10, "rollouts": 48}
        result |= {"seconds": 1.25, "checkpoint": str(run.stage_dir(index))}
        write_json(run.stage_dir(index) / RESULT_FILE, result)
        observer.stage_finished(config.label, result)
        return result

    def finish(self, run: RunFolder) -> dict[str, Any]:
        stages = [run.result(index) for index in range(len(run.config.stages))]
        return {"name": run.name, "stages": stages, "accuracy_start": 0.1, "accuracy_end": 0.5, "seconds": 5.5}


def main(run_dir: str, kind: int) -> None:
    """A launch of its own that is hit by a signal in its third stage."""
    server.start_server_in_background()
    from gradus.flows.staged import run_staged

    def hit() -> None:
        time.sleep(1)  # so that the server has heard of the stage
        os.kill(os.getpid(), kind)
        time.sleep(5)

    run = RunFolder(run_dir, [stage.config for stage in discover().values()])
    with run.lock():
        run_staged(run.path, Observer(), PipelineWork(run, discover(), Rehearsal(gfpo=hit)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
