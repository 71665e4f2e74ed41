"""Which models are packed: rounding is no reason not to, and a mixture of tokens is one, however small its effect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipeline import Notes, launch, pipeline
from tiny_policies import TEXTS

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.policy import Policy

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def policy_of(dtype: str, layers: int = 2, **architecture: object) -> Policy:
    options = {"num_hidden_layers": layers, **SIZES, **architecture}
    return create_policy(PolicyConfig(architecture=options, device="cpu", dtype=dtype), TEXTS, 0)


@pytest.mark.parametrize(
    ("dtype", "layers", "scale"),
    [("float32", 2, 1e4), ("float32", 30, 1e4), ("bfloat16", 30, 1e3)],
    ids=["large logits", "deep", "deep in bfloat16"],
)
def test_a_models_own_rounding_is_no_reason_to_pad_it(dtype, layers, scale):
    """Unlikely tokens have log-probabilities of -20 in pretrained models, where more than 0.0001 is rounded."""
    policy = policy_of(dtype, layers, model_type="llama")
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(scale)
    assert can_pack(policy)
    assert all(parameter.grad is None for parameter in policy.model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "architecture",
    [{"model_type": "jamba"}, {"model_type": "lfm2", "full_attn_idxs": [1]}],
    ids=["recurrent layers", "convolutions"],
)
def test_a_model_that_mixes_tokens_outside_of_attention_is_padded(architecture, dtype):
    """With new weights, what leaks into the next completion is smaller than what bfloat16 rounds."""
    policy = policy_of(dtype, **architecture)
    assert not can_pack(policy) and policy.unpacked == "it mixes tokens outside of attention"


def test_a_model_that_is_padded_is_told_of_once_a_stage(tmp_path: Path) -> None:
    for kind, times in (("jamba", 1), ("llama", 0)):
        notes: list[str] = []
        policy = {"architecture": {"model_type": kind, "num_hidden_layers": 1, **SIZES}, "device": "cpu"}
        launch(tmp_path, pipeline([{"stage": "sft", "steps": 2}], policy=policy), kind, Notes(notes))
        told = [each for each in notes if "sft: completions are padded, not packed, because it mixes tokens" in each]
        assert len(told) == times


def test_frozen_embeddings_do_not_hide_a_mixture():
    """As with adapters."""
    for kind, packed in (("llama", True), ("jamba", False)):
        policy = policy_of("float32", model_type=kind)
        policy.model.requires_grad_(False)
        assert can_pack(policy) == packed
