"""The pipeline's run has its stages' curves over one step that goes on; each point is there once, come what may."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tracking_runs import client, new_run

from gradus.pipeline.common.addresses import resolve_uri
from gradus.pipeline.common.files import write_json
from gradus.pipeline.tracking.curves.line import LINE_FILE
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.position import count_undelivered, needs_delivery, read_run_ids
from gradus.pipeline.tracking.uploader import Uploader, sync_run

Curve = dict[int, float]


def begin(run: Path, label: str) -> Journal:
    """Start a stage, or resume it."""
    journal = Journal(run / "stages" / label / "journal.jsonl")
    journal.start(label, {"gradus.stage": label[3:]}, {})
    return journal


def train(journal: Journal, steps: range, reward: float) -> None:
    """Steps as a stage logs them: rewards that say who earned them, ten tokens and two rollouts a step."""
    for step in steps:
        values = {"reward/mean": reward + step, "reward/std": 0.5, "policy/kl_to_start": 0.1, "time/step": 0.01 * step}
        journal.metrics(step, {**values, "progress/tokens": 10 * step, "progress/rollouts": 2 * step})


def finish(journal: Journal, steps: int, **record: Any) -> None:
    """The end of a stage, and its success record."""
    journal.end()
    made = {"name": journal.path.parent.name[3:], "steps": steps, "tokens": 10 * steps, "rollouts": 2 * steps}
    write_json(journal.path.parent / "result.json", made | record)


def stage(run: Path, label: str, steps: int, reward: float, **record: Any) -> None:
    journal = begin(run, label)
    train(journal, range(1, steps + 1), reward)
    finish(journal, steps, **record)


def set_aside(run: Path, label: str, number: int = 1) -> None:
    """What `gradus resume --from` does with a stage."""
    (run / "stages" / label).rename(run / "stages" / f"{label}.attempt-{number}")
    time.sleep(0.002)  # attempts are told apart by their first millisecond


def delivered(run: Path, name: str = "reward/mean") -> Curve:
    """A curve of the pipeline's MLflow run after a delivery; none of its steps may be there twice."""
    report = sync_run(run)
    assert (report.error, report.undelivered, report.rejected) == (None, 0, 0)
    return curve(run, name)


def curve(run: Path, name: str = "reward/mean") -> Curve:
    points = client(run.parent).get_metric_history(read_run_ids(run)[""], name)
    assert len({point.step for point in points}) == len(points), f"{name} has a step twice"
    return {point.step: point.value for point in sorted(points, key=lambda point: point.step)}


def steps(first: int, rewards: list[float]) -> Curve:
    return dict(enumerate(rewards, first))


def test_steps_and_totals_go_on_over_stages_and_the_borders_can_be_seen(runs: Path) -> None:
    run = new_run(runs)
    first = begin(run, "01-sft")
    first.metrics(0, {"validation/accuracy": 0.1, "validation/accuracy/sums": 0.2})
    first.metrics(2, {"completion/length": 5.0, "time/step": 1.0, "validation/accuracy": 0.3})
    finish(first, 2)
    second = begin(run, "02-dapo")
    second.metrics(0, {"validation/accuracy": 0.35, "heldout/accuracy": 0.3})  # where the first one ended
    train(second, range(1, 4), 100.0)
    finish(second, 3)
    stage(run, "03-gfpo", 1, 200.0)
    assert delivered(run) == {3: 101.0, 4: 102.0, 5: 103.0, 6: 201.0}
    # tokens: 20 of the first stage by its record, 10 a step after that
    assert curve(run, "progress/tokens") == {3: 30, 4: 40, 5: 50, 6: 60}
    assert curve(run, "progress/rollouts") == {3: 6, 4: 8, 5: 10, 6: 12}
    assert curve(run, "stage/index") == {2: 1, 3: 2, 4: 2, 5: 2, 6: 3}
    assert curve(run, "validation/accuracy") == {0: 0.1, 2: 0.3} and curve(run, "validation/accuracy/sums") == {0: 0.2}
    assert curve(run, "policy/kl") == dict.fromkeys(range(3, 7), 0.1) and curve(run, "completion/length") == {2: 5.0}
    assert curve(run, "time/step")[6] == 0.01
    known = client(runs).get_run(read_run_ids(run)[""]).data.metrics
    assert not {"reward/std", "heldout/accuracy", "policy/kl_to_start"} & set(known), "those are the stages' own"


def test_a_stage_that_ended_early_leaves_neither_gap_nor_overlap(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-dapo", 4, 100.0, events=[{"rule": "plateau", "step": 4}])
    uploader = Uploader(run, resolve_uri(None, runs), "gradus")
    uploader.sync()
    journal = begin(run, "02-gfpo")
    train(journal, range(1, 3), 200.0)
    uploader.sync()  # while the stage runs
    assert curve(run) == steps(1, [101, 102, 103, 104, 201, 202])
    train(journal, range(3, 4), 200.0)
    finish(journal, 3, accuracy_after=0.5)
    stage(run, "03-merged", 0, 0.0)  # a merge takes no steps
    stage(run, "04-srpo", 1, 300.0)
    assert delivered(run) == steps(1, [101, 102, 103, 104, 201, 202, 203, 301])


def test_a_resumed_stage_repeats_no_step_and_delivering_twice_changes_nothing(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0)
    killed = begin(run, "02-dapo")
    train(killed, range(1, 5), 200.0)
    delivered(run)
    time.sleep(0.002)
    train(begin(run, "02-dapo"), range(3, 7), 200.0)  # from the checkpoint of step 2, with new times
    expected = steps(1, [101, 102, 201, 202, 203, 204, 205, 206])
    assert delivered(run) == expected == delivered(run)
    for file in (LINE_FILE, "mlflow.json"):  # as if the uploader had died before it could save any of it
        (run / file).unlink()
    assert delivered(run) == expected, "the first time of a step counts, and a point that is sent twice is one"


def test_a_stage_that_is_trained_again_follows_what_is_there(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0)
    stage(run, "02-dapo", 2, 200.0)
    train(begin(run, "03-gfpo"), range(1, 3), 300.0)
    uploader = Uploader(run, resolve_uri(None, runs), "gradus")
    uploader.sync()
    train(Journal(run / "stages/03-gfpo/journal.jsonl"), range(3, 4), 300.0)  # nobody has delivered that
    set_aside(run, "03-gfpo"), set_aside(run, "02-dapo")
    stage(run, "02-dapo", 3, 1200.0)
    train(begin(run, "03-gfpo"), range(1, 2), 1300.0)
    uploader.sync()
    old, new = [101, 102, 201, 202, 301, 302, 303], [1201, 1202, 1203, 1301]
    assert curve(run) == steps(1, [*old, *new]) == delivered(run)
    assert list(curve(run, "stage/index").values()) == [1, 1, 2, 2, 3, 3, 3, 2, 2, 2, 3]
    assert list(curve(run, "progress/tokens").values()) == [10 * step for step in range(1, 12)], "all that was spent"


def test_of_a_run_that_was_never_delivered_only_what_counts_is(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0)
    stage(run, "02-dapo", 2, 200.0)
    set_aside(run, "02-dapo")
    stage(run, "02-dapo", 2, 1200.0)
    assert delivered(run) == steps(1, [101, 102, 1201, 1202])


def test_a_branch_waits_for_those_before_it_in_the_list(runs: Path) -> None:
    """Side by side or one after the other, the axis is the same."""
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0)
    code = begin(run, "03-code")
    train(code, range(1, 3), 300.0)
    assert delivered(run) == steps(1, [101, 102])
    math = begin(run, "02-math")
    train(math, range(1, 3), 200.0)
    finish(code, 2)
    assert delivered(run) == steps(1, [101, 102, 201, 202])
    assert not count_undelivered(run), "what waits for a stage is not late"
    train(math, range(3, 4), 200.0)
    finish(math, 3)
    stage(run, "04-soup", 0, 0.0)
    assert delivered(run) == steps(1, [101, 102, 201, 202, 203, 301, 302])


def test_accuracies_of_branches_that_end_out_of_order_are_all_there_after_a_resume(runs: Path) -> None:
    run = new_run(runs)
    whole = Journal(run / "journal.jsonl")
    for number in (0, 1, 3):
        whole.metrics(number, {"accuracy": number / 10})
    assert delivered(run, "accuracy") == {0: 0.0, 1: 0.1, 3: 0.3}
    time.sleep(0.002)
    whole.start("try")
    whole.metrics(3, {"accuracy": 0.3})  # written, but its stage's record was not
    whole.metrics(2, {"accuracy": 0.2})
    assert delivered(run, "accuracy") == {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3}
    (run / "mlflow.json").unlink()
    assert delivered(run, "accuracy") == {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3}


def test_a_fork_has_what_it_shares_at_the_same_steps(runs: Path) -> None:
    origin = new_run(runs, "origin")
    stage(origin, "01-sft", 2, 100.0, content="c0ffee")
    stage(origin, "02-dapo", 2, 200.0)
    sync_run(origin)
    fork = new_run(runs, "fork")
    shared = json.loads((origin / "stages/01-sft/result.json").read_text())
    checkpoint = "../../../origin/stages/01-sft/checkpoints/step-000002"
    write_json(fork / "stages/01-sft/result.json", shared | {"shared": "origin", "checkpoint": checkpoint})
    assert delivered(fork) == steps(1, [101, 102])
    set_aside(origin, "01-sft")  # its origin trains the stage again; the fork keeps what it was made from
    stage(origin, "01-sft", 3, 1100.0, content="other")
    stage(fork, "02-dapo", 3, 1200.0)
    assert delivered(fork) == steps(1, [101, 102, 1201, 1202, 1203])
    assert delivered(origin) == steps(1, [101, 102, 201, 202, 1101, 1102, 1103])
    (fork / LINE_FILE).unlink()
    assert delivered(fork) == steps(1, [101, 102, 1201, 1202, 1203]), "found among the attempts of its origin"
    shutil.rmtree(origin)
    assert delivered(fork) == steps(1, [101, 102, 1201, 1202, 1203])


def test_runs_of_earlier_versions_get_their_curves_by_sync(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0, accuracy_after=0.5, interval=[0.4, 0.6])
    Journal(run / "journal.jsonl").end()
    sync_run(run)
    assert not needs_delivery(run)
    (run / LINE_FILE).unlink()  # an earlier version has none
    assert needs_delivery(run) and count_undelivered(run) == 4
    assert delivered(run) == steps(1, [101, 102]) and not needs_delivery(run)


def test_a_run_that_is_gone_from_mlflow_gets_everything_again(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0)
    delivered(run)
    old = read_run_ids(run)[""]
    client(runs).delete_run(old)
    client(runs)._tracking_client.store._hard_delete_run(old)
    stage(run, "02-dapo", 1, 200.0)
    sync_run(run)
    assert delivered(run) == steps(1, [101, 102, 201]) and read_run_ids(run)[""] != old


def test_a_complete_run_that_was_deleted_in_mlflow_is_no_error(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0)
    delivered(run)
    (run / LINE_FILE).unlink()  # as of an earlier version
    client(runs).delete_run(read_run_ids(run)[""])
    assert sync_run(run).message == "" and not needs_delivery(run)
    Journal(run / "journal.jsonl").tags({"more": "to say"})
    assert "deleted" in sync_run(run).message


def test_the_figure_is_drawn_at_each_end_of_a_stage_and_sent(runs: Path) -> None:
    run = new_run(runs)
    stage(run, "01-warm $up$", 3, 0.1, accuracy_before=0.1, accuracy_after=0.5, interval=[0.4, 0.6])
    delivered(run)
    drawn = (run / "pipeline.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    sent = {path.name: path for path in (runs / "mlartifacts" / read_run_ids(run)[""]).rglob("pipeline.*")}
    assert sent["pipeline.png"].read_bytes().startswith(b"\x89PNG") and sent["pipeline.svg"].read_text() == drawn
    os.utime(run / "pipeline.svg", (1, 1))
    train(begin(run, "02-dapo"), range(1, 2), 0.2)
    delivered(run)
    assert (run / "pipeline.svg").stat().st_mtime == 1, "nothing has ended"
    finish(Journal(run / "stages/02-dapo/journal.jsonl"), 1, accuracy_after=None, interval=None)
    assert needs_delivery(run)
    delivered(run)
    assert (run / "pipeline.svg").stat().st_mtime > 1
    assert sent["pipeline.svg"].read_text() == (run / "pipeline.svg").read_text() != drawn


def test_a_figure_that_cannot_be_written_holds_nothing_back(runs: Path) -> None:
    run = new_run(runs)
    (run / "pipeline.svg").mkdir()
    stage(run, "01-sft", 2, 100.0)
    assert delivered(run) == steps(1, [101, 102])


@pytest.mark.parametrize("line", ["null", "{", '{"run_id": 7, "done": 3}'])
def test_a_damaged_record_of_delivery_costs_nothing_but_time(runs: Path, line: str) -> None:
    run = new_run(runs)
    stage(run, "01-sft", 2, 100.0)
    delivered(run)
    (run / LINE_FILE).write_text(line)
    assert delivered(run) == steps(1, [101, 102])
