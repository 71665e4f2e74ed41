"""Attention of completions over a prompt that they share, without a copy of the prompt for each of them.

A completion's token attends to its prompt and to its own past. Each is a plain attention of its own: all of a group's
tokens against the one prompt, without a mask, and each completion against itself. Two softmaxes over parts of a row are
joined exactly by their normalisers Z:

    out = (Z_prompt out_prompt + Z_own out_own) / (Z_prompt + Z_own)

and the gradient of either part is what the kernel's backward pass gives for the joined output and normaliser, since a
weight is exp(score) / (Z_prompt + Z_own) wherever the key is. So the keys and values of a long prompt are read, and their
gradients added up, once a group. Source: the joining is that of ring attention (arXiv 2310.01889).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

NEVER = 1e30
"""Logarithm of a normaliser that makes every weight zero."""


@dataclass(frozen=True)
class Groups:
    """Which tokens attend together; ``first`` is the first token behind all prompts, where completions begin."""

    first: int
    shared: list[tuple[slice, slice]]
    """A prompt's tokens, and those of all its completions."""
    own: list[tuple[Tensor, Tensor, Tensor]]
    """Completions of similar length: int64 [B, T] their tokens, int64 [n] the cells that are not padding, and bool
    [B, T], true where padding is."""


def attend_shared(queries: Tensor, keys: Tensor, values: Tensor, groups: Groups, scale: float) -> Tensor:
    """What the completions' tokens attend to.

    Shapes: all [N, H, d], prompts first -> [N - first, H, d].
    """
    return _Shared.apply(queries, keys, values, groups, scale)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, groups: Groups, scale: float) -> Tensor:
        prompt = queries.new_empty(queries[groups.first :].shape)
        own = torch.empty_like(prompt)
        prompt_z, own_z = (prompt.new_empty(prompt.shape[:2], dtype=torch.float32) for _ in range(2))
        for seen, readers in groups.shared:
            out, z = _kernel(*_heads(queries[readers], keys[seen], values[seen]), 0.0, False, scale=scale)
            here = slice(readers.start - groups.first, readers.stop - groups.first)
            prompt[here], prompt_z[here] = out[0].transpose(0, 1), z[0].t()
        for tokens, cells, _ in groups.own:
            out, z = _kernel(*(_taken(part, tokens) for part in (queries, keys, values)), 0.0, True, scale=scale)
            at = tokens.flatten()[cells] - groups.first
            own[at] = out.transpose(1, 2).flatten(0, 1)[cells]
            own_z[at] = z.transpose(1, 2).flatten(0, 1)[cells]
        both_z = torch.logaddexp(prompt_z, own_z)
        joined = prompt.mul_((prompt_z - both_z).exp_()[..., None])
        joined.add_(own.mul_((own_z - both_z).exp_()[..., None]))
        ctx.save_for_backward(queries, keys, values, joined, both_z)
        ctx.groups, ctx.scale = groups, scale
        return joined

    @staticmethod
    def backward(ctx: Any, by_joined: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        queries, keys, values, joined, both_z = ctx.saved_tensors
        groups: Groups = ctx.groups
        found = [torch.zeros_like(part) for part in (queries, keys, values)]
        for seen, readers in groups.shared:
            here = slice(readers.start - groups.first, readers.stop - groups.first)
            asked, *read = _heads(queries[readers], keys[seen], values[seen])
            by_out, out = _heads(by_joined[here], joined[here])
            parts = _kernel_backward(by_out, asked, *read, out, both_z[here].t()[None], 0.0, False, scale=ctx.scale)
            for total, part, where in zip(found, parts, (readers, seen, seen), strict=True):
                total[where] += part[0].transpose(0, 1)
        for tokens, cells, padding in groups.own:
            at = (tokens - groups.first).clamp(min=0)
            by_out = _taken(by_joined, at).masked_fill(padding[:, None, :, None], 0.0)
            z = both_z[at].transpose(1, 2).masked_fill(padding[:, None], NEVER)
            inputs = [_taken(part, tokens) for part in (queries, keys, values)]
            parts = _kernel_backward(by_out, *inputs, _taken(joined, at), z, 0.0, True, scale=ctx.scale)
            real = tokens.flatten()[cells]
            for total, part in zip(found, parts, strict=True):
                total[real] += part.transpose(1, 2).flatten(0, 1)[cells]
        return (*found, None, None)


def _heads(*parts: Tensor) -> list[Tensor]:
    """[n, H, d] -> [1, H, n, d]."""
    return [part.transpose(0, 1)[None] for part in parts]


def _taken(states: Tensor, places: Tensor) -> Tensor:
    """[n, H, d] at int64 [B, T] -> [B, H, T, d]."""
    return states.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
