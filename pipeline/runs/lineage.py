"""What the stages of a run are made from, by its records. Reads small files only; no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from gradus.pipeline.common.sources import MODEL_FILES, content_of
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.runs.run_records import RunRecords

Beside = dict[str, str | None]
"""label -> content, of the results that a stage's own depends on beside its parent, None where there is none; and
folder -> content, of the models from elsewhere."""


def parent_of(run: RunRecords, index: int) -> dict[str, Any] | None:
    """The success record of the stage that a stage starts from, or the record of the policy before any stage."""
    place = graph.parent(run.config.stages, index)
    return run.start() if place is None else run.result(place)


def beside(run: RunRecords, index: int) -> Beside:
    """The other results that a stage's own depends on, and the models from elsewhere that are there.

    What its parent was made from is not among them: the parent's content vouches for it.
    """
    files = {name: content_of(Path(name), MODEL_FILES) for name in graph.elsewhere(run.config.stages, index)}
    return _results_beside(run, index) | {name: content for name, content in files.items() if content}


def _results_beside(run: RunRecords, index: int) -> Beside:
    stages = run.config.stages
    return {stages[place].label: (run.result(place) or {}).get("content") for place in graph.beside(stages, index)}


def made_otherwise(run: RunRecords, index: int, result: dict[str, Any]) -> str:
    """Whether a stage's result comes from other results than there are now, in a few words; empty where it does not."""
    parent = parent_of(run, index)
    if parent is None or result["parent"] != parent["content"]:
        place = graph.parent(run.config.stages, index)
        what = "the policy before any stage" if place is None else run.config.stages[place].label
        before = "the stage before it" if place is not None and place == index - 1 else what
        return f"{before} has another result now"
    # A model from elsewhere is no reason: like the policy that a run starts from, it was read when it was needed.
    known = result.get("inputs", {})
    changed = [label for label, now in _results_beside(run, index).items() if known.get(label) != now]
    return f"{changed[0]} has another result now" if changed else ""


def needs_start(run: RunRecords) -> bool:
    """Whether a stage that is not done reads the policy before any stage."""
    return any(run.result(each) is None for each in graph.starts(run.config.stages))


def needs_checkpoint(run: RunRecords, index: int, again: Collection[int] = ()) -> bool:
    """Whether the checkpoint that a stage hands over is still read: by a stage that is not done, or is among those to
    do ``again``. At an end of the graph it always is, by people."""
    later = graph.readers(run.config.stages, index)
    return not later or any(each in again or run.result(each) is None for each in later)
