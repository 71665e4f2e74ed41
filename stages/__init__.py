"""One file an algorithm. A module in this package that defines ``STAGE`` is a stage; nothing else needs to know it."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from gradus.pipeline.stage import Stage


@functools.cache
def discover() -> dict[str, Stage]:
    """Every stage in this package by its name."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [module.STAGE for module in modules if hasattr(module, "STAGE")]
    return {stage.name: stage for stage in sorted(found, key=lambda stage: stage.name)}
