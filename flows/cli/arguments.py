"""What the commands share: their options, and how they load, check and speak."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of a packaged configuration such as quickstart.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override an option, such as stages.gfpo.steps=40; repeatable."),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the runs.")]
RUNS = Path("runs")
Engine = Annotated[
    Literal["prefect", "none"], typer.Option(help="Show the stages as a Prefect flow, or call them plainly.")
]
Run = Annotated[str, typer.Argument(metavar="NAME", help="A run; `gradus status` lists them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


def load(source: str, overrides: list[str] | None) -> tuple[Any, dict[str, Any]]:
    """A checked configuration, and the known stages by name."""
    from gradus.pipeline.config.loading import load_config
    from gradus.stages import discover

    found = discover()
    return load_config(source, overrides or [], [stage.config for stage in found.values()]), found


def check_world(loaded: Any, stages: dict[str, Any], runs: Path) -> None:
    """Everything that can be known before compute is spent."""
    from gradus.pipeline.execution.preflight import preflight

    preflight(loaded.config, loaded.base_dir, stages, runs, str(loaded.path))


def console() -> Any:
    """Standard output as rich sees it."""
    from rich.console import Console

    return Console()


def sayer(console: Any) -> Callable[[str], None]:
    """How to print a line as it is."""
    return functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
