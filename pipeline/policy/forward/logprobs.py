"""Per-token log-probabilities and entropies of existing completions under any policy."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from gradus.pipeline.common.ranks import ALONE, Ranks
from gradus.pipeline.policy.forward import lm_head
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.forward.packing import computing, hidden_states
from gradus.pipeline.policy.forward.padded import completion_logits
from gradus.pipeline.policy.forward.rows import CompletionRows
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.types import Rollouts


def precision(device: torch.device, autocast: bool) -> contextlib.AbstractContextManager[object]:
    """The context in which matrix products have the wanted precision: bfloat16 with ``autocast``."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if autocast else contextlib.nullcontext()


def batch_logprobs(
    policy: Policy, rollouts: Rollouts, temperature: float, token_budget: int, ranks: Ranks = ALONE
) -> Tensor:
    """Log-probabilities of a batch's completions under a policy, without a gradient; each rank computes its share.

    Shapes: -> float32 [P, K, T] on the CPU, 0 outside the mask. Units: nats.
    """
    return batch_logprobs_and_entropies(policy, rollouts, temperature, token_budget, ranks, entropies=False)[0]


@torch.no_grad()
def batch_logprobs_and_entropies(
    policy: Policy,
    rollouts: Rollouts,
    temperature: float,
    token_budget: int,
    ranks: Ranks = ALONE,
    autocast: bool = False,
    entropies: bool = True,
) -> Tensor:
    """Log-probabilities as in :func:`batch_logprobs`, and the entropies of the distributions at the same positions.

    Shapes: -> float32 [2, P, K, T] on the CPU, 0 outside the mask; [1, P, K, T] without entropies. Units: nats.
    """
    rows = CompletionRows.of(rollouts)
    result_NRT = torch.zeros(1 + entropies, *rows.tokens_RT.shape)
    mine = rows.share([*range(len(rows.prompts))], ranks.rank, ranks.size)
    if can_pack(policy):
        computed = []  # what a GPU computes is copied at the end, so that the host does not wait after each pack
        for batch, pack in rows.packs(mine, token_budget, policy.device):
            with computing(policy, pack), precision(policy.device, autocast):
                states = hidden_states(policy, pack)
                found = lm_head.logprobs_from_states(policy, states, pack.targets, temperature, entropies)
            computed.append((batch, found))
        for batch, found in computed:
            part = torch.zeros(len(result_NRT), len(batch), rows.tokens_RT.shape[1])
            part[:, rows.mask_RT[batch]] = found.cpu()
            result_NRT[:, batch] = part
    else:
        for batch in rows.micro_batches(mine, token_budget):
            width = max(rows.lengths[r] for r in batch)
            tokens = rows.tokens_RT[batch, :width].to(policy.device)
            with precision(policy.device, autocast):
                logits = completion_logits(policy, [rows.prompts[r] for r in batch], tokens, temperature)
            found = lm_head.logprobs_from_logits(logits.flatten(0, 1), tokens.flatten(), entropies)
            result_NRT[:, batch, :width] = found.view(-1, *tokens.shape).cpu()
        result_NRT *= rows.mask_RT
    return ranks.sum(result_NRT).view(-1, *rollouts.tokens_PKT.shape)
