"""A fork, from what is asked for to its folder: the checks, the name, and the new run that shares what is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradus.flows.open_run import candidates, check_name, check_world, load
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.locks import vacant
from gradus.pipeline.config.loading import LoadedConfig
from gradus.pipeline.runs import fork as forking
from gradus.pipeline.runs.changed_sources import changed_sources
from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE, RunFolder


@dataclass(frozen=True)
class Fork:
    """A fork that has been made and not launched yet."""

    run: RunFolder
    changes: list[str]
    """How its configuration differs from that of its origin, one ``key: old -> new`` each."""


def fork_run(
    origin: RunFolder,
    from_stage: str,
    overrides: Sequence[str] | None,
    name: str | None,
    engine: str,
    say: Callable[[str], None],
) -> Fork:
    """Make a run that shares with ``origin`` what is before a stage; ``engine`` will launch it.

    What is shared is not made again, so its sources need not exist. Raises: UserError.
    """
    from gradus.flows.orchestrator.access import check_prefect

    check_name(name)
    runs, index = origin.path.parent, origin.stage_index(from_stage)
    forking.check_shareable(origin, index)
    origin.config_text()  # which names the file, where it is damaged, and says what to do
    loaded, stages = load(str(origin.path / CONFIG_FILE), overrides, origin.base_dir)
    changes = forking.check_changes(origin, index, loaded.config)
    forking.check_parent(origin, index, loaded.config)
    check_world(LoadedConfig(loaded.config, loaded.path, origin.base_dir), stages, runs, origin.own_copies())
    check_prefect(engine)
    for line in changed_sources(origin):
        say(line)
    for each in candidates(f"{origin.name}-fork") if name is None else [name]:
        check_name(each)
        if vacant(runs / each):
            with contextlib.suppress(FileExistsError):  # another process was faster
                return Fork(forking.fork(origin, index, loaded.config, runs / each), changes)
    what = "run" if (runs / str(name) / RUN_FILE).is_file() else "folder"
    fix = "choose another --name"
    raise UserError(f"there is a {what} called {name!r} already", where=str(runs.absolute()), fix=fix)
