"""Folders with a stage of the user's own, and packages that publish one, for a process that forgets them afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

from gradus.pipeline.common import user_code


def documented(kind: str) -> str:
    """The one block of this kind in docs/own-stage.md."""
    (block,) = (REPOSITORY / "docs" / "own-stage.md").read_text().split(f"```{kind}\n")[1:]
    return block.split("```")[0]


def write_own_stage(folder: Path) -> None:
    """The documented files under their documented names."""
    (folder / "rloo.py").write_text(documented("python"))
    (folder / "rloo.yaml").write_text(documented("yaml"))


def publish(site: Path, name: str, group: str, points: dict[str, str]) -> None:
    """An installed package of this name, as far as its entry points go."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))


@pytest.fixture(autouse=True)
def forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test imports and where it looks is forgotten after it."""
    modules, path, folders = set(sys.modules), list(sys.path), list(user_code._folders)
    user_code._folders.clear()
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith(("gradus.", "torch", "transformers")):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file and Path(file).is_relative_to(tmp_path_factory.getbasetemp()):
                del sys.modules[name]
    sys.path[:], user_code._folders[:] = path, folders


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the documented files in it."""
    monkeypatch.chdir(tmp_path)
    write_own_stage(tmp_path)
    return tmp_path
