"""Sample groups of completions: each prompt is processed once, and its K completions grow side by side.

The random number for a token depends only on (seed, stage, step, prompt id, sample index, position), never on which
rows share a batch. So a batch that is split differently, or sampled by a resumed run, has the same tokens.
Log-probabilities and entropies are recorded during sampling; no second pass is needed for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin.draw import DrawKey, draw_tokens
from gradus.pipeline.rollouts.builtin.engines import LogitsEngine, engine_of
from gradus.pipeline.types import Prompt, Rollouts

COMPACT_AT = 0.8
"""Finished rows are dropped once at most this share of the rows is still growing, because dropping moves the cache."""


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: list[Prompt],
    group_size: int,
    options: SamplingConfig,
    draw: DrawKey | None,
    return_prompt_states: bool = False,
    on_group: Callable[[int, list[str]], None] | None = None,
) -> Rollouts:
    """Sample K completions of each prompt with the policy's present weights; greedy where ``draw`` is None.

    Prompts are started shortest first, as many as ``options.token_budget`` lets the cache hold, and further ones as
    soon as groups have ended. ``on_group`` is called for each group that has ended (the prompt's index, its K texts)
    while others are still growing. ``return_prompt_states``: also return the hidden state at the end of each prompt.
    """
    encoded = [policy.encode_prompt(p) for p in prompts]
    uniforms = None
    if draw is not None:
        streams = [draw.uniforms(prompt.id, k, options.max_tokens) for prompt in prompts for k in range(group_size)]
        uniforms = torch.from_numpy(np.stack(streams)).to(policy.device)
    engine = engine_of(policy, encoded, group_size, options.max_tokens, return_prompt_states)
    groups = _Groups(policy, encoded, group_size, options, uniforms, on_group)
    groups.grow(engine)
    return groups.rollouts(prompts)


@dataclass
class _Groups:
    """All completions of one call. Output row p * K + k is completion k of prompt p.

    One more output row takes the tokens of rows that have ended and are not dropped yet.
    """

    policy: Policy
    encoded: list[list[int]]
    group_size: int
    options: SamplingConfig
    uniforms: Tensor | None
    on_group: Callable[[int, list[str]], None] | None
    states: dict[int, Tensor] = field(default_factory=dict)
    texts: dict[int, list[str]] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    """Prompt that was started -> the number of its completions that are still growing."""

    def __post_init__(self) -> None:
        self.spare = len(self.encoded) * self.group_size
        width, device = self.options.max_tokens, self.policy.device
        self.tokens = torch.full((self.spare + 1, width), self.policy.template.pad_id, device=device)
        self.lengths = torch.zeros(self.spare + 1, dtype=torch.long, device=device)
        self.ended = torch.zeros(self.spare + 1, dtype=torch.bool, device=device)
        self.ends = torch.tensor(self.policy.template.eos_ids, device=device)
        self.record: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        """The output rows, positions, log-probabilities and entropies of each step."""

    def grow(self, engine: LogitsEngine) -> None:
        """Run until every row of every prompt has ended."""
        waiting = deque(sorted(range(len(self.encoded)), key=lambda p: (len(self.encoded[p]), p)))
        device, width = self.policy.device, self.options.max_tokens
        row = torch.zeros(0, dtype=torch.long, device=device)  # the output row of each of the engine's rows
        count = row  # tokens drawn so far
        logits: Tensor | None = None
        alive = 0
        while True:
            if waiting and (engine.refills or not len(row)) and (taken := self._next(waiting, engine)):
                first, rows = self._admit(engine, taken)
                logits = first if logits is None else torch.cat([logits, first])
                row, count = torch.cat([row, rows]), torch.cat([count, torch.zeros_like(rows)])
                alive += len(rows)
            assert logits is not None
            drawn = None if self.uniforms is None else self.uniforms[row.clamp(max=self.spare - 1), count]
            token, logprob, entropy = draw_tokens(logits, drawn, self.options)
            self.tokens[row, count] = token
            self.record.append((row, count, logprob, entropy))
            count = count + 1
            ended = (token[:, None] == self.ends).any(-1)
            finished = (ended | (count == width)) & (row != self.spare)
            if bool(finished.any()):
                row = self._finish(row, count, ended, finished)
                kept = (row != self.spare).nonzero()[:, 0]
                alive = len(kept)
                if not alive and not waiting:
                    return
                if alive <= COMPACT_AT * len(row):
                    row, count, token = row[kept], count[kept], token[kept]
                    engine.keep(kept)
            logits = engine.step(token) if alive else None

    def _next(self, waiting: deque[int], engine: LogitsEngine) -> list[int]:
        """The prompts that fit into the cache beside the growing groups; at least one where no group is growing.

        While groups are growing, half of the cache must be free, because every admission moves the whole cache.
        """
        width, budget = self.options.max_tokens, self.options.token_budget
        held = sum(engine.held(len(self.encoded[p]), width) for p, growing in self.open.items() if growing)
        if held > budget / 2:
            return []
        taken: list[int] = []
        while waiting:
            more = engine.held(len(self.encoded[waiting[0]]), width)
            if held and held + more > budget:
                break
            held += more
            taken.append(waiting.popleft())
        return taken

    def _admit(self, engine: LogitsEngine, taken: list[int]) -> tuple[Tensor, Tensor]:
        """The logits of the first token of each new row, and the output rows."""
        first, states = engine.admit([self.encoded[p] for p in taken])
        for place, p in enumerate(taken):
            self.open[p] = self.group_size
            if states is not None:
                self.states[p] = states[place].float()
        begin = torch.tensor(taken, device=first.device) * self.group_size
        rows = (begin[:, None] + torch.arange(self.group_size, device=first.device)).flatten()
        return first.repeat_interleave(self.group_size, 0), rows

    def _finish(self, row: Tensor, count: Tensor, ended: Tensor, finished: Tensor) -> Tensor:
        """Record the rows that have just finished, report the groups that have, and send the rows to the spare row."""
        done = row[finished]
        self.lengths[done] = count[finished]
        self.ended[done] = ended[finished]
        for p in (done // self.group_size).tolist():
            self.open[p] -= 1
            if self.open[p] == 0:
                rows = slice(p * self.group_size, (p + 1) * self.group_size)
                written = zip(self.tokens[rows].tolist(), self.lengths[rows].tolist(), strict=True)
                self.texts[p] = [self.policy.decode(tokens[:length]) for tokens, length in written]
                if self.on_group is not None:
                    self.on_group(p, self.texts[p])
        return torch.where(finished, self.spare, row)

    def rollouts(self, prompts: list[Prompt]) -> Rollouts:
        """All completions in the order of the prompts, cut to the longest one, on the CPU."""
        shape = (len(self.encoded), self.group_size, -1)
        lengths_PK = self.lengths[:-1].view(shape[:2]).cpu()
        longest = int(lengths_PK.max())
        rows, positions, logprobs, entropies = (torch.cat(parts) for parts in zip(*self.record, strict=True))
        recorded = []
        for values in (logprobs, entropies):
            table = values.new_zeros(self.tokens.shape)
            table[rows, positions] = values
            recorded.append(table[:-1, :longest].view(shape).cpu())
        return Rollouts(
            prompts=prompts,
            prompt_tokens=self.encoded,
            tokens_PKT=self.tokens[:-1, :longest].view(shape).cpu(),
            mask_PKT=torch.arange(longest) < lengths_PK[..., None],
            rollout_logprobs_PKT=recorded[0],
            truncated_PK=~self.ended[:-1].view(shape[:2]).cpu(),
            texts=[self.texts[p] for p in range(len(prompts))],
            entropy_PKT=recorded[1],
            prompt_states_PD=torch.stack([self.states[p] for p in range(len(prompts))]) if self.states else None,
        )
