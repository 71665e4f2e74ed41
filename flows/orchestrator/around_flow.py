"""What surrounds a flow: its settings, Prefect's log in a file instead of the terminal, a bounded wait at the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prefect.flow_engine
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

from gradus.flows.orchestrator import settings
from gradus.flows.orchestrator.pages import logger
from gradus.flows.orchestrator.password import own_password

LOGGERS = ("prefect", "prefect._internal", "EventsWorker", "APILogWorker")
"""Loggers through which Prefect would write to the terminal."""
FLUSH_TIMEOUT_SECONDS = 5.0
"""How long Prefect's background senders may take at the end of a run."""


def flow_settings(url: str) -> contextlib.AbstractContextManager[Any]:
    """Prefect's settings for a flow: the server's URL, which may not have been known when Prefect was imported."""
    changes: dict[Any, Any] = {PREFECT_API_URL: url}
    if settings.users_api_url() is None:
        changes[PREFECT_API_AUTH_STRING] = own_password()
        changes[PREFECT_CLIENT_CSRF_SUPPORT_ENABLED] = True
        changes[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None  # gradus's own server does not use it; saves up to 1 s
    return temporary_settings(changes)


@contextlib.contextmanager
def tolerate_lost_leases() -> Iterator[None]:
    """Let training continue without its concurrency slot when the slot cannot be renewed because the server is away.

    Prefect renews a deployment's slot every 225 s in a thread. Without this, three failures within seconds would end
    the flow in the middle of a step.
    """
    renew = prefect.flow_engine.maintain_concurrency_lease

    @functools.wraps(renew)
    def tolerant(lease_id: Any, lease_duration: float, **_: Any) -> Any:
        return renew(lease_id, lease_duration, raise_on_lease_renewal_failure=False)

    engine: Any = prefect.flow_engine
    engine.maintain_concurrency_lease = tolerant
    try:
        yield
    finally:
        engine.maintain_concurrency_lease = renew


@contextlib.contextmanager
def flushed(timeout: Callable[[], float]) -> Iterator[None]:
    """At the end wait ``timeout()`` seconds for Prefect's background senders, then discard what they still hold.

    Otherwise they would try again when the interpreter exits, 7 s for each event.
    """
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError):  # private names: if they change, only a dead server costs time
            services: dict[Any, Any] = EventsWorker._instances  # type: ignore[misc]
            senders = [(service._loop, service._task) for service in services.values()]
            outcome: Any = _without_loop(lambda: EventsWorker.drain_all(timeout=timeout()))
            for loop, sending in senders if outcome[1] else ():
                loop.call_soon_threadsafe(sending.cancel)
            concurrent.futures.wait(outcome[1], timeout=1)


def _without_loop(call: Callable[[], Any]) -> Any:
    """Call, outside any event loop, a function of Prefect that would return a coroutine inside one (in a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


@contextlib.contextmanager
def logs_to_file(log: Path) -> Iterator[None]:
    """Send Prefect's own messages to a file in the run folder; the terminal shows the run's progress."""
    handler: logging.Handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, loggers = logging.getLogger(), [logging.getLogger(name) for name in LOGGERS]
    kept = root.handlers[:], [(t.handlers[:], t.propagate) for t in loggers], logging.raiseExceptions, logger.level
    root.handlers = [h for h in root.handlers if not type(h).__module__.startswith("prefect.")]
    for each in loggers:
        each.handlers, each.propagate = [handler], False
    logging.raiseExceptions = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, earlier, logging.raiseExceptions, level = kept
        for each, (handlers, propagate) in zip(loggers, earlier, strict=True):
            each.handlers, each.propagate = handlers, propagate
        logger.setLevel(level)
        handler.close()
