"""One launch of a comparison: its folder, its lock, the engine, and the report at the end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from gradus.flows.compare.measures import Measures
from gradus.flows.compare.plan.arms import BASE
from gradus.flows.compare.plan.comparison import ComparisonPlan
from gradus.flows.compare.plan.folder import ComparisonFolder, arm_run, runs_of_comparison
from gradus.flows.compare.plan.schedule import ComparisonWork, Tuning
from gradus.flows.compare.report.publish import begin_tracking, end_tracking, publish
from gradus.flows.compare.run.progress import ComparisonProgress
from gradus.flows.compare.run.ray import Cluster, RayTrainer
from gradus.flows.compare.run.session import ComparisonSession, run_plain
from gradus.pipeline.common import locks
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.shown import shown_path
from gradus.pipeline.runs.run_folder import RUN_FILE
from gradus.pipeline.tracking.pages.tracked import where_to_look


def open_comparison(
    runs: Path, name: str, plan: ComparisonPlan, seeds: Sequence[int], tuning: Tuning | None, threads: int
) -> ComparisonWork:
    """The comparison's folder and jobs; nothing is written yet. Raises: UserError."""
    folder = runs.absolute() / name
    if (folder / RUN_FILE).is_file():
        raise UserError(f"{name!r} is a run, not a comparison", where=shown_path(folder), fix="choose another --name")
    made = ComparisonFolder(folder, plan, threads)
    work = ComparisonWork(made, seeds, tuning)
    for seed in seeds:  # a run with another configuration is an error before anything is trained
        made.check(arm_run(BASE, seed), made.adapted(plan.base(seed)))
        if tuning is None:
            for arm in plan.arms:
                made.check(arm_run(arm.label, seed), made.adapted(plan.arm(arm, seed)))
    return work


def launch(
    work: ComparisonWork,
    external: Sequence[Measures],
    parallel: int,
    engine: str,
    console: Console,
    command: Sequence[str],
    cluster: Cluster | None = None,
) -> int:
    """Train what is not done and write the report; returns how many runs failed. Raises: UserError, Interrupted."""
    folder, plan = work.folder, work.folder.plan
    folder.path.mkdir(parents=True, exist_ok=True)
    progress = ComparisonProgress(console, plan.rollouts_per_arm)
    with locks.hold(folder.path):
        folder.write_config()
        for text in plan.notes:
            progress.say(text)
        progress.say(f"comparison {folder.name} in {shown_path(folder.path)}")
        names = ", ".join(arm.label for arm in plan.arms)
        progress.say(f"{names}: {plan.budget} each, seeds {', '.join(map(str, work.seeds))}, {parallel} runs at a time")
        typed = shlex.join(command)
        session = ComparisonSession(
            folder.path, work.jobs, parallel, progress, progress.say, lambda: publish(work, external, typed, parallel)
        )
        if cluster is not None:
            session.trainer, session.task_runner = RayTrainer(cluster), cluster.task_runner
        status = "FAILED"
        begin_tracking(work, typed)
        try:
            with progress.shown():
                _engine(engine)(session)
            status = "FINISHED" if not missing_runs(work) else "FAILED"
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            end_tracking(work, session.markdown or "", status)
            if session.markdown:
                progress.say(f"report: {shown_path(folder.path / 'report.html')} (also report.md, report.json)")
            if curves := where_to_look(runs_of_comparison(folder.path), folder.name, folder.path.parent):
                progress.say(f"curves, in MLflow: {curves}")
    return missing_runs(work)


def missing_runs(work: ComparisonWork) -> int:
    """How many needed runs failed or were skipped."""
    return sum(job.needed and job.lost for job in work.jobs)


def _engine(name: str) -> Callable[[ComparisonSession], None]:
    """The function that runs a session. The Prefect server starts in the background while Prefect is imported."""
    if name == "none":
        return run_plain
    from gradus.flows.orchestrator.server import start_server_in_background

    start_server_in_background()
    from gradus.flows.compare.run.flow import run_flow

    return run_flow
