"""Small models of shapes that vLLM's CPU kernels know, and prompts for them."""

from __future__ import annotations

from typing import Any

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.config.policy import LoraConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.types import Prompt

TEXTS = ["Calculate 12 + 34 - 5 =", "12+34=46; 46-5=41; answer: 41", "Calculate 7 * 8 =", "7*8=56; answer: 56"]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


def architectures() -> dict[str, dict[str, Any]]:
    """kind -> its architecture."""
    qwen = {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True, **SIZES}
    gemma = {"model_type": "gemma3_text", "head_dim": 32, "num_key_value_heads": 1, "sliding_window": 8, **SIZES}
    llama = {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 256, **SIZES}
    return {"llama": llama, "qwen-tied": qwen, "gemma-sliding": gemma, "llama-lora": llama}


def policy_of(kind: str) -> Policy:
    policy = create_policy(PolicyConfig(architecture=architectures()[kind], device="cpu"), TEXTS, seed=0)
    if kind.endswith("lora"):
        from gradus.pipeline.policy.lora import add_adapters

        policy.adapters = add_adapters(policy.model, LoraConfig(rank=4, alpha=8), seed=0)
    return policy


def prompts() -> list[Prompt]:
    questions = ["1 + 2 =", "Calculate 12 + 34 - 5 =", "7 * 8 =", "Calculate 9 - 12 + 3 - 4 + 8 ="]
    return [Prompt(id=f"p{i}", question=q, answer=str(i)) for i, q in enumerate(questions)]
