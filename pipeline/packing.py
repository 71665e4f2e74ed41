"""Completions laid out without padding for one pass: each prompt once, then every completion behind it.

    [prompt 0][prompt 1] ...  [completion of prompt 0][another of prompt 0][completion of prompt 1] ...

Linear layers see real tokens only, and a prompt is computed once for its whole group, forward and backward. Only
attention has to know who sees whom: a completion sees its own prompt and itself. transformers calls the attention
function that is registered here; what it must know, the pack that is being computed, is set around the pass.

A model is packed only where that gives its own log-probabilities, which is tried once (:func:`can_pack`): one that
mixes tokens outside of attention, such as a recurrent one, or attends in another way, is computed padded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from pipeline.policy import Policy, completion_logprobs

NAME = "gradus_packed"


@dataclass(frozen=True)
class Pack:
    """Which token is where. N tokens in all, S prompts, R completions, M predicted tokens.

    A completion's last token predicts nothing, so it is not part of the pass.
    """

    ids: Tensor
    """int64 [N]."""
    positions: Tensor
    """int64 [N], a token's position in its own text."""
    prompts: Tensor
    """int64 [S, L], where each prompt's tokens are; filled up on the right with 0."""
    completions: Tensor
    """int64 [R, T], where each completion's tokens are; filled up on the right with 0."""
    lengths: Tensor
    """int64 [S], tokens of each prompt."""
    slot: Tensor
    """int64 [R], the prompt of each completion."""
    order: Tensor
    """int64 [N], where the packed tokens are in [prompts, completions] flattened."""
    sources: Tensor
    """int64 [M], where the token before each predicted token is: the prompt's last or the completion's own."""
    targets: Tensor
    """int64 [M], the predicted tokens, completion by completion."""

    @classmethod
    def of(cls, prompts: list[list[int]], slots: list[int], completions: list[list[int]], device: torch.device) -> Pack:
        """``completions[r]`` follows ``prompts[slots[r]]``; completions of one prompt stand together."""
        ids = [token for prompt in prompts for token in prompt]
        positions = [at for prompt in prompts for at in range(len(prompt))]
        starts = _starts([len(prompt) for prompt in prompts])
        sources, places, begin = [], [], len(ids)
        for slot, completion in zip(slots, completions, strict=True):
            own, behind = range(begin, begin + len(completion) - 1), len(prompts[slot])
            ids += completion[:-1]
            positions += range(behind, behind + len(own))
            sources += [starts[slot] + behind - 1, *own]
            places.append(own)
            begin += len(own)
        prompt_places = [range(start, start + len(prompt)) for start, prompt in zip(starts, prompts, strict=True)]
        prompt_grid, completion_grid = _grid(prompt_places), _grid(places)
        inside = torch.cat([_inside(prompt_places).flatten(), _inside(places).flatten()])
        order = inside.nonzero()[:, 0]

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            ids=tensor(ids),
            positions=tensor(positions),
            prompts=prompt_grid.to(device),
            completions=completion_grid.to(device),
            lengths=tensor([len(prompt) for prompt in prompts]),
            slot=tensor(slots),
            order=order.to(device),
            sources=tensor(sources),
            targets=tensor([token for completion in completions for token in completion]),
        )

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """Every token's attention over its own prompt and completion.

        Shapes: queries [N, H, d], keys and values [N, Hkv, d] -> [N, H, d].
        """
        outputs = [_attention(queries[self.prompts], keys[self.prompts], values[self.prompts], None, scale, window)]
        if self.completions.shape[1]:
            before, own = self.prompts[self.slot], self.completions
            length, width = before.shape[1], own.shape[1]
            at = torch.arange(length + width, device=queries.device)
            known = self.lengths[self.slot][:, None]
            real = (at < known) | (at >= length)
            query_at, key_at = torch.arange(width, device=queries.device), at - length
            causal = key_at <= query_at[:, None]
            mask = real[:, None] & causal
            if window is not None:
                # Distance in the text: prompts are filled up between their end and the completion's first token.
                text_at = torch.where(at < length, at, at - length + known)
                mask = mask & ((known + query_at)[..., None] - text_at[:, None] < window)
            seen = torch.cat([before, own], 1)
            outputs.append(_attention(queries[own], keys[seen], values[seen], mask[:, None], scale, None))
        return torch.cat([output.flatten(0, 1) for output in outputs])[self.order]


def _attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, window: int | None
) -> Tensor:
    """Shapes: [B, Q, H, d], [B, L, Hkv, d], mask bool [B, 1, Q, L] or causal where None -> [B, Q, H, d]."""
    if mask is None and window is not None and window < queries.shape[1]:
        at = torch.arange(queries.shape[1], device=queries.device)
        back = at[:, None] - at
        mask = (back >= 0) & (back < window)
    repeated = queries.shape[2] // keys.shape[2]
    keys, values = (
        x.transpose(1, 2).repeat_interleave(repeated, 1) if repeated > 1 else x.transpose(1, 2) for x in (keys, values)
    )
    return torch.nn.functional.scaled_dot_product_attention(
        queries.transpose(1, 2), keys, values, attn_mask=mask, is_causal=mask is None, scale=scale
    ).transpose(1, 2)


_current: list[Pack] = []
"""The pack that is being computed, if any."""


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
    """What transformers calls: [1, H, N, d] -> [1, N, H, d]."""
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise NotImplementedError("scores are changed before their softmax")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window or getattr(module, "sliding_window", None)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    return _current[-1].attend(queries, keys, values, scale, window)[None], None


AttentionInterface.register(NAME, _packed_attention)


@contextlib.contextmanager
def computing(policy: Policy, pack: Pack) -> Iterator[None]:
    """The model attends as this pack says, in forward and in backward passes."""
    config = policy.model.config
    usual = config._attn_implementation
    _current.append(pack)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
        _current.pop()


def hidden_states(policy: Policy, pack: Pack) -> Tensor:
    """The states that predict the completions' tokens; only while :func:`computing` the pack.

    Shapes: -> [M, D].
    """
    base: Any = policy.model.base_model
    output = base(input_ids=pack.ids[None], position_ids=pack.positions[None], attention_mask=None, use_cache=False)
    return output.last_hidden_state[0, pack.sources]


@torch.no_grad()
def can_pack(policy: Policy) -> bool:
    """Whether this model's packed log-probabilities are its own; found once."""
    if policy.packs is None:
        policy.packs = _agrees(policy)
    return policy.packs


def _agrees(policy: Policy) -> bool:
    from pipeline.head import logprobs  # it needs nothing of this module, but a policy's head

    vocabulary = int(policy.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    prompts = [[at % vocabulary for at in range(first, first + length)] for first, length in ((1, 9), (3, 4))]
    completions = [
        [at % vocabulary for at in range(first, first + length)] for first, length in ((5, 7), (2, 1), (9, 4))
    ]
    slots = [0, 0, 1]
    pack = Pack.of(prompts, slots, completions, policy.device)
    try:
        with computing(policy, pack):
            found = logprobs(policy, hidden_states(policy, pack), pack.targets, 1.0)
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError):
        return False
    wanted = []
    for slot, completion in zip(slots, completions, strict=True):
        row = torch.tensor([completion], device=policy.device)
        wanted.append(completion_logprobs(policy, [prompts[slot]], row, 1.0)[0])
    tolerance = 1e-4 if policy.model.dtype == torch.float32 else 0.1
    return bool((found - torch.cat(wanted)).abs().max() <= tolerance)


def _starts(lengths: list[int]) -> list[int]:
    """Where each of some runs of these lengths begins."""
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts


def _grid(places: list[range]) -> Tensor:
    """Runs of places as rows, filled up on the right with 0."""
    width = max(map(len, places), default=0)
    return torch.tensor([[*run, *[0] * (width - len(run))] for run in places], dtype=torch.long).view(
        len(places), width
    )


def _inside(places: list[range]) -> Tensor:
    """Which cells of :func:`_grid` hold a place."""
    width = max(map(len, places), default=0)
    return torch.arange(width) < torch.tensor([len(run) for run in places])[:, None]
