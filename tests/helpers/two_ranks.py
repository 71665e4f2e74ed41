"""A pipeline's stages, one after the other, in the processes of one torchrun: ``two_ranks.py FOLDER NAME SHARD``.

A launch starts torchrun anew for every stage, which takes seconds each time; here the same ranks train all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from small_pipeline import STAGE_CONFIGS

from gradus.pipeline.common.files import write_json
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.ranks import Ranks, join
from gradus.pipeline.execution.train import StageWork, reward_suite, train
from gradus.pipeline.runs.checkpoint import verified_record
from gradus.pipeline.runs.identity import begin_stage, fingerprint, stage_identity
from gradus.pipeline.runs.run_folder import RESULT_FILE, RunFolder
from gradus.pipeline.tasks.several.build import load_tasks
from gradus.pipeline.tracking.journal import Journal, SilentJournal
from gradus.stages import discover


def train_stage(run: RunFolder, index: int, ranks: Ranks) -> None:
    before = run.result(index - 1) if index else run.start()
    assert before is not None
    parent, tasks = Path(before["checkpoint"]), load_tasks(run.data_dir, run.config.named_tasks)
    record = verified_record(parent)
    made_of = stage_identity(run.config, index, record, tasks.hashes)
    if ranks.leads:
        begin_stage(run, index, made_of)
    ranks.meet()
    work = StageWork(run, index, parent, record, tasks, fingerprint(made_of), None)
    journal = (Journal if ranks.leads else SilentJournal)(run.stage_dir(index) / "journal.jsonl")
    with reward_suite(run, parent, run.config, ranks.size) as suite:
        stage = discover()[run.config.stages[index].stage]
        result = train(work, stage, suite, journal, Observer(), ranks)
    if ranks.leads:
        write_json(run.stage_dir(index) / RESULT_FILE, result)
    ranks.meet()


def main(folder: Path, *runs: str) -> None:
    for name in runs:
        run = RunFolder(folder / "runs" / name, STAGE_CONFIGS)
        if not torch.distributed.is_initialized():
            group = join("cpu", False, 120.0)
        ranks = Ranks(group.rank, group.size, run.config.launch.shard == "fsdp")
        for index in range(len(run.config.stages)):
            train_stage(run, index, ranks)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
