"""The journal: complete lines, names and numbers that MLflow accepts, and no exceptions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradus.pipeline.tracking.journal import Journal, journals, read_events, tracked_name


def test_events_come_back_in_order_with_kind_and_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "stages/01-a/journal.jsonl")
    journal.start("1 a", {"variant": "manual"}, {"lr": 1e-4, "clip": None})
    journal.metrics(1, {"reward/mean": 0.5})
    journal.table("samples", 1, [{"question": "1+1", "answer": "2"}])
    journal.end()
    events, offset = read_events(journal.path)
    assert [event["kind"] for event in events] == ["start", "metrics", "table", "end"]
    assert all(event["time"] > 1.6e12 for event in events)  # milliseconds, after 2020
    assert events[0]["params"] == {"lr": 1e-4, "clip": None}
    assert offset == journal.path.stat().st_size


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics(1, {"a": 1})
    first, offset = read_events(journal.path)
    journal.metrics(2, {"a": 2})
    second, end = read_events(journal.path, offset)
    assert [event["step"] for event in first + second] == [1, 2]
    assert read_events(journal.path, end) == ([], end)


def test_a_torn_last_line_waits_and_never_swallows_the_next_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics(1, {"a": 1})
    whole = journal.path.stat().st_size
    with journal.path.open("ab") as file:  # a process killed in the middle of its write
        file.write(b'{"kind":"metrics","time":17')
    events, offset = read_events(journal.path)
    assert ([event["step"] for event in events], offset) == ([1], whole)
    resumed = Journal(journal.path)
    resumed.metrics(2, {"a": 2})
    resumed.metrics(3, {"a": 3})
    events, _ = read_events(journal.path, offset)
    assert [event["step"] for event in events] == [2, 3]


def test_non_finite_values_are_dropped_and_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics(4, {"loss": float("nan"), "kl": float("inf"), "reward": 1.0, "text": "no number"})
    (event,), _ = read_events(journal.path)
    assert event["values"] == {"reward": 1.0, "tracking/nonfinite_dropped": 3.0}
    journal.metrics(5, {"reward": 1.0})
    assert read_events(journal.path)[0][1]["values"] == {"reward": 1.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reward/mean", "reward/mean"),
        ("a__b", "a__b"),
        ("pass@1", "pass_at_1"),
        ("/lead//slash/", "lead/slash"),
        ("../up", "up"),
        ("f(x)=y", "f_x_y"),
        ("größe", "gr_e"),
        ("", "unnamed"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_become_what_mlflow_accepts(name: str, expected: str) -> None:
    assert tracked_name(name) == expected


def test_foreign_values_become_plain_data(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics(torch.tensor(3), {"loss": torch.tensor(0.5)})
    journal.histogram(3, "advantage", torch.tensor([1.0, float("nan"), 2.0]))
    journal.table(
        "samples", 3, [{"reward": torch.tensor(1.5), "path": Path("x"), "nan": float("nan"), "bad": "\udc80"}]
    )
    metrics, histogram, table = read_events(journal.path)[0]
    assert (metrics["step"], metrics["values"]) == (3, {"loss": 0.5})
    assert histogram["values"] == [1.0, 2.0]
    assert table["rows"] == [{"reward": 1.5, "path": "x", "nan": None, "bad": "?"}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_counted_and_never_raises() -> None:
    journal = Journal("/dev/full")
    journal.metrics(1, {"a": 1})
    journal.metrics(2, {"a": 1})
    assert journal.lost == 2


def test_the_parent_journal_comes_first_then_the_stages_in_order(tmp_path: Path) -> None:
    for folder in ("stages/02-b", "stages/10-c", "stages/01-a", "."):
        Journal(tmp_path / folder / "journal.jsonl").end()
    assert [label for label, _ in journals(tmp_path)] == ["", "01-a", "02-b", "10-c"]
    assert journals(tmp_path / "nowhere") == []


def test_the_trainers_side_imports_neither_mlflow_nor_torch() -> None:
    modules = ", ".join(f"gradus.pipeline.tracking.{name}" for name in ("journal", "position", "uploader", "ui"))
    code = f"import json, sys, {modules};"
    code += "print(json.dumps([m for m in ('mlflow', 'torch', 'matplotlib', 'numpy') if m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == []
