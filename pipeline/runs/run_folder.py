"""The run folder: what was asked for, what is done, and who is working on it. Nothing is guessed from file dates."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from gradus import __version__
from gradus.pipeline.common import locks, yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json, remove_leftovers, write_json, write_text
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, content_of

CONFIG_FILE, RUN_FILE, START_FILE, SUMMARY_FILE = "config.yaml", "run.json", "start.json", "summary.json"
RESULT_FILE, FAILURE_FILE = "result.json", "failure.json"
HELDOUT_FILE = "heldout.json"
"""In a stage's folder: which held-out prompts its result answers correctly, by their ids."""
SUMMARY_KEYS = [
    "name",
    "variant",
    "steps",
    "accuracy_before",
    "accuracy_after",
    "interval",
    "rollouts",
    "tokens",
    "seconds",
    "checkpoint",
    "mlflow_run_id",
    "events",
]


class RunFolder:
    """One run on disk. Opening it reads only small files; no torch is needed."""

    def __init__(self, path: Path | str, stage_configs: list[type[StageConfig]]):
        self.path = Path(path).absolute()
        self.stage_configs = stage_configs
        if not (self.path / RUN_FILE).is_file():
            known = sorted(p.parent.name for p in self.path.parent.glob(f"*/{RUN_FILE}"))
            raise UserError(
                f"there is no run called {self.path.name!r}",
                where=str(self.path.parent),
                expected=f"one of {', '.join(known)}" if known else "a folder with runs",
                fix="`gradus status` lists the runs; `--runs` names another folder",
            )

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        config: PipelineConfig,
        name: str,
        config_file: Path,
        stage_configs: list[type[StageConfig]],
    ) -> RunFolder:
        """The folder of a new run, or of one that asked for the same thing, which then goes on.

        Raises: UserError with every difference, where a run of that name asked for something else.
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
                    fix=f"`gradus resume {name}` goes on with the old configuration; `gradus fork {name} --from STAGE "
                    "--set KEY=VALUE` makes a new run that shares what is done before STAGE; or choose another --name",
                )
            if run.holder() is None:
                run.adopt(config)
            return run
        write_text(folder / CONFIG_FILE, yaml_text.dump(config.model_dump(mode="json")))
        write_json(folder / RUN_FILE, new_record(name, config, Path(config_file).absolute()))
        return cls(folder, stage_configs)

    @property
    def name(self) -> str:
        """The run's name is its folder's."""
        return self.path.name

    @cached_property
    def record(self) -> dict[str, Any]:
        """What run.json says."""
        return read_json(self.path / RUN_FILE) or {}

    def tag(self, tags: dict[str, str]) -> None:
        """Labels that tracking shows the run and its stages with, beside its own; before it is launched."""
        if self.record.get("tags") != tags:
            self.record["tags"] = tags
            write_json(self.path / RUN_FILE, self.record)

    @cached_property
    def config(self) -> PipelineConfig:
        """The resolved configuration the run was started with."""
        from gradus.pipeline.config.pipeline import pipeline_model

        file = self.path / CONFIG_FILE
        return pipeline_model(self.stage_configs).model_validate(yaml_text.parse(file.read_text(), str(file)).data)

    def adopt(self, config: PipelineConfig) -> list[str]:
        """Take over the runtime options of a configuration that asks for the same thing; returns what changed."""
        changed = differences(self.config.model_dump(mode="json"), config.model_dump(mode="json"))
        if changed:
            write_text(self.path / CONFIG_FILE, yaml_text.dump(config.model_dump(mode="json")))
            self.__dict__.pop("config")
        return changed

    @property
    def base_dir(self) -> Path:
        """Folder that relative paths of the configuration are relative to."""
        return Path(self.record["config_file"]).parent

    @property
    def data_dir(self) -> Path:
        """The task's data; a fork reads its origin's."""
        return self.path / self.record.get("data", "data")

    @property
    def origin(self) -> dict[str, Any] | None:
        """What this run was forked from: ``run``, ``stage``, ``checkpoint``, ``changes`` and ``mlflow_run_id``."""
        return self.record.get("fork")

    def stage_index(self, label: str) -> int:
        """The position of a stage, from 0. Raises: UserError where the pipeline has none of that name."""
        labels = [stage.label for stage in self.config.stages]
        if label not in labels:
            raise UserError(
                f"the run {self.name!r} has no stage `{label}`", where="--from", expected=f"one of {', '.join(labels)}"
            )
        return labels.index(label)

    def stage_dir(self, index: int) -> Path:
        """``stages/01-label``, numbered from 1 in the pipeline's order."""
        return self.path / "stages" / f"{index + 1:02d}-{self.config.stages[index].label}"

    def attempts(self, index: int) -> list[Path]:
        """Folders of earlier attempts at a stage that were set aside, oldest first."""
        folder = self.stage_dir(index)
        numbered = [(int(path.suffix.removeprefix(".attempt-")), path) for path in _attempts_beside(folder)]
        return [path for _, path in sorted(numbered)]

    def set_aside(self, index: int) -> Path | None:
        """Keep what a stage has as its next numbered attempt, so that it can begin anew."""
        folder, earlier = self.stage_dir(index), self.attempts(index)
        if not folder.exists():
            return None
        last = int(earlier[-1].suffix.removeprefix(".attempt-")) if earlier else 0
        aside = folder.with_name(f"{folder.name}.attempt-{last + 1}")
        folder.rename(aside)
        return aside

    def start(self) -> dict[str, Any] | None:
        """What was measured before any stage, with the checkpoint's absolute path; None before that is done."""
        start = read_json(self.path / START_FILE)
        return start and start | {"checkpoint": str(self._found(self.path / start["checkpoint"], start))}

    def result(self, index: int) -> dict[str, Any] | None:
        """A stage's success record, with the checkpoint's absolute path, or None."""
        folder = self.stage_dir(index)
        result = read_json(folder / RESULT_FILE)
        return result and result | {"checkpoint": str(self._found(folder / result["checkpoint"], result))}

    @staticmethod
    def _found(path: Path, result: dict[str, Any]) -> Path:
        """Where a checkpoint is now: a fork's origin may have set the stage aside that made it, and made it anew."""
        path = Path(os.path.normpath(path))
        in_place = content_of(path) == result.get("content") if "shared" in result else path.is_dir()
        if in_place or "content" not in result:
            return path
        candidates = [folder / CHECKPOINTS / path.name for folder in _attempts_beside(path.parent.parent)]
        return next((each for each in candidates if content_of(each) == result["content"]), path)

    def heldout(self, index: int) -> dict[str, bool] | None:
        """id of a held-out prompt -> whether what the stage handed over answers it correctly; None before it is done.

        Of a stage that a fork shares, the run that owns it knows.
        """
        found = read_json(self.stage_dir(index) / HELDOUT_FILE) if self.result(index) else None
        return found and found["correct"]

    def failure(self, index: int) -> dict[str, Any] | None:
        """A stage's failure record, or None; a stage that succeeded later has none."""
        return None if self.result(index) else read_json(self.stage_dir(index) / FAILURE_FILE)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run, with checkpoints where they are now, or None."""
        summary = read_json(self.path / SUMMARY_FILE)
        for index, stage in enumerate(summary["stages"] if summary else ()):
            stage["checkpoint"] = (self.result(index) or stage)["checkpoint"]
        return summary

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the lock dies with it. What a dead holder had half written is removed.

        Raises: UserError that says who holds it.
        """
        with locks.hold(self.path):
            remove_leftovers(self.path)
            yield

    def holder(self) -> dict[str, Any] | None:
        """Who is working on the run right now, or None."""
        return locks.holder(self.path)

    def state(self) -> str:
        """``running``, ``done``, ``failed: why`` or ``stopped``; of a run whose process died, ``stopped``."""
        if self.holder() is not None:
            return "running"
        if self.summary():
            return "done"
        failures = [f for f in map(self.failure, range(len(self.config.stages))) if f]
        return f"failed: {failures[-1]['error']}" if failures else "stopped"


def new_record(name: str, config: PipelineConfig, config_file: Path) -> dict[str, Any]:
    """What a new run's run.json says."""
    return {
        "name": name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "gradus": __version__,
        "config_file": str(config_file),
        "seed": config.seed,
    }


def _attempts_beside(stage_dir: Path) -> list[Path]:
    return [p for p in stage_dir.parent.glob(f"{stage_dir.name}.attempt-*") if p.suffix[9:].isdigit()]
