""""""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradus.flows.screen.plan import refuse_drift
from gradus.flows.screen.text import runs_option
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import sync_folder
from gradus.pipeline.config.loading import LoadedConfig
from gradus.pipeline.config.options import differences
from gradus.pipeline.runs.run_folder import RUN_FILE, SUMMARY_FILE, RunFolder
from gradus.pipeline.stage import Stage


def load(source: str, overrides: list[str] | None, code_dir: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """A checked configuration, and the known stages by name; see :func:`load_config` for ``code_dir``."""
    from gradus.pipeline.config.loading import load_config
    from gradus.stages import discover

    found = discover()
    return load_config(source, overrides or [], [stage.config for stage in found.values()], code_dir), found


def check_world(loaded: Any, stages: Mapping[str, Any], runs: Path) -> None:
    """Everything that can be known before compute is spent."""
    from gradus.pipeline.execution.preflight import preflight

    preflight(loaded.config, loaded.base_dir, stages, runs, str(loaded.path))


def open_run(
    loaded: LoadedConfig, runs_dir: Path, name: str | None, stages: Mapping[str, Stage], say: Callable[[str], None]
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


def restart_from(run: RunFolder, index: int) -> None:
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


def check_name(name: str | None) -> None:
    """A run's name becomes a folder. Raises: UserError."""
    import re

    from gradus.pipeline.config.options import NAME_PATTERN

    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        expected = "at most 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise UserError("a run cannot have this name", where="--name", got=name, expected=expected)
