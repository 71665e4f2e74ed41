"""Several tasks: their data side by side, no held-out question trained on anywhere, and batches in fixed shares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from scored_batches import stream_of
from task_sources import file, sums, write_jsonl

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.prompt_order import Schedule
from gradus.pipeline.tasks.several.build import build_tasks, contradictions, load_tasks
from gradus.pipeline.tasks.several.mixture import MixedSchedule
from gradus.pipeline.tasks.splits import folded


def tasks_of(folder: Path) -> dict:
    write_jsonl(folder / "one.jsonl", sums(60))
    write_jsonl(folder / "two.jsonl", [*sums(60, 30), {"question": "1 + 1 ?", "answer": "two"}])
    return {"one": file("one.jsonl", heldout=8, validation=4), "two": file("two.jsonl", heldout=8)}


def test_no_question_is_held_out_in_one_task_and_trained_on_in_another(tmp_path: Path) -> None:
    data = build_tasks(tasks_of(tmp_path), tmp_path, tmp_path / "data")
    held = {folded(p.question) for split in ("validation", "heldout") for p in data.prompts(split)}
    trained = [folded(p.question) for p in data.prompts("train")]
    assert len(trained) > 60 and not held & set(trained)
    assert any("another task holds their question out" in note for note in data.notes)
    assert {p.task for p in data["two"].prompts(data["two"].train, range(5))} == {"two"}


def test_a_second_call_makes_nothing_and_a_change_makes_it_again(tmp_path: Path) -> None:
    tasks, folder = tasks_of(tmp_path), tmp_path / "data"
    first = build_tasks(tasks, tmp_path, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert build_tasks(tasks, tmp_path, folder).hashes == first.hashes
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before
    judged = {name: task.model_copy(update={"rewards": []}) for name, task in tasks.items()}
    assert build_tasks(judged, tmp_path, folder).hashes == first.hashes  # data do not depend on rewards
    other = tasks | {"two": file("two.jsonl", heldout=9)}
    assert build_tasks(other, tmp_path, folder).hashes != first.hashes


def test_a_damaged_task_is_told(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path)
    build_tasks(tasks, tmp_path, tmp_path / "data")
    (tmp_path / "data" / "two" / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="missing or damaged"):
        load_tasks(tmp_path / "data", tasks)


def test_an_error_in_one_task_names_its_key(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path) | {"three": file("one.jsonl", heldout=100)}
    with pytest.raises(UserError, match=r"tasks\.three\.heldout"):
        build_tasks(tasks, tmp_path, tmp_path / "data")


def test_a_task_whose_prompts_are_all_held_out_elsewhere_has_none_to_train_on(tmp_path: Path) -> None:
    tasks = {"whole": file("one.jsonl", heldout=59), "part": file("part.jsonl", heldout=1)}
    write_jsonl(tmp_path / "one.jsonl", sums(60))
    keys = build_tasks({"whole": tasks["whole"]}, tmp_path, tmp_path / "first").prompts("heldout")
    write_jsonl(tmp_path / "part.jsonl", [{"question": p.question, "answer": p.answer} for p in keys[:5]])
    with pytest.raises(UserError, match=r"tasks\.part"):
        build_tasks(tasks, tmp_path, tmp_path / "data")


def test_the_same_question_with_another_answer_in_two_tasks_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", sums(40))
    write_jsonl(tmp_path / "two.jsonl", [{"question": row["question"].upper(), "answer": "?"} for row in sums(40)])
    tasks = {"one": file("one.jsonl", heldout=2), "two": file("two.jsonl", heldout=2)}
    lines = contradictions(build_tasks(tasks, tmp_path, tmp_path / "data"))
    assert len(lines) == 1 and "one and in two with another answer" in lines[0]


SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}


def mixed() -> MixedSchedule:
    return MixedSchedule({name: Schedule(stream_of(7, name)) for name in SHARES}, SHARES)


def test_every_batch_has_the_shares_and_all_batches_have_them_exactly() -> None:
    schedule, taken = mixed(), Counter[str]()
    for step in range(1, 41):
        batch = Counter(prompt.task for prompt in schedule.take(7))
        taken += batch
        assert all(abs(batch[name] - 7 * share) < 2 for name, share in SHARES.items())
        assert all(abs(taken[name] - 7 * step * share) < 1 for name, share in SHARES.items())
    assert taken == {"a": 140, "b": 84, "c": 56}


def test_each_task_goes_through_its_own_epochs() -> None:
    schedule = mixed()
    prompts = [prompt for _ in range(10) for prompt in schedule.take(7)]
    for name in SHARES:
        own = [prompt.id for prompt in prompts if prompt.task == name]
        for begin in range(0, len(own) - 6, 7):
            assert len(set(own[begin : begin + 7])) == 7


def test_a_restored_mixture_goes_on_as_if_nothing_had_been() -> None:
    whole, stopped, resumed = mixed(), mixed(), mixed()
    for _ in range(3):
        whole.take(5)
        stopped.take(5)
    resumed.restore(stopped.state())
    assert [p.id for p in whole.take(11)] == [p.id for p in resumed.take(11)]
