"""A signal at every moment of the loop: the steps that were made are in a checkpoint when the stage is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_pipeline import launch, pipeline

from gradus.pipeline.common.interruption import SIGNALS, Interrupted, handled
from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.training import trainer
from gradus.pipeline.training.checkpoints import StageCheckpoints
from gradus.pipeline.training.learned import Learned
from gradus.pipeline.training.progress import StepLog

STEPS, AT = 4, 2


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("owner", "method", "call", "kept"),
    [
        (Learned, "begin", AT, AT),  # early in a step, which is finished
        (StepLog, "step", AT, AT),  # when its curves are written
        (StageCheckpoints, "due", AT, AT + 1),  # after the loop has asked for signals: one step more
        (StageCheckpoints, "due", STEPS, STEPS),  # the same after the last step
        (StageCheckpoints, "save", 1, STEPS),  # before the checkpoint that is handed over
        (trainer.Trainer, "_hand_over", 1, STEPS),
    ],
)
def test_every_step_that_was_made_is_kept(
    owner: Any, method: str, call: int, kept: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = getattr(owner, method)
    calls = []

    def struck(*arguments: Any, **options: Any) -> Any:
        calls.append(number)
        if len(calls) == call:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number if number == signal.SIGHUP else 0)  # a terminal that goes away may send two
        return real(*arguments, **options)

    monkeypatch.setattr(owner, method, struck)
    config = pipeline([{"stage": "sft", "steps": STEPS}], checkpoints={"every_steps": 100})
    with pytest.raises(Interrupted) as left, handled():
        launch(tmp_path, config)
    assert left.value.code == 128 + number
    stage = tmp_path / "runs" / "run" / "stages" / "01-sft"
    assert [step for step, _ in checkpoints_in(stage)] == [kept]
    assert max(metric_history(stage / "journal.jsonl")["update/loss"]) == kept
