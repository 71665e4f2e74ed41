"""Staged post-training for language models, from Python: the functions that the command line calls, and their results.

Gives: the names in ``__all__``. Each is imported when it is first used, so that ``import gradus`` itself costs nothing.
Must not know: nothing is above it; everything else is below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Evaluation",
    "Needs",
    "PipelineConfig",
    "Run",
    "RunInterrupted",
    "Signals",
    "Stage",
    "StageConfig",
    "StageFailed",
    "StageResult",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "fork",
    "load_config",
    "load_run",
    "resume",
    "run",
    "sample",
]

if TYPE_CHECKING:
    from gradus.api import compare, evaluate, fork, load_config, load_run, resume, run, sample
    from gradus.pipeline.common.errors import StageFailed, UserError
    from gradus.pipeline.config import PipelineConfig, StageConfig
    from gradus.pipeline.stage import Needs, Signals, Stage
    from gradus.results import Comparison, Evaluation, Run, RunInterrupted, StageResult

_HOMES = {
    "gradus.api": ("compare", "evaluate", "fork", "load_config", "load_run", "resume", "run", "sample"),
    "gradus.pipeline.common.errors": ("StageFailed", "UserError"),
    "gradus.pipeline.config": ("PipelineConfig", "StageConfig"),
    "gradus.pipeline.stage": ("Needs", "Signals", "Stage"),
    "gradus.results": ("Comparison", "Evaluation", "Run", "RunInterrupted", "StageResult"),
}
"""The module that each public name is imported from."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'gradus' has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
