"""The list of runs costs the same few reads for each of them, however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_pipeline import STAGE_CONFIGS, pipeline

from gradus.flows.screen.status import all_runs
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.runs.run_folder import RunFolder


def test_a_list_of_runs_reads_each_a_few_times_and_interprets_no_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stages = pipeline([{"stage": "sft"}, {"stage": "dapo", "group_size": 2}]), []
    result = {"variant": "manual", "steps": 2, "accuracy_before": 0.1, "accuracy_after": 0.2, "checkpoint": "c"}
    for number in range(40):
        runs = tmp_path / ("many" if number < 30 else "few")
        run = RunFolder.create(runs, config, f"run-{number}", tmp_path / "tiny.yaml", STAGE_CONFIGS)
        write_sealed(run.path / "start.json", {"accuracy": 0.1, "checkpoint": "start"})
        stages = [{"name": stage.label, **result} for stage in config.stages]
        for index in range(2 if number % 2 else 1):
            write_sealed(run.stage_dir(index) / "result.json", stages[index])
        if number % 2:
            summary = {"stages": stages, "accuracy_start": 0.1, "accuracy_end": 0.2, "seconds": 3}
            write_sealed(run.path / "summary.json", summary)
    reads, read = list[Path](), Path.read_bytes

    def counted(path: Path) -> bytes:
        reads.append(path)
        return read(path)

    def parse(text: str, source: str) -> None:
        raise AssertionError(f"{source} is interpreted")

    monkeypatch.setattr(Path, "read_bytes", counted)
    monkeypatch.setattr(yaml_text, "parse", parse)
    counts = []
    for runs in (tmp_path / "few", tmp_path / "many"):
        listed = all_runs(runs, STAGE_CONFIGS)
        assert {run["state"] for run in listed} == {"done", "stopped"}
        assert {run["stage"] for run in listed if run["state"] == "stopped"} == {"dapo"}
        counts.append(len(reads))
        reads.clear()
    assert counts[1] == 3 * counts[0], "and not its square"
    assert counts[0] <= 20 * 10
