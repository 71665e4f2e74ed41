"""A causal language model with its tokenizer and its prompt template: create, load, save, and read log-probabilities.

The three travel together: a policy is saved as an ordinary Hugging Face folder plus ``template.json``, which records
how questions are wrapped and where completions end, chosen once when the policy enters the pipeline.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from gradus.pipeline.policy.lora import ADAPTER, merged_state, save_adapter

TEMPLATE_FILE = "template.json"

transformers_logging.disable_progress_bar()  # progress is ours to show


@dataclass(frozen=True)
class Template:
    """How a question becomes a prompt and where a completion ends."""

    kind: Literal["chat", "plain"]
    """Through the tokenizer's chat template, or through ``text``."""
    text: str
    """The chat template itself (Jinja), or the plain text around ``{question}``."""
    eos_ids: tuple[int, ...]
    """Tokens that end a completion; the first is the one that training appends."""
    pad_id: int
    """Filler of short rows; always masked."""

    @property
    def digest(self) -> str:
        """Hash of everything above: two stages with the same digest see the same prompts."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Policy:
    """A model that can be sampled and trained, with what turns text into its tokens and back."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    template: Template
    adapters: Any = field(default=None, repr=False)
    """peft's description of the adapters in the model, where there are any (see :mod:`gradus.pipeline.policy.lora`)."""
    decoder: Any = field(default=None, init=False, repr=False)
    """What :mod:`gradus.pipeline.rollouts.builtin.engines` found to sample this model with; found at the first sampling."""
    packs: bool | None = field(default=None, init=False, repr=False)
    """Whether :mod:`gradus.pipeline.policy.forward.packing` gives this model's own log-probabilities; found at the first pass."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def width(self) -> int:
        """D, the width of its hidden states."""
        head = self.model.get_output_embeddings()
        assert head is not None
        return int(head.weight.shape[1])

    @cached_property
    def forward_options(self) -> frozenset[str]:
        """Names of the arguments that the model's forward understands."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    def encode_prompt(self, question: str) -> list[int]:
        """Tokens of a question in its template, up to where the completion begins."""
        if self.template.kind == "plain":
            return self.tokenizer(self.template.text.replace("{question}", question))["input_ids"]
        turns = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_completion(self, text: str) -> list[int]:
        """Tokens of a completion, its end-of-sequence token included."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.template.eos_ids[0]]

    def decode(self, tokens: list[int]) -> str:
        """Text of completion tokens, special tokens removed, spaces as they were sampled."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def save(self, folder: Path) -> None:
        """Write a folder that ``AutoModelForCausalLM.from_pretrained`` loads, plus the template."""
        if self.adapters is None:
            self.model.save_pretrained(folder)
        else:
            self.model.save_pretrained(folder, state_dict=merged_state(self.model))
            save_adapter(self.model, self.adapters, folder / ADAPTER)
        self.tokenizer.save_pretrained(folder)
        (folder / TEMPLATE_FILE).write_text(json.dumps(asdict(self.template), indent=1))

    def describe(self) -> dict[str, Any]:
        """What is shown and logged about the policy."""
        return {
            "model_type": self.model.config.model_type,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "vocabulary": self.model.get_input_embeddings().num_embeddings,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "attention": self.model.config._attn_implementation,
            "template": f"{self.template.kind} {self.template.digest}",
        }


def parameters(policy: Policy) -> dict[str, Tensor]:
    """The parameters by name, tied ones once; of a model with adapters only those, for the others never change."""
    named = policy.model.named_parameters()
    return {name: value for name, value in named if policy.adapters is None or ".lora_" in name}


@torch.no_grad()
def copy_parameters(source: dict[str, Tensor], target: Policy) -> None:
    """Give ``target`` the parameters that :func:`parameters` gave of a policy of the same architecture."""
    for name, parameter in parameters(target).items():
        parameter.copy_(source[name])


def copied(policy: Policy) -> PreTrainedModel:
    """The model a second time; weights that never change are shared."""
    shared = {id(value): value for value in policy.model.parameters() if not value.requires_grad}
    return copy.deepcopy(policy.model, shared if policy.adapters is not None else None)


def frozen_copy(policy: Policy) -> Policy:
    """The policy as it is now, apart from the one that trains; costs what trains of it a second time in memory."""
    return Policy(copied(policy).requires_grad_(False), policy.tokenizer, policy.template, policy.adapters)
