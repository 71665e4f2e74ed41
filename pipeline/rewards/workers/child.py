"""The process that isolated rewards run in; :mod:`gradus.pipeline.rewards.workers.pool` starts, feeds and kills it.

Requests are pickles, preceded by their length, on the standard input it was started with; answers are lines of JSON on
its standard output. Both are moved out of the way first, so that a reward that prints or reads disturbs nothing, and
nothing that a reward produced is ever unpickled by the trainer. This process imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import pickle
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from gradus.pipeline.common.process import on_hang_up
from gradus.pipeline.common.user_code import look_in
from gradus.pipeline.rewards import library  # noqa: F401 - registers the rewards
from gradus.pipeline.rewards.registry import find
from gradus.pipeline.rewards.user_functions import load_function

LIBRARY_MEMORY = 4 * 1024**3
"""Bytes of data a reward of the library may allocate; a sympy expression that explodes must not take the machine along.
The user's own functions have no such limit: one of them may hold a model."""
CPU_GRACE = 2
"""CPU seconds beyond the time limit after which the kernel ends a worker whose parent is gone."""
MESSAGE = 300
"""Characters of an error message that are reported."""


@dataclass(frozen=True)
class IsolatedReward:
    """The description of a reward that a worker gets."""

    label: str
    """Its label in metrics."""
    reward: str
    """Its name in the library, or ``package.module:function``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its options."""
    time_limit: float = 5.0
    """Seconds one completion may take."""


Scorer = Callable[[Any, str], float]


def main(folders: list[str]) -> None:
    """Announce readiness, then answer requests until standard input ends.

    ``folders`` are where the user's modules are looked for before the Python environment, in this order.
    """
    for folder in reversed(folders):
        look_in(folder)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    on_hang_up(requests.fileno(), _kill_group)
    rewards: list[IsolatedReward] = _receive(requests)
    scorers: list[Scorer] = []
    for item in rewards:
        try:
            scorers.append(_prepare(item))
        except BaseException as error:
            _answer(answers, {"failed": item.label, "message": _describe(error)})
            return
    _answer(answers, {"ready": True})
    while (jobs := _receive(requests)) is not None:
        for index, which, prompt, completion in jobs:
            _limit(rewards[which])
            try:
                _answer(answers, [index, scorers[which](prompt, completion)])
            except BaseException as error:  # SystemExit too: a reward may not end the worker politely either
                _answer(answers, [index, None, _describe(error)])


def _prepare(item: IsolatedReward) -> Scorer:
    """Import what the reward needs, outside the time limit of its first completion."""
    reward = load_function(item.reward) if ":" in item.reward else find(item.reward)
    for package in reward.packages:
        importlib.import_module(package)
    return lambda prompt, completion: reward.score(prompt, completion, item.options)


def _receive(requests: BinaryIO) -> Any:
    header = requests.read(8)
    if len(header) < 8:
        return None
    return pickle.loads(requests.read(struct.unpack("<Q", header)[0]))


def _answer(answers: Any, message: Any) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # an exception of the user's whose own __str__ fails
        text = type(error).__name__
    return " ".join(text.split())[:MESSAGE]


def _limit(item: IsolatedReward) -> None:
    """Bound what the next completion may take.

    The parent holds the clock. The kernel's limit on CPU time is for the case that the parent is gone while C code
    holds the interpreter's lock, so that the watching thread can't run.
    """
    times = os.times()
    cores = os.cpu_count() or 1
    _soft(resource.RLIMIT_CPU, math.ceil(times.user + times.system + cores * item.time_limit + CPU_GRACE))
    _soft(resource.RLIMIT_DATA, resource.RLIM_INFINITY if ":" in item.reward else LIBRARY_MEMORY)


def _soft(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = hard if value == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses some; the parent's clock still holds
        resource.setrlimit(which, (value, hard))


def _kill_group() -> None:
    """Kill this worker and every process that its rewards have started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


BOOTSTRAP = f"import json, sys; sys.path[:], own = json.loads(sys.argv[1]); from {__name__} import main; main(own)"
"""The program for ``python -c`` that becomes a worker; its argument is JSON: the module search path, and the folders
of the user's modules."""
