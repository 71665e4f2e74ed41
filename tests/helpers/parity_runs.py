"""Runs on a task whose outcomes are known beforehand: a policy that was shown one answer gives it to every prompt, and
so is right on about half of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small_pipeline import TASK, launch, pipeline

from gradus.pipeline.runs.run_folder import RunFolder

ODD_TEXT = "100 \x1b[31m<script>alert(1)</script>"
"""What a question holds beside its number: text that would control a terminal or a page."""


def write_parity(folder: Path, rows: int = 60) -> None:
    """``task.jsonl``: numbers with their parity as the answer, and demonstrations that always say 0, or always 1."""
    lines = [
        {"question": f"{n}? {ODD_TEXT}", "answer": str(n % 2), "zero": "answer: 0", "one": "answer: 1"}
        for n in range(100, 100 + rows)
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, lines)))


def parity_task(says: str, **more: Any) -> dict[str, Any]:
    """The task with the demonstrations of one column, ``zero`` or ``one``."""
    return {**TASK, "heldout": 16, "validation": 0, "columns": {"demonstration": says}, **more}


def parity_run(folder: Path, name: str, says: str = "zero", lr: float = 0.02, **options: Any) -> RunFolder:
    """A run of SFT, which learns the one answer, and of DAPO, which has nothing to learn from groups that agree."""
    if not (folder / "task.jsonl").exists():
        write_parity(folder)
    stages = [
        {"stage": "sft", "steps": 20, "prompts_per_step": 8, "lr": lr},
        {"stage": "dapo", "steps": 1, "group_size": 2, "lr": 1e-5},
    ]
    given = {"sampling": {"max_tokens": 6}, "task": parity_task(says), **options}
    return launch(folder, pipeline(stages, **given), name=name)
