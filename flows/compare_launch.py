"""One launch of a comparison: its folder, its lock, the engine, the report at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.compare_arms import BASE, Plan
from flows.compare_jobs import Job
from flows.compare_measures import Measures, check_external, measure
from flows.compare_place import Place, arm_run
from flows.compare_watch import Watch
from flows.compare_work import Tuning, Work
from flows.terminal import shown_path
from pipeline import run_lock
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.runs import RUN_FILE

RECORD_FILE = "comparison.json"


def open_comparison(
    runs: Path, name: str, plan: Plan, seeds: Sequence[int], tuning: Tuning | None, threads: int
) -> Work:
    """The comparison's folder and its jobs; nothing is written yet. Raises: UserError."""
    folder = runs.absolute() / name
    if (folder / RUN_FILE).is_file():
        raise UserError(f"{name!r} is a run, not a comparison", where=shown_path(folder), fix="choose another --name")
    place = Place(folder, plan, threads)
    work = Work(place, seeds, tuning)
    for seed in seeds:  # a run that was begun as something else is told before any compute
        place.check(arm_run(BASE, seed), place.placed(plan.base(seed)))
        if tuning is None:
            for arm in plan.arms:
                place.check(arm_run(arm.label, seed), place.placed(plan.arm(arm, seed)))
    return work


def launch(
    work: Work, foreign: Sequence[Measures], parallel: int, engine: str, console: Console, command: Sequence[str]
) -> int:
    """Train what is left, write the report; returns how many runs it lacks. Raises: UserError, Interrupted."""
    from flows.compare_session import Session, run_plain

    place, plan = work.place, work.place.plan
    place.folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(console, plan.usual)
    with run_lock.hold(place.folder):
        place.write_config()
        for text in plan.notes:
            watch.say(text)
        watch.say(f"comparison {place.name} in {shown_path(place.folder)}")
        names = ", ".join(arm.label for arm in plan.arms)
        watch.say(f"{names}: {plan.budget} each, seeds {', '.join(map(str, work.seeds))}, {parallel} runs at a time")
        began = time.time()
        session = Session(
            place.folder, work.jobs, parallel, watch, watch.say, lambda: report(work, foreign, command, began)
        )
        with watch.shown():
            if engine == "none":
                run_plain(session)
            else:
                from flows.server import start_server_in_background

                start_server_in_background()
                from flows.compare import run_flow

                run_flow(session)
    return sum(job.needed and job.state in ("failed", "skipped") for job in work.jobs)


def collected(work: Work, foreign: Sequence[Measures]) -> list[Measures]:
    """What every finished arm measured, the other systems' last. Raises: UserError where these cannot be compared."""
    found = [_measured(work, job) for job in work.reported() if job.state in ("done", "reused")]
    for each in foreign:
        check_external(each, found)
    return found + [each for each in foreign if each["seed"] in work.seeds]


def _measured(work: Work, job: Job) -> Measures:
    return measure(work.place.open(job.name), work.place.open(arm_run(BASE, job.seed)), job.arm, job.seed)


def report(work: Work, foreign: Sequence[Measures], command: Sequence[str], began: float) -> str:
    """Write the report of what is done; returns it as Markdown."""
    measured = collected(work, foreign)
    folder = work.place.folder
    write_json(folder / RECORD_FILE, {"command": list(command), "seeds": list(work.seeds)})
    return ""


__all__ = ["Any", "contextlib", "write_text"]
