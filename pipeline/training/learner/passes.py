"""Forward and backward passes of the micro-batches of one update, packed where the model allows it, else padded."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gradus.pipeline.config import StageConfig
from gradus.pipeline.policy.devices import sent
from gradus.pipeline.policy.forward import lm_head
from gradus.pipeline.policy.forward.logprobs import precision
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.forward.packing import computing, hidden_states
from gradus.pipeline.policy.forward.padded import completion_logprobs, completion_states
from gradus.pipeline.policy.forward.rows import CompletionRows
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.training.learner.losses import weighted_likelihood
from gradus.pipeline.training.learner.replicas import ReplicatedPolicy

Coefficients = tuple[Tensor, Tensor]
"""float32 [R, T] each: of the clipped objective, and of the likelihood loss."""


class Passes:
    """Computes gradients of a weighted log-likelihood; this rank's share of the rows."""

    def __init__(
        self,
        policy: Policy,
        trained: ReplicatedPolicy,
        config: StageConfig,
        temperature: float,
        autocast: bool,
        likelihood: bool,
    ):
        self.policy, self.trained, self.config = policy, trained, config
        self.temperature, self.autocast = temperature, autocast
        self.likelihood = likelihood
        """Whether the objective has a likelihood loss."""

    def backward(
        self, rows: CompletionRows, active: list[int], coefficients: Coefficients, completions: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Add the gradient of minus the objective over ``completions``, micro-batch by micro-batch, for the rows
        ``active``. Yields the objective of each, and each token's log-probability minus the sampler's; both are left on
        the device, so that the next micro-batch is prepared while a GPU computes this one."""
        given_RT = (rows.rollout_logprobs_RT, *coefficients)
        mine = rows.share(active, self.trained.ranks.rank, self.trained.ranks.size)
        if can_pack(self.policy):
            yield from self._packed(rows, mine, active[0], given_RT, completions)
        else:
            yield from self._padded(rows, mine, active[0], given_RT, completions)

    def _packed(
        self, rows: CompletionRows, mine: list[int], any_row: int, given_RT: tuple[Tensor, ...], completions: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Without padding; the head is taken in pieces, whose gradient is computed in the forward pass."""
        policy, device = self.trained.policy, self.policy.device
        for item in self.trained.rounds(rows.packs(mine, self.config.token_budget, device)):
            if item is None:
                self._idle_pass(rows, any_row)
                continue
            batch, pack = item
            mask = rows.mask_RT[batch]
            old, pull, likelihood = (sent(part[batch][mask], device) for part in given_RT)
            function = self._function(pull, likelihood, old)
            with computing(policy, pack):
                with precision(device, self.autocast):
                    hidden = hidden_states(policy, pack)
                    objective, logprobs = lm_head.objective(policy, hidden, pack.targets, self.temperature, function)
                (-objective / completions).backward()
            yield objective.detach(), logprobs - old

    def _padded(
        self, rows: CompletionRows, mine: list[int], any_row: int, given_RT: tuple[Tensor, ...], completions: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The model's own forward pass, for models that cannot be packed."""
        device = self.policy.device
        for batch in self.trained.rounds(rows.micro_batches(mine, self.config.token_budget)):
            if batch is None:
                self._idle_pass(rows, any_row)
                continue
            width = max(rows.lengths[r] for r in batch)
            old, pull, likelihood, mask = (sent(part[batch, :width], device) for part in (*given_RT, rows.mask_RT))
            prompts, tokens_RT = [rows.prompts[r] for r in batch], rows.tokens_RT[batch, :width]
            with precision(device, self.autocast):
                logprobs = completion_logprobs(self.trained.policy, prompts, tokens_RT, self.temperature)
            objective = self._objective(logprobs, pull, likelihood, old)
            (-objective / completions).backward()
            yield objective.detach(), (logprobs.detach() - old)[mask]

    def _idle_pass(self, rows: CompletionRows, row: int) -> None:
        """A pass that adds nothing; other ranks still have rows, and all must compute together."""
        with precision(self.policy.device, self.autocast):
            states = completion_states(self.trained.policy, [rows.prompts[row]], rows.tokens_RT[[row], :1])
        (states.sum() * 0).backward()

    def _function(self, pull: Tensor, likelihood: Tensor, old: Tensor) -> lm_head.Objective:
        """The objective of a piece of the tokens."""
        return lambda logprobs, piece: self._objective(logprobs, pull[piece], likelihood[piece], old[piece])

    def _objective(self, logprobs: Tensor, pull: Tensor, likelihood: Tensor, old: Tensor) -> Tensor:
        """Scalar; all shapes alike."""
        objective = weighted_likelihood(logprobs, pull, old, self.config.clip)
        return objective + (likelihood * logprobs).sum() if self.likelihood else objective
