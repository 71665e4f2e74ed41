"""Completions laid out without padding for one pass: first every prompt once, then every completion.

    [prompt 0][prompt 1] ...  [completion of prompt 0][another of prompt 0][completion of prompt 1] ...  [fill]

Linear layers compute real tokens only, and a prompt is computed once for its whole group, forward and backward. Only
attention needs to know which tokens see each other: a completion sees its own prompt and itself. transformers calls
the attention function that is registered here, and :func:`computing` sets the pack that the function uses.

A model is packed only if that changes nothing but rounding, which is tested once
(:func:`~gradus.pipeline.policy.forward.packable.can_pack`). A model that mixes tokens outside of attention, such as a
recurrent one, or has another kind of attention, is computed with padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from gradus.pipeline.policy.devices import sent
from gradus.pipeline.policy.forward.matmul import fill, onednn_layers
from gradus.pipeline.policy.forward.rms_norm import closed_form_norms
from gradus.pipeline.policy.policy import Policy

NAME = "gradus_packed"
"""The name under which transformers knows the attention function."""
BUCKETS = 4
"""Number of buckets, by length, into which the completions of a pack are divided for attention."""
SIMILAR = 1.25
"""If the longest completion exceeds the shortest by no more than this factor, one bucket is enough."""
LEAST_BUCKET = 8
"""Minimal number of completions in a bucket."""
ALIGNED = 16
"""The row length of a mask is a multiple of this."""


@dataclass(frozen=True)
class Bucket:
    """Completions of similar length, whose attention is computed together, padded to the longest."""

    tokens: Tensor
    """int64 [B, T], the places of each completion's tokens; padded on the right."""
    seen: Tensor
    """int64 [B, L + T], the places of the tokens that it may see: its prompt's and its own."""
    known: Tensor
    """int64 [B, 1], the number of tokens of its prompt."""
    length: int
    """L, the length of the longest prompt."""
    biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    """Cache of :meth:`bias`, which is the same in every layer."""

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[B, 1, T, L + T], 0 where a completion's token sees another token and -inf where it does not.

        ``dtype``: of the queries. A mask in the type and with the row lengths that a GPU's attention computes with is
        not copied in every layer.
        """
        kind = self.tokens.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
        if (window, dtype) not in self.biases:
            unseen = ~self._sees(window)[:, None]
            *rows, width = unseen.shape
            whole = unseen.new_zeros(*rows, width + -width % ALIGNED, dtype=dtype)
            self.biases[window, dtype] = whole[..., :width].masked_fill_(unseen, -torch.inf)
        return self.biases[window, dtype]

    def _sees(self, window: int | None) -> Tensor:
        """bool [B, T, L + T]."""
        device = self.tokens.device
        at = torch.arange(self.seen.shape[1], device=device)
        query_at = torch.arange(self.tokens.shape[1], device=device)
        real = (at < self.known) | (at >= self.length)
        mask = real[:, None] & (at - self.length <= query_at[:, None])
        if window is not None:
            # Distance in the text: the padding of shorter prompts lies between their end and the completion.
            text_at = torch.where(at < self.length, at, at - self.length + self.known)
            mask = mask & ((self.known + query_at)[..., None] - text_at[:, None] < window)
        return mask


@dataclass(frozen=True)
class Pack:
    """The places of all tokens of a pass: N tokens in all, S prompts, M predicted tokens.

    A completion's last token predicts nothing, so it is not part of the pass. For oneDNN, unused tokens are appended
    (see :func:`~gradus.pipeline.policy.forward.matmul.fill`), once for all layers.
    """

    ids: Tensor
    """int64 [N], the tokens."""
    positions: Tensor
    """int64 [N], each token's position in its own text."""
    prompts: Tensor
    """int64 [S, L], the places of each prompt's tokens; padded on the right."""
    buckets: list[Bucket]
    """The completions."""
    order: Tensor
    """int64 [N], the place of each token's attention output among those of the prompts, followed by the buckets."""
    sources: Tensor
    """int64 [M], the place of the token before each predicted token: the prompt's last one, or the completion's."""
    targets: Tensor
    """int64 [M], the predicted tokens, completion by completion."""

    @classmethod
    def of(cls, prompts: list[list[int]], slots: list[int], completions: list[list[int]], device: torch.device) -> Pack:
        """``completions[r]`` follows ``prompts[slots[r]]``."""
        ids = [token for prompt in prompts for token in prompt]
        positions = [at for prompt in prompts for at in range(len(prompt))]
        ends = list(accumulate(map(len, prompts)))
        prompt_runs = [range(end - len(prompt), end) for end, prompt in zip(ends, prompts, strict=True)]
        sources, runs = list[int](), list[range]()
        for slot, completion in zip(slots, completions, strict=True):
            run, behind = range(len(ids), len(ids) + len(completion) - 1), len(prompts[slot])
            ids += completion[:-1]
            positions += range(behind, behind + len(run))
            sources += [ends[slot] - 1, *run]
            runs.append(run)
        prompt_grid, real = _grid(prompt_runs, len(ids))
        places, buckets = [prompt_grid[real]], []
        cells = [real.flatten().nonzero()[:, 0]]
        offset = real.numel()
        for rows in _similar([len(run) for run in runs]):
            tokens, real = _grid([runs[row] for row in rows], len(ids))
            slot = torch.tensor([slots[row] for row in rows])
            known = torch.tensor([[len(prompts[slots[row]])] for row in rows])
            seen = torch.cat([prompt_grid[slot], tokens], 1)
            buckets.append(Bucket(sent(tokens, device), sent(seen, device), sent(known, device), prompt_grid.shape[1]))
            places.append(tokens[real])
            cells.append(real.flatten().nonzero()[:, 0] + offset)
            offset += real.numel()
        more = fill(len(ids), device)
        ids += [0] * more
        positions += [0] * more
        order = torch.zeros(len(ids), dtype=torch.long)
        order[torch.cat(places)] = torch.cat(cells)
        targets = [token for completion in completions for token in completion]
        flat = [sent(torch.tensor(each, dtype=torch.long), device) for each in (ids, positions, sources, targets)]
        return cls(flat[0], flat[1], sent(prompt_grid, device), buckets, sent(order, device), flat[2], flat[3])

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """The attention of every token over its own prompt and completion.

        Shapes: queries [N, H, d], keys and values [N, Hkv, d] -> [N, H, d].
        """

        def attended(at: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
            return _attention(_taken(queries, at), _taken(keys, seen), _taken(values, seen), mask, scale)

        mask = None if window is None else _causal(self.prompts.shape[1], window, queries)
        outputs = [attended(self.prompts, self.prompts, mask)]
        for bucket in self.buckets:
            outputs.append(attended(bucket.tokens, bucket.seen, bucket.bias(window, queries.dtype)))
        return torch.cat([output.flatten(0, 1) for output in outputs]).index_select(0, self.order)


_current: dict[int, Pack] = {}
"""id of a model's configuration -> the pack that the model computes. The key is not the thread: with ``async`` two
models compute at the same time, and autograd may recompute layers in a thread of its own."""


@contextlib.contextmanager
def computing(policy: Policy, pack: Pack) -> Iterator[None]:
    """Within this block, the model's attention follows the pack, in forward and in backward passes."""
    config = policy.model.config
    usual = config._attn_implementation
    _current[id(config)] = pack
    config._attn_implementation = NAME
    try:
        with onednn_layers(policy.model), closed_form_norms(policy.model):
            yield
    finally:
        config._attn_implementation = usual
        del _current[id(config)]


def hidden_states(policy: Policy, pack: Pack) -> Tensor:
    """The hidden states that predict the completions' tokens. Call it within :func:`computing`.

    Shapes: -> [M, D].
    """
    base: Any = policy.model.base_model
    output = base(input_ids=pack.ids[None], position_ids=pack.positions[None], attention_mask=None, use_cache=False)
    return output.last_hidden_state[0, pack.sources]


def _similar(lengths: list[int]) -> list[list[int]]:
    """Row numbers in groups of similar length, as a group is padded to its longest row; without empty rows."""
    rows = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: (lengths[row], row))
    if rows and lengths[rows[-1]] <= SIMILAR * lengths[rows[0]]:
        return [rows]
    size = max(LEAST_BUCKET, -(-len(rows) // BUCKETS))
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _grid(runs: list[range], places: int) -> tuple[Tensor, Tensor]:
    """Runs of the ``places`` of a pass as rows, padded on the right, and which cells are not padding.

    Padding takes the places that follow: with one and the same place, a GPU would add up the gradients of all padding,
    which are zero, one after the other.

    Shapes: -> int64 [B, W], bool [B, W].
    """
    width, starts = torch.arange(max(map(len, runs))), torch.tensor([run.start for run in runs])[:, None]
    return (starts + width) % places, width < torch.tensor([len(run) for run in runs])[:, None]


def _taken(states: Tensor, places: Tensor) -> Tensor:
    """states[places], with a faster gradient than that of indexing."""
    return states.index_select(0, places.flatten()).unflatten(0, places.shape)


def _causal(length: int, window: int, like: Tensor) -> Tensor:
    """bool [1, 1, L, L], true where a token sees another at most ``window`` - 1 before it."""
    at = torch.arange(length, device=like.device)
    back = at[:, None] - at
    return ((back >= 0) & (back < window))[None, None]


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Shapes: [B, Q, H, d], [B, L, Hkv, d], a mask as PyTorch takes it, [B, 1, Q, L], or causal where None
    -> [B, Q, H, d]."""
    queries, keys, values = (states.transpose(1, 2) for states in (queries, keys, values))
    if (repeated := queries.shape[1] // keys.shape[1]) > 1:
        keys, values = (states.repeat_interleave(repeated, 1) for states in (keys, values))
    return torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale
    ).transpose(1, 2)


def _packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls. Shapes: [1, H, N, d] -> [1, N, H, d]."""
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise NotImplementedError("attention scores are modified before their softmax")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window or getattr(module, "sliding_window", None)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    return _current[id(module.config)].attend(queries, keys, values, scale, window)[None], None


AttentionInterface.register(NAME, _packed_attention)
