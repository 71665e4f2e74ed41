"""The completions of a batch as rows, divided among ranks and into passes within a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradus.pipeline.policy.forward.packing import Pack
from gradus.pipeline.types import Rollouts


@dataclass(frozen=True)
class CompletionRows:
    """The completions of a batch, one per row."""

    prompts: list[list[int]]
    tokens_RT: Tensor
    mask_RT: Tensor
    rollout_logprobs_RT: Tensor
    lengths: list[int]

    @classmethod
    def of(cls, rollouts: Rollouts) -> CompletionRows:
        """Row p * K + k is completion k of prompt p."""
        _, group_size, _ = rollouts.tokens_PKT.shape
        return cls(
            prompts=[tokens for tokens in rollouts.prompt_tokens for _ in range(group_size)],
            tokens_RT=rollouts.tokens_PKT.flatten(0, 1),
            mask_RT=rollouts.mask_PKT.flatten(0, 1),
            rollout_logprobs_RT=rollouts.rollout_logprobs_PKT.flatten(0, 1),
            lengths=rollouts.lengths_PK.flatten().tolist(),
        )

    def share(self, rows: list[int], rank: int, size: int) -> list[int]:
        """The part of ``rows`` that rank ``rank`` of ``size`` computes, in their order.

        The rows of a prompt stay together. Prompts are assigned in descending order of their tokens, each to the rank
        with the fewest tokens so far.
        """
        if size == 1:
            return rows
        groups = self._by_prompt(rows)
        costs = [(len(self.prompts[g[0]]) + sum(self.lengths[r] for r in g), g) for g in groups]
        held, mine = [0] * size, list[int]()
        for cost, group in sorted(costs, key=lambda pair: (-pair[0], pair[1])):
            least = held.index(min(held))
            held[least] += cost
            mine += group if least == rank else []
        return sorted(mine)

    def packs(self, rows: list[int], token_budget: int, device: torch.device) -> Iterator[tuple[list[int], Pack]]:
        """``rows`` in packs within the budget of tokens (at least one row each), the rows of a prompt together.

        Rows of similar length are packed together, because attention is padded. A prompt whose rows do not fit into one
        pack is computed again in each.
        """
        groups = self._by_prompt(rows)
        batch: list[int] = []
        held, last = 0, 0
        for group in sorted(groups, key=lambda g: (len(self.prompts[g[0]]), max(self.lengths[r] for r in g))):
            for row in group:
                more = self.lengths[row] + (len(self.prompts[row]) if last != id(self.prompts[row]) else 0)
                if batch and held + more > token_budget:
                    yield batch, self._pack(batch, device)
                    batch, held, more = [], 0, self.lengths[row] + len(self.prompts[row])
                batch.append(row)
                held, last = held + more, id(self.prompts[row])
        if batch:
            yield batch, self._pack(batch, device)

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

    def _by_prompt(self, rows: list[int]) -> list[list[int]]:
        """``rows`` grouped by prompt."""
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(id(self.prompts[row]), []).append(row)
        return list(groups.values())

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
