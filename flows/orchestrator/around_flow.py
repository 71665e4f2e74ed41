"""What a flow of ours needs around it: settings, a terminal without Prefect's words, an end without waiting."""

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
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from gradus.flows.orchestrator import settings
from gradus.flows.orchestrator.pages import logger

TALKERS = ("prefect", "prefect._internal", "EventsWorker", "APILogWorker")
"""Loggers through which Prefect would speak on the terminal."""


def flow_settings(url: str) -> contextlib.AbstractContextManager[Any]:
    """This flow's settings: the server's URL, also where Prefect was imported before it was known."""
    changes: dict[Any, Any] = {PREFECT_API_URL: url}
    if settings.users_api_url() is None:
        changes[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None  # no one listens on gradus's own server; saves up to 1 s
    return temporary_settings(changes)


@contextlib.contextmanager
def tolerate_lost_leases() -> Iterator[None]:
    """A concurrency slot that cannot be renewed, because the server is away, is lost; the training goes on.

    Prefect renews a deployment's slot every 225 s from a thread, and would otherwise end the flow in the middle of a
    step after three failures within seconds.
    """
    renewing = prefect.flow_engine.maintain_concurrency_lease

    @functools.wraps(renewing)
    def lenient(lease_id: Any, lease_duration: float, **_: Any) -> Any:
        return renewing(lease_id, lease_duration, raise_on_lease_renewal_failure=False)

    engine: Any = prefect.flow_engine
    engine.maintain_concurrency_lease = lenient
    try:
        yield
    finally:
        engine.maintain_concurrency_lease = renewing


@contextlib.contextmanager
def flushed(patience: Callable[[], float]) -> Iterator[None]:
    """At the end give Prefect's background senders some seconds, then let go of what they could not deliver.

    Left alone they would try at interpreter exit, 7 s an event, for as long as there are events.
    """
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError):  # private names: without them only a dead server costs time
            services: dict[Any, Any] = EventsWorker._instances  # type: ignore[misc]
            senders = [(service._loop, service._task) for service in services.values()]
            outcome: Any = _without_loop(lambda: EventsWorker.drain_all(timeout=patience()))
            for loop, sending in senders if outcome[1] else ():
                loop.call_soon_threadsafe(sending.cancel)
            concurrent.futures.wait(outcome[1], timeout=1)


def _without_loop(call: Callable[[], Any]) -> Any:
    """Call a function of Prefect that returns a coroutine where an event loop is running, as one is in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


@contextlib.contextmanager
def logs_to_file(log: Path) -> Iterator[None]:
    """Prefect's own words go to a file in the run folder; the terminal belongs to the run's progress."""
    handler: logging.Handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, talkers = logging.getLogger(), [logging.getLogger(name) for name in TALKERS]
    kept = root.handlers[:], [(t.handlers[:], t.propagate) for t in talkers], logging.raiseExceptions, logger.level
    root.handlers = [h for h in root.handlers if not type(h).__module__.startswith("prefect.")]
    for talker in talkers:
        talker.handlers, talker.propagate = [handler], False
    logging.raiseExceptions = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, earlier, logging.raiseExceptions, level = kept
        for talker, (handlers, propagate) in zip(talkers, earlier, strict=True):
            talker.handlers, talker.propagate = handlers, propagate
        logger.setLevel(level)
        handler.close()


FLUSH_TIMEOUT_SECONDS = 5.0
"""Seconds that Prefect's background senders get at the end of a run; one where Prefect has just failed."""
