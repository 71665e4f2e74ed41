"""The engines that compute the next token's logits, and the choice between them.

There are three: the lean decoder, transformers with its cache, and transformers without a cache. The choice is made
once for each model, by trying: the first one, in this order, that reproduces the model's own logits. Only the lean
engine can add rows while other rows are still growing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from gradus.pipeline.common.errors import memory_ran_out
from gradus.pipeline.policy.forward.padded import left_pad
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin.decoder import Decoder, Unsupported
from gradus.pipeline.rollouts.builtin.lean_engine import LeanEngine

PROBE, CONTINUED = ([0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10]), [5, 6, 7]
"""Two prompts of different lengths, and the tokens after them: places in ordinary text."""
TOLERANCE = {torch.float32: 1e-4}
"""The largest relative difference from the model's own logits; 0.05 in types of lower precision."""


class LogitsEngine(Protocol):
    """Rows of tokens that grow, one for each completion."""

    refills: bool
    """Whether groups can be admitted while others are still growing."""

    def held(self, prompt: int, max_tokens: int) -> int:
        """The most tokens that a group with this prompt can hold in the cache."""
        ...

    def admit(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        """Add a group of rows for each prompt.

        Shapes: -> logits of the first token [P, V], hidden states at the end of the prompts [P, D] or None.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row.

        Shapes: int64 [R] -> logits of the token after it [R, V].
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except these, int64 [R']."""
        ...


class TransformersEngine:
    """The model's own forward pass, with transformers' cache, or over the whole row at every step."""

    refills = False

    def __init__(self, policy: Policy, group_size: int, cached: bool = True, return_prompt_states: bool = False):
        self.policy, self.group_size, self.cached = policy, group_size, cached
        self.return_prompt_states = return_prompt_states
        self.ids = self.mask = torch.zeros(0, 0, dtype=torch.long)
        self.cache: DynamicCache | None = None

    def held(self, prompt: int, max_tokens: int) -> int:
        """The most tokens that a group with this prompt can hold in the cache."""
        return (prompt + max_tokens) * self.group_size

    def admit(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        """Start with these prompts; earlier rows are dropped."""
        self.ids, self.mask = left_pad(prompts, self.policy.template.pad_id, self.policy.device)
        self.cache = DynamicCache(config=self.policy.model.config) if self.cached else None
        output = self._forward(self.ids, hidden=self.return_prompt_states)
        if self.group_size > 1:
            self.ids, self.mask = (x.repeat_interleave(self.group_size, 0) for x in (self.ids, self.mask))
            if self.cache is not None:
                self.cache.batch_repeat_interleave(self.group_size)
        states = output.hidden_states[-1][:, -1] if self.return_prompt_states else None
        return output.logits[:, -1], states

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        return self._forward(tokens[:, None] if self.cached else self.ids).logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except these."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    def _forward(self, ids: Tensor, hidden: bool = False) -> Any:
        """One pass over the tokens that are not in the cache; logits of the last column only, where the model can."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": self.mask, "use_cache": self.cached}
        if self.cached:
            inputs["past_key_values"] = self.cache
        if "position_ids" in self.policy.forward_options:
            inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self.policy.forward_options:
            inputs["logits_to_keep"] = 1
        return self.policy.model(**inputs, output_hidden_states=hidden)


def engine_of(
    policy: Policy, prompts: list[list[int]], group_size: int, max_tokens: int, return_prompt_states: bool = False
) -> LogitsEngine:
    """The fastest engine that reproduces this model's own logits, with the model's present weights."""
    if policy.decoder is None:
        policy.decoder = _choose(policy)
    if isinstance(policy.decoder, Decoder):
        return LeanEngine(policy.decoder, prompts, group_size, max_tokens)
    return TransformersEngine(policy, group_size, policy.decoder, return_prompt_states)


@torch.no_grad()
def _choose(policy: Policy) -> Decoder | bool:
    """A decoder that reproduces the model, or else whether transformers' cache does."""
    prompts = [policy.ordinary(prompt) for prompt in PROBE]
    try:
        decoder = Decoder(policy.model)
        if _reproduces(policy, prompts, lambda: LeanEngine(decoder, prompts, 2, 3)):
            return decoder
    except (Unsupported, AttributeError, RuntimeError) as error:  # its parts have other names or shapes
        if memory_ran_out(error):
            raise
    try:
        if _reproduces(policy, prompts, lambda: TransformersEngine(policy, 2)):
            return True
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # it has a cache of another kind
        if memory_ran_out(error):
            raise
    kind = policy.model.config.model_type
    warnings.warn(f"{kind} has no usable key-value cache: every token is sampled over the whole text", stacklevel=2)
    return False


def _reproduces(policy: Policy, prompts: list[list[int]], make: Callable[[], LogitsEngine]) -> bool:
    """Whether an engine's logits equal those of the model without a cache, while rows grow and are dropped."""
    engine, reference = make(), TransformersEngine(policy, 1, cached=False)
    texts = [prompt for prompt in prompts for _ in range(2)]
    found = [engine.admit(prompts)[0].repeat_interleave(2, 0)]
    wanted = [reference.admit(texts)[0]]
    for step, token in enumerate(policy.ordinary(CONTINUED)):
        if step == 1:
            texts = texts[1:]
            engine.keep(torch.arange(1, 4, device=policy.device))
        texts = [[*text, token] for text in texts]
        found.append(engine.step(torch.tensor([text[-1] for text in texts], device=policy.device)))
        wanted.append(reference.admit(texts)[0])
    tolerance = TOLERANCE.get(policy.model.dtype, 0.05)
    return all(bool((a - b).float().norm() <= tolerance * b.float().norm()) for a, b in zip(found, wanted, strict=True))
