"""The folder of a comparison, ``runs/NAME-compare``, and the runs in it.

config.yaml        the resolved configuration
base-seed-0/       a run: the data, the new policy and the stages that all arms share
gfpo-seed-0/       a run: a fork of the base of its seed; ``gradus status --runs`` with this folder lists all runs
tune-gfpo-lr-0.0003/  a run whose validation accuracy helped to choose an option
report.html, report.md, report.json, figures/  the report
journal.jsonl      what is sent to the comparison's own run in MLflow
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.flows.compare.plan.arms import BASE, Arm
from gradus.flows.compare.plan.comparison import ComparisonPlan
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.addresses import portable_uri, resolve_uri
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_text
from gradus.pipeline.common.shown import shown_path
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.runs import fork
from gradus.pipeline.runs.run_folder import CONFIG_FILE, RUN_FILE, RunFolder
from gradus.pipeline.tracking.position import read_run_ids


@dataclass(frozen=True)
class ComparisonFolder:
    """A comparison's folder, in which its runs are made and opened."""

    path: Path
    plan: ComparisonPlan
    threads: int
    """CPU threads of each process."""

    @property
    def name(self) -> str:
        return self.path.name

    def tracking(self, runs_dir: Path) -> dict[str, Any]:
        """Tracking options for a run in ``runs_dir``: an experiment with the comparison's name, in the store of the
        folder that the comparison lies in."""
        own = self.plan.config.tracking
        uri = portable_uri(resolve_uri(own.uri, self.path.parent), runs_dir)
        return own.model_dump(mode="json") | {"uri": uri, "experiment": self.name}

    def write_config(self) -> None:
        """Write the configuration that every run of the comparison is made from, and that its own run is tracked by."""
        whole = self.adapted(self.plan.config, self.path.parent)
        write_text(self.path / CONFIG_FILE, yaml_text.dump(whole.model_dump(mode="json")))

    def adapted(self, config: PipelineConfig, runs_dir: Path | None = None) -> PipelineConfig:
        """The configuration with the comparison's number of threads and its tracking options, for a run in it, or in
        ``runs_dir``."""
        policy = config.policy.model_copy(update={"threads": self.threads})
        tracking = type(config.tracking).model_validate(self.tracking(runs_dir or self.path))
        return config.model_copy(update={"policy": policy, "tracking": tracking})

    def open(self, name: str) -> RunFolder:
        """Open an existing run. Raises: UserError."""
        return RunFolder(self.path / name, [stage.config for stage in self.plan.stages.values()])

    def base(self, seed: int, name: str) -> RunFolder:
        """The run of the shared stages of a seed, made if necessary. Raises: UserError."""
        config = self.adapted(self.plan.base(seed))
        self.check(name, config)
        configs = [stage.config for stage in self.plan.stages.values()]
        run = RunFolder.create(self.path, config, name, self.plan.path, configs)
        run.tag(self._tags(BASE, seed))
        return run

    def arm(self, arm: Arm, seed: int, base: str, name: str) -> RunFolder:
        """An arm's run: a fork of the base run before the first stage of the arm, made if necessary.

        Raises: UserError.
        """
        config = self.adapted(self.plan.arm(arm, seed))
        if self.check(name, config):
            run = self.open(name)
            if run.holder() is None:
                run.adopt(config)
        else:
            origin = self.open(base)
            index = len(origin.config.stages)
            run = fork.fork(origin, index, config, self.path / name)
        run.tag(self._tags(arm.label, seed))
        return run

    def check(self, name: str, config: PipelineConfig) -> bool:
        """Whether the run exists. Raises: UserError if it was begun with another configuration."""
        if not (self.path / name / RUN_FILE).is_file():
            return False
        changed = differences(identity(self.open(name).config), identity(config))
        if changed:
            raise UserError(
                f"the comparison {self.name!r} has a run {name!r} that was begun with other options",
                where=shown_path(self.path / name),
                got="\n            ".join(changed),
                expected="the options that it was begun with",
                fix="give the same options as before; or compare under another --name; or remove that folder "
                "to train the run again",
            )
        return True

    def _tags(self, label: str, seed: int) -> dict[str, str]:
        """The tags by which MLflow groups the runs."""
        tags = {"gradus.comparison": self.name, "gradus.arm": label, "gradus.seed": str(seed)}
        own = read_run_ids(self.path).get("")
        return tags | ({"mlflow.parentRunId": own} if own else {})


def runs_of_comparison(folder: Path) -> list[Path]:
    """The folders of a comparison's runs, without those that chose an option; empty where ``folder`` is none."""
    found = sorted(file.parent for file in folder.glob(f"[!.]*/{RUN_FILE}"))
    return [run for run in found if not run.name.startswith("tune-")]


def arm_run(label: str, seed: int) -> str:
    """The folder of an arm's run.

    >>> arm_run("gfpo", 0)
    'gfpo-seed-0'
    """
    return f"{label}-seed-{seed}"
