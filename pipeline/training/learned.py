"""All that a stage's training changes, as one object: weights, optimizer, critic and reference policy."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import torch
from torch import Tensor

from gradus.pipeline.policy.devices import autocasts
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.policy import copy_parameters, parameters
from gradus.pipeline.runs.checkpoint import RESUME, read_record
from gradus.pipeline.tasks.prompt_order import Schedule
from gradus.pipeline.training.learner.learner import Learner, Weigh
from gradus.pipeline.training.learner.state_files import read_state
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.training.signals import SignalProvider
from gradus.pipeline.types import Rollouts, State


class Learned:
    """The policy that trains, its learner, and the signals whose state follows from training.

    It can be written to a checkpoint, restored from one, and rolled back to one in the middle of a stage.
    """

    def __init__(self, setup: Setup, schedule: Schedule):
        self.setup, self.policy, self.schedule = setup, setup.policy, schedule
        adapters = parameters(self.policy) if self.policy.adapters is not None else {}
        self._fresh_adapters = {name: value.detach().clone() for name, value in adapters.items()}
        self.signals, self.learner = self._new_parts()

    def begin(self, step: int) -> None:
        """Prepare for a step: seed the global generator, so that whatever draws from it repeats after a resume, and
        refresh the reference policy where it is due."""
        torch.manual_seed(self.setup.pipeline.seed + step)
        self.signals.begin(step)

    def prepared(self, rollouts: Rollouts, step: int) -> Rollouts:
        """The batch with the log-probabilities that the stage asks for, and with which of its tokens take part."""
        return self.signals.prepared(self.learner.prepared(rollouts, step), step)

    def weigher(self, rollouts: Rollouts, step: int) -> Weigh:
        """The weights of groups at an update: the stage's pure function, and 0 where no reward could be computed.

        A function, because the weights of some stages depend on the policy, which changes between the updates.
        """
        signals = self.signals.of(rollouts, step, self.setup.stage.observe)
        assert rollouts.valid_PK is not None
        valid_PK, stage, config = rollouts.valid_PK, self.setup.stage, self.setup.config

        def weigh(update: int, groups: list[int]) -> Tensor:
            weights, valid = stage.weigh(signals(update, groups), config), valid_PK[groups]
            return weights.where(valid if weights.dim() == 2 else valid[..., None], 0)

        return weigh

    def update(self, rollouts: Rollouts, step: int, weigh: Weigh) -> tuple[dict[str, float], Tensor]:
        """Train on a batch; returns metrics and the weights that each group had first. Raises: StageFailed."""
        began = time.perf_counter()
        metrics, weights = self.learner.update(rollouts, step, weigh)
        return metrics | {"time/update": time.perf_counter() - began}, weights

    def state(self) -> State:
        """What a resume needs besides the weights, or with the adapters that train in their place."""
        state: State = {"learner": self.learner.state(), "signals": self.signals.state()}
        return state | ({"adapters": parameters(self.policy)} if self.policy.adapters is not None else {})

    def restore(self, checkpoint: Path) -> State:
        """Take over the weights and the state of a checkpoint of this stage; returns all of its state."""
        assert read_record(checkpoint).parent == self.setup.parent, "a stage resumes from its own checkpoints"
        state = self.restore_weights(checkpoint)
        self.learner.restore(state["learner"])
        self.signals.restore(state["signals"])
        return state

    def restore_weights(self, checkpoint: Path) -> State:
        """Take over the weights alone, which are the adapters where the policy has some; returns all of the state."""
        state = read_state(checkpoint / RESUME)
        adapted = self.policy.adapters is not None
        copy_parameters(state["adapters"] if adapted else self._stored(checkpoint), self.policy)
        return state

    def carry_over(self, parent: State) -> None:
        """Take over from the parent stage's state what the configuration asks to carry."""
        if "optimizer" in self.setup.config.carry:
            self.learner.take_moments(parent["learner"])
        if "critic" in self.setup.config.carry:
            self.signals.take_critic(parent["signals"])

    def roll_back(self, checkpoint: Path, rate_factor: float) -> None:
        """Make everything as it was at this checkpoint, as if the stage had been resumed from it, with another factor
        on the learning rate."""
        copy_parameters(self._fresh_adapters or self._stored(self.setup.parent_folder), self.policy)
        self.signals, self.learner = self._new_parts()
        self.restore(checkpoint)
        self.learner.rate_factor = rate_factor

    def _stored(self, checkpoint: Path) -> dict[str, Tensor]:
        """The weights of a checkpoint, on the CPU: beside what trains, a device may have no room for them."""
        on_cpu = self.setup.pipeline.policy.model_copy(update={"device": "cpu"})
        return parameters(load_policy(checkpoint, on_cpu))

    def _new_parts(self) -> tuple[SignalProvider, Learner]:
        """Signals and learner around the policy of the stage's start, with no history."""
        setup = self.setup
        reference = functools.partial(setup.sampled, self.schedule, salt=":reference", rewards_only=True)
        given = (setup.needs, setup.config, self.policy, setup.sampling, reference, setup.ranks)
        signals = SignalProvider(*given, remembered=setup.memory.means, others=setup.others)
        autocast = autocasts(self.policy, setup.pipeline.policy)
        temperature = setup.sampling.temperature
        return signals, Learner(self.policy, setup.config, temperature, autocast, setup.needs, setup.ranks)
