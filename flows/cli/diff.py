"""The command that lays two runs, or two of their states, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradus.flows.cli.arguments import RUNS, AsJson, Runs
from gradus.flows.screen.text import console, print_json, say
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.shown import shown_path

SHOWN, ON_PAGE = 5, 500
"""Prompts each way that are shown, in the terminal and on a page, where nothing else is asked for."""
STATE = "A run, RUN:STAGE for its state after a stage, RUN:start, or a checkpoint's folder."


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=STATE)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one; of the same run, too.")],
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"Prompts shown each way; default: {SHOWN}, {ON_PAGE} on a page, all with --json."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write it as a page.")] = None,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Show what differs between two runs or stages: options, accuracies, and the prompts that only one answers."""
    from gradus.flows.diff.diff import diff
    from gradus.flows.diff.screen import print_diff
    from gradus.flows.diff.states import find_state
    from gradus.stages import discover

    configs = [stage.config for stage in discover().values()]
    one, two = find_state(a, runs, configs), find_state(b, runs, configs)
    if as_json:
        print_json(diff(one, two, limit))
    else:
        print_diff(diff(one, two, SHOWN if limit is None else limit), console())
    if to is not None:
        from gradus.flows.diff.page import as_page
        from gradus.pipeline.common.files import write_text

        content = as_page(diff(one, two, ON_PAGE if limit is None else limit))
        try:
            write_text(to, content)
        except OSError as error:
            raise UserError(
                "the page cannot be written", where=f"--html {to}", got=error.strerror or str(error),
                fix="name a file in a folder that you may write to",
            ) from None  # fmt: skip
        if not as_json:
            say(f"the page is {shown_path(to)}")
