"""Weighted log-likelihood -> backward -> optimizer. It knows rows, weights and tokens, and no algorithm.

Rows of zero weight are never computed. The others are packed, without padding and each prompt once (see
:mod:`gradus.pipeline.policy.forward.packing`), and cut into micro-batches by a budget of tokens; how they are cut changes memory and nothing
else, because every coefficient is fixed before the first pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import StageConfig
from gradus.pipeline.policy.forward import lm_head
from gradus.pipeline.policy.forward.logprobs import batch_reading, precision
from gradus.pipeline.policy.forward.packing import can_pack, computing, hidden_states
from gradus.pipeline.policy.forward.padded import completion_logprobs, completion_states
from gradus.pipeline.policy.forward.rows import Rows
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.stage import Needs
from gradus.pipeline.training.learner.groups import groups_of
from gradus.pipeline.training.learner.losses import importance_weights, token_weights, weighted_likelihood
from gradus.pipeline.training.learner.optimizer_state import optimizer_state, restore_optimizer
from gradus.pipeline.training.learner.replicas import trained_copy
from gradus.pipeline.types import Rollouts, State

Weigh = Callable[[int, list[int]], Tensor]
"""(number of an update, some of a batch's groups) -> their weights [P, K] or [P, K, T]."""


def learning_rate(step: int, config: StageConfig, idle: int = 0) -> float:
    """The rate of step ``step`` (from 1): linear warm-up, then constant or falling to zero after the last step.

    Before all that the policy may stay as it is for ``idle`` steps.

    >>> from gradus.pipeline.config.pipeline import StageConfig
    >>> config = StageConfig(stage="x", steps=4, lr=1.0, warmup=2, schedule="linear")
    >>> [learning_rate(step, config) for step in (1, 2, 3, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    step, steps = step - idle, config.steps - idle
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    passed = (step - 1 - config.warmup) / (steps - config.warmup)
    return config.lr * (1 - passed if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * passed)))


class Learner:
    """Owns the optimizer of one stage."""

    def __init__(
        self,
        policy: Policy,
        config: StageConfig,
        temperature: float,
        autocast: bool = False,
        needs: Needs | None = None,
        ranks: Ranks = ALONE,
    ):
        self.policy, self.config, self.temperature, self.ranks = policy, config, temperature, ranks
        self.trainee = trained_copy(policy, ranks)
        self.autocast, self.likelihood = autocast, needs.likelihood if needs else 0.0
        self.idle = needs.critic.warmup if needs and needs.critic else 0
        """First steps in which the policy stays as it is."""
        model = self.trainee.policy.model
        matrices = self.trainee.alike([p for p in model.parameters() if p.requires_grad and p.dim() >= 2])
        vectors = self.trainee.alike([p for p in model.parameters() if p.requires_grad and p.dim() < 2])
        groups = [{"params": part, "weight_decay": config.weight_decay} for part in matrices]
        groups += [{"params": part, "weight_decay": 0.0} for part in vectors]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.skipped_in_a_row = 0
        self.rate_factor = 1.0
        """What every learning rate is multiplied by."""
        if config.gradient_checkpointing:
            checkpoint_layers(model)

    def update(self, rollouts: Rollouts, step: int, weigh: Weigh) -> tuple[dict[str, float], Tensor]:
        """Train on one batch: ``config.minibatches`` parts of whole groups, ``config.updates_per_batch`` times.

        ``weigh(n, groups)`` gives the weights of these groups at update n. Returns the metrics of the last update and
        the weights that each group had first.
        Raises: StageFailed after too many updates in a row whose loss or gradient was not finite.
        """
        if step <= self.idle:
            return {"update/rows": 0.0}, torch.zeros(rollouts.truncated_PK.shape)
        if self.config.old_logprobs == "recompute":
            options = (self.temperature, self.config.token_budget, self.ranks, self.autocast)
            again = batch_reading(self.policy, rollouts, *options, entropies=False)
            rollouts = replace(rollouts, rollout_logprobs_PKT=again[0])
        cuts = torch.arange(len(rollouts.prompts)).tensor_split(self.config.minibatches)
        parts = [cut.tolist() for cut in cuts if len(cut)]
        batches = [groups_of(rollouts, groups) for groups in parts] if len(parts) > 1 else [rollouts]
        first_weights, metrics = list[Tensor](), dict[str, float]()
        rate = self.rate_factor * learning_rate(step, self.config, self.idle)
        for update in range(self.config.updates_per_batch * len(parts)):
            part = update % len(parts)
            weights = self.ranks.same(weigh(update, parts[part]))  # a critic's rounding may differ between GPUs
            if update < len(parts):
                first_weights.append(weights)
            metrics = self._step(batches[part], weights, rate)
        return metrics, torch.cat(first_weights)

    def state(self) -> State:
        """The optimizer's moments, and how many updates in a row were skipped."""
        return {
            "optimizer": optimizer_state(self.optimizer, self.trainee.policy.model),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`, with the policy's weights as they are now."""
        self.trainee.reload()
        self.take_moments(state)
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def take_moments(self, state: State) -> None:
        """Take over the optimizer's moments alone, as from another stage."""
        restore_optimizer(self.optimizer, self.trainee.policy.model, state["optimizer"])

    def _step(self, rollouts: Rollouts, weights: Tensor, rate: float) -> dict[str, float]:
        """One optimizer update. Rows whose coefficients are all zero take no part."""
        rows, completions, mask_PKT = Rows.of(rollouts), rollouts.truncated_PK.numel(), rollouts.mask_PKT
        importance_PKT, of_engine = self._importance(rollouts)
        pull_RT = (token_weights(weights, mask_PKT, self.config.score) * importance_PKT).flatten(0, 1)
        likelihood_RT = self._likelihood(rollouts).flatten(0, 1) if self.likelihood else torch.zeros_like(pull_RT)
        active = (pull_RT.abs() + likelihood_RT).sum(-1).nonzero()[:, 0].tolist()
        metrics = {"update/learning_rate": rate, "update/rows": float(len(active)), "update/skipped": 0.0}
        metrics |= of_engine
        if not active:
            return metrics | {"update/loss": 0.0, "update/gradient_norm": 0.0}
        part, differences = 0.0, [torch.zeros(0)]
        for objective, difference in self._backwards(rows, active, (pull_RT, likelihood_RT), completions):
            part -= objective / completions
            differences.append(difference.cpu())
        found = self.ranks.gathered((part, torch.cat(differences)))
        loss = sum(part for part, _ in found)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.trainee.reduce()
        norm = self.trainee.clip(self.config.grad_clip)
        self._apply(math.isfinite(loss) and math.isfinite(norm), metrics)
        metrics |= {"update/loss": loss, "update/gradient_norm": norm}
        return metrics | self._drift(torch.cat([differences for _, differences in found]))

    def _importance(self, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """What each token's weight is multiplied by, 1 where the policy itself drew it, and what is told of it.

        Shapes: -> float32 [P, K, T], or a scalar.
        """
        if rollouts.engine_logprobs_PKT is None:
            return torch.ones(()), {}
        mask, cap = rollouts.mask_PKT, self.config.importance_cap
        weights = importance_weights(rollouts.rollout_logprobs_PKT, rollouts.engine_logprobs_PKT, mask, cap)
        capped = float((weights[mask] >= cap).float().mean())
        return weights, {"update/importance": float(weights[mask].mean()), "update/importance_capped": capped}

    def _likelihood(self, rollouts: Rollouts) -> Tensor:
        """Coefficients of the likelihood loss, a mean over the tokens of correct completions, at the objective's scale.

        Shapes: -> float32 [P, K, T].
        """
        assert rollouts.correct_PK is not None
        chosen_PKT = rollouts.mask_PKT & rollouts.correct_PK[..., None]
        return chosen_PKT * (self.likelihood * rollouts.truncated_PK.numel() / chosen_PKT.sum().clamp(min=1))

    def _drift(self, differences: Tensor) -> dict[str, float]:
        """How far the policy's log-probabilities are from the sampler's, and how many ratios are out of bounds."""
        metrics = {"update/train_sample_mismatch": float(differences.abs().mean())}
        if self.config.clip is not None:
            ratio, (low, high) = differences.exp(), self.config.clip
            metrics["update/clipped_share"] = float(((ratio < 1 - low) | (ratio > 1 + high)).float().mean())
        return metrics

    def _backwards(
        self, rows: Rows, active: list[int], coefficients: tuple[Tensor, Tensor], completions: int
    ) -> Iterator[tuple[float, Tensor]]:
        """Forward and backward of each of this rank's micro-batches; gives its objective, and by how much each token's
        log-probability differs from the sampler's. ``coefficients`` [R, T] are the weights' and the likelihood
        loss's."""
        budget, policy, device = self.config.token_budget, self.trainee.policy, self.policy.device
        given_RT, mine = (rows.rollout_logprobs_RT, *coefficients), rows.share(active, self.ranks.rank, self.ranks.size)
        if not can_pack(self.policy):
            for batch in self.trainee.rounds(rows.micro_batches(mine, budget)):
                if batch is None:
                    self._pass_idly(rows, active[0])
                    continue
                width = max(rows.lengths[r] for r in batch)
                old, pull, likelihood, mask = (part[batch, :width].to(device) for part in (*given_RT, rows.mask_RT))
                logprobs = self._padded(rows, batch, width)
                objective = self._objective(logprobs, pull, likelihood, old)
                (-objective / completions).backward()
                yield float(objective.detach()), (logprobs.detach() - old)[mask]
            return
        for item in self.trainee.rounds(rows.packs(mine, budget, device)):
            if item is None:
                self._pass_idly(rows, active[0])
                continue
            batch, pack = item
            mask = rows.mask_RT[batch]
            old, pull, likelihood = (part[batch][mask].to(device) for part in given_RT)
            function = self._function(pull, likelihood, old)
            with computing(policy, pack):
                with precision(device, self.autocast):
                    hidden = hidden_states(policy, pack)
                    objective, logprobs = lm_head.objective(policy, hidden, pack.targets, self.temperature, function)
                (-objective / completions).backward()
            yield float(objective.detach()), logprobs - old

    def _pass_idly(self, rows: Rows, row: int) -> None:
        """A pass that adds nothing, for the sake of ranks that still have rows."""
        with precision(self.policy.device, self.autocast):
            states = completion_states(self.trainee.policy, [rows.prompts[row]], rows.tokens_RT[[row], :1])
        (states.sum() * 0).backward()

    def _function(self, pull: Tensor, likelihood: Tensor, old: Tensor) -> lm_head.Objective:
        """The objective of a piece of the tokens."""
        return lambda logprobs, piece: self._objective(logprobs, pull[piece], likelihood[piece], old[piece])

    def _objective(self, logprobs: Tensor, pull: Tensor, likelihood: Tensor, old: Tensor) -> Tensor:
        """Scalar; all shapes alike."""
        objective = weighted_likelihood(logprobs, pull, old, self.config.clip)
        return objective + (likelihood * logprobs).sum() if self.likelihood else objective

    def _padded(self, rows: Rows, batch: list[int], width: int) -> Tensor:
        """Log-probabilities of a micro-batch. Shapes: -> float32 [R, T]."""
        prompts, tokens_RT = [rows.prompts[r] for r in batch], rows.tokens_RT[batch, :width]
        with precision(self.policy.device, self.autocast):
            return completion_logprobs(self.trainee.policy, prompts, tokens_RT, self.temperature)

    def _apply(self, finite: bool, metrics: dict[str, float]) -> None:
        """Take the optimizer's step, or skip and count it where the gradient is not a number."""
        if finite:
            self.optimizer.step()
            self.trainee.updated()
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
