"""Files of rows: which ones a path names, and their rows, some at a time.

A table is never held in memory as Python objects as a whole. pyarrow is imported where it is used, because importing it
is slow.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.tasks.arrow import arrow_rows, count_arrow_rows
from gradus.pipeline.tasks.formats import CONVERSATIONS, QUESTIONS
from gradus.pipeline.tasks.metadata import BATCH

TEXTS, COMPRESSED = (".jsonl", ".json", ".csv"), (".gz", ".zst")
FORMATS = (*TEXTS[:2], ".parquet", TEXTS[2], *(text + packed for text in TEXTS for packed in COMPRESSED), ".arrow")
"""Endings of the files that can be read."""
HELD_OUT = re.compile(r"(^|[-_.])(test|valid|validation|dev|eval)([-_.\d]|$)")
"""A word in the names of files, or of their folders, that hold no training rows."""
SEVERAL_SPLITS = "the folder has several splits"
NOT_A_NUMBER = ("nan", "NaN")
"""What programs write into a CSV cell that has no number."""


def files_of(paths: str | list[str], base_dir: Path, where: str) -> list[Path]:
    """The files that paths, folders and patterns name, each once. Raises: UserError."""
    named = [paths] if isinstance(paths, str) else paths
    places = [where] if isinstance(paths, str) else [f"{where}.{number}" for number in range(len(paths))]
    found = [file for path, place in zip(named, places, strict=True) for file in _files_of(path, base_dir, place)]
    if not found:
        raise UserError("no file is named", where=where, got="[]", fix="name at least one file of prompts")
    for file in found:
        if kind_of(file) is None:
            raise UserError(
                "unknown kind of file",
                where=where,
                got=file.name,
                expected=", ".join(FORMATS),
                fix="convert the file, or give it the suffix of its format",
            )
    return list(dict.fromkeys(found))


def kind_of(path: Path) -> str | None:
    """The suffix of the file's format, without that of its compression; None where it cannot be read."""
    name = path.name.lower()
    ending = next((ending for ending in sorted(FORMATS, key=len, reverse=True) if name.endswith(ending)), None)
    return ending and next((kind for kind in (*TEXTS, ".parquet", ".arrow") if ending.startswith(kind + ".")), ending)


def rows_of(path: Path, where: str, notes: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of a file, in order, some at a time. ``notes`` gets what the user should know of where they were.

    Raises: UserError where it cannot be read.
    """
    if kind_of(path) in (".parquet", ".arrow"):
        return arrow_rows(path, where)
    rows = _rows(path, where, notes=notes)
    return iter(lambda: list(itertools.islice(rows, BATCH)), [])


def count_rows(path: Path, where: str, most: int) -> int:
    """The number of rows in a file, at most ``most`` of them counted; lines of JSON are not read for that."""
    if kind_of(path) in (".parquet", ".arrow"):
        return count_arrow_rows(path, where)
    return sum(1 for _ in itertools.islice(_rows(path, where, parse=False), most))


def rows_with(path: Path, where: str, column: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON that have this column, or the group that it is in; other rows have all columns."""
    if kind_of(path) in (".jsonl", ".json"):
        yield from _rows(path, where, only=json.dumps(column.partition(".")[0]))


def _files_of(path: str, base_dir: Path, where: str) -> list[Path]:
    """The files of one path, folder or pattern, in alphabetical order."""
    place = base_dir / Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        return _in_folder(place, where)
    if any(sign in path for sign in "*?["):
        found = sorted(Path(name) for name in glob.glob(str(place), recursive=True))
        found = [file for file in found if file.is_file()]
        if found:
            return found
    siblings = [p.name for p in place.parent.iterdir() if kind_of(p)] if place.parent.is_dir() else []
    raise UserError(
        "no such file" if place.name == glob.escape(place.name) else "no file matches the pattern",
        where=where,
        got=str(place),
        expected="a file of prompts, a folder or a pattern; a relative path starts at the configuration's folder",
        fix=did_you_mean(place.name, siblings) if siblings else "correct the path",
    )


def _in_folder(folder: Path, where: str) -> list[Path]:
    """The files of a folder: those of a saved data set, or all of one format. Raises: UserError."""
    if (folder / "dataset_dict.json").is_file():
        splits = _described(folder / "dataset_dict.json", "splits", where)
        chosen = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
        if chosen is None:
            raise _splits(folder, splits, where)
        folder = folder / chosen
    if (folder / "state.json").is_file():
        return [folder / entry["filename"] for entry in _described(folder / "state.json", "_data_files", where)]
    visible = (
        path for path in sorted(folder.rglob("*")) if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )
    files = [path for path in visible if path.is_file() and kind_of(path) is not None]
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1:  # descriptions of data sets are JSON files
        kinds -= {".json"}
        files = [file for file in files if kind_of(file) in kinds]
    if len(kinds) != 1:
        raise UserError(
            "the folder has no files of prompts" if not kinds else "the folder has files of several formats",
            where=where,
            got=f"{folder} with {', '.join(path.name for path in (files or sorted(folder.iterdir()))[:5])}",
            expected=f"files of one of the formats {', '.join(FORMATS)}",
            fix="name a file, or give a pattern such as `folder/*.jsonl`",
        )
    held_out = {
        file for file in files if HELD_OUT.search(file.relative_to(folder).as_posix().lower().replace("/", "."))
    }
    if held_out and len(held_out) < len(files):
        raise _splits(folder, [str(file.relative_to(folder)) for file in files], where)
    return files


def _splits(folder: Path, names: list[str], where: str) -> UserError:
    return UserError(
        SEVERAL_SPLITS,
        where=where,
        got=f"{folder} with {', '.join(names[:6])}",
        expected="the rows to train on",
        fix=f"name one of them in {where}, and another in task.heldout_path; a pattern such as `train*.jsonl` is fine",
    )


def _described(path: Path, key: str, where: str) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "save the data set again with `Dataset.save_to_disk`"
        raise UserError("the saved data set is damaged", where=where, got=f"{path}: {error!r}", fix=fix) from error


@contextlib.contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """The text of a file, unpacked while it is read."""
    with contextlib.ExitStack() as opened:
        packed: Any = opened.enter_context(path.open("rb"))
        if path.suffix.lower() == ".gz":
            packed = opened.enter_context(gzip.open(packed))
        elif path.suffix.lower() == ".zst":
            import pyarrow

            packed = opened.enter_context(pyarrow.input_stream(packed, compression="zstd"))
        yield opened.enter_context(io.TextIOWrapper(packed, encoding="utf-8-sig", newline=""))


def _rows(
    path: Path, where: str, parse: bool = True, only: str = "", notes: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL, JSON or CSV file.

    With ``parse=False`` lines of JSON are only counted; with ``only``, those without this text are passed over.
    """
    line, kind = 0, kind_of(path)
    try:
        with _text(path) as file:
            if kind == ".csv":
                csv.field_size_limit(2**31 - 1)
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    line = reader.line_num
                    if None in row or None in row.values():
                        raise ValueError(f"expected {len(reader.fieldnames or [])} values")
                    yield {name: None if value in NOT_A_NUMBER else value for name, value in row.items()}
                return
            lines: Iterable[str] = file
            if kind == ".json":
                start = next((text for text in file if text.strip()), "")
                if start.lstrip()[:1] != "{" or not _is_json(start):
                    yield from _whole(json.loads(start + file.read()), path, where, notes)
                    return
                second = next((text for text in file if text.strip()), "")
                if not second and not _is_row(whole := json.loads(start)):
                    yield from _whole(whole, path, where, notes)
                    return
                lines = itertools.chain([start, second], file)
            for text in lines:
                line += 1
                if text.strip() and only in text:
                    row = json.loads(text) if parse else {}
                    if not isinstance(row, dict):
                        raise ValueError("expected one object a line")
                    yield row
    except (
        ValueError,
        csv.Error,
        OSError,
        EOFError,
        RecursionError,
    ) as error:  # text that is not UTF-8 is a ValueError
        raise UserError(
            f"{path.name} cannot be read{f', line {line}' if line else ''}: {error}",
            where=where,
            got=str(path),
            fix="correct the file; text is expected in UTF-8",
        ) from error


def _is_json(text: str) -> bool:
    """Whether a line is JSON by itself, as lines of JSON are; the first line of an indented file is not."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_row(value: dict[str, Any]) -> bool:
    """Whether an object that is alone in its file is a row, and no list of rows with what is said about it."""
    lists = [item for item in value.values() if _are_rows(item)]
    talks = any(row.keys() & {"role", "from"} for rows in lists for row in rows)
    return talks or not lists or bool(value.keys() & {*QUESTIONS, *CONVERSATIONS, "instruction"})


def _whole(value: Any, path: Path, where: str, notes: list[str] | None) -> list[dict[str, Any]]:
    """The rows of a file that is one value: a list of objects, or an object with one such list. Raises: UserError."""
    if _are_rows(value) or value == []:
        return value
    named = value if isinstance(value, dict) else {}
    lists = [name for name, item in named.items() if _are_rows(item)]
    if len(lists) == 1 and not _is_row(named):
        others = f", beside {', '.join(name for name in named if name not in lists)}" if len(named) > 1 else ""
        if notes is not None:
            notes.append(f"{path.name}: its rows are the list {lists[0]!r}{others}")
        return named[lists[0]]
    found = ", ".join(f"{name}: {_described_as(item)}" for name, item in itertools.islice(named.items(), 8))
    fix = "write the rows as a list of objects, or one object a line"
    if len(lists) > 1:
        fix = "write each list to a file of its own, and name the one to train on"
    raise UserError(
        f"{path.name} holds {'several lists' if len(lists) > 1 else 'no list'} of rows",
        where=where,
        got=f"an object with {found}" if named else _described_as(value),
        expected="a list of objects, one object a line, or an object with one list of objects",
        fix=fix,
    )


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _described_as(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, list):
        return f"a list of {len(value):,}" + (" objects" if _are_rows(value) else "")
    return "an object" if isinstance(value, dict) else repr(value)[:40]
