"""Shared fixtures: a policy small enough that real sampling and training take milliseconds."""

from __future__ import annotations

import pytest
import torch

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.types import Prompt

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


@pytest.fixture
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def prompts() -> list[Prompt]:
    """Prompts of different lengths, so that padding is always in play."""
    questions = ["1 + 2 =", "Calculate 12 + 34 - 5 =", "7 * 8 =", "Calculate 9 - 12 + 3 - 4 + 8 ="]
    return [Prompt(id=f"p{i}", question=q, answer=str(i)) for i, q in enumerate(questions)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run side by side; more threads each would only get in each other's way."""
    torch.set_num_threads(1)
