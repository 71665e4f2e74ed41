"""Prompts from JSONL, JSON, Parquet and CSV files: cheap checks, and reading in batches of columns.

A table is never held in memory as Python objects as a whole. pyarrow is imported where it is used, because importing it
is slow.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config.task import Columns
from gradus.pipeline.tasks.metadata import BATCH, Batch, as_text, encode

FORMATS = (".jsonl", ".json", ".parquet", ".csv")
"""Suffixes of the files that can be read."""


def check_file(path: Path, columns: Columns, rows: int, where: str) -> None:
    """Check that the file can be read and has the columns and at least ``rows`` rows; reads no more than needed.

    Raises: UserError.
    """
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir() if p.suffix in FORMATS] if path.parent.is_dir() else []
        raise UserError(
            "no such file",
            where=where,
            got=str(path),
            expected="a file of prompts; a relative path starts at the configuration's folder",
            fix=did_you_mean(path.name, siblings) if siblings else "correct the path",
        )
    if path.suffix.lower() == ".parquet":
        parquet = _parquet(path, where)
        found, present = parquet.metadata.num_rows, list(parquet.schema_arrow.names)
    elif path.suffix.lower() in FORMATS:
        head = itertools.islice(_rows(path, where), 20)
        present = list(dict.fromkeys(key for row in head for key in row))
        found = sum(1 for _ in itertools.islice(_rows(path, where, parse=False), rows))
    else:
        raise UserError(
            "unknown kind of file",
            where=where,
            got=path.name,
            expected=", ".join(FORMATS),
            fix="convert the file, or give it the suffix of its format",
        )
    if found == 0 or found < rows:
        raise UserError(
            f"{path.name} has too few rows",
            where=where,
            got=f"{found} rows",
            expected=f"at least {rows}, for task.heldout, task.validation and training",
            fix="lower task.heldout or task.validation, or bring more rows",
        )
    check_columns(present, columns, path.name)


def read_file(path: Path, columns: Columns, where: str, notes: list[str]) -> Iterator[Batch]:
    """The rows of a file, in order."""
    if path.suffix.lower() == ".parquet":
        batches: Iterator[Batch] = (without_binary(batch) for batch in _parquet(path, where).iter_batches(BATCH))
    else:
        rows = _rows(path, where)
        batches = map(_pivot, iter(lambda: list(itertools.islice(rows, BATCH)), []))
    return normalised(batches, columns, path.name, notes)


def check_columns(present: Iterable[str], columns: Columns, source: str) -> None:
    """Check that all configured columns exist. Raises: UserError."""
    names = list(present)
    for role, name in columns.model_dump().items():
        if name is not None and name not in names:
            raise UserError(
                f"{source} has no column {name!r}",
                where=f"task.columns.{role}",
                got=name,
                expected=f"one of its columns: {', '.join(names)}",
                fix=f"set task.columns.{role} to the column that holds it",
            )


def normalised(batches: Iterable[Batch], columns: Columns, source: str, notes: list[str]) -> Iterator[Batch]:
    """Batches with the columns question, answer, metadata (JSON of all other columns) and demonstration.

    Rows without a question or an answer are left out, and ``notes`` gets their number.
    Raises: UserError where a value is neither text nor a number.
    """
    named = {role: name for role, name in columns.model_dump().items() if name is not None}
    seen = dropped = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        for name in named.values():
            batch.setdefault(name, [None] * size)
        texts = {role: _texts(batch[name], role, name, source, seen) for role, name in named.items()}
        kept = [i for i in range(size) if texts["question"][i] and texts["answer"][i]]
        seen, dropped = seen + size, dropped + size - len(kept)
        others = [(name, values) for name, values in batch.items() if name not in named.values()]
        yield {
            "question": [texts["question"][i] for i in kept],
            "answer": [texts["answer"][i] for i in kept],
            "metadata": [_metadata({name: values[i] for name, values in others}, source) for i in kept],
            "demonstration": [texts["demonstration"][i] or None if "demonstration" in texts else None for i in kept],
        }
    if dropped:
        notes.append(f"{dropped} of {seen} rows of {source} left out: no question or no answer")


def _metadata(values: dict[str, Any], source: str) -> str:
    try:
        return encode(values)
    except RecursionError:
        what = f"{source} has values that are nested too deeply"
        raise UserError(what, where="task", got=", ".join(values), fix="leave these columns out of the file") from None


def without_binary(batch: Any) -> Batch:
    """An Arrow batch as Python values, without images, sounds and other binary columns, which no reward can use."""
    return batch.select([f.name for f in batch.schema if "binary" not in str(f.type)]).to_pydict()


def _texts(values: list[Any], role: str, name: str, source: str, offset: int) -> list[str]:
    texts = []
    for row, value in enumerate(values, start=offset + 1):
        try:
            text = "" if value is None else as_text(value)
            text.encode()  # JSON can spell half a character, which no file and no tokenizer takes
        except (TypeError, UnicodeEncodeError) as error:
            raise UserError(
                f"{source}, row {row}: column {name!r} holds no text",
                where=f"task.columns.{role}",
                got=ascii(value)[:80],
                expected="text or a number",
                fix=f"set task.columns.{role} to a column of texts",
            ) from error
        texts.append(text if text.strip() else "")
    return texts


def _pivot(rows: list[dict[str, Any]]) -> Batch:
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(path: Path, where: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        fix = "write the file again"
        raise UserError(f"{path.name} is no Parquet file: {error}", where=where, got=str(path), fix=fix) from error


def _rows(path: Path, where: str, parse: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL, JSON or CSV file; with ``parse=False`` the lines of JSONL are only counted."""
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                csv.field_size_limit(2**31 - 1)
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    line = reader.line_num
                    if None in row or None in row.values():
                        raise ValueError(f"expected {len(reader.fieldnames or [])} values")
                    yield row
            elif path.suffix.lower() == ".json":
                rows = json.load(file)
                if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                    raise ValueError("expected a list of objects")
                yield from rows
            else:
                for text in file:
                    line += 1
                    if text.strip():
                        row = json.loads(text) if parse else {}
                        if not isinstance(row, dict):
                            raise ValueError("expected one object a line")
                        yield row
    except (ValueError, csv.Error, OSError, RecursionError) as error:  # text that is not UTF-8 is a ValueError too
        raise UserError(
            f"{path.name} cannot be read{f', line {line}' if line else ''}: {error}",
            where=where,
            got=str(path),
            fix="correct the file; text is expected in UTF-8",
        ) from error
