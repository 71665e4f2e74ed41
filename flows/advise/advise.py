"""From a configuration to advice and estimates by one probe. torch is imported when the probe begins."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.flows.advise.rewrite import NEW_STEPS
from gradus.flows.advise.rules import Advice, Situation, decide
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.shown import shown_path
from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.options import identity
from gradus.pipeline.estimates.diagnosis import ordered_groups
from gradus.pipeline.estimates.stage_cost import StageCost, stage_cost
from gradus.pipeline.stage import Stage
from gradus.pipeline.statistics.groups import Estimate
from gradus.pipeline.tasks.background import data_ahead, wait_for_data

if TYPE_CHECKING:
    from gradus.pipeline.config import PipelineConfig
    from gradus.pipeline.config.loading import LoadedConfig
    from gradus.pipeline.estimates.pace import Watch
    from gradus.pipeline.estimates.probe import Probe
    from gradus.pipeline.runs.run_folder import RunFolder
    from gradus.pipeline.tasks.data import Tasks


@dataclass(frozen=True)
class ProbedPolicy:
    """The policy to probe."""

    shown: str
    """Its name in the report."""
    checkpoint: Path | None
    """Its folder; None for the policy with which the configuration starts."""
    untrained: bool
    """Whether its weights are random."""
    data: Path | None = None
    """The data of a run with the same task, so that they need not be made again; None if there is none."""


@dataclass(frozen=True)
class AdviceReport:
    """The result of a probe, and the advice that follows from it."""

    probed: ProbedPolicy
    probe: Probe
    situation: Situation
    advice: list[Advice]
    prompts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """name of a task -> its training prompts."""

    def record(self, costs: list[StageCost]) -> dict[str, Any]:
        """The report with these estimates as plain data."""
        data: dict[str, Any] = dataclasses.asdict(dataclasses.replace(self.probe, groups=[]))
        del data["groups"]
        estimates = [dataclasses.asdict(cost) | {"seconds": cost.seconds} for cost in costs]
        probed = {"what": self.probed.shown, "checkpoint": self.probed.checkpoint and str(self.probed.checkpoint)}
        return {
            "probed": probed | {"untrained": self.probed.untrained, **data.pop("policy")},
            **data,
            "situation": dataclasses.asdict(self.situation),
            "advice": [dataclasses.asdict(each) for each in self.advice],
            "estimates": estimates,
        }


def find_probed_policy(loaded: LoadedConfig, source: str | None, after: str | None, runs: Path) -> ProbedPolicy:
    """The policy to probe: that of the configuration, a checkpoint, a run's latest one, or the result of a run's stage.

    Raises: UserError if there is none.
    """
    from gradus.flows.screen.status import checkpoint_or_run
    from gradus.pipeline.policy.checks import check_policy
    from gradus.pipeline.runs.checkpoint import RECORD_FILE, read_record
    from gradus.pipeline.runs.run_folder import RUN_FILE

    config = loaded.config
    if source is None and after is None:
        new = config.policy.path is None
        return ProbedPolicy("a new policy with random weights" if new else str(config.policy.path), None, new)
    if source is None and not (runs / config.name / RUN_FILE).is_file():
        fix = f"`gradus run` trains one; or name a run with --from that has the stage --after {after}"
        raise UserError(f"there is no run called {config.name!r} yet", where=str(runs.absolute()), fix=fix)
    path = checkpoint_or_run(source or config.name, runs)
    run = _run_around(path)
    if after is not None or (path / RUN_FILE).is_file():
        if run is None or not (path / RUN_FILE).is_file():
            raise UserError(
                "--after names a stage of a run", got=str(path), fix="name a run with --from, or leave it out"
            )
        path = _latest_checkpoint(run) if after is None else _checkpoint_after(run, after)
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


def _checkpoint_after(run: RunFolder, label: str) -> Path:
    from gradus.pipeline.runs.run_paths import typed

    result = run.result(run.stage_index(label))
    if result is None:
        fix = f"{typed(run, 'resume')} continues it"
        raise UserError(f"the stage {label!r} of the run {run.name!r} is not done", where=str(run.path), fix=fix)
    return Path(result["checkpoint"])


def _latest_checkpoint(run: RunFolder) -> Path:
    done = [result for result in map(run.result, range(len(run.config.stages))) if result]
    return Path((done[-1] if done else run.start() or {}).get("checkpoint", run.path / "start"))


def _same_data(run: RunFolder, config: PipelineConfig) -> Path | None:
    """The folder of the run's data if they are of the same task."""
    same = identity(run.config.data_options()) == identity(config.data_options()) and bool(run.data())
    return run.data_dir if same else None


def advise(
    loaded: LoadedConfig,
    stages: Mapping[str, Stage],
    probed: ProbedPolicy,
    prompts: int,
    samples: int,
    seconds: float = math.inf,
    watch: Watch | None = None,
) -> AdviceReport:
    """Probe the policy, for so many seconds, and apply the decision table.

    Only a temporary folder is written, and removed again.
    """
    config = loaded.config
    with tempfile.TemporaryDirectory(prefix="gradus-advise-") as folder:
        tasks, policy = _open(loaded, probed, Path(folder))
        from gradus.pipeline.estimates.probe import probe

        found = probe(
            policy, tasks, config, probed_stage(config, stages), ranking_of(config, stages),
            prompts, samples, seconds, watch, Path(folder) / "rewards.log",
        )  # fmt: skip
    situation = situation_of(config, stages, probed)
    prompts_by_task = {name: len(task.train) for name, task in tasks.items()}
    return AdviceReport(probed, found, situation, decide(found.diagnosis, situation), prompts_by_task)


def _open(loaded: LoadedConfig, probed: ProbedPolicy, folder: Path) -> tuple[Tasks, Any]:
    """The tasks and the policy. The data are made while torch is being imported."""
    config, data = loaded.config, probed.data or folder / "data"
    importing = probed.data is None and "torch" not in sys.modules
    with data_ahead(config.named_tasks, loaded.base_dir, data) if importing else contextlib.nullcontext():
        from gradus.pipeline.execution.prepare import starting_policy
        from gradus.pipeline.policy.devices import settle_process
        from gradus.pipeline.policy.loading import load_policy
        from gradus.pipeline.tasks.several.build import build_tasks

        wait_for_data(data)
    settle_process(config.policy)
    tasks = build_tasks(config.named_tasks, loaded.base_dir, data)
    if probed.checkpoint is None:
        policy, tasks = starting_policy(config, tasks, loaded.base_dir, data if probed.data is None else None)
        return tasks, policy
    return tasks, load_policy(probed.checkpoint, config.policy)


def situation_of(config: PipelineConfig, stages: Mapping[str, Stage], probed: ProbedPolicy) -> Situation:
    """What the rules need to know about the configuration."""
    sampling = [each for each in config.trained if stages[each.stage].needs(each).completions == "policy"]
    rewards = [reward for judged in config.rewards_by_task.values() for reward in judged]
    return Situation(
        untrained=probed.untrained,
        trained=probed.checkpoint is not None and not probed.untrained,
        demonstrations=all(each.demonstrations != "none" for each in config.named_tasks.values()),
        group_size=probed_stage(config, stages).group_size,
        reinforcement_steps=sum(each.steps for each in sampling) or 2 * NEW_STEPS,
        rewarded=tuple(dict.fromkeys(reward.label for reward in rewards if reward.weight != 0)),
    )


def probed_stage(config: PipelineConfig, stages: Mapping[str, Stage]) -> StageConfig:
    """The first stage that samples; the probe uses its batch and its options."""
    sampling = [each for each in config.trained if stages[each.stage].needs(each).completions == "policy"]
    return sampling[0] if sampling else StageConfig(stage="probe", steps=1, task=config.stages[-1].task)


def ranking_of(config: PipelineConfig, stages: Mapping[str, Stage]) -> list[str]:
    """The ranking keys of the first stage that ranks, with the reward first; only the reward if no stage ranks."""
    rankings = [stages[each.stage].needs(each).ranking for each in config.trained]
    keys = next((list(keys) for keys in rankings if keys), [])
    return ["reward", *(key for key in keys if key != "reward")]


def costs(config: PipelineConfig, stages: Mapping[str, Stage], report: AdviceReport) -> list[StageCost]:
    """An estimate for each stage. If the policy is untrained, completions are assumed as long as demonstrations."""
    diagnosis, speed = report.probe.diagnosis, report.probe.speed
    found: list[StageCost] = []
    if any(each.topic == "already solved" and each.verdict == "yes" for each in report.advice):
        return found  # nothing has to be trained
    for each in config.trained:
        needs = stages[each.stage].needs(each)
        from_demonstrations = needs.completions == "demonstrations" or report.probed.untrained
        length = (speed.demonstration_tokens if from_demonstrations else None) or diagnosis.length_mean
        by_group = _ordered_by(report.probe, needs.ranking) if needs.ranking else diagnosis.useful
        sizes = [k for k in by_group if k <= each.group_size]
        unknown = from_demonstrations or not sizes
        # A group of equal rewards has weights, too, where these are not compared within the group alone.
        all_useful = needs.critic is not None or needs.reference_rewards or needs.log_ratio or needs.teacher_logprobs
        useful = None if unknown else 1.0 if all_useful else by_group[max(sizes)].value
        prompts = sum(report.prompts.get(name, 0) for name in config.shares(each))
        found.append(stage_cost(each, needs, speed, length, useful, prompts))
    return found


def _ordered_by(probe: Probe, ranking: Sequence[str]) -> dict[int, Estimate]:
    """Group size -> share of groups that these keys order, also for other keys than those of the probe."""
    if tuple(ranking) == probe.diagnosis.ranking:
        return probe.diagnosis.ordered
    return ordered_groups(probe.groups, ranking)
