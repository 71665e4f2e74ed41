"""Prompts from data sets of the Hugging Face Hub, and from local folders in its formats."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradus.pipeline.common.addresses import HUB_TIMEOUT_SECONDS
from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config.task import HubTask
from gradus.pipeline.tasks.arrow import Rows, arrow_rows, as_rows
from gradus.pipeline.tasks.formats import form_of
from gradus.pipeline.tasks.metadata import BATCH, Batch
from gradus.pipeline.tasks.tables import Found, check_head, normalised, numbered

DESCRIPTION = "dataset_info.json"
"""The file that is written when a subset is complete."""


def check_hub(task: HubTask, base_dir: Path, found: Found) -> None:
    """Check that the Hub has the data set, and the first rows of its splits, where they are on this machine.

    Only the data set's description is requested from the Hub. Without an answer, a data set in the local cache will do.
    Raises: UserError.
    """
    cached = None
    if _local(task, base_dir) is None:
        cached = _prepared(task, _check_remote(task))
        if cached is None:
            what = f"data set {task.dataset} is not on this machine"
            found.notes.append(f"{what}: its rows are looked at when a run begins")
            return
    for where, split in (("task.split", task.split), ("task.heldout_split", task.heldout_split)):
        if split is not None:
            name = re.split(r"[\[+]", split)[0]  # of train[:1000], the head of train is read
            streamed = None if cached else _load(task, base_dir, where, name, streaming=True)
            first = next(cached.rows(name, where) if cached else _rows(streamed), [])
            if not first:
                raise UserError(f"split {split} has no rows", where=where, got=split, fix="choose another split")
            held, source = where == "task.heldout_split", f"split {split}"
            form = form_of(first, task, source, held)
            check_head((source, 1, first), task, where, held, found, form)


def read_hub(task: HubTask, base_dir: Path, split: str, where: str, notes: list[str]) -> Iterator[Batch]:
    """The rows of one split, in order; class labels become their names."""
    rows, held, source = _rows(_load(task, base_dir, where, split)), where == "task.heldout_split", f"split {split}"
    first: list[dict[str, Any]] = next(rows, [])
    form = form_of(first, task, source, held)
    return normalised(numbered(source, itertools.chain([first], rows)), task, held, notes, form)


def head_of_hub(task: HubTask, base_dir: Path, most: int) -> tuple[list[dict[str, Any]], int | None]:
    """The first rows of a split, of which no more are fetched, and how many it has: None where that is not known.

    Rows of a local folder are counted, up to ``most``. Raises: UserError.
    """
    table = _load(task, base_dir, "task.dataset", task.split, streaming=True)
    rows = _rows(table)
    first = next(rows, [])
    described = (table.info.splits or {}).get(task.split)
    if described is not None and described.num_examples:
        return first, described.num_examples
    if _local(task, base_dir) is None:
        return first, None
    count = len(first)
    while count < most and (more := next(rows, [])):
        count += len(more)
    return first, count


def subsets_of(task: HubTask, base_dir: Path) -> list[str]:
    """The subsets of a data set, its default one first. Raises: UserError."""
    import datasets

    if _local(task, base_dir) is None:
        _check_remote(task)
    with _loading(task, "task.dataset", task.dataset):
        source = _source(task, base_dir)
        names = datasets.get_dataset_config_names(source, revision=task.revision)
        default = datasets.get_dataset_default_config_name(source, revision=task.revision)
    return sorted(names, key=lambda name: name != default)


def splits_of(task: HubTask, base_dir: Path) -> list[str]:
    """The splits of a subset. Raises: UserError."""
    import datasets

    with _loading(task, "task.subset", task.subset or task.dataset):
        return datasets.get_dataset_split_names(_source(task, base_dir), config_name=task.subset)


def _rows(table: Any) -> Iterator[list[dict[str, Any]]]:
    """The rows of a data set, some at a time; class labels become their names."""
    from datasets import ClassLabel

    features = table.features or {}
    labels = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}
    for part in table.with_format("arrow").iter(BATCH):
        yield as_rows(part, labels)


def _local(task: HubTask, base_dir: Path) -> Path | None:
    folder = base_dir / Path(task.dataset).expanduser()
    return folder if folder.is_dir() else None


def _check_remote(task: HubTask) -> str | None:
    """The Hub's present version of the data set; None where it gives no answer, and the local cache has one."""
    from huggingface_hub import HfApi, constants, errors

    source, offline = f"data set {task.dataset}", "use source: file, or a local folder as task.dataset"
    try:
        hub = HfApi(endpoint=constants.ENDPOINT)
        return hub.dataset_info(task.dataset, revision=task.revision, timeout=HUB_TIMEOUT_SECONDS).sha
    except errors.RevisionNotFoundError as error:
        fix = "correct task.revision"
        raise UserError(f"{source} has no such revision", where="task.revision", got=task.revision, fix=fix) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the Hub has no {source}, or does not show it to you",
            where="task.dataset",
            got=task.dataset,
            expected="an id such as openai/gsm8k, or a folder that exists",
            fix="correct the id; for a private data set run `hf auth login`",
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{task.dataset} is neither a local folder nor a Hub id",
            where="task.dataset",
            got=task.dataset,
            expected="an id such as openai/gsm8k, or a folder (relative to the configuration's)",
            fix="correct it",
        ) from error
    except Exception as error:  # no network, a proxy, a time-out, offline mode, a server's failure
        if _cache_of(task.dataset).is_dir():
            return None
        raise UserError(
            f"{source} cannot be reached: {error}",
            where="task.dataset",
            got=task.dataset,
            expected=f"an answer of {constants.ENDPOINT} within {HUB_TIMEOUT_SECONDS:g} s, "
            "or the data set in the local cache",
            fix=f"check the network; without one, {offline}",
        ) from error


@dataclass(frozen=True)
class _Prepared:
    """One version of a subset in the library's cache: ``DATASET/SUBSET/VERSION/HASH/``, with files for each split."""

    folder: Path
    described: dict[str, Any]

    def rows(self, split: str, where: str) -> Iterator[Rows]:
        """The rows of a split, some at a time. Raises: UserError where there is no such split."""
        splits = self.described.get("splits") or {}
        if splits and split not in splits:
            raise UserError(
                f"the data set has no split {split!r}",
                where=where,
                got=split,
                expected=f"one of {', '.join(splits)}",
                fix=did_you_mean(split, list(splits)) or "choose one of them",
            )
        files = sorted([*self.folder.glob(f"*-{split}.arrow"), *self.folder.glob(f"*-{split}-[0-9]*-of-*.arrow")])
        for file in files:
            yield from arrow_rows(file, where)


def _cache_of(dataset: str) -> Path:
    """Where the library keeps this data set."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / dataset.replace("/", "___")


def _prepared(task: HubTask, version: str | None) -> _Prepared | None:
    """The data set as a run would read it from the cache; None where it is not there, or which one is not certain.

    ``version``: that of the Hub, of which another may be in the cache; None: the newest there is.
    """
    complete = [file for file in _cache_of(task.dataset).glob(f"*/*/{version or '*'}/{DESCRIPTION}") if file.is_file()]
    subsets = {file.parents[2].name for file in complete}
    wanted = task.subset or ("default" if "default" in subsets else next(iter(subsets)) if len(subsets) == 1 else None)
    of_subset = [file for file in complete if file.parents[2].name == wanted]
    if not of_subset:
        return None
    newest = max(of_subset, key=lambda file: file.stat().st_mtime)
    try:
        described = json.loads(newest.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the library makes it again
        return None
    return _Prepared(newest.parent, described) if isinstance(described, dict) else None


def _load(task: HubTask, base_dir: Path, where: str, split: str, streaming: bool = False) -> Any:
    import datasets

    folder = _local(task, base_dir)
    with _loading(task, where, split):
        if folder is not None and any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(folder))
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        revision, source = task.revision if folder is None else None, _source(task, base_dir)
        return datasets.load_dataset(source, name=task.subset, split=split, revision=revision, streaming=streaming)


def _source(task: HubTask, base_dir: Path) -> str:
    """The data set as the library takes it."""
    folder = _local(task, base_dir)
    return task.dataset if folder is None else str(folder.resolve())


@contextlib.contextmanager
def _loading(task: HubTask, where: str, got: str) -> Iterator[None]:
    """Tell what the library says about a data set. Raises: UserError."""
    try:
        yield
    except Exception as error:  # an unknown split or configuration, unreadable files, no network, and others
        raise UserError(
            f"data set {task.dataset} cannot be loaded: {error}",
            where=where,
            got=got,
            fix="correct task.split or task.subset, or correct the data set's files",
        ) from error
