"""One probe, from a configuration to advice and estimates. Imports torch when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.flows.advise.rewrite import NEW_STEPS
from gradus.flows.advise.rules import Advice, Situation, decide
from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import read_json
from gradus.pipeline.config import StageConfig
from gradus.pipeline.estimates.diagnosis import ordered_groups
from gradus.pipeline.estimates.stage_cost import StageCost, stage_cost
from gradus.pipeline.stage import Stage
from gradus.pipeline.statistics.groups import Estimate
from gradus.pipeline.tasks.background import data_ahead, wait_for_data

if TYPE_CHECKING:
    from gradus.pipeline.config import PipelineConfig
    from gradus.pipeline.config.loading import LoadedConfig
    from gradus.pipeline.estimates.probe import Probe
    from gradus.pipeline.runs.run_folder import RunFolder
    from gradus.pipeline.tasks.task import TaskData


@dataclass(frozen=True)
class ProbedPolicy:
    """Which policy is probed."""

    shown: str
    """What it is called on the screen."""
    checkpoint: Path | None
    """Its folder; None for the policy that the configuration starts from."""
    untrained: bool
    """Whether its weights are random."""
    data: Path | None = None
    """A run's data of the same task, which need not be made again."""


@dataclass(frozen=True)
class AdviceReport:
    """A probe and what follows from it."""

    probed: ProbedPolicy
    probe: Probe
    situation: Situation
    advice: list[Advice]

    def record(self, costs: list[StageCost]) -> dict[str, Any]:
        """As plain data."""
        found: dict[str, Any] = dataclasses.asdict(dataclasses.replace(self.probe, groups=[]))
        del found["groups"]
        estimates = [dataclasses.asdict(cost) | {"seconds": cost.seconds} for cost in costs]
        probed = {"what": self.probed.shown, "checkpoint": self.probed.checkpoint and str(self.probed.checkpoint)}
        return {
            "probed": probed | {"untrained": self.probed.untrained, **found.pop("policy")},
            **found,
            "situation": dataclasses.asdict(self.situation),
            "advice": [dataclasses.asdict(each) for each in self.advice],
            "estimates": estimates,
        }


def find_probed_policy(loaded: LoadedConfig, source: str | None, after: str | None, runs: Path) -> ProbedPolicy:
    """The policy to probe: the configuration's, a checkpoint, a run's latest, or what a run's stage handed over.

    Raises: UserError where there is none.
    """
    from gradus.flows.screen.status import checkpoint_or_run
    from gradus.flows.screen.text import shown_path
    from gradus.pipeline.policy.checks import check_policy
    from gradus.pipeline.runs.checkpoint import RECORD_FILE, read_record
    from gradus.pipeline.runs.run_folder import RUN_FILE

    config = loaded.config
    if source is None and after is None:
        new = config.policy.path is None
        return ProbedPolicy("a new policy with random weights" if new else str(config.policy.path), None, new)
    if source is None and not (runs / config.name / RUN_FILE).is_file():
        fix = f"`gradus run` trains one; or name a run or a checkpoint with --from, of which --after {after} is a stage"
        raise UserError(f"there is no run called {config.name!r} yet", where=str(runs.absolute()), fix=fix)
    path = checkpoint_or_run(source or config.name, runs)
    run = _run_around(path)
    if after is not None or (path / RUN_FILE).is_file():
        if run is None or not (path / RUN_FILE).is_file():
            raise UserError(
                "--after names a stage of a run", got=str(path), fix="name a run with --from, or leave it out"
            )
        path = _latest(run) if after is None else _after(run, after)
    if not (path / RECORD_FILE).is_file():
        check_policy(config.policy.model_copy(update={"path": str(path), "architecture": None}))
        return ProbedPolicy(shown_path(path), path, False)
    untrained = read_record(path).stage == "start" and config.policy.path is None
    return ProbedPolicy(shown_path(path), path, untrained, _same_data(run, config) if run else None)


def _run_around(path: Path) -> RunFolder | None:
    from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder
    from gradus.stages import discover

    configs = [stage.config for stage in discover().values()]
    folders = (folder for folder in (path, *path.parents) if (folder / RUN_FILE).is_file())
    return next((RunFolder(folder, configs) for folder in folders), None)


def _after(run: RunFolder, label: str) -> Path:
    result = run.result(run.stage_index(label))
    if result is None:
        fix = f"`gradus resume {run.name}` goes on with it"
        raise UserError(f"the stage {label!r} of the run {run.name!r} is not done", where=str(run.path), fix=fix)
    return Path(result["checkpoint"])


def _latest(run: RunFolder) -> Path:
    done = [result for result in map(run.result, range(len(run.config.stages))) if result]
    return Path((done[-1] if done else run.start() or {}).get("checkpoint", run.path / "start"))


def _same_data(run: RunFolder, config: PipelineConfig) -> Path | None:
    """The run's data where they are of this very task."""
    record = read_json(run.data_dir / "data.json")
    same = record is not None and record["config"] == config.task.model_dump(mode="json")
    return run.data_dir if same else None


def probed_stage(config: PipelineConfig, stages: Mapping[str, Stage]) -> StageConfig:
    """The first stage that samples: its batch and its options are what a probe imitates."""
    sampling = [each for each in config.stages if stages[each.stage].needs(each).completions == "policy"]
    return sampling[0] if sampling else StageConfig(stage="probe", steps=1)


def ranking_of(config: PipelineConfig, stages: Mapping[str, Stage]) -> list[str]:
    """The keys of the first ranked stage, the reward first; the reward alone where there is none."""
    rankings = [stages[each.stage].needs(each).ranking for each in config.stages]
    keys = next((list(keys) for keys in rankings if keys), [])
    return ["reward", *(key for key in keys if key != "reward")]


def situation_of(config: PipelineConfig, stages: Mapping[str, Stage], probed: ProbedPolicy) -> Situation:
    """What the rules must know of the configuration."""
    sampling = [each for each in config.stages if stages[each.stage].needs(each).completions == "policy"]
    return Situation(
        untrained=probed.untrained,
        trained=probed.checkpoint is not None and not probed.untrained,
        demonstrations=config.task.demonstrations != "none",
        group_size=probed_stage(config, stages).group_size,
        reinforcement_steps=sum(each.steps for each in sampling) or 2 * NEW_STEPS,
        rewarded=tuple(reward.label for reward in config.rewards if reward.weight != 0),
    )


def advise(
    loaded: LoadedConfig,
    stages: Mapping[str, Stage],
    probed: ProbedPolicy,
    prompts: int,
    samples: int,
    on_group: Callable[[], None],
) -> AdviceReport:
    """Probe the policy and apply the decision table. Nothing but a temporary folder is written, and that is removed."""
    config = loaded.config
    with interruption.handled(), tempfile.TemporaryDirectory(prefix="gradus-advise-") as folder:
        task, policy = _open(loaded, probed, Path(folder))
        from gradus.pipeline.estimates.probe import probe

        found = probe(
            policy, task, config, probed_stage(config, stages), ranking_of(config, stages),
            prompts, samples, on_group, Path(folder) / "rewards.log",
        )  # fmt: skip
    situation = situation_of(config, stages, probed)
    return AdviceReport(probed, found, situation, decide(found.diagnosis, situation))


def _open(loaded: LoadedConfig, probed: ProbedPolicy, folder: Path) -> tuple[TaskData, Any]:
    """The task's data, made while torch is imported, and the policy."""
    config, data = loaded.config, probed.data or folder / "data"
    importing = probed.data is None and "torch" not in sys.modules
    with data_ahead(config.task, loaded.base_dir, data) if importing else contextlib.nullcontext():
        from gradus.pipeline.execution.prepare import starting_policy
        from gradus.pipeline.policy.devices import use_threads
        from gradus.pipeline.policy.loading import load_policy
        from gradus.pipeline.tasks.task import build_task

        wait_for_data(data)
    use_threads(config.policy)
    task = build_task(config.task, loaded.base_dir, data)
    if probed.checkpoint is None:
        return task, starting_policy(config, task, loaded.base_dir)
    return task, load_policy(probed.checkpoint, config.policy)


def costs(config: PipelineConfig, stages: Mapping[str, Stage], report: AdviceReport) -> list[StageCost]:
    """An estimate for each stage. An untrained policy's lengths are no guide: demonstrations' stand for them."""
    diagnosis, speed = report.probe.diagnosis, report.probe.speed
    found: list[StageCost] = []
    if any(each.topic == "already solved" and each.verdict == "yes" for each in report.advice):
        return found  # there is nothing to train
    for each in config.stages:
        needs = stages[each.stage].needs(each)
        shown = speed.demonstration_tokens if needs.completions == "demonstrations" or report.probed.untrained else None
        by_group = _ordered(report.probe, needs.ranking) if needs.ranking else diagnosis.useful
        sizes = [k for k in by_group if k <= each.group_size]
        unknown = report.probed.untrained or needs.completions == "demonstrations" or not sizes
        all_weigh = needs.critic is not None or needs.reference_rewards  # a baseline from beyond the group
        useful = None if unknown else 1.0 if all_weigh else by_group[max(sizes)].value
        found.append(stage_cost(each, needs, speed, shown or diagnosis.length_mean, useful))
    return found


def _ordered(probe: Probe, ranking: Sequence[str]) -> dict[int, Estimate]:
    """Groups that these keys order, which need not be those that were probed for."""
    if tuple(ranking) == probe.diagnosis.ranking:
        return probe.diagnosis.ordered
    return ordered_groups(probe.groups, ranking)
