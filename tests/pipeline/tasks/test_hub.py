"""Data sets of the Hub: a local folder in its formats, and a server that refuses or does not answer."""

import http.server
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


@pytest.mark.parametrize(("code", "where"), [("RepoNotFound", "task.dataset"), ("RevisionNotFound", "task.revision")])
def test_a_hub_that_does_not_know_the_data_set(code, where, tmp_path, monkeypatch):
    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError) as caught:
            check_task(make(source="hub", dataset="nobody/nothing", revision="v9"), tmp_path)
        server.shutdown()
    assert caught.value.where == where
