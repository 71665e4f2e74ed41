"""Whether a model can be packed: tested once, on the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.common.errors import memory_ran_out
from gradus.pipeline.policy.forward.lm_head import logprobs_from_states
from gradus.pipeline.policy.forward.packing import Pack, computing, hidden_states
from gradus.pipeline.policy.forward.padded import completion_logprobs
from gradus.pipeline.policy.policy import Policy


@torch.no_grad()
def can_pack(policy: Policy) -> bool:
    """Whether packing does not change this model's log-probabilities; tested once per model."""
    if policy.packs is None:
        policy.unpacked = _hindrance(policy)
        policy.packs = not policy.unpacked
    return policy.packs


def _hindrance(policy: Policy) -> str:
    """Why this model cannot be packed; empty where it can."""
    if type(policy.model.get_output_embeddings()) is not torch.nn.Linear:
        return "its output layer is more than a linear map"
    prompts = [policy.ordinary(range(first, first + length)) for first, length in ((1, 9), (3, 4))]
    completions = [policy.ordinary(range(first, first + length)) for first, length in ((5, 7), (2, 1), (9, 4))]
    slots = [0, 0, 1]
    pack = Pack.of(prompts, slots, completions, policy.device)
    try:
        with computing(policy, pack):
            found = logprobs_from_states(policy, hidden_states(policy, pack), pack.targets, 1.0)[0]
            if _leaks(policy, pack, own=[*range(9, 13), *range(19, 22)], predicted=4):
                return "it mixes tokens outside of attention"
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if memory_ran_out(error):
            raise
        return f"a packed pass fails with {type(error).__name__}"
    wanted = []
    for slot, completion in zip(slots, completions, strict=True):
        row = torch.tensor([completion], device=policy.device)
        wanted.append(completion_logprobs(policy, [prompts[slot]], row, 1.0)[0])
    # The model's own rounding grows with its depth and its logits: two ordinary passes over a pretrained model of 135
    # million parameters, of one row and of several, differ by 0.001 in float32 and by 2 in bfloat16.
    relative, absolute = (1e-4, 1e-4) if policy.model.dtype == torch.float32 else (0.05, 0.1)
    expected = torch.cat(wanted)
    agrees = (found - expected).norm() <= absolute + relative * expected.norm()
    return "" if agrees else "a packed pass gives other log-probabilities"


@torch.enable_grad()
def _leaks(policy: Policy, pack: Pack, own: list[int], predicted: int) -> bool:
    """Whether the last completion of a pack, of ``predicted`` tokens, depends on others than its ``own`` places.

    Where it does not, the gradient there is exactly zero, in every precision: so this finds the models that mix tokens
    outside of attention, however little it changes and however much is rounded.
    """
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, ids: Any, embedded: Tensor) -> Tensor:
        seen.append(embedded.requires_grad_())
        return embedded

    handle: Any = policy.model.get_input_embeddings().register_forward_hook(keep)
    try:
        states = hidden_states(policy, pack)[-predicted:].float()
    finally:
        handle.remove()
    # Not a plain sum, because a norm may have made that a constant.
    functional = states @ torch.arange(1.0, states.shape[-1] + 1, device=states.device)
    gradient = torch.autograd.grad(functional.sum(), seen[0])[0][0]
    others = torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
    others[own] = False
    return bool((gradient[others] != 0).any())
