"""The command that compares training methods from one starting point on one budget."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gradus.flows.cli.arguments import RUNS, Config, EngineOption, Overrides, Runs
from gradus.flows.open_run import check_world, load
from gradus.flows.screen.errors import quiet_libraries
from gradus.flows.screen.text import console
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.config import PipelineConfig

ARMS = "dapo,vapo,gfpo,srpo,staged"


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
    from gradus.flows.compare.measures import read_external
    from gradus.flows.compare.plan.arms import make_plan
    from gradus.flows.compare.plan.budget import Budget
    from gradus.flows.compare.plan.schedule import Tuning
    from gradus.flows.compare.run import launch as comparisons
    from gradus.flows.compare.run.ray import Cluster
    from gradus.flows.open_run import check_name
    from gradus.flows.orchestrator.access import check_prefect
    from gradus.pipeline.common.process import usable_cores

    quiet_libraries()
    loaded, stages = load(config, overrides)
    wanted = parse_seeds(seeds)
    plan = make_plan(loaded, stages, arms, Budget.parse(budget) if budget else None, set_arm or [], runs)
    tuning = Tuning.parse(tune, tune_seed, wanted) if tune else None
    folder_name = name or f"{loaded.config.name}-compare"
    check_name(folder_name)
    foreign = read_external([file.absolute() for file in external or ()])
    check_world(loaded, stages, runs)
    check_prefect(engine)
    threads = loaded.config.policy.threads or 1
    at_once = runs_at_once(loaded.config, parallel, usable_cores() // threads)
    gpus = int((loaded.config.policy.device or "").startswith("cuda"))
    cluster = Cluster.parse(workers, engine, threads, gpus, at_once) if workers else None
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    comparison = comparisons.open_comparison(runs, folder_name, plan, wanted, tuning, threads)
    failed = comparisons.launch(comparison, foreign, at_once, engine, console(), ["gradus", *sys.argv[1:]], cluster)
    if failed:
        raise StageFailed(f"{failed} of {len(comparison.jobs)} runs failed; the same command tries them again")


def runs_at_once(config: PipelineConfig, asked: int | None, room: int) -> int:
    """How many runs train at a time: as many as asked for, or as there is ``room`` for; one on a vLLM server, which
    holds one policy's weights. Raises: UserError where more are asked for there.
    """
    if config.rollouts.engine != "vllm-server":
        return asked or max(1, room)
    if asked is not None and asked > 1:
        raise UserError(
            "a vLLM server completes the prompts of one run at a time",
            where="--parallel",
            got=asked,
            expected="1 with rollouts.engine vllm-server",
            fix="leave it out, or set rollouts.engine to transformers or vllm",
        )
    return 1


def parse_seeds(text: str) -> list[int]:
    """``3`` is 0, 1, 2; ``4,5,6`` are these. Raises: UserError.

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
