"""Sample groups of completions: each prompt is processed once, and its K completions grow side by side.

The random number for a token depends only on (seed, stage, step, prompt id, sample index, position), never on which
rows share a batch. So a batch that is split differently, or sampled by a resumed run, has the same tokens.
Log-probabilities and entropies are recorded during sampling; no second pass is needed for them.
"""

from __future__ import annotations

import itertools
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
from gradus.pipeline.rollouts.builtin.limits import Limits
from gradus.pipeline.types import Prompt, Rollouts

COMPACT_AT = 0.8
"""Finished rows are dropped once at most this share of the rows is still growing, because dropping moves the cache."""
LOOK_EVERY = 8
"""Steps from one look at which rows have ended to the next, where a look makes the host wait for the device."""


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
        self.limits = Limits(self.policy, self.options)
        self.stopped = torch.zeros(self.spare + 1, dtype=torch.long, device=device)
        """The length at which a stop text has ended an output row; 0 where none has."""
        self.record: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        """The output rows, positions, log-probabilities and entropies of each step."""

    def grow(self, engine: LogitsEngine) -> None:
        """Run until every row of every prompt has ended.

        At a look, rows that have ended since the last one are reported. Rows that have ended are in the engine until it
        drops them, at the latest when a row that began with them would be longer than allowed.
        """
        waiting = deque(sorted(range(len(self.encoded)), key=lambda p: (len(self.encoded[p]), p)))
        device, width = self.policy.device, self.options.max_tokens
        every = 1 if device.type == "cpu" else LOOK_EVERY
        row = torch.zeros(0, dtype=torch.long, device=device)  # the output row of each of the engine's rows
        known = count = row  # the output rows at the last look; tokens drawn so far
        logits: Tensor | None = None
        longest_at: set[int] = set()  # the steps at which the rows that begin together reach their greatest length
        for step in itertools.count():
            if waiting and (engine.refills or not len(row)) and (taken := self._next(waiting, engine)):
                first, rows = self._admit(engine, taken)
                logits = first if logits is None else torch.cat([logits, first])
                row, known = torch.cat([row, rows]), torch.cat([known, rows])
                count = torch.cat([count, torch.zeros_like(rows)])
                longest_at.add(step + width - 1)
            assert logits is not None
            drawn = None if self.uniforms is None else self.uniforms[row.clamp(max=self.spare - 1), count]
            forbidden = self.limits.forbidden(count, logits.shape[-1])
            token, logprob, entropy = draw_tokens(logits, drawn, self.options, forbidden)
            self.tokens[row, count] = token
            self.record.append((row, count, logprob, entropy))
            count = count + 1
            row = torch.where(self._ended(row, count, token) | (count == width), self.spare, row)
            full = step in longest_at
            if (full or step % every == 0) and bool((row != known).any() or (full and (count == width).any())):
                self._finish(known[row != known])
                kept = (row != self.spare).nonzero()[:, 0]
                if not len(kept) and not waiting:
                    return
                if len(kept) <= COMPACT_AT * len(row) or (full and bool((count == width).any())):
                    row, count, token = row[kept], count[kept], token[kept]
                    engine.keep(kept)
                known = row
            logits = engine.step(token) if len(row) else None

    def _ended(self, row: Tensor, count: Tensor, token: Tensor) -> Tensor:
        """Whether the token that each row has just drawn ends it. Shapes: int64 [R] each -> bool [R]."""
        ended = (token[:, None] == self.limits.ends).any(-1)
        if not self.limits.stop:
            return ended
        stopped = self.limits.stopped(self.tokens, row, count)
        self.stopped[row[stopped]] = count[stopped]
        return ended | stopped

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

    def _finish(self, done: Tensor) -> None:
        """Count the output rows that have ended, and report the groups that have."""
        for p in (done // self.group_size).tolist():
            self.open[p] -= 1
            if self.open[p] == 0:
                group = slice(p * self.group_size, (p + 1) * self.group_size)
                written = self.tokens[group].cpu()
                lengths = self._lengths(written, self.stopped[group])[0].tolist()
                rows = zip(written.tolist(), lengths, strict=True)
                self.texts[p] = [self.policy.decode(tokens[:length]) for tokens, length in rows]
                if self.on_group is not None:
                    self.on_group(p, self.texts[p])

    def _lengths(self, tokens_RT: Tensor, stopped_R: Tensor) -> tuple[Tensor, Tensor]:
        """The length of complete rows, and whether an end token or a stop text ended them.

        Shapes: int64 [R, max_tokens] on the CPU, int64 [R] -> int64 [R], bool [R].
        """
        stopped_R = stopped_R.cpu()
        ends_RT = torch.isin(tokens_RT, torch.tensor(self.policy.template.eos_ids))
        ended_R = ends_RT.any(-1)
        lengths_R = torch.where(ended_R, ends_RT.int().argmax(-1) + 1, tokens_RT.shape[1])
        return torch.where(stopped_R > 0, stopped_R, lengths_R), ended_R | (stopped_R > 0)

    def rollouts(self, prompts: list[Prompt]) -> Rollouts:
        """All completions in the order of the prompts, cut to the longest one, on the CPU."""
        shape = (len(self.encoded), self.group_size, -1)
        tokens = self.tokens[:-1].cpu()
        lengths_PK, ended_PK = (found.view(shape[:2]) for found in self._lengths(tokens, self.stopped[:-1]))
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
            tokens_PKT=tokens[:, :longest].reshape(shape),
            mask_PKT=torch.arange(longest) < lengths_PK[..., None],
            rollout_logprobs_PKT=recorded[0],
            truncated_PK=~ended_PK,
            texts=[self.texts[p] for p in range(len(prompts))],
            entropy_PKT=recorded[1],
            prompt_states_PD=torch.stack([self.states[p] for p in range(len(prompts))]) if self.states else None,
        )
