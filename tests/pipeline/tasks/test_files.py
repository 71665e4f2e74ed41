"""Where rows may lie, what counts as missing, and what of a wrong file is told before a run's folder is made."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_sources import file, make, sums, write_jsonl

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.tasks.data import TaskData, all_prompts
from gradus.pipeline.tasks.files import rows_of
from gradus.pipeline.tasks.task import build_task, check_task, task_sources
from gradus.stages import discover


def built(task: Any, folder: Path) -> TaskData:
    check_task(task, folder)
    return build_task(task, folder, folder / "data")


def answers(data: TaskData) -> dict[str, str]:
    return {p.question: p.answer for split in ("train", "heldout") for p in all_prompts(data, split)}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for n in range(3):
        (folder / f"part-{n}.jsonl.gz").write_bytes(gzip.compress(lines(sums(5, start=5 * n))))
    (folder / "part-2.jsonl.gz").rename(folder / "part-2-developers.jsonl.gz")
    (folder / "README.md").write_text("made for a test")
    (folder / "dataset_infos.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("path", ["shards", "shards/*.jsonl.gz", ["shards/part-0.jsonl.gz", "shards/part-[12]*"]])
def test_folders_patterns_lists_and_packed_files(path: Any, shards: Path) -> None:
    task = file(path)
    data = built(task, shards)
    assert answers(data) == {row["question"]: str(row["answer"]) for row in sums(15)}
    assert (
        json.loads((shards / "data" / "data.json").read_text())["sources"].keys() == task_sources(task, shards).keys()
    )
    assert all(place.exists() for place in task_sources(task, shards).values())


@pytest.mark.parametrize("path", ["shards", "shards/*.gz", ["shards/part-0.jsonl.gz", "shards/part-[12]*"]])
def test_paths_of_a_configuration_stay_right_in_a_run_folder(path: Any, shards: Path) -> None:
    (shards / "c.yaml").write_text(json.dumps({
        "name": "c", "policy": {"architecture": {"model_type": "gpt2"}}, "task": {"source": "file", "path": path},
        "rewards": [{"reward": "exact_answer"}], "stages": [{"stage": "dapo", "steps": 1}],
    }))  # fmt: skip
    loaded = load_config(str(shards / "c.yaml"), [], [stage.config for stage in discover().values()])
    named = loaded.config.task.path  # type: ignore[union-attr]
    assert all(Path(each).is_absolute() for each in ([named] if isinstance(named, str) else named))
    task = loaded.config.task.model_copy(update={"heldout": 5})
    assert len(build_task(task, Path("/"), shards / "d").train) == 10


def test_zstandard_and_lines_of_json_called_json(tmp_path: Path) -> None:
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as out:
        out.write(lines(sums(8)))
    (tmp_path / "b.json").write_bytes(b"\n" + lines(sums(8)))
    (tmp_path / "c.json").write_text(json.dumps(sums(8), indent=1))
    found = [
        answers(build_task(file(name), tmp_path, tmp_path / name[0])) for name in ("a.jsonl.zst", "b.json", "c.json")
    ]
    assert found[0] == found[1] == found[2] == {row["question"]: str(row["answer"]) for row in sums(8)}


@pytest.mark.parametrize("key", ["data", "rows", "examples", "anything"])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_that_are_a_list_in_an_object_are_read_and_told(key: str, indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"version": "1.1", "tags": ["a"], key: sums(8)}, indent=indent))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps({key: sums(8, 8)}, indent=indent).encode()))
    task = file(["a.json", "b.json.gz"])
    data = build_task(task, tmp_path, tmp_path / "data")
    assert answers(data) == {row["question"]: str(row["answer"]) for row in sums(16)}
    told = [f"a.json: its rows are the list '{key}', beside version, tags", f"b.json.gz: its rows are the list '{key}'"]
    assert data.notes == told and check_task(task, tmp_path).notes == told[:1]
    with pytest.raises(UserError, match="too few rows"):
        check_task(file("a.json", heldout=8), tmp_path)


def test_rows_deeper_in_a_list_are_named_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"qas": []}]}] * 9}))
    with pytest.raises(UserError, match=r"squad\.json has no column 'question'") as caught:
        check_task(file("squad.json"), tmp_path)
    assert "title, paragraphs" in caught.value.expected


def test_one_row_alone_in_a_file_is_a_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]
    rows = [{"messages": turns}, {"messages": turns, "tools": [{"name": "add"}]}, {"talk": turns},
            {"question": "1?", "documents": [{"text": "1"}]}, {"id": 1, "prompt": turns}, {"a": 1}]  # fmt: skip
    for row in rows:
        (tmp_path / "a.json").write_text(json.dumps(row))
        notes: list[str] = []
        assert list(rows_of(tmp_path / "a.json", "task.path", notes)) == [[row]] and not notes


def test_a_saved_data_set_and_a_held_out_split_of_it(tmp_path: Path) -> None:
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["a", "z"])}
    )
    rows = {"question": [f"{n}?" for n in range(12)], "answer": [0, 1, -1, *[1] * 9]}
    train = datasets.Dataset.from_dict(rows, features=features)
    test = datasets.Dataset.from_dict({"question": ["held?"], "answer": [0]}, features=features)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "saved")
    data = built(file("saved", heldout_path="saved/test", heldout=1), tmp_path)
    assert data.sizes == {"train": 11, "validation": 0, "heldout": 1}
    assert answers(data)["0?"] == "a" and answers(data)["1?"] == "z" and "2?" not in answers(data)
    assert any("1 of 12 rows" in note and "left out" in note for note in data.notes)
    hub = built(make(source="hub", dataset="saved", heldout=1), tmp_path)  # -1 is no class, and not the last one
    assert sum(hub.sizes.values()) == 11


def test_missing_is_missing_in_every_form(tmp_path: Path) -> None:
    good = sums(8)
    numbers = pa.array([*range(8), float("nan"), 1, 2], pa.float64())
    asked = [*(row["question"] for row in good), "x", None, ""]
    pq.write_table(pa.table({"question": asked, "answer": numbers}), tmp_path / "t.parquet")
    nan = float("nan")
    gone = [("x", nan), ("y", []), (nan, 1), (None, None), ("  ", 1)]
    write_jsonl(tmp_path / "t.jsonl", [*good, *({"question": q, "answer": a} for q, a in gone)])
    (tmp_path / "t.csv").write_text("question,answer\n" + "".join(f"{n}?,{n}\n" for n in range(8)) + "x,nan\ny,NaN\n")
    for name, missing in (("t.parquet", 3), ("t.jsonl", 5), ("t.csv", 2)):
        notes = check_task(file(name), tmp_path).notes
        data = build_task(file(name), tmp_path, tmp_path / name[2:])
        assert sum(data.sizes.values()) == 8 and "nan" not in answers(data).values()
        told = f"{missing} of {8 + missing} rows of {name} left out: no question or no answer"
        assert told in data.notes and f"in the first {8 + missing} rows: {told}" in notes


def test_numbers_are_written_by_the_shortest_text_of_their_own_width(tmp_path: Path) -> None:
    values = [0.1, 2.5, 3.0, 1e-3, 0.7, 1 / 3]
    table = {"question": [f"{n}?" for n in range(6)], "score": {"a": pa.array(values, pa.float32())}}
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        column = pa.array(values).cast(pa.float64()).cast(kind, safe=False)
        nested = pa.StructArray.from_arrays([pa.array([[v] for v in values], pa.list_(kind))], names=["a"])
        pq.write_table(pa.table({"question": table["question"], "answer": column, "n": nested}), tmp_path / "t.parquet")
        for columns in ({}, {"answer": "n.a"}):
            data = build_task(
                file("t.parquet", heldout=1, columns=columns), tmp_path, tmp_path / f"{kind}{len(columns)}"
            )
            texts = [answers(data)[f"{n}?"] for n in range(6)]
            assert texts[:5] == ["0.1", "2.5", "3", "0.001", "0.7"], kind
            assert len(texts[5]) <= {"halffloat": 6, "float": 10, "double": 18}[str(kind)]


def test_two_spellings_of_one_question_are_never_in_two_splits(tmp_path: Path) -> None:
    forms = [f"{word} {n}" for n in range(20) for word in ("caf\u00e9", "cafe\u0301", "ﬁne", "fine", "Ⅳ", "iv")]
    write_jsonl(tmp_path / "t.jsonl", [{"question": form, "answer": 1} for form in forms])
    data = build_task(file("t.jsonl", heldout=30), tmp_path, tmp_path / "data")
    held = set(data.heldout["question"])
    partner = dict(zip(forms, (forms[n ^ 1] for n in range(len(forms))), strict=True))
    assert not {partner[question] for question in held} & set(data.train["question"])


def test_a_column_that_first_occurs_late_exists(tmp_path: Path) -> None:
    late = [{"question": "", "other": 1}] * 1500 + [
        {"question": f"{n}?", "answer": n, "why": f"{n}."} for n in range(20)
    ]
    write_jsonl(tmp_path / "t.jsonl", late)
    options: dict[str, Any] = {"columns": {"demonstration": "why"}, "demonstrations": "column"}
    with pytest.raises(UserError, match="none of the first 1000 rows"):
        check_task(file("t.jsonl", **options), tmp_path)
    write_jsonl(tmp_path / "t.jsonl", [{"question": f"{n}!", "answer": n} for n in range(1500)] + late[1500:])
    assert built(file("t.jsonl", **options), tmp_path).has_demonstrations
    with pytest.raises(UserError, match="no column 'whi'"):
        check_task(file("t.jsonl", columns={"demonstration": "whi"}, demonstrations="column"), tmp_path)


def test_a_held_out_file_needs_no_demonstrations(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{**row, "why": "so"} for row in sums(8)])
    write_jsonl(tmp_path / "h.jsonl", sums(5, start=50))
    data = built(
        file("t.jsonl", heldout_path="h.jsonl", columns={"demonstration": "why"}, demonstrations="column"), tmp_path
    )
    assert data.sizes["train"] == 8 and data.sizes["heldout"] == 5


def test_columns_that_nobody_asked_for_never_stop_a_run(tmp_path: Path) -> None:
    odd = {
        "took": pa.array([datetime.timedelta(days=n) for n in range(8)]),
        "at": pa.array(range(8), pa.timestamp("ns")).cast(pa.timestamp("ns")),
        "far": pa.array([2**62] * 8, pa.timestamp("ms")),
        "raw": pa.array([b"\xff"] * 8),
        "sides": pa.array([[("a", 1)]] * 8, pa.map_(pa.string(), pa.int64())),
        "bad": pa.Array.from_buffers(pa.string(), 8, [None, pa.py_buffer(b"".join(
            n.to_bytes(4, "little") for n in range(9))), pa.py_buffer(b"\xff" * 8)]),
        "kind": pa.array(["a"] * 8).dictionary_encode(),
        "level": pa.array(range(8)),
    }  # fmt: skip
    texts = {"question": [f"{n}?" for n in range(8)], "answer": [str(n) for n in range(8)]}
    pq.write_table(pa.table({**texts, **odd}), tmp_path / "t.parquet")
    data = built(file("t.parquet"), tmp_path)
    prompt = all_prompts(data, "train")[0]
    assert sum(data.sizes.values()) == 8 and str(prompt.metadata["level"]) == prompt.answer
    assert any("column 'took' left out in 8 rows" in note for note in data.notes)
    with pytest.raises(UserError, match=r"t\.parquet, row 1: column 'bad' holds no text"):
        check_task(file("t.parquet", columns={"answer": "bad"}), tmp_path)
    deep = b'{"question": "a", "answer": 1, "b": ' + b"[" * 900 + b"]" * 900 + b"}\n"
    (tmp_path / "deep.jsonl").write_bytes(lines(sums(8)) + deep)
    assert "column 'b' left out in 1 rows" in " ".join(build_task(file("deep.jsonl"), tmp_path, tmp_path / "d").notes)


def test_too_few_prompts_says_where_the_others_went(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "t.jsonl", [*sums(3), *sums(3), {"question": "0 + 0?", "answer": 9}, *[{"question": "?"}] * 4]
    )
    with pytest.raises(UserError, match="too few distinct") as caught:
        build_task(file("t.jsonl"), tmp_path, tmp_path / "data")
    told = (
        "3 distinct prompts; 4 of 11 rows of t.jsonl left out: no question or no answer; 3 duplicates removed; 1 rows"
    )
    assert str(caught.value.got).startswith(told)


@pytest.mark.parametrize(
    ("made", "path", "says"),
    [
        ({}, "gone", "no such file"),
        ({}, "*.jsonl", "no file matches the pattern"),
        ({"f/a.txt": b""}, "f", "no files of prompts"),
        ({"f/a.jsonl": b"{}", "f/b.csv": b"a"}, "f", "several formats"),
        ({"f/train.jsonl": b"{}", "f/test.jsonl": b"{}"}, "f", "several splits"),
        ({"f/train/0.parquet": b"{}", "f/validation/0.parquet": b"{}"}, "f", "several splits"),
        ({"f/gsm8k_train.csv": b"", "f/gsm8k_test.csv": b""}, "f", "several splits"),
        ({"f/dataset_dict.json": b'{"splits": ["a", "b"]}'}, "f", "several splits"),
        ({"f/dataset_dict.json": b"{"}, "f", "damaged"),
        ({"f/state.json": b"{}"}, "f", "damaged"),
        ({"f/state.json": b'{"_data_files": [{"filename": "d.arrow"}]}', "f/d.arrow": b"x"}, "f", "no Arrow file"),
        ({"a.jsonl.gz": b"no"}, "a.jsonl.gz", "a.jsonl.gz cannot be read"),
        ({"a.jsonl.gz": gzip.compress(lines(sums(99)))[:-9]}, "a.jsonl.gz", "cannot be read"),
        ({"a.jsonl.zst": b"no"}, "a.jsonl.zst", "cannot be read"),
        ({"a.xlsx": b""}, ["a.xlsx"], "unknown kind of file"),
        ({"a.json": b'{"train": [{"a": 1}], "test": [{"a": 2}]}'}, "a.json", "holds several lists of rows"),
        ({"a.json": b'{\n"train": [{"a": 1}], "test": [{"a": 2}]}'}, "a.json", "train: a list of 1 objects, test: "),
        ({"a.json": b'{\n"question": ["1?", "2?"], "answer": ["1", "2"]}'}, "a.json", "question: a list of 2, answer"),
        ({"a.json": b'{\n"result": {"rows": [{"a": 1}]}}'}, "a.json", "a.json holds no list of rows"),
        ({"a.json": b"[1, 2]"}, "a.json", "an object with one list of objects"),
        ({}, [], "no file is named"),
        ({"a.jsonl": lines([{"question": "a", "answer": None}] * 9)}, "a.jsonl", "9 of 9 rows of a.jsonl left out"),
    ],
)
def test_wrong_paths_and_files_are_one_message_each(
    made: dict[str, bytes], path: Any, says: str, tmp_path: Path
) -> None:
    for name, content in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_task(file(path), tmp_path)
    assert says in str(caught.value) and caught.value.where.startswith("task.path") and caught.value.fix


def test_the_check_tells_what_it_found_in_the_first_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [*sums(8), *sums(2), {"question": "1 + 1?", "answer": 3}])
    config = {
        "name": "c", "policy": {"architecture": {"model_type": "gpt2"}},
        "task": {"source": "file", "path": "t.jsonl", "heldout": 2},
        "rewards": [{"reward": "exact_answer"}], "stages": [{"stage": "dapo", "steps": 1}],
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    kinds = discover()
    loaded = load_config(str(tmp_path / "c.yaml"), [], [stage.config for stage in kinds.values()])
    assert preflight(loaded.config, tmp_path, kinds) == [
        "in the first 11 rows: 2 duplicates removed",
        "in the first 11 rows: 1 rows removed that repeat a question with another answer; the first stays",
    ]
