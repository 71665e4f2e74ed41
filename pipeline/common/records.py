"""Small records as JSON files, each with a hash of its own content, so that damage is noticed where one is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_json

SEAL = "record"
"""The key of the hash of all other fields."""

Fields = dict[str, Any]


def write_sealed(path: Path, fields: Fields) -> None:
    """Replace ``path`` atomically with the fields, as JSON, and their hash."""
    plain = json.loads(json.dumps(fields, allow_nan=False))
    write_json(path, plain | {SEAL: digest_of(plain)})


def read_sealed(path: Path, fix: str = "") -> Fields | None:
    """The fields of a record, without their hash; None where there is no such file.

    Records that earlier versions wrote have no hash, and are read as they are.
    Raises: UserError that names the file, where it is damaged; ``fix`` says what to do.
    """
    try:
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise ValueError(f"a {type(fields).__name__} in place of fields")
        if _altered(fields):
            raise ValueError("its content is another one than its hash says")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error), fix) from None
    fields.pop(SEAL, None)
    return fields


def damaged(path: Path, got: str, fix: str) -> UserError:
    """The error that a record is not as it was written."""
    what = f"{path.parent.name}/{path.name} is damaged"
    return UserError(what, where=str(path), got=got, expected="the file as it was written", fix=fix)


def digest_of(content: Fields | str) -> str:
    """A short hash of fields, whatever their order, or of a text."""
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _altered(fields: Fields) -> bool:
    """Whether the fields differ from their hash. The hash itself may have lost its name to the damage."""
    if SEAL in fields:
        return fields[SEAL] != digest_of(_without(fields, SEAL))
    texts = [key for key, value in fields.items() if isinstance(value, str) and len(value) == 16]
    return any(fields[key] == digest_of(_without(fields, key)) for key in texts)


def _without(fields: Fields, key: str) -> Fields:
    return {name: value for name, value in fields.items() if name != key}
