"""From what is asked for to the folder of a run: the checked configuration, the name, a new or an existing folder."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradus.pipeline.common.addresses import unused_environment
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.locks import abandoned
from gradus.pipeline.common.shown import gradus_command
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.loading import LoadedConfig
from gradus.pipeline.config.options import differences
from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder, restore_config
from gradus.pipeline.stage import Stage

ConfigSource = str | Path | Mapping[str, Any] | PipelineConfig
"""A YAML file, the name of a packaged configuration, or a configuration that was made in Python."""


def load(
    source: ConfigSource, overrides: Sequence[str] | None, code_dir: Path | None = None, tiny: Path | None = None
) -> tuple[LoadedConfig, dict[str, Any]]:
    """The checked configuration, and the known stages by name. Raises: UserError.

    ``code_dir``: where stages and rewards of the user's own are looked for first, if that is not the file's folder.
    ``tiny``: the runs folder, for the model and the rows of the configuration at toy size, which is then what is given.
    """
    from gradus.pipeline.config.loading import config_of_data, load_config
    from gradus.pipeline.rewards.registry import numbers
    from gradus.stages import discover

    found = discover()
    options = [stage.config for stage in found.values()]
    if isinstance(source, str | Path):
        loaded = load_config(str(source), list(overrides or ()), options, code_dir, numbers)
    else:
        loaded = config_of_data(source, overrides or (), options, numbers)
    if tiny is not None:
        from gradus.flows.screen.text import console, line_printer
        from gradus.flows.tiny import make_tiny

        config, told = make_tiny(loaded.config, found, tiny)
        line_printer(console(stderr=True))(told)
        loaded = replace(loaded, config=config)
    return loaded, found


def existing_run(runs: Path, name: str) -> RunFolder:
    """The run of this name. Raises: UserError, also where the run's folder is given instead of its name."""
    from gradus.stages import discover

    path = Path(name)
    if path.name != name and (path / RUN_FILE).is_file():
        own = path.resolve()
        fix = f"`{own.name}`" if own.parent == runs.resolve() else f"`{own.name} --runs {path.parent}`"
        raise UserError("a run goes by its name here", got=f"its folder, {name}", expected=fix)
    return RunFolder(runs / name, [stage.config for stage in discover().values()])


def begin_run(
    config: ConfigSource,
    overrides: Sequence[str] | None,
    name: str | None,
    runs: Path,
    engine: str,
    say: Callable[[str], None],
    tiny: bool = False,
) -> RunFolder:
    """Check everything that can be known before compute is spent, then open the folder to work in; see open_run.

    Raises: UserError.
    """
    from gradus.flows.orchestrator.access import check_prefect

    check_name(name)
    loaded, stages = load(config, overrides, tiny=runs if tiny else None)
    check_world(loaded, stages, runs, own_copies(runs / name) if name is not None else ())
    check_prefect(engine)
    return open_run(loaded, runs, name, stages, say)


def own_copies(folder: Path) -> set[str]:
    """The sections of the configuration whose sources a run has copies of; none where there is no run yet."""
    return RunFolder(folder, []).own_copies() if (folder / RUN_FILE).is_file() else set()


def check_world(loaded: Any, stages: Mapping[str, Any], runs: Path, copied: Collection[str] = ()) -> list[str]:
    """Check everything that can be known before compute is spent; ``copied`` sections need their sources no more.

    Returns lines for the user about the data that were found. Raises: UserError with every problem found.
    """
    from gradus.pipeline.config.loading import IN_PYTHON
    from gradus.pipeline.execution.preflight import preflight

    file = IN_PYTHON if loaded.path.name == IN_PYTHON else str(loaded.path)
    return preflight(loaded.config, loaded.base_dir, stages, runs, file, copied)


def open_run(
    loaded: LoadedConfig, runs_dir: Path, name: str | None, stages: Mapping[str, Stage], say: Callable[[str], None]
) -> RunFolder:
    """The folder to work in: that of the named run, which is continued if it exists, or one under the next free name.

    Raises: UserError where another process works on the named run, and where that was begun with another configuration,
    with the commands that would help.
    """
    from gradus.flows.screen.plan import refuse_drift
    from gradus.pipeline.runs.changed_sources import changed_sources

    configs = [stage.config for stage in stages.values()]
    for line in unused_environment(loaded.config.tracking.model_dump(), runs_dir):
        say(line)
    if name is None:
        name = reserve(runs_dir, loaded.config.name)
        if name != loaded.config.name and (runs_dir / loaded.config.name / RUN_FILE).is_file():
            go_on = f"`{gradus_command('resume', loaded.config.name, runs=runs_dir)}` continues that one"
            say(f"a run called {loaded.config.name} exists, so this one is {name} ({go_on})")
    if not (runs_dir / name / RUN_FILE).is_file():
        return RunFolder.create(runs_dir, loaded.config, name, loaded.path, configs)
    earlier = RunFolder(runs_dir / name, configs)
    if earlier.holder() is not None:
        with earlier.lock():  # raises the error that names the process
            pass
    restore_config(earlier, loaded.config)
    refuse_drift(earlier, loaded.config, loaded.path)
    before = earlier.config.model_dump(mode="json")
    run = RunFolder.create(runs_dir, loaded.config, name, loaded.path, configs)
    for change in differences(before, run.config.model_dump(mode="json")):
        say(f"continues with {change}")
    for line in changed_sources(run):
        say(line)
    return run


def reserve(runs_dir: Path, base: str) -> str:
    """Make the first free folder of NAME, NAME-2, NAME-3 ... and return its name; two launches never get the same.

    A folder that was made for a launch that was then killed is free.
    """
    for name in candidates(base):
        with contextlib.suppress(FileExistsError):
            (runs_dir / name).mkdir(parents=True)
            break
        if abandoned(runs_dir / name):
            break
    return name


def candidates(base: str) -> Iterator[str]:
    """The names that a new run may get, in order."""
    return (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))


def check_name(name: str | None) -> None:
    """A run's name must be usable as the name of a folder. Raises: UserError."""
    import re

    from gradus.pipeline.config.options import NAME_PATTERN

    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        expected = "at most 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise UserError("a run cannot have this name", where="--name", got=name, expected=expected)
