"""Rows of each form that data sets have: detected, told, and read into prompts, demonstrations and pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import data_rows as rows
import pytest
from task_sources import file, gym, write_jsonl

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.data import TaskData, all_prompts
from gradus.pipeline.tasks.shortening import cut
from gradus.pipeline.tasks.splits import prompt_id
from gradus.pipeline.tasks.task import build_task, check_task
from gradus.pipeline.types import Prompt


def built(folder: Path, made: list[dict[str, Any]], **options: Any) -> TaskData:
    write_jsonl(folder / "t.jsonl", made)
    task = file("t.jsonl", **{"heldout": 1, **options})
    notes = check_task(task, folder).notes
    data = build_task(task, folder, folder / "data")
    assert [note for note in data.notes if "format" in note] == [note for note in notes if "format" in note]
    return data


def prompts_of(data: TaskData) -> list[Prompt]:
    return sorted(all_prompts(data, "train") + all_prompts(data, "heldout"), key=lambda prompt: len(prompt.question))


SAID = {"demonstrations": "column"}
SAME, LAST = "the demonstration", "the last assistant turn"
CASES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "gsm8k": (rows.gsm8k, {}, ()),
    "verl": (rows.verl, {}, ("prompt", "prompt", "reward_model.ground_truth")),
    "tulu": (rows.tulu, SAID, ("messages", "messages", SAME, LAST)),
    "ultrafeedback": (rows.ultrafeedback, SAID, ("preference", "prompt", SAME, "chosen")),
    "alpaca": (rows.alpaca, SAID, ("alpaca", "instruction", SAME, "output")),
    "sharegpt": (rows.sharegpt, SAID, ("sharegpt", "conversations", SAME, LAST)),
    "rlvr": (rows.rlvr, {}, ("messages", "messages", "ground_truth")),
    "completion": (rows.completion, SAID, ("prompt", "prompt", SAME, "completion")),
    "tools": (rows.tools, SAID, ("messages", "messages", SAME, LAST)),
}
EXPECTED: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "Ann has 2 pears and finds as many. How many has she?", "turns": ()},
    "verl": {"question": "Ann has 2 pears and finds as many. Answer after ####.", "answer": "4", "turns": ()},
    "tulu": {"question": "What follows 2?", "answer": "After 2 comes 3.", "demonstration": "After 2 comes 3."},
    "ultrafeedback": {"question": "Name a number greater than 2.", "demonstration": "3", "rejected": "Perhaps 1?"},
    "alpaca": {"question": "Write 2.", "demonstration": "2"},
    "sharegpt": {
        "question": "What is 2 + 2?",
        "answer": "4",
        "turns": (rows.turn("system", "You are brief."), rows.turn("user", "What is 2 + 2?")),
    },
    "rlvr": {"question": "What is 2 + 1?", "answer": "3", "demonstration": None},
    "completion": {"question": "2?", "demonstration": "It is 2.", "turns": (rows.SYSTEM, rows.turn("user", "2?"))},
    "tools": {"demonstration": "3", "tools": ({"type": "function", "function": {"name": "add"}},)},
}


@pytest.mark.parametrize("case", CASES)
def test_each_form_is_detected_told_and_read(case: str, tmp_path: Path) -> None:
    row, options, told = CASES[case]
    data = built(tmp_path, [row(n) for n in range(2, 12)], **options)
    roles = ", ".join(map(": ".join, zip(("question", "answer", "demonstration"), told[1:], strict=False)))
    expected = [f"t.jsonl: format {told[0]} ({roles})"] if told else []
    assert [note for note in data.notes if "format" in note] == expected
    by_id = {prompt.id: prompt for prompt in prompts_of(data)}
    assert len(by_id) == 10
    first = next(p for p in by_id.values() if EXPECTED[case].get("question", "Add 2.") in p.question)
    assert {name: getattr(first, name) for name in EXPECTED[case]} == EXPECTED[case]
    (tmp_path / "named").mkdir()
    named = built(tmp_path / "named", [row(n) for n in range(2, 12)], format=(told or ("prompt",))[0], **options)
    assert named.hashes == data.hashes


def test_a_conversation_of_one_user_turn_is_the_prompt_that_its_text_is(tmp_path: Path) -> None:
    text = [{"question": f"{n}?", "answer": n} for n in range(6)]
    turns = [{"question": [rows.turn("user", f"{n}?")], "answer": n} for n in range(6)]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert built(tmp_path / "a", text).hashes == built(tmp_path / "b", turns).hashes


def test_turns_before_the_last_and_tools_are_kept(tmp_path: Path) -> None:
    several = prompts_of(built(tmp_path, [rows.tulu(n) for n in (1, 3)], **SAID))[0]
    assert [turn["role"] for turn in several.turns] == ["user", "assistant", "user"]
    assert several.question == "user: What follows 1?\n\nassistant: After 1 comes 2.\n\nuser: And then?"
    (tmp_path / "called").mkdir()
    called = prompts_of(built(tmp_path / "called", [rows.tools(n) for n in (1, 3)], **SAID))[0]
    assert called.turns[1]["tool_calls"][0]["function"]["name"] == "add" and called.turns[2]["role"] == "tool"
    assert all("tool_calls" not in turn for turn in (called.turns[0], called.turns[2]))


def test_the_same_question_under_another_system_turn_is_another_prompt_in_the_same_split(tmp_path: Path) -> None:
    made = [
        {"prompt": [rows.turn("system", system), rows.turn("user", f"{n}?")], "answer": n}
        for n in range(20)
        for system in ("A", "B")
    ]
    data = built(tmp_path, made, heldout=7)
    train, held = ({p.question for p in all_prompts(data, split)} for split in ("train", "heldout"))
    assert not train & held and len({p.id for p in prompts_of(data)}) == len(prompts_of(data))
    assert sum(data.sizes.values()) >= 39  # the partner of the seventh held-out prompt is left out


def test_nested_columns_and_several_answers(tmp_path: Path) -> None:
    made = [{"in": {"q": f"{n}?"}, "out": {"a": {"all": [n, f"{n}.0", n, None]}}} for n in range(4)]
    data = built(tmp_path, made, columns={"question": "in.q", "answer": "out.a.all"})
    prompt = prompts_of(data)[0]
    assert prompt.answer == prompt.question.rstrip("?") and prompt.alternatives == (f"{prompt.answer}.0",)
    assert prompt.id != prompt_id(prompt.question, prompt.answer)
    with pytest.raises(UserError, match=r"one of its columns: in\.q, out\.a"):
        built(tmp_path, made, columns={"question": "in.p", "answer": "out.a.all"})


def test_prompts_without_answers_are_taken_where_none_is_wanted(tmp_path: Path) -> None:
    made = [{"prompt": f"Write about {n}."} for n in range(4)]
    with pytest.raises(UserError, match="no column 'answer'"):
        built(tmp_path, made)
    assert {p.answer for p in prompts_of(built(tmp_path, made, columns={"answer": None}))} == {""}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": "Hello"}, "row 4: column 'messages' holds no conversation"),
        ({"messages": ["Hello"]}, "with `role` and `content`, or with `from` and `value`"),
        ({"messages": [{"content": "Hello"}]}, "row 4: column 'messages' holds no conversation"),
        ({"messages": [rows.turn("user", "a\ud800")]}, "row 4: column 'messages' holds no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "images"),
        ({"messages": [rows.turn("user", "a")], "tools": "{"}, "row 4: column 'tools' holds no functions"),
        ({"messages": [{**rows.turn("user", "a"), "name": "\ud800"}]}, "messages' holds no conversation"),
        ({"messages": [rows.turn("user", "a")], "ground_truth": {"a": 1}}, "'ground_truth' holds no text"),
    ],
)  # fmt: skip
def test_a_row_of_another_kind_is_told_by_the_check(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [*(rows.rlvr(n) for n in range(3)), {**rows.rlvr(3), **row}])
    with pytest.raises(UserError) as caught:
        check_task(file("t.jsonl", heldout=1), tmp_path)
    assert says in str(caught.value) and "row 4" in caught.value.what and caught.value.fix
    str(caught.value).encode()


def test_the_data_of_an_earlier_version_are_read_and_not_made_again(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from gradus.pipeline.common.files import sha256
    from gradus.pipeline.common.records import read_sealed, write_sealed

    data = built(tmp_path, [{"question": f"{n}?", "answer": n} for n in range(6)])
    folder, record = tmp_path / "data", read_sealed(tmp_path / "data" / "data.json")
    assert record is not None
    for name in ("train", "validation", "heldout"):
        table = pq.read_table(folder / f"{name}.parquet").drop_columns(["more"])
        pq.write_table(table, folder / f"{name}.parquet")
        record["files"][f"{name}.parquet"] = sha256(folder / f"{name}.parquet")
    del record["config"]["format"]
    write_sealed(folder / "data.json", {name: value for name, value in record.items() if name != "seal"})
    (tmp_path / "t.jsonl").unlink()
    again = build_task(file("t.jsonl", heldout=1), tmp_path, folder)
    assert prompts_of(again) == prompts_of(data) and json.dumps(again.hashes) == json.dumps(data.hashes)


def test_the_system_turn_of_a_task_is_in_its_prompts_and_changes_neither_ids_nor_splits(tmp_path: Path) -> None:
    made = [{"messages": [rows.turn("user", f"{n}?")], "answer": n} for n in range(6)]
    made.append({"messages": [rows.SYSTEM, rows.turn("user", "7?")], "answer": 7})
    made.append({"messages": [rows.turn("user", f"{n}?") for n in (8, 9)], "answer": 9})
    for folder in ("without", "with"):
        (tmp_path / folder).mkdir()
    without = built(tmp_path / "without", made, heldout=3)
    told = built(tmp_path / "with", made, heldout=3, system="Think first.")
    for split in ("train", "heldout"):
        before, after = all_prompts(without, split), all_prompts(told, split)
        assert [replace(prompt, system=None) for prompt in after] == before  # with their ids, in their order
        assert {prompt.system for prompt in before} == {None}
        for prompt in after:
            own = prompt.turns[:1] == (rows.SYSTEM,)
            assert prompt.conversation[0]["content"] == (rows.SYSTEM["content"] if own else "Think first.")
        assert without.hashes[split] != told.hashes[split]
    again = build_task(file("t.jsonl", heldout=3, system="Other."), tmp_path / "with", tmp_path / "with" / "data")
    assert {prompt.system for prompt in all_prompts(again, "train")} == {"Other."}
    of_gym = gym(size=20, heldout=2, system="Add.")
    asked = all_prompts(build_task(of_gym, tmp_path, tmp_path / "gym"), "heldout")
    assert [[turn["role"] for turn in prompt.conversation] for prompt in asked] == [["system", "user"]] * 2
    shorter = cut(asked[0], 3)
    assert shorter is not None and shorter.system == "Add." and not shorter.turns
    assert shorter.id == prompt_id(shorter.question, shorter.answer)
