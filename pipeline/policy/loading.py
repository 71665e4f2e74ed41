"""Loads a policy from a local folder or from the Hub, and makes a model ready for sampling and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.devices import pick_device
from gradus.pipeline.policy.policy import TEMPLATE_FILE, Policy, Template


def load_policy(path: str | Path, config: PolicyConfig) -> Policy:
    """The policy in a local folder or on the Hub, with the template it was saved with, or else a new one.

    Raises: UserError where the weights are not safetensors or cannot be loaded.
    """
    options = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=weights_dtype(config), use_safetensors=True, **attention_options(config), **options
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"the policy {str(path)!r} cannot be loaded",
            where="policy.path",
            got=str(error).splitlines()[0],
            expected="a causal language model with its tokenizer and safetensors weights",
            fix="check the path or Hub id; convert other weights with `model.save_pretrained(folder)`",
        ) from error
    saved = Path(path) / TEMPLATE_FILE
    if saved.is_file():
        stored: dict[str, Any] = json.loads(saved.read_text())
        template = Template(stored["kind"], stored["text"], tuple(stored["eos_ids"]), stored["pad_id"])
    else:
        template = _new_template(model, tokenizer, config)
    return ready(model, tokenizer, template, config)


def _new_template(model: PreTrainedModel, tokenizer: Any, config: PolicyConfig) -> Template:
    """The template of a model without a saved one: its chat template if it has one, otherwise the plain template."""
    if config.template == "chat" and not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template",
            where="policy.template",
            got="chat",
            expected="plain, or a model with a chat template",
            fix="set policy.template to auto or plain",
        )
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    listed = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    first = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else (listed or [None])[0]
    if first is None:
        raise UserError("the tokenizer has no end-of-sequence token", where="policy.path", fix="set its eos_token")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else first
    chat = tokenizer.chat_template if config.template != "plain" else None
    kind: Literal["chat", "plain"] = "chat" if chat else "plain"
    text = chat if isinstance(chat, str) else json.dumps(chat) if chat else config.plain_template
    return Template(kind, text, (first, *(e for e in listed if e != first)), pad)


def ready(model: PreTrainedModel, tokenizer: Any, template: Template, config: PolicyConfig) -> Policy:
    """The policy on its device, without dropout, with end and padding tokens set wherever transformers reads them."""
    tokenizer.pad_token_id = template.pad_id
    model.config.pad_token_id = model.generation_config.pad_token_id = template.pad_id
    model.config.eos_token_id = model.generation_config.eos_token_id = list(template.eos_ids)
    module: torch.nn.Module = model
    module.to(pick_device(config.device)).eval()
    return Policy(model, tokenizer, template)


def weights_dtype(config: PolicyConfig) -> torch.dtype:
    """The data type of the weights in memory."""
    return torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)


def attention_options(config: PolicyConfig) -> dict[str, str]:
    """The attention implementation as an option of transformers; empty where transformers should choose."""
    return {} if config.attention == "auto" else {"attn_implementation": config.attention}
