"""Tables of Arrow as Python values: Parquet files, files of saved data sets, and batches of the `datasets` library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.metadata import BATCH

Rows = list[dict[str, Any]]

Labels = Mapping[str, list[str]]
"""Column of class labels -> their names."""


class Unreadable:
    """Stands for a value that Python cannot hold, or that is damaged."""

    def __init__(self, reason: object):
        self.reason = " ".join(str(reason).split())[:100]

    def __repr__(self) -> str:
        return self.reason


def arrow_rows(path: Path, where: str) -> Iterator[Rows]:
    """The rows of a Parquet or Arrow file, in order, some at a time. Raises: UserError."""
    import pyarrow

    with _opened(path, where) as table:
        labels = _labels(table.schema) if path.suffix.lower() == ".arrow" else {}
        try:
            for batch in table.iter_batches(BATCH) if path.suffix.lower() == ".parquet" else table:
                for start in range(0, batch.num_rows, BATCH):
                    yield as_rows(batch.slice(start, BATCH), labels)
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(path, where, error) from error


def count_arrow_rows(path: Path, where: str) -> int:
    """The number of rows in a Parquet or Arrow file. Raises: UserError."""
    with _opened(path, where) as table:
        if path.suffix.lower() == ".parquet":
            return table.metadata.num_rows
        return sum(batch.num_rows for batch in table)


def as_rows(batch: Any, labels: Labels | None = None) -> Rows:
    """The rows of an Arrow batch or table as Python values; class labels become their names.

    Images, sounds and other binary columns, which no reward can use, are left out. Numbers of half and single
    precision become the shortest number that stands for the same one.
    """
    columns: dict[str, list[Any]] = {}
    for field in batch.schema:
        if "binary" not in str(field.type):
            values = _values(batch.column(field.name))
            columns[field.name] = list(map(_short(field.type), values)) if _is_narrow(field.type) else values
    for name, names in (labels or {}).items():
        columns[name] = [names[n] if n is not None and 0 <= n < len(names) else None for n in columns[name]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(column: Any) -> list[Any]:
    import pyarrow

    refused = (ValueError, TypeError, OverflowError, ImportError, pyarrow.ArrowException)  # a ValueError: not UTF-8
    try:
        return column.to_pylist()
    except refused:
        pass
    values: list[Any] = []
    for scalar in column:
        try:
            values.append(scalar.as_py())
        except refused as error:
            values.append(Unreadable(error))
    return values


def _is_narrow(kind: Any) -> bool:
    return re.search(r"\b(half)?float\b", str(kind)) is not None


def _short(kind: Any) -> Callable[[Any], Any]:
    """A function that shortens the numbers of half and single precision in the values of this type."""
    import pyarrow.types as types

    if types.is_float16(kind) or types.is_float32(kind):
        import numpy

        narrow = numpy.float16 if types.is_float16(kind) else numpy.float32
        return lambda value: None if value is None else float(str(narrow(value)))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _short(kind.value_type)
        return lambda value: [inner(item) for item in value] if isinstance(value, list) else value
    if types.is_struct(kind):
        fields = {field.name: _short(field.type) for field in kind}
        return lambda value: {n: fields[n](v) for n, v in value.items()} if isinstance(value, dict) else value
    return lambda value: value


def _labels(schema: Any) -> dict[str, list[str]]:
    """The class labels of a data set that `datasets` saved."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features") or {}
    return {n: f["names"] for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}


def _opened(path: Path, where: str) -> Any:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.ParquetFile(path)
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, where, error) from error


def _damaged(path: Path, where: str, error: Exception) -> UserError:
    kind = path.suffix.lower()[1:].capitalize()
    return UserError(f"{path.name} is no {kind} file: {error}", where=where, got=str(path), fix="write the file again")
