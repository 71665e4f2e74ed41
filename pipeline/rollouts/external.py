"""Sampling with an external engine, which holds a copy of the weights.

Before a batch the policy's weights are hashed, and pushed unless the engine holds them already. After the batch the
engine is asked again, so that no completion comes from other weights. The policy then computes its own
log-probabilities of the completions. Training uses these, and the learner corrects by their ratio to the engine's,
which are rounded differently. A mean difference beyond the tolerance shows that the weights differ, whatever their
hash says.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.config.compute import RolloutConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs_and_entropies
from gradus.pipeline.policy.forward.padded import completion_states
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey
from gradus.pipeline.rollouts.sampler import Completion, OnGroup, Request, RolloutEngine, Sampler
from gradus.pipeline.rollouts.weights import weights_digest
from gradus.pipeline.types import Prompt, Rollouts


class EngineSampler(Sampler):
    """Samples with an engine that holds a copy of the weights."""

    def __init__(self, engine: RolloutEngine, config: RolloutConfig, token_budget: int, autocast: bool):
        """``token_budget``, ``autocast``: the learner's, with which the policy computes log-probabilities too."""
        super().__init__()
        self.engine, self.config, self.token_budget, self.autocast = engine, config, token_budget, autocast
        self._turn = threading.RLock()
        self._pushed = {"time/push": 0.0, "sampler/pushes": 0.0}

    @contextlib.contextmanager
    def weights_of(self, policy: Policy, ranks: Ranks = ALONE) -> Iterator[None]:
        """Push the policy's weights where the engine holds others, and check at the end that it still holds them.

        Raises: StageFailed where it does not; UserError where it serves another model.
        """
        with self._turn:
            began, wanted = time.perf_counter(), weights_digest(policy)
            stale = ranks.leads and self.engine.digest() != wanted
            if stale:
                self.engine.load(wanted, policy)
            ranks.meet()
            self._check(wanted)
            self._pushed = {"time/push": time.perf_counter() - began, "sampler/pushes": float(stale)}
            yield
            self._check(wanted)

    def __call__(
        self,
        policy: Policy,
        prompts: list[Prompt],
        group_size: int,
        options: SamplingConfig,
        draw: DrawKey | None,
        return_prompt_states: bool = False,
        on_group: OnGroup | None = None,
        without_logprobs: bool = False,
    ) -> Rollouts:
        """Sample K completions of each prompt, within :meth:`weights_of`."""
        encoded = [policy.encode_prompt(prompt) for prompt in prompts]
        seeds = [None if draw is None else draw.number(prompt.id) for prompt in prompts]
        requests = [Request(tokens, group_size, seed) for tokens, seed in zip(encoded, seeds, strict=True)]
        found: dict[int, list[Completion]] = {}
        texts: dict[int, list[str]] = {}

        def done(index: int, completions: list[Completion]) -> None:
            found[index], texts[index] = completions, [policy.decode(c.tokens) for c in completions]
            if on_group is not None:
                on_group(index, texts[index])

        self.engine.generate(requests, policy.template.eos_ids, options, done)
        rows = [found[index] for index in range(len(prompts))]
        rollouts = _rollouts(prompts, encoded, rows, [texts[p] for p in range(len(prompts))], policy.template.pad_id)
        self.metrics = dict(self._pushed)
        if not without_logprobs:
            rollouts = self._read(policy, rollouts, options.temperature)
        if return_prompt_states:
            rollouts = replace(
                rollouts, prompt_states_PD=_states(policy, encoded, rollouts.tokens_PKT, self.token_budget)
            )
        return rollouts

    def _check(self, wanted: str) -> None:
        held = self.engine.digest()
        if held != wanted:
            raise StageFailed(
                f"the rollout engine holds other weights ({held or 'its own'}) than those that were "
                f"pushed to it ({wanted}): it was restarted, or something else pushes weights to it. What was "
                "sampled since then is not used"
            )

    def _read(self, policy: Policy, rollouts: Rollouts, temperature: float) -> Rollouts:
        """The rollouts with the policy's log-probabilities and entropies, beside the engine's log-probabilities.

        Raises: StageFailed where they differ by more than the tolerance.
        """
        began, theirs = time.perf_counter(), rollouts.rollout_logprobs_PKT
        ours, entropy = batch_logprobs_and_entropies(
            policy, rollouts, temperature, self.token_budget, autocast=self.autocast
        )
        difference = float((ours - theirs)[rollouts.mask_PKT].abs().mean())
        self.metrics["time/read"] = time.perf_counter() - began
        if not difference <= self.config.tolerance:
            raise StageFailed(
                f"the log-probabilities of {self.config.engine} differ from the policy's own by {difference:.3f} nats "
                f"a token on average, more than rollouts.tolerance ({self.config.tolerance:g}): it computes with other "
                "weights, another model or another precision than the policy"
            )
        return replace(rollouts, rollout_logprobs_PKT=ours, engine_logprobs_PKT=theirs, entropy_PKT=entropy)


def _rollouts(
    prompts: list[Prompt], encoded: list[list[int]], found: list[list[Completion]], texts: list[list[str]], pad: int
) -> Rollouts:
    """The completions as one batch, with the engine's log-probabilities."""
    longest = max(len(c.tokens) for group in found for c in group)
    lengths = torch.tensor([[len(c.tokens) for c in group] for group in found])
    tokens = [[c.tokens + [pad] * (longest - len(c.tokens)) for c in group] for group in found]
    logprobs = [[c.logprobs + [0.0] * (longest - len(c.tokens)) for c in group] for group in found]
    return Rollouts(
        prompts=prompts,
        prompt_tokens=encoded,
        tokens_PKT=torch.tensor(tokens),
        mask_PKT=torch.arange(longest) < lengths[..., None],
        rollout_logprobs_PKT=torch.tensor(logprobs),
        truncated_PK=torch.tensor([[not c.ended for c in group] for group in found]),
        texts=texts,
    )


@torch.no_grad()
def _states(policy: Policy, prompts: list[list[int]], tokens_PKT: Tensor, budget: int) -> Tensor:
    """The policy's hidden state at each prompt's last token. Shapes: -> float32 [P, D]."""
    size = max(1, budget // (max(map(len, prompts)) + 1))
    parts = [
        completion_states(policy, prompts[begin : begin + size], tokens_PKT[begin : begin + size, 0, :1])[:, 0]
        for begin in range(0, len(prompts), size)
    ]
    return torch.cat(parts).float()
