"""A pipeline that trains in seconds: its task, its configuration, and a run of it without a flow."""

from __future__ import annotations

import json
import random
from pathlib import Path

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.graph.inputs import parent
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.stages import discover

TASK = {
    "source": "file",
    "path": "task.jsonl",
    "heldout": 12,
    "validation": 6,
    "demonstrations": "column",
    "columns": {"demonstration": "solution"},
}
STAGE_CONFIGS = [stage.config for stage in discover().values()]


def write_task(folder: Path, rows: int = 60) -> None:
    """``task.jsonl``: sums with their answers and worked solutions, the same in every call."""
    rng = random.Random(0)
    seen = {(rng.randint(0, 40), rng.randint(0, 40)) for _ in range(3 * rows)}
    lines = [
        {"question": f"{a} + {b} =", "answer": str(a + b), "solution": f"{a}+{b}={a + b}; answer: {a + b}"}
        for a, b in sorted(seen)[:rows]
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, lines)))


def pipeline(stages: list[dict], configs=STAGE_CONFIGS, **options) -> PipelineConfig:
    """A configuration of these stages with small defaults; ``options`` replace whole top-level entries."""
    trained = {"steps": 2, "prompts_per_step": 3, "warmup": 0, "kl_every": 1}
    architecture = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    raw = {
        "name": "tiny",
        "policy": {
            "architecture": {**architecture, "num_attention_heads": 2, "num_key_value_heads": 2},
            "device": "cpu",
        },
        "task": TASK,
        "rewards": [{"reward": "exact_answer"}, {"reward": "equation_steps", "weight": 0.5}],
        "sampling": {"max_tokens": 10},
        "tracking": {"histogram_every": 1},
        "stages": [stage if stage["stage"] == "merge" else {**trained, **stage} for stage in stages],
        **options,
    }
    return pipeline_model(configs).model_validate(raw)


def launch(folder: Path, config: PipelineConfig, name="run", observer=None, configs=STAGE_CONFIGS) -> RunFolder:
    """Train a run to its end in this process, without a flow, a lock or an uploader."""
    if not (folder / "task.jsonl").exists():
        write_task(folder)
    run = RunFolder.create(folder / "runs", config, name, folder / "tiny.yaml", configs)
    observer = observer or Observer()
    made, stages = {None: prepare(run, observer)["checkpoint"]}, run.config.stages
    for index, stage in enumerate(stages):
        algorithm = discover()[stage.stage] if stage.trains else None
        made[index] = run_stage(run, index, made[parent(stages, index)], algorithm, observer)["checkpoint"]
    return run


class Notes(Observer):
    """Collects the notes that a user would see."""

    def __init__(self, notes: list[str]):
        self.note = notes.append
