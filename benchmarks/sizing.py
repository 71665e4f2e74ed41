"""The memory model of `gradus plan --hardware` against measured peaks.

    python -m benchmarks.sizing [--runs 3] [--cases weights ...] [--json FILE]

Each case is a real run (data, stage, evaluation, checkpoints) of a model with random weights, in a separate process.
The process first imports everything and does the same with a model of a few thousand parameters; its resident set is
then the baseline, and the largest resident set beyond it is the measurement. Random models hardly ever draw the end of
sequence, so completions run to the limit, as the memory model assumes.

Each case is measured twice: with a C library that returns freed memory at once, which shows what the work asks for, and
as gradus runs, keeping freed memory (:func:`gradus.pipeline.common.process.keep_freed_memory`), which is faster and
takes more. Exits with 1 where a prediction of what the work asks for is wrong by more than a fifth.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import Worker, machine, peak_memory, spread, table
from benchmarks.workload import make_policy

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.yaml_text import dump
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.estimates.load import Load
from gradus.pipeline.estimates.memory import memory
from gradus.pipeline.estimates.model_size import model_size
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.policy import devices
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.stages import discover

TOLERANCE = 0.2
PROMPTS = 64
"""Of the task, held-out ones included."""


def model(kind: str, vocabulary: int, width: int, layers: int, inner: int, **options: Any) -> dict[str, Any]:
    """The options of an architecture with heads of 64."""
    heads = width // 64
    shape = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner, "head_dim": 64}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocabulary}
    return {"model_type": kind, "max_position_embeddings": 1024, "tie_word_embeddings": True, **shape, **options}


@dataclass(frozen=True)
class Case:
    """A model and what is done with it."""

    model: dict[str, Any]
    stage: dict[str, Any]
    prompt_tokens: int = 32
    new_tokens: int = 48
    heldout: int = 16
    policy: dict[str, Any] = field(default_factory=dict)


LLAMA = model("llama", 4000, 512, 8, 1408)
DAPO = {"stage": "dapo", "steps": 2, "prompts_per_step": 4, "group_size": 4}
MANY = {**DAPO, "prompts_per_step": 16, "group_size": 8}
CASES = {
    "weights": Case(LLAMA, DAPO),
    "activations": Case(LLAMA, MANY, prompt_tokens=16, new_tokens=32),
    "many packs": Case(LLAMA, {**MANY, "token_budget": 1024}, prompt_tokens=16, new_tokens=32),
    "checkpointing": Case(LLAMA, {**MANY, "gradient_checkpointing": True}, prompt_tokens=16, new_tokens=32),
    "long prompts": Case(LLAMA, {**DAPO, "group_size": 8}, prompt_tokens=256, new_tokens=32),
    "vocabulary": Case(model("qwen3", 64_000, 256, 4, 1024, num_key_value_heads=2), {**DAPO, "group_size": 8}),
    "entropy": Case(
        model("qwen3", 64_000, 256, 4, 1024, num_key_value_heads=2),
        {**DAPO, "group_size": 8, "entropy": {"weight": 0.001}},
    ),
    "capped logits": Case(
        model("gemma3_text", 64_000, 256, 4, 1024, num_key_value_heads=2, final_logit_softcapping=30.0),
        {**DAPO, "group_size": 8},
    ),
    "kl": Case(LLAMA, {**DAPO, "kl": 0.001}),
    "evaluation": Case(model("llama", 32_000, 256, 4, 1024), DAPO, new_tokens=16, heldout=512),
    "cache": Case(model("llama", 500, 512, 12, 512), DAPO, new_tokens=16, prompt_tokens=32, heldout=600),
    "gemma": Case(model("gemma3_text", 16_000, 512, 6, 1408, num_key_value_heads=2), {**MANY, "prompts_per_step": 8}),
    "reference": Case(LLAMA, {**DAPO, "stage": "srpo", "baseline": "mean"}),
    "token critic": Case(LLAMA, {**DAPO, "stage": "vapo", "critic": "token"}),
    "untied": Case(model("qwen3", 16_000, 512, 6, 1408, tie_word_embeddings=False), DAPO),
    "bfloat16 products": Case(LLAMA, MANY, prompt_tokens=16, new_tokens=32, policy={"autocast": "bfloat16"}),
    "adapters": Case(LLAMA, MANY, prompt_tokens=16, new_tokens=32, policy={"lora": {"rank": 16}}),
    "demonstrations": Case(LLAMA, {"stage": "sft", "steps": 2, "prompts_per_step": 64}),
}
WAYS = {"asked": False, "kept": True}
"""What is measured -> whether freed memory is kept."""
WARM_UP = Case(model("llama", 500, 64, 1, 64), DAPO, prompt_tokens=8, new_tokens=8)


def give_back() -> None:
    """Let the C library map what is larger than 64 kB and give it back when it is freed, whatever the product asks."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    devices.keep_freed_memory = lambda: None
    mallopt(-3, 64 << 10)  # M_MMAP_THRESHOLD
    mallopt(-4, 2**30)  # M_MMAP_MAX


def write_model(_: Any, options: dict[str, Any], folder: Path) -> None:
    """In a process of its own, whose memory is not measured."""
    make_policy(options).save(folder)


def run(case: Case, folder: Path) -> float:
    """The case for real; returns the peak in bytes that is predicted for it."""
    draw, words = random.Random(0), case.model["vocab_size"]

    def text(length: int) -> str:
        return " ".join(f"w{draw.randrange(2, words)}" for _ in range(length))

    rows = [
        {"question": text(case.prompt_tokens), "answer": "w2", "solution": text(case.new_tokens - 1)}
        for _ in range(PROMPTS + case.heldout)
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"source": "file", "path": "task.jsonl", "heldout": case.heldout, "demonstrations": "column"}
    config = {
        "name": "case",
        "policy": {"path": "model", "threads": 1, "plain_template": "{question}", **case.policy},
        "task": task | {"columns": {"demonstration": "solution"}},
        # Every completion has another length in characters, so that every group has something to learn from.
        "rewards": [{"reward": "length", "params": {"max": 1, "falloff": 10_000}}],
        "sampling": {"max_tokens": case.new_tokens},
        "stages": [case.stage],
    }
    (folder / "case.yaml").write_text(dump(config))
    stages = discover()
    loaded = load_config(str(folder / "case.yaml"), [], [stage.config for stage in stages.values()])
    made = RunFolder.create(folder, loaded.config, "run", loaded.path, [stage.config for stage in stages.values()])
    start = prepare(made, Observer())
    stage = stages[case.stage["stage"]]
    run_stage(made, 0, start["checkpoint"], stage, Observer())
    options = loaded.config.stages[0]
    load = Load.of(loaded.config, options, stage.needs(options), case.prompt_tokens, cuda=False)
    return memory(model_size(loaded.config.policy), load).peak


def worker(pipe: Any, case: Case, folder: Path, keep: bool) -> None:
    """Measures one case: sends (predicted, measured) bytes."""
    torch.set_num_threads(1)
    if not keep:
        give_back()
    run(WARM_UP, folder / "small")
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set is from now on
    baseline = peak_memory()
    predicted = run(case, folder / "case")
    pipe.send((predicted, peak_memory() - baseline))


def measure(case: Case, keep: bool) -> tuple[float, float]:
    """(Predicted, measured) bytes of a case, in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, options in (("small", WARM_UP.model), ("case", case.model)):
            writer = Worker(write_model, options, Path(folder, name, "model"))
            writer.process.join()
        one = Worker(worker, case, Path(folder), keep)
        answer = one.answer()
        one.process.join()
    return answer


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--runs", type=int, default=3, help="processes for each case")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    options = parser.parse_args()
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    rows, kept = [], []
    for name in options.cases:
        case = found[name] = {
            way: [measure(CASES[name], keep) for _ in range(options.runs)] for way, keep in WAYS.items()
        }
        predicted = case["asked"][0][0]
        ratios = {way: [p / m for p, m in pairs] for way, pairs in case.items()}
        measured = {way: spread([m / 1e6 for _, m in pairs], ",.0f") for way, pairs in case.items()}
        kept.append(statistics.median(1 / ratio for ratio in ratios["kept"]))
        missed = "" if abs(statistics.median(ratios["asked"]) - 1) <= TOLERANCE else "missed"
        row = [name, f"{predicted / 1e6:,.0f}", measured["asked"], spread(ratios["asked"]), missed]
        rows.append([*row, measured["kept"], spread([1 / ratio for ratio in ratios["kept"]])])
        print(*rows[-1], sep="\t", flush=True)
    header = ["case", "predicted MB", "measured MB", "predicted / measured", "", "as it runs MB", "over predicted"]
    print(table(header, rows))
    print(f"As it runs, over predicted: {spread(kept)} (hardware.overhead of a cpu)")
    print(machine("torch", "transformers"))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(any(row[4] for row in rows))


if __name__ == "__main__":
    main()
