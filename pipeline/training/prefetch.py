"""Sampling one step ahead: the next batch is sampled while this one trains, so that two cores or devices are busy.

A thread samples, because PyTorch releases the interpreter lock inside its operations. Measured on 2 cores with a policy
of half a million parameters, one intra-operation thread each: sampling and learning at once took as many CPU seconds as
one after the other, and hardly waited for each other (under 6 %), so a process of its own would gain nothing and cost
its start, a second import of everything and the transfer of weights.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from gradus.pipeline.policy.policy import Policy, copy_parameters, parameters
from gradus.pipeline.training.batches import Batches, SampledBatches
from gradus.pipeline.types import Rollouts, State


class PrefetchedBatches(Batches):
    """Batches sampled by the policy as it was before the update that ran at the same time: one step stale.

    The first batch is sampled by the present policy. A resume samples the unfinished batch again, with the weights that
    it was sampled with.
    """

    def __init__(self, groups: SampledBatches, policy: Policy):
        """``groups`` samples from a copy of ``policy``, which this object alone changes."""
        super().__init__()
        self.groups, self.policy = groups, policy
        self.sampled_at = 0
        """Steps that the policy had trained when the copy was taken."""
        self._pending: Future[Rollouts] | None = None
        self._before: State = {}
        """The state of ``groups`` before the pending batch."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        policy.encode_prompt("")  # a tokenizer may change itself the first time, with one thread only

    def batch(self, step: int) -> Rollouts:
        """The batch of ``step``; starts to sample the next one.

        ``time/sample`` is how long sampling took, ``time/wait`` how long the step waited for it.
        """
        began = time.perf_counter()
        if self._pending is None:
            self._begin(step, steps_done=step - 1)
        assert self._pending is not None
        rollouts = replace(self._pending.result(), staleness=step - 1 - self.sampled_at)
        waited = time.perf_counter() - began
        self.failures = self.groups.failures
        self.metrics = self.groups.metrics | {"time/wait": waited, "sampler/staleness": float(rollouts.staleness)}
        self.cost = self.groups.cost
        self._pending = None
        if step < self.groups.stage.steps:
            self._begin(step + 1, steps_done=step - 1)
        return rollouts

    def state(self) -> State:
        """The weights that the pending batch is sampled with and the state that it began from, if there is one."""
        if self._pending is None:
            return {"groups": self.groups.state()}
        return {"groups": self._before, "sampled_at": self.sampled_at, "weights": parameters(self.groups.policy)}

    def restore(self, state: State, step: int) -> None:
        """Sample the batch of ``step`` again, in the background."""
        self.groups.restore(state["groups"], step)
        if "weights" in state:
            copy_parameters(state["weights"], self.groups.policy)
            self.sampled_at = state["sampled_at"]
            self._submit(step)

    def drop(self, step: int) -> None:
        """Discard the pending batch; the next one is sampled by the present policy, for the same prompts."""
        if self._pending is not None:
            self.groups.cancelled = True
            self._pending.exception()  # waits for one group at most
            self.groups.cancelled, self._pending = False, None
            self.groups.restore(self._before, step)

    def close(self) -> None:
        """Stop the sampling thread at its next group."""
        self.groups.cancelled = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int, steps_done: int) -> None:
        """Sample the batch of ``step`` with the weights as they are now, after ``steps_done`` steps."""
        copy_parameters(parameters(self.policy), self.groups.policy)
        self.sampled_at = steps_done
        self._submit(step)

    def _submit(self, step: int) -> None:
        self._before = self.groups.state()
        self._pending = self._thread.submit(self.groups.batch, step)
