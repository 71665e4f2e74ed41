"""The commands about runs that exist: look at them, go on with them, fork them, verify them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradus.flows.cli.arguments import RUNS, AsJson, Engine, Overrides, Run, Runs
from gradus.flows.open_run import check_world, load
from gradus.flows.screen.errors import Process, quiet_libraries
from gradus.flows.screen.text import console, runs_option, sayer, shown_path
from gradus.pipeline.common.errors import UserError

if TYPE_CHECKING:
    from gradus.pipeline.runs.run_folder import RunFolder


def resume(
    name: Run,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Train this stage and all after it anew; what is there is kept."),
    ] = None,
    runs: Runs = RUNS,
    engine: Engine = "prefect",
) -> None:
    """Go on with a run where it stopped, or again from a stage."""
    from gradus.flows import launch
    from gradus.flows.open_run import check_anew, forget_summary, restart_from
    from gradus.flows.screen.summary import tell
    from gradus.flows.screen.tables import print_plan
    from gradus.pipeline.runs.plan import made_again
    from gradus.pipeline.runs.plan import plan as planned

    quiet_libraries()
    run, screen = _open(runs, name), console()
    say, begin = sayer(screen), _nothing
    index = None if from_stage is None else run.stage_index(from_stage)
    if run.holder() is not None:
        with run.lock():  # says who holds it
            pass
    stages = planned(run, run.config, index)
    if index is not None:
        check_anew(run, index)

        def begin() -> None:
            restart_from(run, index)

    elif run.summary() is not None and all(stage.action == "reuse" for stage in stages):
        damaged = _last_damage(run)
        if not damaged:
            _tell_complete(run, runs, engine, screen)
            return
        say(f"{name} was complete, but the checkpoint of its last stage is damaged ({damaged}): it is made again")
        last = replace(stages[-1], why="its checkpoint is damaged")
        stages[-1] = made_again(run, len(stages) - 1, last)

        def begin() -> None:
            forget_summary(run)

    _check_rest(run, runs, engine)
    Process.folder = run.path
    say(f"run {name} in {run.path}")
    print_plan([vars(stage) for stage in stages], screen)
    tell(run, launch.launch(run, engine, screen, begin), runs, screen)


def plan(
    config: Annotated[
        str | None, typer.Argument(help="What would be asked for; without it, what the run asked for itself.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The run; default: the one called as the configuration.")
    ] = None,
    overrides: Overrides = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="8xH100", help="Also estimate memory and time on this; or cpu:24GiB.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="With --hardware: a prompt's length.")] = 128,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Show what a launch would reuse, go on with and train, and why, without computing anything."""
    from gradus.flows.open_run import candidates, check_name
    from gradus.flows.screen import sizes
    from gradus.flows.screen.plan import describe
    from gradus.flows.screen.tables import tell_plan
    from gradus.pipeline.estimates.hardware import parse_hardware
    from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE

    if config is None and name is None:
        raise UserError("there is nothing to plan", fix="give a configuration, or a run with --name NAME, or both")
    check_name(name)
    wanted = parse_hardware(hardware) if hardware is not None else None
    if config is None:
        run, asked = _open(runs, name or ""), list[str]()
        loaded, stages = load(str(run.path / CONFIG_FILE), overrides, run.base_dir)
    else:
        loaded, stages = load(config, overrides)
        asked = ["gradus", "run", config, *(word for each in overrides or () for word in ("--set", each))]
        exists = (runs / (name or loaded.config.name) / RUN_FILE).is_file()
        run = _open(runs, name or loaded.config.name) if exists else None
    named, fresh = name or loaded.config.name, ""
    if name is None:
        free = next(each for each in candidates(named) if not (runs / each).exists())
        fresh = free if free != named else ""
    elif run is None:
        asked[3:3] = ["--name", name]
    planned = describe(run, loaded.config, runs, named, asked, fresh)
    if wanted is not None:
        planned["sizes"] = sizes.sizes(loaded.config, stages, wanted, prompt_tokens)
    if as_json:
        print(json.dumps(planned, indent=2))
        return
    screen = console()
    sayer(screen)(f"{named}: {'new run' if run is None else shown_path(run.path)}")
    tell_plan(planned, screen)
    if wanted is not None:
        sizes.tell_sizes(planned["sizes"], screen)


def fork(
    name: Run,
    from_stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="The first stage that is trained; what is before is shared.")
    ],
    overrides: Overrides = None,
    new: Annotated[
        str | None, typer.Option("--name", metavar="NEW", help="Name of the new run; default: NAME-fork.")
    ] = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Make the run and do not launch it.")] = False,
    runs: Runs = RUNS,
    engine: Engine = "prefect",
) -> None:
    """Begin a new run that shares what another one did before a stage, with other options from there on."""
    from gradus.flows import launch
    from gradus.flows.open_run import check_name, place_for_fork
    from gradus.flows.orchestrator.access import check_prefect
    from gradus.flows.screen.plan import describe
    from gradus.flows.screen.summary import tell
    from gradus.flows.screen.tables import print_plan
    from gradus.pipeline.config.loading import LoadedConfig
    from gradus.pipeline.runs import fork as forking
    from gradus.pipeline.runs.run_folder import CONFIG_FILE

    quiet_libraries()
    screen = console()
    say = sayer(screen)
    check_name(new)
    origin = _open(runs, name)
    index = origin.stage_index(from_stage)
    forking.check_shareable(origin, index)
    loaded, stages = load(str(origin.path / CONFIG_FILE), overrides, origin.base_dir)
    changes = forking.check_changes(origin, index, loaded.config)
    forking.check_parent(origin, index, loaded.config)
    check_world(LoadedConfig(loaded.config, loaded.path, origin.base_dir), stages, runs)
    check_prefect("none" if no_run else engine)
    run = forking.fork(origin, index, loaded.config, place_for_fork(runs, name, new))
    Process.folder = run.path
    say(f"run {run.name} in {run.path}")
    say(f"fork of {name} before {from_stage}, which changes{'' if changes else ' nothing'}")
    for change in changes:
        say(f"  {change}")
    print_plan(describe(run, run.config, runs, run.name, [])["stages"], screen)
    if no_run:
        say(f"to train it: gradus resume {run.name}{runs_option(runs)}")
    else:
        tell(run, launch.launch(run, engine, screen), runs, screen)


def status(
    name: Annotated[str | None, typer.Argument(help="A run; without it all are listed.")] = None,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Show all runs, or the stages of one."""
    from gradus.flows.screen import status as runs_status
    from gradus.flows.screen.tables import print_runs, tell_run
    from gradus.stages import discover

    if name is not None:
        found = runs_status.run_status(_open(runs, name))
        print(json.dumps(found, indent=2)) if as_json else tell_run(found, console())
        return
    listed = runs_status.all_runs(runs, [stage.config for stage in discover().values()])
    if as_json:
        print(json.dumps(listed, indent=2))
    elif listed:
        print_runs(listed, console())
    else:
        print(f"There are no runs in {runs.absolute()}; `gradus run quickstart` makes one.")


def verify(name: Run, as_json: AsJson = False, runs: Runs = RUNS) -> None:
    """Hash every checkpoint of a run, and its data, and say what is damaged."""
    from gradus.flows.screen.tables import tell_findings
    from gradus.pipeline.runs.verify import verify as look_at

    run = _open(runs, name)
    running = run.holder() is not None
    findings = list(look_at(run))
    damaged = any(finding.damage for finding in findings)
    if as_json:
        rows = [{**vars(finding), "path": str(finding.path)} for finding in findings]
        print(json.dumps({"run": name, "ok": not damaged, "running": running, "findings": rows}, indent=2))
    else:
        tell_findings(name, findings, running, console())
    if damaged:
        raise typer.Exit(1)


def _open(runs: Path, name: str) -> RunFolder:
    from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder
    from gradus.stages import discover

    path = Path(name)
    if path.name != name and (path / RUN_FILE).is_file():
        own = path.resolve()
        fix = f"`{own.name}`" if own.parent == runs.resolve() else f"`{own.name} --runs {path.parent}`"
        raise UserError("a run goes by its name here", got=f"its folder, {name}", expected=fix)
    return RunFolder(runs / name, [stage.config for stage in discover().values()])


def _nothing() -> None:
    pass


def _last_damage(run: RunFolder) -> str:
    """What is wrong with the checkpoint that a complete run hands over, or nothing."""
    from gradus.pipeline.runs.verify import damage

    result = run.result(len(run.config.stages) - 1)
    return damage(Path(result["checkpoint"]), for_resume=False) if result else "missing"


def _tell_complete(run: RunFolder, runs: Path, engine: str, screen: Any) -> None:
    """There is nothing to do, and what a user may want instead."""
    from gradus.flows import launch
    from gradus.flows.screen.tables import tell_ways

    where, last, say = runs_option(runs), run.config.stages[-1].label, sayer(screen)
    say(f"{run.name} is complete: nothing to resume. What one can do:")
    anew = f"trains {last} anew; any stage will do, and all after it follow"
    fork = f"a new run that shares what is before {last}"
    ways = [
        {"command": f"gradus resume {run.name} --from {last}{where}", "what": anew},
        {"command": f"gradus fork {run.name} --from {last} --set KEY=VALUE{where}", "what": fork},
    ]
    tell_ways(ways, screen)
    if engine == "prefect":
        launch.tell_prefect(run, say)


def _check_rest(run: RunFolder, runs: Path, engine: str) -> None:
    """What a launch needs besides what the run folder holds: all of it before there is data, else rewards, room and
    servers that take us."""
    from gradus.flows.orchestrator.access import check_prefect
    from gradus.pipeline.config.loading import LoadedConfig
    from gradus.pipeline.execution.preflight import check_runs_folder
    from gradus.pipeline.rewards import check_rewards
    from gradus.pipeline.tracking.access import check_tracking
    from gradus.stages import discover

    check_prefect(engine)
    if run.start() is None:
        check_world(LoadedConfig(run.config, run.path / "config.yaml", run.base_dir), discover(), runs)
        return
    check_runs_folder(runs)
    check_rewards(run.config.rewards, run.config.task.source)
    check_tracking(run.config.tracking, runs)
