"""The first layer of a run folder: what was asked for, and where each part of the run lies."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gradus.pipeline.common import user_code, yaml_text
from gradus.pipeline.common.errors import UserError, closest
from gradus.pipeline.common.records import damaged, digest_of, read_sealed
from gradus.pipeline.common.shown import gradus_command, runs_option
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.graph.picture import entries

CONFIG_FILE = "config.yaml"
"""The resolved configuration."""
RUN_FILE = "run.json"
"""The run's record: its name, when it was created, and what it was forked from. A folder with this file is a run."""

COPY = "put back a copy of it"
WITHOUT = COPY + "; without one, remove it, and `gradus"
AS_BEGUN = " run CONFIG --name {name}{runs}`, with the file, --set and environment it was begun with, writes it again"
REMEDIES = {
    CONFIG_FILE: COPY + " (MLflow has one, among the artifacts of the run); without one, `gradus" + AS_BEGUN,
    RUN_FILE: WITHOUT + AS_BEGUN + " and keeps what is done; a fork has to be made again",
    "start.json": WITHOUT + " resume {name}{runs}` measures the policy before any stage again",
    "summary.json": "`gradus resume {name}{runs}` makes it again",
    "result.json": WITHOUT + " resume {name}{runs}` makes it again, from the newest checkpoint of the stage",
    "stage.json": WITHOUT
    + " resume {name}{runs}` goes on: a stage that is done does not need it, and another one starts "
    "again, with what is there kept as an attempt",
    "profile.json": "nothing: a stage with a checkpoint does not need it, and another one profiles its prompts anew",
    "heldout.json": COPY + "; only comparisons read it",
    "data.json": COPY + "; the data cannot be made again within a run: without a copy, start a new run",
}
"""Record -> what to do where it is damaged."""


def remedy(record: str, run: Path) -> str:
    """What to do where this record of a run is damaged."""
    return REMEDIES[record].format(name=run.name, runs=runs_option(run.parent))


def typed(run: RunPaths, verb: str, *words: str) -> str:
    """A command of gradus on a run, in quotes, for a message."""
    return f"`{gradus_command(verb, run.name, *words, runs=run.path.parent)}`"


class RunPaths:
    """The configuration, the record and the paths of a run that exists."""

    def __init__(self, path: Path | str, stage_configs: list[type[StageConfig]]):
        """Raises: UserError where ``path`` is no run."""
        self.path = Path(path).absolute()
        self.stage_configs = stage_configs
        if not os.path.isfile(self.path / RUN_FILE):  # a name may be too long for a file, which Path would raise
            known = sorted(p.parent.name for p in self.path.parent.glob(f"[!.]*/{RUN_FILE}"))
            raise UserError(
                f"there is no run called {self.path.name!r}",
                where=str(self.path.parent),
                expected=f"one of {', '.join(known)}" if known else "a folder with runs",
                fix=" ".join(
                    [closest(self.path.name, known), "`gradus status` lists the runs; `--runs` names another folder"]
                ).strip(),
            )

    @property
    def name(self) -> str:
        """The name of the run, which is the name of its folder."""
        return self.path.name

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of run.json. Raises: UserError where it is damaged."""
        return self.read(self.path / RUN_FILE) or {}

    @cached_property
    def config(self) -> PipelineConfig:
        """The resolved configuration that the run was started with. Raises: UserError where it is damaged."""
        from gradus.pipeline.config.pipeline import model_for
        from gradus.pipeline.config.stage import OF_A_RUN

        text, file = self.config_text(), self.path / CONFIG_FILE
        user_code.look_in(self.base_dir)
        try:
            data = yaml_text.parse(text, str(file)).data
            return model_for(data, self.stage_configs, str(file)).model_validate(data, context=OF_A_RUN)
        except ValidationError as error:  # of a file without a hash, or of an earlier version
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
            raise _no_config(file, wrong) from None

    @cached_property
    def outline(self) -> list[dict[str, Any]]:
        """``name``, ``variant`` and ``steps`` of every stage. They stand in run.json, because reading YAML is slow."""
        return self.record.get("stages") or outline_of(self.config)

    def config_text(self) -> str:
        """The text of config.yaml, which people read, so that run.json has its hash. Raises: UserError."""
        file = self.path / CONFIG_FILE
        try:
            text = file.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise _no_config(file, getattr(error, "strerror", None) or str(error)) from None
        if (known := self.record.get("config")) and digest_of(text) not in known:
            raise _no_config(file, f"its content is another one than its hash in {RUN_FILE} says")
        return text

    def read(self, path: Path) -> dict[str, Any] | None:
        """A record of this run; None where there is none. Raises: UserError where it is damaged."""
        return read_sealed(path, remedy(path.name, self.path))

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths of the configuration are relative to."""
        return Path(self.record["config_file"]).parent

    @property
    def data_dir(self) -> Path:
        """The folder of the task's data; a fork reads the data of its origin."""
        return self.path / self.record.get("data", "data")

    def stage_index(self, label: str, option: str = "--from") -> int:
        """The position of a stage, counted from 0. Raises: UserError where the pipeline has no stage of that name."""
        labels = [stage["name"] for stage in self.outline]
        if label not in labels:
            raise UserError(
                f"the run {self.name!r} has no stage `{label}`",
                where=option,
                expected=f"one of {', '.join(labels)}",
                fix=closest(label, labels),
            )
        return labels.index(label)

    def stage_dir(self, index: int) -> Path:
        """``stages/01-label``, numbered from 1 in the order of the pipeline."""
        return self.path / "stages" / f"{index + 1:02d}-{self.outline[index]['name']}"

    def attempts(self, index: int) -> list[Path]:
        """The folders of earlier attempts at a stage, oldest first."""
        return sorted(attempts_beside(self.stage_dir(index)), key=attempt_number)


def outline_of(config: PipelineConfig) -> list[dict[str, Any]]:
    """What run.json holds of the stages; it is part of what a run is, and never changes. Where they are no chain, each
    also has what it starts from and what else it is made from, by their names."""
    named = {label: {"from": names} for label, names in entries(config.stages)}
    return [
        {"name": stage.label, "variant": stage.variant, "steps": stage.steps, **named.get(stage.label, {})}
        for stage in config.stages
    ]


def _no_config(file: Path, got: str) -> UserError:
    return damaged(file, got, remedy(CONFIG_FILE, file.parent))


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
