"""Run one stage of a pipeline: reuse its result, resume it, or train it, here or in several processes."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.records import write_sealed
from gradus.pipeline.common.shown import gradus_command
from gradus.pipeline.execution.launch import launched
from gradus.pipeline.execution.train import reward_suite, train
from gradus.pipeline.execution.work.merge import merge
from gradus.pipeline.execution.work.recorded import StageWork
from gradus.pipeline.runs.checkpoint import discard_from, newest_whole, read_record, verified_record
from gradus.pipeline.runs.identity import begin_stage, fingerprint, stage_identity
from gradus.pipeline.runs.lineage import beside, made_otherwise, needs_checkpoint
from gradus.pipeline.runs.run_folder import FAILURE_FILE, RESULT_FILE, RunFolder
from gradus.pipeline.runs.task_accuracies import accuracy_curves
from gradus.pipeline.runs.verify import handover_damage
from gradus.pipeline.stage import Stage
from gradus.pipeline.tasks.several.build import load_tasks
from gradus.pipeline.tracking.journal import Journal


def run_stage(run: RunFolder, index: int, parent: str, stage: Stage | None, observer: Observer) -> dict[str, Any]:
    """Do stage ``index`` from the checkpoint ``parent``; returns its success record, or the one that it already has.

    ``stage``: the algorithm that it trains with; None where it takes no steps.

    The record is written last: an interrupted stage has none, and is resumed from its newest undamaged checkpoint.

    Raises: StageFailed, UserError, Interrupted; the reason of a failure is also written to the stage's folder.
    """
    config, total = run.config.stages[index], len(run.config.stages)
    if _done(run, index, observer):
        observer.note(f"stage {config.label} is done already: its checkpoint is reused")
        return {**(run.result(index) or {}), "reused": True}
    parent_record = verified_record(Path(parent), with_state=bool(config.carry))
    tasks = load_tasks(run.data_dir, run.config.named_tasks)
    others = beside(run, index)
    made_of = stage_identity(run.config, index, parent_record, tasks.hashes, others)
    folder = begin_stage(run, index, made_of)
    checkpoint = newest_whole(folder, parent_record.content, observer.note)
    observer.stage_started(config.label, index, total, config.steps, read_record(checkpoint).step if checkpoint else 0)
    work = StageWork(run, index, Path(parent), parent_record, tasks, fingerprint(made_of), checkpoint)
    with Journal(folder / "journal.jsonl") as own, Journal(run.path / "journal.jsonl") as whole:
        try:
            result = _made(work, stage, own, observer)
            result |= {"inputs": others} if others else {}
            # Behind the points of all earlier attempts, and the same in a launch that writes it again.
            again = sum(len(run.attempts(each)) for each in range(total))
            whole.metrics(index + 1 + again * total, accuracy_curves(result["accuracy_after"], result))
            write_sealed(folder / RESULT_FILE, result)
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt | SystemExit)
            if not killed:
                line = str(error).splitlines()[0] if str(error) else repr(error)
                with contextlib.suppress(OSError):  # the failure may be a full disk
                    write_json(folder / FAILURE_FILE, {"error": line, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
            for journal in (own, whole):
                journal.end("KILLED" if killed else "FAILED")
            raise
    finished = run.result(index)
    assert finished is not None
    observer.stage_finished(config.label, finished)
    interruption.leave_if_requested()
    return finished


def _made(work: StageWork, stage: Stage | None, journal: Journal, observer: Observer) -> dict[str, Any]:
    """The success record of a stage that is trained, here or in several processes, or that merges what others made."""
    run, config = work.run, work.run.config
    if stage is not None and (config.launch.processes > 1 or config.abreast > 1):
        where = {"parent": str(work.parent), "resume_from": work.resume_from}
        return launched(run, work.index, stage, where, observer)
    with reward_suite(run, work.parent, config.in_stage(config.stages[work.index])) as suite:
        if stage is None:
            return merge(work, suite, journal, observer)
        return train(work, stage, suite, journal, observer)


def _done(run: RunFolder, index: int, observer: Observer) -> bool:
    """Whether the stage has a result that can be reused.

    It must come from today's inputs, and its checkpoint must be undamaged where it is still needed. A result from
    others is set aside; a damaged one is removed, so that it is made again.
    """
    done = run.result(index)
    if done is None:
        return False
    if made_otherwise(run, index, done):
        run.set_aside(index)
        return False
    damaged = handover_damage(done) if needs_checkpoint(run, index) else ""
    if damaged and "shared" in done:
        verify = gradus_command("verify", done["shared"], runs=run.path.parent)
        raise UserError(
            f"the checkpoint that this run shares with {done['shared']} is damaged",
            where=done["checkpoint"],
            got=damaged,
            fix=f"`{verify}` says what can be done; a new fork starts from what is there now",
        )
    if damaged:
        observer.note(f"the result of stage {done['name']} is damaged ({damaged}); it is made again")
        (run.stage_dir(index) / RESULT_FILE).unlink()
        discard_from(run.stage_dir(index), Path(done["checkpoint"]))
    return not damaged
