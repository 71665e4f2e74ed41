"""Weighted log-likelihood -> backward -> optimizer. It knows rows, weights and tokens, and no algorithm.

Rows of zero weight are never computed. The others are packed, without padding and each prompt once (see
:mod:`gradus.pipeline.policy.forward.packing`), and cut into micro-batches by a budget of tokens; how they are cut
changes memory and nothing else, because every coefficient is fixed before the first pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import StageConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs_and_entropies
from gradus.pipeline.policy.forward.rows import CompletionRows
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.stage import Needs
from gradus.pipeline.training.learner.coefficients import drift_metrics, engine_correction, kept_tokens
from gradus.pipeline.training.learner.groups import groups_of
from gradus.pipeline.training.learner.optimizer_state import optimizer_state, restore_optimizer
from gradus.pipeline.training.learner.passes import Passes
from gradus.pipeline.training.learner.replicas import trained_copy
from gradus.pipeline.training.learner.terms import EntropyTerm, Terms
from gradus.pipeline.types import Rollouts, State

Weigh = Callable[[int, list[int]], Tensor]
"""(number of an update, some of a batch's groups) -> their weights [P, K] or [P, K, T]."""


def learning_rate(step: int, config: StageConfig, idle: int = 0) -> float:
    """The rate of step ``step`` (from 1): linear warm-up, then constant or falling to zero after the last step.

    In the first ``idle`` steps, which count for none of this, the policy does not train.

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
        self.trained = trained_copy(policy, ranks)
        self.autocast, self.likelihood = autocast, needs.likelihood if needs else 0.0
        self.passes = Passes(policy, self.trained, config, temperature, autocast)
        self.entropy = EntropyTerm(config)
        self.idle = needs.critic.warmup if needs and needs.critic else 0
        """Number of first steps in which only the critic trains."""
        model = self.trained.policy.model
        matrices = self.trained.alike([p for p in model.parameters() if p.requires_grad and p.dim() >= 2])
        vectors = self.trained.alike([p for p in model.parameters() if p.requires_grad and p.dim() < 2])
        groups = [{"params": part, "weight_decay": config.weight_decay} for part in matrices]
        groups += [{"params": part, "weight_decay": 0.0} for part in vectors]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.skipped_in_a_row = 0
        self._masked: dict[str, float] = {}
        """Shares of the batch that the stage's masks leave out."""
        self.rate_factor = 1.0
        """The factor on every learning rate."""
        if config.gradient_checkpointing:
            checkpoint_layers(model)

    def prepared(self, rollouts: Rollouts, step: int) -> Rollouts:
        """The batch as the stage's ratios need it: with the denominators of one more forward pass, where it asks for
        that, and with which tokens take part."""
        self._masked = {}
        if step <= self.idle:
            return rollouts
        if self.config.old_logprobs == "recompute" or self.config.masks:
            options = (self.temperature, self.config.token_budget, self.ranks, self.autocast)
            now = batch_logprobs_and_entropies(self.policy, rollouts, *options, entropies=False)[0]
            sampler = rollouts.engine_logprobs_PKT
            if self.config.masks and sampler is None:
                sampler = rollouts.rollout_logprobs_PKT
            rollouts = replace(rollouts, rollout_logprobs_PKT=now, engine_logprobs_PKT=sampler, staleness=0)
        keep_PKT, self._masked = kept_tokens(rollouts, self.config)
        return replace(rollouts, keep_PKT=keep_PKT)

    def update(self, rollouts: Rollouts, step: int, weigh: Weigh) -> tuple[dict[str, float], Tensor]:
        """Train on one batch: ``config.minibatches`` parts of whole groups, ``config.updates_per_batch`` times.

        ``weigh(n, groups)`` gives the weights of these groups at update n. Returns the metrics of the last update and
        the weights that each group had first.
        Raises: StageFailed after too many updates in a row whose loss or gradient was not finite.
        """
        if step <= self.idle:
            return {"update/rows": 0.0}, torch.zeros(rollouts.truncated_PK.shape)
        cuts = torch.arange(len(rollouts.prompts)).tensor_split(self.config.minibatches)
        parts = [cut.tolist() for cut in cuts if len(cut)]
        batches = [groups_of(rollouts, groups) for groups in parts] if len(parts) > 1 else [rollouts]
        first_weights, metrics = list[Tensor](), dict[str, float]()
        rate = self.rate_factor * learning_rate(step, self.config, self.idle)
        entropy = self.entropy.weight(rollouts)
        for update in range(self.config.updates_per_batch * len(parts)):
            part = update % len(parts)
            weights = self.ranks.same(weigh(update, parts[part]))  # a critic's rounding may differ between GPUs
            if update < len(parts):
                first_weights.append(weights)
            metrics = self._step(batches[part], weights, rate, entropy)
        if self.config.entropy is not None:
            metrics["update/entropy_weight"] = entropy
        return self._masked | metrics, torch.cat(first_weights)

    def state(self) -> State:
        """The optimizer's moments, and how many updates in a row were skipped."""
        return {
            "optimizer": optimizer_state(self.optimizer, self.trained.policy.model),
            "skipped_in_a_row": self.skipped_in_a_row,
            **self.entropy.state(),
        }

    def restore(self, state: State) -> None:
        """Continue from :meth:`state`, with the policy's present weights."""
        self.trained.reload()
        self.take_moments(state)
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.entropy.restore(state)

    def take_moments(self, state: State) -> None:
        """Take over the optimizer's moments alone, as from another stage."""
        restore_optimizer(self.optimizer, self.trained.policy.model, state["optimizer"])

    def _step(self, rollouts: Rollouts, weights: Tensor, rate: float, entropy: float) -> dict[str, float]:
        """One optimizer update. Rows whose factors are all zero take no part."""
        rows, completions = CompletionRows.of(rollouts), rollouts.truncated_PK.numel()
        importance_PKT, of_engine = engine_correction(rollouts, self.config.importance_cap)
        terms = Terms.of(rollouts, weights, self.config, self.likelihood, entropy)
        terms_RT = replace(terms, pull=terms.pull * importance_PKT).each(lambda part: part.flatten(0, 1))
        active = terms_RT.active()
        metrics = {"update/learning_rate": rate, "update/rows": float(len(active)), "update/skipped": 0.0}
        metrics |= of_engine
        if not active:
            return metrics | {"update/loss": 0.0, "update/gradient_norm": 0.0}
        passed = [*self.passes.backward(rows, active, terms_RT, completions)]
        objectives, differences = zip(*passed, strict=True) if passed else ([torch.zeros(())], [torch.zeros(0)])
        part = -sum(objective / completions for objective in torch.stack(objectives).tolist())
        found = self.ranks.gathered((part, torch.cat(differences).cpu()))
        loss = sum(part for part, _ in found)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.trained.reduce()
        norm = self.trained.clip(self.config.grad_clip)
        self._apply(math.isfinite(loss) and math.isfinite(norm), metrics)
        metrics |= {"update/loss": loss, "update/gradient_norm": norm}
        return metrics | drift_metrics(torch.cat([differences for _, differences in found]), self.config.clip)

    def _apply(self, finite: bool, metrics: dict[str, float]) -> None:
        """Take the optimizer's step, or skip and count it where the gradient is not a number."""
        if finite:
            self.optimizer.step()
            self.trained.updated()
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
    # No random number is drawn in a layer, so its generators' states need not be kept.
    enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in layers:
        layer.training = True
