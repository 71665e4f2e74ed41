"""The addresses that open MLflow's pages: what they select, through MLflow's own search, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from benchmarks.many_runs import pretend_pipeline
from tracking_runs import client, new_run, runs_folder

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.pages import tracked as pages
from gradus.pipeline.tracking.pages.address import MAX_VIEW, Page, charts_page
from gradus.pipeline.tracking.pages.tracked import list_of_newest, page_of, save_view, tracked_run, where_to_look
from gradus.pipeline.tracking.position import Position

__all__ = ["runs_folder"]


def pipeline(runs: Path, name: str, seed: int = 0, experiment: str = "gradus") -> pages.TrackedRun:
    return tracked_run(pretend_pipeline(runs, name, seed, experiment, steps=2))


def selected(runs: Path, page: Page) -> list[str]:
    """The names of the runs that MLflow finds for a page, in its order."""
    order = f"{page.order} {'ASC' if page.view['orderByAsc'] else 'DESC'}"
    found = client(runs).search_runs(list(page.experiments), page.runs, order_by=[order])
    return [run.info.run_name for run in found]


def options_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).fragment.partition("?")[2]).items()}


def test_a_page_selects_exactly_the_runs_that_it_is_asked_for(runs: Path) -> None:
    first, second, _ = (pipeline(runs, name, seed) for seed, name in enumerate(("first", "second", "third")))
    listed = list_of_newest(runs)
    assert listed is not None and selected(runs, listed) == ["third", "second", "first"]
    assert selected(runs, page_of([first, second])) == ["first", "second"]
    one = page_of([second])
    assert selected(runs, one) == ["second", "second: 1 sft", "second: 2 dapo", "second: 3 gfpo", "second: 4 srpo"]
    assert (listed.charts, one.charts) == (False, True)


def test_the_lists_columns_are_values_of_the_run(runs: Path) -> None:
    """Names of metrics, parameters and tags; those of a fork are its tags (test_forking)."""
    run = pipeline(runs, "first")
    data = client(runs).get_run(run.run_id).data
    found = {"metrics": data.metrics, "params": data.params, "tags": data.tags}
    columns = [column.replace("`", "").split(".", 1) for column in charts_page(["1"], ["a"]).view["selectedColumns"]]
    missing = {f"{kind}.{name}" for kind, name in columns if name not in found[kind]}
    assert missing == {"tags.gradus.forked_from", "tags.gradus.forked_at"}


def test_stages_that_were_set_aside_are_not_shown(runs: Path) -> None:
    folder = pretend_pipeline(runs, "again", 0, steps=1)
    (folder / "stages" / "04-srpo").rename(folder / "stages" / "04-srpo.attempt-1")
    assert len(tracked_run(folder).stages) == 3


def test_pages_of_several_experiments_name_them_all(runs: Path) -> None:
    tracked = [pipeline(runs, "a"), pipeline(runs, "b", experiment="other")]
    page = page_of(tracked)
    url = page.address("http://127.0.0.1:5000", with_view=True)
    assert url.startswith("http://127.0.0.1:5000/#/compare-experiments/s?")
    assert json.loads(options_of(url)["experiments"]) == [run.experiment for run in tracked]
    assert len(set(page.experiments)) == 2 and selected(runs, page) == ["a", "b"]


def test_without_a_view_the_address_itself_selects(runs: Path) -> None:
    page = page_of([pipeline(runs, "first")])
    options = options_of(page.address("http://h"))
    assert options["searchFilter"] == page.runs and options["compareRunsMode"] == "CHART"
    assert "viewStateShareKey" not in options  # MLflow ignores a view beside a filter


def test_a_view_fits_in_a_tag_and_is_the_same_for_the_same_runs() -> None:
    ids = [hashlib.md5(b"%d" % number).hexdigest() for number in range(120)]  # as random as MLflow's
    page = charts_page(["1"], ids)
    assert page.key == charts_page(["1"], ids).key
    assert page.key != charts_page(["1"], ["a"]).key
    head, _, body = page.saved.partition(";")
    assert (head, json.loads(zlib.decompress(base64.b64decode(body)))) == ("deflate", page.view)
    assert len(page.saved) < MAX_VIEW


def test_a_run_that_was_not_delivered_is_delivered_first(runs: Path) -> None:
    folder = pretend_pipeline(runs, "late", 1, steps=2)
    run = tracked_run(folder)
    assert client(runs).get_run(run.run_id).data.metrics["accuracy/end"] > 0 and run.note == ""
    Journal(folder / "journal.jsonl").metrics(1, {"accuracy/sums": 0.5})
    assert client(runs).get_run(tracked_run(folder).run_id).data.metrics["accuracy/sums"] == 0.5


def test_a_run_without_records_is_told(runs: Path) -> None:
    folder = runs / "empty"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="nothing of the run 'empty'") as told:
        tracked_run(folder)
    assert told.value.got == "nothing was recorded yet"


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses whatever is asked with 403, and what it was asked."""
    asked: list[str] = []

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_server_that_takes_no_view_is_asked_as_the_user(
    refusing: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = refusing
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "mine")
    page = charts_page(["1"], ["a"])
    assert not save_view(url, page)
    assert asked == ["/api/2.0/mlflow/experiments/set-experiment-tag Bearer mine"]
    assert not save_view("http://127.0.0.1:9", page)  # nobody answers
    assert not save_view(url, charts_page(["1"], [f"{number * 7919**8:032x}" for number in range(999)]))  # too long
    assert len(asked) == 1


def delivered(runs: Path, name: str, uri: str, **fields: Any) -> Path:
    """A run folder whose position says that a server has its runs."""
    folder = new_run(runs, name, uri)
    Position(uri=uri, experiment_id="7", run_id=f"{name}-id", **fields).write(folder / "journal.jsonl")
    return folder


def test_where_to_look_is_an_address_on_a_server_and_a_command_elsewhere(runs: Path) -> None:
    on_server = delivered(runs, "far", "https://mlflow.example")
    url = where_to_look([on_server], "far", runs)
    assert url.startswith("https://mlflow.example/#/experiments/7/runs?")
    assert options_of(url)["searchFilter"] == "attributes.run_id IN ('far-id')"
    here = pretend_pipeline(runs, "near", 0, steps=1)
    assert where_to_look([here], "near", runs) == f"gradus ui near --runs {runs}"
    tracked_run(here)
    assert where_to_look([here], "near", runs) == f"gradus ui near --runs {runs}"
    with pytest.raises(UserError, match="several MLflow stores") as told:
        page_of([run for run in map(pages.read_tracked, (on_server, here)) if run])
    assert "far is in https://mlflow.example" in str(told.value.got)


def test_without_mlflow_there_is_nowhere_to_look(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pretend_pipeline(runs, "first", 0, steps=1)
    monkeypatch.setattr(pages, "mlflow_is_installed", lambda: False)
    assert where_to_look([folder], "first", runs) == ""
    with pytest.raises(UserError, match="MLflow has nothing") as told:
        tracked_run(folder)
    assert told.value.got == "MLflow is not installed in this Python"
