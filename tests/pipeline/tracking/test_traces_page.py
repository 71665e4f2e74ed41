"""MLflow's page of traces, in a browser: completions are laid side by side, and nothing that they say is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.browser import Tab, chromium, new_tab
from tracking_runs import completion, group, new_run, new_stage, read_run_ids, runs_folder  # noqa: F401 (a fixture)

from gradus.pipeline.tracking.position import Position
from gradus.pipeline.tracking.ui import serve_ui, stop_ui
from gradus.pipeline.tracking.uploader import sync_run

EVIL = "<b>bold</b> <script>document.title = 'owned'</script> ![p](http://127.0.0.1:9/picture.png) [l](javascript:1)"
FETCHED = """[...performance.getEntriesByType('resource').map(each => each.name),
              ...Array.from(document.querySelectorAll('img'), each => each.src)]
             .some(name => name.includes('picture.png'))"""
"""Whether the page has asked for the picture."""


def click(tab: Tab, said: str, among: str = "button,label,[role=menuitem]") -> None:
    """Press what begins with this text, as a mouse would, once it is there."""
    place = f"""(() => {{
        const found = [...document.querySelectorAll('{among}')].filter(each =>
            (each.innerText || each.ariaLabel || '').trim().startsWith('{said}') && each.getBoundingClientRect().width);
        const box = found.length && found[0].getBoundingClientRect();
        return box && [box.x + box.width / 2, box.y + box.height / 2];
    }})()"""
    tab.wait_for(place)
    x, y = tab.value(place)
    for kind in ("mousePressed", "mouseReleased"):
        tab._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")
def test_completions_are_compared_side_by_side_as_the_texts_that_they_are(runs: Path) -> None:
    run = new_run(runs)
    answers = (completion("the first way", 1), completion(EVIL, 2, correct=False))
    new_stage(run).rollouts(1, [group(1, *answers, question=EVIL)])
    sync_run(run)
    place = Position.read(run / "stages" / "01-first" / "journal.jsonl")
    process, server = serve_ui(runs)
    base = server.partition("/#")[0]
    try:
        with new_tab() as tab:
            tab.open(f"{base}/#/experiments/{place.experiment_id}/runs/{read_run_ids(run)['01-first']}/traces")
            tab.wait_for("document.body.innerText.includes('Group by session')")
            tab.wait_for("document.body.innerText.includes('the first way')")
            click(tab, "Group by session", "button,label")
            boxes = "[...document.querySelectorAll('input[type=checkbox][data-component-id*=evals-logs-table]')]"
            tab.wait_for(f"document.body.innerText.includes('<script>') && {boxes}.length >= 2")
            tab.value(f"{boxes}.slice(-2).forEach(each => each.click())")
            click(tab, "Actions")
            click(tab, "Compare", "[role=menuitem]")
            tab.wait_for("document.body.innerText.includes('Comparing 2 traces')")
            tab.wait_for("document.body.innerText.includes('wrong, reward 1')")
            text = tab.text()
            assert "the first way" in text and "right, reward 1, reward/exact 1, weight -0.5, rank 1" in text
            assert text.count("![p](http://127.0.0.1:9/picture.png)") >= 3, "the question twice, and the completion"
            assert not tab.value(FETCHED) and "owned" not in tab.value("document.title")
            links = "[...document.querySelectorAll('a')].filter(each => each.href.startsWith('javascript')).length"
            assert tab.value(links) == 0
    finally:
        if process is not None:
            stop_ui(process)
