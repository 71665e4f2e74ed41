"""Small policies with LoRA adapters, as created and as after some training."""

from __future__ import annotations

from typing import Any

import torch
from tiny_policies import tiny_policy

from gradus.pipeline.config.policy import LoraConfig
from gradus.pipeline.policy.lora import add_adapters
from gradus.pipeline.policy.policy import Policy, parameters

LORA = LoraConfig(rank=4, alpha=8)


def stir(policy: Policy) -> None:
    """Give the adapters values that change something, as after some training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in parameters(policy).values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)


def adapted(**architecture: Any) -> Policy:
    """A tiny policy with fresh adapters, which change nothing yet."""
    policy = tiny_policy(**architecture)
    policy.adapters = add_adapters(policy.model, LORA, seed=0)
    return policy
