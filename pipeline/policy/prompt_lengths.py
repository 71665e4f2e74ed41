"""How many tokens questions have, counted with a model's files alone, before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.architectures import position_count


def too_long(policy: PolicyConfig, questions: Sequence[str], max_tokens: int) -> tuple[int, int, int] | None:
    """(questions that are too long, tokens of the longest, tokens that the model takes beside ``max_tokens``).

    None where all fit, or where that cannot be said: the model is new, not on this machine, or has no such limit. The
    template comes on top, so that a few more may be too long when the model is loaded.
    """
    files = [model_file(policy, name) for name in ("config.json", "tokenizer.json")]
    if policy.path is None or None in files:
        return None
    description, tokens = (file for file in files if file is not None)
    try:
        positions = position_count(json.loads(description.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):  # which the check of the model tells
        return None
    limit = (positions or 0) - max_tokens
    long = [question for question in questions if len(question.encode()) > limit]  # no token is less than a byte
    if not positions or positions <= 0 or not long:
        return None
    over = [length for length in token_counts(tokens, long) if length > limit]
    return (len(over), max(over), limit) if over else None


def token_counts(tokenizer: Path, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has by this ``tokenizer.json``. Raises: UserError where it cannot be read."""
    from tokenizers import Tokenizer

    try:
        read = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            "the tokenizer of the model cannot be read",
            where=str(tokenizer),
            got=str(error),
            fix="copy the model again",
        ) from error
    return [len(encoded.ids) for encoded in read.encode_batch_fast(list(texts), add_special_tokens=False)]


def model_file(policy: PolicyConfig, name: str) -> Path | None:
    """A file of the model's folder, or of the Hub's cache on this machine."""
    local = Path(policy.path or "") / name
    if local.is_file():
        return local
    if local.is_absolute() or not policy.path:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(policy.path, name, revision=policy.revision)
    return Path(found) if isinstance(found, str) else None
