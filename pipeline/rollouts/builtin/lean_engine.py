"""The lean engine: rows of completions that share one key-value cache, which is written and read in place.

All rows end at the same column: the newest token of a row is always in the newest column, and a row that started later,
or has a shorter prompt, has empty columns on its left. So every step writes one column of the whole cache, a sliding
window is a slice, and rows can be added and dropped at any time.

The keys and values of long prompts are kept once for the whole group, not copied to every row. One product then gives
the scores of all queries of the group, which is most of the arithmetic that long prompts cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradus.pipeline.rollouts.builtin.decoder import Decoder

BLOCK = 16
"""Columns by which the cache grows. Unused columns slow down reading, because they lie between the rows in memory."""
PREFILL = 4096
"""The most prompt tokens, with padding, that one pass processes."""
SHARE_FROM = 48
"""The length of the longest prompt from which prompts are kept once per group; below it, copies are faster."""

NONE = torch.zeros(0, dtype=torch.long)


@dataclass
class Shared:
    """The prompts that rows attend to, each kept once."""

    caches: list[Tensor]
    """Keys and values of S prompts for each block, [2, S, Hkv, L, d]; every prompt ends at the last column."""
    lengths: Tensor
    """int64 [S]: the tokens of each prompt."""
    slot: Tensor
    """int64 [R]: the prompt that a row belongs to."""
    grid: Tensor
    """int64 [S * W]: the rows of each prompt, padded with row 0 to W, the size of the largest group."""
    place: Tensor
    """int64 [R]: the place of each row in the grid."""

    @classmethod
    def of(cls, caches: list[Tensor], lengths: Tensor, slot: Tensor) -> Shared:
        """Arrange the rows by prompt; prompts without rows are dropped."""
        counts = torch.bincount(slot, minlength=len(lengths))
        if not bool(counts.all()):
            kept = counts.nonzero()[:, 0]
            longest = int(lengths[kept].max())
            caches = [cache[:, kept, :, cache.shape[3] - longest :] for cache in caches]
            slot, lengths, counts = (torch.cumsum(counts > 0, 0) - 1)[slot], lengths[kept], counts[kept]
        width, order = int(counts.max()), slot.argsort(stable=True)
        within = torch.arange(len(slot), device=slot.device) - (counts.cumsum(0) - counts)[slot[order]]
        place = torch.empty_like(slot)
        place[order] = slot[order] * width + within
        grid = torch.zeros(len(lengths) * width, dtype=torch.long, device=slot.device)
        grid[place] = torch.arange(len(slot), device=slot.device)
        return cls(caches, lengths, slot, grid, place)

    def scores(self, index: int, queries: Tensor) -> Tensor:
        """Products of queries [R, Hkv, G, d] with their prompt's keys -> [R, Hkv, G, L]."""
        keys = self.caches[index][0]
        return self._back(self._gridded(queries) @ keys.transpose(-1, -2), queries.shape[2])

    def values(self, index: int, weights: Tensor) -> Tensor:
        """The prompt's values, weighted by [R, Hkv, G, L] -> [R, Hkv, G, d]."""
        return self._back(self._gridded(weights) @ self.caches[index][1], weights.shape[2])

    def _gridded(self, rows: Tensor) -> Tensor:
        """[R, Hkv, G, x] -> [S, Hkv, W * G, x]."""
        prompts = len(self.lengths)
        return rows[self.grid].unflatten(0, (prompts, -1)).transpose(1, 2).flatten(2, 3)

    def _back(self, grid: Tensor, queries: int) -> Tensor:
        """[S, Hkv, W * G, x] -> [R, Hkv, G, x]."""
        return grid.unflatten(2, (-1, queries)).transpose(1, 2).flatten(0, 1)[self.place]


class LeanEngine:
    """Rows that grow: ``admit`` adds groups, ``step`` appends a token to every row, ``keep`` drops rows."""

    refills = True
    """Groups can be admitted while others are still growing."""

    def __init__(self, decoder: Decoder, prompts: list[list[int]], group_size: int, max_tokens: int):
        """``prompts``: all prompts that will be admitted; what depends on the longest is decided here, once."""
        decoder = decoder.fused()
        self.decoder, self.group_size = decoder, group_size
        longest = max(map(len, prompts))
        self.angles = decoder.angles(longest + max_tokens)
        windows = [window for window in decoder.windows if window is not None]
        fits = not windows or min(windows) >= longest + max_tokens
        self.shares = fits and group_size > 1 and longest >= SHARE_FROM
        self.caches: list[Tensor] = []
        """Keys and values of R rows for each block, [2, R, Hkv, C, d]; the first ``column`` columns are in use."""
        self.column = 0
        device = decoder.head.weight.device
        self.used = torch.zeros(0, dtype=torch.long, device=device)
        """int64 [R]: the number of columns that a row uses."""
        self.position = torch.zeros(0, dtype=torch.long, device=device)
        """int64 [R]: the position of the next token."""
        self.shared: Shared | None = None
        self.bias = torch.zeros(0, device=device)
        """[R, 1, 1, L + C]: 0 where a row has a token, and -inf elsewhere; the shared prompt comes first."""
        self.windowed: dict[int | None, Tensor] = {}
        """The bias for each sliding window, during the present step."""

    def held(self, prompt: int, max_tokens: int) -> int:
        """The most tokens that a group can hold in the cache."""
        return prompt * (1 if self.shares else self.group_size) + max_tokens * self.group_size

    def admit(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Add a group of rows for each prompt, after the existing rows.

        Shapes: -> logits of the first token [P, V], hidden states at the prompts' ends [P, D].
        """
        hidden, caches = self._prefill(prompts)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=hidden.device)
        slot = torch.arange(len(prompts), device=hidden.device).repeat_interleave(self.group_size)
        before = torch.arange(len(self.position), device=hidden.device)
        if self.shares:
            if self.shared is not None:
                old = self.shared
                caches = [_below([a, b]) for a, b in zip(old.caches, caches, strict=True)]
                slot, lengths = torch.cat([old.slot, slot + len(old.lengths)]), torch.cat([old.lengths, lengths])
            self.shared = Shared.of(caches, lengths, slot)
            slot = slot[len(before) :]
            self._rebuild(before, [c.new_zeros(2, len(lengths), c.shape[2], 0, c.shape[4]) for c in caches], slot)
            self.used = torch.cat([self.used, torch.zeros_like(slot)])
        else:
            self._rebuild(before, caches, slot)
            self.used = torch.cat([self.used, lengths[slot]])
        self.position = torch.cat([self.position, lengths[slot]])
        self._rebias()
        return self.decoder.logits(hidden), hidden

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except these.

        Shapes: int64 [R'].
        """
        self.used, self.position = self.used[rows], self.position[rows]
        if self.shared is not None:
            slot = self.shared.slot[rows]
            self.shared = Shared.of(self.shared.caches, self.shared.lengths, slot) if len(rows) else None
        self._rebuild(rows)
        self._rebias()

    def step(self, tokens: Tensor) -> Tensor:
        """Give every row its next token.

        Shapes: int64 [R] -> logits of the token after it [R, V].
        """
        if self.column == self.caches[0].shape[3]:
            self._rebuild(torch.arange(len(tokens), device=tokens.device))
            self._rebias()
        here = self.bias.shape[3] - self.caches[0].shape[3] + self.column
        self.bias[..., here] = 0
        self.windowed = {None: self.bias}
        for window in set(self.decoder.windows) - {None}:
            beyond = max(0, here + 1 - (window or 0))
            self.windowed[window] = self.bias.clone() if beyond else self.bias
            self.windowed[window][..., :beyond] = -torch.inf
        angles = {kind: table[self.position][:, None] for kind, table in self.angles.items()}
        hidden = self.decoder.forward(tokens, angles, self._attend)
        self.column += 1
        self.used += 1
        self.position += 1
        return self.decoder.logits(hidden)

    def _attend(self, index: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """One new token a row: its key and value join the cache, its query meets everything before it."""
        decoder, cache, here = self.decoder, self.caches[index], self.column
        cache[:, :, :, here] = keys_values.transpose(0, 1)
        # The product also makes the queries contiguous, as the ones that follow need them. Those take the whole cache,
        # empty columns included: with a part of it, MKL reads at less than half the speed.
        queries = queries.unflatten(1, (decoder.kv_heads, -1)) * decoder.scaling
        scores = queries @ cache[0].transpose(-1, -2)
        prompt = 0
        if self.shared is not None:
            of_prompt = self.shared.scores(index, queries)
            prompt, scores = of_prompt.shape[-1], torch.cat([of_prompt, scores], -1)
        if decoder.softcap is not None:
            scores = torch.tanh(scores / decoder.softcap) * decoder.softcap
        scores += self.windowed[decoder.windows[index]]
        weights = scores.softmax(-1)
        attended = weights[..., prompt:] @ cache[1]
        if self.shared is not None:
            attended += self.shared.values(index, weights[..., :prompt])
        return attended.flatten(1)

    def _rebuild(self, kept: Tensor, added: list[Tensor] | None = None, slot: Tensor = NONE) -> None:
        """Make new caches without unused columns and with room to grow.

        They hold the rows ``kept``, and a row for each ``slot``, which indexes the rows of ``added``. One block is done
        after the other, so that only one block's cache exists twice; ``added`` is emptied.
        """
        dropped = bool(self.caches) and len(kept) < self.caches[0].shape[1]  # otherwise some row uses all columns
        old = self.column if not dropped else int(self.used.max()) if len(self.used) else 0
        new = added[0].shape[3] if added is not None else 0
        columns = max(old, new)
        for index in range(len(self.decoder.blocks)):
            more = None if added is None else added.pop(0)[:, slot]
            like = self.caches[index] if more is None else more
            rows = len(kept) + (0 if more is None else len(slot))
            cache = like.new_zeros(2, rows, like.shape[2], columns + BLOCK, like.shape[4])
            if len(kept):
                source = self.caches[index]
                whole = len(kept) == source.shape[1]
                rows_of = source if whole else source.index_select(1, kept)
                cache[:, : len(kept), :, columns - old : columns] = rows_of[:, :, :, self.column - old : self.column]
            if more is not None:
                cache[:, len(kept) :, :, columns - new : columns] = more
            self.caches[index : index + 1] = [cache]
        self.column = columns

    def _rebias(self) -> None:
        """Compute the bias of all columns, which is valid until rows are added or dropped."""
        like, capacity = self.caches[0], self.caches[0].shape[3]
        own = _bias(self.used, self.column, capacity, like)
        if self.shared is not None:
            longest = self.shared.caches[0].shape[3]
            own = torch.cat([_bias(self.shared.lengths[self.shared.slot], longest, longest, like), own], -1)
        self.bias = own

    def _prefill(self, prompts: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
        """Process prompts: hidden states at their ends [P, D], and keys and values of each block [2, P, Hkv, L, d]."""
        passes = [self._read(part) for part in _passes(prompts)]
        read = [caches for _, caches in passes]
        caches = [_below([of_pass.pop(0) for of_pass in read]) for _ in self.decoder.blocks]
        return torch.cat([hidden for hidden, _ in passes]), caches

    def _read(self, prompts: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
        """One pass over prompts, padded on the left with their own first token."""
        decoder, device = self.decoder, self.position.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[p[0]] * (longest - len(p)) + p for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        column = torch.arange(longest, device=device)
        positions = (column - (longest - lengths)[:, None]).clamp(min=0)
        angles = {kind: table[positions.flatten()][:, None] for kind, table in self.angles.items()}
        real = column >= (longest - lengths)[:, None]
        back = column[:, None] - column
        caches: list[Tensor] = []

        def attend(index: int, queries: Tensor, keys_values: Tensor) -> Tensor:
            cache = keys_values.unflatten(0, (len(prompts), longest)).permute(2, 0, 3, 1, 4).contiguous()
            caches.append(cache)
            window = decoder.windows[index]
            seen = (back >= 0) if window is None else (back >= 0) & (back < window)
            # Padding attends to itself, so that it stays finite; no other token attends to it.
            mask = seen & real[:, None, None] | (back == 0)
            queries = queries.unflatten(0, (len(prompts), longest)).transpose(1, 2)
            keys, values = cache.repeat_interleave(decoder.heads // decoder.kv_heads, 2)
            if decoder.softcap is None:
                attended = torch.nn.functional.scaled_dot_product_attention(
                    queries, keys, values, attn_mask=mask, scale=decoder.scaling
                )
            else:
                scores = torch.tanh(queries @ keys.transpose(-1, -2) * decoder.scaling / decoder.softcap)
                attended = (scores * decoder.softcap).masked_fill(~mask, -torch.inf).softmax(-1) @ values
            return attended.transpose(1, 2).reshape(len(prompts) * longest, -1)

        states = decoder.forward(ids.flatten(), angles, attend).unflatten(0, (len(prompts), longest))[:, -1]
        return states, caches


def _passes(prompts: list[list[int]]) -> list[list[list[int]]]:
    """The prompts in order, cut into passes of one prompt or of at most PREFILL tokens with padding."""
    passes: list[list[list[int]]] = []
    for prompt in prompts:
        part = [*passes[-1], prompt] if passes else [prompt]
        if passes and len(part) * max(map(len, part)) <= PREFILL:
            passes[-1] = part
        else:
            passes.append([prompt])
    return passes


def _below(parts: list[Tensor]) -> Tensor:
    """Join the rows of several caches, so that all end at the last column.

    Shapes: each [2, R, Hkv, L, d] -> [2, sum of R, Hkv, largest L, d].
    """
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[3] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, width - part.shape[3], 0)) for part in parts], 1)


def _bias(used: Tensor, end: int, columns: int, like: Tensor) -> Tensor:
    """0 on the last ``used`` of the columns before ``end``, and -inf on all others.

    Shapes: int64 [R] -> [R, 1, 1, columns].
    """
    column = torch.arange(columns, device=used.device)
    empty = (column < (end - used)[:, None]) | (column >= end)
    return like.new_zeros(empty.shape).masked_fill_(empty, -torch.inf)[:, None, None]
