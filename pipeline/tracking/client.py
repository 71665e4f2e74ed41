"""The two ends between training process and uploader: start it, and end it with a report. Nothing imports MLflow.

The uploader is a child process that reads the journals of one run folder while they grow, and ends with its parent.
Whatever happens to it or to the tracking server, training neither waits nor fails.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from gradus.pipeline.common.addresses import redacted
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.process import child_environment
from gradus.pipeline.tracking.position import Report, count_undelivered, read_run_ids, tracking_options

NO_MLFLOW = "MLflow is not installed in this Python"


def mlflow_is_installed() -> bool:
    """Whether this Python has MLflow; it is not imported. Without it, curves stay in the run folders."""
    return importlib.util.find_spec("mlflow") is not None


class UploaderHandle:
    """A handle on the uploader of one run. No method raises."""

    def __init__(self, run_dir: Path, process: subprocess.Popen[bytes] | None, uri: str, error: str | None = None):
        self.run_dir, self.process, self.uri, self.error = run_dir, process, uri, error

    def finish(self, timeout: float = 30.0) -> Report:
        """Let the uploader deliver the rest, for at most ``timeout`` seconds, and return how far it got."""
        answer: dict[str, Any] = {}
        if self.process is not None:
            try:
                output, _ = self.process.communicate(b"finish\n", timeout=timeout)
                answer = json.loads(output.splitlines()[-1])
            except subprocess.TimeoutExpired:
                self.error = f"no end within {timeout:.0f} s"
            except (OSError, ValueError, IndexError):
                self.error = "the uploader ended early; see tracking.log in the run folder"
            self.stop()
        answer |= {"run": self.run_dir.name, "runs": str(self.run_dir.parent), "uri": redacted(self.uri)}
        report = Report(**answer)
        report.error = report.error or self.error
        with contextlib.suppress(OSError):
            report.undelivered = count_undelivered(self.run_dir)
            report.run_ids = read_run_ids(self.run_dir)
        return report

    def stop(self) -> None:
        """Kill the uploader; records without confirmation stay in the journals."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class ParentProcess:
    """The trainer, seen from the child process: whether it is alive, and whether it asked for the end."""

    def __init__(self, pid: int):
        self.pid = pid
        self.asked = False
        self.heard = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.asked = sys.stdin.readline().strip() == "finish"
        self.heard.set()

    @property
    def alive(self) -> bool:
        return os.getppid() == self.pid

    @property
    def ends(self) -> bool:
        return self.heard.is_set() or not self.alive


def start_uploader(run_dir: str | Path) -> UploaderHandle:
    """Start delivering a run folder's journals in the background. Never raises and never waits."""
    run_dir = Path(run_dir).absolute()
    uri = ""
    try:
        uri, _ = tracking_options(run_dir)
        if not mlflow_is_installed():
            return UploaderHandle(run_dir, None, uri, NO_MLFLOW)
        module = [sys.executable, "-P", "-m", "gradus.pipeline.tracking.uploader"]
        with open(run_dir / "tracking.log", "ab") as log:
            process = subprocess.Popen(
                [*module, str(run_dir), "--follow", "--parent-pid", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C in the terminal ends the trainer, and the uploader still delivers
            )
    except (OSError, UserError) as error:
        return UploaderHandle(run_dir, None, uri, f"the uploader did not start: {error}".replace("\n", "; "))
    return UploaderHandle(run_dir, process, uri)
