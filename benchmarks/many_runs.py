"""How long MLflow's list of runs takes with many runs in the store: ``python -m benchmarks.many_runs [--runs 100]``.

The journals are made up, with the curves of the quickstart's four stages; the uploader, the store, the server and the
browser are those that a user has. Prints seconds until a new browser shows the rows, and until charts are drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path

from benchmarks.browser import new_tab

from gradus.pipeline.common.files import write_json
from gradus.pipeline.runs.run_paths import RUN_FILE
from gradus.pipeline.tracking.curves.places import RESULT_FILE
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.tracking.pages.tracked import list_of_newest, page_of, save_view, tracked_run
from gradus.pipeline.tracking.ui import serve_ui, stop_ui

STAGES = ("sft", "dapo", "gfpo", "srpo")


def pretend_pipeline(
    runs: Path, name: str, seed: int, experiment: str = "gradus", steps: int = 50, **tags: str
) -> Path:
    """Write the journals of a pipeline that learned, ``steps`` steps in each of four stages; returns its folder."""
    folder, drawn = runs / name, random.Random(seed)
    folder.mkdir(parents=True)
    (folder / RUN_FILE).write_text("{}")
    (folder / "config.yaml").write_text(json.dumps({"tracking": {"experiment": experiment}}))
    whole, accuracy = Journal(folder / "journal.jsonl"), 0.0
    tags = {"pipeline": "quickstart", "stages": " -> ".join(STAGES), **tags}
    whole.start(name, {f"gradus.{tag}": value for tag, value in tags.items()}, {"seed": seed})
    whole.metrics(0, {"accuracy": accuracy})
    for index, stage in enumerate(STAGES):
        place = folder / "stages" / f"{index + 1:02d}-{stage}"
        journal = Journal(place / "journal.jsonl")
        journal.start(f"{name}: {index + 1} {stage}", {"gradus.stage": stage}, {"lr": 1e-4})
        for step in range(1, steps + 1):
            accuracy = 1 - math.exp(-(index * steps + step) / (2 * steps + seed % 7 * steps / 4))
            values = {
                "reward/mean": min(1.0, max(0.0, accuracy + drawn.gauss(0, 0.03))),
                "policy/entropy": 2 - accuracy,
                "policy/kl_to_start": step * 1e-3,
                "completion/length": 20 + 10 * accuracy,
                "progress/rollouts": step * 128,
                "time/step": 0.3,
            }
            journal.metrics(step, {**values, "advantage/std": 0.4, "loss": 1 - accuracy})
        journal.metrics(steps, {"validation/accuracy": accuracy})
        journal.end()
        done = {"name": stage, "steps": steps, "rollouts": steps * 128, "accuracy_after": accuracy}
        write_json(place / RESULT_FILE, done)
        whole.metrics(index + 1, {"accuracy": accuracy})
    whole.metrics(0, {"accuracy/start": 0.0, "accuracy/end": accuracy})
    whole.end()
    return folder


def main() -> None:
    """Make the runs, open the list and two charts pages, and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="pipelines in the store")
    parser.add_argument("--picture", type=Path, help="a PNG of the list")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / "runs"
        began = time.monotonic()
        made = [tracked_run(pretend_pipeline(runs, f"run-{seed:03d}", seed)) for seed in range(options.runs)]
        print(f"{len(made)} runs delivered in {time.monotonic() - began:.0f} s")
        process, server = serve_ui(runs)
        try:
            listed = list_of_newest(runs)
            assert listed is not None
            for title, page, ready in (
                ("list", listed, f"document.body.innerText.includes('{min(100, len(made))} matching runs')"),
                ("charts of 2 runs", page_of(made[:2]), "document.querySelectorAll('.js-plotly-plot').length >= 3"),
                ("charts of 10 runs", page_of(made[:10]), "document.querySelectorAll('.js-plotly-plot').length >= 3"),
            ):
                saved = save_view(server, page)
                with new_tab() as tab:
                    tab.open(page.address(server, saved))
                    print(f"{title}: {tab.wait_for(ready):.1f} s")
                    if options.picture and page is listed:
                        time.sleep(2)
                        tab.picture(options.picture)
        finally:
            if process is not None:
                stop_ui(process)


if __name__ == "__main__":
    main()
