"""Hosts that give a process no home folder, or variables that break what it imports."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gradus.flows.orchestrator import settings
from gradus.pipeline.common import host
from gradus.pipeline.common.errors import UserError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files of this test's own, and no setting of where gradus keeps its records."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("GRADUS_HOME", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return folder


def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one of a user without a name and without HOME."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(RuntimeError, match="home directory"):
        Path.home()


def test_a_user_without_a_home_gets_a_private_folder(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nameless(monkeypatch)
    assert settings.gradus_home() == temporary / f"gradus-{os.getuid()}" / ".gradus"
    assert Path.home() == temporary / f"gradus-{os.getuid()}" and Path("~/x").expanduser().is_absolute()
    assert Path.home().stat().st_mode & 0o777 == 0o700
    assert "GRADUS_HOME names another folder" in settings.home_notes()[0]


def test_a_home_that_does_not_exist_or_cannot_be_written(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent/home")
    assert settings.gradus_home().is_relative_to(temporary)
    monkeypatch.setenv("HOME", "/proc")  # exists, and nobody can make a folder in it
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("/proc") and real(path, mode))
    assert settings.gradus_home() == temporary / f"gradus-{os.getuid()}" / ".gradus"
    assert os.environ["HOME"] == "/proc", "what libraries read there stays readable"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.gradus_home() == tmp_path / ".gradus" and settings.home_notes() == []
    monkeypatch.setenv("GRADUS_HOME", "/nonexistent/own")
    assert settings.gradus_home() == Path("/nonexistent/own"), "what the user says is not corrected"


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_somebody_else_may_have_made_is_refused(
    kind: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless(monkeypatch)
    trap = temporary / f"gradus-{os.getuid()}"
    if kind == "open to others":
        trap.mkdir()
        trap.chmod(0o777)
    elif kind == "a link":
        trap.symlink_to(tmp_path)
    else:
        trap.touch()
    with pytest.raises(UserError, match="not private") as refused:
        settings.gradus_home()
    assert refused.value.where == str(trap) and "HOME" in str(refused.value.fix)


@pytest.mark.parametrize(("given", "left"), [("info", "INFO"), ("DEBUG", "DEBUG"), ("chatty", None), ("", None)])
def test_a_level_that_logging_does_not_know_does_not_reach_torch(
    given: str, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGLEVEL", given)
    host.settle_environment()
    assert os.environ.get("LOGLEVEL") == left


@pytest.mark.parametrize(("given", "left"), [("0", None), ("", None), ("100", "100")])
def test_a_terminal_of_no_width_does_not_swallow_what_is_printed(
    given: str, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", given)
    host.settle_environment()
    assert os.environ.get("COLUMNS") == left
