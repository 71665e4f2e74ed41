"""``gradus compare``: methods compared from one starting point on one budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gradus.flows.cli.arguments import RUNS, Config, EngineOption, Overrides, Runs
from gradus.flows.compare.run.request import ARMS, ComparisonRequest, run_comparison
from gradus.flows.screen.errors import quiet_libraries
from gradus.flows.screen.text import console
from gradus.pipeline.common.errors import UserError


def compare(
    config: Config,
    arms: Annotated[
        str,
        typer.Option(
            help="What to compare, with commas: `staged` (the configuration's own chain), an algorithm, another "
            "configuration or run, each also as LABEL=WHAT."
        ),
    ] = ARMS,
    seeds: Annotated[str, typer.Option(help="How many, 0 and on, or which ones: 3, or 4,5,6.")] = "3",
    budget: Annotated[
        str | None,
        typer.Option(help="What each arm spends: 40000 (rollouts), 1e6tokens or 600s. Default: what the chain spends."),
    ] = None,
    set_arm: Annotated[
        list[str] | None,
        typer.Option("--set-arm", metavar="ARM.KEY=VALUE", help="An option of one arm, or of `all`; repeatable."),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(metavar="KEY=V1,V2", help="Give each arm the best of these values, found on another seed."),
    ] = None,
    tune_seed: Annotated[int, typer.Option(help="The seed that is tuned on; it is not reported.")] = 1000,
    external: Annotated[
        list[Path] | None,
        typer.Option(help="Results of another system as further arms (benchmarks/trl_arm.py writes them); repeatable."),
    ] = None,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Default: the configuration's name with -compare.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, max=64, help="Runs at a time; default: as many as there are cores for.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="ray[://ADDRESS]", help="Train on a Ray cluster: this machine's, auto, or HOST:PORT."),
    ] = None,
    runs: Runs = RUNS,
    engine: EngineOption = "prefect",
) -> None:
    """Compare algorithms and chains from the same checkpoint, on the same budget, over several seeds."""
    quiet_libraries()
    request = ComparisonRequest(
        arms,
        parse_seeds(seeds),
        budget,
        set_arm or (),
        tune,
        tune_seed,
        external or (),
        name,
        parallel,
        workers,
    )
    run_comparison(config, overrides, request, runs, engine, console(), ["gradus", *sys.argv[1:]])


def parse_seeds(text: str) -> list[int]:
    """The seeds that ``3`` (0, 1 and 2) or a list such as ``4,5,6`` stands for. Raises: UserError.

    >>> parse_seeds("3"), parse_seeds("7,9")
    ([0, 1, 2], [7, 9])
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts) or parts == ["0"]:
        raise UserError("these are no seeds", where="--seeds", got=text, expected="their number or a list: 3 or 4,5")
    numbers = [int(part) for part in parts]
    seeds = numbers if len(numbers) > 1 or text.strip().endswith(",") else list(range(numbers[0]))
    if len(set(seeds)) < len(seeds):
        raise UserError("a seed is given twice", where="--seeds", got=text)
    return seeds
