"""One side of a comparison: a run as it is after its newest stage that is done, or after a stage that is named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.config.options import identity
from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder
from gradus.pipeline.runs.run_paths import typed
from gradus.pipeline.runs.run_records import answers_of
from gradus.pipeline.runs.task_accuracies import START
from gradus.pipeline.tasks.prompts.answers import Answer, read_answers


@dataclass(frozen=True)
class State:
    """The policy of a run after one of its stages, as it was measured then."""

    run: RunFolder
    index: int | None
    """The stage, counted from 0; None is the policy before any stage."""
    newest: bool = False
    """Whether the run was named alone and is not complete, so that this is the newest state it has."""

    @property
    def label(self) -> str:
        """The name of the stage."""
        return START if self.index is None else self.run.outline[self.index]["name"]

    @property
    def name(self) -> str:
        """``RUN:STAGE``, as it can be typed."""
        return f"{self.run.name}:{self.label}"

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record that was written when it had been measured."""
        return (self.run.start() if self.index is None else self.run.result(self.index)) or {}

    @property
    def content(self) -> str | None:
        """The hash of its weights, tokenizer and template."""
        return self.record.get("content")

    @cached_property
    def answers(self) -> dict[str, Answer] | None:
        """id of a held-out prompt -> what it answered; None where no answers were kept."""
        return read_answers(*answers_of(self.run, self.index))

    def correct(self) -> dict[str, bool] | None:
        """id of a held-out prompt -> whether it was answered correctly; None where that was not kept."""
        known = self.record.get("correct") if self.index is None else self.run.heldout(self.index)
        if known is None and self.answers is not None:
            known = {key: answer.correct for key, answer in self.answers.items()}
        return known

    def criterion(self, task: str) -> dict[str, Any]:
        """What made a completion of this task correct when the state was evaluated: a reward and its threshold."""
        config = self.run.config
        judged = (config if self.index is None else config.in_stage(config.stages[self.index])).judgement(task)
        reward = next(each for each in judged.rewards if each.label == judged.accuracy_reward)
        return {**identity(reward), "name": None, "weight": None, "threshold": judged.evaluation.threshold}

    def config(self) -> PipelineConfig:
        """The run's configuration with those stages alone that the state comes from."""
        config, own = self.run.config, {self.index}
        if self.index is not None:
            own |= graph.needed(config.stages, self.index)
        return config.model_copy(update={"stages": [s for place, s in enumerate(config.stages) if place in own]})


def find_state(text: str, runs: Path, stage_configs: list) -> State:
    """The state that ``RUN``, ``RUN:STAGE``, ``RUN:start`` or a checkpoint's folder names. Raises: UserError."""
    path = Path(text).expanduser()
    if len(path.parts) > 1 and os.path.isdir(path):
        return _of_folder(path.absolute(), stage_configs)
    name, _, label = text.partition(":")
    if not name:
        expected = "the name of a run, RUN:STAGE, or the folder of a checkpoint"
        raise UserError("this names no run", got=repr(text), expected=expected, fix="`gradus status` lists the runs")
    run = RunFolder(runs / name, stage_configs)
    if ":" in text:
        return _measured(run, None if label == START else run.stage_index(label, text))
    done = [index for index in range(len(run.outline)) if run.result(index)]
    if not done:
        raise UserError(
            f"no stage of the run {run.name!r} has been evaluated yet",
            where=text,
            got=run.state(),
            expected="a run with a stage that is done" + (f", or {run.name}:{START}" if run.start() else ""),
            fix=f"{typed(run, 'resume')} continues it",
        )
    return State(run, done[-1], newest=done[-1] + 1 < len(run.outline))


def _measured(run: RunFolder, index: int | None) -> State:
    """The state after a stage. Raises: UserError where it has not been evaluated."""
    state = State(run, index)
    if not state.record:
        done = [each["name"] for place, each in enumerate(run.outline) if run.result(place)]
        what = "the policy before any stage" if index is None else f"the stage `{state.label}`"
        raise UserError(
            f"{what} of the run {run.name!r} has not been evaluated yet",
            where=state.name,
            got=run.state(),
            expected=f"a stage that is done: {', '.join(done)}" if done else "a stage that is done",
            fix=f"{typed(run, 'resume')} continues the run",
        )
    return state


def _of_folder(path: Path, stage_configs: list) -> State:
    """The state whose run's folder, or whose checkpoint's folder, this is. Raises: UserError."""
    folder = next((each for each in (path, *path.parents) if (each / RUN_FILE).is_file()), None)
    if folder is None:
        fix = "name a run, RUN:STAGE, or a checkpoint that `gradus status NAME` lists"
        raise UserError("this folder lies in no run, so it has not been evaluated", where=str(path), fix=fix)
    run = RunFolder(folder, stage_configs)
    if folder == path:
        return find_state(run.name, path.parent, stage_configs)
    for index in (None, *range(len(run.outline))):
        state = State(run, index)
        if Path(state.record.get("checkpoint", "")) == path:
            return state
    raise UserError(
        "this checkpoint has not been evaluated on the held-out prompts",
        where=str(path),
        expected="the checkpoint that a stage hands over, which is measured when the stage is done",
        fix=f"{typed(run, 'status')} lists them; `gradus eval CHECKPOINT` measures any",
    )
