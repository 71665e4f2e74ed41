"""The shapes of the models that the packaged configurations name, so that a plan of one needs no network.

They are the options of each model's ``config.json`` that its size depends on. Where that file is on this machine, in a
folder or in the Hub's cache, it is read instead.
"""

from __future__ import annotations

from typing import Any


def _shape(kind: str, width: int, inner: int, layers: int, heads: tuple[int, int], words: int, tied: bool) -> dict:
    """Options of a ``config.json``; ``heads``: those of queries, and of keys and values, 128 wide."""
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 128,
        "vocab_size": words,
        "tie_word_embeddings": tied,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B": _shape("qwen3", 1024, 3072, 28, (16, 8), 151_936, True),
    "HuggingFaceTB/SmolLM3-3B-Base": _shape("smollm3", 2048, 11_008, 36, (16, 4), 128_256, True),
    "Qwen/Qwen3-4B": _shape("qwen3", 2560, 9728, 36, (32, 8), 151_936, True),
    "Qwen/Qwen3-4B-Base": _shape("qwen3", 2560, 9728, 36, (32, 8), 151_936, True),
    "Qwen/Qwen3-8B": _shape("qwen3", 4096, 12_288, 36, (32, 8), 151_936, False),
    "Qwen/Qwen2.5-32B": _shape("qwen2", 5120, 27_648, 64, (40, 8), 152_064, False),
    "allenai/Olmo-3-1025-7B": _shape("olmo3", 4096, 11_008, 32, (32, 32), 100_278, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _shape("qwen2", 1536, 8960, 28, (12, 2), 151_936, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _shape("qwen2", 3584, 18_944, 28, (28, 4), 152_064, False),
}
"""Hub id -> options."""
