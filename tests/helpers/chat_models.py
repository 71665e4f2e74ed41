"""A small chat model in a folder, as another library writes it, and ways to change its files."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
from tiny_policies import TEXTS, tiny_policy

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.config.policy import TokenizerConfig
from gradus.pipeline.policy.creation import train_tokenizer
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.types import Prompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = Prompt("p", "1 + 2 =", "3")


def save_chat_model(folder: Path) -> Path:
    """A chat model whose eos_token, <|end|>, is not what ends a turn."""
    policy = tiny_policy()
    made = train_tokenizer([*TEXTS, string.printable, "user assistant system"], TokenizerConfig(vocabulary=300))
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    policy.model.resize_token_embeddings(len(made))
    policy.model.config.eos_token_id = policy.model.generation_config.eos_token_id = made.eos_token_id
    policy.model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Policy:
    """The policy in the folder, with these options of ``policy``."""
    return load_policy(folder, PolicyConfig(path=str(folder), device="cpu", **options))


def described(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Change keys of one of the model's JSON files, or make that file."""
    path = folder / name
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | changes), encoding="utf-8")


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that nothing may change."""
    return save_chat_model(tmp_path_factory.mktemp("model") / "chat")


@pytest.fixture
def folder(chat: Path, tmp_path: Path) -> Path:
    """A copy of it, whose files a test may change."""
    return Path(shutil.copytree(chat, tmp_path / "model"))
