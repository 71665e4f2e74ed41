"""One of the processes that train a stage, started by torchrun.

``python -m gradus.pipeline.execution.rank_process SPEC``: SPEC is JSON. It has the run folder, the stage's index, its
parent checkpoint, the checkpoint to resume from, and the address of the launch that gets the reports
(:mod:`gradus.pipeline.execution.launch`).
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.process import on_hang_up


class Line(Observer):
    """The connection to the launch. It carries the reports of this process, which ends when the connection does."""

    def __init__(self, address: str, rank: int):
        self._rank, self._sending = rank, threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        on_hang_up(self._socket.fileno(), lambda: os._exit(1))
        self.send("hello", rank=rank, pid=os.getpid())

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message, as a line of JSON."""
        with self._sending:
            self._socket.sendall(json.dumps({"kind": kind, **fields}).encode() + b"\n")

    def rule_acted(self, label: str, event: Mapping[str, Any]) -> None:
        self.send("rule", label=label, event=dict(event))

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self.send("step", label=label, step=step, steps=steps, metrics=dict(metrics))

    def note(self, text: str) -> None:
        self.send("note", text=text)

    def failed(self, error: BaseException) -> None:
        """Report an error, so that the launch can raise it again."""
        fields: dict[str, Any] = {"type": type(error).__name__, "text": str(error).strip() or repr(error)}
        if isinstance(error, UserError):
            names = ("what", "where", "got", "expected", "fix")
            fields["fields"] = {name: value and str(value) for name in names for value in [getattr(error, name)]}
        elif isinstance(error, OSError) and error.errno is not None:
            fields |= {"type": "OSError", "errno": error.errno}
        self.send("error", rank=self._rank, **fields)


def main() -> None:
    """Train, and report how it ended. An exit status other than 0 makes torchrun end the other ranks."""
    spec, rank = json.loads(sys.argv[1]), int(os.environ["RANK"])
    os.environ.pop("PYTHONPATH", None)  # that was for this process
    if spec["python_path"] is not None:
        os.environ["PYTHONPATH"] = spec["python_path"]
    line = Line(spec["address"], rank)
    try:
        if rank == 0:
            with interruption.handled():
                line.send("result", result=_train(spec, line))
        else:
            _train(spec, Observer())  # a signal ends it at once: only rank 0 writes files
    except Interrupted as ending:
        if rank == 0:
            line.send("left", number=ending.number)
    except BaseException as error:
        traceback.print_exc()
        line.failed(error)
        _exit(1)
    _exit(0)


def _exit(status: int) -> None:
    """End at once: an orderly end might wait for other ranks that have already ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _train(spec: dict[str, Any], observer: Observer) -> dict[str, Any]:
    """Train this rank's part of the stage; returns the success record."""
    from gradus.pipeline.common.files import read_json
    from gradus.pipeline.common.ranks import join
    from gradus.pipeline.execution.train import reward_suite, train
    from gradus.pipeline.execution.work.recorded import StageWork
    from gradus.pipeline.policy.devices import pick_device
    from gradus.pipeline.runs.checkpoint import read_record
    from gradus.pipeline.runs.identity import STAGE_FILE
    from gradus.pipeline.runs.run_folder import RunFolder
    from gradus.pipeline.tasks.several.build import load_tasks
    from gradus.pipeline.tracking.journal import Journal, SilentJournal

    run = RunFolder(spec["run"], [_found(address) for address in spec["configs"]])
    launch, folder = run.config.launch, run.stage_dir(spec["index"])
    ranks = join(pick_device(run.config.policy.device).type, launch.shard == "fsdp", launch.time_limit)
    parent, resume_from = Path(spec["parent"]), spec["resume_from"]
    work = StageWork(
        run, spec["index"], parent, read_record(parent), load_tasks(run.data_dir, run.config.named_tasks),
        read_json(folder / STAGE_FILE)["fingerprint"], Path(resume_from) if resume_from else None,
    )  # fmt: skip
    journal = (Journal if ranks.leads else SilentJournal)(folder / "journal.jsonl")
    pipeline = run.config.in_stage(run.config.stages[spec["index"]])
    with reward_suite(run, parent, pipeline, ranks.size) as suite:
        return train(work, _found(spec["stage"]), suite, journal, observer, ranks)


def _found(address: str) -> Any:
    """The object at ``module:name``."""
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    main()
