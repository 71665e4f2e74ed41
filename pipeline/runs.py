"""The run folder: what was asked for, what is done, and who is working on it. Nothing is guessed from file dates."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import __version__, yaml_text
from pipeline.config import PipelineConfig, StageConfig
from pipeline.errors import UserError
from pipeline.files import read_json, write_json, write_text

CONFIG_FILE, RUN_FILE, SUMMARY_FILE, LOCK_FILE = "config.yaml", "run.json", "summary.json", "lock"
UNKNOWN_HOLDER = {"pid": "?", "host": "?", "since": "?"}
RESULT_FILE, FAILURE_FILE = "result.json", "failure.json"
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
        """The folder of a new run, or of an unfinished one with the same configuration, which then continues.

        Raises: UserError where a run of that name has another configuration.
        """
        folder = Path(runs_dir).absolute() / name
        if (folder / RUN_FILE).is_file():
            run = cls(folder, stage_configs)
            changed = differences(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
            if changed:
                raise UserError(
                    f"the run {name!r} exists with another configuration",
                    where=str(folder / CONFIG_FILE),
                    got="\n            ".join(changed),
                    expected="the configuration the run was started with",
                    fix="choose another --name, or undo the change to continue that run",
                )
            return run
        write_text(folder / CONFIG_FILE, yaml_text.dump(config.model_dump(mode="json")))
        record = {
            "name": name,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "gradus": __version__,
            "config_file": str(Path(config_file).absolute()),
            "seed": config.seed,
        }
        write_json(folder / RUN_FILE, record)
        return cls(folder, stage_configs)

    @property
    def name(self) -> str:
        """The run's name is its folder's."""
        return self.path.name

    @cached_property
    def record(self) -> dict[str, Any]:
        """What run.json says."""
        return read_json(self.path / RUN_FILE) or {}

    @cached_property
    def config(self) -> PipelineConfig:
        """The resolved configuration the run was started with."""
        from pipeline.config import pipeline_model

        file = self.path / CONFIG_FILE
        return pipeline_model(self.stage_configs).model_validate(yaml_text.parse(file.read_text(), str(file)).data)

    @property
    def base_dir(self) -> Path:
        """Folder that relative paths of the configuration are relative to."""
        return Path(self.record["config_file"]).parent

    def stage_dir(self, index: int) -> Path:
        """``stages/01-label``, numbered from 1 in the pipeline's order."""
        return self.path / "stages" / f"{index + 1:02d}-{self.config.stages[index].label}"

    def result(self, index: int) -> dict[str, Any] | None:
        """A stage's success record, or None."""
        return read_json(self.stage_dir(index) / RESULT_FILE)

    def failure(self, index: int) -> dict[str, Any] | None:
        """A stage's failure record, or None; a stage that succeeded later has none."""
        return None if self.result(index) else read_json(self.stage_dir(index) / FAILURE_FILE)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run, or None."""
        return read_json(self.path / SUMMARY_FILE)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the lock dies with it.

        Raises: UserError that says who holds it.
        """
        with (self.path / LOCK_FILE).open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self.holder() or {}
                raise UserError(
                    f"another process is working on the run {self.name!r}",
                    where=str(self.path),
                    got="process {pid} on {host}, since {since}".format(**{**UNKNOWN_HOLDER, **holder}),
                    expected="one process at a time",
                    fix="wait for it, stop it, or launch under another --name",
                ) from None
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": " ".join(sys.argv)[:200],
            }
            stream.truncate(0)
            stream.write(json.dumps(holder))
            stream.flush()
            yield

    def holder(self) -> dict[str, Any] | None:
        """Who is working on the run right now, or None; a record that a dead process left behind does not count."""
        try:
            with (self.path / LOCK_FILE).open("r") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    try:
                        return json.loads(stream.read())
                    except json.JSONDecodeError:
                        return {}
        except FileNotFoundError:
            pass
        return None

    def state(self) -> str:
        """``done``, ``running``, ``failed: why`` or ``stopped``."""
        if self.holder() is not None:
            return "running"
        if self.summary():
            return "done"
        failures = [f for f in map(self.failure, range(len(self.config.stages))) if f]
        return f"failed: {failures[-1]['error']}" if failures else "stopped"


def fingerprint(*parts: Any) -> str:
    """Hash of plain values: equal exactly where they are equal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two resolved configurations, one ``key: old -> new`` a line.

    >>> differences({"lr": 0.1, "steps": [1, 2]}, {"lr": 0.2, "steps": [1, 2]})
    ['lr: 0.1 -> 0.2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        labels = [e.get("name") or i if isinstance(e, dict) else i for i, e in enumerate(old)]
        return [line for i, label in enumerate(labels) for line in differences(old[i], new[i], f"{path}.{label}")]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
