"""The size of a model, from its description alone: no weights are loaded and torch is not imported.

Shapes come from ``config.json`` (or ``policy.architecture``) and, where an option is left out, from the defaults in
transformers' source. Where a folder holds safetensors, their headers tell the exact number of parameters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.estimates.known_models import SHAPES
from gradus.pipeline.policy.architectures import architecture_defaults
from gradus.pipeline.policy.stored_weights import stored_parameters

SANDWICH = ("gemma2", "gemma3", "gemma3_text")
"""Families with norms on both sides of attention and MLP."""
HEAD_NORMS = ("qwen3", "gemma3", "gemma3_text", "olmo2")
"""Families with norms of queries and keys."""
PLAIN_MLP = ("gpt2", "gpt_neox", "opt", "phi", "bloom", "falcon", "starcoder2")
"""Families whose MLP has two products; all others have a gate, and three products."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes that memory and time depend on."""

    model_type: str
    layers: int
    width: int
    """D, the width of the hidden states."""
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """F, the width of the MLP."""
    vocabulary: int
    tied: bool
    """Whether the head and the embedding are one matrix."""
    query_bias: bool = False
    gated: bool = True
    capped: bool = False
    """Whether the logits are soft-capped, whose slope is kept for the backward pass."""
    parameters: int = 0
    """The number of all parameters; 0 until it is counted."""

    @property
    def linear(self) -> int:
        """Weights of the products of all layers, without the embedding and the head.

        >>> ModelSize("llama", 2, 8, 2, 1, 4, 16, 32, False).linear
        1152
        """
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.inner)

    @property
    def fused(self) -> int:
        """Weights that the sampler's decoder copies: those of query, key, value, gate and up."""
        turned = self.width * self.head_dim * (self.heads + 2 * self.kv_heads)
        return self.layers * (turned + 2 * self.width * self.inner) if self.gated else 0

    @property
    def cache(self) -> int:
        """Numbers that the key-value cache holds for each token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def words(self) -> int:
        """Weights of the embedding; the head has as many."""
        return self.vocabulary * self.width

    def adapters(self, rank: int) -> int:
        """Weights of low-rank adapters of all linear layers but the head.

        >>> ModelSize("llama", 2, 8, 2, 1, 4, 16, 32, False).adapters(2)
        512
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        ends = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        ends += [(self.width, self.inner)] * (2 if self.gated else 1) + [(self.inner, self.width)]
        return self.layers * rank * sum(map(sum, ends))

    def counted(self) -> ModelSize:
        """The same size with its parameters counted: embedding, head, products, norms, and biases of attention.

        >>> ModelSize("llama", 2, 8, 2, 1, 4, 16, 32, False).counted().parameters
        1704
        """
        norms = (4 if self.model_type in SANDWICH else 2) * self.width
        norms += 2 * self.head_dim if self.model_type in HEAD_NORMS else 0
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.query_bias else 0
        words = self.words * (1 if self.tied else 2)
        return replace(self, parameters=words + self.linear + self.layers * (norms + biases) + self.width)


def model_size(policy: PolicyConfig) -> ModelSize:
    """The size of the policy of a configuration. Raises: UserError where its description is not on this machine."""
    if policy.architecture is not None:
        options = {"vocab_size": policy.tokenizer.vocabulary, **policy.architecture}
        return from_options(options, "policy.architecture")
    folder = _folder(policy)
    if folder is None:
        return from_options(SHAPES[policy.path or ""], "policy.path")
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = from_options(described.get("text_config") or described, str(folder / "config.json"))
    exact = 0 if "text_config" in described else stored_parameters(folder)
    return replace(size, parameters=exact) if exact else size


def _folder(policy: PolicyConfig) -> Path | None:
    """The folder of the model's description, its own or in the cache of the Hub; None where its shape is known without.

    Raises: UserError where neither is so.
    """
    path = policy.path or ""
    if (Path(path) / "config.json").is_file():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "config.json", revision=policy.revision)
    except HFValidationError:
        found = None
    if isinstance(found, str):
        return Path(found).parent
    if path in SHAPES:
        return None
    raise UserError(
        "the model's description is not on this machine, and a plan fetches nothing",
        where="policy.path",
        got=path,
        expected="a local folder with config.json, or a Hub id that is in the cache",
        fix="`gradus check CONFIG` fetches the description of a Hub id, without its weights",
    )


def from_options(given: dict[str, Any], where: str = "") -> ModelSize:
    """The size from the options of a model. Raises: UserError where they do not describe a dense transformer."""
    kind = str(given.get("model_type", ""))
    defaults, names = architecture_defaults(kind)
    options = {**defaults, **{names.get(name, name): value for name, value in given.items() if value is not None}}
    for alias, target in {"n_inner": "intermediate_size", **names}.items():
        if options.get(target) is None and options.get(alias) is not None:
            options[target] = options[alias]
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    lacking = [name for name in needed if not isinstance(options.get(name), int)]
    experts = next((name for name in ("num_experts", "num_local_experts", "n_routed_experts") if options.get(name)), "")
    if lacking or experts:
        what = f"without {', '.join(lacking)}" if lacking else f"a mixture of experts ({experts})"
        raise UserError(
            "this model's memory and time cannot be computed",
            where=where,
            got=f"{kind or 'a model'}, {what}",
            expected="a dense transformer such as llama, qwen3 or gemma3_text",
        )
    width, heads = options["hidden_size"], options["num_attention_heads"]
    gated = kind not in PLAIN_MLP
    tied = options.get("tie_word_embeddings")
    return ModelSize(
        model_type=kind,
        layers=options["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=options.get("num_key_value_heads") or heads,
        head_dim=options.get("head_dim") or width // heads,
        inner=options.get("intermediate_size") or 4 * width,
        vocabulary=options["vocab_size"],
        tied=bool(tied) if tied is not None else True,
        query_bias=kind == "qwen2" or bool(options.get("attention_bias")),
        gated=gated,
        capped=bool(options.get("final_logit_softcapping")),
    ).counted()
