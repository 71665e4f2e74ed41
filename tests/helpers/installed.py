"""The wheel, installed where no checkout is in sight, and a user's folder whose modules are called as ours once were.

The interpreter that the tests use sees the environment's packages, but not its editable install of the checkout: a
process that loses the way to the installed wheel finds no ``gradus`` at all. It also records, in the file that
``IMPORTS_LOG`` names, where each process finds the names that both sides have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import REPOSITORY

RECORDER = """
import json, os, sys
from importlib.machinery import PathFinder

class Recorder:
    def find_spec(self, name, path=None, target=None):
        log = os.environ.get("IMPORTS_LOG")
        if log and name in ("gradus", "pipeline", "stages", "flows", "configs"):
            found = PathFinder.find_spec(name, path)
            places = list(found.submodule_search_locations or [found.origin]) if found else []
            line = {"name": name, "places": places, "command": " ".join(sys.orig_argv)}
            with open(log, "a") as file:
                file.write(json.dumps(line) + "\\n")

sys.meta_path.insert(0, Recorder())
"""

TINY = """\
name: tiny
policy:
  architecture: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
                 num_attention_heads: 2, num_key_value_heads: 2}
  tokenizer: {vocabulary: 300}
  device: cpu
task: {source: file, path: ../task.jsonl, heldout: 12, validation: 6, demonstrations: column,
       columns: {demonstration: solution}}
sampling: {max_tokens: 6}
rewards: [{reward: "flows.rewards:score"}]
stages: [{stage: dapo, steps: 1, prompts_per_step: 2, group_size: 2}]
"""
ARMS = TINY.replace("stages: [", "stages: [{stage: sft, steps: 1, prompts_per_step: 2}, ").replace("tiny", "arms")

USERS_FILES = {
    "pipeline.py": "SCALE = 0.5\n",
    "stages/mine.py": "def words(text):\n    return len(text.split())\n",
    "flows/rewards.py": """
import os, subprocess, sys
import pipeline
from stages.mine import words

def score(prompt, completion):
    return pipeline.SCALE * words(completion)

# A program of the user's runs in a reward as it runs in a shell.
assert os.environ.get("PYTHONPATH") == os.environ["USERS_PATH"], os.environ.get("PYTHONPATH")
program = os.path.join(os.path.dirname(__file__), "program", "main.py")
assert subprocess.run([sys.executable, program], capture_output=True, check=True).stdout == b"beside it\\n"
""",
    "flows/program/main.py": "import beside\n",
    "flows/program/beside.py": "print('beside it')\n",
    "configs/tiny.yaml": TINY,
    "configs/arms.yaml": ARMS,
    **{f"{name}.py": f"raise ImportError('{name}.py is the user\\'s')\n" for name in ("datasets", "mlflow", "prefect")},
}


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """A Python, the folder that holds the installed wheel and nothing else, and a home for gradus and Prefect."""

    python: Path
    target: Path
    home: Path

    def environment(self, folder: Path, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "GRADUS", "PYTHON", "MLFLOW"))}
        here = {"PYTHONPATH": str(self.target), "USERS_PATH": str(self.target), "IMPORTS_LOG": str(folder / "imports")}
        return kept | here | {"GRADUS_HOME": str(self.home), "HOME": str(self.home), "OMP_NUM_THREADS": "1"} | more

    def gradus(self, folder: Path, *words: str, **more: str) -> str:
        """What the command prints that is run in this folder, as its entry point starts it."""
        command = [str(self.python), str(self.target / "bin" / "gradus"), *words]
        done = subprocess.run(
            command, cwd=folder, env=self.environment(folder, **more), capture_output=True, text=True, timeout=400
        )
        logs = [path.read_text(errors="replace")[-2000:] for path in folder.rglob("*.log")]
        assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
        return done.stdout

    def imports(self, folder: Path) -> list[dict[str, Any]]:
        """What the processes that were started in this folder found."""
        return [json.loads(line) for line in (folder / "imports").read_text().splitlines()]


def install(wheel: Path, folder: Path) -> Installed:
    target, python = folder / "site", folder / "environment" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "environment")], check=True, timeout=60)
    (packages,) = (folder / "environment").glob("lib/python*/site-packages")
    # Python reads the .pth files of this folder alone: what is installed as editable in the other one stays unseen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(RECORDER)
    (folder / "home").mkdir()
    return Installed(python, target, folder / "home")


def write_users_folder(folder: Path, packages: bool) -> Path:
    """The user's modules and configurations; ``packages``: whether their folders have an ``__init__.py``."""
    files = dict(USERS_FILES)
    if packages:
        files |= {f"{name}/__init__.py": "" for name in ("stages", "flows", "configs")}
    rows = [{"question": f"{n} + 1 =", "answer": str(n + 1), "solution": str(n + 1)} for n in range(40)]
    files["task.jsonl"] = "\n".join(map(json.dumps, rows))
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
