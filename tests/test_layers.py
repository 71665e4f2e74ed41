"""The architecture: which package may import which, and how large a folder, a file, a function and a class may be.

The checks are those of ``helpers/house.py``; a made-up tree proves that each of them notices what it is for.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from house import (
    CHECKS,
    HEADER,
    Check,
    House,
    Module,
    circle_offenders,
    docstring_offenders,
    encoding_offenders,
    name_offenders,
    root_offenders,
    row_offenders,
    size_offenders,
    stages_of,
    upward_offenders,
)
from paths import REPOSITORY

from gradus.stages import discover

ANSWERS_AT_ONCE = [
    "flows.cli",
    "flows.cli.runs",
    "flows.cli.advise",
    "flows.cli.diff",
    "flows.diff.diff",
    "flows.diff.screen",
    "flows.init",
    "flows.launch",
    "flows.orchestrator.access",
    "flows.screen.status",
    "flows.screen.options",
    "flows.screen.progress",
    "flows.screen.live.watch",
    "flows.screen.plan",
    "flows.screen.prompts",
    "flows.screen.rollouts",
    "pipeline.runs.prompts_seen",
    "pipeline.runs.sampled.read",
    "flows.screen.tables",
    "flows.screen.sizes",
    "pipeline.config.loading",
    "pipeline.execution.preflight",
    "pipeline.rewards",
    "pipeline.tasks.task",
    "pipeline.runs.run_folder",
    "pipeline.runs.fork",
    "pipeline.runs.verify",
    "pipeline.tracking.journal",
    "pipeline.tracking.position",
    "pipeline.tracking.access",
    "stages",
]
"""What help, checks and status import, and what must therefore import nothing of the following."""
SLOW = ["torch", "transformers", "prefect", "mlflow", "datasets", "numpy", "pandas", "reasoning_gym"]


@pytest.fixture(scope="module")
def house() -> House:
    return House(REPOSITORY)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_has_no_offender(house: House, check: Check) -> None:
    offenders = list(check(house))
    assert not offenders, "\n" + "\n".join(offenders)


def test_every_stage_is_one_file_named_after_it(house: House) -> None:
    """The check of algorithms' names relies on it."""
    assert {f"stages.{name}" for name in discover()} == set(stages_of(house))


def test_the_project_has_one_import_name() -> None:
    """Whatever is imported in the checkout, or shown to users, is imported as ``gradus.``."""
    other = re.compile(r"^\s*(?:from|import) (?:pipeline|stages|flows)\b|-m (?:pipeline|stages|flows)\.", re.MULTILINE)
    found = []
    for folder in ("pipeline", "stages", "flows", "src", "tests", "benchmarks", "examples", "docs", "deploy"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix == ".py":
                tops = {name.split(".")[0] for name in Module(f"{folder}.{path.stem}", path).imports()}
                found += [f"{path} imports {name}" for name in sorted(tops & {"pipeline", "stages", "flows"})]
            elif path.suffix in (".md", ".yaml", ".json") or path.name == "Dockerfile":
                found += [f"{path}: {match[0].strip()}" for match in other.finditer(path.read_text())]
    assert not found, "\n" + "\n".join(found)


def test_what_answers_at_once_imports_nothing_slow() -> None:
    """Help, checks and status would take seconds otherwise."""
    code = f"""
import importlib, sys
for module in {ANSWERS_AT_ONCE}:
    importlib.import_module(f"gradus.{{module}}")
    found = [name for name in {SLOW} if name in sys.modules]
    assert not found, f"{{module}} imports {{found}}"
import gradus.stages
gradus.stages.discover()
assert "torch" not in sys.modules, "a stage imports torch"
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)


SAYS = '"""A package. Gives: all. Must not know: anything."""\n'
TABLE = f"""# Architecture

{HEADER}
|---|---|---|---|---|
| 1 | `pipeline.common` | a | b | c |
| 2 | `pipeline.types` | a | b | c |
| 2 | `pipeline.tasks` | a | b | c |
| 3 | `stages` | a | b | c |
| 4 | `flows.compare.plan` | a | b | c |
| 5 | `flows` | a | b | c |
| 6 | `gradus` | a | b | c |
"""
TREE = {
    "docs/architecture.md": TABLE,
    "src/gradus/__init__.py": SAYS + "__version__ = '1'\n",
    "src/gradus/__main__.py": "from gradus.flows.order import all_of\n",
    "pipeline/__init__.py": SAYS,
    "pipeline/types.py": "from gradus.pipeline.common import files\n",
    "pipeline/common/__init__.py": SAYS,
    "pipeline/common/files.py": "import os\nfrom gradus import __version__\n",
    "pipeline/common/deep/__init__.py": SAYS,
    "pipeline/common/deep/locks.py": "from ..files import os\nNAMES = 'fast food'\n",
    "pipeline/tasks/__init__.py": SAYS + "from .task import read\n",
    "pipeline/tasks/task.py": "import gradus.pipeline.common.deep.locks as read\n",
    "stages/__init__.py": SAYS,
    "stages/sft.py": "from gradus.pipeline.tasks import read\n",
    "stages/dapo.py": "import torch\n",
    "flows/__init__.py": SAYS,
    "flows/order.py": "from .compare.plan import arms as all_of\nimport prefect\n",
    "flows/compare/__init__.py": SAYS,
    "flows/compare/plan/__init__.py": SAYS,
    "flows/compare/plan/arms.py": "from gradus.pipeline.types import files\n",
}
"""A small checkout without an offender."""
FAULTS = {
    "upward": (upward_offenders, {"pipeline/common/files.py": "def f():\n    from gradus.pipeline import types\n"}),
    "upward, for types only": (
        upward_offenders,
        {"pipeline/types.py": "if TYPE_CHECKING:\n    from gradus.flows.order import X\n"},
    ),
    "sideways": (upward_offenders, {"pipeline/types.py": "import gradus.pipeline.tasks.task\n"}),
    "relative": (upward_offenders, {"pipeline/common/files.py": "from ..tasks.task import read\n"}),
    "by name": (upward_offenders, {"stages/sft.py": "importlib.import_module('gradus.flows.order')\n"}),
    "a public name": (upward_offenders, {"flows/order.py": "from gradus import __version__, run\n"}),
    "another name": (upward_offenders, {"flows/order.py": "import pipeline.types\n"}),
    "circle": (
        circle_offenders,
        {"pipeline/common/files.py": "import gradus.pipeline.common.deep.locks\n"},
    ),
    "16 modules": (size_offenders, {f"pipeline/tasks/m{number}.py": "" for number in range(15)}),
    "9 modules in pipeline/": (size_offenders, {f"pipeline/m{number}.py": "" for number in range(8)}),
    "301 lines": (size_offenders, {"flows/order.py": "\n" * 301}),
    "a stage of 121 lines": (size_offenders, {"stages/sft.py": "\n" * 121}),
    "61 lines": (size_offenders, {"flows/order.py": "async def f():\n" + "    pass\n" * 60}),
    "13 methods": (size_offenders, {"flows/order.py": "class A:\n" + "    def f(self): ...\n" * 13}),
    "no row": (row_offenders, {"pipeline/new.py": ""}),
    "no row below flows": (row_offenders, {"flows/new/__init__.py": SAYS, "flows/new/module.py": ""}),
    "code in a folder of packages": (row_offenders, {"flows/compare/__init__.py": SAYS + "import os\n"}),
    "row without modules": (row_offenders, {"docs/architecture.md": TABLE + "| 1 | `pipeline.old` | a | b | c |\n"}),
    "root": (root_offenders, {"src/gradus/__init__.py": SAYS + "import os\n"}),
    "no docstring": (docstring_offenders, {"flows/compare/__init__.py": '"""Gives: all."""\n'}),
    "no __init__": (docstring_offenders, {"pipeline/common/new/module.py": ""}),
    "mlflow": (name_offenders, {"flows/order.py": "def f():\n    import mlflow.client\n"}),
    "prefect": (name_offenders, {"pipeline/types.py": "from prefect import flow\n"}),
    "stages know each other": (name_offenders, {"stages/sft.py": "from gradus.stages.dapo import STAGE\n"}),
    "read in the locale's encoding": (encoding_offenders, {"stages/sft.py": "path.read_text()\n"}),
    "written in the locale's encoding": (encoding_offenders, {"stages/sft.py": "with open(path, 'w') as file: ...\n"}),
    "opened in the locale's encoding": (
        encoding_offenders,
        {"stages/sft.py": "with (folder / name).open() as file: ...\n"},
    ),
    "a process in the locale's encoding": (encoding_offenders, {"stages/sft.py": "subprocess.run(a, text=True)\n"}),
    "algorithm": (name_offenders, {"pipeline/types.py": "if name == 'dapo': ...\n"}),
}


def build(folder: Path, files: dict[str, str]) -> House:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return House(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_noticed(tmp_path: Path, fault: str) -> None:
    sound = build(tmp_path, TREE)
    assert [found for check in CHECKS for found in check(sound)] == []
    check, files = FAULTS[fault]
    assert len(list(check(build(tmp_path, files)))) == 1
