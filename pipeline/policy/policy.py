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
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.process import keep_freed_memory, usable_cores
from gradus.pipeline.config import PolicyConfig
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
            save_adapter(self, folder / ADAPTER)
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


def load_policy(path: str | Path, config: PolicyConfig) -> Policy:
    """The policy in a local folder or on the Hub, in the template it was saved with or, entering here, a new one.

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
    """The template of a model that enters the pipeline: its chat template if it has one, plain otherwise."""
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
    """On its device, without dropout, with end and padding set explicitly wherever transformers looks for them."""
    tokenizer.pad_token_id = template.pad_id
    model.config.pad_token_id = model.generation_config.pad_token_id = template.pad_id
    model.config.eos_token_id = model.generation_config.eos_token_id = list(template.eos_ids)
    module: torch.nn.Module = model
    module.to(pick_device(config.device)).eval()
    return Policy(model, tokenizer, template)


def pick_device(wanted: str) -> torch.device:
    """The device that was asked for, or the best there is.

    Raises: UserError where the machine lacks it.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in there.items() if present)
    if not there[wanted]:
        present = [name for name, is_there in there.items() if is_there]
        raise UserError(
            f"this machine has no usable {wanted} device",
            where="policy.device",
            got=wanted,
            expected=f"one of {', '.join(present)}",
            fix="set policy.device to auto",
        )
    return torch.device(wanted)


def use_threads(config: PolicyConfig, processes: int = 1) -> None:
    """Set this process up to compute: as many CPU threads as the configuration says, or, shared with others that
    compute, one less than there are cores; and memory that stays once it is there."""
    torch.set_num_threads(config.threads or max(1, (usable_cores() - 1) // processes))
    keep_freed_memory()


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


def autocasts(policy: Policy, config: PolicyConfig) -> bool:
    """Whether the learner's matrix products are in bfloat16."""
    return policy.device.type == "cuda" if config.autocast == "auto" else config.autocast == "bfloat16"


def weights_dtype(config: PolicyConfig) -> torch.dtype:
    """Type of the weights in memory."""
    return torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)


def attention_options(config: PolicyConfig) -> dict[str, str]:
    """The attention implementation as transformers takes it; nothing where transformers shall choose."""
    return {} if config.attention == "auto" else {"attn_implementation": config.attention}


def completion_logprobs(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor, temperature: float) -> Tensor:
    """log pi(token | everything before it) of R completions under the policy as it is now; differentiable.

    Prompts are padded on the left, so that all completions begin at one column and only T+1 columns of logits exist.

    Shapes: R prompts of any length, tokens int64 [R, T] right-padded -> float32 [R, T]; padding holds values of no
    meaning. Units: nats, of the temperature-scaled policy.
    """
    tokens_RT = tokens_RT.to(policy.device)
    logits = completion_logits(policy, prompts, tokens_RT, temperature)
    return -torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens_RT, reduction="none")


def completion_logits(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor, temperature: float) -> Tensor:
    """The temperature-scaled logits that the tokens of R completions were drawn from; differentiable.

    Shapes: R prompts of any length, tokens int64 [R, T] right-padded, on the policy's device -> float32 [R, T, V].
    """
    inputs, width = _padded_inputs(policy, prompts, tokens_RT), tokens_RT.shape[1]
    if "logits_to_keep" in policy.forward_options:
        inputs["logits_to_keep"] = width + 1
    logits = policy.model(**inputs, use_cache=False).logits[:, -width - 1 : -1].float()
    return logits / temperature if temperature != 1.0 else logits


def completion_states(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor) -> Tensor:
    """The hidden states that predict the tokens of R completions; differentiable.

    Shapes: R prompts of any length, tokens int64 [R, T] right-padded -> [R, T, D].
    """
    base: Any = policy.model.base_model
    inputs = _padded_inputs(policy, prompts, tokens_RT.to(policy.device))
    return base(**inputs, use_cache=False).last_hidden_state[:, -tokens_RT.shape[1] - 1 : -1]


def _padded_inputs(policy: Policy, prompts: list[list[int]], tokens_RT: Tensor) -> dict[str, Any]:
    ids, mask = left_pad(prompts, policy.template.pad_id, policy.device)
    # Right-padding needs no mask: causal attention keeps real tokens from seeing it.
    inputs: dict[str, Any] = {
        "input_ids": torch.cat([ids, tokens_RT], dim=1),
        "attention_mask": torch.cat([mask, mask.new_ones(tokens_RT.shape)], dim=1),
    }
    if "position_ids" in policy.forward_options:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return inputs


def left_pad(sequences: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of sequences that end at one column.

    Shapes: R sequences -> int64 [R, L], int64 [R, L].
    """
    length = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (length - len(s)) + s for s in sequences], device=device)
    mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask
