"""What users install: the wheel, its metadata, and the set of dependencies it is proven with."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from installed import install
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
FOLDERS = ("pipeline", "stages", "flows", "tests", "benchmarks")
DECLARED = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
LOCK = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==")
        for line in (REPOSITORY / "requirements.lock").read_text().splitlines()
        if line[:1] not in ("#", "")
    )
}


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"gradus_rl-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        described = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"gradus", f"gradus_rl-{PROJECT['version']}.dist-info"}
    sources = {f"gradus/{p.relative_to(REPOSITORY)}" for top in FOLDERS[:3] for p in (REPOSITORY / top).rglob("*.py")}
    assert sources <= set(names)
    folder = REPOSITORY / "configs"
    configs = {f"gradus/configs/{path.relative_to(folder)}" for path in folder.rglob("*.*") if path.is_file()}
    configs = {name for name in configs if not name.endswith(".pyc")}
    assert configs and configs <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "gradus = gradus.__main__:main" in scripts
    assert "Requires-Python: >=3.11" in described and "License-Expression: Apache-2.0" in described


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = install(wheel, tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    shown = installed.gradus(elsewhere, "check", "quickstart", IMPORTS_LOG="")
    assert str(installed.target / "gradus" / "configs" / "quickstart.yaml") in shown
    assert not list(elsewhere.iterdir()), "a check leaves nothing behind"


def test_the_version_is_said_once_and_the_same() -> None:
    from gradus import __version__

    assert PROJECT["version"] == __version__


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda r: r.name)
def test_the_environment_and_the_lock_satisfy_the_declared_ranges(requirement: Requirement) -> None:
    installed = metadata.version(requirement.name)
    assert requirement.specifier.contains(installed, prereleases=True), f"{requirement}: {installed} is installed"
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_the_lock_suits_every_machine() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    assert LOCK["torch"] == "2.13.0"
    for line in text.splitlines():
        assert re.fullmatch(r"(#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.]+)", line), f"a path, URL or local build: {line}"
    assert not [name for name in LOCK if name.startswith(("nvidia", "triton", "gradus"))]


def test_every_import_is_declared() -> None:
    """A package that only another one brings along may be gone with its next release."""
    optional = [Requirement(line) for extra in ("bench", "ray") for line in PROJECT["optional-dependencies"][extra]]
    declared = {canonicalize_name(requirement.name) for requirement in DECLARED + optional}
    by_module = metadata.packages_distributions()
    own = {
        "gradus",
        "vllm",  # measured where somebody has installed it
        *sys.stdlib_module_names,
    }
    outside = {"benchmarks", "tests", *(path.stem for path in (REPOSITORY / "tests").rglob("*.py"))}
    missing = {}
    for path in [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]:
        known = own | (outside if path.relative_to(REPOSITORY).parts[0] in ("tests", "benchmarks") else set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.split(".")[0] for name in names} - known:
                if not declared & {canonicalize_name(package) for package in by_module.get(name, [name])}:
                    missing[name] = str(path.relative_to(REPOSITORY))
    assert not missing


def test_prefects_server_and_mlflow_start_together(tmp_path: Path) -> None:
    """FastAPI 0.151 broke Prefect 3.8 without pip's complaint; since 3.9 Prefect bounds it itself."""
    code = """
from prefect.server.api.server import create_app
create_app(final=True)
import mlflow
from mlflow.server import app, fastapi_app
"""
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment |= {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
