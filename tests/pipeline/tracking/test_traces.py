"""Sampled completions in MLflow: each is one trace, however often it is sent, and what it says is read as no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_pipeline import launch, pipeline
from tracking_runs import client, completion, group, new_run, new_stage, read_run_ids, runs_folder  # noqa: F401 (a fixture)

from gradus.pipeline.runs.sampled.record import ROLLOUTS_FILE, SHOWN_COMPLETIONS, SHOWN_STEPS, shown
from gradus.pipeline.tasks.prompts.step_lines import step_lines
from gradus.pipeline.tracking.journal import read_events
from gradus.pipeline.tracking.uploader import _import_mlflow, sync_run

EVIL = "<script>x</script> ![p](http://127.0.0.1:1/x.png) **b** \x00\x1b[31m\ud800 \u202e\n```\n# head\n````\n"


def traces_of(runs: Path, run: Path, label: str = "01-first") -> list[Any]:
    """The traces of a stage's run, in the order in which MLflow lists them."""
    mlflow_run = client(runs).get_run(read_run_ids(run)[label])
    place = [mlflow_run.info.experiment_id]
    return list(client(runs).search_traces(locations=place, run_id=mlflow_run.info.run_id, max_results=500))


def said(trace: Any) -> str:
    return trace.data.spans[0].outputs["completion"]


def test_every_completion_is_a_trace_with_its_scores(runs: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=2)
    worse = completion("b", 2, reward=0.0, correct=False, truncated=True, components={"exact": 0.0, "eq": 0.5})
    stage.rollouts(2, [group(2, worse, completion("a", 1)), group(2, completion("c", None, reward=None), number=3)])
    report = sync_run(run)
    assert (report.undelivered, report.rejected, report.error) == (0, 0, None)
    first, second, third = traces_of(runs, run)
    assert [said(each) for each in (first, second, third)] == ["```text\na\n```", "```text\nb\n```", "```text\nc\n```"]
    assert first.data.spans[0].inputs == {"question": "```text\n1 + 1 =\n```", "answer": "```text\n2\n```"}
    assert first.data.spans[0].outputs["verdict"] == "right, reward 1, reward/exact 1, weight -0.5, rank 1, 3 tokens"
    assert second.data.spans[0].outputs["verdict"].startswith("wrong, reward 0, reward/exact 0, reward/eq 0.5")
    assert second.data.spans[0].outputs["verdict"].endswith("truncated")
    scores = {each.name: each.feedback.value for each in second.info.assessments}
    assert scores == {"correct": False, "reward": 0.0, "reward/exact": 0.0, "reward/eq": 0.5, "weight": -0.5, "rank": 2}
    assert {each.name for each in third.info.assessments} == {"correct", "reward/exact", "weight"}
    sessions = [each.info.trace_metadata["mlflow.trace.session"] for each in (first, second, third)]
    assert sessions[0] == sessions[1] != sessions[2] and sessions[0].startswith("step 000002, group 0")
    tags = {name: value for name, value in second.info.tags.items() if name.startswith("gradus.")}
    assert tags == {"gradus.step": "2", "gradus.prompt": "0a1b", "gradus.tokens": "3", "gradus.truncated": "True"}
    assert (first.info.request_preview, first.info.response_preview) == ("1 + 1 =", "a")


def test_what_is_sent_again_or_trained_again_is_there_once(runs: Path) -> None:
    run = new_run(runs)
    stage = new_stage(run, steps=2)
    stage.rollouts(2, [group(2, completion("a", 1), completion("b", 2))])
    sync_run(run)
    before = {each.info.trace_id: each.info.request_time for each in traces_of(runs, run)}
    stage.start("1 first")  # resumed after step 1
    stage.metrics(2, {"reward/mean": 2 / 7})
    stage.rollouts(2, [group(2, completion("a", 1), completion("b", 2))])
    stage.rollouts(3, [group(3, completion("d", 1))])
    sync_run(run)
    found = traces_of(runs, run)
    assert [said(each)[8] for each in found] == ["d", "a", "b"]
    assert {each.info.trace_id: each.info.request_time for each in found[1:]} == before
    for record in run.rglob("mlflow.json"):  # as if the uploader had died before it could save any id
        record.unlink()
    assert sync_run(run).undelivered == 0
    assert [(said(each)[8], len(each.info.assessments), len(each.data.spans)) for each in traces_of(runs, run)] == [
        (letter, 5, 1) for letter in "dab"
    ]


@pytest.mark.parametrize("fails", ["start_trace", "log_spans"])
def test_a_store_that_goes_away_in_between_gets_each_once(
    runs: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    run = new_run(runs)
    new_stage(run).rollouts(1, [group(1, completion("a", 1), completion("b", 2), completion("c", 3))])
    tracing = type(_import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db")._tracing_client)
    works, calls = getattr(tracing, fails), list[int]()

    def gone(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == (2 if fails == "start_trace" else 1):
            raise ConnectionError("away")
        return works(*arguments, **options)

    monkeypatch.setattr(tracing, fails, gone)
    assert "away" in (sync_run(run).error or "")
    assert sync_run(run).undelivered == 0
    found = traces_of(runs, run)
    assert [said(each)[8] for each in found] == ["a", "b", "c"]
    assert [(len(each.info.assessments), len(each.data.spans)) for each in found] == [(5, 1)] * 3


def test_a_server_that_knows_no_such_traces_gets_a_table(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(runs)
    new_stage(run).rollouts(7, [group(7, completion("b", 2, components={}), completion("a", 1))])
    mlflow = _import_mlflow()
    tracing = type(mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db")._tracing_client)

    def unknown(*arguments: Any) -> None:
        from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

        raise mlflow.MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(tracing, "start_trace", unknown)
    report = sync_run(run)
    assert (report.undelivered, report.rejected) == (0, 0) and not traces_of(runs, run)
    table = mlflow.artifacts.load_dict(
        f"{client(runs).get_run(read_run_ids(run)['01-first']).info.artifact_uri}/rollouts/step-000007.json"
    )
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["completion"], row["rank"], row.get("reward/exact")) for row in rows] == [
        ("a", 1, 1.0),
        ("b", 2, None),
    ]


def test_nothing_that_a_model_wrote_is_read_as_code(runs: Path) -> None:
    """MLflow's pages read texts as Markdown: a block of code is the one thing that they show as it is."""
    run = new_run(runs)
    long = completion("x " * 5000, 2)
    new_stage(run).rollouts(1, [group(1, completion(EVIL, 1), long, question=EVIL, answer=EVIL, task=EVIL)])
    assert sync_run(run).rejected == 0
    evil, long = traces_of(runs, run)
    for text in (said(evil), *evil.data.spans[0].inputs.values()):
        assert text.startswith("`````text\n<script>") and text.endswith("\n`````") and text.count("`````") == 2
        assert not {"\x00", "\x1b", "\ud800", "\u202e"} & {*text} and "\\x1b[31m" in text
    assert "\x00" not in evil.info.request_preview + evil.info.response_preview + evil.info.tags["gradus.task"]
    assert len(long.info.response_preview) == 1000
    lines = said(long).split("\n")[1:-1]
    assert max(map(len, lines)) <= 72 and "".join(lines) == "x " * 5000


def test_a_stage_shows_few_enough(tmp_path: Path) -> None:
    stages = [{"stage": "sft"}, {"stage": "dapo", "steps": 45, "prompts_per_step": 2, "group_size": 3}]
    run = launch(tmp_path, pipeline(stages, tracking={"rollouts_every": 1}, sampling={"max_tokens": 2}))
    kept = [line["step"] for _, line in step_lines(run.stage_dir(1) / ROLLOUTS_FILE) if line]
    assert kept == [step for step in range(1, 46) for _ in range(2)]
    events = [event for event in read_events(run.stage_dir(1) / "journal.jsonl")[0] if event["kind"] == "rollouts"]
    assert [event["step"] for event in events] == [1, *range(3, 46, 3)] and len(events) <= 1 + SHOWN_STEPS
    assert not [event for event in read_events(run.stage_dir(0) / "journal.jsonl")[0] if event["kind"] == "rollouts"]
    assert {len(group["completions"]) for event in events for group in event["groups"]} == {3}


def test_a_group_is_shown_whose_rewards_differ_and_of_a_large_one_the_best_and_the_worst() -> None:
    def of(size: int, *rewards: float) -> dict[str, Any]:
        return group(
            1, *(completion(str(rank), rank, reward=rewards[rank % len(rewards)]) for rank in range(size, 0, -1))
        )

    equal, other = of(6, 1.0), of(5, 1.0, 0.0)
    assert [len(each["completions"]) for each in shown([equal, other])] == [5]
    assert [len(each["completions"]) for each in shown([equal, of(3, 1.0)])] == [6]
    (large,) = shown([of(100, 0.0, 1.0), other])
    ranks = [each["rank"] for each in large["completions"]]
    assert ranks == [*range(1, 9), *range(93, 101)] and len(ranks) == SHOWN_COMPLETIONS
