"""Groups of completions: each prompt is read once, and its K completions grow side by side.

The random draw of a token depends only on (seed, stage, step, prompt id, sample index, position), never on which rows
share a batch, so that a batch split differently, or a run resumed, draws the same tokens. Log-probabilities and
entropies are recorded while sampling; no second pass is needed for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from pipeline.config import SamplingConfig
from pipeline.policy import Policy, left_pad
from pipeline.types import Prompt, Rollouts

COMPACT_AT = 0.8
"""Finished rows leave once this share of the batch or less is still growing; moving the cache has a price too."""


@dataclass(frozen=True)
class DrawKey:
    """What the random numbers of a batch depend on besides prompt, sample and position."""

    seed: int
    stage: str
    step: int

    def uniforms(self, prompt_id: str, index: int, count: int) -> np.ndarray:
        """``count`` numbers in [0, 1), a counter-based stream of their own for each completion."""
        text = f"{self.seed}|{self.stage}|{self.step}|{prompt_id}|{index}"
        key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32)


@dataclass
class _Growing:
    """The completions of one sampling batch; row r of every tensor is one completion."""

    tokens: Tensor
    logprobs: Tensor
    entropy: Tensor
    lengths: Tensor
    ended: Tensor


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: list[Prompt],
    group_size: int,
    options: SamplingConfig,
    draw: DrawKey | None,
    want_states: bool = False,
    on_group: Callable[[int, list[str]], None] | None = None,
) -> Rollouts:
    """K completions of each prompt under the policy as it is now; greedy where ``draw`` is None.

    Prompts are sorted by length and sampled in batches bounded by ``options.token_budget``. ``on_group`` is called in
    this thread with (index of the prompt, its K texts) once all completions of that prompt have ended, while others
    still grow; it must return quickly, and what it raises ends the sampling.
    """
    encoded = [policy.encode_prompt(p.question) for p in prompts]
    done: dict[int, tuple[_Growing, Tensor | None]] = {}
    for chunk in _chunks(encoded, group_size, options):
        uniforms = None
        if draw is not None:
            streams = [draw.uniforms(prompts[p].id, k, options.max_tokens) for p in chunk for k in range(group_size)]
            uniforms = torch.from_numpy(np.stack(streams)).to(policy.device)
        grown, states = _grow(policy, [encoded[p] for p in chunk], group_size, options, uniforms, want_states)
        for row, p in enumerate(chunk):
            rows = slice(row * group_size, (row + 1) * group_size)
            part = _Growing(*(getattr(grown, f)[rows] for f in ("tokens", "logprobs", "entropy", "lengths", "ended")))
            done[p] = part, None if states is None else states[row]
            if on_group is not None:
                on_group(p, _texts(policy, part))
    return _assemble(policy, prompts, encoded, [done[p] for p in range(len(prompts))])


def _texts(policy: Policy, group: _Growing) -> list[str]:
    """The completions of one prompt, decoded."""
    rows = zip(group.tokens.tolist(), group.lengths.tolist(), strict=True)
    return [policy.decode(tokens[:length]) for tokens, length in rows]


def _chunks(encoded: list[list[int]], group_size: int, options: SamplingConfig) -> list[list[int]]:
    """Prompt indices, shortest first, in batches whose cache stays within the token budget (one prompt at least)."""
    chunks: list[list[int]] = []
    for p in sorted(range(len(encoded)), key=lambda p: (len(encoded[p]), p)):
        held = (len(encoded[p]) + options.max_tokens) * group_size * (len(chunks[-1]) + 1 if chunks else 1)
        if chunks and held <= options.token_budget:
            chunks[-1].append(p)
        else:
            chunks.append([p])
    return chunks


def _grow(
    policy: Policy,
    prompts: list[list[int]],
    group_size: int,
    options: SamplingConfig,
    uniforms: Tensor | None,
    want_states: bool,
) -> tuple[_Growing, Tensor | None]:
    """Prefill once a prompt, copy its cache to the group, then one token a row and step until every row has ended."""
    model, device, width = policy.model, policy.device, options.max_tokens
    ids, mask = left_pad(prompts, policy.template.pad_id, device)
    cache = DynamicCache(config=model.config)
    output = _forward(policy, ids, mask, cache, hidden=want_states)
    states = output.hidden_states[-1][:, -1].float() if want_states else None
    logits = output.logits[:, -1]
    if group_size > 1:
        cache.batch_repeat_interleave(group_size)
        logits, mask = logits.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)

    rows = len(logits)
    grown = _Growing(
        tokens=torch.full((rows, width), policy.template.pad_id, device=device),
        logprobs=torch.zeros(rows, width, device=device),
        entropy=torch.zeros(rows, width, device=device),
        lengths=torch.zeros(rows, dtype=torch.long, device=device),
        ended=torch.zeros(rows, dtype=torch.bool, device=device),
    )
    ends = torch.tensor(policy.template.eos_ids, device=device)
    row_ids, live = torch.arange(rows, device=device), torch.ones(rows, dtype=torch.bool, device=device)
    for position in range(width):
        drawn = None if uniforms is None else uniforms[row_ids, position]
        token, logprob, entropy = draw_tokens(logits, drawn, options)
        writing = row_ids[live]
        grown.tokens[writing, position] = token[live]
        grown.logprobs[writing, position] = logprob[live]
        grown.entropy[writing, position] = entropy[live]
        grown.lengths[writing] += 1
        ended_now = live & torch.isin(token, ends)
        grown.ended[row_ids[ended_now]] = True
        live = live & ~ended_now
        alive = int(live.sum())
        if alive == 0 or position == width - 1:
            break
        if alive <= COMPACT_AT * len(row_ids):
            kept = live.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            row_ids, mask, token, live = row_ids[kept], mask[kept], token[kept], live[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = _forward(policy, token[:, None], mask, cache).logits[:, -1]
    return grown, states


def _forward(policy: Policy, ids: Tensor, mask: Tensor, cache: DynamicCache, hidden: bool = False):
    """One pass over new tokens behind what the cache holds; logits of the last column only."""
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if "position_ids" in policy.forward_options:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in policy.forward_options:
        inputs["logits_to_keep"] = 1
    return policy.model(**inputs, output_hidden_states=hidden)


def draw_tokens(logits_RV: Tensor, uniforms_R: Tensor | None, options: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at the row's uniform number; greedy without one.

    Shapes: [R, V], [R] -> tokens int64 [R], their log-probabilities float32 [R], entropies float32 [R].
    Units: nats, of the temperature-scaled distribution before top-k and top-p: the policy that training sees.
    """
    logprobs_RV = torch.log_softmax(logits_RV.float() / options.temperature, dim=-1)
    probs_RV = logprobs_RV.exp()
    entropy_R = -(probs_RV * logprobs_RV.clamp(min=-1e4)).sum(-1)
    best_R = logprobs_RV.argmax(-1)
    if uniforms_R is None:
        token_R = best_R
    else:
        cdf_RV = truncate(probs_RV, options).cumsum(-1)
        target_R1 = uniforms_R[:, None] * cdf_RV[:, -1:]
        token_R = torch.searchsorted(cdf_RV, target_R1, right=True)[:, 0]
        # Rounding can put the target at the very end of the distribution; nothing lies beyond it.
        token_R = torch.where(token_R < cdf_RV.shape[-1], token_R, best_R)
    return token_R, logprobs_RV.gather(-1, token_R[:, None])[:, 0], entropy_R


def truncate(probs_RV: Tensor, options: SamplingConfig) -> Tensor:
    """Probabilities with everything outside top-k and top-p set to zero; not renormalised.

    Edge: the most probable token always stays; ties at the border of top-p are kept by their order in a stable sort.
    """
    vocabulary = probs_RV.shape[-1]
    if 0 < options.top_k < vocabulary:
        threshold_R1 = probs_RV.topk(options.top_k, dim=-1).values[:, -1:]
        probs_RV = probs_RV.masked_fill(probs_RV < threshold_R1, 0.0)
    if options.top_p < 1:
        sorted_RV, index_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
        before_RV = sorted_RV.cumsum(-1) - sorted_RV
        dropped_RV = before_RV >= options.top_p * sorted_RV.sum(-1, keepdim=True)
        probs_RV = torch.zeros_like(probs_RV).scatter(-1, index_RV, sorted_RV.masked_fill(dropped_RV, 0.0))
    return probs_RV


def _assemble(
    policy: Policy, prompts: list[Prompt], encoded: list[list[int]], parts: list[tuple[_Growing, Tensor | None]]
) -> Rollouts:
    """The parts in the prompts' order, cut to the longest completion, on the CPU with its text."""
    lengths = torch.stack([part.lengths for part, _ in parts]).cpu()
    longest = int(lengths.max())
    fields = {
        name: torch.stack([getattr(part, name)[:, :longest] for part, _ in parts]).cpu()
        for name in ("tokens", "logprobs", "entropy")
    }
    ended = torch.stack([part.ended for part, _ in parts]).cpu()
    texts = [
        [policy.decode(row[:n]) for row, n in zip(group, ns, strict=True)]
        for group, ns in zip(fields["tokens"].tolist(), lengths.tolist(), strict=True)
    ]
    states = [state for _, state in parts if state is not None]
    return Rollouts(
        prompts=prompts,
        prompt_tokens=encoded,
        tokens_PKT=fields["tokens"],
        mask_PKT=torch.arange(longest) < lengths[..., None],
        rollout_logprobs_PKT=fields["logprobs"],
        truncated_PK=~ended,
        texts=texts,
        entropy_PKT=fields["entropy"],
        prompt_states_PD=torch.stack(states) if states else None,
    )
