"""The command that shows groups of completions that a stage sampled."""

from __future__ import annotations

from typing import Annotated

import typer

from gradus.flows.cli.arguments import RUNS, AsJson, Run, Runs
from gradus.flows.screen.text import console, print_json


def rollouts(
    name: Run,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="Default: the last stage that has some.")] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Default: the last one that was kept.")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this prompt, or those whose ids begin so, of every step.")
    ] = None,
    best: Annotated[int, typer.Option(min=0, metavar="N", help="The N groups with the highest mean rewards.")] = 0,
    worst: Annotated[int, typer.Option(min=0, metavar="N", help="The N groups with the lowest mean rewards.")] = 0,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Show what a stage sampled: prompts, completions, rewards, weights, ranks, and where the reasoning broke."""
    from gradus.flows.open_run import existing_run
    from gradus.flows.screen.rollouts import print_rollouts
    from gradus.pipeline.runs.sampled.read import sampled_groups
    from gradus.stages import discover

    found = sampled_groups(existing_run(runs, name), discover(), stage, step, prompt, best, worst)
    print_json(found) if as_json else print_rollouts(found, console())
