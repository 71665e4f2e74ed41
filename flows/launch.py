"""One launch of a pipeline: the run folder, the helpers around it, the engine, and what is said at the end."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gradus.flows.screen.plan import refuse_drift
from gradus.flows.screen.progress import duration, number, runs_option, shown_path, watching
from gradus.flows.screen.tables import print_stages
from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import read_json, sync_folder
from gradus.pipeline.common.observer import Observer, Observers
from gradus.pipeline.config.loading import LoadedConfig
from gradus.pipeline.runs.run_folder import RUN_FILE, SUMMARY_FILE, RunFolder, differences
from gradus.pipeline.stage import Stage

if TYPE_CHECKING:
    from gradus.pipeline.tracking.position import UploaderHandle


def open_run(
    loaded: LoadedConfig, runs_dir: Path, name: str | None, stages: dict[str, Stage], say: Callable[[str], None]
) -> RunFolder:
    """The folder to work in: the named run, which continues where it exists, or a new one under the next free name.

    Raises: UserError where the named run asked for something else, with the ways on.
    """
    configs = [stage.config for stage in stages.values()]
    if name is None:
        name = reserve(runs_dir, loaded.config.name)
        if name != loaded.config.name and (runs_dir / loaded.config.name / RUN_FILE).is_file():
            go_on = f"`gradus resume {loaded.config.name}{runs_option(runs_dir)}` goes on with that one"
            say(f"a run called {loaded.config.name} exists, so this one is {name} ({go_on})")
    if not (runs_dir / name / RUN_FILE).is_file():
        return RunFolder.create(runs_dir, loaded.config, name, loaded.path, configs)
    earlier = RunFolder(runs_dir / name, configs)
    refuse_drift(earlier, loaded.config)
    before = earlier.config.model_dump(mode="json")
    run = RunFolder.create(runs_dir, loaded.config, name, loaded.path, configs)
    for change in differences(before, run.config.model_dump(mode="json")):
        say(f"goes on with {change}")
    return run


def reserve(runs_dir: Path, base: str) -> str:
    """Make the first free folder of NAME, NAME-2, NAME-3 ...; of two launches at once each gets its own."""
    for name in candidates(base):
        with contextlib.suppress(FileExistsError):
            (runs_dir / name).mkdir(parents=True)
            break
    return name


def candidates(base: str) -> Iterator[str]:
    """The names that a new run may get, in order."""
    return (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))


def place_for_fork(runs_dir: Path, origin: str, name: str | None) -> Path:
    """An empty folder for a fork: NAME, or the first free one of ORIGIN-fork, ORIGIN-fork-2 ... Raises: UserError."""
    if name is None:
        check_name(f"{origin}-fork-99")
        return runs_dir / reserve(runs_dir, f"{origin}-fork")
    try:
        (runs_dir / name).mkdir()
    except FileExistsError:
        what = "run" if (runs_dir / name / RUN_FILE).is_file() else "folder"
        fix = "choose another --name"
        raise UserError(f"there is a {what} called {name!r} already", where=str(runs_dir.absolute()), fix=fix) from None
    return runs_dir / name


def check_anew(run: RunFolder, index: int) -> None:
    """There is something to start stage ``index`` from. Raises: UserError."""
    before = run.result(index - 1) if index else run.start()
    if before is None:
        label = run.config.stages[index].label
        missing = (
            f"stage {run.config.stages[index - 1].label} has no result" if index else "data and policy are not ready"
        )
        raise UserError(
            f"there is nothing to start {label} from yet",
            where=f"--from {label}",
            got=missing,
            fix=f"`gradus resume {run.name}{runs_option(run.path.parent)}` goes on",
        )


def begin_anew(run: RunFolder, index: int) -> None:
    """Set aside stage ``index`` and all after it. The caller holds the run's lock. Raises: UserError.

    The summary goes first and the stages from the last one on, so that a kill on the way leaves a run that can go on:
    what is still there follows from what is before it.
    """
    check_anew(run, index)
    forget_summary(run)
    for each in reversed(range(index, len(run.config.stages))):
        run.set_aside(each)
    sync_folder(run.path)


def forget_summary(run: RunFolder) -> None:
    """The run is no longer complete; the summary is made again at its end."""
    (run.path / SUMMARY_FILE).unlink(missing_ok=True)


class _Steps(Observer):
    """Counts the steps of a launch."""

    done = 0

    def step_done(self, label: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        self.done += 1


class _Delivery(Observer):
    """The uploader of a launch. It begins once the start is evaluated: importing MLflow takes seconds, which would go
    on beside the imports and the evaluation that the first step waits for."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.uploader: UploaderHandle | None = None

    def prepared(self, accuracy: float, interval: tuple[float, float]) -> None:
        self.begin()

    def begin(self) -> UploaderHandle:
        """The uploader, started where it is not yet."""
        from gradus.pipeline.tracking.position import start_uploader

        if self.uploader is None:
            self.uploader = start_uploader(self.run_dir)
        return self.uploader


Engine = Callable[[Path, Observer], dict[str, Any]]
"""How stages are called: takes the run folder through them and returns the run's summary."""


def launch(
    run: RunFolder, engine: str | Engine, console: Console, before: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Work on a run until its summary is written, and return that; ``before`` is called once the run is locked.

    Raises: StageFailed, UserError, Interrupted.
    """
    from gradus.pipeline.common.process import starting_up

    steps, delivery = _Steps(), _Delivery(run.path)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    with contextlib.ExitStack() as held:
        held.enter_context(run.lock())
        held.enter_context(interruption.handled(say))
        held.enter_context(starting_up())
        before()
        held.enter_context(_head_start(run))
        run_engine = _engine(engine) if isinstance(engine, str) else engine
        try:
            with watching(console) as observer:
                summary = run_engine(run.path, Observers(observer, steps, delivery))
            if run.summary() is None:
                raise StageFailed(f"the launch took {steps.done or 'no'} steps, and {run.name} is not complete")
        except BaseException:
            delivery.begin().finish(timeout=3)
            raise
        report = delivery.begin().finish()
        summary = _with_tracking_ids(run, summary)
    if report.message:
        console.print(report.message, highlight=False, markup=False, soft_wrap=True)
    return summary


def _head_start(run: RunFolder) -> contextlib.AbstractContextManager[None]:
    """Where a run has no data yet, they are made while torch is being imported."""
    from gradus.pipeline.tasks.background import data_ahead

    new = run.start() is None and run.origin is None
    return data_ahead(run.config.task, run.base_dir, run.data_dir) if new else contextlib.nullcontext()


def _with_tracking_ids(run: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary again, now that the uploader is done: MLflow may have named its last run only then."""
    from gradus.pipeline.execution.stage import finish

    return finish(run) if any(stage["mlflow_run_id"] is None for stage in summary["stages"]) else summary


def _engine(name: str) -> Engine:
    """How stages are called. The Prefect server starts in the background while torch is being imported."""
    if name == "none":
        from gradus.flows.order import run_plain

        return run_plain
    from gradus.flows.orchestrator.server import start_server_in_background

    start_server_in_background()
    from gradus.flows.staged import run_staged

    return run_staged


def tell_prefect(run: RunFolder, say: Callable[[str], None]) -> None:
    """Tell the Prefect server, where it is up, how a launch ended that was killed before it could do so itself."""
    record = read_json(run.path / "prefect.json")
    if not record or record["state"] or run.holder() is not None:
        return
    from gradus.flows.orchestrator.server import ensure_server, server_status

    found = server_status()
    if not found["healthy"] or found["url"] != record["api_url"]:
        return
    with contextlib.suppress(OSError, RuntimeError):
        url = ensure_server()  # sets this process up for it, before Prefect is imported
        from gradus.flows.orchestrator.around_flow import flow_settings
        from gradus.flows.orchestrator.flow_record import FlowRecord

        with run.lock(), flow_settings(url):
            FlowRecord(run.path).settle(url, say)


def tell(run: RunFolder, summary: dict[str, Any], runs_dir: Path, console: Console) -> None:
    """What was learned, where it is, and what to do next."""

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say()
    print_stages(summary["stages"], console)
    say()
    change = f"{number(summary['accuracy_start'])} to {number(summary['accuracy_end'])}"
    say(f"What was learned: held-out accuracy went from {change} in {duration(summary['seconds'])}.")
    say("Checkpoints, each a normal Hugging Face folder:")
    for index, stage in enumerate(summary["stages"]):
        owner = (run.result(index) or {}).get("shared")
        say(f"  {stage['name']}: {shown_path(stage['checkpoint'])}" + (f" (shared with {owner})" if owner else ""))
    say(f"Curves, in MLflow: gradus ui{runs_option(runs_dir)}")
    say(f'Try it: gradus sample {shown_path(summary["stages"][-1]["checkpoint"])} "{_example(run)}"')


def _example(run: RunFolder) -> str:
    """A held-out question of the run's task, short enough for a command line."""
    with contextlib.suppress(Exception):
        import pyarrow.parquet

        file = next(run.data_dir.glob("heldout*.parquet"))
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=50, columns=["question"]):
            short = [q for q in batch.to_pydict()["question"] if len(q) < 80 and not set(q) & set('"`$\\!\n')]
            if short:
                return short[0]
    return "your question"


def check_name(name: str | None) -> None:
    """A run's name becomes a folder. Raises: UserError."""
    import re

    from gradus.pipeline.config.options import NAME_PATTERN

    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        expected = "at most 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise UserError("a run cannot have this name", where="--name", got=name, expected=expected)
