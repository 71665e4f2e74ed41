"""Small models of every kind that the samplers treat in a way of its own, and a draw to sample them with."""

from __future__ import annotations

from typing import Any

import torch
from tiny_policies import TEXTS, tiny_policy

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import DrawKey

DRAW = DrawKey(seed=0, stage="a", step=1)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "tied": {"tie_word_embeddings": True},
    "sliding-window": {"model_type": "mistral", "sliding_window": 6},
    "learned-positions": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "hidden_size": None,
        "intermediate_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "num_key_value_heads": None,
    },
    "soft-capped": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 6},
    "query-norm": {"model_type": "qwen3", "head_dim": 8},
}


def policy_with(architecture: dict[str, Any], seed: int = 0) -> Policy:
    """A tiny policy of one of the architectures."""
    return tiny_policy(seed, **architecture) if "n_embd" not in architecture else gpt2()


def gpt2() -> Policy:
    """GPT-2 names its sizes in its own way, so the tiny policy's sizes do not fit it."""
    options = {k: v for k, v in ARCHITECTURES["learned-positions"].items() if v is not None}
    return create_policy(PolicyConfig(architecture=options, device="cpu"), TEXTS, 0)


def make_endings_likely(policy: Policy, bias: float = 3.0) -> None:
    """Tilt the head towards the end token so that lengths differ: random weights rarely end a completion."""
    head = torch.nn.Linear(policy.model.lm_head.in_features, policy.model.lm_head.out_features)
    with torch.no_grad():
        head.weight.copy_(policy.model.lm_head.weight)
        head.bias.zero_()
        head.bias[policy.template.eos_ids[0]] = bias
    policy.model.lm_head = head
