"""The commands that list what a configuration can name: stages and rewards, and where each comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from gradus.flows.cli.arguments import AsJson
from gradus.flows.screen.text import console, print_json, say


def stages(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE]...", help="Show these only; one of your own is package.module:STAGE."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the stages, where each comes from, and their options."""
    from gradus.flows.screen.options import describe_options, describe_stage, print_options
    from gradus.pipeline.config import StageConfig
    from gradus.pipeline.config.graph.merge import LISTED
    from gradus.stages import PACKAGE, listing

    common, asked = describe_options(StageConfig), [name for name in names or () if name != LISTED.name]
    found = [
        describe_stage(each.name, each.origin, each.stage, each.problem, StageConfig)
        for each in (listing(asked) if asked or not names else ())
    ]
    if not names or len(asked) < len(names):
        found.append(describe_stage(LISTED.name, PACKAGE, LISTED, "", StageConfig))
    if as_json:
        print_json({"stages": found, "common_options": common})
    else:
        print_options(found, common, console())


def rewards(as_json: AsJson = False) -> None:
    """List the rewards, where each comes from, and their range and options."""
    from gradus.pipeline.rewards import describe

    rows = describe()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        options = f"\n    options: {row['options']}" if row["options"] else ""
        say(f"{row['name']}  {row['range']}\n    {row['summary']}{options}\n    from: {row['from']}")
