"""The run folder, the public face of a run on disk: created, changed, locked, and read by everything else.

It has three layers: where the parts of a run lie (``run_paths``), the records of what is done (``run_records``), and,
here, what changes a run and who is working on it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradus import __version__
from gradus.pipeline.common import locks, yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import remove_leftovers, write_json, write_text
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs.run_paths import CONFIG_FILE, RUN_FILE, attempt_number
from gradus.pipeline.runs.run_records import (
    FAILURE_FILE,
    HELDOUT_FILE,
    RESULT_FILE,
    START_FILE,
    SUMMARY_FILE,
    RunRecords,
)

__all__ = [
    "CONFIG_FILE",
    "FAILURE_FILE",
    "HELDOUT_FILE",
    "RESULT_FILE",
    "RUN_FILE",
    "START_FILE",
    "SUMMARY_FILE",
    "RunFolder",
    "new_record",
]


class RunFolder(RunRecords):
    """One run on disk. Opening it reads only small files; torch is not needed."""

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        config: PipelineConfig,
        name: str,
        config_file: Path,
        stage_configs: list[type[StageConfig]],
    ) -> RunFolder:
        """The folder of a new run, or of an existing run with the same configuration, which is then continued.

        Raises: UserError with every difference, where a run of that name has another configuration.
        """
        folder = Path(runs_dir).absolute() / name
        if (folder / RUN_FILE).is_file():
            run = cls(folder, stage_configs)
            changed = differences(identity(run.config), identity(config))
            if changed:
                raise UserError(
                    f"the run {name!r} exists with another configuration",
                    where=str(folder / CONFIG_FILE),
                    got="\n            ".join(changed),
                    expected="the configuration the run was started with",
                    fix=f"`gradus resume {name}` keeps the old configuration; `gradus fork {name} --from STAGE "
                    "--set KEY=VALUE` makes a new run that shares what is done before STAGE; or choose another --name",
                )
            if run.holder() is None:
                run.adopt(config)
            return run
        write_text(folder / CONFIG_FILE, yaml_text.dump(config.model_dump(mode="json")))
        write_json(folder / RUN_FILE, new_record(name, config, Path(config_file).absolute()))
        return cls(folder, stage_configs)

    def tag(self, tags: dict[str, str]) -> None:
        """Set the tags that tracking shows for the run and its stages, beside its own; call it before the launch."""
        if self.record.get("tags") != tags:
            self.record["tags"] = tags
            write_json(self.path / RUN_FILE, self.record)

    def adopt(self, config: PipelineConfig) -> list[str]:
        """Take over the runtime options of a configuration that is the same otherwise; returns what changed."""
        changed = differences(self.config.model_dump(mode="json"), config.model_dump(mode="json"))
        if changed:
            write_text(self.path / CONFIG_FILE, yaml_text.dump(config.model_dump(mode="json")))
            self.__dict__.pop("config")  # cached; the next access reads the new file
        return changed

    def set_aside(self, index: int) -> Path | None:
        """Keep a stage's folder as its next numbered attempt, so that the stage can start again; returns its new path.

        None where the stage has no folder.
        """
        folder = self.stage_dir(index)
        if not folder.exists():
            return None
        aside = folder.with_name(f"{folder.name}.attempt-{self.next_attempt(index)}")
        folder.rename(aside)
        return aside

    def next_attempt(self, index: int) -> int:
        """The number under which :meth:`set_aside` would keep a stage's folder."""
        earlier = self.attempts(index)
        return attempt_number(earlier[-1]) + 1 if earlier else 1

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for this process, and remove the files that a process left half-written when it died.

        The lock ends with the process. Raises: UserError that names the process that holds it.
        """
        with locks.hold(self.path):
            remove_leftovers(self.path)
            yield

    def holder(self) -> dict[str, Any] | None:
        """The process that is working on the run now; None where there is none."""
        return locks.holder(self.path)

    def state(self) -> str:
        """``running``, ``done``, ``failed: why`` or ``stopped``. A run whose process died is ``stopped``."""
        if self.holder() is not None:
            return "running"
        if self.summary():
            return "done"
        failures = [f for f in map(self.failure, range(len(self.config.stages))) if f]
        return f"failed: {failures[-1]['error']}" if failures else "stopped"


def new_record(name: str, config: PipelineConfig, config_file: Path) -> dict[str, Any]:
    """The content of a new run's run.json."""
    return {
        "name": name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "gradus": __version__,
        "config_file": str(config_file),
        "seed": config.seed,
    }
