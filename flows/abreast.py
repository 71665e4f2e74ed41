"""Stages side by side: each is begun as soon as what it depends on is done, in a thread that watches its process."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from gradus.pipeline.common import interruption
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.config.graph import inputs as graph

Do = Callable[[int, str], dict[str, Any]]
"""Does the stage at a place, from a checkpoint; returns its record."""


def side_by_side(stages: Sequence[Any], start: str, most: int, do: Do, note: Callable[[str], None]) -> None:
    """Do every stage, at most so many at a time, from the checkpoint ``start`` on.

    A stage that fails keeps those from being begun that depend on it; the others are done first, and then its error is
    raised. After a signal none is begun, and those that run finish their step.

    Raises: Interrupted; what a stage raises.
    """
    made: dict[int | None, str] = {None: start}
    failed, running = dict[int, BaseException](), dict[Future[dict[str, Any]], int]()
    left = list(range(len(stages)))
    with interruption.handled(note), interruption.deferred(), ThreadPoolExecutor(most) as threads:
        while True:
            ready = [index for index in left if all(each in made for each in graph.inputs(stages, index))]
            for index in ready[: 0 if interruption.requested() else most - len(running)]:
                context, parent = contextvars.copy_context(), made[graph.parent(stages, index)]
                running[threads.submit(context.run, do, index, parent)] = index
                left.remove(index)
            if not running:
                break
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(ended)
                if (error := ended.exception()) is None:
                    made[index] = ended.result()["checkpoint"]
                    continue
                failed[index] = error
                if running and not isinstance(error, Interrupted):
                    note(f"stage {stages[index].label!r} failed; what does not depend on it is done first")
    # An error of a stage says more than that the process of another one was told to end.
    for error in sorted(failed.values(), key=lambda error: isinstance(error, Interrupted)):
        raise error
