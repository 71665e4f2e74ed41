"""The arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Config = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged configuration such as quickstart."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override an option, such as stages.gfpo.steps=40; repeatable."),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the runs.")]
RUNS = Path("runs")
EngineOption = Annotated[
    Literal["prefect", "none"], typer.Option(help="Show the stages as a Prefect flow, or call them plainly.")
]
Tiny = Annotated[
    bool,
    typer.Option("--tiny", help="Swap model, data and numbers for toy ones: every stage, in a minute or two on a CPU."),
]
Run = Annotated[str, typer.Argument(metavar="NAME", help="A run; `gradus status` lists them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
