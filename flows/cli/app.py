"""The commands, in the order of the help. Each imports what it needs itself, so that help and checks answer at once."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Annotated

import typer

from gradus import __version__
from gradus.flows.cli import advise as advise_commands
from gradus.flows.cli import compare as compare_commands
from gradus.flows.cli import deploy as deploy_commands
from gradus.flows.cli import diff as diff_command
from gradus.flows.cli import init as init_commands
from gradus.flows.cli import lists as list_commands
from gradus.flows.cli import prompts as prompt_commands
from gradus.flows.cli import rollouts as rollout_commands
from gradus.flows.cli import runs as run_commands
from gradus.flows.cli import ui as ui_commands
from gradus.flows.cli.arguments import RUNS, AsJson, Config, EngineOption, Overrides, Runs, Tiny
from gradus.flows.screen.errors import CurrentCommand, command, quiet_libraries
from gradus.flows.screen.text import console, line_printer, print_json, say
from gradus.flows.screen.view import open_standard_streams
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.host import settle_environment
from gradus.pipeline.common.interruption import end_within
from gradus.pipeline.config.graph.picture import in_one_line

LONGEST_END_SECONDS = 60.0
"""How long a command may take to end after an interrupt, apart from the step that it finishes."""

app = typer.Typer(
    name="gradus",
    help="Take a language model through a chain of post-training stages: SFT, DAPO or VAPO, GFPO, SRPO.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
server = typer.Typer(help="The Prefect server on this machine that shows runs as flows.", no_args_is_help=True)
app.add_typer(server, name="server")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"gradus {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="GRADUS_DEBUG", help="Show tracebacks.")] = False,
) -> None:
    CurrentCommand.debug, CurrentCommand.folder = debug, None


@command(app, trains=True)
def run(
    config: Config,
    overrides: Overrides = None,
    tiny: Tiny = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; an unfinished one with the same configuration continues.")
    ] = None,
    runs: Runs = RUNS,
    engine: EngineOption = "prefect",
    on: Annotated[
        str | None, typer.Option(metavar="POOL", help="Let a worker of this work pool train it, and follow it.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="With --on: submit it and exit.")] = False,
    job: deploy_commands.Job = None,
) -> None:
    """Train a pipeline, stage after stage."""
    from gradus.flows import launch
    from gradus.flows.open_run import begin_run
    from gradus.flows.screen.summary import print_summary

    if on is not None and tiny:
        raise UserError("--tiny trains here, and --on elsewhere", fix="leave one of them out")
    if on is not None:
        deploy_commands.run_on(on, config, overrides, name, runs, detach, job or [])
        return
    if detach or job:
        raise UserError(f"--{'detach' if detach else 'job'} needs a work pool", fix="name it with --on POOL")
    quiet_libraries()
    screen = console()
    folder = begin_run(config, overrides, name, runs, engine, line_printer(screen), tiny)
    CurrentCommand.folder = folder.path
    line_printer(screen)(f"run {folder.name} in {folder.path}")
    print_summary(folder, launch.launch(folder, engine, screen), runs, screen)


# The help lists commands in the order in which they are registered.
command(app, trains=True)(run_commands.resume)
command(app)(run_commands.plan)
command(app, trains=True)(run_commands.fork)
command(app)(run_commands.status)
command(app)(run_commands.verify)
command(app)(prompt_commands.prompts)
command(app)(rollout_commands.rollouts)
command(app)(diff_command.diff)
command(app, trains=True)(compare_commands.compare)
command(app)(deploy_commands.deploy)
command(app, trains=True, hidden=True)(deploy_commands.deployed)


@command(app)
def check(
    config: Config,
    overrides: Overrides = None,
    tiny: Tiny = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Also show the first prompt as the policy gets it.")
    ] = False,
    runs: Runs = RUNS,
) -> None:
    """Check a configuration and everything it names, without computing anything."""
    from gradus.flows.open_run import check_world, load
    from gradus.flows.orchestrator.access import check_prefect

    loaded, stages = load(config, overrides, tiny=runs if tiny else None)
    notes = check_world(loaded, stages, runs)
    check_prefect("prefect")
    order = in_one_line(loaded.config.stages, lambda stage: f"{stage.label} ({stage.steps} steps)")
    say("\n".join([f"{loaded.path} is valid.", f"{loaded.config.name}: {order}", *notes]))
    if show_prompt:
        quiet_libraries()
        from gradus.pipeline.execution.first_prompt import show_first_prompt

        prompt, notes = show_first_prompt(loaded.config, loaded.base_dir)
        say("\n".join(["first prompt, special tokens between « and »:", prompt, *notes]))


command(app)(init_commands.init)
command(app)(advise_commands.advise)


@command(app)
def config(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A YAML file or a packaged configuration's name.")
    ] = None,
    overrides: Overrides = None,
    tiny: Tiny = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema that editors complete from.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Print a configuration with every default filled in, or the JSON schema of all configurations."""
    from gradus.flows.open_run import load
    from gradus.pipeline.config import loading
    from gradus.stages import discover

    if schema:
        described = loading.schema([stage.config for stage in discover().values()])
        print_json(described)
    elif config is None:
        known = ", ".join(loading.packaged_configs()) or "none"
        fix = f"give a YAML file or a packaged configuration ({known}), or --schema"
        raise UserError("there is nothing to print", fix=fix)
    else:
        loaded, _ = load(config, overrides, tiny=runs if tiny else None)
        sys.stdout.write(loading.dump_config(loaded.config))


@command(app, name="eval")
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder, or a run's folder or name.")
    ],
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Measure a checkpoint's accuracy on its run's held-out prompts."""
    from gradus.flows import inference
    from gradus.flows.screen.text import accuracy_text
    from gradus.pipeline.common.shown import shown_path

    quiet_libraries()
    found = inference.evaluate(checkpoint, runs)
    if as_json:
        print_json(found)
        return
    accuracy = accuracy_text(found["accuracy"], found["interval"])
    say(f"{shown_path(found['checkpoint'])}\nheld-out accuracy {accuracy} on {found['prompts']} prompts")
    for name, each in found.get("tasks", {}).items():
        say(f"  {name}: {accuracy_text(each['accuracy'], each['interval'])} on {each['prompts']}")
    if found["problem"]:
        say(found["problem"])


@command(app)
def sample(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder, a run's folder or name, or a Hub id.")
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question, as the task would put it.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="Completions.")] = 1,
    temperature: Annotated[float | None, typer.Option(min=0.001, help="Default: the run's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Default: the run's.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other completions.")] = 0,
    runs: Runs = RUNS,
) -> None:
    """Sample completions of one prompt."""
    from gradus.flows import inference

    quiet_libraries()
    texts = inference.sample(checkpoint, prompt, count, temperature, max_tokens, seed, runs)
    for index, text in enumerate(texts, 1):
        say(f"{index}: {text}" if count > 1 else text)


command(app)(ui_commands.ui)


@command(app)
def sync(runs: Runs = RUNS) -> None:
    """Deliver to MLflow what it missed while it could not be reached."""
    from gradus.pipeline.tracking.position import needs_delivery

    waiting = [file.parent for file in sorted(runs.glob("*/journal.jsonl")) if needs_delivery(file.parent)]
    if not waiting:
        say("MLflow has everything.")
        return
    from gradus.pipeline.tracking.uploader import sync_run

    reports = [sync_run(folder) for folder in waiting]
    for report in reports:
        what = f"{report.delivered} records delivered to" if report.delivered else "up to date at"
        say(report.message or f"{report.run}: {what} {report.uri}")
    if any(report.undelivered for report in reports):
        raise typer.Exit(1)


command(app)(list_commands.stages)
command(app)(list_commands.rewards)


@command(server, name="status")
def server_status() -> None:
    """Say whether the server runs, and where."""
    import time

    from gradus.flows.orchestrator.server import server_status

    for key, value in server_status().items():
        say(f"{key}: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(value)) if key == 'since' else value}")


@command(server, name="stop")
def server_stop() -> None:
    """End the server that gradus started; recorded runs stay."""
    from gradus.flows.orchestrator.server import stop_server

    say("the server was stopped" if stop_server() else "no server of gradus's own was running")


def main() -> None:
    """Run the command that the process was started with."""
    open_standard_streams()
    end_within(LONGEST_END_SECONDS)
    try:
        settle_environment()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    with contextlib.suppress(OSError):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a locale that lacks a character ends nothing
    app()
