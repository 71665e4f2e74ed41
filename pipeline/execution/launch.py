"""Train a stage in several processes: start torchrun, watch it, and pass signals to the ranks and their reports on.

Each rank is connected to this process (:mod:`gradus.pipeline.execution.rank_process`). It sends progress, the result
and errors, and it ends when the connection does, so that no rank outlives the launch. Everything else that the
processes write goes to ``torchrun.log`` in the stage's folder.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.host import socket_folder, without_launchers
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.policy.devices import check_devices
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.stage import Stage

LOG = "torchrun.log"
END_TIMEOUT_SECONDS = 20.0
"""How long the other ranks may take to end once the first one has reported how its work ended."""
START_NOTE_SECONDS = 30.0
"""After how long the user learns that processes have not started yet: importing torch takes minutes on a slow disk."""

Message = dict[str, Any]


def launched(run: RunFolder, index: int, stage: Stage, where: dict[str, Any], observer: Observer) -> dict[str, Any]:
    """Train a stage in ``launch.processes`` processes apart from this one; returns its success record.

    ``where``: the parent checkpoint and the checkpoint to resume from, which are passed to the ranks unchanged.

    Raises: the error that the ranks failed with; StageFailed where one of them died; Interrupted after a signal.
    """
    check_devices(run.config)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the memory in which the policy was measured is needed by rank 0
    spec = {"run": str(run.path), "index": index, "stage": _address(run, index, stage), **where}
    spec["configs"] = [f"{config.__module__}:{config.__qualname__}" for config in run.stage_configs]
    log = run.stage_dir(index) / LOG
    with _Launch(run.config.launch.processes, spec, log, observer) as launch:
        launch.until_started(run.config.launch.time_limit)
        with interruption.deferred():
            launch.watch()
    return launch.outcome()


def _address(run: RunFolder, index: int, stage: Stage) -> str:
    """Where another process can import a stage from: ``module:name``. Raises: UserError where no module holds it."""
    if (reference := run.config.stages[index].origin) is not None:
        return reference
    module = sys.modules[stage.config.__module__]
    for name, value in vars(module).items():
        if value is stage:
            return f"{module.__name__}:{name}"
    raise UserError(
        f"other processes cannot find the stage {stage.name!r}",
        where=str(module.__name__),
        expected="`STAGE = Stage(...)` in the module of its options",
        fix="define it there, or set launch.processes to 1",
    )


class _Launch:
    """torchrun and its processes: a context manager that leaves none of them running."""

    def __init__(self, count: int, spec: dict[str, Any], log: Path, observer: Observer):
        self.count, self.log, self.observer = count, log, observer
        self.result: dict[str, Any] | None = None
        self.errors: list[Message] = []
        """The errors that ranks failed with, in the order of their reports."""
        self.deaths: list[Message] = []
        """The processes that died, as torchrun reports them."""
        self.left: int | None = None
        """The signal after which the ranks stopped as requested."""
        self._pids: dict[int, int] = {}
        self._signalled: int | None = None
        self._deadline = float("inf")
        with contextlib.ExitStack() as held:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="gradus-", dir=socket_folder()))
            self._server = held.enter_context(socket.socket(socket.AF_UNIX))
            self._server.bind(address := str(Path(folder) / "s"))
            self._server.listen()
            self._selector = held.enter_context(selectors.DefaultSelector())
            self._selector.register(self._server, selectors.EVENT_READ)
            self._torchrun = self._start(spec | {"address": address}, folder)
            held.callback(self._end)
            self._held = held.pop_all()

    def _start(self, spec: dict[str, Any], folder: str) -> subprocess.Popen[bytes]:
        """Start torchrun in a session of its own, so that Ctrl-C reaches this process alone, which passes it on."""
        # The same modules as here, and (-P) nothing from a folder that merely happens to be the current one. The ranks
        # give what they start the PYTHONPATH that was set here.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        spec = spec | {"python_path": os.environ.get("PYTHONPATH")}
        python = [sys.executable, "-P", "-u"]
        torchrun = [*python, "-m", "gradus.pipeline.execution.torchrun", spec["address"]]
        options = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={self.count}", f"--log-dir={folder}"]
        rank = [*python, "-m", "gradus.pipeline.execution.rank_process", json.dumps(spec, default=str)]
        command = [*torchrun, *options, "--no-python", *rank]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                env={"OMP_NUM_THREADS": "1"} | without_launchers(dict(os.environ)) | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> _Launch:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def until_started(self, time_limit: float) -> None:
        """Wait until every rank has said hello, or torchrun has ended. A signal ends this wait at once, in a thread
        beside the main one within moments.

        Raises: StageFailed where it takes too long.
        """
        began, noted = time.monotonic(), False
        while len(self._pids) < self.count and self._torchrun.poll() is None:
            waited = time.monotonic() - began
            missing = f"{self.count - len(self._pids)} of {self.count} processes"
            if waited > time_limit:
                why = f"{missing} did not start within {time_limit:g} s (launch.time_limit)"
                raise StageFailed(f"{why}; {self.log} has what they wrote")
            if waited > START_NOTE_SECONDS and not noted:
                noted = True
                self.observer.note(f"waiting for {missing} to start; {self.log} has what they write")
            self._receive(0.2)
            if threading.current_thread() is not threading.main_thread():
                interruption.leave_if_requested()

    def watch(self) -> None:
        """Until torchrun has ended, pass on the reports of the ranks, and a signal to rank 0, which all ranks follow.

        Raises: Interrupted after a second signal.
        """
        while self._torchrun.poll() is None and time.monotonic() < self._deadline:
            self._receive(0.2)
            if (number := interruption.ended()) is not None:
                raise interruption.Interrupted(number)
            number = interruption.waiting()
            if number is not None and self._signalled is None and 0 in self._pids:
                self._signalled = number
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pids[0], number)
        while self._receive(0.5 if len(self._selector.get_map()) > 1 else 0.0):
            pass

    def _receive(self, seconds: float) -> bool:
        """Receive messages for at most this time; returns whether any connection was ready."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            if key.fileobj is self._server:
                connection, _ = self._server.accept()
                self._selector.register(connection, selectors.EVENT_READ, bytearray())
                continue
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._drop(key)
            key.data.extend(data)
            *lines, rest = bytes(key.data).split(b"\n")
            key.data[:] = rest
            for line in lines:
                self._take(json.loads(line))
        return bool(ready)

    def _drop(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()

    def _take(self, message: Message) -> None:
        kind = message.pop("kind")
        if kind == "hello":
            self._pids[message["rank"]] = message["pid"]
        elif kind == "step":
            self.observer.step_done(**message)
        elif kind == "note":
            self.observer.note(message["text"])
        elif kind == "rule":
            self.observer.rule_acted(**message)
        elif kind == "deaths":
            self.deaths = message["deaths"]
        else:
            if kind == "result":
                self.result = message["result"]
            elif kind == "left":
                self.left = message["number"]
            else:
                self.errors.append(message)
            self._deadline = min(self._deadline, time.monotonic() + END_TIMEOUT_SECONDS)

    def outcome(self) -> dict[str, Any]:
        """The success record. Raises: the first cause of the failure."""
        if self.result is not None:
            return self.result
        if self._signalled is not None and self.left is not None:
            raise interruption.Interrupted(self._signalled)
        meant = [error for error in self.errors if error["type"] in _MEANT]
        killed = [death for death in self.deaths if death["exitcode"] < 0]
        # torchrun ends the others with SIGTERM once one has died.
        killed.sort(key=lambda death: death["exitcode"] == -signal.SIGTERM)
        written = f"{self.log} has what the processes wrote"
        if meant:
            raise _MEANT[meant[0]["type"]](meant[0])
        if killed and (killed[0]["exitcode"] != -signal.SIGTERM or not self.errors):
            number = -killed[0]["exitcode"]
            why = ", as the kernel does where memory runs out" if number == signal.SIGKILL else ""
            by = f"was ended by {signal.Signals(number).name}{why}"
            raise StageFailed(f"rank {killed[0]['rank']} of {self.count} {by}; {written}")
        if self.errors:
            error = self.errors[0]
            reason = f"{error['type']}: {error['text'].strip().splitlines()[0]}"
            raise StageFailed(f"rank {error['rank']} of {self.count} failed: {reason}; {written}")
        if self.left is not None:  # a signal from another process, such as torchrun's after a rank has failed
            raise interruption.Interrupted(self.left)
        raise StageFailed(f"torchrun ended with exit code {self._torchrun.returncode} and no result; {written}")

    def _end(self) -> None:
        """End the processes that are left: a rank ends when its connection does, or when it cannot connect."""
        for key in list(self._selector.get_map().values()):
            self._drop(key)
        self._torchrun.terminate()
        try:
            self._torchrun.wait(END_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._torchrun.kill()
            self._torchrun.wait()


_MEANT: dict[str, Any] = {
    "UserError": lambda error: UserError(**error["fields"]),
    "StageFailed": lambda error: StageFailed(error["text"]),
    "OSError": lambda error: OSError(error["errno"], error["text"]),
}
"""Errors whose type is kept: those that the user or the disk has caused."""
