"""Shows sampled completions in MLflow as traces: one for each completion, with its scores as assessments.

Of MLflow's ways to show texts this is the one that lays them side by side: the tab *Traces* of a run has a column for
each score, to sort and filter by; ticked completions are compared; those of two runs are paired by their prompts; and a
group is a session. A table is a file, which is looked at alone; it is written where a server knows no such traces.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from gradus.pipeline.common.shown import visible
from gradus.pipeline.tracking.failures import refused
from gradus.pipeline.tracking.journal import JournalEvent
from gradus.pipeline.tracking.mlflow_run import Store

PREVIEW = 1000
"""Longest request and response in the table of traces, in characters; a trace itself holds the whole text."""
WIDTH = 72
"""Characters of a line of a text."""
Row = dict[str, Any]
"""A completion with what is known of its group."""


def completions_of(event: JournalEvent) -> list[Row]:
    """The completions of an event, each with its prompt, in the order of the groups and of the ranks."""
    rows = list[Row]()
    for group in event["groups"]:
        shared = {name: group[name] for name in ("step", "group", "task", "prompt", "question", "answer")}
        ordered = sorted(group["completions"], key=lambda each: (each["rank"] is None, each["rank"]))
        rows += [{**shared, **each, "place": place} for place, each in enumerate(ordered)]
    return rows


def write_traces(store: Store, run_id: str, event: JournalEvent) -> bool:
    """Write every completion as a trace of the run; returns whether the store knows such traces.

    The ids are made from the run, the step and the place, so that an event that is sent again changes nothing; for that
    this goes below MLflow's public calls, which choose ids and times of their own. Raises: what MLflow raises, unless
    it knows no such traces, or refuses them.
    """
    try:
        traces = store.client._tracing_client
        newest = int(event["time"])  # MLflow lists the newest trace first: here that of the first group's best rank
        made = [(_info(store, run_id, row, newest - at), row) for at, row in enumerate(completions_of(event))]
        for info, _ in made:
            traces.start_trace(info)
        traces.log_spans(store.experiment_id, [_span(store, info, row) for info, row in made])
    except Exception as error:
        if not refused(error):
            raise
        return False
    return True


def table_of(event: JournalEvent) -> JournalEvent:
    """The same completions as an event of the kind ``table``."""
    rows = [
        {"question": row["question"], "completion": row["text"], "answer": row["answer"], "prompt": row["prompt"]}
        | _scores(row)
        | {"tokens": row["tokens"], "truncated": row["truncated"]}
        for row in completions_of(event)
    ]
    return {**event, "kind": "table", "name": "rollouts", "rows": rows}


def _scores(row: Row) -> dict[str, Any]:
    """name -> the values that a completion is sorted by; None where there is none."""
    components = {f"reward/{name}": value for name, value in row["components"].items()}
    return {
        "correct": row["correct"],
        "reward": row["reward"],
        **components,
        "weight": row["weight"],
        "rank": row["rank"],
    }


def _info(store: Store, run_id: str, row: Row, at: int) -> Any:
    """What MLflow's table of traces shows of a completion. ``at``: milliseconds since the epoch."""
    entities = store.mlflow.entities
    digits = hashlib.sha256(f"{run_id}:{row['step']}:{row['group']}:{row['place']}".encode()).hexdigest()
    trace_id, feedback = f"tr-{digits[:32]}", list[Any]()
    source = entities.AssessmentSource("CODE", "gradus")
    for name, value in _scores(row).items():
        if value is not None:
            feedback.append(
                entities.Feedback(
                    name, value, source=source, trace_id=trace_id, create_time_ms=at, last_update_time_ms=at
                )
            )
            feedback[-1].assessment_id = f"a-{hashlib.sha256(f'{trace_id}:{name}'.encode()).hexdigest()[:32]}"
    where = f"step {row['step']:06d}, group {row['group']}"
    tags = {
        "step": row["step"],
        "prompt": row["prompt"],
        "task": row["task"],
        "tokens": row["tokens"],
        "truncated": row["truncated"],
    }
    return entities.TraceInfo(
        trace_id=trace_id,
        trace_location=entities.TraceLocation.from_experiment_id(store.experiment_id),
        request_time=at,
        execution_duration=0,
        state=entities.TraceState.OK,
        request_preview=visible(row["question"])[:PREVIEW],
        response_preview=visible(row["text"])[:PREVIEW],
        trace_metadata={"mlflow.sourceRun": run_id, "mlflow.trace.session": f"{where} ({run_id[:8]})"},
        tags={
            "mlflow.traceName": where,
            **{f"gradus.{name}": visible(str(value)) for name, value in tags.items() if value != ""},
        },
        assessments=feedback,
    )


def _span(store: Store, info: Any, row: Row) -> Any:
    """The trace's one span, whose inputs and outputs MLflow lays side by side."""
    scores = [f"{name} {value:.3g}" for name, value in _scores(row).items() if value is not None and name != "correct"]
    said = [
        "right" if row["correct"] else "wrong",
        *scores,
        f"{row['tokens']} tokens",
        *["truncated"] * row["truncated"],
    ]
    inputs = {"question": _as_code(row["question"]), "answer": _as_code(row["answer"])}
    outputs = {"completion": _as_code(row["text"]), "verdict": ", ".join(said)}
    digits = bytes.fromhex(info.trace_id.removeprefix("tr-"))
    attributes: Mapping[str, Any] = {
        "mlflow.traceRequestId": info.trace_id,
        "mlflow.spanType": "LLM",
        "mlflow.spanInputs": inputs,
        "mlflow.spanOutputs": outputs,
    }
    return store.mlflow.entities.Span.from_dict({
        "trace_id": base64.b64encode(digits).decode(),
        "span_id": base64.b64encode(digits[:8]).decode(),
        "parent_span_id": "",
        "name": "completion",
        "start_time_unix_nano": info.request_time * 1_000_000,
        "end_time_unix_nano": info.request_time * 1_000_000,
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {name: json.dumps(value) for name, value in attributes.items()},
        "events": [],
    })  # fmt: skip


def _as_code(text: str) -> str:
    """A text from elsewhere as a block of code, wrapped: MLflow's pages read texts as Markdown, and would fetch images.

    >>> print(_as_code("a `word` and ![x](http://example.com/x.png)"))
    ```text
    a `word` and ![x](http://example.com/x.png)
    ```
    """
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    wrap = textwrap.TextWrapper(WIDTH, expand_tabs=False, replace_whitespace=False, drop_whitespace=False)
    lines = [part for line in visible(text).split("\n") for part in wrap.wrap(line) or [""]]
    return "\n".join([f"{fence}text", *lines, fence])
