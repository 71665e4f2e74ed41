"""The pictures of MLflow's pages in docs/figures: ``python -m benchmarks.screenshots [--runs DIR FIRST SECOND]``.

Without runs, trains a short quickstart on fewer prompts twice, with two learning rates; that takes some minutes. The
pages are those of ``gradus ui``, in a browser that has never been there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.browser import new_tab
from PIL import Image

from gradus.pipeline.tracking.pages.tracked import list_of_newest, page_of, save_view, tracked_run
from gradus.pipeline.tracking.ui import serve_ui, stop_ui

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
SMALL = ("task.params.max_terms=3", "task.size=4000", "task.heldout=300", "task.validation=100")
SHORT = ("stages.dapo.steps=40", "stages.gfpo.steps=40", "stages.srpo.steps=20")
RUNS = {"first": (), "second": ("stages.dapo.lr=3e-4", "stages.gfpo.lr=3e-4", "seed=1")}


def train(runs: Path) -> None:
    """Train the two runs of the pictures."""
    for name, changes in RUNS.items():
        options = [word for change in (*SMALL, *SHORT, *changes) for word in ("--set", change)]
        command = [sys.executable, "-m", "gradus", "run", "quickstart", "--name", name, "--engine", "none"]
        subprocess.run([*command, "--runs", str(runs), *options], check=True)


def take(runs: Path, names: list[str], folder: Path) -> None:
    """Take the pictures of the list, of the first run, and of all runs."""
    tracked = [tracked_run(runs / name) for name in names]
    listed = list_of_newest(runs)
    assert listed is not None
    process, server = serve_ui(runs)
    try:
        charts = "document.querySelectorAll('.js-plotly-plot').length >= 3"
        for name, page, ready in (
            ("list", listed, "document.body.innerText.includes('matching runs')"),
            ("one-run", page_of(tracked[:1]), charts),
            ("two-runs", page_of(tracked), charts),
        ):
            saved = save_view(server, page)
            with new_tab(1440, 810) as tab:
                tab.open(page.address(server, saved))
                tab.wait_for(ready)
                time.sleep(3)  # curves are drawn one after the other
                file = folder / f"mlflow-{name}.png"
                tab.picture(file)
                Image.open(file).quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)
                print(f"{file}: {file.stat().st_size} bytes")
    finally:
        if process is not None:
            stop_ui(process)


def main() -> None:
    """Train the runs if none are given, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RUN")
    parser.add_argument("--runs", type=Path, help="the folder of existing runs")
    parser.add_argument("--to", type=Path, default=FIGURES, help="where the pictures go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = options.runs or Path(place) / "runs"
        if options.runs is None:
            train(runs)
        take(runs, options.names or list(RUNS), options.to)


if __name__ == "__main__":
    main()
