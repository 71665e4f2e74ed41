"""One launch of a comparison: its folder, its lock, the engine, the report at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from gradus.flows.compare.measures import Measures
from gradus.flows.compare.plan.arms import BASE, Plan
from gradus.flows.compare.plan.folder import ComparisonFolder, arm_run
from gradus.flows.compare.plan.schedule import ComparisonWork, Tuning
from gradus.flows.compare.report.publish import begin_tracking, end_tracking, publish, same_command
from gradus.flows.compare.run.ray import Cluster, RayTrainer
from gradus.flows.compare.run.session import ComparisonSession, run_plain
from gradus.flows.compare.run.watch import Watch
from gradus.flows.screen.text import shown_path
from gradus.pipeline.common import locks
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.runs.run_folder import RUN_FILE


def open_comparison(
    runs: Path, name: str, plan: Plan, seeds: Sequence[int], tuning: Tuning | None, threads: int
) -> ComparisonWork:
    """The comparison's folder and its jobs; nothing is written yet. Raises: UserError."""
    folder = runs.absolute() / name
    if (folder / RUN_FILE).is_file():
        raise UserError(f"{name!r} is a run, not a comparison", where=shown_path(folder), fix="choose another --name")
    made = ComparisonFolder(folder, plan, threads)
    work = ComparisonWork(made, seeds, tuning)
    for seed in seeds:  # a run that was begun as something else is told before any compute
        made.check(arm_run(BASE, seed), made.placed(plan.base(seed)))
        if tuning is None:
            for arm in plan.arms:
                made.check(arm_run(arm.label, seed), made.placed(plan.arm(arm, seed)))
    return work


def launch(
    work: ComparisonWork,
    foreign: Sequence[Measures],
    parallel: int,
    engine: str,
    console: Console,
    command: Sequence[str],
    cluster: Cluster | None = None,
) -> int:
    """Train what is left, write the report; returns how many runs it lacks. Raises: UserError, Interrupted."""
    folder, plan = work.folder, work.folder.plan
    folder.path.mkdir(parents=True, exist_ok=True)
    watch = Watch(console, plan.usual)
    with locks.hold(folder.path):
        folder.write_config()
        for text in plan.notes:
            watch.say(text)
        watch.say(f"comparison {folder.name} in {shown_path(folder.path)}")
        names = ", ".join(arm.label for arm in plan.arms)
        watch.say(f"{names}: {plan.budget} each, seeds {', '.join(map(str, work.seeds))}, {parallel} runs at a time")
        said = same_command(command)
        session = ComparisonSession(
            folder.path, work.jobs, parallel, watch, watch.say, lambda: publish(work, foreign, said, parallel)
        )
        if cluster is not None:
            session.trainer, session.task_runner = RayTrainer(cluster), cluster.task_runner
        status = "FAILED"
        begin_tracking(work, said)
        try:
            with watch.shown():
                _engine(engine)(session)
            status = "FINISHED" if not missing_runs(work) else "FAILED"
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            end_tracking(work, session.markdown or "", status)
            if session.markdown:
                watch.say(f"report: {shown_path(folder.path / 'report.html')} (also report.md, report.json)")
    return missing_runs(work)


def missing_runs(work: ComparisonWork) -> int:
    """Runs that the comparison lacks."""
    return sum(job.needed and job.state in ("failed", "skipped") for job in work.jobs)


def _engine(name: str) -> Callable[[ComparisonSession], None]:
    """How runs are called. The Prefect server starts in the background while Prefect is being imported."""
    if name == "none":
        return run_plain
    from gradus.flows.orchestrator.server import start_server_in_background

    start_server_in_background()
    from gradus.flows.compare.run.flow import run_flow

    return run_flow
