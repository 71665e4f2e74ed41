"""How long `gradus prompts` takes on a large memory, and what remembering costs a stage.

    python -m benchmarks.prompts [--prompts 1000000] [--visits 10] [--repeat 3] [--stage 20]

Makes the folder of a run with that many prompts and visits in a temporary place, runs the command there in a process of
its own, and measures how long remembering a batch of 128 groups of 16 completions takes. ``--stage`` trains the
quickstart's DAPO for so many steps instead, and says which share of their time goes into remembering.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import torch

import gradus
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tasks.prompts.memory import BYTES, PromptMemory, dtype
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

GROUPS, COMPLETIONS, TOKENS = 128, 16, 1024


def made_up(folder: Path, prompts: int, visits: int) -> RunFolder:
    """A run whose second stage remembers this."""
    configs = [stage.config for stage in discover().values()]
    loaded = load_config("quickstart", [], configs)
    run = RunFolder.create(folder, loaded.config, "made-up", loaded.path, configs)
    chance = numpy.random.default_rng(0)
    keys = chance.integers(0, 2**64, prompts, dtype="u8")
    ids = keys.astype(">u8").tobytes().hex()
    run.data_dir.mkdir()
    table = {"id": [ids[at : at + 16] for at in range(0, len(ids), 16)], "question": ["1 + 1 ="] * prompts}
    pyarrow.parquet.write_table(pyarrow.table(table | {"answer": ["2"] * prompts}), run.data_dir / "train.parquet")
    rows = numpy.zeros(prompts * visits, dtype())
    rows["id"] = numpy.concatenate([chance.permutation(keys) for _ in range(visits)])
    rows["step"], rows["valid"] = numpy.arange(len(rows)) // GROUPS + 1, COMPLETIONS
    rows["correct"] = chance.integers(0, COMPLETIONS + 1, len(rows))
    run.memory(1).parent.mkdir(parents=True)
    rows.tofile(run.memory(1))
    return run


def seconds_to_remember(folder: Path, batches: int = 20) -> float:
    """Seconds that remembering and writing one batch take."""
    shape = (GROUPS, COMPLETIONS)
    rewards = torch.rand(shape)
    rollouts = Rollouts(
        prompts=[Prompt(f"{n:016x}", "", "") for n in range(GROUPS)],
        prompt_tokens=[[1]] * GROUPS,
        tokens_PKT=torch.zeros((*shape, TOKENS), dtype=torch.int64),
        mask_PKT=torch.ones((*shape, TOKENS), dtype=torch.bool),
        rollout_logprobs_PKT=torch.zeros((*shape, TOKENS)),
        truncated_PK=torch.zeros(shape, dtype=torch.bool),
        texts=[[""] * COMPLETIONS] * GROUPS,
        rewards_PK=rewards,
        valid_PK=torch.ones(shape, dtype=torch.bool),
        correct_PK=rewards > 0.5,
    )
    memory, began = PromptMemory(folder / "prompts.bin"), time.perf_counter()
    for step in range(1, batches + 1):
        memory.add(rollouts, step)
        memory.write(step)
    return (time.perf_counter() - began) / batches


def share_of_a_stage(folder: Path, steps: int) -> None:
    """Train the quickstart's SFT briefly and its DAPO, and print what remembering took of each step of the latter."""
    spent = dict.fromkeys(("add", "write", "sync"), 0.0)
    for name in spent:
        setattr(PromptMemory, name, _timed(getattr(PromptMemory, name), name, spent))
    stages = [{"stage": "sft", "steps": 60, "lr": 2e-3}, {"stage": "dapo", "steps": steps}]
    run = gradus.run("quickstart", "stage", {"stages": stages}, runs=folder, engine="none")
    file = run.path / "stages" / "02-dapo" / "journal.jsonl"
    events = [json.loads(line).get("values", {}) for line in file.read_text().splitlines()]
    times = [values["time/step"] for values in events if "time/step" in values]
    mean, each = sum(times) / len(times), sum(spent.values()) / len(times)
    print(f"{len(times)} steps of DAPO: {mean:.3f} s each; remembering: {1000 * each:.2f} ms each, {each / mean:.3%}")


def _timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*given)
        finally:
            spent[name] += time.perf_counter() - began

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--visits", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--stage", type=int, metavar="STEPS", default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.stage:
            share_of_a_stage(Path(folder), asked.stage)
            return
        run = made_up(Path(folder), asked.prompts, asked.visits)
        command = [sys.executable, "-m", "gradus", "prompts", run.name, "--runs", folder]
        for _ in range(asked.repeat):
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{asked.prompts:,} prompts, {asked.visits} visits: {wall:.2f} s, {cpu:.2f} s of CPU time")
        each = seconds_to_remember(Path(folder))
        what = f"{GROUPS} groups of {COMPLETIONS} completions of {TOKENS} tokens"
        print(f"remembering {what}: {1000 * each:.2f} ms; {BYTES} bytes a group")


if __name__ == "__main__":
    main()
