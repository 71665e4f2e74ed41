"""What may not be drawn, and which texts end a completion. Both are functions of a row's own tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.prompt_lengths import single_token

MORE_TOKENS = 4
"""Tokens that are looked at beyond the bytes of a stop text: some tokenizers drop a space before the first."""


class Limits:
    """The options ``ban``, ``min_tokens`` and ``stop`` for one policy. Raises: UserError where a ban is no token."""

    def __init__(self, policy: Policy, options: SamplingConfig, where: str = "sampling"):
        self.policy, self.stop, self.shortest = policy, options.stop or [], options.min_tokens or 1
        self.ends = torch.tensor(policy.template.eos_ids, device=policy.device)
        embedding: Any = policy.model.get_input_embeddings()
        size, known = embedding.num_embeddings, policy.tokenizer.get_vocab()

        def tokens_of(text: str) -> list[int]:
            return policy.tokenizer(text, add_special_tokens=False)["input_ids"]

        banned = [single_token(entry, known.get, tokens_of, size, f"{where}.ban") for entry in options.ban or []]
        self.banned = torch.tensor(banned, dtype=torch.long, device=policy.device)
        self.looked_at = MORE_TOKENS + max((len(text.encode()) for text in self.stop), default=0)

    def forbidden(self, count_R: Tensor, vocabulary: int) -> Tensor | None:
        """The tokens that rows of so many tokens may not draw next; None where every one may be drawn.

        Shapes: int64 [R] -> bool [R, V].
        """
        early_R = count_R + 1 < self.shortest
        if not len(self.banned) and (self.shortest == 1 or not bool(early_R.any())):
            return None
        forbidden_RV = torch.zeros(len(count_R), vocabulary, dtype=torch.bool, device=count_R.device)
        forbidden_RV[:, self.banned] = True
        forbidden_RV[:, self.ends] |= early_R[:, None]
        return forbidden_RV

    def stopped(self, tokens: Tensor, row_R: Tensor, count_R: Tensor) -> Tensor:
        """Whether the newest token of a row completes a stop text.

        Shapes: int64 [rows, T], int64 [R], int64 [R] -> bool [R].
        """
        place_RW = count_R[:, None] - self.looked_at + torch.arange(self.looked_at, device=count_R.device)
        last = tokens[row_R[:, None], place_RW.clamp(min=0)].tolist()
        stopped = [self._completes(row[-count:]) for row, count in zip(last, count_R.tolist(), strict=True)]
        return torch.tensor(stopped, device=count_R.device) & (count_R >= self.shortest)

    def _completes(self, tokens: list[int]) -> bool:
        """Whether the last of these tokens completes a stop text."""
        text = self.policy.decode(tokens)
        written = [stop for stop in self.stop if stop in text]
        if not written:
            return False
        before = self.policy.decode(tokens[:-1])
        return any(text.count(stop) > before.count(stop) for stop in written)
