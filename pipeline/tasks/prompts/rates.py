"""What records of groups say of each prompt: how often it was visited, and how often it was solved."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gradus.pipeline.common.process import usable_cores
from gradus.pipeline.tasks.prompts.memory import key_of

MANY, MOST_THREADS = 1 << 20, 4
"""From so many records on they are pooled by several threads; more would wait for memory."""


class Pooled(NamedTuple):
    """One entry for each prompt, in the order of their keys; numpy arrays of equal lengths."""

    key: Any
    visits: Any
    """Groups."""
    correct: Any
    """Completions that were correct, in all visits."""
    valid: Any
    """Completions that could be scored."""
    reward: Any
    """The mean of the groups' mean rewards."""
    rate: Any
    """The share of the scored completions that were correct; NaN where none could be scored."""


def pooled(rows: Any) -> Pooled:
    """All visits of each prompt together. Many records are parted by their ids, and each core gets a part."""
    import numpy

    cores = min(usable_cores(), MOST_THREADS) if len(rows) >= MANY else 1
    if cores == 1:
        return _pooled(rows, None, None)
    ids = numpy.sort(rows["id"][:: len(rows) // min(len(rows), 1000)])
    borders = [None, *(ids[place * len(ids) // cores] for place in range(1, cores)), None]
    with ThreadPoolExecutor(cores) as threads:
        parts = list(threads.map(lambda part: _pooled(rows, *part), itertools.pairwise(borders)))
    return Pooled(*map(numpy.concatenate, zip(*parts, strict=True)))


def _pooled(rows: Any, low: Any, high: Any) -> Pooled:
    """All visits of each prompt whose id is at least ``low`` and less than ``high``; None is no limit.

    Numpy sorts numbers several times faster than it finds the order of them, so the places are sorted along in the
    lower bits, equal ids stay as they come, and what differs in these bits alone is put right. Whole records are moved,
    since most of the time goes into reaching each, not into what is read there.
    """
    import numpy

    ids, wanted = rows["id"], None
    if low is not None:
        wanted = ids >= low
    if high is not None:
        wanted = ids < high if wanted is None else wanted & (ids < high)
    places = numpy.arange(len(rows)) if wanted is None else numpy.flatnonzero(wanted)
    lower = numpy.uint64((1 << len(rows).bit_length()) - 1)
    packed = (ids if wanted is None else ids[places]) & ~lower
    packed |= places.view("u8")
    packed.sort()
    packed &= lower
    rows = rows.take(packed.view(int))
    ids = rows["id"]
    if not (ids[1:] >= ids[:-1]).all():
        rows = rows.take(numpy.argsort(ids, kind="stable"))
        ids = rows["id"]
    if not len(rows):
        return Pooled(ids, *(numpy.zeros(0, kind) for kind in (int, int, int, float, float)))
    starts = numpy.flatnonzero(numpy.concatenate([[True], ids[1:] != ids[:-1]]))
    visits = numpy.diff(starts, append=len(ids))
    correct, valid = (numpy.add.reduceat(rows[name], starts, dtype=int) for name in ("correct", "valid"))
    reward = numpy.add.reduceat(numpy.nan_to_num(rows["reward"]), starts, dtype=float) / visits
    rate = correct / numpy.where(valid > 0, valid, numpy.nan)
    return Pooled(ids[starts], visits, correct, valid, reward, rate)


def parted(rows: Any) -> tuple[Any, Any]:
    """The records of a stage's profile, which come first and have the step 0, and those of its training."""
    begin = bisect.bisect_left(range(len(rows)), 1, key=lambda place: int(rows[place]["step"]))
    return rows[:begin], rows[begin:]


def among(ordered: Any, keys: Any) -> Any:
    """Which of the keys in ``ordered``, which are sorted, are among ``keys``."""
    import numpy

    wanted, found = numpy.sort(keys), numpy.zeros(len(ordered), bool)
    if len(ordered):
        place = numpy.minimum(ordered.searchsorted(wanted), len(ordered) - 1)
        found[place[ordered[place] == wanted]] = True
    return found


def keys_of(ids: Sequence[str]) -> Any:
    """The keys of prompts, as the memory has them."""
    import numpy

    if set(map(len, ids)) == {16}:
        try:
            return numpy.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype("u8")
        except ValueError:
            pass
    return numpy.array([key_of(name) for name in ids], "u8")


def rates(keys: Any, memories: Sequence[Any]) -> Any:
    """The pass rate of each key by the first of these memories' rows that scored it; NaN where none did.

    Of a stage that profiled its prompts, the groups that it trained on go before those of its profile.
    """
    import numpy

    found = numpy.full(len(keys), numpy.nan)
    for rows in (part for memory in memories for part in reversed(parted(memory))):
        if not len(rows):
            continue
        known = pooled(rows)
        place = numpy.minimum(known.key.searchsorted(keys), len(known.key) - 1)
        here = numpy.where(known.key[place] == keys, known.rate[place], numpy.nan)
        found = numpy.where(numpy.isnan(found), here, found)
    return found


def train_keys(folder: Path) -> Any:
    """The keys of a task's training prompts, from the folder of its data."""
    import numpy
    import pyarrow
    import pyarrow.parquet

    ids = pyarrow.parquet.ParquetFile(folder / "train.parquet").read(["id"])["id"]  # read_table() imports pandas
    with contextlib.suppress(ValueError):  # an id that is no number
        digits = ids.cast(pyarrow.binary(16)).combine_chunks().buffers()[1]
        return numpy.frombuffer(bytes.fromhex(str(digits, "ascii")), ">u8").astype("u8")
    return keys_of(ids.to_pylist())
