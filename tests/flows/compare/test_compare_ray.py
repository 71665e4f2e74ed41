"""A comparison on a Ray cluster of this machine with two workers."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from comparisons import NAMES, PATIENCE, Comparison
from flow_runs import api
from typer.testing import CliRunner

from gradus.flows.cli import app
from gradus.pipeline.common.files import read_json

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("prefect_ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.timeout(1200)


def test_it_stops_in_good_order_and_goes_on_to_the_end(home: Path, tmp_path: Path) -> None:
    comparison = Comparison(tmp_path)
    first = comparison.start("--workers", "ray")
    try:
        arm = psutil.Process(comparison.wait_for("gfpo-seed-0", "gfpo-seed-1", patience=2 * PATIENCE))
        above = [" ".join(parent.cmdline()) for parent in arm.parents()]
        assert any("ray::" in each or "default_worker" in each for each in above), f"it is a child of Ray: {above}"
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=PATIENCE)
        assert first.returncode == 143, said
        assert not arm.is_running(), said
        assert not list(comparison.path.glob("*/stop")), "the request goes with the run"

        said = comparison.tell("--workers", "ray")
        for name in NAMES:
            assert comparison.run(name).summary() is not None, said
        tasks = api("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_of(comparison)]}}})
        far = [task for task in tasks if task["name"].endswith("on Ray")]
        assert far and {task["state_type"] for task in far} == {"COMPLETED"}
    finally:
        for process in comparison.started:
            process.kill()


def flow_run_of(comparison: Comparison) -> str:
    return read_json(comparison.path / "prefect.json")["flow_run_id"]


@pytest.mark.parametrize(("words", "said"), [(["spark"], "unknown workers"), (["ray", "--engine", "none"], "Prefect")])
def test_bad_workers_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    found = CliRunner().invoke(app.app, ["compare", "quickstart", "--runs", str(tmp_path), "--workers", *words])
    assert found.exit_code == 2 and said in found.output, found.output
