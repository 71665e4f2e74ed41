"""What a model makes of texts, by its files alone, before it is loaded: how many tokens, and whether one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.architectures import position_count, text_options


def too_long(policy: PolicyConfig, questions: Sequence[str], max_tokens: int) -> tuple[int, int, int] | None:
    """(questions that are too long, tokens of the longest, tokens that the model takes beside ``max_tokens``).

    None where all fit, or where that cannot be said: the model is new, not on this machine, or has no such limit. The
    template comes on top, so that a few more may be too long when the model is loaded.
    """
    files = [model_file(policy, name) for name in ("config.json", "tokenizer.json")]
    if policy.path is None or None in files:
        return None
    description, tokens = (file for file in files if file is not None)
    positions = position_count(_json(description))
    limit = (positions or 0) - max_tokens
    long = [question for question in questions if len(question.encode()) > limit]  # no token is less than a byte
    if not positions or positions <= 0 or not long:
        return None
    over = [length for length in token_counts(tokens, long) if length > limit]
    return (len(over), max(over), limit) if over else None


def token_counts(tokenizer: Path, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has by this ``tokenizer.json``. Raises: UserError where it cannot be read."""
    return [len(encoded.ids) for encoded in _read(tokenizer).encode_batch_fast(list(texts), add_special_tokens=False)]


def check_ban(policy: PolicyConfig, entries: Sequence[int | str], where: str) -> None:
    """Each entry of ``ban`` is one token, where the model's files are on this machine. Raises: UserError.

    A text that may be one token when the model is loaded, which settles it, is let through: whether the first word of a
    text gets a space before it, and which tokens are added, is in other files.
    """
    tokenizer, description = model_file(policy, "tokenizer.json"), model_file(policy, "config.json")
    if tokenizer is None or description is None or not entries:
        return
    size, added = text_options(_json(description)).get("vocab_size"), model_file(policy, "tokenizer_config.json")
    more = _json(added).get("added_tokens_decoder") if added is not None else None
    others = {token.get("content"): int(number) for number, token in more.items()} if isinstance(more, dict) else {}
    read = _read(tokenizer)

    def tokens_of(text: str) -> list[int]:
        spelt = (text, text.lstrip(), f" {text}")
        return min((read.encode(each, add_special_tokens=False).ids for each in spelt if each), key=len)

    for entry in entries:
        single_token(entry, lambda text: others.get(text, read.token_to_id(text)), tokens_of, size, f"{where}.ban")


def single_token(
    entry: int | str,
    known: Callable[[str], int | None],
    tokens_of: Callable[[str], list[int]],
    size: int | None,
    where: str,
) -> int:
    """The token that an entry of ``ban`` names. Raises: UserError where it is none, or several.

    ``known``: the token of this spelling; ``tokens_of``: the tokens of a text; ``size``: for how many tokens the model
    has embeddings, where that is known.
    """
    if isinstance(entry, str):
        token = known(entry)
        tokens = tokens_of(entry) if token is None else [token]
        got = f"{entry!r}, which is {len(tokens)} tokens"
    else:
        tokens, got = ([entry] if size is None or entry < size else []), str(entry)
    if len(tokens) == 1:
        return tokens[0]
    raise UserError(
        "an entry of `ban` is no single token of this model",
        where=where,
        got=got,
        expected="the text of one token" + (f", or a number below {size:,}" if size is not None else ""),
        fix="name the tokens that it consists of, or leave it out",
    )


def _json(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none, which the check of the model tells."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(tokenizer: Path) -> Any:
    """The tokenizer in a ``tokenizer.json``. Raises: UserError where it cannot be read."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            "the tokenizer of the model cannot be read",
            where=str(tokenizer),
            got=str(error),
            fix="copy the model again",
        ) from error


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
