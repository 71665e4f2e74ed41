"""Creates a policy from scratch: random weights, and a tokenizer trained on the task's own text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from gradus.pipeline.common.errors import UserError, closest
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.config.policy import TokenizerConfig
from gradus.pipeline.policy.loading import attention_options, ready, refuse_larger_than_memory, weights_dtype
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.prompts import PromptEncoder, Template


def create_policy(config: PolicyConfig, texts: Iterable[str], seed: int) -> Policy:
    """A new policy with random weights and a tokenizer trained on ``texts``.

    Raises: UserError where transformers does not accept the architecture.
    """
    prompts = new_prompts(config, texts)
    tokenizer, template = prompts.tokenizer, prompts.template
    options = dict(config.architecture or {})
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model_config = AutoConfig.for_model(options.pop("model_type"), vocab_size=len(tokenizer), **ids, **options)
            _refuse_unknown_options(model_config, options)
            refuse_larger_than_memory(model_config, config, "policy.architecture")
            model = AutoModelForCausalLM.from_config(
                model_config,
                dtype=weights_dtype(config),
                **attention_options(config),
                trust_remote_code=config.trust_remote_code,
            )
    except UserError:
        raise
    except Exception as error:  # whatever a library raises for an architecture is about the architecture
        raise UserError(
            "the policy cannot be created from this architecture",
            where="policy.architecture",
            got=str(error).splitlines()[-1].strip() if str(error) else repr(error),
            expected="options of the transformers configuration that `model_type` names",
            fix="compare with that model's configuration class in the transformers documentation",
        ) from error
    return ready(model, tokenizer, template, config)


def new_prompts(config: PolicyConfig, texts: Iterable[str]) -> PromptEncoder:
    """The prompts of a new policy: a tokenizer trained on ``texts``, and the plain template."""
    tokenizer = train_tokenizer((config.plain_template.replace("{question}", text) for text in texts), config.tokenizer)
    ends, special = (tokenizer.eos_token_id,), config.special_tokens_in_questions
    return PromptEncoder(tokenizer, Template("plain", config.plain_template, ends, tokenizer.pad_token_id, special))


def _refuse_unknown_options(model_config: PretrainedConfig, options: dict[str, Any]) -> None:
    """transformers stores unknown options as attributes without complaint, so a misspelt width would go unnoticed."""
    known = {f.name for f in fields(model_config)} | set(model_config.attribute_map)
    unknown = sorted(set(options) - known)
    if unknown:
        hint = closest(unknown[0], known)
        raise ValueError(f"{type(model_config).__name__} has no option {unknown[0]!r}" + (f" ({hint})" if hint else ""))


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the bytes that occur in the task's own text; every digit and every sign is a separate token.

    So numbers are spelled and not memorised. The token of a sign includes a space before it, and nothing else. Bytes
    that never occur in the text become ``<|unk|>``: otherwise a new model would sometimes sample one of hundreds of
    symbols that no demonstration uses, and a single one spoils a chain of reasoning.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|pad|>", "<|end|>", "<|unk|>"]
    tokenizer = Tokenizer(models.BPE(unk_token=special[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r" ?[^\s\p{L}\p{N}]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=config.vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[1], unk_token=special[2]
    )
