"""Makes a task's data in a background process while this process still imports what it trains with.

This is only a head start. The code that needs the data waits for it and then calls ``build_task`` as usual, which
reuses a complete folder, and otherwise makes the folder or raises the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradus.pipeline.common.process import on_hang_up

_under_way: dict[Path, subprocess.Popen[bytes]] = {}


@contextlib.contextmanager
def data_ahead(tasks: Mapping[str, Any], base_dir: Path, folder: Path) -> Iterator[None]:
    """Make the tasks' folder in a background process during this block, which ends that process."""
    request = {
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
        "base_dir": str(base_dir),
        "folder": str(folder),
    }
    command = [sys.executable, "-P", "-c", f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {BOOTSTRAP}"]
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [*command, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
    )
    assert process.stdin is not None
    _under_way[folder] = process
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        yield
    finally:
        _under_way.pop(folder, None)
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def wait_for_data(folder: Path) -> None:
    """Wait for the background process that makes this folder, if there is one, whether it succeeds or not."""
    if folder in _under_way:
        _under_way[folder].wait()


def main() -> None:
    """Make the folder that the request on standard input describes; exit when its other end is closed."""
    request = json.loads(sys.stdin.readline())
    on_hang_up(sys.stdin.fileno(), lambda: os._exit(1))
    from pydantic import TypeAdapter

    from gradus.pipeline.config.task import Task
    from gradus.pipeline.tasks.several.build import make_tasks

    tasks = TypeAdapter(dict[str, Task]).validate_python(request["tasks"])
    make_tasks(tasks, Path(request["base_dir"]), Path(request["folder"]))


BOOTSTRAP = f"from {__name__} import main; main()"
