"""Completions that a stage keeps, and the demonstrations that become of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scored_batches import scored
from task_sources import file, sums, write_jsonl

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.prompts import DemonstrationsConfig
from gradus.pipeline.tasks.prompts.completions import KeptCompletions, taught
from gradus.pipeline.tasks.task import build_task
from gradus.pipeline.types import Prompt, Rollouts


def wrote(prompts: list[Prompt], texts: list[list[str]], correct: list[list[bool]], cut: bool = False) -> Rollouts:
    rollouts = scored(prompts, correct)
    truncated_PK = torch.full_like(rollouts.truncated_PK, cut)
    return Rollouts(**{**vars(rollouts), "texts": texts, "truncated_PK": truncated_PK})


def lines(path: Path) -> list[tuple[int, str]]:
    found = map(json.loads, path.read_text().splitlines())
    return [(line["step"], line["text"]) for line in found]


ONE = [Prompt("1", "?", "")]


def asked(per_prompt: int, keep: str = "correct") -> DemonstrationsConfig:
    return DemonstrationsConfig.model_validate({"from": "dapo", "per_prompt": per_prompt, "keep": keep})


def test_only_what_was_correct_and_ended_is_kept_once_a_step(tmp_path: Path) -> None:
    kept = KeptCompletions(tmp_path / "c", ["correct"])
    kept.add(wrote(ONE, [["a", "b", "a"]], [[True, False, True]]), 1)
    kept.add(wrote(ONE, [["cut"]], [[True]], cut=True), 2)
    kept.add(wrote(ONE, [["c"]], [[True]]), 3)
    assert lines(tmp_path / "c") == [(1, "a"), (3, "c")]
    nobody = KeptCompletions(tmp_path / "n", [])
    nobody.add(wrote(ONE, [["a"]], [[True]]), 1)
    assert nobody.finish() == "" and not (tmp_path / "n").exists()


def test_a_resumed_stage_forgets_the_steps_that_it_trains_again(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, path):
        first = KeptCompletions(place, ["correct"])
        for step in (1, 2, 3):
            first.add(wrote(ONE, [[f"text {step}"]], [[True]]), step)
    with path.open("ab") as file_:
        file_.write(b'{"id": "1", "task": "", "step": 4, "te')  # killed while writing
    resumed = KeptCompletions(path, ["correct"])
    for step in (2, 3):
        resumed.add(wrote(ONE, [[f"text {step}"]], [[True]]), step)
    assert resumed.finish() == KeptCompletions(whole, ["correct"]).finish()


def test_what_was_altered_and_all_after_it_is_not_believed(tmp_path: Path) -> None:
    kept = KeptCompletions(tmp_path / "c", ["correct"])
    for step in (1, 2, 3):
        kept.add(wrote(ONE, [[f"text {step}"]], [[True]]), step)
    (tmp_path / "c").write_text((tmp_path / "c").read_text().replace("text 2", "text X"))
    resumed = KeptCompletions(tmp_path / "c", ["correct"])
    resumed.add(wrote(ONE, [["new"]], [[True]]), 9)
    assert lines(tmp_path / "c") == [(1, "text 1"), (9, "new")]


def test_the_newest_of_each_prompt_become_its_demonstrations(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", sums(20))
    task = build_task(file("t.jsonl"), tmp_path, tmp_path / "data")
    one, two = task.prompts(task.train, [0, 1])
    kept = KeptCompletions(tmp_path / "c", ["correct"])
    for step, text in enumerate(["old", "new", "old"], 1):
        kept.add(wrote([one, two], [[text], ["only"]], [[True], [step == 2]]), step)
    kept.finish()

    def shown(per_prompt: int) -> list[tuple[str, str | None]]:
        data = taught(task, tmp_path / "c", asked(per_prompt), "here")
        assert data.has_demonstrations
        return [(p.id, p.demonstration) for p in data.prompts(data.train, range(len(data.train)))]

    assert shown(1) == [(one.id, "old"), (two.id, "only")]
    assert shown(3) == [(one.id, "new"), (one.id, "old"), (two.id, "only")]
    with pytest.raises(UserError, match="answered correctly"):
        taught(task, tmp_path / "nothing", asked(1), "here")
