"""One launch of a pipeline: the run folder, the helpers around it, the engine, and what is said at the end."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.terminal import duration, number, shown_path, stage_table, watching
from pipeline.config_files import LoadedConfig
from pipeline.errors import UserError
from pipeline.observer import Observer
from pipeline.runs import RUN_FILE, RunFolder
from pipeline.stage import Stage

DEFAULT_RUNS = Path("runs")


def open_run(
    loaded: LoadedConfig, runs_dir: Path, name: str | None, stages: dict[str, Stage], say: Callable[[str], None]
):
    """The folder to work in: the named run, which continues where it exists, or a new one under the next free name."""
    configs = [stage.config for stage in stages.values()]
    if name is None:
        name = _reserve(runs_dir, loaded.config.name)
        earlier = runs_dir / loaded.config.name / RUN_FILE
        if name != loaded.config.name and earlier.is_file():
            say(f"a run called {loaded.config.name} exists, so this one is {name} (--name continues an unfinished one)")
    return RunFolder.create(runs_dir, loaded.config, name, loaded.path, configs)


def _reserve(runs_dir: Path, base: str) -> str:
    """Make the first free folder of NAME, NAME-2, NAME-3 ...; of two launches at once each gets its own."""
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        with contextlib.suppress(FileExistsError):
            (runs_dir / name).mkdir(parents=True)
            return name
        number += 1


def launch(run: RunFolder, engine: str, console: Console) -> dict[str, Any]:
    """Work on a run until its summary is written, and return that. Raises: StageFailed, UserError."""
    from pipeline.tracking_client import start_uploader

    with run.lock(), _ending_on_sigterm():
        run_engine = _engine(engine)
        uploader = start_uploader(run.path)
        try:
            with watching(console) as observer:
                summary = run_engine(run.path, observer)
        except BaseException:
            uploader.finish(timeout=3)
            raise
        report = uploader.finish()
        summary = _with_tracking_ids(run, summary)
    if report.message:
        console.print(report.message, highlight=False, markup=False, soft_wrap=True)
    return summary


def _with_tracking_ids(run: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary again, now that the uploader is done: MLflow may have named its last run only then."""
    from pipeline.execution import finish

    return finish(run) if any(stage["mlflow_run_id"] is None for stage in summary["stages"]) else summary


def _engine(name: str) -> Callable[[Path, Observer], dict[str, Any]]:
    """How stages are called. The Prefect server starts in the background while torch is being imported."""
    if name == "none":
        from flows.plain import run_plain

        return run_plain
    from flows.server import start_server_in_background

    start_server_in_background()
    from flows.staged import run_staged

    return run_staged


@contextlib.contextmanager
def _ending_on_sigterm():
    """Let SIGTERM unwind the stack as Ctrl-C does, so that journals and helpers are closed."""

    def leave(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def tell(run: RunFolder, summary: dict[str, Any], runs_dir: Path, console: Console) -> None:
    """What was learned, where it is, and what to do next."""

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say()
    console.print(stage_table(summary["stages"]), soft_wrap=True)
    say()
    change = f"{number(summary['accuracy_start'])} to {number(summary['accuracy_end'])}"
    say(f"What was learned: held-out accuracy went from {change} in {duration(summary['seconds'])}.")
    say("Checkpoints, each a normal Hugging Face folder:")
    for stage in summary["stages"]:
        say(f"  {stage['name']}: {shown_path(stage['checkpoint'])}")
    runs = "" if runs_dir.absolute() == DEFAULT_RUNS.absolute() else f" --runs {shown_path(runs_dir)}"
    say(f"Curves, in MLflow: gradus ui{runs}")
    say(f'Try it: gradus sample {shown_path(summary["stages"][-1]["checkpoint"])} "{_example(run)}"')


def _example(run: RunFolder) -> str:
    """A held-out question of the run's task, short enough for a command line."""
    with contextlib.suppress(Exception):
        import pyarrow.parquet

        file = next((run.path / "data").glob("heldout*.parquet"))
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=50, columns=["question"]):
            short = [q for q in batch.to_pydict()["question"] if len(q) < 80 and not set(q) & set('"`$\\!\n')]
            if short:
                return short[0]
    return "your question"


def check_name(name: str | None) -> None:
    """A run's name becomes a folder. Raises: UserError."""
    import re

    from pipeline.config_base import NAME_PATTERN

    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        expected = "at most 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise UserError("a run cannot have this name", where="--name", got=name, expected=expected)
