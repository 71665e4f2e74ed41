"""A causal language model with its tokenizer and its prompt template, and copies of it.

A policy is saved as an ordinary Hugging Face folder plus ``template.json``. The template determines how questions
become prompts and where completions end; it is chosen once, when the policy enters the pipeline.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from gradus.pipeline.policy.lora import ADAPTER, merged_state, save_adapter
from gradus.pipeline.policy.prompts import PromptEncoder, Template
from gradus.pipeline.types import Prompt

TEMPLATE_FILE = "template.json"
ORDINARY = "What is the sum of 12 and 34? The sum is 12 + 34 = 46, and 46 - 5 = 41."

transformers_logging.disable_progress_bar()  # gradus shows progress itself


@dataclass
class Policy:
    """A model that can be sampled and trained, with its tokenizer and template."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    template: Template
    adapters: Any = field(default=None, repr=False)
    """peft's description of the adapters, where the model has any (see :mod:`gradus.pipeline.policy.lora`)."""
    decoder: Any = field(default=None, init=False, repr=False)
    """Cache of the sampler: the engine that suits this model."""
    packs: bool | None = field(default=None, init=False, repr=False)
    """Cache of :func:`~gradus.pipeline.policy.forward.packable.can_pack`; None before the first pass."""
    unpacked: str = field(default="", init=False, repr=False)
    """Why the model was found not to be packed; empty before the first pass, and where it is."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        head = self.model.get_output_embeddings()
        assert head is not None
        return int(head.weight.shape[1])

    @cached_property
    def forward_options(self) -> frozenset[str]:
        """Names of the arguments that the model's forward method accepts."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    def ordinary(self, numbers: Iterable[int]) -> list[int]:
        """Tokens of ordinary text, to try the model's arithmetic with: those at these places, in a circle.

        On special and rare tokens, which pretraining hardly met, a deep model is up to a thousand times less exact.
        """
        tokens = self.tokenizer(ORDINARY, add_special_tokens=False)["input_ids"]
        if len(set(tokens)) < 8:  # a tokenizer that knows nothing of this text
            tokens = range(int(self.model.get_input_embeddings().num_embeddings))  # type: ignore[arg-type]
        return [tokens[number % len(tokens)] for number in numbers]

    @cached_property
    def prompts(self) -> PromptEncoder:
        """Turns questions into tokens."""
        return PromptEncoder(self.tokenizer, self.template)

    def encode_prompt(self, prompt: Prompt | str) -> list[int]:
        """Tokens of a prompt, or of a question alone, in the template, up to where the completion begins."""
        return self.prompts.encode(prompt)

    def encode_completion(self, text: str) -> list[int]:
        """Tokens of a completion, its end-of-sequence token included."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.template.eos_ids[0]]

    def decode(self, tokens: list[int]) -> str:
        """The text of completion tokens, spaces as they were sampled, without what only begins, ends or pads it.

        Other special tokens, such as ``<answer>`` where a tokenizer declares it special, are part of what was written.
        """
        written = [token for token in tokens if token not in self._unwritten]
        return str(self.tokenizer.decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @cached_property
    def _unwritten(self) -> frozenset[int | None]:
        """The tokens that begin, end or pad a text, whether they are declared special or not."""
        named = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        return frozenset((*named, *self.template.eos_ids, self.template.pad_id))

    def save(self, folder: Path) -> None:
        """Write a folder that ``AutoModelForCausalLM.from_pretrained`` can load, with the template in it."""
        if self.adapters is None:
            self.model.save_pretrained(folder)
        else:
            self.model.save_pretrained(folder, state_dict=merged_state(self.model))
            save_adapter(self.model, self.adapters, folder / ADAPTER)
        self.tokenizer.save_pretrained(folder)
        (folder / TEMPLATE_FILE).write_text(json.dumps(self.template.record(), indent=1), encoding="utf-8")

    def describe(self) -> dict[str, Any]:
        """Facts about the policy that are shown and logged."""
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
    """The parameters by name, tied ones once; of a model with adapters, only the adapters', as the rest is frozen."""
    named = policy.model.named_parameters()
    return {name: value for name, value in named if policy.adapters is None or ".lora_" in name}


@torch.no_grad()
def copy_parameters(source: dict[str, Tensor], target: Policy) -> None:
    """Copy parameters, which :func:`parameters` returned for a policy of the same architecture, into ``target``."""
    for name, parameter in parameters(target).items():
        parameter.copy_(source[name])


def copied(policy: Policy) -> PreTrainedModel:
    """A copy of the model; of a model with adapters, the frozen weights are shared."""
    shared = {id(value): value for value in policy.model.parameters() if not value.requires_grad}
    return copy.deepcopy(policy.model, shared if policy.adapters is not None else None)


def frozen_copy(policy: Policy) -> Policy:
    """A frozen copy of the policy in its current state; it takes as much memory as the trained weights."""
    return Policy(copied(policy).requires_grad_(False), policy.tokenizer, policy.template, policy.adapters)
