"""The runs of a comparison on a Ray cluster: Prefect's Ray task runner distributes them, one process trains each.

The folder of the runs is mounted on every node. A running run is stopped through it: a file ``stop`` asks the run to
finish its step and end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.runs.run_folder import RunFolder

STOP_FILE = "stop"
POLL_INTERVAL_SECONDS = 0.5
"""Time between two looks for the file."""


@dataclass(frozen=True)
class Cluster:
    """Where runs train. An empty ``address`` means a Ray cluster on this machine, for the time of the comparison."""

    address: str
    cpus: int
    """Cores of one run."""
    gpus: int
    """GPUs of one run."""
    parallel: int
    """Runs at a time."""

    @classmethod
    def parse(cls, text: str, engine: str, cpus: int, gpus: int, parallel: int) -> Cluster:
        """``ray``, ``ray://auto`` for the cluster of this node, or ``ray://HOST:PORT``. Raises: UserError."""
        found = re.fullmatch(r"ray(?:://([\w.\-]+(?::\d+)?))?", text)
        if found is None:
            expected = "ray (on this machine), ray://auto (this node's cluster) or ray://HOST:PORT"
            raise UserError("unknown workers", where="--workers", got=text, expected=expected)
        if engine != "prefect":
            raise UserError("Ray needs the Prefect flow", where="--engine", got=engine, expected="prefect")
        if importlib.util.find_spec("prefect_ray") is None:
            fix = "pip install 'gradus-rl[ray]'"
            raise UserError("prefect-ray is not installed", where="--workers", got=text, fix=fix)
        address = found[1] or ""
        return cls(address if address in ("", "auto") else f"ray://{address}", cpus, gpus, parallel)

    def task_runner(self) -> Any:
        """Prefect's task runner for this cluster."""
        from prefect_ray import RayTaskRunner  # type: ignore[import-not-found]

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if not self.address:
            options |= {"num_cpus": self.parallel * self.cpus, "include_dashboard": False}
        return RayTaskRunner(self.address or None, options | ({"address": "auto"} if self.address == "auto" else {}))


class RayTrainer:
    """Trains runs on the cluster, in place of :class:`gradus.flows.compare.run.jobs.LocalTrainer`."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self._lock, self._runs, self._ending = threading.Lock(), dict[str, Path](), False

    def train(self, run: RunFolder) -> None:
        """Train a run to its end on a node. Raises: StageFailed, Interrupted."""
        from prefect_ray.context import remote_options  # type: ignore[import-not-found]

        stop = run.path / STOP_FILE
        with self._lock:
            if self._ending:
                raise Interrupted(signal.SIGTERM)
            stop.unlink(missing_ok=True)
            self._runs[run.name] = stop
        try:
            with remote_options(num_cpus=self.cluster.cpus, num_gpus=self.cluster.gpus, max_retries=0):
                future = _task().with_options(task_run_name=f"{run.name} on Ray").submit(run.name, str(run.path.parent))
            result = future.result(raise_on_failure=False)
        finally:
            with self._lock:
                self._runs.pop(run.name)
            stop.unlink(missing_ok=True)
        if not isinstance(result, dict):
            raise StageFailed(
                f"Ray lost the run: {str(result).strip().splitlines()[0] if str(result).strip() else type(result)}"
            )
        if result["outcome"] == "stopped":
            raise Interrupted(signal.SIGTERM)
        if result["outcome"] == "failed":
            raise StageFailed(result["reason"])

    def end(self) -> None:
        """Ask all runs to finish their step and end; no further one is started."""
        with self._lock:
            self._ending = True
            for stop in self._runs.values():
                stop.touch()

    def kill(self) -> None:
        """Like :meth:`end`; remaining processes end with their Ray workers, when the task runner of the flow ends."""
        self.end()


def train_here(run_name: str, runs: str) -> dict[str, str]:
    """On a node: train a run in another process until it is complete or asked to stop; returns how it ended."""
    import socket

    from gradus.flows.compare.run.jobs import LocalTrainer
    from gradus.stages import discover

    run = RunFolder(Path(runs) / run_name, [stage.config for stage in discover().values()])
    trainer, over = LocalTrainer(), threading.Event()

    def watch_for_stop() -> None:
        while not over.wait(POLL_INTERVAL_SECONDS):
            if (run.path / STOP_FILE).exists():
                trainer.end()

    threading.Thread(target=watch_for_stop, daemon=True).start()
    result = {"outcome": "done", "host": socket.gethostname(), "worker": str(os.getpid()), "reason": ""}
    try:
        trainer.train(run)
    except Interrupted:
        result |= {"outcome": "stopped"}
    except StageFailed as error:
        result |= {"outcome": "failed", "reason": str(error)}
    finally:
        over.set()
        with contextlib.suppress(Exception):
            trainer.kill()
    return result


def _task() -> Any:
    """The task that Ray runs; made in a function so that this module can be imported without Prefect."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    runner: Any = train_here
    return task(runner, name="train on Ray", persist_result=False, cache_policy=NO_CACHE)
