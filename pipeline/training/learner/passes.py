"""Forward and backward passes of the micro-batches of one update, packed where the model allows it, else padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.config import StageConfig
from gradus.pipeline.policy.devices import sent
from gradus.pipeline.policy.forward import lm_head
from gradus.pipeline.policy.forward.logprobs import precision
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.forward.packing import computing, hidden_states
from gradus.pipeline.policy.forward.padded import completion_logits, completion_states, entropies, target_logprobs
from gradus.pipeline.policy.forward.rows import CompletionRows
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.training.learner.replicas import ReplicatedPolicy
from gradus.pipeline.training.learner.terms import Terms


class Passes:
    """Computes gradients of a weighted log-likelihood; this rank's share of the rows."""

    def __init__(
        self,
        policy: Policy,
        trained: ReplicatedPolicy,
        config: StageConfig,
        temperature: float,
        autocast: bool,
    ):
        self.policy, self.trained, self.config = policy, trained, config
        self.temperature, self.autocast = temperature, autocast

    def backward(
        self, rows: CompletionRows, active: list[int], terms_RT: Terms, completions: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Add the gradient of minus the objective over ``completions``, micro-batch by micro-batch, for the rows
        ``active``. Yields the objective of each, and each token's log-probability minus the sampler's; both are left on
        the device, so that the next micro-batch is prepared while a GPU computes this one."""
        mine = rows.share(active, self.trained.ranks.rank, self.trained.ranks.size)
        if can_pack(self.policy):
            yield from self._packed(rows, mine, active[0], terms_RT, completions)
        else:
            yield from self._padded(rows, mine, active[0], terms_RT, completions)

    def _packed(
        self, rows: CompletionRows, mine: list[int], any_row: int, terms_RT: Terms, completions: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Without padding; the head is taken in pieces, whose gradient is computed in the forward pass."""
        policy, device = self.trained.policy, self.policy.device
        for item in self.trained.rounds(rows.packs(mine, self.config.token_budget, device)):
            if item is None:
                self._idle_pass(rows, any_row)
                continue
            batch, pack = item
            mask = rows.mask_RT[batch]
            terms = terms_RT.each(_sender(batch, mask, device))
            with computing(policy, pack):
                with precision(device, self.autocast):
                    hidden = hidden_states(policy, pack)
                    given = (pack.targets, self.temperature, self._function(terms), terms.entropy)
                    objective, logprobs = lm_head.objective(policy, hidden, *given)
                (-objective / completions).backward()
            yield objective.detach(), logprobs - terms.old_logprobs

    def _padded(
        self, rows: CompletionRows, mine: list[int], any_row: int, terms_RT: Terms, completions: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The model's own forward pass, for models that cannot be packed."""
        device = self.policy.device
        for batch in self.trained.rounds(rows.micro_batches(mine, self.config.token_budget)):
            if batch is None:
                self._idle_pass(rows, any_row)
                continue
            width = max(rows.lengths[r] for r in batch)
            terms = terms_RT.each(_sender(batch, (slice(None), slice(width)), device))
            prompts, mask = [rows.prompts[r] for r in batch], sent(rows.mask_RT[batch, :width], device)
            tokens_RT = sent(rows.tokens_RT[batch, :width], device)
            with precision(device, self.autocast):
                logits = completion_logits(self.trained.policy, prompts, tokens_RT, self.temperature)
                logprobs = target_logprobs(logits, tokens_RT)
            objective = terms.value(logprobs, self.config.clip)
            if terms.entropy is not None:
                objective = objective + (terms.entropy * entropies(logits)).sum()
            (-objective / completions).backward()
            yield objective.detach(), (logprobs.detach() - terms.old_logprobs)[mask]

    def _idle_pass(self, rows: CompletionRows, row: int) -> None:
        """A pass that adds nothing; other ranks still have rows, and all must compute together."""
        with precision(self.policy.device, self.autocast):
            states = completion_states(self.trained.policy, [rows.prompts[row]], rows.tokens_RT[[row], :1])
        (states.sum() * 0).backward()

    def _function(self, terms: Terms) -> lm_head.Objective:
        """The objective of a piece of the tokens."""
        return lambda logprobs, piece: terms.value(logprobs, self.config.clip, piece)


def _sender(batch: list[int], places: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function that sends some places of these rows of a tensor to the device."""
    return lambda part: sent(part[batch][places], device)
