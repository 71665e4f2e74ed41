"""The state of runs, plans and verifications, as tables and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gradus.flows.screen.text import Lines, count, duration, ended_by, interval_text, number, print_table, size_text
from gradus.pipeline.common.shown import shown_path
from gradus.pipeline.config.graph.picture import Entry, tree
from gradus.pipeline.runs.task_accuracies import SURE, shown_accuracy
from gradus.pipeline.runs.verify import Finding

RIGHT = ("steps", "step", "rollouts", "tokens", "time", "size")
"""Columns of numbers, which are aligned to the right."""


def print_stages(stages: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a row for each stage, from the entries of a run's summary; missing values stay empty."""
    rows = []
    for stage in stages:
        change = f"{number(stage.get('accuracy_before'))} -> {number(stage.get('accuracy_after'))}"
        numbers = [count(stage.get("rollouts")), count(stage.get("tokens")), duration(stage.get("seconds"))]
        state = str(stage.get("state", "")).partition(":")[0]  # why a stage failed is shown above the table
        what = f"{state} at step {stage['step']}" if "step" in stage else state or change
        interval = interval_text(stage.get("interval"))
        origin = ", ".join(stage.get("from", ()))
        rows.append([stage["name"], origin, count(stage.get("steps")), what, interval, *numbers, ended_by(stage)])
    header = ["stage", "from", "steps", "accuracy", "95 % interval", "rollouts", "tokens", "time", "ended by"]
    _print_filled(console, header, rows, ("from", "ended by"))
    for stage in stages:
        for event in stage.get("events", ()):
            Lines(console).say(f"{stage['name']}, step {event['step']}: {event['reason']}")


def _print_filled(console: Console, header: list[str], rows: list[list[str]], optional: Sequence[str]) -> None:
    """Print a table without those optional columns that are empty."""
    kept = [place for place, name in enumerate(header) if name not in optional or any(row[place] for row in rows)]
    print_table(console, [header[place] for place in kept], [[row[place] for place in kept] for row in rows], RIGHT)


def print_graph(graph: Sequence[Entry], console: Console) -> None:
    """Print the graph of stages as a tree; nothing where they are a chain."""
    for line in tree(graph):
        Lines(console).say(line)
    if graph:
        Lines(console).say("")


def print_tasks(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the accuracy on each task after each stage, from a run's matrix; nothing where there is one task."""
    if not rows:
        return
    names = list(rows[-1]["tasks"])
    table = [[row["after"], *(shown_accuracy(row, name, row["trained"]) for name in names)] for row in rows]
    say = Lines(console).say
    say("")
    print_table(console, ["accuracy after", *names], table, names)
    marks = "* trained there" + (f"; fell: significantly, p < {SURE:g} for the stage" if "fell" in str(table) else "")
    say(f"({marks})")


def print_runs(runs: Sequence[Mapping[str, Any]], console: Console, folder: Path) -> None:
    """Print a row for each run in the folder: finished stages, accuracy at the start and now, origin, state."""
    if not runs:
        Lines(console).say(f"There are no runs in {folder.absolute()}; `gradus run quickstart` makes one.")
        return
    rows = []
    for run in runs:
        change = f"{number(run['accuracy_start'])} -> {number(run['accuracy_end'])}" if run["total"] else ""
        created = str(run["created"])[:16].replace("T", " ")
        stages = f"{run['done']}/{run['total']}" if run["total"] else ""
        rows.append([run["name"], stages, change, created, origin_text(run), state_text(run)])
    header = ["run", "stages", "accuracy", "started", "origin", "state"]
    if not any(row[4] for row in rows):
        header, rows = [*header[:4], "state"], [[*row[:4], row[5]] for row in rows]
    print_table(console, header, rows, RIGHT)


def state_text(run: Mapping[str, Any]) -> str:
    """The state of a run and its position.

    >>> state_text({"state": "stopped", "stage": "gfpo", "step": 40, "steps": 120, "done": 2, "total": 4})
    'stopped at gfpo step 40/120'
    """
    state, stage, step = run["state"], run.get("stage"), run.get("step")
    if state not in ("running", "stopped"):
        return state
    at_work = [each for each in run.get("stages", ()) if each.get("state") == "running"]
    if len(at_work) > 1:
        return "running: " + ", ".join(f"{each['name']} step {each['step']}/{each['steps']}" for each in at_work)
    if step is not None:
        return f"{'running:' if state == 'running' else 'stopped at'} {stage} step {step}/{run['steps']}"
    if stage is None:
        return f"{state} before its summary" if run["total"] else state
    return f"{state} before {stage if run['done'] else 'the first stage'}"


def origin_text(run: Mapping[str, Any]) -> str:
    """The origin of a fork, such as ``fork of quickstart before gfpo``; empty for other runs."""
    origin = run.get("fork")
    return f"fork of {origin['run']} before {origin['stage']}" if origin else ""


def print_run(run: Mapping[str, Any], console: Console) -> None:
    """Print one run: its state, its origin, its stages, its checkpoints."""
    say = Lines(console).say
    done = f"({run['done']} of {run['total']} stages) " if run["total"] else ""
    say(f"{run['name']}: {state_text(run)} {done}in {shown_path(run['path'])}")
    if origin := run.get("fork"):
        say(origin_text(run) + (", which changes" if origin["changes"] else ", which changes nothing"))
        for change in origin["changes"]:
            say(f"  {change}")
    if forks := run.get("forks"):
        say("forked into " + ", ".join("{run} (before {stage})".format(**fork) for fork in forks))
    if not run["stages"]:
        return
    say("")
    print_graph([(each["name"], each["from"]) for each in run["stages"] if "from" in each], console)
    print_stages(run["stages"], console)
    print_tasks(run.get("tasks", ()), console)
    folders = run.get("folders", ())
    if any(folder["checkpoints"] or folder["attempts"] for folder in folders):
        say("\nCheckpoints, each a normal Hugging Face folder:")
    for folder in folders:
        _print_checkpoints(folder, say)


def _print_checkpoints(folder: Mapping[str, Any], say: Any) -> None:
    """Print a stage's checkpoints, newest first, and its attempts that were set aside."""
    shared = f" (shared with {folder['shared']})" if folder["shared"] else ""
    for place, checkpoint in enumerate(folder["checkpoints"]):
        name = f"{folder['stage']}:" if place == 0 else " " * (len(folder["stage"]) + 1)
        mark = " (handed over)" if checkpoint["handed_over"] and len(folder["checkpoints"]) > 1 else shared
        say(f"  {name} {shown_path(checkpoint['path'])}{mark}")
    for attempt in folder["attempts"]:
        say(f"  {folder['stage']}, set aside: {shown_path(attempt)}/")


def print_plan(planned: Mapping[str, Any], console: Console) -> None:
    """Print the plan of a launch: the stages, what has changed, and what commands would do about it."""
    say = Lines(console).say
    print_graph([(each["label"], each["origins"]) for each in planned["stages"] if each["origins"]], console)
    print_stage_plans(planned["stages"], console)
    if planned["changes"]:
        say("\nThe configuration differs from the one that the run was begun with:")
    for line in planned["changes"]:
        say(f"  {line}")
    for line in planned["notes"]:
        say(f"\n{line}")
    print_commands(planned["ways_on"], console)


def print_commands(ways: Sequence[Mapping[str, str]], console: Console) -> None:
    """Print commands, each with what it does."""
    width = max((len(way["command"]) for way in ways), default=0)
    for way in ways:
        Lines(console).say(f"  {way['command'].ljust(width)}  {way['what']}")


def print_stage_plans(stages: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print what a launch does about each stage and why, then the stages whose code has changed."""
    words = {"reuse": "reuse", "run": "run"}
    rows = []
    for s in stages:
        what = words.get(s["action"], f"resume at step {s['step']}")
        rows.append([s["label"], ", ".join(s["origins"]), str(s["steps"]), what, s["why"]])
    _print_filled(console, ["stage", "from", "steps", "what", "why"], rows, ("from",))
    for stage in stages:
        if stage["code"]:
            changed = ", ".join(change.partition(": ")[0] for change in stage["code"])
            text = f"{stage['label']} was begun with other code ({changed}); what is done is kept"
            console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_findings(name: str, findings: Sequence[Finding], running: bool, console: Console) -> None:
    """Print what was verified, and what to do about it."""
    say = Lines(console).say
    rows = []
    for finding in findings:
        state = finding.damage or (f"left over: {finding.path.name}" if finding.leftover else "ok")
        rows.append([finding.what, "" if finding.step is None else str(finding.step), size_text(finding.bytes), state])
    print_table(console, ["what", "step", "size", "state"], rows, RIGHT)
    damaged = [finding for finding in findings if finding.damage]
    say("")
    if running:
        say(f"{name} is running: a file that it is writing or removing may look damaged.")
    if damaged:
        say(f"{len(damaged)} of {len(findings)} damaged:")
        for finding in damaged:
            say(f"  {finding.what}{'' if finding.step is None else f' step {finding.step}'}: {finding.remedy}")
    elif not findings:
        say(f"{name} has nothing to verify yet: it was stopped before its data were ready.")
    else:
        total = size_text(sum(finding.bytes for finding in findings))
        left = " The next launch removes what is left over." if any(f.leftover for f in findings) else ""
        say(f"Everything is as it was written: {total}.{left}")
