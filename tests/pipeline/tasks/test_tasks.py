"""Tasks from generated problems and from files of each format: built, split, and checked."""

import csv
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_sources import file, gym, make, sums, write_jsonl

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.arithmetic import solve
from gradus.pipeline.tasks.data import Tasks, texts
from gradus.pipeline.tasks.prompt_order import PromptStream
from gradus.pipeline.tasks.splits import content_hash, folded, prompt_id
from gradus.pipeline.tasks.task import build_task, check_task, load_task


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task") / "data"
    task = gym(demonstrations="solver", validation=20, params={"max_terms": 4})
    return task, folder, build_task(task, folder.parent, folder)


# -- building ----------------------------------------------------------------------------------------------------------


def test_generated_prompts(built):
    _, folder, data = built
    assert data.sizes == {"train": len(data.train), "validation": 20, "heldout": 50}
    assert 150 < len(data.train) <= 200 and data.has_demonstrations
    assert sorted(p.name for p in folder.iterdir()) == [
        "data.json",
        "heldout.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    prompt = data.prompts(data.train, [3])[0]
    assert prompt.id == prompt_id(prompt.question, prompt.answer)
    assert prompt.demonstration == solve(prompt.metadata["expression"])
    assert prompt.demonstration.endswith(f"answer: {prompt.answer}")
    assert prompt.metadata["gym_params"] == {"max_terms": 4} and prompt.metadata["gym_dataset"] == "chain_sum"
    assert prompt.metadata["difficulty"]["num_terms"] == (2, 4)  # a tuple still
    assert data.hashes["train"] == content_hash(pq.read_table(folder / "train.parquet"))
    questions = [set(map(folded, split["question"])) for split in (data.train, data.validation, data.heldout)]
    assert sum(map(len, questions)) == len(set().union(*questions))


def test_the_same_configuration_reuses_the_folder_and_another_does_not(built, tmp_path):
    task, folder, data = built
    before = (folder / "train.parquet").stat().st_mtime_ns
    assert build_task(task, folder.parent, folder).hashes == data.hashes
    assert (folder / "train.parquet").stat().st_mtime_ns == before
    again = build_task(task, tmp_path, tmp_path / "elsewhere")
    assert again.hashes == data.hashes
    other = build_task(task.model_copy(update={"seed": 1}), tmp_path, tmp_path / "elsewhere")
    assert other.hashes["heldout"] != data.hashes["heldout"]


def test_a_damaged_folder_is_noticed_and_built_anew(tmp_path):
    task = gym(size=20, heldout=5)
    data = build_task(task, tmp_path, tmp_path / "data")
    path = tmp_path / "data" / "heldout.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        load_task(tmp_path / "data")
    assert build_task(task, tmp_path, tmp_path / "data").hashes == data.hashes
    (tmp_path / "data" / "data.json").unlink()
    with pytest.raises(UserError, match="missing"):
        load_task(tmp_path / "data")


def test_the_heldout_set_depends_on_content_not_on_position(tmp_path):
    rows = sums(300)
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    write_jsonl(tmp_path / "c.jsonl", rows + sums(30, start=300))
    a, b, c = (build_task(file(f"{n}.jsonl", heldout=50), tmp_path, tmp_path / n) for n in "abc")
    assert a.hashes["heldout"] == b.hashes["heldout"] and a.hashes["train"] != b.hashes["train"]
    new = set(c.heldout["question"]) - set(a.heldout["question"])
    assert new <= {row["question"] for row in sums(30, start=300)}  # what was trained on is never held out later
    assert len(new) < 20


def test_a_heldout_file_and_what_it_removes_from_training(tmp_path):
    held = [{"question": f"Held {i}", "answer": i} for i in range(8)]
    leaks = [{"question": "  held\t3 ", "answer": 3}, {"question": "HELD 7", "answer": 99}]
    write_jsonl(tmp_path / "train.jsonl", sums(20) + leaks)
    write_jsonl(tmp_path / "test.jsonl", held)
    task = file("train.jsonl", heldout_path="test.jsonl", validation=4)
    check_task(task, tmp_path)
    data = build_task(task, tmp_path, tmp_path / "data")
    assert data.sizes == {"train": 16, "validation": 4, "heldout": 5}
    # 7 and 3 are not both among the five reported, but neither may be trained on
    assert not any("eld" in question or "HELD" in question for question in data.train["question"])
    assert "2 training prompts removed because their question is held out" in data.notes
    assert "5 of 8 held-out rows are used (task.heldout)" in data.notes


def test_duplicates_contradictions_and_gaps_are_counted(tmp_path):
    rows = [*sums(20), *sums(3), {"question": "1 + 1?", "answer": 3}, {"question": "", "answer": 1}, {"question": "x"}]
    write_jsonl(tmp_path / "t.jsonl", rows)
    data = build_task(file("t.jsonl"), tmp_path, tmp_path / "data")
    assert sum(data.sizes.values()) == 20
    assert data.notes == [
        "2 of 26 rows of t.jsonl left out: no question or no answer",
        "3 duplicates removed",
        "1 rows removed that repeat a question with another answer; the first stays",
    ]
    every = data.prompts(data.train, range(15)) + data.prompts(data.heldout, range(5))
    assert {p.answer for p in every if p.question == "1 + 1?"} == {"2"}


def test_every_format_gives_the_same_prompts(tmp_path):
    rows = [{"q": f'What is {i}?\n"{i}", please', "a": i, "d": f"it is {i}", "level": str(i % 3)} for i in range(30)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    (tmp_path / "t.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8-sig") as out:  # as a spreadsheet writes it
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    columns = {"question": "q", "answer": "a", "demonstration": "d"}
    hashes = set()
    for suffix in ("jsonl", "json", "parquet", "csv"):
        task = file(f"t.{suffix}", columns=columns, demonstrations="column", validation=5)
        check_task(task, tmp_path)
        data = build_task(task, tmp_path, tmp_path / suffix)
        hashes.add(tuple(data.hashes.values()))
    assert len(hashes) == 1
    prompt = data.prompts(data.train, [0])[0]
    assert prompt.metadata["level"] in "012" and prompt.demonstration == f"it is {prompt.answer}"


def test_prompts_without_a_demonstration_do_not_reach_training(tmp_path):
    rows = [{**row, "d": None if i % 2 else "worked"} for i, row in enumerate(sums(40))]
    write_jsonl(tmp_path / "t.jsonl", rows)
    task = file("t.jsonl", columns={"demonstration": "d"}, demonstrations="column")
    data = build_task(task, tmp_path, tmp_path / "data")
    assert set(data.train["demonstration"]) == {"worked"} and 0 < len(data.train) <= 20
    assert any("without a demonstration removed" in note for note in data.notes)
    assert list(texts(Tasks({"": data}))) == [text for q in data.train["question"] for text in (q, "worked")]


def test_a_large_table_is_no_burden(tmp_path):
    table = pa.table({"question": [f"{i}?" for i in range(30_000)], "answer": pa.array(range(30_000), pa.float64())})
    pq.write_table(table, tmp_path / "t.parquet")
    data = build_task(file("t.parquet", heldout=500), tmp_path, tmp_path / "data")
    assert data.sizes["train"] == 29_500
    assert data.prompts(data.train, [7])[0].answer == data.train[7]["question"].rstrip("?")  # 7, not 7.0


# -- the order of prompts ----------------------------------------------------------------------------------------------


def test_an_epoch_meets_every_prompt_once(built):
    _, _, data = built
    count = len(data.train)
    stream = PromptStream(data.train, 0, "sft")
    ids = [p.id for step in range(2 * count // 10 + 1) for p in stream.at(step * 10, 10)]
    assert set(ids[:count]) == set(ids[count : 2 * count]) == set(data.train["id"])
    assert ids[:count] != ids[count : 2 * count]


def test_a_batch_depends_on_seed_stage_and_step_alone(built):
    _, _, data = built

    def ids(seed=0, stage="sft", step=37):
        return [p.id for p in PromptStream(data.train, seed, stage).at(step * 10, 10)]

    stream = PromptStream(data.train, 0, "sft")
    for step in range(37):
        stream.at(step * 10, 10)
    assert [p.id for p in stream.at(370, 10)] == ids()  # a resumed stage goes on where it stood
    assert len({tuple(ids()), tuple(ids(seed=1)), tuple(ids(stage="sft-2")), tuple(ids(step=38))}) == 4


def test_a_batch_larger_than_the_task_goes_round(built):
    _, _, data = built
    ids = [p.id for p in PromptStream(data.heldout, 0, "x").at(0, 120)]
    assert len(ids) == 120 and [ids.count(i) for i in set(ids[100:])] == [3] * 20


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "where", "says"),
    [
        (gym("chain_sun"), "task.dataset", "did you mean `chain_sum`"),
        (gym(params={"min_term": 2}), "task.params.min_term", "did you mean `min_terms`"),
        (gym(params={"size": 9}), "task.params.size", "set task.size"),
        (gym(params={"min_terms": 7}), "task.params", "max_terms must be >= min_terms"),
        (gym(params={"min_terms": "two"}), "task.params", "refuses"),
        (gym(params={"min_terms": 1.5}), "task.params", "unusable"),
        (gym("basic_arithmetic", params={"allow_parentheses": False}), "task.params", "operators must be + and -"),
        (
            gym("basic_arithmetic", params={"allow_parentheses": False, "operators": ["+", "*"]}),
            "task.params",
            "reference answer is right",
        ),
        (gym("composite"), "task.params.datasets", "parts"),
        (gym("composite", params={"datasets": [{"name": "gdc"}]}), "task.params.datasets", "did you mean `gcd`"),
        (gym("gcd", demonstrations="solver"), "task.demonstrations", "cannot solve gcd"),
        (gym(demonstrations="column"), "task.demonstrations", "no column"),
        (file("gone.jsonl"), "task.path", "did you mean `good.jsonl`"),
        (file("good.txt"), "task.path", ".jsonl, .json, .parquet, .csv"),
        (file("good.jsonl", heldout_path="gone"), "task.heldout_path", "no such file"),
        (file("good.jsonl", heldout=20), "task.path", "at least 21"),
        (file("good.jsonl", heldout=20, heldout_path="good.jsonl"), "", ""),
        (file("good.jsonl", heldout=21, heldout_path="good.jsonl"), "task.heldout_path", "20 rows"),
        (file("good.jsonl", columns={"answer": "Answer"}), "task.columns.answer", "question, answer"),
        (file("good.parquet", columns={"answer": "Answer"}), "task.columns.answer", "question, answer"),
        (file("good.jsonl", demonstrations="column"), "task.columns.demonstration", "null"),
        (file("good.jsonl", demonstrations="solver"), "task.demonstrations", "reasoning_gym"),
        (file("broken.jsonl"), "task.path", "line 2"),
        (file("broken.csv"), "task.path", "line 3"),
        (file("broken.json"), "task.path", "list of objects"),
        (file("broken.parquet"), "task.path", "no Parquet file"),
        (file("latin.jsonl"), "task.path", "UTF-8"),
        (make(source="hub", dataset="a/b/c"), "task.dataset", "neither"),
    ],
)
def test_mistakes_are_found_before_any_compute(task, where, says, tmp_path):
    write_jsonl(tmp_path / "good.jsonl", sums(20))
    pq.write_table(pa.Table.from_pylist(sums(20)), tmp_path / "good.parquet")
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "broken.jsonl").write_text('{"question": "1", "answer": 1}\n{"question"\n')
    (tmp_path / "broken.csv").write_text("question,answer\n1,2\n3\n")
    (tmp_path / "broken.json").write_text('{\n"question": []\n}')
    (tmp_path / "broken.parquet").write_text("no")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é", "answer": 1}\n'.encode("latin-1"))
    if not where:
        check_task(task, tmp_path)
        return
    with pytest.raises(UserError) as caught:
        check_task(task, tmp_path)
    assert caught.value.where == where
    assert says in str(caught.value)


def test_too_few_distinct_prompts(tmp_path):
    one_digit = gym(params={"max_terms": 2, "max_digits": 1}, size=1000, heldout=300)  # of 200 that exist
    with pytest.raises(UserError, match="too few distinct") as caught:
        build_task(one_digit, tmp_path, tmp_path / "data")
    assert caught.value.where == "task.heldout" and "199 distinct" in caught.value.got
    assert not (tmp_path / "data").exists()
    write_jsonl(tmp_path / "t.jsonl", sums(20))
    with pytest.raises(UserError, match="none of them held out"):
        build_task(file("t.jsonl", heldout_path="t.jsonl"), tmp_path, tmp_path / "data")


def test_an_answer_that_is_no_text_is_named(tmp_path):
    write_jsonl(tmp_path / "t.jsonl", [*sums(20), {"question": "list?", "answer": {"is": 1}}])
    with pytest.raises(UserError, match="row 21") as caught:
        build_task(file("t.jsonl"), tmp_path, tmp_path / "data")
    assert caught.value.where == "task.columns.answer"


def test_checking_imports_nothing_heavy():
    heavy = ("torch", "datasets", "numpy", "pyarrow", "transformers", "reasoning_gym", "huggingface_hub")
    code = "import sys; from gradus.pipeline.tasks.task import check_task;"
    code += f"print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


ROWS = "".join(json.dumps({"question": f"{number}?", "answer": number}) + "\n" for number in range(40))


@pytest.mark.parametrize("written", [ROWS.encode("utf-8-sig"), ROWS.replace("\n", "\r\n").encode()])
def test_a_byte_order_mark_and_lines_of_windows_change_no_prompt(tmp_path, written):
    (tmp_path / "a.jsonl").write_text(ROWS, encoding="utf-8")
    (tmp_path / "b.jsonl").write_bytes(written)
    a, b = (build_task(file(f"{name}.jsonl"), tmp_path, tmp_path / name) for name in "ab")
    assert a.hashes == b.hashes


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b'{"question": "a\\ud800b", "answer": 1}', "row 41: column 'question' holds no text"),
        (b'{"question": "a", "answer": "\\udc00"}', "row 41: column 'answer' holds no text"),
        (b'{"question": "a", "answer": ' + b"[" * 100_000, "cannot be read, line 41"),
        (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", "cannot be read, line 41"),
        (b'{"question": "\xe4", "answer": 1}', "text is expected in UTF-8"),
        (b"\x00", "cannot be read, line 41"),
        (b"[1]", "cannot be read, line 41"),
    ],
)
def test_a_row_that_is_no_text_is_named(tmp_path, row, says):
    (tmp_path / "rows.jsonl").write_bytes(ROWS.encode() + row + b"\n")
    with pytest.raises(UserError) as refused:
        build_task(file("rows.jsonl"), tmp_path, tmp_path / "data")
    assert says in str(refused.value) and refused.value.fix
    str(refused.value).encode()
