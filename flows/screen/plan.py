"""What a launch would do, as plain data, and the alternatives if it would be refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.locks import UNKNOWN_HOLDER
from gradus.pipeline.common.shown import gradus_command, runs_option, shown_path
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs.changed_sources import changed_sources
from gradus.pipeline.runs.fork import fork_points
from gradus.pipeline.runs.plan import plan
from gradus.pipeline.runs.run_folder import RunFolder

KEYS_AND_VALUES = ["--set", "KEY=VALUE"]


def describe(
    run: RunFolder | None, config: PipelineConfig, runs_dir: Path, name: str, asked: Sequence[str], fresh: str = ""
) -> dict[str, Any]:
    """The plan of launching ``config`` as the run ``name``, as plain data.

    ``asked`` are the words of the command without ``--name`` (``gradus run CONFIG ...``), empty if no configuration was
    given; ``fresh`` is the name that this command would choose for a new run, if it is another one.
    """
    where = runs_option(runs_dir)
    stages = [asdict(stage) for stage in plan(run, config)]
    planned: dict[str, Any] = {"run": name, "exists": run is not None, "refused": False, "stages": stages}
    planned |= {"changes": [], "runtime": [], "notes": [], "ways_on": [], "fresh": fresh}
    launching = shlex.join(asked) + where
    if run is None:
        planned["notes"] = [f"`{launching}` begins this new run, {name}."]
        return planned
    planned |= {"changes": drift_lines(run, config, stages), "runtime": runtime_changes(run, config)}
    named = f"{shlex.join([*asked[:3], '--name', name, *asked[3:]])}{where}"
    if planned["changes"] and identity(run.config) != identity(config):
        refusal = f"`{named}` refuses this: " if asked else "A run's configuration stays as it is: "
        planned["notes"].append(f"{refusal}{name} was begun with another configuration. What you can do:")
        planned |= {"refused": True, "ways_on": alternatives(run, config, runs_dir, asked)}
    elif (holder := run.holder()) is not None:
        at = "process {pid} on {host}, since {since}".format(**UNKNOWN_HOLDER | holder)
        planned["notes"].append(f"{name} is running ({at}); this is what a launch would do if that process ended now.")
        for stage in (each for each in stages if each["action"] == "resume"):
            stage["why"] = f"running; its newest checkpoint is that of step {stage['step']}"
    elif run.summary() is not None and all(stage["action"] == "reuse" for stage in stages):
        planned["notes"].append(f"{name} is complete: nothing is left to do.")
    elif planned["runtime"]:
        planned["notes"].append(f"`{named}` does this, with {'; '.join(planned['runtime'])}.")
    else:
        planned["notes"].append(f"`{gradus_command('resume', name, runs=runs_dir)}` does this.")
    planned["notes"][:0] = changed_sources(run)
    if fresh:
        text = f"`{launching}` without --name begins a new run, {fresh}."
        place = len(planned["notes"]) - 1 if planned["ways_on"] else len(planned["notes"])
        planned["notes"].insert(place, text)
    return planned


def drift_lines(run: RunFolder, config: PipelineConfig, stages: Sequence[dict[str, Any]]) -> list[str]:
    """All differences between the configuration asked for and the run; stages are named by their labels."""
    asked = [change.removeprefix("stages.") for change in differences(identity(run.config), identity(config))]
    found = [change for stage in stages for change in stage["changes"]]
    return list(dict.fromkeys([*asked, *found]))


def runtime_changes(run: RunFolder, config: PipelineConfig) -> list[str]:
    """Changed options that only decide how to compute; a run adopts them."""
    changed = differences(identity(run.config), identity(config))
    everything = differences(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
    return [change for change in everything if change not in changed]


def refuse_drift(run: RunFolder, config: PipelineConfig, file: Path) -> None:
    """A run continues only with its own configuration, and not with that of ``file`` where it differs.

    Raises: UserError with every difference and the alternatives.
    """
    changed = differences(identity(run.config), identity(config))
    if not changed:
        return
    ways = alternatives(run, config, run.path.parent, ["gradus", "run", shown_path(file)])
    raise UserError(
        f"the run {run.name!r} was begun with another configuration",
        where=shown_path(run.path / "config.yaml"),
        got="\n            ".join(changed),
        expected="the configuration that the run was begun with",
        fix="\n            ".join(f"`{way['command']}`: {way['what']}" for way in ways),
    )


def alternatives(run: RunFolder, config: PipelineConfig, runs_dir: Path, asked: Sequence[str]) -> list[dict[str, str]]:
    """Commands, and what each would do, if a run has another configuration than the one asked for."""
    where, ways = runs_option(runs_dir), []
    if run.summary() is None:
        unchanged = "continues with its own configuration"
        ways.append({"command": gradus_command("resume", run.name, runs=runs_dir), "what": unchanged})
    index = _first_changed(run, config)
    if index is not None and (points := [place for place in fork_points(run) if place <= index]):
        label = run.config.stages[points[-1]].label
        shares = f"shares what is done before {label}" if points[-1] else "shares the data and the start"
        command = gradus_command("fork", run.name, "--from", label, *_overrides(run, config), runs=runs_dir)
        ways.append({"command": command, "what": f"a new run that {shares}"})
    if len(ways) < 2:
        command = f"{shlex.join(asked or ['gradus', 'run', 'CONFIG'])}{where}"
        ways.append({"command": command, "what": "a new run that shares nothing"})
    return ways


def _first_changed(run: RunFolder, config: PipelineConfig) -> int | None:
    """The first stage that a fork with this configuration would train; None if no fork can have it."""
    old, new = identity(run.config), identity(config)
    if any(old[name] != new[name] for name in ("policy", "task")):
        return None
    if any(old[name] != new[name] for name in old if name != "stages"):
        index = 0
    else:
        pairs = list(zip(old["stages"], new["stages"], strict=False))
        index = next((place for place, (one, two) in enumerate(pairs) if one != two), len(pairs))
    labels = [[stage.label for stage in each.stages[index : index + 1]] for each in (run.config, config)]
    same_place = labels[0] == labels[1] != []
    return index if same_place else index - 1 if index else None


def _overrides(run: RunFolder, config: PipelineConfig) -> list[str]:
    """The changes as ``--set`` options; a placeholder if one of them cannot be written as an option."""
    options = []
    for change in differences(identity(run.config), identity(config)):
        key, _, values = change.partition(": ")
        value = values.partition(" -> ")[2]
        if change.endswith("...") or " -> " in value or (key.count(".") < 2 and key.startswith("stages.")):
            return KEYS_AND_VALUES
        plain = re.fullmatch(r'"([A-Za-z][\w./-]*)"', value)
        if plain and plain[1].lower() not in ("true", "false", "null", "yes", "no", "on", "off"):
            value = plain[1]
        options += ["--set", f"{key}={value}"]
    return options
