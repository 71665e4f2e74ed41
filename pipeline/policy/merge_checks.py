"""Whether models can be merged: one architecture, one set of weights, one vocabulary. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.graph.inputs import is_model
from gradus.pipeline.policy.checks import check_policy, described_by
from gradus.pipeline.policy.stored_weights import stored_shapes

BESIDE = {
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "initializer_range",
    "pad_token_id", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""What descriptions of one architecture may say differently."""
SHOWN = 3


def check_merge(config: PipelineConfig, stage: Any) -> None:
    """The models from elsewhere that a merge names exist and are of the pipeline's architecture, as far as their
    descriptions say. Raises: UserError."""
    for place, name in enumerate(stage.of):
        if not is_model(name):
            continue
        where = f"stages.{stage.label}.of.{place}"
        if (folder := Path(name)).is_dir() and (folder / "adapter_config.json").is_file():
            raise UserError(
                "adapters alone cannot be merged",
                where=where,
                got=f"{name}, which has adapter_config.json",
                expected="a whole model",
                fix="merge the adapters into their model first: `model.merge_and_unload().save_pretrained(folder)`",
            )
        other = config.policy.model_copy(update={"path": name, "architecture": None, "revision": None})
        try:
            check_policy(other)
        except UserError as error:
            raise UserError(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from None
        ours, theirs = described_by(config.policy), described_by(other)
        if ours and theirs:
            shared = {key: value for key, value in theirs.items() if config.policy.path or key in ours}
            _refuse(_differing(ours, shared), where, name, "the pipeline's policy")


def refuse_others(like: Path, models: Sequence[Path]) -> None:
    """All models are of the architecture of the first, with weights of the same names and shapes, and one vocabulary.

    Raises: UserError.
    """
    ours, shapes, words = _json(like / "config.json"), stored_shapes(like), _vocabulary(like)
    for model in models:
        _refuse(_differing(ours, _json(model / "config.json")), str(model), model.name, str(like))
        theirs = stored_shapes(model)
        unlike = [name for name in sorted({*shapes, *theirs}) if shapes.get(name) != theirs.get(name)]
        found = [f"{name}: {theirs.get(name, 'none')}, not {shapes.get(name, 'none')}" for name in unlike]
        _refuse(found, str(model), model.name, str(like))
        other = _vocabulary(model)
        if words and other and words != other:
            raise UserError(
                "models with other tokens cannot be merged",
                where=str(model),
                got="a tokenizer.json with another vocabulary",
                expected=f"that of {like}",
                fix="take models that were trained from one",
            )


def _refuse(found: list[str], where: str, name: str, like: str) -> None:
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            "models of two architectures cannot be merged",
            where=where,
            got=f"{name}, with {'; '.join(found[:SHOWN])}{more}",
            expected=f"the architecture of {like}",
            fix="take models that were trained from one",
        )


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The keys of two descriptions that differ, one ``key: theirs, not ours`` each."""
    keys = sorted((ours.keys() & theirs.keys()) - BESIDE)
    return [f"{key}: {theirs[key]}, not {ours[key]}" for key in keys if ours[key] != theirs[key]]


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("a file of the model cannot be read", where=str(file), got=str(error)) from None


def _vocabulary(folder: Path) -> Any:
    """The tokens of a model's tokenizer, where its file lists them."""
    file = folder / "tokenizer.json"
    model = _json(file).get("model") if file.is_file() else None
    return model.get("vocab") if isinstance(model, dict) else None
