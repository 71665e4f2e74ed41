"""What a model's files say: whether it is whole, how it counts tokens, how many it takes, what its template does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradus.flows.init.guesses import Guesses, as_written, given_as
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.architectures import position_count
from gradus.pipeline.policy.checks import check_policy
from gradus.pipeline.policy.prompt_lengths import model_file, token_counts

NEW = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.06,
}
"""The architecture of a new policy: that of the quickstart."""
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")


@dataclass
class Model:
    """What is known of the policy."""

    policy: dict[str, Any]
    """The section ``policy`` of the configuration."""
    found: PolicyConfig
    """The same with a path that does not depend on a folder."""
    positions: int | None = None
    """How many tokens it takes; None: unknown, or as many as are asked for."""
    template: str = ""
    """Its chat template; empty where it has none."""
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def new(self) -> bool:
        """Whether the model is made from scratch."""
        return self.found.path is None

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens the texts have; without a tokenizer, their bytes, which are no fewer."""
        tokenizer = self.files.get("tokenizer.json")
        return [len(text.encode()) for text in texts] if tokenizer is None else token_counts(tokenizer, texts)

    @property
    def takes_system(self) -> bool:
        """Whether the template writes system turns; some speak of them only to refuse them."""
        refuses = re.search(r"raise_exception\([^)]*system", self.template, re.IGNORECASE)
        return "system" in self.template and refuses is None

    @property
    def opens_thought(self) -> bool:
        """Whether the template begins the completion with an open thought, so that its text has only the end of it."""
        behind = self.template.rpartition("add_generation_prompt")[2]
        return "<think>" in behind and "</think>" not in behind


def look_at(given: str | None, folder: Path, guesses: Guesses) -> Model:
    """The model that ``--model`` names, or a small new one. Raises: UserError where it cannot be trained."""
    if given is None:
        guesses.add("policy", "a small new model that knows nothing, as in the quickstart, because --model names none")
        return Model({"architecture": dict(NEW)}, PolicyConfig(architecture=dict(NEW)))
    local = Path(given).expanduser()
    is_path = local.exists() or given.startswith((".", "/", "~"))
    found = PolicyConfig(path=str(local.absolute()) if is_path else given)
    with given_as("--model", "policy.path"):
        check_policy(found)
    if not is_path:
        _fetch_tokenizer(given)
    model = Model({"path": as_written(given, folder) if is_path else given}, found)
    for name in ("config.json", "tokenizer.json", *TEMPLATE_FILES):
        if (file := model_file(found, name)) is not None:
            model.files[name] = file
    described = json.loads(model.files["config.json"].read_text(encoding="utf-8"))
    model.positions, model.template = position_count(described), _template(model.files)
    wrapped = "the tokenizer has a chat template" if model.template else "the tokenizer has no chat template"
    guesses.add("policy", f"template {'chat' if model.template else 'plain'}: {wrapped}")
    if "tokenizer.json" not in model.files:
        guesses.add("policy", "lengths are in bytes, because the model has no tokenizer.json to count tokens with")
    if "enable_thinking" in model.template:
        model.policy["template_args"] = {"enable_thinking": False}
        guesses.add("policy", "enable_thinking false: thoughts make completions many times as long. With true, raise "
                    "sampling.max_tokens to some thousands")  # fmt: skip
    return model


def _template(files: dict[str, Path]) -> str:
    """The chat template; empty where there is none."""
    if (file := files.get("chat_template.jinja")) is not None:
        return file.read_text(encoding="utf-8")
    if (file := files.get("tokenizer_config.json")) is None:
        return ""
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("chat_template") or ""
    except (ValueError, AttributeError):  # which the check of the model tells
        return ""
    return found if isinstance(found, str) else json.dumps(found)


def _fetch_tokenizer(name: str) -> None:
    """Bring the small files of a model of the Hub to this machine; what it lacks is noticed by its absence."""
    from huggingface_hub import hf_hub_download

    for file in ("tokenizer.json", *TEMPLATE_FILES):
        try:
            hf_hub_download(name, file)
        except Exception:  # not there, or no network: the description is in the cache, as the check has found
            continue
