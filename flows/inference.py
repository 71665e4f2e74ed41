"""Trying out what was trained: measure a checkpoint again, or sample from it the way its run does."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from gradus.flows.screen.status import checkpoint_or_run
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig, SamplingConfig
from gradus.pipeline.runs.run_folder import RUN_FILE


def evaluate(source: str, runs: Path) -> dict[str, Any]:
    """Held-out accuracy of a checkpoint's folder, or of the latest checkpoint of a run's folder or name.

    Raises: UserError.
    """
    from gradus.stages import discover

    path = checkpoint_or_run(source, runs)
    from gradus.pipeline.execution.inference import evaluate_checkpoint  # imports torch: the name is checked first

    return evaluate_checkpoint(path, [stage.config for stage in discover().values()])


def sample(
    source: str, prompt: str, count: int, temperature: float | None, max_tokens: int | None, seed: int, runs: Path
) -> list[str]:
    """``count`` completions of a prompt by a checkpoint, the latest checkpoint of a run, or a model of the Hub.

    Sampling options that are not given are those of the run that the checkpoint lies in, or the defaults where it lies
    in none, and the prompt gets the system turn of the run's task. Raises: UserError.
    """
    from gradus.stages import discover

    path, question = checkpoint_or_run(source, runs, hub=True), _typed(prompt)
    from gradus.pipeline.execution.inference import find_run, latest_checkpoint, sample_checkpoint

    options, run, system = SamplingConfig(), None, None
    with contextlib.suppress(UserError):  # a model of one's own, or of the Hub
        run = find_run(path, [stage.config for stage in discover().values()])
    if run is not None:
        options, system = run.config.sampling, run.config.stages[-1].system or _system_of(run.config)
        path = latest_checkpoint(run) if (path / RUN_FILE).is_file() else path
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = options.model_copy(update={key: value for key, value in given.items() if value is not None})
    return sample_checkpoint(path, question, count, options, seed, system)


def _system_of(config: PipelineConfig) -> str | None:
    """What the system turn says in the first of the tasks that the last stage trains on."""
    return next(config.named_tasks[name].system for name in config.shares(config.stages[-1]))


def _typed(prompt: str) -> str:
    """What was typed; Python gives bytes that the locale has no characters for as surrogates. Raises: UserError."""
    try:
        return prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UserError("the prompt is no Unicode text", got=prompt, fix="type it in UTF-8") from None
