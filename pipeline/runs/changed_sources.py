"""Whether the sources that a run has copies of, its data file and its model's folder, have changed since."""

from __future__ import annotations

from pathlib import Path

from gradus.pipeline.common.sources import MODEL_FILES, Seen, altered_since, look_at
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tasks.several.build import all_sources

SHOWN = 3
"""How many files of a folder a line names."""


def policy_seen(config: PipelineConfig, base_dir: Path) -> dict[str, Seen]:
    """What the policy before any stage is made from, for ``start.json``; empty where it is new, or from the Hub."""
    return {} if config.policy.path is None else {"policy.path": look_at(base_dir / config.policy.path, MODEL_FILES)}


def changed_sources(run: RunFolder) -> list[str]:
    """A line for each source that has other content now than when it was read, by this run or the one it came from.

    A run goes on with what was read. That a source is gone is no change, because nothing needs it any more.
    """
    known: dict[str, Seen] = {**run.data().get("sources", {}), **(run.start() or {}).get("sources", {})}
    paths = all_sources(run.config.named_tasks, run.base_dir)
    found = {key: altered_since(path, known[key]) for key, path in paths.items() if key in known}
    if (seen := known.get("policy.path")) is not None:
        paths["policy.path"] = run.base_dir / (run.config.policy.path or "")
        found["policy.path"] = altered_since(paths["policy.path"], seen, MODEL_FILES)
    return [_line(key, paths[key], altered) for key, altered in found.items() if altered]


def _line(key: str, path: Path, altered: list[str]) -> str:
    more = f" and {len(altered) - SHOWN} more" if len(altered) > SHOWN else ""
    files = f" ({', '.join(altered[:SHOWN])}{more})" if path.is_dir() else ""
    return (
        f"{key}: {path} has changed since it was read{files}; the run keeps the copy of that time, "
        "and a run under a new name takes what is there now"
    )
