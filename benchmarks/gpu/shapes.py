"""The models and the work whose speed is measured. Weights are random, so nothing is downloaded."""

from __future__ import annotations

from typing import Any

from benchmarks.workload import Case

SMALL: dict[str, Any] = {
    # Qwen 3 0.6 B
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 1_048_576,
    "tie_word_embeddings": True,
}
LARGE = SMALL | {"hidden_size": 2048, "intermediate_size": 6144}  # Qwen 3 1.7 B
TOY = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
TOY |= {"num_key_value_heads": 2, "intermediate_size": 128}


def case(tiny: bool, large: bool = False, variable: bool = True) -> Case:
    """16 prompts of 256 tokens, 8 completions of at most 512; of toy size where that is asked for."""
    size = "1.7 B" if large else "0.6 B"
    model = (LARGE if large else SMALL) | (TOY if tiny else {})
    if tiny:
        return Case(f"toy for {size}", model, variable, prompts=4, group_size=2, prompt_tokens=16, new_tokens=12)
    return Case(size, model, variable, prompts=16, group_size=8, prompt_tokens=256, new_tokens=512)
