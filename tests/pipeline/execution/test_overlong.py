"""Prompts that leave a model too few positions for a completion: refused with their number, left out, or cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_pipeline import pipeline
from task_sources import write_jsonl
from tiny_policies import TEXTS, tiny_policy

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.execution.overlong import fitted
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.tasks.data import TaskData, all_prompts
from gradus.pipeline.tasks.shortening import cut
from gradus.pipeline.tasks.splits import folded
from gradus.pipeline.tasks.task import build_task, load_task
from gradus.pipeline.types import Prompt
from gradus.stages import discover

SHORT, LONG = 40, 12


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def policy(request: pytest.FixtureRequest) -> Policy:
    if request.param == "llama":
        return tiny_policy(max_position_embeddings=64)
    architecture = {"model_type": "gpt2", "n_positions": 64, "n_embd": 8, "n_head": 2, "n_layer": 1}
    return create_policy(PolicyConfig(architecture=architecture, device="cpu"), TEXTS, 0)


def task_of(folder: Path, rows: list[dict[str, Any]], wanted: str, **options: Any) -> tuple[Any, TaskData]:
    write_jsonl(folder / "t.jsonl", rows)
    task = {"source": "file", "path": "t.jsonl", "heldout": 8, "validation": 4, "overlong_prompts": wanted, **options}
    config = pipeline([{"stage": "dapo"}], task=task, sampling={"max_tokens": 10})
    return config, build_task(config.task, folder, folder / "data")


def every(data: TaskData) -> list[Prompt]:
    return [prompt for split in ("train", "validation", "heldout") for prompt in all_prompts(data, split)]


def rows() -> list[dict[str, Any]]:
    short = [{"question": f"Calculate {n} + {n} =", "answer": 2 * n} for n in range(SHORT)]
    long = [{"question": "12 + 34 - 5; " * 20 + f"Calculate {n} * {n} =", "answer": n * n} for n in range(LONG)]
    return short + long


def test_they_are_refused_with_their_number_and_the_longest(policy: Policy, tmp_path: Path) -> None:
    config, task = task_of(tmp_path, rows(), "error")
    with pytest.raises(UserError) as caught:
        fitted(task, policy, config, tmp_path / "data")
    longest = max(len(policy.encode_prompt(prompt)) for prompt in every(task))
    assert f"{LONG} prompts have more than 54 tokens, the longest {longest}" in str(caught.value.got)
    assert "64 tokens" in caught.value.expected and "task.overlong_prompts" in caught.value.fix
    (tmp_path / "data" / "data.json").unlink()
    short, task = task_of(tmp_path, rows()[:SHORT], "error")
    assert fitted(task, policy, short, tmp_path / "data") is task


def test_they_are_left_out(policy: Policy, tmp_path: Path) -> None:
    config, task = task_of(tmp_path, rows(), "drop")
    data = fitted(task, policy, config, tmp_path / "data")
    assert len(every(data)) == SHORT and {p.id for p in every(data)} < {p.id for p in every(task)}
    assert load_task(tmp_path / "data").hashes == data.hashes != task.hashes
    assert fitted(data, policy, config, None) is data  # a second time there is nothing to do
    assert build_task(config.task, tmp_path, tmp_path / "data").hashes == data.hashes  # and it is not made again
    assert data.notes[-1].endswith("they are left out (task.overlong_prompts)")


def test_they_are_cut_from_the_left_by_as_little_as_it_takes(policy: Policy, tmp_path: Path) -> None:
    config, task = task_of(tmp_path, rows(), "truncate_left")
    data = fitted(task, policy, config, tmp_path / "data")
    whole = {prompt.question for prompt in every(task)}
    shorter = [prompt for prompt in every(data) if prompt.question not in whole]
    assert len(every(data)) == SHORT + LONG and len(shorter) == LONG
    for prompt in shorter:
        assert 54 - 3 <= len(policy.encode_prompt(prompt)) <= 54
        assert any(question.endswith(prompt.question) for question in whole)
    short = {p.id for p in every(task) if len(p.question) < 40}
    assert short < {p.id for p in every(data)}


def test_questions_that_are_the_same_when_they_are_cut_are_in_one_split(policy: Policy, tmp_path: Path) -> None:
    tail = "12 + 34 - 5; " * 20
    made = [{"question": f"{n}! {tail}", "answer": 1} for n in range(20)]
    config, task = task_of(tmp_path, [*made, *rows()[:SHORT]], "truncate_left")
    data = fitted(task, policy, config, tmp_path / "data")
    found = [{folded(p.question) for p in all_prompts(data, name)} for name in ("train", "validation", "heldout")]
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]


def test_a_conversation_keeps_its_system_turn(policy: Policy, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "12 + 34"}]
    turns += [{"role": role, "content": "12 + 34 - 5; " * 4} for role in ("user", "assistant", "user")]
    long = [
        {"question": [*turns[:3], {**turns[3], "content": f"{n} = {turns[3]['content']}"}], "answer": n}
        for n in range(3)
    ]
    config, task = task_of(tmp_path, [*rows()[:SHORT], *long], "truncate_left")
    data = fitted(task, policy, config, tmp_path / "data")
    cuts = [prompt for prompt in every(data) if prompt.turns]
    assert cuts and all(len(policy.encode_prompt(prompt)) <= 54 for prompt in cuts)
    assert all([t["role"] for t in prompt.turns] == ["system", "user"] for prompt in cuts)
    assert all(prompt.turns[0] == turns[0] for prompt in cuts)


def test_no_prompt_left_is_told(policy: Policy, tmp_path: Path) -> None:
    config, task = task_of(tmp_path, rows()[SHORT:], "drop", heldout=4, validation=0)
    with pytest.raises(UserError, match="every heldout prompt is too long"):
        fitted(task, policy, config, tmp_path / "data")
    assert cut(Prompt("", "abc", ""), 3) is None


def test_the_check_counts_them_in_the_first_rows(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "model")
    config, _ = task_of(tmp_path, rows(), "error")
    config = config.model_copy(update={"policy": PolicyConfig(path=str(tmp_path / "model"))})
    with pytest.raises(UserError) as caught:
        preflight(config, tmp_path, discover())
    assert "task.overlong_prompts" in caught.value.where
    assert f"{LONG} of the first {SHORT + LONG} questions have more than 54 tokens, the longest 2" in str(caught.value)
    task = config.task.model_copy(update={"overlong_prompts": "drop"})
    notes = preflight(config.model_copy(update={"task": task}), tmp_path, discover())
    assert len(notes) == 1 and notes[0].endswith("they are left out (task.overlong_prompts)")
    new = PolicyConfig(architecture={"model_type": "gpt2"})
    with pytest.raises(UserError, match="a new model can take every prompt"):
        preflight(config.model_copy(update={"task": task, "policy": new}), tmp_path, discover())
    short, _ = task_of(tmp_path, rows()[:SHORT], "error")
    assert preflight(short.model_copy(update={"policy": config.policy}), tmp_path, discover()) == []
