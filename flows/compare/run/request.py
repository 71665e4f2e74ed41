"""The request for a comparison, and its way to the report. Nothing heavy is imported before the checks have passed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradus.pipeline.common.errors import StageFailed, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from gradus.flows.open_run import ConfigSource
    from gradus.pipeline.config import PipelineConfig

ARMS = "dapo,vapo,gfpo,srpo,staged"
"""The default arms."""
THREADS = "OMP_NUM_THREADS"
"""The environment variable with the number of threads of a run's process."""


@dataclass(frozen=True)
class ComparisonRequest:
    """The options of a comparison, as ``gradus compare --help`` describes them."""

    arms: str = ARMS
    seeds: Sequence[int] = (0, 1, 2)
    budget: str | None = None
    changes: Sequence[str] = ()
    """Options of single arms, written ``ARM.KEY=VALUE``."""
    tune: str | None = None
    tune_seed: int = 1000
    external: Sequence[Path] = ()
    name: str | None = None
    parallel: int | None = None
    workers: str | None = None

    def words(self, config: str, overrides: Sequence[str], runs: Path, engine: str) -> list[str]:
        """The command that asks for the same."""
        seeds = ",".join(map(str, self.seeds)) + ("," if len(self.seeds) == 1 else "")
        words = ["gradus", "compare", config, "--arms", self.arms, "--seeds", seeds]
        options = {"--budget": self.budget, "--tune": self.tune, "--name": self.name, "--workers": self.workers}
        options |= {"--parallel": self.parallel, "--tune-seed": self.tune_seed if self.tune else None}
        words += [word for option, value in options.items() if value is not None for word in (option, str(value))]
        repeated = {"--set": overrides, "--set-arm": self.changes, "--external": map(str, self.external)}
        words += [word for option, values in repeated.items() for value in values for word in (option, value)]
        return [*words, "--runs", str(runs), "--engine", engine]


def run_comparison(
    config: ConfigSource,
    overrides: Sequence[str] | None,
    request: ComparisonRequest,
    runs: Path,
    engine: str,
    console: Console,
    command: Sequence[str] = (),
) -> Path:
    """Train what is not done of a comparison, write its report, and return its folder.

    ``command`` is the command that the report shows; by default it is made from the request.
    Raises: UserError; Interrupted; StageFailed if runs failed, which the same call tries again.
    """
    from gradus.flows.compare.measures import read_external
    from gradus.flows.compare.plan.arms import BASE
    from gradus.flows.compare.plan.budget import Budget
    from gradus.flows.compare.plan.comparison import make_plan
    from gradus.flows.compare.plan.folder import arm_run
    from gradus.flows.compare.plan.schedule import Tuning
    from gradus.flows.compare.run import launch as comparisons
    from gradus.flows.compare.run.ray import Cluster
    from gradus.flows.open_run import check_name, check_world, load, own_copies
    from gradus.flows.orchestrator.access import check_prefect
    from gradus.pipeline.common.process import usable_cores
    from gradus.pipeline.runs.run_folder import CONFIG_FILE

    loaded, stages = load(config, overrides)
    budget = Budget.parse(request.budget) if request.budget else None
    plan = make_plan(loaded, stages, request.arms, budget, request.changes, runs)
    tuning = Tuning.parse(request.tune, request.tune_seed, request.seeds) if request.tune else None
    name = request.name or f"{loaded.config.name}-compare"
    check_name(name)
    results = read_external([file.absolute() for file in request.external])
    bases = [*(arm_run(BASE, seed) for seed in request.seeds), *([f"tune-{BASE}"] if tuning else [])]
    check_world(loaded, stages, runs, set.intersection(*(own_copies(runs / name / base) for base in bases)))
    check_prefect(engine)
    threads = loaded.config.policy.threads or 1
    at_once = runs_at_once(loaded.config, request.parallel, usable_cores() // threads)
    gpus = int((loaded.config.policy.device or "").startswith("cuda"))
    cluster = Cluster.parse(request.workers, engine, threads, gpus, at_once) if request.workers else None
    source = config if isinstance(config, str | Path) else runs / name / CONFIG_FILE
    words = command or request.words(str(source), overrides or (), runs, engine)
    with _threads_of_children(threads):
        comparison = comparisons.open_comparison(runs, name, plan, request.seeds, tuning, threads)
        failed = comparisons.launch(comparison, results, at_once, engine, console, words, cluster)
    if failed:
        first = next((job for job in comparison.jobs if job.state == "failed"), None)
        why = f" ({first.title}: {first.reason})" if first is not None else ""
        raise StageFailed(f"{failed} of {len(comparison.jobs)} runs failed{why}; the same command tries them again")
    return comparison.folder.path


def runs_at_once(config: PipelineConfig, asked: int | None, room: int) -> int:
    """How many runs train at a time: the number asked for, or as many as there is ``room`` for.

    With a vLLM server it is one, because the server holds the weights of one policy. Raises: UserError if more are
    asked for.
    """
    if config.rollouts.engine != "vllm-server":
        return asked or max(1, room)
    if asked is not None and asked > 1:
        raise UserError(
            "a vLLM server completes the prompts of one run at a time",
            where="--parallel",
            got=asked,
            expected="1 with rollouts.engine vllm-server",
            fix="leave it out, or set rollouts.engine to transformers or vllm",
        )
    return 1


@contextlib.contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Set the number of threads of processes that are started in this block, unless the environment sets it."""
    given = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, str(threads))
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(THREADS, None)
