"""A complete run of three stages, made once a session, that tests copy, stop, damage and fork by the command."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from command_line import TINY, Gradus, unchanged_environment
from paths import search_path

from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking import client
from gradus.pipeline.tracking.client import UploaderHandle
from gradus.stages import discover

GRADED = """\
evaluation: {reward: exact_answer}
rewards:
  - {reward: length, name: brevity, params: {max: 5, falloff: 15}} # one that a new policy earns in part
"""
GFPO = """\
  - stage: gfpo
    steps: 2
    prompts_per_step: 2
    group_size: 2
    ranking: [reward, shorter]
checkpoints: {every_steps: 1, keep: 9}
"""
CHAIN = TINY.replace("name: tiny", "name: chain").replace("rewards:\n", GRADED) + GFPO
CONFIGS = [stage.config for stage in discover().values()]
PATHED = {**os.environ, "PYTHONPATH": search_path()}
DONE = "done, 0.000 -> 0.000"
"""How a complete stage that learned nothing is listed."""


class Chain(Gradus):
    """The command in a folder with a three-stage configuration, its run called chain and without Prefect."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.config = folder / "chain.yaml"
        self.config.write_text(CHAIN)

    def tell(self, *arguments: str, code: int | None = 0) -> str:
        """What the command said, in the order of standard output, standard error; ``code`` None: it may end anyhow."""
        launching = arguments[0] in ("run", "resume") or (arguments[0] == "fork" and "--no-run" not in arguments)
        engine = ["--engine", "none"] if launching else []
        result = self(*arguments, "--runs", str(self.runs), *engine, code=code)
        self.code = result.exit_code
        return result.stdout + result.stderr

    def run(self, name: str = "chain") -> RunFolder:
        return RunFolder(self.runs / name, CONFIGS)

    def stop_after(self, index: int, step: int) -> None:
        """Make the run look as if it had been stopped after that step of that stage."""
        run = self.run()
        (run.path / "summary.json").unlink()
        (run.stage_dir(index) / "result.json").unlink()
        for later in range(index + 1, len(run.config.stages)):
            shutil.rmtree(run.stage_dir(later))
        for each, path in checkpoints_in(run.stage_dir(index)):
            if each > step:
                shutil.rmtree(path)

    def contents(self, name: str = "chain") -> list[str]:
        """Content hash of every stage's result."""
        run = self.run(name)
        return [(run.result(index) or {})["content"] for index in range(len(run.config.stages))]


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches in this process keep their curves for later: importing MLflow takes longer than training."""
    keep_curves(monkeypatch)


def keep_curves(patch: pytest.MonkeyPatch) -> None:
    """Start no uploader."""
    patch.setattr(client, "start_uploader", lambda path: UploaderHandle(path, None, ""))


@pytest.fixture(scope="session")
def trained_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the complete run; tests change copies of it alone."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    with pytest.MonkeyPatch.context() as patch, unchanged_environment():
        keep_curves(patch)
        chain.tell("run", str(chain.config))
    return chain.folder


@pytest.fixture
def chain(trained_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A complete run called chain, in a folder of its own that is the current one."""
    shutil.copytree(trained_chain / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Chain(tmp_path)


def flip(file: Path) -> None:
    """Damage one bit in the middle of a file."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def table(text: str) -> list[list[str]]:
    """A printed table's cells."""
    lines = text.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("stage "))
    block = lines[begin + 1 : lines.index("", begin)] if "" in lines[begin:] else lines[begin + 1 :]
    return [re.split(r"  +", line) for line in block]
