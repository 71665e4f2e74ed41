"""``gradus ui``: the page of MLflow's that answers the question: which runs there are, how one learned, how several
compare."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradus.flows.cli.arguments import RUNS, Runs
from gradus.flows.screen.text import say
from gradus.pipeline.common.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from gradus.pipeline.tracking.pages.address import Page


def ui(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs or comparisons whose curves to show; none: list all."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 5000 on.")
    ] = None,
    browser: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the page in a browser, or only print its address. Default: open it "
        "from a terminal on a desktop."),
    ] = None,
    runs: Runs = RUNS,
) -> None:  # fmt: skip
    """Open MLflow's pages: the list of runs, the charts of one, or the curves of several laid over each other.

    Pages of the runs folder are served on this machine only, until Ctrl-C; a tracking server shows its own.
    """
    from gradus.pipeline.tracking.pages.tracked import has_own_pages, list_of_newest, page_of, tracked_run
    from gradus.pipeline.tracking.ui import newest_uri, serve_ui, stop_ui

    if not runs.is_dir():
        raise UserError(
            "there is no runs folder", where=str(runs.absolute()), fix="run something first, or name --runs"
        )
    tracked = [tracked_run(folder) for folder in dict.fromkeys(_folders(runs, names or ()))]
    for note in filter(None, (run.note for run in tracked)):
        say(note)
    page = page_of(tracked) if tracked else list_of_newest(runs.absolute())
    uri = tracked[0].uri if tracked else newest_uri(runs.absolute())
    if not has_own_pages(uri):
        say("Starting MLflow ...")
    process, server = serve_ui(runs, port, uri=uri)
    try:
        url = _address(server, page)
        say(f"MLflow: {url}" + ("" if process is None else " (Ctrl-C ends it)"))
        if browser or (browser is None and _on_a_desktop()):
            webbrowser.open(url)
        if process is not None:
            process.wait()
    except KeyboardInterrupt:
        say("ended")
    finally:
        if process is not None:
            stop_ui(process)


def _folders(runs: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folders of the runs that are called so, and of the runs of comparisons. Raises: UserError."""
    from gradus.flows.compare.plan.folder import runs_of_comparison
    from gradus.flows.open_run import existing_run
    from gradus.pipeline.runs.run_folder import RUN_FILE

    for name in names:
        if name not in ("", ".", "..") and (found := runs_of_comparison(runs.absolute() / name)):
            yield from found
            continue
        if "/" not in name and not (runs / name / RUN_FILE).is_file():
            known = {
                file.relative_to(runs).parts[0] for each in ("*", "*/*") for file in runs.glob(f"{each}/{RUN_FILE}")
            }
            fix = did_you_mean(name, known) or "`gradus run quickstart` makes a run; `--runs` names another folder"
            raise UserError(f"there is no run called {name!r}", where=str(runs.absolute()), fix=fix)
        yield existing_run(runs, name).path


def _address(server: str, page: Page | None) -> str:
    """What to open: the page, with its view where the server has taken it."""
    from gradus.pipeline.common.addresses import redacted
    from gradus.pipeline.tracking.pages.tracked import save_view

    if not server.startswith("http"):
        return server
    if page is None:
        return f"{redacted(server)}/#/experiments?workflowType=machine_learning"
    return page.address(redacted(server), save_view(server, page))


def _on_a_desktop() -> bool:
    """Whether a user sits here who has a browser with windows: elsewhere one that fills the terminal would open."""
    here = sys.stdout.isatty() and not os.environ.get("SSH_CONNECTION")
    return here and (sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")))
