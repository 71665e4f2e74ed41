"""Loads a policy from a local folder or from the Hub, and makes a model ready for sampling and training."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.checks import check_model_folder
from gradus.pipeline.policy.devices import pick_device
from gradus.pipeline.policy.policy import TEMPLATE_FILE, Policy
from gradus.pipeline.policy.prompts import PromptEncoder, Template
from gradus.pipeline.policy.templates import new_template
from gradus.pipeline.types import Thoughts


def load_policy(path: str | Path, config: PolicyConfig) -> Policy:
    """The policy in a local folder or on the Hub, with the template it was saved with, or else a new one.

    Raises: UserError where the folder is not a whole model, the weights are not safetensors, or anything does not fit.
    """
    if Path(path).is_dir():
        check_model_folder(Path(path), config.trust_remote_code)
    with _refusing("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(path, **_options(config))
    with _refusing("model", path):
        described = AutoConfig.from_pretrained(path, **_options(config))
        refuse_larger_than_memory(described, config, "policy.path")
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=weights_dtype(config),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report then, with their names
            **_unmarked(described),
            **attention_options(config),
            **_options(config),
        )
        _check_report(model, report, path)
    template = _template(path, tokenizer, model.generation_config.eos_token_id, model.config, config)
    with _refusing("model", path):
        policy = ready(model, tokenizer, template, config)
    policy.encode_prompt("1 + 1 = ?")  # a template that cannot be used is found here, before compute is spent
    return policy


def load_prompts(path: str | Path, config: PolicyConfig) -> PromptEncoder:
    """The prompts of the policy in a local folder or on the Hub, without its weights. Raises: UserError."""
    with _refusing("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(path, **_options(config))
        described = AutoConfig.from_pretrained(path, **_options(config))
        try:
            ends = GenerationConfig.from_pretrained(path, revision=config.revision or "main").eos_token_id
        except OSError:  # there is no such file
            ends = getattr(described, "eos_token_id", None)
    return PromptEncoder(tokenizer, _template(path, tokenizer, ends, described, config))


def _unmarked(described: PretrainedConfig) -> dict[str, PretrainedConfig]:
    """The description of a model that came from a GGUF file, without the mark of that, as an option of transformers.

    The folder's weights are plain, but with the mark they count as quantised, and the model could not be saved.
    """
    quantised = getattr(described, "quantization_config", None)
    if not isinstance(quantised, dict) or quantised.get("quant_method") != "gguf":
        return {}
    vars(described).pop("quantization_config")
    return {"config": described}


def _options(config: PolicyConfig) -> dict[str, Any]:
    return {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}


def _template(
    path: str | Path, tokenizer: Any, ends: int | list[int] | None, described: PretrainedConfig, config: PolicyConfig
) -> Template:
    """The template that the policy was saved with, or else a new one. Raises: UserError."""
    saved = Path(path) / TEMPLATE_FILE
    with _refusing("template", saved if saved.is_file() else path):
        if saved.is_file():
            return stored_template(Path(path))
        listed = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        rows = getattr(described.get_text_config(), "vocab_size", None)
        return new_template(tokenizer, listed, rows, config)


def stored_template(folder: Path) -> Template:
    """The template that the policy in a folder was saved with."""
    stored: dict[str, Any] = json.loads((folder / TEMPLATE_FILE).read_text(encoding="utf-8"))
    thoughts = Thoughts.restored(stored.get("thoughts"))
    return Template(**stored | {"eos_ids": tuple(stored["eos_ids"]), "thoughts": thoughts})


@contextlib.contextmanager
def _refusing(part: str, path: str | Path) -> Iterator[None]:
    """Whatever a library raises for a model's files is about these files, except that the disk is full.

    A model for which the memory does not suffice is refused in the same words. Raises: UserError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"the policy {str(path)!r} cannot be loaded: its {part} is not usable",
            where="policy.path",
            got=" ".join(lines[:2])[:400] or type(error).__name__,
            expected="a causal language model with its tokenizer and safetensors weights",
            fix="check the path or Hub id, and the files; `model.save_pretrained(folder)` converts other weights",
        ) from error


def _check_report(model: PreTrainedModel, report: dict[str, Any], path: str | Path) -> None:
    """Every weight of the model was in the files; transformers would leave the others random. Raises: UserError.

    Weights that are tied to others, or that a model does not store, are not missing. A file may hold more than the
    model uses, such as the part that sees images, but no further members of lists that the model has: those are layers
    that ``config.json`` does not know of.
    """
    known = {_unnumbered(name) for name in model.state_dict()}
    missing, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    other = [f"{name} of {list(stored)}, not {list(own)}" for name, stored, own in sorted(report["mismatched_keys"])]
    if missing or other or any(_unnumbered(name) in known for name in unknown):
        kinds = {"not there": missing, "of another shape": other, "without a place in the model": unknown}
        found = [f"{len(names)} {what}, such as {names[0]}" for what, names in kinds.items() if names]
        raise UserError(
            f"the weights of the policy {str(path)!r} are not those that its config.json describes",
            where="policy.path",
            got="; ".join(found),
            expected="every weight of the model, under the name that transformers gives it",
            fix="copy or download the model again, correct config.json, or rename the weights",
        )


def _unnumbered(name: str) -> str:
    """The name of a weight with every number replaced, so that it is the same in all layers."""
    return re.sub(r"\d+", "#", name)


def refuse_larger_than_memory(described: PretrainedConfig, config: PolicyConfig, where: str) -> None:
    """Refuse a model whose weights this machine cannot hold, without allocating them. Raises: UserError."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code)
    needed = sum(weight.numel() for weight in model.parameters()) * weights_dtype(config).itemsize
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > memory:
        raise UserError(
            "the model is larger than this machine's memory",
            where=where,
            got=f"{needed / 1e9:,.1f} GB of weights",
            expected=f"less than {memory / 1e9:,.1f} GB",
            fix="choose a smaller model, policy.dtype=bfloat16, or a machine with more memory; or correct its sizes",
        )


def ready(model: PreTrainedModel, tokenizer: Any, template: Template, config: PolicyConfig) -> Policy:
    """The policy on its device, without dropout, with end and padding tokens set wherever transformers reads them."""
    tokenizer.pad_token_id = template.pad_id
    model.config.pad_token_id = model.generation_config.pad_token_id = template.pad_id
    model.generation_config.eos_token_id = list(template.eos_ids)
    try:
        model.config.eos_token_id = list(template.eos_ids)
    except StrictDataclassError:  # a description that takes one token only
        model.config.eos_token_id = template.eos_ids[0]
    _settle_generation(model)
    _settle_tie(model)
    module: torch.nn.Module = model
    module.to(pick_device(config.device)).eval()
    return Policy(model, tokenizer, template)


def _settle_generation(model: PreTrainedModel) -> None:
    """Make the settings of generation such that transformers writes them: it reads some that it refuses to write.

    The common case is a temperature without ``do_sample``, which was meant. Where that is not all, the settings are
    dropped, but for the tokens; sampling here goes by none of them.
    """
    settings = model.generation_config
    for change in ({}, {"do_sample": True}):
        settings.update(**change)
        with contextlib.suppress(ValueError):
            settings.validate(strict=True)
            return
    ids = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)


def _settle_tie(model: PreTrainedModel) -> None:
    """The description says that head and embeddings share their weights only where they do; files may hold both."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        return
    for described in (model.config, model.config.get_text_config()):
        if getattr(described, "tie_word_embeddings", False):
            described.tie_word_embeddings = False


def weights_dtype(config: PolicyConfig) -> torch.dtype:
    """The data type of the weights in memory."""
    return torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)


def attention_options(config: PolicyConfig) -> dict[str, str]:
    """The attention implementation as an option of transformers; empty where transformers should choose."""
    return {} if config.attention == "auto" else {"attn_implementation": config.attention}
