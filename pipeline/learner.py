"""Weighted log-likelihood -> backward -> optimizer. It knows rows, weights and tokens, and no algorithm.

Rows of zero weight are never computed. The others are packed, without padding and each prompt once (see
:mod:`pipeline.packing`), and cut into micro-batches by a budget of tokens; how they are cut changes memory and nothing
else, because every coefficient is fixed before the first pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline import head
from pipeline.config import StageConfig
from pipeline.errors import StageFailed, UserError
from pipeline.losses import token_weights, weighted_likelihood
from pipeline.packing import Pack, can_pack, computing, hidden_states
from pipeline.policy import Policy, completion_logprobs
from pipeline.training_state import State, optimizer_state, restore_optimizer
from pipeline.types import Rollouts


def learning_rate(step: int, config: StageConfig) -> float:
    """The rate of update ``step`` (from 1): linear warm-up, then constant or falling to zero after the last step.

    >>> from pipeline.config import StageConfig
    >>> config = StageConfig(stage="x", steps=4, lr=1.0, warmup=2, schedule="linear")
    >>> [learning_rate(step, config) for step in (1, 2, 3, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    passed = (step - 1 - config.warmup) / (config.steps - config.warmup)
    return config.lr * (1 - passed if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * passed)))


@dataclass(frozen=True)
class Rows:
    """Completions laid out as rows for the forward pass."""

    prompts: list[list[int]]
    tokens_RT: Tensor
    mask_RT: Tensor
    rollout_logprobs_RT: Tensor
    lengths: list[int]

    @classmethod
    def of(cls, rollouts: Rollouts) -> Rows:
        """Row p * K + k is completion k of prompt p."""
        _, group_size, _ = rollouts.tokens_PKT.shape
        return cls(
            prompts=[tokens for tokens in rollouts.prompt_tokens for _ in range(group_size)],
            tokens_RT=rollouts.tokens_PKT.flatten(0, 1),
            mask_RT=rollouts.mask_PKT.flatten(0, 1),
            rollout_logprobs_RT=rollouts.rollout_logprobs_PKT.flatten(0, 1),
            lengths=rollouts.lengths_PK.flatten().tolist(),
        )

    def packs(self, rows: list[int], token_budget: int, device: torch.device) -> Iterator[tuple[list[int], Pack]]:
        """``rows`` in packs within the budget of tokens (at least one row each), the rows of a prompt together.

        Similar lengths stand together, since attention alone is padded. A prompt whose rows do not fit into one pack is
        computed in each.
        """
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(id(self.prompts[row]), []).append(row)
        batch: list[int] = []
        held, last = 0, 0
        for group in sorted(groups.values(), key=lambda g: (len(self.prompts[g[0]]), max(self.lengths[r] for r in g))):
            for row in group:
                more = self.lengths[row] + (len(self.prompts[row]) if last != id(self.prompts[row]) else 0)
                if batch and held + more > token_budget:
                    yield batch, self._pack(batch, device)
                    batch, held, more = [], 0, self.lengths[row] + len(self.prompts[row])
                batch.append(row)
                held, last = held + more, id(self.prompts[row])
        if batch:
            yield batch, self._pack(batch, device)

    def _pack(self, rows: list[int], device: torch.device) -> Pack:
        places: dict[int, int] = {}
        prompts: list[list[int]] = []
        for row in rows:
            if id(self.prompts[row]) not in places:
                places[id(self.prompts[row])] = len(prompts)
                prompts.append(self.prompts[row])
        slots = [places[id(self.prompts[row])] for row in rows]
        completions = [self.tokens_RT[row, : self.lengths[row]].tolist() for row in rows]
        return Pack.of(prompts, slots, completions, device)

    def micro_batches(self, rows: list[int], token_budget: int) -> Iterator[list[int]]:
        """``rows`` in batches of similar length, each within the budget of padded tokens (at least one row each)."""
        batch: list[int] = []
        longest_prompt = longest = 0
        for row in sorted(rows, key=lambda r: (len(self.prompts[r]) + self.lengths[r], r)):
            prompt, length = max(longest_prompt, len(self.prompts[row])), max(longest, self.lengths[row])
            if batch and (prompt + length) * (len(batch) + 1) > token_budget:
                yield batch
                batch, prompt, length = [], len(self.prompts[row]), self.lengths[row]
            batch.append(row)
            longest_prompt, longest = prompt, length
        if batch:
            yield batch


class Learner:
    """Owns the optimizer of one stage."""

    def __init__(self, policy: Policy, config: StageConfig, temperature: float, autocast: bool = False):
        self.policy, self.config, self.temperature = policy, config, temperature
        self.autocast = autocast
        matrices = [p for p in policy.model.parameters() if p.requires_grad and p.dim() >= 2]
        vectors = [p for p in policy.model.parameters() if p.requires_grad and p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.skipped_in_a_row = 0
        if config.gradient_checkpointing:
            checkpoint_layers(policy.model)

    def update(self, rollouts: Rollouts, step: int, weigh: Callable[[int], Tensor]) -> tuple[dict[str, float], Tensor]:
        """Train on one batch, ``config.updates_per_batch`` times; ``weigh(n)`` gives the weights of update n.

        Returns the metrics of the last update and the weights of the first.
        Raises: StageFailed after too many updates in a row whose loss or gradient was not finite.
        """
        if self.config.old_logprobs == "recompute":
            again = batch_logprobs(self.policy, rollouts, self.temperature, self.config.token_budget)
            rollouts = replace(rollouts, rollout_logprobs_PKT=again)
        rows, first_weights, metrics = Rows.of(rollouts), None, dict[str, float]()
        for update in range(self.config.updates_per_batch):
            weights = weigh(update)
            first_weights = weights if first_weights is None else first_weights
            coefficients = token_weights(weights, rollouts.mask_PKT, self.config.score).flatten(0, 1)
            metrics = self._step(rows, coefficients, rollouts.truncated_PK.numel(), learning_rate(step, self.config))
        assert first_weights is not None
        return metrics, first_weights

    def state(self) -> State:
        """The optimizer's moments, and how many updates in a row were skipped."""
        return {
            "optimizer": optimizer_state(self.optimizer, self.policy.model),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self.take_moments(state)
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def take_moments(self, state: State) -> None:
        """Take over the optimizer's moments alone, as from another stage."""
        restore_optimizer(self.optimizer, self.policy.model, state["optimizer"])

    def _step(self, rows: Rows, coefficients_RT: Tensor, completions: int, rate: float) -> dict[str, float]:
        """One optimizer update. Rows whose coefficients are all zero take no part."""
        active = coefficients_RT.abs().sum(-1).nonzero()[:, 0].tolist()
        metrics = {"update/learning_rate": rate, "update/rows": float(len(active)), "update/skipped": 0.0}
        if not active:
            return metrics | {"update/loss": 0.0, "update/gradient_norm": 0.0}
        loss, mismatch, tokens = 0.0, 0.0, 0
        for objective, difference in self._backwards(rows, active, coefficients_RT, completions):
            loss -= objective / completions
            mismatch += float(difference.abs().sum())
            tokens += len(difference)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.config.grad_clip))
        self._apply(math.isfinite(loss) and math.isfinite(norm), metrics)
        return metrics | {
            "update/loss": loss,
            "update/gradient_norm": norm,
            "update/train_sample_mismatch": mismatch / tokens,
        }

    def _backwards(
        self, rows: Rows, active: list[int], coefficients_RT: Tensor, completions: int
    ) -> Iterator[tuple[float, Tensor]]:
        """Forward and backward of each micro-batch; gives its objective, and by how much each token's log-probability
        differs from the sampler's."""
        budget, device, clip = self.config.token_budget, self.policy.device, self.config.clip
        if not can_pack(self.policy):
            for batch in rows.micro_batches(active, budget):
                logprobs, old, coefficients, mask = self._padded(rows, batch, coefficients_RT)
                objective = weighted_likelihood(logprobs, coefficients, old, clip)
                (-objective / completions).backward()
                yield float(objective.detach()), (logprobs.detach() - old)[mask]
            return
        for batch, pack in rows.packs(active, budget, device):
            mask = rows.mask_RT[batch]
            old, coefficients = (part[batch][mask].to(device) for part in (rows.rollout_logprobs_RT, coefficients_RT))

            def function(
                logprobs: Tensor, piece: slice, old: Tensor = old, coefficients: Tensor = coefficients
            ) -> Tensor:
                return weighted_likelihood(logprobs, coefficients[piece], old[piece], clip)

            with computing(self.policy, pack):
                with self._precision():
                    hidden = hidden_states(self.policy, pack)
                    objective, logprobs = head.objective(self.policy, hidden, pack.targets, self.temperature, function)
                (-objective / completions).backward()
            yield float(objective.detach()), logprobs - old

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        device = self.policy.device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def _padded(self, rows: Rows, batch: list[int], coefficients_RT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities of a micro-batch, with the sampler's, the coefficients and the mask beside them."""
        width, device = max(rows.lengths[r] for r in batch), self.policy.device
        with self._precision():
            logprobs = completion_logprobs(
                self.policy, [rows.prompts[r] for r in batch], rows.tokens_RT[batch, :width], self.temperature
            )
        old, coefficients, mask = (
            part[batch, :width].to(device) for part in (rows.rollout_logprobs_RT, coefficients_RT, rows.mask_RT)
        )
        return logprobs, old, coefficients, mask

    def _apply(self, finite: bool, metrics: dict[str, float]) -> None:
        """Take the optimizer's step, or skip and count it where the gradient is not a number."""
        if finite:
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            metrics["update/skipped"] = 1.0
            self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise StageFailed(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} updates in a row; "
                f"lower the stage's lr, or check the rewards. The weights are those of the last good update."
            )


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Compute layers again in backward passes. transformers does so in training mode only; the layers alone are put
    into it, so that their dropout stays off.

    Raises: UserError where the model has no such layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise UserError(
            f"{model.config.model_type} models cannot compute their layers again",
            where="gradient_checkpointing",
            got="true",
            expected="a model that transformers can checkpoint",
            fix="set it to false, and token_budget lower",
        )
    # The second name is the one that transformers had before 5.23.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True


@torch.no_grad()
def batch_logprobs(policy: Policy, rollouts: Rollouts, temperature: float, token_budget: int) -> Tensor:
    """Log-probabilities of a batch's completions under any policy, without a gradient.

    Shapes: -> float32 [P, K, T] on the CPU, 0 outside the mask. Units: nats.
    """
    rows = Rows.of(rollouts)
    result_RT, everything = torch.zeros(rows.tokens_RT.shape), list(range(len(rows.prompts)))
    if can_pack(policy):
        for batch, pack in rows.packs(everything, token_budget, policy.device):
            with computing(policy, pack):
                found = head.logprobs(policy, hidden_states(policy, pack), pack.targets, temperature)
            part = torch.zeros(len(batch), rows.tokens_RT.shape[1])
            part[rows.mask_RT[batch]] = found.cpu()
            result_RT[batch] = part
        return result_RT.view_as(rollouts.rollout_logprobs_PKT)
    for batch in rows.micro_batches(everything, token_budget):
        width = max(rows.lengths[r] for r in batch)
        prompts, tokens = [rows.prompts[r] for r in batch], rows.tokens_RT[batch, :width]
        result_RT[batch, :width] = completion_logprobs(policy, prompts, tokens, temperature).cpu()
    return (result_RT * rows.mask_RT).view_as(rollouts.rollout_logprobs_PKT)
