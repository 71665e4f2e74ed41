"""The check of a GPU machine goes through all of its steps on a CPU, so that it works when it first meets a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest
import torch
from benchmarks.gpu import parts
from benchmarks.gpu.findings import Findings, Setup, exit_code
from paths import REPOSITORY, search_path

PARTS = ["environment", "chains", "agreement", "speed", "operations", "planning"]


def check(out: Path, *options: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(out), *options]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE)
    return done.returncode, done.stdout


def test_the_check_goes_through_on_a_cpu(tmp_path: Path) -> None:
    code, said = check(tmp_path / "out", "--device", "cpu")
    log = (tmp_path / "out" / "log.txt").read_text()
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [result["part"] for result in results] == PARTS
    assert [result["status"] for result in results] == ["done"] * len(PARTS), log
    assert code == 0, said
    assert (tmp_path / "out" / "report.md").read_text() in said
    found = {(line["part"], line["what"]): line for result in results for line in result["findings"]}
    assert found["chains", "float32 and killed and resumed"]["value"] == "the same bits"
    assert 0 < found["chains", "killed in GFPO after step"]["value"] < 6, "not at its end"
    for name in ("Llama", "Qwen 3", "Gemma 3"):
        assert found["agreement", f"{name}: gradients, padded"]["ok"]
    assert all(value["value"] > 0 for (part, what), value in found.items() if part == "speed" and "tokens/s" in what)


def test_a_part_that_takes_too_long_is_ended_and_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(setup: Setup, found: Findings) -> None:
        found.add("found before", 1)
        subprocess.run(["sleep", "100"])

    sleeping = types.ModuleType("benchmarks.gpu.sleeping")
    monkeypatch.setattr(sleeping, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, sleeping.__name__, sleeping)
    monkeypatch.setattr(parts, "STEPS", ((parts.Part("sleeping", 3),), (parts.Part("planning", 60),)))
    before = set(psutil.Process().children(recursive=True))
    setup = Setup("cpu", tiny=True, out=tmp_path, scratch=tmp_path, seconds=0.0)
    results = parts.run_all(setup, ["sleeping", "planning"], seconds=6)  # the second has less than 5 seconds left
    assert [(result["part"], result["status"]) for result in results] == [
        ("sleeping", "cut short"),
        ("planning", "no time left"),
    ]
    assert [found["what"] for found in results[0]["findings"]] == ["found before"]
    assert exit_code(results) == 1
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_and_nothing_else_is_tried(tmp_path: Path) -> None:
    setup = Setup("cuda", tiny=True, out=tmp_path, scratch=tmp_path, seconds=0.0)
    (result,) = parts.run_all(setup, PARTS, seconds=60)
    assert result["status"] == "failed" and "PyTorch finds no CUDA device; --device cpu" in result["error"]
    assert exit_code([result]) == 2


@pytest.mark.gpu
def test_the_check_goes_through_on_a_gpu(tmp_path: Path) -> None:
    code, said = check(tmp_path / "out", "--device", "cuda")
    assert code == 0, said
