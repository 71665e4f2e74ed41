"""Deployments: a pipeline registered with Prefect on a work pool, from which workers take its runs.

The deployment holds the whole configuration, so later changes of the file do not affect it. For each flow run a worker
starts ``gradus deployed`` (:mod:`gradus.flows.deploy.worker`) in a process, a container or a pod.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun, WorkPool
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from gradus.flows.orchestrator.around_flow import flow_settings
from gradus.flows.orchestrator.flow_record import TAG
from gradus.flows.orchestrator.password import prefect_command
from gradus.flows.staged import FLOW, deployed_pipeline
from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config.loading import LoadedConfig

POOL_TYPES = ("process", "docker", "kubernetes")
"""Types of work pools whose workers start a command that the deployment can choose."""
BUSY_RETRIES = 5
"""How often a request is repeated if the server is too busy (503): at growing intervals, for about a minute in all."""


@dataclass(frozen=True)
class DeploymentRequest:
    """The pipeline to run, and the folder and the name of its runs."""

    loaded: LoadedConfig
    runs: str
    """The folder of the runs, as the worker sees it."""
    name: str | None = None
    """The run's name, which every flow run then continues; None if every flow run is a new run."""

    def parameters(self) -> dict[str, Any]:
        """The parameters of a flow run of :func:`gradus.flows.staged.deployed_pipeline`."""
        config = self.loaded.config.model_dump(mode="json")
        return {"config": config, "source": str(self.loaded.path), "runs": self.runs, "name": self.name}


@dataclass(frozen=True)
class DeploymentOptions:
    """The options of a deployment besides the pipeline itself."""

    cron: str | None = None
    """The schedule in five fields; None if runs are only made on request."""
    timezone: str = "UTC"
    at_once: int | None = None
    """The most runs of the deployment at a time, over all workers; further runs wait. None: no limit."""
    job: Mapping[str, Any] = field(default_factory=dict)
    """Job variables of the pool's template, such as ``image`` or ``env``."""


@contextlib.contextmanager
def prefect_client(url: str) -> Iterator[SyncPrefectClient]:
    """A client of the server. Raises: UserError if the server does not answer or refuses a request.

    A run continues if the server is away; a deployment cannot, because only the server holds it.
    """
    retrying = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: max(BUSY_RETRIES, PREFECT_CLIENT_MAX_RETRIES.value())})
    try:
        with flow_settings(url), retrying, get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        answer = error.response.text.strip()[:300]
        raise UserError("the Prefect server refuses this", where=url, got=answer or str(error)) from error
    except (httpx.TransportError, OSError) as error:
        fix = "start that server, correct PREFECT_API_URL, or unset it to use gradus's own server on this machine"
        got = f"{type(error).__name__}: {error}".strip(": ")
        raise UserError("the Prefect server does not answer", where=url, got=got, fix=fix) from error


def find_pool(client: SyncPrefectClient, name: str, url: str) -> WorkPool:
    """The work pool of that name. Raises: UserError if there is none, or its type cannot run pipelines."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        known = sorted(pool.name for pool in client.read_work_pools() if pool.type in POOL_TYPES)
        create = f"{prefect_command(url)} work-pool create {shlex.quote(name)} --type process"
        fix = f"`{create}` creates it"
        if known:
            fix = f"{did_you_mean(name, known)}; or {fix}"
        got, expected = name, f"one of {', '.join(known)}" if known else "a work pool; the server has none yet"
        raise UserError("there is no such work pool", where=url, got=got, expected=expected, fix=fix) from None
    if pool.type not in POOL_TYPES:
        raise UserError(
            f"the work pool {name!r} cannot run pipelines",
            where=url,
            got=f"a pool of type {pool.type}",
            expected=f"one of type {', '.join(POOL_TYPES)}",
            fix="a process worker on a machine with the accelerators needs nothing else",
        )
    return pool


def check_job_variables(pool: WorkPool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the pool's template, by name. Raises: UserError if a given one is not among them."""
    known: dict[str, Any] = pool.base_job_template.get("variables", {}).get("properties", {})
    for key in given:
        if key not in known:
            fix = did_you_mean(key, sorted(known))
            raise UserError(f"the work pool {pool.name!r} has no job variable `{key}`", where="--job", got=key, fix=fix)
    return known


def job_variables(pool: WorkPool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The job variables of a deployment on this pool: the command and those given. Raises: UserError."""
    known = check_job_variables(pool, given)
    if pool.type == "process":
        return {"command": shlex.join([sys.executable, "-P", "-m", "gradus", "deployed"]), **given}
    if "image" not in given and not known.get("image", {}).get("default"):
        raise UserError(
            f"the {pool.type} pool {pool.name!r} does not know which image to run",
            where="--job image=...",
            expected="an image that has gradus in it; deploy/Dockerfile builds one",
            fix=f"give --job image=NAME, or a default in the pool's template (deploy/{pool.type}-pool.json has one)",
        )
    return {"command": "gradus deployed", **given}


def deployment_name(request: DeploymentRequest, pool: str) -> str:
    """The name of a deployment, such as ``quickstart@gpus``: there is one for each pipeline and pool."""
    return f"{request.loaded.config.name}@{pool}"


def deploy(client: SyncPrefectClient, request: DeploymentRequest, pool: WorkPool, options: DeploymentOptions) -> Any:
    """Register a pipeline on a pool, replacing an earlier deployment of that name; returns the deployment's id."""
    schema = parameter_schema(deployed_pipeline.fn)
    return client.create_deployment(
        flow_id=client.create_flow_from_name(FLOW),
        name=deployment_name(request, pool.name),
        entrypoint="gradus.flows.staged.deployed_pipeline",
        work_pool_name=pool.name,
        parameters=request.parameters(),
        parameter_openapi_schema=schema.model_dump_for_openapi(),
        enforce_parameter_schema=True,
        job_variables=job_variables(pool, options.job),
        schedules=[DeploymentScheduleCreate(schedule=_schedule(options))] if options.cron else [],
        concurrency_limit=options.at_once,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        tags=[TAG, request.loaded.config.name],
        description=f"The pipeline of {request.loaded.path}; runs go to {request.runs} on the worker.",
    )


def submit(client: SyncPrefectClient, request: DeploymentRequest, pool: WorkPool, job: Mapping[str, Any]) -> FlowRun:
    """Submit one run. An existing deployment of the pipeline on the pool stays as it is; otherwise one is made."""
    try:
        known = client.read_deployment_by_name(f"{FLOW}/{deployment_name(request, pool.name)}").id
        check_job_variables(pool, job)
    except ObjectNotFound:
        known = deploy(client, request, pool, DeploymentOptions(job=job))
    return client.create_flow_run_from_deployment(
        known,
        parameters=request.parameters(),
        name=request.name or request.loaded.config.name,
        tags=[TAG, request.loaded.config.name],
        job_variables=dict(job) or None,
    )


def _schedule(options: DeploymentOptions) -> CronSchedule:
    """The schedule in Prefect's form. Raises: UserError."""
    try:
        return CronSchedule(cron=options.cron or "", timezone=options.timezone)
    except (ValidationError, ValueError) as error:
        wrong_zone = "timezone" in str(error).lower()
        raise UserError(
            "there is no such time zone" if wrong_zone else "this is not a schedule",
            where="--timezone" if wrong_zone else "--cron",
            got=options.timezone if wrong_zone else options.cron,
            expected="a name such as Europe/Berlin" if wrong_zone else 'five fields of cron, such as "0 3 * * 1-5"',
        ) from None
