""""""

from __future__ import annotations

import torch
from tiny_policies import tiny_policy

from gradus.pipeline.rollouts.builtin import DrawKey

DRAW = DrawKey(seed=0, stage="a", step=1)


def make_endings_likely(policy, bias: float = 3.0) -> None:
    """Random weights rarely end a completion; tilt the head towards the end token so that lengths differ."""
    head = torch.nn.Linear(policy.model.lm_head.in_features, policy.model.lm_head.out_features)
    with torch.no_grad():
        head.weight.copy_(policy.model.lm_head.weight)
        head.bias.zero_()
        head.bias[policy.template.eos_ids[0]] = bias
    policy.model.lm_head = head


ARCHITECTURES = {
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


def policy_with(architecture: dict, seed: int = 0):
    return tiny_policy(seed, **architecture) if "n_embd" not in architecture else gpt2()


def gpt2():
    from tiny_policies import TEXTS

    from gradus.pipeline.config import PolicyConfig
    from gradus.pipeline.policy.creation import create_policy

    options = {k: v for k, v in ARCHITECTURES["learned-positions"].items() if v is not None}
    return create_policy(PolicyConfig(architecture=options, device="cpu"), TEXTS, 0)
