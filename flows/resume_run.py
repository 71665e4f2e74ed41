"""How a run is continued: what a resume would do, whether it can be launched, and how a stage is started again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gradus.flows.open_run import check_world
from gradus.pipeline.common.addresses import unused_environment
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import sync_folder
from gradus.pipeline.config.loading import LoadedConfig
from gradus.pipeline.runs.changed_sources import changed_sources
from gradus.pipeline.runs.plan import StagePlan, made_again, plan
from gradus.pipeline.runs.run_folder import CONFIG_FILE, SUMMARY_FILE, RunFolder
from gradus.pipeline.runs.run_paths import typed


@dataclass(frozen=True)
class Resumption:
    """What a resume will do; nothing has been changed yet."""

    run: RunFolder
    plan: list[StagePlan]
    before: Callable[[], None]
    """What the launch has to do first, once it holds the run's lock."""


def plan_resumption(
    run: RunFolder, from_stage: str | None, engine: str, say: Callable[[str], None]
) -> Resumption | None:
    """What a resume with this engine would do, from ``from_stage`` again if it is given; None: the run is complete.

    Raises: UserError, also where another process works on the run.
    """
    index = None if from_stage is None else run.stage_index(from_stage)
    if run.holder() is not None:
        with run.lock():  # raises the error that names the process
            pass
    stages = plan(run, run.config, index)
    before: Callable[[], None] = _nothing
    if index is not None:
        check_restart(run, index)
        before = functools.partial(restart_from, run, index)
    elif run.summary_damaged():
        say(f"{SUMMARY_FILE} of {run.name} is damaged: it is made again")
        before = functools.partial(forget_summary, run)
    elif run.summary() is not None and all(stage.action == "reuse" for stage in stages):
        damaged = _last_damage(run)
        if not damaged:
            return None
        say(f"{run.name} was complete, but the checkpoint of its last stage is damaged ({damaged}): it is made again")
        last = replace(stages[-1], why="its checkpoint is damaged")
        stages[-1] = made_again(run, len(stages) - 1, last)
        before = functools.partial(forget_summary, run)
    _check_launch(run, engine)
    for line in [*unused_environment(run.config.tracking.model_dump(), run.path.parent), *changed_sources(run)]:
        say(line)
    return Resumption(run, stages, before)


def check_restart(run: RunFolder, index: int) -> None:
    """Stage ``index`` has a checkpoint to start from. Raises: UserError."""
    before = run.result(index - 1) if index else run.start()
    if before is None:
        label = run.config.stages[index].label
        earlier = run.config.stages[index - 1].label
        raise UserError(
            f"there is nothing to start {label} from yet",
            where=f"--from {label}",
            got=f"stage {earlier} has no result" if index else "data and policy are not ready",
            fix=f"{typed(run, 'resume')} continues the run",
        )


def restart_from(run: RunFolder, index: int) -> None:
    """Set aside stage ``index`` and all later ones, so that they start again. The caller holds the run's lock.

    The summary is removed first, and then the last stage is the first to be set aside: a run that is killed in between
    can be continued, because what it still has was made from what comes before it. Raises: UserError.
    """
    check_restart(run, index)
    forget_summary(run)
    for each in reversed(range(index, len(run.config.stages))):
        run.set_aside(each)
    sync_folder(run.path)


def forget_summary(run: RunFolder) -> None:
    """Remove the summary: the run is no longer complete, and its end will write another one."""
    (run.path / SUMMARY_FILE).unlink(missing_ok=True)


def _nothing() -> None:
    pass


def _last_damage(run: RunFolder) -> str:
    """What is wrong with the checkpoint that a complete run hands over; empty where it is whole."""
    from gradus.pipeline.runs.verify import damage

    result = run.result(len(run.config.stages) - 1)
    return damage(Path(result["checkpoint"]), for_resume=False) if result else "missing"


def _check_launch(run: RunFolder, engine: str) -> None:
    """Check what a launch needs besides the run folder. Raises: UserError.

    Before the run has data that is everything; later it is the rewards, room on the disk, and the servers.
    """
    from gradus.flows.orchestrator.access import check_prefect
    from gradus.pipeline.execution.preflight import check_all_rewards, check_runs_folder
    from gradus.pipeline.tracking.access import check_tracking
    from gradus.stages import discover

    runs = run.path.parent
    check_prefect(engine)
    if run.start() is None:
        loaded = LoadedConfig(run.config, run.path / CONFIG_FILE, run.base_dir)
        check_world(loaded, discover(), runs, run.own_copies())
        return
    check_runs_folder(runs)
    check_all_rewards(run.config)
    check_tracking(run.config.tracking, runs)
