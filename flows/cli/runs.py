"""The commands about runs that exist: look at them, continue them, fork them, verify them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradus.flows.cli.arguments import RUNS, AsJson, EngineOption, Overrides, Run, Runs, Tiny
from gradus.flows.screen.errors import CurrentCommand, quiet_libraries
from gradus.flows.screen.text import console, line_printer, print_json
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.shown import gradus_command, shown_path

if TYPE_CHECKING:
    from gradus.pipeline.runs.run_folder import RunFolder


def resume(
    name: Run,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STAGE", help="Train this stage and what depends on it again; what is there is kept."
        ),
    ] = None,
    runs: Runs = RUNS,
    engine: EngineOption = "prefect",
) -> None:
    """Continue a run where it stopped, or train it again from a stage on."""
    from gradus.flows import launch
    from gradus.flows.open_run import existing_run
    from gradus.flows.resume_run import plan_resumption
    from gradus.flows.screen.summary import print_summary
    from gradus.flows.screen.tables import print_stage_plans

    quiet_libraries()
    run, screen = existing_run(runs, name), console()
    say = line_printer(screen)
    resumption = plan_resumption(run, from_stage, engine, say)
    if resumption is None:
        _print_complete(run, runs, engine, screen)
        return
    CurrentCommand.folder = run.path
    say(f"run {name} in {run.path}")
    print_stage_plans([vars(stage) for stage in resumption.plan], screen)
    print_summary(run, launch.launch(run, engine, screen, resumption.before), runs, screen)


def plan(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="What would be asked for; without it, what the run asked for itself."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The run; default: the one called as the configuration.")
    ] = None,
    overrides: Overrides = None,
    tiny: Tiny = False,
    hardware: Annotated[
        str | None, typer.Option(metavar="8xH100", help="Also estimate memory and time on this; or cpu:24GiB.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="With --hardware: a prompt's length.")] = 128,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Show what a launch would reuse, resume and train, and why, without computing anything."""
    from gradus.flows.open_run import candidates, check_name, existing_run, load
    from gradus.flows.screen import sizes
    from gradus.flows.screen.plan import describe
    from gradus.flows.screen.tables import print_plan
    from gradus.pipeline.common.locks import abandoned
    from gradus.pipeline.estimates.hardware import parse_hardware
    from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE

    if config is None and (name is None or tiny):
        fix = "give a configuration, which --tiny needs, or a run with --name NAME, or both"
        raise UserError("there is nothing to plan", fix=fix)
    check_name(name)
    wanted = parse_hardware(hardware) if hardware is not None else None
    if config is None:
        run, asked = existing_run(runs, name or ""), list[str]()
        run.config_text()  # which names the file, where it is damaged, and says what to do
        loaded, stages = load(str(run.path / CONFIG_FILE), overrides, run.base_dir)
    else:
        loaded, stages = load(config, overrides, tiny=runs if tiny else None)
        words = ["--tiny"] * tiny + [word for each in overrides or () for word in ("--set", each)]
        asked = ["gradus", "run", config, *words]
        exists = (runs / (name or loaded.config.name) / RUN_FILE).is_file()
        run = existing_run(runs, name or loaded.config.name) if exists else None
    named, fresh = name or loaded.config.name, ""
    if name is None:
        free = next(each for each in candidates(named) if not (runs / each).exists() or abandoned(runs / each))
        fresh = free if free != named else ""
    elif run is None:
        asked[3:3] = ["--name", name]
    planned = describe(run, loaded.config, runs, named, asked, fresh)
    if wanted is not None:
        planned["sizes"] = sizes.sizes(loaded.config, stages, wanted, prompt_tokens)
    if as_json:
        print_json(planned)
        return
    screen = console()
    line_printer(screen)(f"{named}: {'new run' if run is None else shown_path(run.path)}")
    print_plan(planned, screen)
    if wanted is not None:
        sizes.print_sizes(planned["sizes"], screen)


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
    engine: EngineOption = "prefect",
) -> None:
    """Begin a new run that shares what another one did before a stage, with other options from there on."""
    from gradus.flows import launch
    from gradus.flows.fork_run import fork_run
    from gradus.flows.open_run import existing_run
    from gradus.flows.screen.plan import describe
    from gradus.flows.screen.summary import print_summary
    from gradus.flows.screen.tables import print_stage_plans

    quiet_libraries()
    screen = console()
    say = line_printer(screen)
    made = fork_run(existing_run(runs, name), from_stage, overrides, new, "none" if no_run else engine, say)
    run = made.run
    CurrentCommand.folder = run.path
    say(f"run {run.name} in {run.path}")
    say(f"fork of {name} before {from_stage}, which changes{'' if made.changes else ' nothing'}")
    for change in made.changes:
        say(f"  {change}")
    print_stage_plans(describe(run, run.config, runs, run.name, [])["stages"], screen)
    if no_run:
        say(f"to train it: {gradus_command('resume', run.name, runs=runs)}")
    else:
        print_summary(run, launch.launch(run, engine, screen), runs, screen)


def status(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A run; without it all are listed.")] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show it again and again until the run ends; exit code 1: failed, 3: stopped."),
    ] = False,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Show all runs, or the stages of one."""
    from gradus.flows.open_run import existing_run
    from gradus.flows.screen import status as runs_status
    from gradus.flows.screen.tables import print_run, print_runs
    from gradus.stages import discover

    if watch and as_json:
        raise UserError("--json is for programs, and --watch for people", fix="leave one of them out")
    configs = [stage.config for stage in discover().values()]
    if watch:
        from gradus.flows.screen.live import watch as watching

        watched = (
            watching.WatchedRuns(console(), runs, configs)
            if name is None
            else watching.WatchedRun(console(), lambda: existing_run(runs, name))
        )
        raise typer.Exit(watching.watch(watched))
    if name is not None:
        found = runs_status.run_status(existing_run(runs, name))
        print_json(found) if as_json else print_run(found, console())
        return
    listed = runs_status.all_runs(runs, configs)
    print_json(listed) if as_json else print_runs(listed, console(), runs)


def verify(name: Run, as_json: AsJson = False, runs: Runs = RUNS) -> None:
    """Hash every checkpoint of a run, and its data, and say what is damaged."""
    from gradus.flows.open_run import existing_run
    from gradus.flows.screen.tables import print_findings
    from gradus.pipeline.runs.verify import verify as look_at

    run = existing_run(runs, name)
    running = run.holder() is not None
    findings = list(look_at(run))
    damaged = any(finding.damage for finding in findings)
    if as_json:
        rows = [{**vars(finding), "path": str(finding.path)} for finding in findings]
        print_json({"run": name, "ok": not damaged, "running": running, "findings": rows})
    else:
        print_findings(name, findings, running, console())
    if damaged:
        raise typer.Exit(1)


def _print_complete(run: RunFolder, runs: Path, engine: str, screen: Any) -> None:
    """Say that there is nothing to do, and what a user may want instead."""
    from gradus.flows import launch
    from gradus.flows.screen.tables import print_commands

    last, say = run.config.stages[-1].label, line_printer(screen)
    say(f"{run.name} is complete: nothing to resume. What one can do:")
    again = f"trains {last} again; any stage will do, and what depends on it follows"
    fork = f"a new run that shares what is before {last}"
    ways = [
        {"command": gradus_command("resume", run.name, "--from", last, runs=runs), "what": again},
        {"command": gradus_command("fork", run.name, "--from", last, "--set", "KEY=VALUE", runs=runs), "what": fork},
    ]
    print_commands(ways, screen)
    if engine == "prefect":
        launch.settle_prefect_record(run, say)
