"""What a comparison publishes: report.html, report.md, report.json, figures/, and its own run in MLflow."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gradus import __version__
from gradus.flows.compare.measures import Measures, check_external, measure
from gradus.flows.compare.plan.arms import BASE
from gradus.flows.compare.plan.folder import arm_run
from gradus.flows.compare.plan.job import Job
from gradus.flows.compare.plan.schedule import ComparisonWork
from gradus.pipeline.common.files import write_json, write_text
from gradus.pipeline.common.process import child_environment, usable_cores
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.position import needs_delivery

REPORT = "report"
"""The name of the report's files, without suffix."""
MLFLOW_TIMEOUT_SECONDS = 120.0
"""How long MLflow may take for the comparison's own run; `gradus sync` delivers the rest."""


def publish(work: ComparisonWork, external: Sequence[Measures], command: str, parallel: int) -> str:
    """Write the report of what is done so far; returns it as Markdown, empty if nothing is.

    Raises: UserError if results of another system cannot be compared with ours.
    """
    from gradus.flows.compare.report.analysis import analyse, by_arm
    from gradus.flows.compare.report.figures import figures
    from gradus.flows.compare.report.pages import as_markdown, as_page

    measured = collect_measures(work, external)
    if not measured:
        return ""
    order = [arm.label for arm in work.folder.plan.arms]
    report = describe_comparison(work, command, parallel) | {"analysis": analyse(measured, order)}
    folder, drawn = work.folder.path, figures(by_arm(measured, order), report["analysis"])
    for name, svg in drawn.items():
        write_text(folder / "figures" / f"{name}.svg", svg)
    markdown = as_markdown(report, drawn)
    write_text(folder / f"{REPORT}.md", markdown)
    write_text(folder / f"{REPORT}.html", as_page(report, drawn))
    curves = [{key: value for key, value in each.items() if key != "heldout"} for each in measured]
    write_json(folder / f"{REPORT}.json", json.loads(json.dumps(report | {"measured": curves}, default=str)))
    return markdown


def collect_measures(work: ComparisonWork, external: Sequence[Measures]) -> list[Measures]:
    """The measures of every finished arm, then those of other systems. Raises: UserError if these do not fit."""
    found = [_measured(work, job) for job in work.reported() if job.complete]
    for each in external:
        check_external(each, found)
    return found + [each for each in external if each["seed"] in work.seeds]


def _measured(work: ComparisonWork, job: Job) -> Measures:
    return measure(work.folder.open(job.name), work.folder.open(arm_run(BASE, job.seed)), job.arm, job.seed)


def describe_comparison(work: ComparisonWork, command: str, parallel: int) -> dict[str, Any]:
    """What was compared, by which command, on which machine, and what is missing."""
    plan, tuning = work.folder.plan, work.tuning
    missing = [f"{job.title}: {job.reason or job.state}" for job in work.reported() if not job.complete]
    tuned = {"key": tuning.key, "seed": tuning.seed, "arms": work.chosen} if tuning and work.chosen else None
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    return {
        "name": work.folder.name,
        "gradus": __version__,
        "command": command,
        "budget": str(plan.budget),
        "seeds": list(work.seeds),
        "parallel": parallel,
        "validation_prompts": sum(task.validation for task in plan.config.named_tasks.values()),
        "arms_asked": {arm.label: {"source": arm.source, "changes": list(arm.changes)} for arm in plan.arms},
        "machine": f"{usable_cores()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}",
        "missing": missing,
        "notes": list(plan.notes),
        "tuning": tuned,
    }


def begin_tracking(work: ComparisonWork, command: str) -> None:
    """Begin or continue the comparison's own run in MLflow; its arms appear below it."""
    plan = work.folder.plan
    tags = {"gradus.comparison": work.folder.name, "gradus.arm": "(comparison)"}
    arms = ",".join(arm.label for arm in plan.arms)
    params = {"arms": arms, "seeds": ",".join(map(str, work.seeds)), "budget": str(plan.budget), "command": command}
    with Journal(work.folder.path / "journal.jsonl") as journal:
        journal.start(work.folder.name, tags, params)
    deliver(work.folder.path)


def end_tracking(work: ComparisonWork, markdown: str, status: str) -> None:
    """Send MLflow the final numbers, the report's files, and how the comparison ended."""
    folder = work.folder.path
    with Journal(folder / "journal.jsonl") as journal:
        _journal_report(journal, folder, markdown)
        journal.end(status)
    deliver(folder)
    if status != "KILLED":  # after Ctrl-C the user should not have to wait
        deliver_rest(folder)


def _journal_report(journal: Journal, folder: Path, markdown: str) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        analysis: Mapping[str, Any] = json.loads((folder / f"{REPORT}.json").read_text(encoding="utf-8"))["analysis"]
        for row in analysis["arms"]:
            found = {
                key: row[key] for key in ("accuracy", "gain", "rollouts", "tokens", "seconds") if row[key] is not None
            }
            found |= {"worst_drop": row["worst_drop"]["mean"], "early_gain": row["early_gain"]["mean"]}
            journal.metrics(0, {f"{key}/{row['arm']}": value for key, value in found.items()})
        verdicts = {f"claim.{claim['claim']}": claim["verdict"] for claim in analysis["claims"]}
        journal.tags({"mlflow.note.content": markdown[:4000], **verdicts})
        for suffix in ("html", "md", "json"):
            journal.artifact(folder / f"{REPORT}.{suffix}")


def deliver(folder: Path) -> None:
    """Send new events of the comparison's own run to MLflow; `gradus sync` can send what fails."""
    _call("gradus.pipeline.tracking.uploader", str(folder), log=folder / "tracking.log")


def deliver_rest(folder: Path) -> None:
    """Send what arms that were stopped or killed have not sent."""
    if any(needs_delivery(file.parent) for file in folder.glob("*/journal.jsonl")):
        _call("gradus", "sync", "--runs", str(folder), log=folder / "tracking.log")


def _call(*words: str, log: Path) -> None:
    """Run a module of gradus in another process; this process never imports MLflow."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired), log.open("ab") as output:
        quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        command = [sys.executable, "-P", "-m", *words]
        subprocess.run(command, env=child_environment(), timeout=MLFLOW_TIMEOUT_SECONDS, check=False, **quiet)
