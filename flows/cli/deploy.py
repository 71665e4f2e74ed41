"""The commands for other machines: deploy a pipeline on a work pool, submit a run to it, and what a worker runs."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from gradus.flows.cli.arguments import RUNS, Config, Overrides, Runs
from gradus.flows.screen.errors import quiet_libraries
from gradus.flows.screen.text import console, line_printer
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.shown import gradus_command

Job = Annotated[
    list[str] | None,
    typer.Option("--job", metavar="KEY=VALUE", help="A job variable of the pool, such as image=NAME; repeatable."),
]


def deploy(
    config: Config,
    pool: Annotated[str, typer.Option(metavar="POOL", help="A work pool: process, docker or kubernetes.")],
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="Name of its run, which is continued each time; without it every run is new.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help='When to run it, such as "0 3 * * 1-5".')] = None,
    timezone: Annotated[str, typer.Option(help="The time zone of the schedule.")] = "UTC",
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", min=1, metavar="N", help="Runs of this deployment at a time; more wait."),
    ] = None,
    job: Job = None,
    runs: Runs = RUNS,
) -> None:
    """Register a pipeline on a work pool of Prefect, whose workers run it on request or on schedule."""
    url, say = _server(), line_printer(console())
    from gradus.flows.deploy import deployments
    from gradus.flows.orchestrator.password import is_own_server, password_file

    with deployments.prefect_client(url) as client:
        found = deployments.find_pool(client, pool, url)
        request = _request(config, overrides, name, runs, found.type, url)
        options = deployments.DeploymentOptions(cron, timezone, at_once, parse_job(job))
        identity = deployments.deploy(client, request, found, options)
        limit = found.concurrency_limit
    say(f"deployed {deployments.deployment_name(request, pool)}: {_page(url, f'deployments/deployment/{identity}')}")
    say(f"  runs: {request.runs} on the worker, which must be a mounted folder where others shall see them")
    if cron:
        say(f"  schedule: {cron} ({timezone})")
    say(f"  at a time: {at_once or 'any number'} of it, {limit or 'any number'} in the pool")
    if is_own_server(url):
        say(f"  who may submit to the pool: on this machine, who can read {password_file()}, so only you")
    say(f"To run it: {gradus_command('run', config, '--on', pool)}")
    say(f"To work on it: {_worker(url, pool)}")


def run_on(
    pool: str, config: str, overrides: list[str] | None, name: str | None, runs: Path, detach: bool, job: list[str]
) -> None:
    """Submit a run to a work pool, and follow it to its end unless ``detach`` is given."""
    url, say = _server(), line_printer(console())
    from gradus.flows.deploy import deployments, follow
    from gradus.flows.orchestrator.password import prefect_command

    with deployments.prefect_client(url) as client:
        found = deployments.find_pool(client, pool, url)
        request = _request(config, overrides, name, runs, found.type, url)
        flow_run = deployments.submit(client, request, found, parse_job(job))
        say(f"submitted to {pool}: {_page(url, f'runs/flow-run/{flow_run.id}')}")
        cancel = f"{prefect_command(url)} flow-run cancel {flow_run.id}"
        if detach:
            say(f"To stop it: {cancel}")
            return
        try:
            code = follow.follow(client, flow_run.id, pool, _worker(url, pool), say)
        except KeyboardInterrupt:
            say(f"\nno longer followed; the run continues. To stop it: {cancel}")
            raise typer.Exit(130) from None
    if code:
        raise typer.Exit(code)


def deployed() -> None:
    """Train the flow run that a worker has been given; workers call this."""
    from gradus.flows.orchestrator.server import ensure_server

    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "5")  # without the server, nothing would show this run
    quiet_libraries()
    try:
        url = ensure_server()
    except (OSError, RuntimeError) as error:
        raise UserError("the Prefect server does not answer", got=str(error)) from error
    from gradus.flows.deploy.worker import work_on_flow_run

    work_on_flow_run(url)


def parse_job(given: list[str] | None) -> dict[str, Any]:
    """Job variables as ``KEY=VALUE``, the value in YAML. Raises: UserError.

    >>> parse_job(["image=gradus:1", "volumes=[/data:/data]"])
    {'image': 'gradus:1', 'volumes': ['/data:/data']}
    """
    from gradus.pipeline.common import yaml_text

    found = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            expected = "--job key=value, such as --job image=gradus:latest"
            raise UserError("a job variable is a key and a value", where=f"--job {text}", expected=expected)
        found[key.strip()] = yaml_text.parse(value, f"--job {text}").data
    return found


def _server() -> str:
    """The URL of a Prefect API whose server runs the services that deployments need. Raises: UserError."""
    from gradus.flows.orchestrator.access import check_prefect
    from gradus.flows.orchestrator.server import ensure_server

    quiet_libraries()
    check_prefect("prefect")
    try:
        return ensure_server(deployments=True)
    except (OSError, RuntimeError) as error:
        raise UserError("there is no Prefect server", got=str(error)) from error


def _request(config: str, overrides: list[str] | None, name: str | None, runs: Path, pool_type: str, url: str) -> Any:
    """The request for a run, checked as far as this machine can check it; the worker checks the rest."""
    from gradus.flows.deploy.deployments import DeploymentRequest
    from gradus.flows.open_run import check_name, check_world, load
    from gradus.pipeline.execution.preflight import refuse_url

    check_name(name)
    refuse_url(runs)
    loaded, stages = load(config, overrides)
    if pool_type != "process" and not runs.is_absolute():
        raise UserError(
            "a container does not know this machine's current folder",
            where="--runs",
            got=str(runs),
            expected="the absolute path of a folder that is mounted into it, such as /runs",
        )
    if pool_type == "process" and os.environ.get("GRADUS_PREFECT_API_URL") == url:
        check_world(loaded, stages, runs)  # gradus's own server has workers on this machine alone
    return DeploymentRequest(loaded, str(runs.absolute()), name)


def _page(url: str, path: str) -> str:
    """The address of a page of Prefect, from that of its API, and how to get past its login."""
    from gradus.flows.orchestrator.password import login_hint

    return re.sub(r"/api/?$", f"/{path}", url) + login_hint(url)


def _worker(url: str, pool: str) -> str:
    """The command that starts a worker for a pool."""
    from gradus.flows.orchestrator.password import prefect_command

    return f"{prefect_command(url)} worker start --pool {shlex.quote(pool)} --limit 1"
