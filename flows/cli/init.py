"""``gradus init``: a first configuration, guessed from a model and the first rows of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradus.flows.screen.errors import quiet_libraries
from gradus.flows.screen.text import say
from gradus.pipeline.common.shown import gradus_command, shown_path


def init(
    target: Annotated[
        Path | None, typer.Argument(metavar="[NEW.yaml]", help="The file to write; default: the data's name.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH|ID", help="A model's folder or Hub id; default: a small new model.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH|ID", help="A file, a folder, a pattern, or a Hub id of prompts.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="reasoning_gym:NAME", help="Generated problems, in place of --data.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="[COUNTx]NAME[:MEMORY]", help="What it must fit; default: this machine.")
    ] = None,
) -> None:
    """Look at a model and the first rows of data, and write a commented configuration; every guess is told."""
    from gradus.flows.init import propose, write
    from gradus.flows.init.propose import check_target
    from gradus.pipeline.estimates.hardware import parse_hardware
    from gradus.stages import discover

    quiet_libraries()
    machine, stages = parse_hardware(hardware) if hardware is not None else None, discover()
    if target is not None:
        check_target(target)
    proposal = propose(model, data, task, target, machine, stages)
    if target is None:
        target = Path(f"{proposal.data['name']}.yaml")
        check_target(target)
    for line in proposal.guesses.lines():
        say(line)
    options = {"--model": model, "--data": data, "--task": task, "--hardware": hardware}
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    for line in write(proposal, target, gradus_command("init", target.name, *words), stages):
        say(line)
    say(f"written, and checked: {shown_path(target)}")
    shown = gradus_command("check", shown_path(target), "--show-prompt")
    say(f"look at it, then `{shown}` and `{gradus_command('run', shown_path(target))}`" if proposal.runnable
        else "before it can train, put a reward of your own in the place of `length` (docs/rewards.md)")  # fmt: skip
