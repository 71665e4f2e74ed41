"""Locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradus.pipeline.common import locks
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.locks import file_lock, hold, holder

HOLD = """
import sys
from pathlib import Path
from gradus.pipeline.common.locks import hold

with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_lock_is_exclusive_and_ends_with_its_block(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with file_lock(path) as first, file_lock(path, wait=False) as second:
        assert first and not second
    with file_lock(path, wait=False) as again:
        assert again


def test_the_holder_is_named_until_its_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.0)
    assert holder(tmp_path) is None
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = holder(tmp_path)
        assert found is not None and found["pid"] == process.pid
        with pytest.raises(UserError, match=f"process {process.pid} on"), hold(tmp_path):
            pass
        process.kill()
    assert holder(tmp_path) is None, "what a dead process wrote does not count"
    with hold(tmp_path):
        found = holder(tmp_path)
        assert found is not None and found["pid"] == os.getpid()
