"""`gradus prompts`: what a run remembers of its prompts, as a person and a program read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from small_pipeline import STAGE_CONFIGS, TASK, pipeline, write_task
from trained_chain import Chain

from gradus.pipeline.runs.prompts_seen import export, prompts_seen
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tasks.prompts.memory import dtype, key_of, read_rows
from gradus.pipeline.tasks.prompts.rates import train_keys
from gradus.pipeline.tasks.several.build import make_tasks

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")


def remember(chain: Chain, index: int, *groups: tuple[int, int, int]) -> list[str]:
    """Let a stage remember groups (row of the training data, correct, scored); returns all ids."""
    run = chain.run()
    keys = train_keys(run.data_dir)
    rows = np.zeros(len(groups), dtype())
    for step, (row, (at, correct, valid)) in enumerate(zip(rows, groups, strict=True), 1):
        row["id"], row["step"], row["correct"], row["valid"] = keys[at], step, correct, valid
        row["reward"] = correct / max(valid, 1)
    rows.tofile(run.memory(index))
    return [f"{key:016x}" for key in keys]


def test_pass_rates_extremes_and_moves_are_counted(chain: Chain) -> None:
    ids = remember(chain, 1, (0, 0, 4), (1, 2, 4), (1, 3, 4), (2, 4, 4), (3, 0, 0))
    remember(chain, 2, (0, 4, 4), (1, 0, 4), (2, 4, 4))
    found = json.loads(chain.tell("prompts", "chain", "--json"))
    dapo, _ = found["stages"]
    (counted,) = dapo["tasks"]
    assert (dapo["groups"], dapo["prompts"], counted["unseen"]) == (5, 4, len(ids) - 4)
    assert counted["counts"] == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1] and counted["mean"] == pytest.approx(1.625 / 3)
    assert [each["id"] for each in dapo["hardest"]] == [ids[0], ids[1], ids[2]], "of one nothing is known"
    assert (dapo["easiest"][0]["id"], dapo["easiest"][0]["correct"], dapo["hardest"][1]["visits"]) == (ids[2], 4, 2)
    assert dapo["hardest"][0]["question"] and dapo["hardest"][0]["answer"]
    (moves,) = found["moves"]
    changed = {way: n for way, n in moves["counts"].items() if n}
    assert changed == {"failed -> solved": 1, "mixed -> failed": 1, "solved -> solved": 1}
    said = chain.tell("prompts", "chain")
    assert "dapo to gfpo, of 3 prompts of both: failed -> solved 1, mixed -> failed 1" in said and "█" in said
    only = json.loads(chain.tell("prompts", "chain", "--stage", "gfpo", "--json"))
    assert [each["stage"] for each in only["stages"]] == ["gfpo"] and only["moves"] == found["moves"]


def test_every_group_is_exported(chain: Chain) -> None:
    file = chain.folder / "groups.parquet"
    said = chain.tell("prompts", "chain", "--export", str(file))
    table = pyarrow.parquet.read_table(file).to_pylist()
    rows = [row for index in (1, 2) for row in read_rows(chain.run().memory(index))]
    assert f"{len(rows)} groups are in" in said and [each["step"] for each in table] == [row["step"] for row in rows]
    assert {each["id"] for each in table} <= {f"{key:016x}" for key in train_keys(chain.run().data_dir)}
    assert {each["stage"] for each in table} == {"dapo", "gfpo"}


def test_a_prompt_of_two_tasks_is_apart(tmp_path: Path) -> None:
    """The memory knows a prompt by its content, so what was found out about it is the rate of neither task alone."""
    write_task(tmp_path, 60)
    lines = (tmp_path / "task.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text("\n".join(lines[:40]))
    (tmp_path / "two.jsonl").write_text("\n".join(lines[20:]))
    tasks = {name: {**TASK, "path": f"{name}.jsonl", "heldout": 4, "validation": 0} for name in ("one", "two")}
    stages = [{"stage": "dapo", "task": {"one": 0.5, "two": 0.5}}, {"stage": "dapo", "name": "last", "task": "two"}]
    config = pipeline(stages, task=None, tasks=tasks)
    run = RunFolder.create(tmp_path, config, "run", tmp_path / "config.yaml", STAGE_CONFIGS)
    make_tasks(config.named_tasks, tmp_path, run.data_dir)
    one, two = (train_keys(run.data_dir / name) for name in tasks)
    both = np.intersect1d(one, two)
    alone = [next(key for key in keys if key not in both) for keys in (one, two)]
    rows = np.zeros(3, dtype())
    rows["id"], rows["step"], rows["correct"], rows["valid"] = [*alone, both[0]], 1, [1, 3, 4], 4
    for index in range(2):
        run.memory(index).parent.mkdir(parents=True)
        rows.tofile(run.memory(index))
    mixed, last = prompts_seen(run)["stages"]
    assert [(task["mean"], task["shared"]) for task in mixed["tasks"]] == [(0.25, len(both)), (0.75, len(both))]
    assert [sum(task["counts"]) + task["unseen"] + task["shared"] for task in mixed["tasks"]] == [len(one), len(two)]
    assert [each["task"] for each in mixed["hardest"]] == ["one", "two", "one, two"]
    (only,) = last["tasks"]
    assert (only["mean"], only["shared"]) == (0.875, 0), "a stage of one task has no other's visits"
    export(run, None, tmp_path / "groups.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "groups.parquet")["task"].to_pylist()[:3] == ["one", "two", "one, two"]


def test_ids_that_are_no_numbers_have_keys(tmp_path: Path) -> None:
    for ids in (["short", "00000000000000ff"], ["not a number 16!", "00000000000000ff"], ["00000000000000ff"] * 2):
        pyarrow.parquet.write_table(pyarrow.table({"id": ids}), tmp_path / "train.parquet")
        assert train_keys(tmp_path).tolist() == [key_of(name) for name in ids]


def test_what_cannot_be_shown_is_told(chain: Chain) -> None:
    said = chain.tell("prompts", "chain", "--stage", "nobody", code=2)
    assert "--stage" in said and "one of sft, dapo, gfpo" in said
    said = chain.tell("prompts", "chain", "--stage", "sft", code=2)
    assert "nothing is remembered of the prompts of the stage sft" in said and "gradus status chain" in said
    said = chain.tell("prompts", "chain", "--export", str(chain.folder / "none" / "x.parquet"), code=2)
    assert "the file cannot be written" in said and "Traceback" not in said


def test_questions_cannot_control_the_terminal(chain: Chain) -> None:
    file = chain.run().data_dir / "train.parquet"
    table = pyarrow.parquet.read_table(file)
    asked = ["\x1b[2J\x1b[31m[bold]evil" for _ in range(len(table))]
    pyarrow.parquet.write_table(table.set_column(table.schema.get_field_index("question"), "question", [asked]), file)
    said = chain.tell("prompts", "chain")
    assert "\x1b" not in said and r"\x1b[2J\x1b[31m[bold]evil" in said


def test_a_run_that_remembers_nothing_says_so(chain: Chain) -> None:
    for index in (1, 2):
        chain.run().memory(index).unlink()
    assert "nothing is remembered of the prompts of the run 'chain'" in chain.tell("prompts", "chain", code=2)
