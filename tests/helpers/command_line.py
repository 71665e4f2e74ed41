"""The command ``gradus``, in this process and in one of its own, in a folder with a tiny configuration."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import search_path
from typer.testing import CliRunner, Result

from gradus.flows.cli import app

TINY = """\
name: tiny
policy:
  architecture: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,
                 num_attention_heads: 2, num_key_value_heads: 2}
  tokenizer: {vocabulary: 300}
task:
  source: reasoning_gym
  dataset: chain_sum
  params: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}
  size: 150
  heldout: 20
  demonstrations: solver
sampling: {max_tokens: 16}
rewards:
  - reward: exact_answer
stages:
  - stage: sft
    steps: 4
    prompts_per_step: 8
  - stage: dapo
    steps: 2
    prompts_per_step: 2
    group_size: 2
"""


class Gradus:
    """The command in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.config, self.runs = folder, folder / "tiny.yaml", folder / "runs"
        self.config.write_text(TINY)

    def __call__(self, *arguments: str, code: int | None = 0) -> Result:
        result = CliRunner().invoke(app.app, list(arguments), catch_exceptions=False)
        assert code in (None, result.exit_code), result.output + result.stderr
        assert "Traceback" not in result.output + result.stderr
        return result

    def process(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """The same, as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "gradus", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": search_path(), "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finished(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a process."""
        process = self.process(*arguments, **environment)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors


@contextlib.contextmanager
def unchanged_environment() -> Iterator[None]:
    """Undo what this block does to the environment: a command changes its process's, and tests share one process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def quiet_process() -> Iterator[None]:
    """What the commands of a module's tests do to the environment ends with the module."""
    with unchanged_environment():
        yield


@pytest.fixture
def gradus(tmp_path: Path) -> Gradus:
    return Gradus(tmp_path)
