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
from gradus.pipeline.common.files import remove_leftovers, write_text
from gradus.pipeline.common.records import digest_of, write_sealed
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs.run_paths import CONFIG_FILE, RUN_FILE, attempt_number, outline_of, typed
from gradus.pipeline.runs.run_records import (
    FAILURE_FILE,
    HELDOUT_FILE,
    PROFILE_FILE,
    RESULT_FILE,
    START_FILE,
    SUMMARY_FILE,
    RunRecords,
)

__all__ = [
    "CONFIG_FILE",
    "FAILURE_FILE",
    "HELDOUT_FILE",
    "PROFILE_FILE",
    "RESULT_FILE",
    "RUN_FILE",
    "START_FILE",
    "SUMMARY_FILE",
    "RunFolder",
    "config_as_text",
    "new_record",
    "restore_config",
]


class RunFolder(RunRecords):
    """One run on disk. Opening it reads only small files; torch is not needed."""

    def __init__(self, path: Path | str, stage_configs: list[type[StageConfig]], asked: PipelineConfig | None = None):
        """``asked``: the configuration that a launch asks for; None: the run keeps its own.

        Raises: UserError where ``path`` is no run.
        """
        super().__init__(path, stage_configs)
        self.asked = asked

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

        Raises: UserError with every difference, where a run of that name has another configuration, and where another
        process is making the run.
        """
        folder = Path(runs_dir).absolute() / name
        if not (folder / RUN_FILE).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if not (folder / RUN_FILE).is_file():  # another launch may have made the run meanwhile
                    write_text(folder / CONFIG_FILE, config_as_text(config))
                    write_sealed(folder / RUN_FILE, new_record(name, config, Path(config_file).absolute()))
                    return cls(folder, stage_configs, config)
        run = cls(folder, stage_configs, config)
        run._refuse_drift(config)
        if run.holder() is None:
            run.adopt(config)
        return run

    def tag(self, tags: dict[str, str]) -> None:
        """Set the tags that tracking shows for the run and its stages, beside its own; call it before the launch.

        Raises: UserError where another process works on the run.
        """
        if self.record.get("tags") != tags:
            with self.lock():
                self.record["tags"] = tags
                write_sealed(self.path / RUN_FILE, self.record)

    def adopt(self, config: PipelineConfig) -> None:
        """Take over the runtime options of a configuration that is the same otherwise.

        Raises: UserError where another process works on the run.
        """
        if _changes(self.config, config):
            with self.lock():
                self._write(config)

    def settle(self) -> None:
        """Read the run again, and write down what was asked for when it was opened; the caller holds the run's lock.

        Another launch may have opened the run, and have adopted its own options, before this one had the lock.
        Raises: UserError where the run has another configuration by now.
        """
        self.__dict__.pop("config", None)
        if self.asked is not None:
            self._refuse_drift(self.asked)
            self._write(self.asked)

    def _refuse_drift(self, config: PipelineConfig) -> None:
        """Raises: UserError with every difference other than in the runtime options."""
        if changed := differences(identity(self.config), identity(config)):
            fork = typed(self, "fork", "--from", "STAGE", "--set", "KEY=VALUE")
            raise UserError(
                f"the run {self.name!r} exists with another configuration",
                where=str(self.path / CONFIG_FILE),
                got="\n            ".join(changed),
                expected="the configuration the run was started with",
                fix=f"{typed(self, 'resume')} keeps the old configuration; {fork} makes a new run that shares what is "
                "done before STAGE; or choose another --name",
            )

    def _write(self, config: PipelineConfig) -> None:
        """Replace the run's configuration, unless it is the same; the caller holds the lock."""
        if _changes(self.config, config):
            text = config_as_text(config)
            # Both are right until the file is replaced, which a kill may prevent.
            self.record["config"] = [digest_of(text), digest_of(self.config_text())]
            write_sealed(self.path / RUN_FILE, self.record)
            write_text(self.path / CONFIG_FILE, text)
            self.__dict__.pop("config", None)  # cached; the next access reads the new file

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
        with _locked(self.path):
            self.__dict__.pop("record", None)  # it may have been written while this process waited
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
        failures = [f for f in map(self.failure, range(len(self.outline))) if f]
        return f"failed: {failures[-1]['error']}" if failures else "stopped"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder that is a run or becomes one, and remove what a dead process left half-written in it."""
    with locks.hold(folder):
        remove_leftovers(folder)
        yield


def restore_config(run: RunFolder, config: PipelineConfig) -> None:
    """Write config.yaml again where it is damaged, or gone, and this is the configuration that it held."""
    text = config_as_text(config)
    if digest_of(text) in run.record.get("config", ()):
        try:
            run.config_text()
        except UserError:
            with run.lock():
                write_text(run.path / CONFIG_FILE, text)


def _changes(old: PipelineConfig, new: PipelineConfig) -> list[str]:
    return differences(old.model_dump(mode="json"), new.model_dump(mode="json"))


def config_as_text(config: PipelineConfig) -> str:
    """The content of config.yaml."""
    return yaml_text.dump(config.model_dump(mode="json"))


def new_record(name: str, config: PipelineConfig, config_file: Path) -> dict[str, Any]:
    """The content of a new run's run.json."""
    return {
        "name": name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "gradus": __version__,
        "config_file": str(config_file),
        "seed": config.seed,
        "config": [digest_of(config_as_text(config))],
        "stages": outline_of(config),
    }
