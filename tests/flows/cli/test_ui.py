"""``gradus ui``: the pages as a user meets them, in a browser, and what is said about runs that there are not."""

from __future__ import annotations

import contextlib
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.browser import Tab, chromium, new_tab
from benchmarks.many_runs import pretend_pipeline
from command_line import Gradus

from gradus.pipeline.tracking.pages.tracked import page_of, save_view, tracked_run
from gradus.pipeline.tracking.position import tracking_options

pytestmark = pytest.mark.usefixtures("quiet_process")
needs_browser = pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")
CURVES = """Array.from(document.querySelector('.js-plotly-plot')?.data ?? [],
              curve => [curve.name, curve.metricKey, Array.from(curve.x)])"""
"""The curves of the first chart: run, metric and steps of each."""


@dataclass
class Served:
    """A runs folder, and the command that serves its pages."""

    gradus: Gradus
    server: str
    first_page: str

    def page_of(self, *names: str) -> str:
        """What the command would print for further runs."""
        page = page_of([tracked_run(self.gradus.runs / name) for name in names])
        assert save_view(self.server, page)
        return page.address(self.server, with_view=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``gradus ui`` of no run, on a folder of two runs and one of another experiment."""
    gradus = Gradus(tmp_path_factory.mktemp("ui"))
    for seed, (name, experiment) in enumerate((("calm", "gradus"), ("brave", "gradus"), ("odd", "other"))):
        tags = {"forked_from": "calm"} if name == "brave" else {}
        pretend_pipeline(gradus.runs, name, seed, experiment, steps=10, **tags)
    gradus("sync", "--runs", str(gradus.runs))
    (gradus.runs / "calm" / "mlflow.json").touch()
    with printed_page(gradus) as page:
        yield Served(gradus, page.partition("/#/")[0], page)


@contextlib.contextmanager
def printed_page(gradus: Gradus, *names: str) -> Iterator[str]:
    """The address that ``gradus ui`` prints while it serves."""
    process = gradus.process("ui", *names, "--runs", str(gradus.runs))
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if found := re.match(r"MLflow: (\S+) \(Ctrl-C ends it\)", line):
                yield found[1]
                break
        else:
            raise AssertionError(said)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.fixture
def tab() -> Iterator[Tab]:
    with new_tab() as opened:
        yield opened


@needs_browser
def test_the_list_has_one_row_a_run_and_the_chosen_columns(served: Served, tab: Tab) -> None:
    tab.open(served.first_page)
    tab.wait_for("document.body.innerText.includes('2 matching runs')")
    heads = "Array.from(document.querySelectorAll('.ag-header-cell')).map(each => each.innerText.trim())"
    tab.wait_for(f"{heads}.includes('accuracy/end')")
    wanted = {"Created", "Duration", "accuracy/end", "accuracy/start", "seed", "gradus.stages", "gradus.forked_from"}
    assert wanted <= set(tab.value(heads))
    text = tab.text()
    assert "calm" in text and "brave" in text and "1 sft" not in text


@needs_browser
def test_mlflows_assistant_does_not_open_by_itself_but_can_be_opened(served: Served, tab: Tab) -> None:
    tab.open(served.first_page)
    button = "document.querySelector('[data-assistant-ui] button, button[data-assistant-ui]')"
    tab.wait_for(f"{button} !== null && document.body.innerText.includes('matching runs')")
    assert "Ask questions about your experiments" not in tab.text()
    tab.value(f"{button}.click()")
    tab.wait_for("document.body.innerText.includes('Ask questions about your experiments')")


@needs_browser
def test_two_runs_lie_over_each_other_in_the_first_chart(served: Served, tab: Tab) -> None:
    tab.open(served.page_of("calm", "brave"))
    tab.wait_for("document.body.innerText.includes('2 matching runs')")
    tab.wait_for(f"{CURVES}.length >= 2")
    curves = {(run, metric): steps for run, metric, steps in tab.value(CURVES)}
    assert curves == {(run, "reward/mean"): list(range(1, 41)) for run in ("calm", "brave")}
    assert tab.text().index("reward/mean") < tab.text().index("policy/entropy")


@needs_browser
def test_one_run_is_shown_with_its_stages(served: Served, tab: Tab) -> None:
    tab.open(served.page_of("brave"))
    tab.wait_for("document.body.innerText.includes('5 matching runs')")
    tab.wait_for(f"new Set({CURVES}.map(curve => curve[0])).size === 5")
    assert "brave: 4 srpo" in tab.text() and "calm" not in tab.text()


@needs_browser
def test_runs_of_two_experiments_are_on_one_page(served: Served, tab: Tab) -> None:
    tab.open(served.page_of("calm", "odd"))
    tab.wait_for("document.body.innerText.includes('2 matching runs')")
    tab.wait_for(f"new Set({CURVES}.map(curve => curve[0])).size === 2")
    assert "does not exist" not in tab.text()


def test_the_page_answers_only_under_its_own_name(served: Served) -> None:
    """MLflow's protection against other sites (DNS rebinding) holds for the page that is ours."""
    for host, code in ((None, 200), ("evil.example", 403)):
        headers = {"Host": host} if host else {}
        with (
            contextlib.suppress(urllib.error.HTTPError),
            urllib.request.urlopen(urllib.request.Request(f"{served.server}/", headers=headers), timeout=20) as answer,
        ):
            assert answer.status == code and b"autoOpenedOnFirstLoad" in answer.read()
            continue
        assert code == 403


def test_a_tracking_server_shows_its_own_pages(served: Served, tmp_path: Path) -> None:
    """The command prints the address, with its view, and ends."""
    gradus = Gradus(tmp_path)
    folder = pretend_pipeline(gradus.runs, "far", 3, steps=2)
    (folder / "config.yaml").write_text(f"tracking: {{uri: {served.server}, experiment: far away}}")
    assert tracking_options(folder)[0] == served.server
    said = gradus("ui", "far", "--runs", str(gradus.runs)).output
    assert re.fullmatch(rf"MLflow: {served.server}/#/experiments/\d+/runs\?\S*viewStateShareKey=gradus-\w+\S*\n", said)


def test_a_name_that_is_none_is_told_with_the_closest(served: Served) -> None:
    said = served.gradus("ui", "clam", "--runs", str(served.gradus.runs), code=2).stderr
    assert "there is no run called 'clam'" in said and "did you mean `calm`?" in said


def test_a_comparison_stands_for_its_runs(tmp_path: Path, served: Served) -> None:
    gradus = Gradus(tmp_path)
    whole = gradus.runs / "tiny-compare"
    for seed, name in enumerate(("base-seed-0", "gfpo-seed-0", "tune-gfpo")):
        folder = pretend_pipeline(whole, name, seed, steps=1)
        (folder / "config.yaml").write_text(f"tracking: {{uri: {served.server}, experiment: tiny-compare}}")
    said = gradus("ui", "tiny-compare", "--runs", str(gradus.runs)).output
    assert "viewStateShareKey" in said
    wrong = gradus("ui", "tiny-compar", "--runs", str(gradus.runs), code=2).stderr
    assert "did you mean `tiny-compare`?" in wrong


def test_the_page_is_opened_where_that_is_asked_for(served: Served, tmp_path: Path) -> None:
    gradus, opened = Gradus(tmp_path), tmp_path / "opened"
    folder = pretend_pipeline(gradus.runs, "far", 3, steps=1)
    (folder / "config.yaml").write_text(f"tracking: {{uri: {served.server}, experiment: far away}}")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    process = gradus.process("ui", "far", "--open", "--runs", str(gradus.runs), BROWSER=f"{browser} %s")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and opened.read_text().strip() in said
    opened.unlink()
    process = gradus.process("ui", "far", "--runs", str(gradus.runs), BROWSER=f"{browser} %s")
    process.communicate(timeout=120)
    assert process.returncode == 0 and not opened.exists()  # no terminal
