"""What Prefect's pages show of a run: each stage's progress, the table of stages, and where its curves are.

Publishing must never delay or fail a stage: it happens in a thread, the first failure is noted, further attempts are
made at growing intervals, and progress that cannot be shown in time is dropped.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.utilities.context import get_task_and_flow_run_ids

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.shown import gradus_command, shown_share
from gradus.pipeline.config.graph.picture import entries, tree
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.task_accuracies import shown_accuracy

logger = logging.getLogger("prefect.flow_runs.gradus")
"""A child of Prefect's own logger, so that its lines appear in the flow run's log."""

NOT_DONE = "not done yet"
"""The note of a stage in the table until it is done."""
PROGRESS_INTERVAL_SECONDS = 10.0
"""Time between two updates of a stage's progress; one costs the server 20 ms."""
FIRST_RETRY_SECONDS = 30.0
"""How long progress is not published after a failure; doubled by every further failure."""
CLOSE_TIMEOUT_SECONDS = 5.0
"""How long the end of a run waits for what is being published."""


class PrefectView(Observer):
    """Publishes a run's progress as artifacts. It must be made inside the flow run that it belongs to."""

    def __init__(self, run: RunFolder, note: Callable[[str], None]):
        self.run = run
        self._note_for_user, self._noted = note, False
        self.resumed: dict[str, int] = {}
        """Stage -> steps that were done before this launch."""
        self._tasks = [name for name in run.config.named_tasks if name]
        self._rows = {
            stage.label: table_row(stage.label, {"steps": stage.steps}, tasks=self._tasks) | {"note": NOT_DONE}
            for stage in run.config.stages
        }
        self._about = ""
        """What is said below the table of stages."""
        self._ids: dict[str, UUID] = {}
        self._shown_at: dict[str, float] = {}
        """Stage -> when its progress was last published."""
        self._retry_seconds, self._blocked_until = FIRST_RETRY_SECONDS, 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefect-view")
        self._pending: Future[None] | None = None

    def opened(self, earlier: Sequence[Mapping[str, Any]] = (), origin_page: str = "") -> None:
        """The flow run has begun: publish the table of stages, with what each starts from, which run or flow runs this
        one continues, and where its curves are.

        All that belongs to the flow run itself is one artifact, because Prefect's pages show several in the order of
        their ids, which are random: the table would be anywhere among them.
        """
        tracking = self.run.config.tracking
        if lineage := lineage_text(self.run.origin, origin_page, earlier):
            logger.info(re.sub(r"\[(.+?)\]\((.+?)\)", r"\1 (\2 )", lineage))  # the log shows addresses as links
        drawn = tree(entries(self.run.config.stages))
        graph = "\n".join(["What each stage starts from:", "```", *drawn, "```"]) if drawn else ""
        curves = curves_text(tracking.uri, tracking.experiment, self.run.path)
        self._about = "\n\n".join(filter(None, (graph, lineage, curves)))
        self._publish_stages()

    def prepared(self, accuracy: float | None, interval: tuple[float, float] | None) -> None:
        shown = shown_share(accuracy) + (" ({:.3f} - {:.3f})".format(*interval) if interval else "")
        logger.info("prepared: the policy's accuracy before any stage is %s", shown)

    def stage_started(self, label: str, index: int, total: int, steps: int, done: int) -> None:
        logger.info("%s: stage %d of %d, %s steps, %s of them done", label, index + 1, total, steps, done)
        self._shown_at.pop(label, None)
        self.resumed[label] = done

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        now, last = time.monotonic(), step >= steps
        if now - self._shown_at.get(label, 0.0) < PROGRESS_INTERVAL_SECONDS and not last:
            return
        self._shown_at[label] = now
        line = f"{label}: {progress_line(step, steps, metrics)}"
        logger.info(line)
        if last or self._pending is None or self._pending.done():
            self._publish(f"progress-{label}", "progress", round(100 * step / max(steps, 1), 1), line)

    def work_done(self, label: str, result: Mapping[str, Any]) -> None:
        """A stage has returned its record, freshly made or reused; publish the table of stages again."""
        row = self._rows[label] = table_row(label, result, self.resumed.get(label, 0), self._tasks)
        outcome = ", ".join(
            filter(None, (f"accuracy {row['accuracy before']} -> {row['accuracy after']}", row["note"]))
        )
        if self._tasks:
            measured = [(name, shown_accuracy(result, name)) for name in self._tasks]
            outcome += "; " + ", ".join(f"{name} {accuracy}" for name, accuracy in measured if accuracy)
        logger.info("%s: %s", label, outcome)
        self._publish_stages()

    def note(self, text: str) -> None:
        logger.info(text)

    def close(self) -> None:
        """Wait briefly for what is being published, and discard the rest."""
        if self._pending is not None:
            with contextlib.suppress(TimeoutError):
                self._pending.result(1.0 if time.monotonic() < self._blocked_until else CLOSE_TIMEOUT_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _publish_stages(self) -> None:
        done = sum(row["note"] != NOT_DONE for row in self._rows.values())
        title = f"{done} of {len(self._rows)} stages are done"
        self._publish("stages", "table", json.dumps([*self._rows.values()]), f"{title}\n\n{self._about}")

    def _publish(self, name: str, kind: str, data: str | float, description: str) -> None:
        """Create or update the artifact of that name in the background, in the caller's run context."""
        context = contextvars.copy_context()
        self._pending = self._thread.submit(context.run, self._publish_now, name, kind, data, description)

    def _publish_now(self, name: str, kind: str, data: str | float, description: str) -> None:
        if kind == "progress" and time.monotonic() < self._blocked_until:
            return
        try:
            client = get_client(sync_client=True)
            if name in self._ids:
                client.update_artifact(self._ids[name], ArtifactUpdate(data=data, description=description))
            else:
                task_run, flow_run = get_task_and_flow_run_ids()
                wanted = ArtifactCreate(
                    type=kind,
                    key=_key(f"{self.run.name}-{name}"),
                    data=data,
                    description=description,
                    flow_run_id=flow_run,
                    task_run_id=task_run,
                )
                self._ids[name] = client.create_artifact(wanted).id
            self._retry_seconds, self._blocked_until = FIRST_RETRY_SECONDS, 0.0
        except Exception as error:
            if not self._noted:
                self._noted = True
                self._note_for_user(
                    f"Prefect does not accept the run's artifacts ({type(error).__name__}); training continues"
                )
            self._blocked_until = time.monotonic() + self._retry_seconds
            self._retry_seconds *= 2


def curves_text(uri: str | None, experiment: str, run: Path) -> str:
    """Markdown that says where MLflow shows the run's curves."""
    what = f"Curves, samples and checkpoints of every stage are in MLflow, experiment **{experiment}**"
    if uri and uri.startswith(("http://", "https://")):
        return f"{what}: [{uri}]({uri})."
    return f"{what}.\n\nTo open it: `{gradus_command('ui', run.name, '--runs', run.parent)}`"


def lineage_text(origin: Mapping[str, Any] | None, page: str, earlier: Sequence[Mapping[str, Any]]) -> str:
    """Markdown that links a flow run to those that it continues, newest first, and a fork to its origin.

    >>> lineage_text(None, "", [{"began": "2026-01-31 10:00:00", "page": "http://p/1", "state": "Stopped"}])
    'This flow run continues:\\n\\n- [the flow run of 2026-01-31 10:00:00](http://p/1): Stopped'
    """
    paragraphs = []
    if origin is not None:
        name = f"[{origin['run']}]({page})" if page else f"`{origin['run']}`"
        what = f"This run is a fork of {name}: it shares what comes before the stage `{origin['stage']}`"
        paragraphs.append(f"{what} and changes")
        paragraphs.append("\n".join(f"- `{change}`" for change in origin["changes"]) or "- nothing")
    if earlier:
        paragraphs.append("This flow run continues:")
        lines = []
        for entry in reversed(earlier):
            link = f"[the flow run of {entry.get('began', 'an earlier launch')}]({entry['page']})"
            lines.append(f"- {link}: {entry['state'] or 'how it ended is not known'}")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def progress_line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """One line about a step.

    >>> progress_line(3, 60, {"reward/mean": 0.5321, "throughput/tokens_per_second": 2345.6})
    'step 3 of 60, reward 0.532, 2,346 tokens/s'
    """
    parts = [f"step {step} of {steps}"]
    if (reward := metrics.get("reward/mean")) is not None:
        parts.append(f"reward {reward:.3f}")
    if (speed := metrics.get("throughput/tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    return ", ".join(parts)


def table_row(label: str, result: Mapping[str, Any], done: int = 0, tasks: Collection[str] = ()) -> dict[str, Any]:
    """A stage's row in the table of stages; ``done``: the steps that earlier launches had done. Each row has a column
    for each of several ``tasks``, measured or not, because the page shows the columns of the first row."""
    low, high = result.get("interval") or (None, None)
    came = f"shared with {result['shared']}" if "shared" in result else "reused" if result.get("reused") else ""
    came = came or (f"resumed after step {done}" if done else "")
    events = [f"step {event['step']}, {event['rule']}: {event['reason']}" for event in result.get("events", ())]
    return {
        "stage": label,
        "steps": result.get("steps"),
        "accuracy before": _shown(result.get("accuracy_before")),
        "accuracy after": _shown(result.get("accuracy_after")),
        "95 % interval": "" if low is None or high is None else f"{low:.3f} - {high:.3f}",
        **{f"accuracy on {name}": shown_accuracy(result, name) for name in tasks},
        "rollouts": _shown(result.get("rollouts"), ","),
        "tokens": _shown(result.get("tokens"), ","),
        "seconds": _shown(result.get("seconds"), ".1f"),
        "note": "; ".join(filter(None, (came, *events))),
    }


def _shown(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _key(name: str) -> str:
    """A name as an artifact key: lower case letters, digits, single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
