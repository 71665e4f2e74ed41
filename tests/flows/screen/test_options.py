"""The tables of options: what they print is what the option classes say."""

from __future__ import annotations

import io

from rich.console import Console

from gradus.flows.screen.options import describe_options, print_options
from gradus.pipeline.config import StageConfig


def test_brackets_in_types_and_descriptions_are_printed() -> None:
    """Rich would take them for markup and leave them out."""
    output = io.StringIO()
    print_options([], describe_options(StageConfig), Console(file=output, width=400))
    lines = {line.split()[0]: line for line in output.getvalue().splitlines()[1:]}
    assert "[number, number] or null" in lines["clip"] and "[low, high]: " in lines["clip"]
    assert "[number, number]" in lines["betas"]
