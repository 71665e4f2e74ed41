"""The house: which way imports point, who may import what, and that files stay short enough to read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

from gradus.stages import discover

LAYERS = ("pipeline", "stages", "flows")
"""From the bottom: a layer imports those before it, never those after."""
LONGEST = 320
"""Lines that a file may have; 300 is the aim."""

FILES = sorted(path for layer in LAYERS for path in (REPOSITORY / layer).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, as an absolute dotted name."""
    package = path.relative_to(REPOSITORY).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(REPOSITORY).parts[0]
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for module in imports(path):
        assert module.split(".")[0] not in above, f"{name_of(path)} imports {module}"
        assert not module.startswith("tests"), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "stages").glob("[!_]*.py")), ids=name_of)
def test_stages_do_not_know_each_other(path: Path) -> None:
    assert not [module for module in imports(path) if module.split(".")[0] in ("stages", "flows")]
    assert len(path.read_text().splitlines()) < 120, f"{name_of(path)}: a stage is one short file"


def test_each_backend_is_imported_in_its_own_place() -> None:
    users = {
        backend: {name_of(p) for p in FILES if any(m.split(".")[0] == backend for m in imports(p))}
        for backend in ("mlflow", "prefect")
    }
    assert users["mlflow"] == {"pipeline/tracking/uploader.py"}
    assert users["prefect"] and all(name.startswith("flows/") for name in users["prefect"])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "pipeline").rglob("*.py")), ids=name_of)
def test_the_core_knows_no_algorithm_by_name(path: Path) -> None:
    tree = ast.parse(path.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    words = re.compile(rf"\b({'|'.join(map(re.escape, discover()))})\b")
    named = [f"line {n.lineno}: {n.value!r}" for n in texts if id(n) not in documentation and words.search(n.value)]
    assert not named, f"{name_of(path)} names an algorithm: {named}"


def test_files_stay_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_what_answers_at_once_imports_nothing_slow() -> None:
    """Help, checks and status would take seconds otherwise."""
    light = [
        "gradus.flows.cli", "gradus.flows.launch", "gradus.flows.screen.status", "gradus.flows.screen.options", "gradus.flows.screen.progress", "gradus.flows.screen.plan", "gradus.flows.screen.tables",
        "gradus.pipeline.config.loading",
        "gradus.pipeline.execution.preflight", "gradus.pipeline.rewards", "gradus.pipeline.tasks.task", "gradus.pipeline.runs.run_folder", "gradus.pipeline.tracking.journal",
        "gradus.pipeline.tracking.position", "gradus.pipeline.tracking.access", "gradus.pipeline.runs.fork", "gradus.pipeline.runs.verify",
        "gradus.flows.cli.runs", "gradus.flows.cli.advise", "gradus.flows.orchestrator.access", "gradus.flows.screen.sizes", "gradus.stages",
    ]  # fmt: skip
    slow = ["torch", "transformers", "prefect", "mlflow", "datasets", "numpy", "pandas", "reasoning_gym"]
    code = f"""
import importlib, sys
for module in {light}:
    importlib.import_module(module)
    found = [name for name in {slow} if name in sys.modules]
    assert not found, f"{{module}} imports {{found}}"
import gradus.stages
gradus.stages.discover()
assert "torch" not in sys.modules, "a stage imports torch"
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)
