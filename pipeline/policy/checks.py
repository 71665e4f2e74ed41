"""Checks, before any compute is spent, that the configured policy exists and can be trained, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradus.pipeline.common.addresses import HUB_TIMEOUT_SECONDS
from gradus.pipeline.common.errors import UserError, closest, did_you_mean
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.architectures import (
    architecture_options,
    causal_model_types,
    layer_count,
    position_count,
    text_options,
    tied_layers,
)
from gradus.pipeline.policy.stored_weights import AGAIN, INDEX, WHOLE, check_layers, stored_shapes

MAX_LAYERS = 10_000
"""Layers of a model; the deepest published ones have a tenth, and building millions of them would take days."""
DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of a model that transformers reads as JSON objects, each where it is there."""
TOKENIZER_STARTS, TOKENIZER_ENDS = ("tokenizer", "vocab", "merges", "tekken", "spiece"), (".model", ".tiktoken")
"""What the names of a tokenizer's files begin or end with."""
FROM_TOKENIZER = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
"""Options of an architecture that creating a policy sets itself."""
OTHERWISE_COUNTED = ("hrm_text", "longcat_flash")
"""Model types whose weights are in other lists of layers than the number of layers says."""


def check_policy(policy: PolicyConfig) -> None:
    """Check that the policy exists and can be trained. Raises: UserError."""
    if policy.architecture is not None:
        _check_model_type(policy.architecture["model_type"], "policy.architecture.model_type")
        _check_architecture_options(policy.architecture)
        _bounded_layers(policy.architecture, "policy.architecture")
        _check_adapters(policy, policy.architecture)
        return
    path = policy.path or ""
    if Path(path).is_dir():
        _check_adapters(policy, check_model_folder(Path(path), policy.trust_remote_code))
    elif Path(path).is_absolute():
        fix = "correct it (it starts from the configuration's folder), or give a Hub id such as Qwen/Qwen3-0.6B"
        raise UserError("there is no such model folder", where="policy.path", got=path, fix=fix)
    else:
        _check_hub_model(path, policy)


def check_lengths(policy: PolicyConfig, max_tokens: int) -> None:
    """The model takes more tokens than the longest completion has, by its description. Raises: UserError."""
    positions = position_count(described_by(policy))
    if positions is not None and 0 < positions <= max_tokens:
        new = policy.architecture is not None
        raise UserError(
            "the model has too few positions for a prompt and its completion",
            where="policy.architecture.max_position_embeddings" if new else "sampling.max_tokens",
            got=positions if new else f"{max_tokens:,}; {policy.path} says max_position_embeddings: {positions:,}",
            expected=f"more than sampling.max_tokens ({max_tokens}) by the length of the longest prompt",
            fix="raise it, or lower sampling.max_tokens" if new else "lower sampling.max_tokens",
        )


def described_by(policy: PolicyConfig) -> dict[str, Any]:
    """What this machine knows of a policy's architecture; empty where it knows nothing."""
    if policy.architecture is not None or policy.path is None:
        return policy.architecture or {}
    file = Path(policy.path) / "config.json"
    found = file if file.is_file() else _cached_config(policy.path, policy.revision)
    return _read_json(found) if found is not None else {}


def check_model_folder(folder: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Check that a local folder holds a whole causal language model with its tokenizer; returns its description.

    Raises: UserError.
    """
    files = sorted(file.name for file in folder.iterdir())
    _check_model_files(str(folder), files)
    read = {name: _read_json(folder / name) for name in files if name in DESCRIPTIONS}
    described = read["config.json"]
    _check_model_config(described, str(folder), trust_remote_code)
    _check_vocabulary(described, read.get("tokenizer.json", {}), folder)
    tokenizer = [name for name in files if name.startswith(TOKENIZER_STARTS) or name.endswith(TOKENIZER_ENDS)]
    if not tokenizer and not trust_remote_code:
        fix = "copy it from where the model came from, or write it with `tokenizer.save_pretrained(folder)`"
        raise UserError("the model has no tokenizer", where=str(folder), expected="tokenizer.json in it", fix=fix)
    layers = _bounded_layers(described, str(folder / "config.json"))
    if not stored_shapes(folder):
        expected = f"{WHOLE}, or {INDEX} and the files that it names"
        raise UserError("there are no weights in this model", where=str(folder), expected=expected, fix=AGAIN)
    if layers is not None and described.get("model_type") not in OTHERWISE_COUNTED:
        check_layers(folder, layers)
    return described


def _bounded_layers(options: dict[str, Any], where: str) -> int | None:
    """The number of layers in a model's description; None where it is not known. Raises: UserError."""
    layers = layer_count(options)
    if layers is not None and not 1 <= layers <= MAX_LAYERS:
        got, expected = f"{layers:,} layers", f"1 to {MAX_LAYERS:,}"
        raise UserError("no model has this number of layers", where=where, got=got, expected=expected, fix="correct it")
    return layers


def _check_architecture_options(architecture: dict[str, Any]) -> None:
    """transformers stores unknown options as attributes without complaint, so a misspelt width would go unnoticed."""
    known = architecture_options(architecture["model_type"])
    for name in FROM_TOKENIZER & architecture.keys():
        raise UserError(
            "a new model gets this from its tokenizer, which is trained on the task's text",
            where=f"policy.architecture.{name}",
            got=architecture[name],
            fix="leave it out; policy.tokenizer.vocabulary bounds the number of tokens",
        )
    for name in architecture:
        if known and name != "model_type" and name not in known:
            raise UserError(
                f"a {architecture['model_type']} model has no option `{name}`",
                where=f"policy.architecture.{name}",
                got=architecture[name],
                fix=did_you_mean(name, known) or "leave it out, or correct its name",
            )


def _check_adapters(policy: PolicyConfig, described: dict[str, Any]) -> None:
    """No adapter is asked for on embeddings or on a head that shares their weights. Raises: UserError."""
    if policy.lora is None or policy.lora.targets == "auto":
        return
    options = text_options(described)
    for head, embeddings in tied_layers(str(options.get("model_type", ""))):
        shared = {embeddings, head} if options.get("tie_word_embeddings") else {embeddings}
        if refused := [name for name in policy.lora.targets if name.rpartition(".")[2] in shared]:
            raise no_adapter(refused[0], str(policy.lora.targets))


def no_adapter(name: str, got: str) -> UserError:
    """The refusal of an adapter on embeddings, or on a head that shares their weights: merged, the two would differ."""
    return UserError(
        f"`{name}` cannot have an adapter: it holds the model's embeddings, or shares their weights",
        where="policy.lora.targets",
        got=got,
        expected="`auto`, or names of linear layers that share their weights with no other",
        fix="leave it out; without policy.lora every weight trains, embeddings included",
    )


def _check_quantisation(described: dict[str, Any], name: str) -> None:
    """The weights are numbers that can be trained, and not codes for some. Raises: UserError."""
    for part in (described, described.get("text_config")):
        if isinstance(part, dict) and (found := part.get("quantization_config") or part.get("compression_config")):
            method = found.get("quant_method") or found.get("format") if isinstance(found, dict) else ""
            if method == "gguf":  # transformers' mark of a model that came from such a file; its weights are plain
                continue
            raise UserError(
                "the model's weights are quantised, and such weights cannot be trained",
                where="policy.path",
                got=f"{name}, whose config.json has a quantization_config{f' of {method}' if method else ''}",
                expected="weights in float32, bfloat16 or float16",
                fix="take the model that this one was made from; with policy.dtype=bfloat16 and policy.lora it needs "
                "least memory",
            )


def _check_vocabulary(described: dict[str, Any], tokenizer: dict[str, Any], folder: Path) -> None:
    """The model has an embedding for every ordinary token of the tokenizer. Raises: UserError."""
    rows, model = text_options(described).get("vocab_size"), tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    listed = range(len(vocabulary)) if isinstance(vocabulary, list) else ()
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else listed
    highest = max((number for number in numbers if type(number) is int), default=-1)
    if type(rows) is int and highest >= rows:
        raise no_embedding(f"token {highest:,} in tokenizer.json, vocab_size: {rows:,} in config.json", str(folder))


def no_embedding(got: str, where: str) -> UserError:
    """The refusal of a tokenizer with more tokens than the model has embeddings for."""
    return UserError(
        "the tokenizer has tokens that the model has no embeddings for",
        where=where,
        got=got,
        expected="an embedding for every token",
        fix="take the tokenizer that came with the model, or widen the model and save it: "
        "`model.resize_token_embeddings(len(tokenizer))`",
    )


def _check_hub_model(name: str, policy: PolicyConfig) -> None:
    """Check that the Hub, or this machine's cache of it, has the model."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    def problem(what: str, got: object, fix: str, expected: str = "") -> UserError:
        return UserError(what, where="policy.path", got=got, expected=expected, fix=fix)

    local = "a Hub id such as Qwen/Qwen3-0.6B, or the path of a local folder"
    try:
        info = HfApi().model_info(name, revision=policy.revision, timeout=HUB_TIMEOUT_SECONDS)
        files = [file.rfilename for file in info.siblings or []]
        _check_model_files(name, files)
        fetched = hf_hub_download(name, "config.json", revision=policy.revision, etag_timeout=HUB_TIMEOUT_SECONDS)
    except HFValidationError as error:
        raise problem("this is no Hub id and no folder", name, "correct it", local) from error
    except GatedRepoError as error:
        fix = "accept the model's terms on its page and log in with `hf auth login`"
        raise problem("the Hub gives this model only to users who have accepted its terms", name, fix) from error
    except RevisionNotFoundError as error:
        raise problem(
            "the Hub has this model, but not this revision", policy.revision, "correct policy.revision"
        ) from error
    except RepositoryNotFoundError as error:
        fix = "correct the name; for a private model log in with `hf auth login`"
        raise problem("the Hub has no such model", name, fix, local) from error
    except UserError:
        raise
    except Exception as error:  # no network, offline mode, or a proxy's answer: a cached model will do
        cached = _cached_config(name, policy.revision)
        if cached is None:
            fix = "check the network (HF_HUB_OFFLINE, HF_ENDPOINT, proxies), or give the path of a local folder"
            reason = str(error).split("\n")[0]
            raise problem(
                "the Hub cannot be reached, and the model is not in its cache", f"{name}: {reason}", fix
            ) from error
        _check_model_files(name, [file.name for file in cached.parent.iterdir()])
        fetched = str(cached)
    described = _read_json(Path(fetched))
    _check_model_config(described, name, policy.trust_remote_code)
    _bounded_layers(described, f"{name}/config.json")
    _check_adapters(policy, described)


def _cached_config(name: str, revision: str | None) -> Path | None:
    """The description of a model in the Hub's cache; None where there is none, or the name is no Hub id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _check_model_files(name: str, files: Iterable[str]) -> None:
    found = set(files)
    if "config.json" not in found:
        fix = "give the folder of a Hugging Face model; a run's are under runs/NAME/stages/*/checkpoints"
        raise UserError(
            "this is no Hugging Face model", where="policy.path", got=name, expected="config.json in it", fix=fix
        )
    if not any(file.endswith(".safetensors") for file in found):
        pickled = sorted(file for file in found if file.endswith((".bin", ".pt", ".pth")))
        raise UserError(
            "the model has no weights in safetensors form",
            where="policy.path",
            got=f"{name} with {', '.join(pickled[:3])}" if pickled else name,
            expected="*.safetensors; pickled weights can run any code when loaded and are never read",
            fix="convert it where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )


def _check_model_config(described: dict[str, Any], name: str, trust_remote_code: bool) -> None:
    _check_quantisation(described, name)
    model_type = str(described.get("model_type", ""))
    if model_type in causal_model_types() or trust_remote_code:
        return
    if described.get("auto_map"):
        raise UserError(
            "this model brings its own Python code",
            where="policy.trust_remote_code",
            got=f"{name}, whose config.json has auto_map",
            expected="true, once you have read that code",
            fix="set policy.trust_remote_code=true, or choose a model that transformers knows",
        )
    _check_model_type(model_type, f"{name}/config.json, model_type")


def _check_model_type(model_type: str, where: str) -> None:
    known = causal_model_types()
    if known and model_type not in known:
        any_of = "choose one of transformers' causal language models, such as llama or qwen3"
        fix = closest(model_type, known) or any_of
        raise UserError(f"transformers has no causal language model of the type `{model_type}`", where=where, fix=fix)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model. Raises: UserError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = str(error).partition("\n")[0]
        raise UserError("a file of the model cannot be read", where=str(path), got=got, fix=AGAIN) from None
    if not isinstance(data, dict):
        got, expected = type(data).__name__, "a JSON object, {...}"
        raise UserError("a file of the model has another form", where=str(path), got=got, expected=expected, fix=AGAIN)
    return data
