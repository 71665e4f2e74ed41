"""The smallest policy that real sampling and training accept."""

from __future__ import annotations

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.policy import Policy

TEXTS = ["Calculate 12 + 34 - 5 =", "12+34=46; 46-5=41; answer: 41", "Calculate 7 * 8 =", "7*8=56; answer: 56"]


def tiny_policy(seed: int = 0, **architecture: object) -> Policy:
    """A two-layer model with a tokenizer trained on four lines."""
    options = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **architecture,
    }
    return create_policy(PolicyConfig(architecture=options, device="cpu"), TEXTS, seed)
