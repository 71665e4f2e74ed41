"""THE loop: sample a group, score it, weigh each completion, push its log-probability; no algorithm has a name here."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gradus.pipeline.common import interruption
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.policy.devices import autocasts
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.policy import Policy, copy_parameters, frozen_copy, parameters
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.sampler import BUILT_IN, Sampler
from gradus.pipeline.runs.checkpoint import CHECKPOINTS, RESUME, damaged_files, prune, read_record, save_checkpoint
from gradus.pipeline.stage import Stage
from gradus.pipeline.tasks.prompt_order import HistoryResampling, PromptStream, Schedule
from gradus.pipeline.tasks.task import TaskData, all_prompts
from gradus.pipeline.tracking.journal import Journal
from gradus.pipeline.training.batches import DemonstrationBatches, SampledBatches, Batches, sampling_of
from gradus.pipeline.training.early_stopping import EarlyStopping, RuleEvent
from gradus.pipeline.training.evaluation import evaluate
from gradus.pipeline.training.learner.learner import Learner, Weigh
from gradus.pipeline.training.learner.losses import kl_estimate
from gradus.pipeline.training.learner.shards import SHARDS, write_shards
from gradus.pipeline.training.learner.state_files import read_state, spread_tensors, write_state
from gradus.pipeline.training.metrics import advantage_metrics, rollout_metrics
from gradus.pipeline.training.prefetch import PrefetchedBatches
from gradus.pipeline.training.progress import Progress, StepLog, Timer
from gradus.pipeline.training.signals import SignalProvider
from gradus.pipeline.types import Rollouts, State


@dataclass
class Trainer:
    """Everything one stage trains with. ``train`` leaves the policy as it should be handed over."""

    policy: Policy
    """The parent's policy."""
    stage: Stage
    config: StageConfig
    pipeline: PipelineConfig
    task: TaskData
    suite: RewardSuite
    journal: Journal
    observer: Observer
    folder: Path
    """The stage's folder; checkpoints lie in it."""
    parent_folder: Path
    """The checkpoint that the policy came from."""
    parent: str
    """Its content hash."""
    fingerprint: str
    """Hash of the stage's identity, written into each checkpoint."""
    carried: State | None = None
    """The parent's state, of which a stage that begins takes over what ``config.carry`` names."""
    resume_from: Path | None = None
    """A whole checkpoint of this very stage to go on from."""
    ranks: Ranks = ALONE
    """Who else trains the stage."""
    sampler: Sampler = BUILT_IN
    """Who completes prompts."""
    progress: Progress = field(default_factory=Progress, init=False)

    def __post_init__(self) -> None:
        self.needs = self.stage.needs(self.config)
        sampling = sampling_of(self.pipeline, self.config)
        stream = PromptStream(self.task.train, self.pipeline.seed, self.config.label)
        self.schedule = HistoryResampling(stream) if self.needs.resample else Schedule(stream)
        self.source: Batches
        if self.needs.completions == "demonstrations":
            self.source = DemonstrationBatches(self.policy, self.schedule, self.config)
        else:
            groups = self._groups(frozen_copy(self.policy) if self.config.async_ else self.policy)
            groups.want_states = self.needs.critic is not None and self.needs.critic.kind == "prompt"
            groups.refills = self.needs.refills
            self.source = PrefetchedBatches(groups, self.policy) if self.config.async_ else groups
        self.temperature = sampling.temperature
        self.signals, self.learner = self._parts()
        self.switches = EarlyStopping(self.config)
        measures_kl = self.config.kl_every > 0 and self.needs.completions == "policy"
        self.start = frozen_copy(self.policy) if measures_kl else None
        self.timer, self.began = Timer(self.pipeline.checkpoints), time.perf_counter()
        adapters = parameters(self.policy) if self.policy.adapters is not None else {}
        self.fresh_adapters = {name: value.detach().clone() for name, value in adapters.items()}
        self.log = StepLog(self.journal, self.observer, self.config, self.pipeline)
        if self.resume_from is not None:
            self._resume(self.resume_from)
        elif self.carried is not None:
            if "optimizer" in self.config.carry:
                self.learner.take_moments(self.carried["learner"])
            if "critic" in self.config.carry:
                self.signals.take_critic(self.carried["signals"])

    def _groups(self, policy: Policy, salt: str = "", rewards_only: bool = False) -> SampledBatches:
        options = {"ranks": self.ranks, "sampler": self.sampler, "rewards_only": rewards_only}
        return SampledBatches(policy, self.schedule, self.suite, self.pipeline, self.config, salt, **options)

    def _parts(self) -> tuple[SignalProvider, Learner]:
        """What learns, around the policy of the stage's start; nothing of it has begun."""
        autocast = autocasts(self.policy, self.pipeline.policy)
        sampling = sampling_of(self.pipeline, self.config)
        reference = functools.partial(self._groups, salt=":reference", rewards_only=True)
        signals = SignalProvider(self.needs, self.config, self.policy, sampling, reference, self.ranks)
        return signals, Learner(self.policy, self.config, self.temperature, autocast, self.needs, self.ranks)

    def train(self) -> Path:
        """Run every step that is left, or until a rule ends the stage; returns the checkpoint to hand over.

        Raises: Interrupted after a signal, once the step in hand is done and kept; StageFailed where the guard says so.
        """
        with contextlib.closing(self.source):
            self._train()
        last, end = self._save(), self.switches.end
        if end is not None and end.action == "stop":
            best = self.switches.best
            raise StageFailed(self.switches.stopped(end, self._checkpoint(best.step if best is not None else 0)))
        handed_over = self.switches.handed_over(self.progress.step)
        if handed_over == self.progress.step:
            return last
        best = self._whole(handed_over, for_resume=self.policy.adapters is not None)
        self._take_weights(best)
        return best

    def _train(self) -> None:
        """The loop."""
        if self.switches.keeps_best and self.switches.best is None:
            self.switches.begin([] if self.switches.by_reward else self._correct())
            self._save()
        while self.progress.step < self.config.steps and self.switches.end is None:
            with interruption.deferred():
                metrics = self._train_step()
                self._switch(metrics)
                leaving = self.ranks.any(interruption.requested())
                if leaving or self.ranks.any(self.timer.due(self.progress.step)):
                    self._save()
            if leaving:
                interruption.leave()
            if self.ranks.size == 1:
                interruption.leave_if_requested()

    def _train_step(self) -> dict[str, float]:
        """One batch: from prompts to an update and its curves."""
        began = time.perf_counter()
        step = self.progress.step + 1
        torch.manual_seed(self.pipeline.seed + step)  # whatever draws from the global generator repeats after a resume
        self.signals.begin(step)
        rollouts = self.source.batch(step)
        weigh = self._weigher(rollouts, step)
        sampled = time.perf_counter()
        try:
            metrics, step_weights = self.learner.update(rollouts, step, weigh)
        except StageFailed as error:
            raise StageFailed(f"{error} They are kept in {self._save()}") from None
        metrics["time/update"] = time.perf_counter() - sampled
        self.progress.step = step
        return self._log(step, rollouts, step_weights, metrics, began)

    def _weigher(self, rollouts: Rollouts, step: int) -> Weigh:
        """The weights of groups at an update: the stage's pure function, and 0 for completions nobody could score."""
        signals = self.signals.of(rollouts, step)
        assert rollouts.valid_PK is not None
        valid_PK = rollouts.valid_PK

        def weigh(update: int, groups: list[int]) -> Tensor:
            weights, valid = self.stage.weigh(signals(update, groups), self.config), valid_PK[groups]
            return weights * (valid if weights.dim() == 2 else valid[..., None])

        return weigh

    def _switch(self, metrics: dict[str, float]) -> None:
        """Does the step, or an evaluation after it, say that the stage should end, or go back?"""
        step, every = self.progress.step, self.config.eval_every
        spent = {"rollouts": self.progress.rollouts, "tokens": self.progress.tokens, "seconds": self.seconds}
        last = step == self.config.steps
        event = self.switches.after_step(step, metrics, self.ranks.same(spent), last)
        last = last or event is not None
        if every and (step % every == 0 or last):
            event = self.switches.after_evaluation(step, self._correct(), last) or event
        if event is not None:
            self._act(event)
        if step in self.switches.kept or event is not None:
            self._save()

    def _act(self, event: RuleEvent) -> None:
        """Tell of an event, and go back where it says so and the stage goes on."""
        self.switches.happened(event)
        self.journal.metrics(event.step, {f"switch/{event.rule}": 1.0})
        self.journal.tags({"gradus.events": "\n".join(f"step {e.step}: {e.reason}" for e in self.switches.events)})
        self.observer.note(f"{self.config.label}: step {event.step}, {event.action}: {event.reason}")
        if event.action == "slower":
            assert self.switches.best is not None
            self._go_back(self._whole(self.switches.best.step))

    def _correct(self) -> list[float]:
        """1 for each validation prompt, none of which is among those reported, that is answered right, 0 for others."""
        prompts = all_prompts(self.task, "validation")
        evaluation = evaluate(self.policy, prompts, self.suite, self.pipeline, self.ranks, self.sampler)
        self.journal.metrics(self.progress.step, {"validation/accuracy": evaluation.accuracy})
        return evaluation.correct

    def _checkpoint(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / f"step-{step:06d}"

    def _save(self) -> Path:
        """Checkpoint everything as it is now, once a step, and remove what the keep rule does not hold."""
        folder, step = self._checkpoint(self.progress.step), self.progress.step
        if self.resume_from == folder:
            return folder
        began, state, aside = time.perf_counter(), self._state(), folder.with_name(f".{folder.name}.{SHARDS}")
        spread = write_shards(aside, spread_tensors(state), self.ranks)

        def write(resume: Path) -> None:
            self.journal.sync()  # the curves up to here are as safe as the weights
            write_state(resume, state)
            if spread:
                aside.rename(resume / SHARDS)

        if self.ranks.leads:
            save_checkpoint(self.policy, folder, self.config.label, step, self.parent, self.fingerprint, write)
            prune(self.folder, step, self.pipeline.checkpoints.keep, self.switches.kept)
        self.ranks.meet()
        self.resume_from = folder
        self.timer.wrote(time.perf_counter() - began)
        self.journal.metrics(step, {"time/checkpoint": self.timer.cost})
        return folder

    def _state(self) -> State:
        """All that a resume needs besides the weights, or with the adapters that train in their place."""
        progress = asdict(self.progress) | {"seconds": self.seconds}
        state = {"progress": progress, "learner": self.learner.state(), "signals": self.signals.state()}
        state |= {"source": self.source.state(), "switches": self.switches.state()}
        return state | ({"adapters": parameters(self.policy)} if self.policy.adapters is not None else {})

    def _resume(self, checkpoint: Path) -> None:
        """Take over the weights and the state of a checkpoint of this stage."""
        state = self._take(checkpoint)
        self.progress = Progress(**state["progress"])
        self.switches.restore(state["switches"])
        self.learner.rate_factor = self.switches.rate_factor
        self.source.restore(state["source"], self.progress.step + 1)

    def _take(self, checkpoint: Path) -> State:
        """Take over what a checkpoint of this stage has learned; returns its state."""
        assert read_record(checkpoint).parent == self.parent, "a stage goes on from its own checkpoints"
        state = self._take_weights(checkpoint)
        self.learner.restore(state["learner"])
        self.signals.restore(state["signals"])
        return state

    def _take_weights(self, checkpoint: Path) -> State:
        """Take over the weights of a checkpoint of this stage, which are its adapters where it has some; returns its
        state."""
        state = read_state(checkpoint / RESUME)
        adapted = self.policy.adapters is not None
        source = state["adapters"] if adapted else parameters(load_policy(checkpoint, self.pipeline.policy))
        copy_parameters(source, self.policy)
        return state

    def _go_back(self, checkpoint: Path) -> None:
        """What has been learned is again as it was at this checkpoint, just as if the stage had been resumed from it.

        Steps, curves and prompts go on: nothing is counted, drawn or asked a second time.
        """
        start = self.fresh_adapters or parameters(load_policy(self.parent_folder, self.pipeline.policy))
        copy_parameters(start, self.policy)
        self.signals, self.learner = self._parts()
        self._take(checkpoint)
        self.learner.rate_factor = self.switches.rate_factor
        self.source.drop(self.progress.step + 1)

    def _whole(self, step: int, for_resume: bool = True) -> Path:
        """The checkpoint of an earlier step. Raises: StageFailed where it is damaged."""
        folder = self._checkpoint(step)
        if damaged := damaged_files(folder, for_resume=for_resume):
            again = f"`gradus resume RUN --from {self.config.label}` trains the stage anew"
            raise StageFailed(f"the best checkpoint, {folder}, is damaged ({', '.join(damaged)}); {again}")
        return folder

    @property
    def seconds(self) -> float:
        """Training time so far, that before a resume included."""
        return self.progress.seconds + time.perf_counter() - self.began

    def _log(
        self, step: int, rollouts: Rollouts, weights: Tensor, metrics: dict[str, float], began: float
    ) -> dict[str, float]:
        """What the step came to, as curves and progress."""
        costs = (self.source.cost, self.signals.cost)
        self.progress.rollouts += sum(cost.rollouts for cost in costs)
        step_tokens = sum(cost.tokens for cost in costs)
        self.progress.tokens += step_tokens
        metrics |= rollout_metrics(rollouts) | advantage_metrics(weights) | self.source.metrics | self.signals.metrics
        if self.start is not None and step % self.config.kl_every == 0:
            budget = self.config.token_budget
            reference = batch_logprobs(self.start, rollouts, self.temperature, budget, self.ranks)
            metrics["policy/kl_to_start"] = kl_estimate(rollouts.rollout_logprobs_PKT, reference, rollouts.mask_PKT)
        metrics |= {"progress/rollouts": self.progress.rollouts, "progress/tokens": self.progress.tokens}
        metrics["time/stage"], metrics["time/step"] = self.seconds, time.perf_counter() - began
        metrics["throughput/tokens_per_second"] = step_tokens / metrics["time/step"]
        return self.log.step(step, metrics, weights, self.source.failures)
