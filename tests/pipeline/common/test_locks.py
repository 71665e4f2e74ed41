"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

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


def test_a_lock_file_that_is_removed_under_its_holder_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.0)
    with hold(tmp_path):
        (tmp_path / "lock").unlink()
        assert holder(tmp_path) is not None
        for _ in range(2):  # the second finds the lock file that the first has made
            with pytest.raises(UserError, match="another process is working"), hold(tmp_path):
                pass
        assert holder(tmp_path) is not None
    with hold(tmp_path):
        pass
    assert holder(tmp_path) is None


@pytest.mark.parametrize("folders", [True, False])
def test_a_lock_that_was_removed_while_one_waited_for_it_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: bool
) -> None:
    """With folders that can be locked and without, as in NFS."""
    flock, removed = fcntl.flock, list[Path]()

    def slow(file: IO[str] | int, kind: int) -> None:
        if isinstance(file, int) and not folders:
            raise OSError(errno.EBADF, "not opened for writing")
        flock(file, kind)
        if not isinstance(file, int) and len(removed) < 2:  # as if the holder had removed it before it let go
            removed.append(Path(file.name))
            Path(file.name).unlink()

    monkeypatch.setattr(locks.fcntl, "flock", slow)
    with hold(tmp_path):
        assert len(removed) == 2 and (tmp_path / "lock").exists()
        monkeypatch.setattr(locks, "LOCK_TIMEOUT_SECONDS", 0.0)
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), hold(tmp_path):
            pass
    removed.clear()
    with file_lock(tmp_path / "other") as held, file_lock(tmp_path / "other", wait=False) as second:
        assert held and not second and len(removed) == 2


def test_a_folder_is_vacant_where_a_killed_process_made_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert locks.vacant(folder) and not locks.abandoned(folder)
    folder.mkdir()
    (folder / ".config.yaml.0a1b2c3d").write_text("half")
    with hold(folder):
        assert not locks.vacant(folder)
    assert locks.vacant(folder) and not locks.abandoned(folder), "another process may just be making a run there"
    os.utime(folder, (1, 1))
    assert locks.abandoned(folder)
    (folder / "notes.txt").write_text("of the user")
    os.utime(folder, (1, 1))
    assert not locks.vacant(folder) and not locks.abandoned(folder)
    assert not locks.vacant(folder / "notes.txt")
