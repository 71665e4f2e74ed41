"""The first layer of a run folder: what was asked for, and where each part of the run lies."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from gradus.pipeline.common import user_code, yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.config import PipelineConfig, StageConfig

CONFIG_FILE = "config.yaml"
"""The resolved configuration."""
RUN_FILE = "run.json"
"""The run's record: its name, when it was created, and what it was forked from. A folder with this file is a run."""


class RunPaths:
    """The configuration, the record and the paths of a run that exists."""

    def __init__(self, path: Path | str, stage_configs: list[type[StageConfig]]):
        """Raises: UserError where ``path`` is no run."""
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

    @property
    def name(self) -> str:
        """The name of the run, which is the name of its folder."""
        return self.path.name

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of run.json."""
        return read_json(self.path / RUN_FILE) or {}

    @cached_property
    def config(self) -> PipelineConfig:
        """The resolved configuration that the run was started with."""
        from gradus.pipeline.config.pipeline import model_for

        file = self.path / CONFIG_FILE
        data = yaml_text.parse(file.read_text(), str(file)).data
        user_code.look_in(self.base_dir)
        return model_for(data, self.stage_configs, str(file)).model_validate(data)

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths of the configuration are relative to."""
        return Path(self.record["config_file"]).parent

    @property
    def data_dir(self) -> Path:
        """The folder of the task's data; a fork reads the data of its origin."""
        return self.path / self.record.get("data", "data")

    @property
    def origin(self) -> dict[str, Any] | None:
        """What this run was forked from: ``run``, ``stage``, ``checkpoint``, ``changes`` and ``mlflow_run_id``."""
        return self.record.get("fork")

    def stage_index(self, label: str) -> int:
        """The position of a stage, counted from 0. Raises: UserError where the pipeline has no stage of that name."""
        labels = [stage.label for stage in self.config.stages]
        if label not in labels:
            raise UserError(
                f"the run {self.name!r} has no stage `{label}`", where="--from", expected=f"one of {', '.join(labels)}"
            )
        return labels.index(label)

    def stage_dir(self, index: int) -> Path:
        """``stages/01-label``, numbered from 1 in the order of the pipeline."""
        return self.path / "stages" / f"{index + 1:02d}-{self.config.stages[index].label}"

    def attempts(self, index: int) -> list[Path]:
        """The folders of earlier attempts at a stage, oldest first."""
        return sorted(attempts_beside(self.stage_dir(index)), key=attempt_number)


def attempts_beside(stage_dir: Path) -> list[Path]:
    """The folders of earlier attempts at the stage whose folder is given, in no order."""
    beside = stage_dir.parent.glob(f"{stage_dir.name}.attempt-*")
    return [path for path in beside if path.suffix.removeprefix(".attempt-").isdigit()]


def attempt_number(folder: Path) -> int:
    """The number in the name of an attempt's folder.

    >>> attempt_number(Path("stages/02-dapo.attempt-3"))
    3
    """
    return int(folder.suffix.removeprefix(".attempt-"))
