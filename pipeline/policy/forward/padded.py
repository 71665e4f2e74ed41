"""Log-probabilities, logits and hidden states of completions by an ordinary padded pass through the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.policy.policy import Policy


def completion_logprobs(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor, temperature: float) -> Tensor:
    """log pi(token | everything before it) of R completions; differentiable.

    Prompts are padded on the left, so all completions begin at the same column and only T+1 columns of logits exist.

    Shapes: R prompts of any length, tokens int64 [R, T] right-padded -> float32 [R, T]; the values on padding are
    meaningless. Units: nats, of the temperature-scaled policy.
    """
    tokens_RT = tokens_RT.to(policy.device)
    return target_logprobs(completion_logits(policy, prompts, tokens_RT, temperature), tokens_RT)


def target_logprobs(logits_RTV: Tensor, tokens_RT: Tensor) -> Tensor:
    """log pi of each token; differentiable. Shapes: [R, T, V], int64 [R, T] -> float32 [R, T]."""
    return -torch.nn.functional.cross_entropy(logits_RTV.transpose(1, 2), tokens_RT, reduction="none")


def entropies(logits_RTV: Tensor) -> Tensor:
    """The entropies of the distributions, in nats; differentiable. Shapes: [R, T, V] -> float32 [R, T]."""
    logprobs = logits_RTV.log_softmax(-1).clamp(min=-1e30)
    return -(logprobs.exp() * logprobs).sum(-1)


def completion_logits(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor, temperature: float) -> Tensor:
    """The temperature-scaled logits of the distributions at the tokens of R completions; differentiable.

    Shapes: R prompts of any length, tokens int64 [R, T] right-padded, on the policy's device -> float32 [R, T, V].
    """
    inputs, width = _padded_inputs(policy, prompts, tokens_RT), tokens_RT.shape[1]
    if "logits_to_keep" in policy.forward_options:
        inputs["logits_to_keep"] = width + 1
    logits = policy.model(**inputs, use_cache=False).logits[:, -width - 1 : -1].float()
    return logits / temperature if temperature != 1.0 else logits


def completion_states(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor) -> Tensor:
    """The hidden states that predict the tokens of R completions; differentiable.

    Shapes: R prompts of any length, tokens int64 [R, T] right-padded -> [R, T, D].
    """
    base: Any = policy.model.base_model
    inputs = _padded_inputs(policy, prompts, tokens_RT.to(policy.device))
    return base(**inputs, use_cache=False).last_hidden_state[:, -tokens_RT.shape[1] - 1 : -1]


def left_pad(sequences: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of sequences that all end at the last column.

    Shapes: R sequences -> int64 [R, L], int64 [R, L].
    """
    length = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (length - len(s)) + s for s in sequences], device=device)
    mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask


def _padded_inputs(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor) -> dict[str, Any]:
    ids, mask = left_pad(prompts, policy.template.pad_id, policy.device)
    # Padding on the right needs no mask: in causal attention, real tokens do not see it.
    inputs: dict[str, Any] = {
        "input_ids": torch.cat([ids, tokens_RT], dim=1),
        "attention_mask": torch.cat([mask, mask.new_ones(tokens_RT.shape)], dim=1),
    }
    if "position_ids" in policy.forward_options:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return inputs
