"""Data sets of the Hub: a local folder in its formats, and a server that refuses or does not answer."""

import contextlib
import http.server
import json
import shutil
import threading

import datasets
import pyarrow as pa
import pytest
from huggingface_hub import constants
from task_sources import make

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.hub import head_of_hub
from gradus.pipeline.tasks.task import build_task, check_task


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"{i}?", "answer": i % 2, "level": {"n": i}, "image": b"\x00"} for i in range(40)]
    table = pa.Table.from_pylist(rows)
    features = datasets.Features(
        {**datasets.Dataset(table).features, "answer": datasets.ClassLabel(names=["no", "yes"])}
    )
    folder = tmp_path / "set"
    folder.mkdir()
    for split, part in (("train", table[:30]), ("test", table[30:])):
        datasets.Dataset(part).cast(features).to_parquet(folder / f"{split}.parquet")
    return tmp_path


def test_a_local_data_set_folder(data_folder):
    task = make(source="hub", dataset="set", heldout_split="test", heldout=10)
    rows, count = head_of_hub(task, data_folder, 1000)
    assert {"question", "answer"} <= rows[0].keys() and count == 30
    check_task(task, data_folder)
    data = build_task(task, data_folder, data_folder / "data")
    assert data.sizes == {"train": 30, "validation": 0, "heldout": 10}
    prompt = data.prompts(data.train, [3])[0]
    assert (prompt.question, prompt.answer, prompt.metadata) == ("3?", "yes", {"level": {"n": 3}})
    data.train.save_to_disk(data_folder / "saved")
    saved = make(source="hub", dataset="saved", heldout=10)
    check_task(saved, data_folder)
    assert build_task(saved, data_folder, data_folder / "again").sizes["train"] == 20
    sliced = make(source="hub", dataset="set", split="train[:20]", heldout=5)
    check_task(sliced, data_folder)
    assert build_task(sliced, data_folder, data_folder / "sliced").sizes["train"] == 15


@pytest.mark.parametrize(
    ("options", "where"),
    [({"split": "tain"}, "task.split"), ({"columns": {"question": "problem"}}, "task.columns.question")],
)
def test_mistakes_about_a_local_data_set_folder(options, where, data_folder):
    with pytest.raises(UserError) as caught:
        check_task(make(source="hub", dataset="set", **options), data_folder)
    assert caught.value.where == where


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    task = make(source="hub", dataset="openai/gsm8k", subset="main")
    with pytest.raises(UserError, match="cannot be reached") as caught:
        check_task(task, tmp_path)
    assert caught.value.where == "task.dataset" and "source: file" in caught.value.fix
    (tmp_path / "openai___gsm8k").mkdir()  # where an earlier download lies
    check_task(task, tmp_path)


@contextlib.contextmanager
def answering(status, body="", **headers):
    """The address of a server that gives this answer to everything."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("code", "where"), [("RepoNotFound", "task.dataset"), ("RevisionNotFound", "task.revision")])
def test_a_hub_that_does_not_know_the_data_set(code, where, tmp_path, monkeypatch):
    with answering(404, X_Error_Code=code) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(UserError) as caught:
            check_task(make(source="hub", dataset="nobody/nothing", revision="v9"), tmp_path)
    assert caught.value.where == where


def test_rows_of_a_hub_data_set_that_is_in_the_cache_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    source = tmp_path / "source"
    source.mkdir()
    features = datasets.Features(
        {"problem": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = [{"problem": f"{n}?", "label": n % 2} for n in range(30)] + [{"problem": None, "label": 1}]
    for split in ("train", "test"):
        datasets.Dataset.from_list(rows, features=features).to_parquet(source / f"{split}.parquet")
    datasets.load_dataset(str(source), cache_dir=str(tmp_path / "made"))
    (made,) = (path.parent for path in (tmp_path / "made").rglob("dataset_info.json"))
    for subset, version in (("main", "a1"), ("main", "b2"), ("other", "a1")):
        shutil.copytree(made, cache / "someone___sums" / subset / "0.0.0" / version)
    of_hub = {"source": "hub", "dataset": "someone/sums", "columns": {"answer": "label"}}
    found = check_task(make(**of_hub, subset="main", heldout_split="test"), tmp_path)
    assert len(found.questions) == 60 and set(found.questions) == {f"{n}?" for n in range(30)}
    assert [note for note in found.notes if "1 of 31 rows of split train left out" in note]
    assert "question: problem" in found.notes[0]
    for options, where in (
        ({"columns": {"answer": "lable"}}, "task.columns.answer"),
        ({"columns": {"question": "label", "answer": "no"}}, "task.columns.answer"),
        ({"split": "tain"}, "task.split"),
        ({"heldout_split": "dev[:9]"}, "task.heldout_split"),
        ({"split": "train+dev"}, ""),
    ):
        if not where:
            check_task(make(**of_hub | options, subset="main"), tmp_path)
            continue
        with pytest.raises(UserError) as caught:
            check_task(make(**of_hub | options, subset="main"), tmp_path)
        assert caught.value.where == where and caught.value.fix
    later = ["data set someone/sums is not on this machine: its rows are looked at when a run begins"]
    for options in ({}, {"subset": "third"}):  # of two subsets, the one that is meant is not certain
        assert check_task(make(**of_hub, **options), tmp_path).notes == later
    (cache / "someone___sums" / "main" / "0.0.0" / "b2" / "dataset_info.json").write_text("{")
    for version, is_there in (("b2", False), ("a1", True), ("c3", False)):  # damaged, whole, newer than the cache
        with answering(200, json.dumps({"id": "someone/sums", "sha": version})) as address:
            monkeypatch.setattr(constants, "ENDPOINT", address)
            found = check_task(make(**of_hub, subset="main"), tmp_path)
        assert bool(found.questions) is is_there and (found.notes == later) is not is_there
