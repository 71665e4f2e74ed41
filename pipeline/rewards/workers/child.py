"""The process that isolated rewards run in; :mod:`gradus.pipeline.rewards.workers.pool` starts, feeds and kills it.

Requests are pickles, preceded by their length, on a socket; answers are lines of JSON on the same one. Standard input,
output and error are something else, and no child of this process has the socket, so that a reward that prints, reads,
forks or starts programs disturbs nothing. Nothing that a reward produced is ever unpickled by the trainer. This process
imports no torch.

Which completions a worker scores, and in what order, is chance. So each one starts from the prompt and the options as
they were sent, in the folder that the worker was started in, and without an alarm of the one before.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gradus.pipeline.common.guardian import guard
from gradus.pipeline.common.user_code import look_in
from gradus.pipeline.rewards import library  # noqa: F401 - registers the rewards
from gradus.pipeline.rewards.registry import find
from gradus.pipeline.rewards.user_functions import load_function
from gradus.pipeline.types import NO_THOUGHTS, Thoughts

LIBRARY_MEMORY = 4 * 1024**3
"""Bytes of data a reward of the library may allocate; a sympy expression that explodes must not take the machine along.
The user's own functions have no such limit: one of them may hold a model."""
MESSAGE = 1000
"""Characters of an error message that are sent; the trainer shortens it further once secrets are left out."""


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
    env: tuple[str, ...] = ()
    """Variables of the environment that it needs although they look like secrets."""
    thoughts: Thoughts = NO_THOUGHTS
    """How the policy marks what it thinks."""


Scorer = Callable[[bytes, str], float]
"""Takes a pickled prompt, of which each completion gets a copy that its reward may change, and the completion."""


def main(channel: int, folders: list[str]) -> None:
    """Announce readiness, then answer requests until the socket ``channel`` ends.

    ``folders`` are where the user's modules are looked for before the Python environment, in this order.
    """
    for folder in reversed(folders):
        look_in(folder)
    os.set_inheritable(channel, False)
    requests = os.fdopen(channel, "rb")
    answers = os.fdopen(os.dup(channel), "w", encoding="utf-8")
    _cut_off_in_forks(requests.fileno(), answers.fileno())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a reward prints is kept when its worker is killed
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # Linux: where memory runs out, a worker is killed and not the trainer
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    rewards: list[IsolatedReward] = _receive(requests)
    scorers: list[Scorer] = []
    for item in rewards:
        try:
            scorers.append(_prepare(item))
        except BaseException as error:
            _answer(answers, {"failed": item.label, "message": _describe(error)})
            return
    _answer(answers, {"ready": True})
    own, home = os.getpid(), os.open(".", os.O_RDONLY)
    while (jobs := _receive(requests)) is not None:
        known, pickled = None, b""
        for index, which, prompt, completion in jobs:
            if prompt is not known:
                known, pickled = prompt, pickle.dumps(prompt)
            _limit_memory(rewards[which])
            try:
                answer = [index, scorers[which](pickled, completion)]
            except BaseException as error:  # SystemExit too: a reward may not end the worker politely either
                answer = [index, None, _describe(error)]
            _tidy_up(home)
            if os.getpid() != own:  # the reward has forked, and this is the copy
                os._exit(0)
            _answer(answers, answer)


def _tidy_up(home: int) -> None:
    """Undo what would reach into the next completion."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    faulthandler.cancel_dump_traceback_later()
    os.fchdir(home)


def _cut_off_in_forks(*channel: int) -> None:
    """In a process that the reward forks, nothing is behind these descriptors."""
    null = os.open(os.devnull, os.O_RDWR)

    def cut() -> None:
        for descriptor in channel:
            os.dup2(null, descriptor, inheritable=False)

    os.register_at_fork(after_in_child=cut)


def _prepare(item: IsolatedReward) -> Scorer:
    """Import what the reward needs, outside the time limit of its first completion."""
    reward = load_function(item.reward) if ":" in item.reward else find(item.reward)
    for package in reward.packages:
        importlib.import_module(package)
    options = pickle.dumps(item.options)

    def score(prompt: bytes, completion: str) -> float:
        return reward.score(pickle.loads(prompt), completion, pickle.loads(options), item.thoughts)

    return score


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


def _limit_memory(item: IsolatedReward) -> None:
    """Bound the memory that the next completion may take."""
    _soft(resource.RLIMIT_DATA, resource.RLIM_INFINITY if ":" in item.reward else LIBRARY_MEMORY)


def _soft(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = hard if value == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses some; the parent's clock still holds
        resource.setrlimit(which, (value, hard))


BOOTSTRAP = f"""
import json, sys
sys.path[:], channel, own = json.loads(sys.argv[1])
from {guard.__module__} import guard
guard(channel)
from {__name__} import main
main(channel, own)
"""
"""The program for ``python -c`` that becomes a worker and its guardian; its argument is JSON: the module search path,
the descriptor of the socket, and the folders of the user's modules."""
