"""vLLM where these tests find it: in a Python of its own, which `make vllm` sets up or GRADUS_VLLM_PYTHON names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paths import REPOSITORY, search_path
from postgres import free_port

READY_WITHIN = 240.0
OPTIONS = ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--kv-cache-memory-bytes", "200000000")


def vllm_python() -> Path:
    """The interpreter that has vLLM, if it is there."""
    return Path(os.environ.get("GRADUS_VLLM_PYTHON") or REPOSITORY / ".venv-vllm" / "bin" / "python")


def missing() -> str:
    """Why vLLM cannot be tried; empty where it can."""
    return "" if vllm_python().exists() else "vLLM is not installed (`make vllm`, or GRADUS_VLLM_PYTHON)"


def environment() -> dict[str, str]:
    """For a process with vLLM: this repository on its path, one thread, and nothing of the Hub's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    return kept | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Server:
    """A vLLM server, started as the manual says."""

    model: Path
    log: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Until it answers."""
        self.port = self.port or free_port()
        command = [
            str(vllm_python()),
            "-m",
            "gradus.pipeline.rollouts.vllm.serve",
            str(self.model),
            "--port",
            str(self.port),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *OPTIONS], env=environment(), stdout=log, stderr=log, cwd=self.log.parent,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + READY_WITHIN
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.5)
        self._warm_up()

    def _warm_up(self) -> None:
        """The first completion takes longer than those that tests set a limit for."""
        content = json.dumps({"model": str(self.model), "prompt": [2, 3], "max_tokens": 2, "temperature": 0}).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", content, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=120).close()

    def kill(self) -> None:
        """At once, with the processes that it started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[Server]:
    """A server for as long as the block lasts."""
    server = Server(model, folder / "vllm.log")
    try:
        server.start()
        yield server
    finally:
        server.kill()
