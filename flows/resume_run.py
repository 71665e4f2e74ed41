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
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.config.loading import LoadedConfig
from gradus.pipeline.runs.changed_sources import changed_sources
from gradus.pipeline.runs.lineage import needs_checkpoint
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
        damaged = _damaged_ends(run)
        if not damaged:
            return None
        for place, wrong in damaged.items():
            which = "its last stage" if place == len(stages) - 1 else stages[place].label
            say(f"{run.name} was complete, but the checkpoint of {which} is damaged ({wrong}): it is made again")
            stages[place] = made_again(run, place, replace(stages[place], why="its checkpoint is damaged"))
        before = functools.partial(forget_summary, run)
    _check_launch(run, engine)
    for line in [*unused_environment(run.config.tracking.model_dump(), run.path.parent), *changed_sources(run)]:
        say(line)
    return Resumption(run, stages, before)


def check_restart(run: RunFolder, index: int) -> None:
    """What stage ``index`` is made from is there. Raises: UserError."""
    stages = run.config.stages
    open_ = [stages[each].label for each in graph.inputs(stages, index) if run.result(each) is None]
    if open_ or run.start() is None:
        label = stages[index].label
        raise UserError(
            f"there is nothing to start {label} from yet",
            where=f"--from {label}",
            got=f"stage {open_[0]} has no result" if open_ else "data and policy are not ready",
            fix=f"{typed(run, 'resume')} continues the run",
        )


def restart_from(run: RunFolder, index: int) -> None:
    """Set aside stage ``index`` and all that depend on it, so that they start again. The caller holds the run's lock.

    The summary is removed first, and then the last stage is the first to be set aside: a run that is killed in between
    can be continued, because what it still has was made from what comes before it. Raises: UserError.
    """
    check_restart(run, index)
    forget_summary(run)
    for each in reversed([index, *graph.dependents(run.config.stages, index)]):
        run.set_aside(each)
    sync_folder(run.path)


def forget_summary(run: RunFolder) -> None:
    """Remove the summary: the run is no longer complete, and its end will write another one."""
    (run.path / SUMMARY_FILE).unlink(missing_ok=True)


def _nothing() -> None:
    pass


def _damaged_ends(run: RunFolder) -> dict[int, str]:
    """Stage -> what is wrong with the checkpoint that it hands over, at the ends of a complete run."""
    from gradus.pipeline.runs.verify import damage

    ends = {place: run.result(place) for place in range(len(run.config.stages)) if needs_checkpoint(run, place)}
    found = {each: damage(Path(made["checkpoint"]), False) if made else "missing" for each, made in ends.items()}
    return {place: wrong for place, wrong in found.items() if wrong}


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
