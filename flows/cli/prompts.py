"""The command that shows what a run remembers of its prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradus.flows.cli.arguments import RUNS, AsJson, Run, Runs
from gradus.flows.screen.text import console, print_json, say
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.shown import shown_path


def prompts(
    name: Run,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="Only this stage.")] = None,
    to: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write every group as a row of a Parquet file.")
    ] = None,
    as_json: AsJson = False,
    runs: Runs = RUNS,
) -> None:
    """Show how often each prompt was solved: pass rates, the hardest and the easiest, what moved between stages."""
    from gradus.flows.open_run import existing_run
    from gradus.flows.screen.prompts import print_prompts
    from gradus.pipeline.runs.prompts_seen import export, prompts_seen

    run = existing_run(runs, name)
    found = prompts_seen(run, stage)
    print_json(found) if as_json else print_prompts(found, console())
    if to is not None:
        try:
            written = export(run, stage, to)
        except OSError as error:
            raise UserError(
                "the file cannot be written", where=f"--export {to}", got=error.strerror or str(error),
                fix="name a file in a folder that exists and that you may write to",
            ) from None  # fmt: skip
        if not as_json:
            say(f"{written:,} groups are in {shown_path(to)}")
