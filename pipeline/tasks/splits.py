"""From batches of rows to disjoint splits: ids, duplicates, held-out prompts, and prompts excluded from training.

Tables here are Arrow tables with the columns of ``COLUMNS`` and ``key``, a hash of the question with case and
whitespace folded. The key decides which prompts are held out, and rows with the same key are never in two splits.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.metadata import BATCH, Batch, packed, unpacked

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "validation", "heldout")
"""Names of the splits, and of their Parquet files."""
MORE = "more"
"""Column of what only some prompts have: see :func:`gradus.pipeline.tasks.metadata.packed`."""
COLUMNS = ("id", "question", "answer", "metadata", "demonstration", MORE)
"""The columns of a split, all of them text; only the last two may be null."""


def named(task: str, what: str) -> str:
    """What belongs to a task, under its name.

    >>> named("math", "train"), named("", "train")
    ('math.train', 'train')
    """
    return f"{task}.{what}" if task else what


def folded(question: str) -> str:
    r"""A question without differences in case, whitespace and spelling in Unicode, which make it no other question.

    >>> folded("Un  CAFE\u0301\n") == folded("un caf\u00e9")
    True
    """
    if question.isascii():
        return " ".join(question.split()).casefold()
    normal = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())
    return " ".join(normal.split())


def prompt_id(question: str, answer: str, more: str | None = None) -> str:
    """A prompt's stable id: 16 hexadecimal digits of the hash of its question, its answer, and what it has more."""
    return hashlib.sha256("\0".join((question, answer, more) if more else (question, answer)).encode()).hexdigest()[:16]


def distinct(batches: Iterable[Batch], notes: list[str]) -> pyarrow.Table:
    """All rows as one table with each question once, under each system turn; the first row with one is kept."""
    import pyarrow

    schema = pyarrow.schema([*((name, pyarrow.string()) for name in COLUMNS), ("key", pyarrow.uint64())])
    parts = [schema.empty_table()]
    first: dict[bytes, int] = {}  # question -> id of the row that asked it first, both as the few bytes of a hash
    repeated = contradicted = 0
    for batch in batches:
        kept, ids, keys = [], [], []
        more = batch.setdefault(MORE, [None] * len(batch["question"]))
        for row, (question, answer, others) in enumerate(zip(batch["question"], batch["answer"], more, strict=True)):
            said = question if others is None else question + json.dumps(unpacked(others).get("turns", ""))
            asked, name = hashlib.sha256(said.encode()).digest()[:16], prompt_id(question, answer, others)
            if (known := first.get(asked)) is not None:
                repeated, contradicted = repeated + (known == int(name, 16)), contradicted + (known != int(name, 16))
                continue
            first[asked] = int(name, 16)
            kept.append(row)
            ids.append(name)
            keys.append(int.from_bytes(hashlib.sha256(folded(question).encode()).digest()[:8], "big"))
        whole = len(kept) == len(more)
        rows = {column: values if whole else [values[row] for row in kept] for column, values in batch.items()}
        parts.append(pyarrow.table({"id": ids, **rows, "key": keys}, schema=schema))
    if repeated:
        notes.append(f"{repeated} duplicates removed")
    if contradicted:
        notes.append(f"{contradicted} rows removed that repeat a question with another answer; the first stays")
    return pyarrow.concat_tables(parts)


def with_system_text(table: pyarrow.Table, text: str) -> pyarrow.Table:
    """The rows of a split with what the task says in the system turn. Their ids stay, so that runs can be compared."""
    import pyarrow

    parts = table.column(MORE).chunks
    told = [[packed(**(unpacked(more) if more else {}), system=text) for more in part.to_pylist()] for part in parts]
    place = table.column_names.index(MORE)
    return table.set_column(place, MORE, pyarrow.chunked_array(told, pyarrow.string()))


def split(
    pool: pyarrow.Table, held: pyarrow.Table | None, heldout: int, validation: int, notes: list[str]
) -> dict[str, pyarrow.Table]:
    """The splits: ``heldout`` rows of ``held`` (of ``pool``, where that is None), ``validation`` rows and the rest.

    The rows with the lowest keys are held out. Training keeps its order, without any prompt whose question occurs in
    validation or anywhere in ``held``.
    Raises: UserError where there are too few rows.
    """
    import numpy

    keys = pool["key"].to_numpy()
    order = numpy.argsort(keys, kind="stable")
    if held is None:
        purpose = "task.heldout, task.validation and one to train on"
        _require(pool.num_rows, heldout + validation + 1, purpose, notes)
        reported, forbidden, rest = order[:heldout], keys[order[:heldout]], order[heldout:]
    else:
        _require(held.num_rows, heldout, "task.heldout, all from the held-out source", notes)
        forbidden, rest = held["key"].to_numpy(), order
        reported = numpy.argsort(forbidden, kind="stable")[:heldout]
        if held.num_rows > heldout:
            notes.append(f"{heldout} of {held.num_rows} held-out rows are used (task.heldout)")
    free = rest[~numpy.isin(keys[rest], forbidden)]
    chosen, train = free[:validation], free[validation:]
    train = train[~numpy.isin(keys[train], keys[chosen])]
    if leaks := len(rest) - len(chosen) - len(train):
        notes.append(f"{leaks} training prompts removed because their question is held out")
    if len(chosen) < validation or not len(train):
        _require(len(free), validation + 1, "task.validation and one to train on, none of them held out", notes)
    parts = pool.to_batches()
    asked = parts if held is None else held.to_batches()
    del pool  # so that each part is gone as soon as its rows are copied
    others = {"validation": _rows(parts, chosen), "heldout": _rows(asked, reported)}
    splits = {"train": _rows(parts, numpy.sort(train), keep=False), **others}
    _assert_disjoint(splits)
    return {name: table.select(COLUMNS) for name, table in splits.items()}


def _rows(parts: list[Any], rows: Any, keep: bool = True) -> pyarrow.Table:
    """These rows of a table in parts, in their order; without ``keep`` the parts are given up one by one."""
    import numpy
    import pyarrow

    wanted, found, start = numpy.zeros(sum(part.num_rows for part in parts), bool), [], 0
    wanted[rows] = True
    for place, part in enumerate(parts):
        end = start + part.num_rows
        if wanted[start:end].any() or not found:
            found.append(part.filter(pyarrow.array(wanted[start:end])))
        parts[place], start = part if keep else None, end
    table, ordered = pyarrow.Table.from_batches(found), numpy.sort(rows)
    return table if (ordered == rows).all() else table.take(numpy.searchsorted(ordered, rows))


def _require(found: int, needed: int, purpose: str, notes: list[str]) -> None:
    """Raises: UserError where too few are found; ``notes`` say where the others went."""
    if found < needed:
        raise UserError(
            "too few distinct prompts",
            where="task.heldout",
            got="; ".join([f"{found} distinct prompts", *notes]),
            expected=f"at least {needed}, for {purpose}",
            fix="lower task.heldout or task.validation, or bring more distinct prompts "
            "(for reasoning_gym: a larger task.size, or task.params with more variety)",
        )


def _assert_disjoint(splits: dict[str, pyarrow.Table]) -> None:
    """Check that no held-out prompt is trained on, by the questions themselves rather than their hashes."""
    seen: dict[str, str] = {}
    by_size = sorted(splits, key=lambda name: splits[name].num_rows)
    for name in by_size:
        for batch in splits[name].select(["question"]).to_batches(max_chunksize=BATCH):
            for question in map(folded, batch.column(0).to_pylist()):
                if seen.get(question, name) != name:
                    raise AssertionError(f"{name} and {seen[question]} share the question {question[:200]!r}")
                if name != by_size[-1]:  # the largest is compared, and not kept
                    seen[question] = name


def content_hash(table: pyarrow.Table) -> str:
    """sha256 over the rows of a split, in their order."""
    digest = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=1000):
        columns: dict[str, list[Any]] = batch.to_pydict()
        for row in zip(*(columns[name] for name in COLUMNS if name in columns), strict=True):
            digest.update(json.dumps(row if row[-1] else row[:5]).encode() + b"\n")
    return digest.hexdigest()
