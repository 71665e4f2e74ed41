"""What differs between two states of runs, as plain data that the terminal, a page and programs show.

Nothing is computed anew: outcomes and answers are those that were stored when each state was evaluated. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from gradus.flows.diff.states import State
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.options import changes, identity
from gradus.pipeline.statistics.drops import paired_change
from gradus.pipeline.statistics.intervals import paired_bounds

Pairs = dict[str, str]
"""key of a held-out prompt in A -> its key in B."""


def diff(a: State, b: State, limit: int | None = None) -> dict[str, Any]:
    """Options, accuracies by task with the paired test, and the prompts that one answers and the other does not.

    ``limit``: how many prompts are given each way; None: all. Raises: UserError where there is nothing to compare.
    """
    if (a.run.path, a.index) == (b.run.path, b.index):
        fix = f"name another run, or another stage: {', '.join(_others(a))}" if _others(a) else "name another run"
        raise UserError("A and B are the same", got=a.name, fix=fix)
    correct_a, correct_b = _outcomes(a), _outcomes(b)
    pairs = matched(correct_a, correct_b)
    if not pairs:
        raise UserError(
            f"{a.name} and {b.name} were asked none of the same held-out prompts",
            got=f"{_asked(correct_a)} and {_asked(correct_b)}",
            expected="runs with a task, or held-out prompts, in common",
            fix="name runs whose task, data and `heldout` are the same",
        )
    only_a = [(one, two) for one, two in pairs.items() if correct_a[one] and not correct_b[two]]
    only_b = [(one, two) for one, two in pairs.items() if correct_b[two] and not correct_a[one]]
    shown = [list(islice(each, limit)) for each in (only_a, only_b)]
    texts = _texts(a, {one for each in shown for one, _ in each})
    return {
        "a": _side(a, correct_a),
        "b": _side(b, correct_b),
        "options": _options(a, b),
        "prompts": {"a": len(correct_a), "b": len(correct_b), "both": len(pairs)},
        "accuracies": accuracies(pairs, correct_a, correct_b),
        "only_a": {"count": len(only_a), "prompts": [_prompt(a, b, *each, texts) for each in shown[0]]},
        "only_b": {"count": len(only_b), "prompts": [_prompt(a, b, *each, texts) for each in shown[1]]},
        "notes": list(_notes(a, b, correct_a, correct_b, pairs)),
    }


def matched(a: Iterable[str], b: Iterable[str]) -> Pairs:
    """The prompts of both sides, in the order of A: first under the same task, then by their content's id alone, since
    a task may have another name in the other run, or none.

    >>> matched(["x", "math/y", "code/y"], ["math/x", "code/y"])
    {'x': 'math/x', 'code/y': 'code/y'}
    """
    first, rest = list(a), dict.fromkeys(b)
    found = {key: key for key in first if key in rest}
    by_id = {_id(key): key for key in reversed(rest) if key not in found}
    for key in first:
        if key not in found and (other := by_id.pop(_id(key), None)) is not None:
            found[key] = other
    return {key: found[key] for key in first if key in found}


def accuracies(pairs: Pairs, a: Mapping[str, bool], b: Mapping[str, bool]) -> list[dict[str, Any]]:
    """A row for each task on the prompts of both, and one for all where there are several: accuracies, B minus A with
    its 95 % interval, how many prompts one alone answers, and McNemar's exact p-value, corrected by Holm over the
    tasks."""
    tasks = {task: [pair for pair in pairs.items() if _task(pair[0]) == task] for task in map(_task, pairs)}
    rows = [{"task": task, **_compared(each, a, b)} for task, each in tasks.items()]
    if len(rows) > 1:
        from gradus.pipeline.statistics.significance import holm  # scipy.stats takes most of a second

        for row, adjusted in zip(rows, holm([float(row["p"]) for row in rows]), strict=True):
            row["p_holm"] = adjusted
        rows.append({"task": "all", **_compared(list(pairs.items()), a, b)})
    return rows


def _compared(pairs: list[tuple[str, str]], a: Mapping[str, bool], b: Mapping[str, bool]) -> dict[str, Any]:
    ones, twos = [a[one] for one, _ in pairs], [b[two] for _, two in pairs]
    only_a = sum(one and not two for one, two in zip(ones, twos, strict=True))
    only_b = sum(two and not one for one, two in zip(ones, twos, strict=True))
    count = len(pairs)
    return {
        "prompts": count,
        "a": sum(ones) / count,
        "b": sum(twos) / count,
        "difference": (only_b - only_a) / count,
        "interval": list(paired_bounds(only_a, only_b, count)),
        "only_a": only_a,
        "only_b": only_b,
        "p": paired_change(ones, twos),
    }


def _options(a: State, b: State) -> list[dict[str, Any]]:
    """The options that differ, defaults filled in, each with whether it decides what is computed or only how."""
    one, two = a.config(), b.config()
    what = {key for key, _, _ in changes(identity(one), identity(two))}
    every = changes(one.model_dump(mode="json"), two.model_dump(mode="json"))
    rows = [{"option": key, "a": x, "b": y, "decides": key in what} for key, x, y in every if key != "name"]
    orders = [[s.label for s in each.stages if s.label in {t.label for t in other.stages}]
              for each, other in ((one, two), (two, one))]  # fmt: skip
    if orders[0] != orders[1]:
        rows.append({"option": "order of stages", "a": orders[0], "b": orders[1], "decides": True})
    return sorted(rows, key=lambda row: not row["decides"])


def _side(state: State, correct: Mapping[str, bool]) -> dict[str, Any]:
    record = state.record
    return {
        "name": state.name,
        "run": state.run.name,
        "stage": state.label,
        "step": record.get("steps", 0),
        "checkpoint": record["checkpoint"],
        "content": state.content,
        "accuracy": sum(correct.values()) / len(correct),
    }


def _prompt(a: State, b: State, one: str, two: str, texts: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """A prompt with its text, its right answer and what both said; None where that is not stored."""
    said = [(side.answers or {}).get(key) for side, key in ((a, one), (b, two))]
    return {
        "id": _id(one),
        "task": _task(one),
        **texts.get(one, {"question": None, "answer": None}),
        **{side: known and known.shown() for side, known in zip("ab", said, strict=True)},
    }


def _texts(state: State, wanted: set[str]) -> dict[str, dict[str, str]]:
    """Question and right answer of some held-out prompts; without those whose data are gone."""
    import pyarrow.parquet

    found: dict[str, dict[str, str]] = {}
    for task in {_task(key) for key in wanted}:
        file = state.run.data_dir / task / "heldout.parquet"
        if file.is_file():
            ids, questions, answers = (
                column.to_pylist() for column in pyarrow.parquet.read_table(file, columns=["id", "question", "answer"])
            )
            for name, question, answer in zip(ids, questions, answers, strict=True):
                key = f"{task}/{name}" if task else name
                if key in wanted:
                    found[key] = {"question": question, "answer": answer}
    return found


def _notes(a: State, b: State, correct_a: dict[str, bool], correct_b: dict[str, bool], pairs: Pairs) -> Iterable[str]:
    """What a reader has to know to take the numbers for what they are."""
    for side in (a, b):
        if side.newest:
            yield f"{side.run.name} is not complete: its newest stage that is done, {side.label}, is compared"
    if a.content is not None and a.content == b.content:
        yield "both have the same weights"
    if not len(pairs) == len(correct_a) == len(correct_b):
        asked = f"{a.name} was asked {len(correct_a):,} held-out prompts and {b.name} {len(correct_b):,}"
        yield f"{asked}; only the {len(pairs):,} of both are compared"
    for one, two in dict.fromkeys((_task(one), _task(two)) for one, two in pairs.items()):
        if a.criterion(one) != b.criterion(two):
            of = f" of {one}" if one else ""
            yield f"what counts as correct{of} is not the same in both, by their rewards or `evaluation`"
    for side in (a, b):
        if errors := side.record.get("verifier_errors"):
            yield f"{side.name}: {errors:,} completions could not be scored when it was evaluated; they count as wrong"
        if side.answers is None:
            stored = "are gone or damaged" if side.record.get("answers") else "were not stored by its version of gradus"
            yield f"{side.name}: its answers {stored}, so that outcomes are shown without them"


def _outcomes(state: State) -> dict[str, bool]:
    """Whether each held-out prompt was answered correctly. Raises: UserError where that is not known."""
    known = state.correct()
    if not known:
        raise UserError(
            f"of {state.name} it is not known which held-out prompts it answered",
            where=str(state.run.path),
            got="a run of an earlier version, which did not keep that of the policy before any stage"
            if state.index is None
            else "no heldout.json",
            expected="outcomes by prompt",
            fix="compare stages that are done" if state.index is None else "`gradus verify` looks at the run's files",
        )
    return known


def _others(state: State) -> list[str]:
    """The other states of the run that can be compared."""
    done = [place for place in (None, *range(len(state.run.outline))) if place != state.index]
    return [each.name for each in (State(state.run, place) for place in done) if each.record]


def _asked(correct: Mapping[str, bool]) -> str:
    tasks = [name for name in dict.fromkeys(map(_task, correct)) if name]
    return f"{len(correct):,} prompts" + (f" of {', '.join(tasks)}" if tasks else "")


def _id(key: str) -> str:
    return key.rpartition("/")[2]


def _task(key: str) -> str:
    return key.rpartition("/")[0]
