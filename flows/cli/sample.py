"""Sampling from a checkpoint the way its run does. Imports torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.execution.inference import find_run, latest_checkpoint, sample_checkpoint
from gradus.pipeline.runs.run_folder import RUN_FILE
from gradus.stages import discover


def sample_like_its_run(
    path: Path, prompt: str, count: int, temperature: float | None, max_tokens: int | None, seed: int
) -> list[str]:
    """``count`` completions; what is not given is as in the run that the checkpoint lies in, if it lies in one.

    A run's folder stands for its latest checkpoint.
    """
    options = SamplingConfig()
    with contextlib.suppress(UserError):
        run = find_run(path, [stage.config for stage in discover().values()])
        options = run.config.sampling
        path = latest_checkpoint(run) if (path / RUN_FILE).is_file() else path
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = options.model_copy(update={key: value for key, value in given.items() if value is not None})
    return [printable(text) for text in sample_checkpoint(path, prompt, count, options, seed)]


def printable(text: str) -> str:
    r"""Text that cannot steer a terminal.

    >>> printable("7\x1b[2J\n")
    '7\\x1b[2J\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
