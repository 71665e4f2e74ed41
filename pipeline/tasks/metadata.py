"""Batches of rows, and their values as text: answers as a person writes them, metadata as JSON without any loss."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

BATCH = 1000
"""Number of rows that are read or generated at a time."""

Batch = dict[str, list[Any]]
"""column -> its values in consecutive rows."""

_TEXTUAL: dict[str, tuple[type, Any, Any]] = {
    "$fraction": (Fraction, str, Fraction),
    "$decimal": (Decimal, str, Decimal),
    "$complex": (complex, str, complex),
    "$bytes": (bytes, bytes.hex, bytes.fromhex),
    "$datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "$date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "$time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}
"""tag -> (type, to text, from text); datetime precedes date, of which it is a subclass."""

_ENCODER, _PLAIN, _NAMES = json.JSONEncoder(allow_nan=False), {str, int, bool, type(None)}, {str}

_COLLECTIONS: dict[str, Any] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


def as_text(value: Any) -> str:
    """A question or an answer as text: ``372`` for 372 and for a table's 372.0, ``true`` for True.

    Raises: TypeError for a list, a mapping, or any other value without a unique spelling.

    >>> as_text(372.0), as_text(0.5), as_text(False), as_text(" 7 ")
    ('372', '0.5', 'false', ' 7 ')
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # a column of integers with a missing value is stored as floats
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(float(value))
    if isinstance(value, int | Fraction | Decimal):
        return str(value)
    raise TypeError(f"expected text or a number, got a {type(value).__name__}")


def encode(metadata: dict[str, Any]) -> str:
    """Metadata as JSON. Types that JSON lacks are tagged: tuples, sets, keys other than text, fractions, dates ...

    numpy scalars and arrays become Python numbers and lists.

    Raises: TypeError for an object of any other class.
    """
    if _PLAIN.issuperset(map(type, metadata.values())) and _NAMES.issuperset(map(type, metadata)):
        text = _ENCODER.encode(metadata)
        if '"$' not in text:
            return text
    return _ENCODER.encode(_tagged(metadata))


def decode(text: str) -> dict[str, Any]:
    """The metadata that :func:`encode` wrote.

    >>> decode(encode({"pair": (1, 2), "by_node": {0: {"a"}}}))
    {'pair': (1, 2), 'by_node': {0: {'a'}}}
    """
    return json.loads(text, object_hook=_untagged)


def packed(**more: Any) -> str | None:
    """The fields that only some prompts have (``turns``, ``tools``, ``alternatives`` and others), as JSON."""
    if not any(more.values()):
        return None
    given = {name: value for name, value in more.items() if value}
    return json.dumps(given, ensure_ascii=False)


def unpacked(text: str) -> dict[str, Any]:
    """The fields of a prompt that :func:`packed` wrote."""
    return {name: value if isinstance(value, str) else tuple(value) for name, value in json.loads(text).items()}


def _tagged(value: Any) -> Any:
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else {"$float": str(value)}
    if isinstance(value, list):
        return [_tagged(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _tagged(item) for key, item in value.items()}
        return {"$dict": [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    for tag, kind in _COLLECTIONS.items():
        if isinstance(value, kind):
            items = value if kind is tuple else sorted(value, key=repr)  # a set's own order differs between processes
            return {tag: [_tagged(item) for item in items]}
    for tag, (textual, to_text, _) in _TEXTUAL.items():
        if isinstance(value, textual):
            return {tag: to_text(value)}
    raise TypeError(f"metadata holds a {type(value).__name__}, which cannot be stored as JSON")


def _untagged(found: dict[str, Any]) -> Any:
    if len(found) != 1:
        return found
    tag, inner = next(iter(found.items()))
    if tag == "$dict":
        return dict(inner)
    if tag == "$float":
        return float(inner)
    if tag in _COLLECTIONS:
        return _COLLECTIONS[tag](inner)
    if tag in _TEXTUAL:
        return _TEXTUAL[tag][2](inner)
    return found
