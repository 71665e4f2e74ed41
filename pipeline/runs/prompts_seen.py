"""What a run remembers of its prompts, read for a person: how often they are solved, and what moved between stages.

Nothing here needs torch; numpy and pyarrow are imported where they are used.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.run_paths import typed
from gradus.pipeline.tasks.prompts.memory import read_rows
from gradus.pipeline.tasks.prompts.rates import Pooled, among, parted, pooled, train_keys

BINS = 10
"""Parts of the range of pass rates; those of 0 and of 1 are counted apart."""
PARTS = (" (profile)", "")
"""What follows a stage's name where its profile, and where its training is meant."""
STATES = ("failed", "mixed", "solved")
"""Of a prompt in a stage: no completion was correct, some were, all were."""


def prompts_seen(run: RunFolder, stage: str | None = None, shown: int = 5) -> dict[str, Any]:
    """For each stage that scored something, or for one: visits, a histogram of pass rates for each task, the hardest
    and the easiest prompts; and between the stages, how many went from failed to solved, and so on. What a stage
    profiled before its first step is shown as a stage of its own before it.

    Raises: UserError where the stage is unknown, or nothing is remembered.
    """
    wanted = None if stage is None else run.stage_index(stage, "--stage")
    rows = {index: read_rows(run.memory(index)) for index in range(len(run.config.stages))}
    if not any(len(rows[index]) for index in (rows if wanted is None else [wanted])):
        raise UserError(
            f"nothing is remembered of the prompts of {f'the stage {stage}' if stage else f'the run {run.name!r}'}",
            where=str(run.path if wanted is None else run.stage_dir(wanted)),
            expected="a stage that samples, begun by this version",
            fix=f"{typed(run, 'status')} says what was done",
        )
    parts = {(index, name): part for index in rows for name, part in zip(PARTS, parted(rows[index]), strict=True)}
    with ThreadPoolExecutor(2) as threads:  # numpy and pyarrow let another thread work meanwhile
        reading = threads.submit(_tasks, run)
        seen = [key for key, each in parts.items() if len(each) and (wanted is None or key[0] <= wanted)]
        known = dict(zip(seen, threads.map(pooled, [parts[key] for key in seen]), strict=True))
        tasks = reading.result()
    told = [key for key in known if wanted in (None, key[0])]
    pairs = [(before, key) for key in told for before in _newest_before(run, key, list(known))]
    labels = {key: run.config.stages[key[0]].label + key[1] for key in known}
    own = {key: {name: tasks[name] for name in run.config.shares(run.config.stages[key[0]])} for key in told}
    alone = {key: _alone(each) for key, each in own.items()}
    return {
        "run": run.name,
        "stages": [
            {
                "stage": labels[key],
                "groups": len(parts[key]),
                "prompts": len(known[key].key),
                "tasks": [
                    {"task": name, **_histogram(known[key], keys), "shared": len(own[key][name]) - len(keys)}
                    for name, keys in alone[key].items()
                ],
                **_extremes(run, own[key], known[key], shown),
            }
            for key in told
        ],
        "moves": [
            {"from": labels[one], "to": labels[two], "counts": _moves(known[one], known[two])} for one, two in pairs
        ],
    }


def export(run: RunFolder, stage: str | None, file: Path) -> int:
    """Write every record as a row of a Parquet file; returns how many. Raises: UserError, OSError."""
    import numpy
    import pyarrow
    import pyarrow.parquet

    wanted = None if stage is None else run.stage_index(stage, "--stage")
    tasks, parts = _tasks(run), []
    for index, each in enumerate(run.config.stages):
        if wanted in (None, index) and len(rows := read_rows(run.memory(index))):
            ids = rows["id"].astype(">u8").tobytes().hex()
            task = numpy.full(len(rows), "", object)
            for name in run.config.shares(each):
                known = numpy.isin(rows["id"], tasks[name])
                task[known] = [f"{one}, {name}" if one else name for one in task[known]]
            columns = {"id": [ids[at : at + 16] for at in range(0, len(ids), 16)], "task": task}
            columns |= {"stage": [each.label] * len(rows)}
            names = ("step", "correct", "valid", "reward", "length")
            columns |= {name: numpy.ascontiguousarray(rows[name]) for name in names}
            parts.append(pyarrow.table(columns))
    if parts:
        pyarrow.parquet.write_table(pyarrow.concat_tables(parts), file)
    return sum(part.num_rows for part in parts)


def _tasks(run: RunFolder) -> dict[str, Any]:
    """name -> keys of the training prompts."""
    folders = {name: run.data_dir / name for name in run.config.named_tasks}
    return {name: train_keys(folder) for name, folder in folders.items()}


def _newest_before(run: RunFolder, key: tuple[int, str], known: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The newest part before this one that the policy of its stage comes from, if any is known."""
    own = {key[0], *graph.ancestors(run.config.stages, key[0])}
    return [each for each in known[: known.index(key)] if each[0] in own][-1:]


def _alone(tasks: dict[str, Any]) -> dict[str, Any]:
    """Of each task of a stage the keys that no other one has: a record does not say for which task it was scored."""
    import numpy

    if len(tasks) == 1:
        return tasks
    every, times = numpy.unique(numpy.concatenate([*tasks.values()]), return_counts=True)
    return {name: keys[times[every.searchsorted(keys)] == 1] for name, keys in tasks.items()}


def _histogram(known: Pooled, keys: Any) -> dict[str, Any]:
    """How many of these prompts have which pass rate: never, the tenths between, always; and how many are unseen."""
    import numpy

    found = among(known.key, keys)
    rate = known.rate[found]
    rate = rate[~numpy.isnan(rate)]
    between = rate[(rate > 0) & (rate < 1)]
    counts = numpy.bincount((between * BINS).astype(int).clip(max=BINS - 1), minlength=BINS)
    parts = [int((rate == 0).sum()), *counts.tolist(), int((rate == 1).sum())]
    return {"counts": parts, "mean": float(rate.mean()) if len(rate) else None, "unseen": len(keys) - int(found.sum())}


def _extremes(run: RunFolder, tasks: dict[str, Any], known: Pooled, shown: int) -> dict[str, Any]:
    """The hardest and the easiest prompts, with their texts; among equals, those with the lower mean reward first."""
    import numpy

    rates = numpy.sort(known.rate[~numpy.isnan(known.rate)])
    low, high = (  # only these are sorted by all that decides
        rows[numpy.lexsort([part[rows] for part in (known.key, known.reward, known.rate)])]
        for rows in (
            numpy.flatnonzero(known.rate <= rates[:shown].max(initial=0)),
            numpy.flatnonzero(known.rate >= rates[-shown:].min(initial=1)),
        )
    )
    places = {"hardest": low[:shown], "easiest": high[::-1][:shown]}
    texts = _texts(run, tasks, {int(known.key[place]) for part in places.values() for place in part})
    return {
        name: [
            {
                "id": f"{int(known.key[at]):016x}",
                "rate": float(known.rate[at]),
                "correct": int(known.correct[at]),
                "scored": int(known.valid[at]),
                "visits": int(known.visits[at]),
                **texts.get(int(known.key[at]), {"task": "", "question": "", "answer": ""}),
            }
            for at in part
        ]
        for name, part in places.items()
    }


def _texts(run: RunFolder, tasks: dict[str, Any], wanted: set[int]) -> dict[int, dict[str, str]]:
    """key -> task, question and answer, of a few prompts."""
    import numpy
    import pyarrow.parquet

    found: dict[int, dict[str, str]] = {}
    for name, keys in tasks.items():
        rows = numpy.flatnonzero(numpy.isin(keys, numpy.array(sorted(wanted), "u8")))
        table = pyarrow.parquet.ParquetFile(run.data_dir / name / "train.parquet").read(["question", "answer"])
        for at in rows.tolist():
            (text,) = table.slice(at, 1).to_pylist()  # take() imports pandas
            names = [found[key]["task"], name] if (key := int(keys[at])) in found else [name]
            found[key] = {"task": ", ".join(names), **text}
    return found


def _moves(one: Pooled, two: Pooled) -> dict[str, int]:
    """How many prompts of both stages went from one state to another: ``failed -> solved``."""
    import numpy

    both = numpy.intersect1d(one.key, two.key, assume_unique=True)
    rates = [each.rate[each.key.searchsorted(both)] for each in (one, two)]
    scored = ~numpy.isnan(rates[0]) & ~numpy.isnan(rates[1])
    before, after = (numpy.where(rate == 1, 2, numpy.where(rate == 0, 0, 1))[scored] for rate in rates)
    ways = itertools.product(range(len(STATES)), repeat=2)
    return {f"{STATES[a]} -> {STATES[b]}": int(((before == a) & (after == b)).sum()) for a, b in ways}
