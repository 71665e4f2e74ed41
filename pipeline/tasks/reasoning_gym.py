"""Prompts from reasoning_gym: its generators, checks of their problems, and worked solutions for its arithmetic."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import random
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config.task import ReasoningGymTask
from gradus.pipeline.tasks.arithmetic import SOLVABLE, solvable, solve, work_out
from gradus.pipeline.tasks.metadata import BATCH, Batch, as_text, encode

HASH_ORDERED = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Generators whose problems depend on the order of Python's sets, which differs between processes."""
PICTURES = ("matplotlib.animation", "matplotlib.collections", "matplotlib.pyplot", "mpl_toolkits.mplot3d")
"""What cellpylib imports to draw figures: unused here, and a third of the time of importing reasoning_gym."""


def check_gym(task: ReasoningGymTask) -> None:
    """Check the data set's name and options, and that its generator works with them. Raises: UserError."""
    samples = 100 if solvable(task.dataset) else 5
    dataset = gym_dataset(task.dataset, task.params, samples, task.seed)
    if task.demonstrations == "solver" and not solvable(task.dataset):
        raise UserError(
            f"the solver cannot solve {task.dataset}",
            where="task.demonstrations",
            got="solver",
            expected=f"a data set it can solve: {', '.join(sorted(SOLVABLE))}",
            fix="set task.demonstrations to none, or bring worked solutions in a file",
        )
    if task.demonstrations == "column":
        raise UserError(
            "reasoning_gym has no column of demonstrations",
            where="task.demonstrations",
            got="column",
            expected="none or solver",
            fix="set task.demonstrations to solver (arithmetic only) or none",
        )
    failures: list[Exception] = []
    with _generating(task.seed):
        for index in range(samples):
            try:
                _row(dataset[index], task)
            except Exception as error:
                failures.append(error)
            else:
                if not solvable(task.dataset):
                    return  # answers cannot be verified, so one is enough: some generators are slow
    _refuse_broken(task, samples, failures)


def read_gym(task: ReasoningGymTask, notes: list[str]) -> Iterator[Batch]:
    """The generated problems: ``size`` for training and those to hold out. Unusable ones are left out and noted."""
    parts = [part["name"] for part in task.params["datasets"]] if task.dataset == "composite" else [task.dataset]
    if HASH_ORDERED.isdisjoint(parts):
        yield from _generate(task, notes)
        return
    # Only a new interpreter can fix the order of sets.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [
        sys.executable,
        "-P",
        "-c",
        "from gradus.pipeline.tasks.reasoning_gym import _generate_to_stdout as run; run()",
    ]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(task.model_dump(mode="json")))  # ASCII
            child.stdin.close()
            for line in child.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise UserError(**message["error"])
                if "notes" in message:
                    notes.extend(message["notes"])
                    return
                yield message
            raise RuntimeError(f"the process that generates {task.dataset} ended early")
        finally:
            child.kill()


def gym_dataset(name: str, params: dict[str, Any], size: int = 1, seed: int = 0) -> Any:
    """A reasoning_gym data set by name and options; its ``score_answer(answer, entry)`` is the task's own scorer.

    ``composite`` takes ``datasets`` as plain mappings with ``name`` and, optionally, ``weight`` and ``config``.

    Raises: UserError for an unknown name, or options that the data set refuses.
    """
    _stand_in_for_pycosat()
    with _without_pictures():
        from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        fix = did_you_mean(name, DATASETS)
        raise UserError(f"reasoning_gym has no data set {name!r}", where="task.dataset", got=name, fix=fix)
    dataset_class, config_class = DATASETS[name]
    known = [key for key in config_class.__dataclass_fields__ if key not in ("size", "seed")]
    for key in params:
        where = f"task.params.{key}"
        if key in ("size", "seed"):
            raise UserError(f"{key} is not set here", where=where, got=params[key], fix=f"set task.{key}")
        if key not in known:
            raise UserError(f"{name} has no option {key!r}", where=where, got=key, fix=did_you_mean(key, known))
    options = dict(params)
    if name == "composite":
        options["datasets"] = _parts(params.get("datasets"))
    try:
        return dataset_class(config_class(**options, size=size, seed=seed))
    except Exception as error:  # reasoning_gym asserts; a value of the wrong type may raise anything
        raise UserError(
            f"{name} refuses its options: {error or type(error).__name__}",
            where="task.params",
            got=params,
            expected=f"values that fit; the options of {name} are {', '.join(known)}",
            fix="correct the options, or leave out those whose defaults will do",
        ) from error


def _generate_to_stdout() -> None:
    task, notes, out = ReasoningGymTask.model_validate_json(sys.stdin.read()), list[str](), sys.stdout
    try:
        for batch in _generate(task, notes):
            print(json.dumps(batch), file=out, flush=True)
        last: dict[str, Any] = {"notes": notes}
    except UserError as error:
        aspects = {"where": error.where, "got": str(error.got), "expected": error.expected, "fix": error.fix}
        last = {"error": {"what": error.what, **aspects}}
    print(json.dumps(last), file=out)


def _generate(task: ReasoningGymTask, notes: list[str]) -> Iterator[Batch]:
    total = task.size + task.heldout + task.validation
    dataset = gym_dataset(task.dataset, task.params, total, task.seed)
    failures: list[Exception] = []
    unanswered = 0
    for start in range(0, total, BATCH):
        batch: Batch = {"question": [], "answer": [], "metadata": [], "demonstration": []}
        with _generating(task.seed + start):
            for index in range(start, min(start + BATCH, total)):
                try:
                    entry = dataset[index]
                    row = _row(entry, task)
                except Exception as error:
                    failures.append(error)
                    continue
                unanswered += entry["answer"] is None
                for name, values in batch.items():
                    values.append(row[name])
        yield batch
    _refuse_broken(task, total, failures)
    if failures:
        notes.append(f"{len(failures)} of {total} generated problems were unusable, such as: {failures[-1]}")
    if unanswered:
        notes.append(f"{task.dataset} gives no reference answers: only its own scorer can judge a completion")


def _row(entry: dict[str, Any], task: ReasoningGymTask) -> dict[str, Any]:
    """A generated entry as a row. Raises: ValueError where its answer is not the value of its expression.

    That does happen: without brackets, reasoning_gym's basic_arithmetic computes another expression than it prints, and
    with brackets it drops the remainder of some divisions. Such a problem would penalise the correct answer.
    """
    demonstration = None
    if solvable(task.dataset):
        _, value = work_out(entry["metadata"]["expression"])
        if str(value) != entry["answer"]:
            raise ValueError(f"{entry['metadata']['expression']} is {value}, not {entry['answer']}")
        if task.demonstrations == "solver":
            demonstration = solve(entry["metadata"]["expression"])
    return {
        "question": entry["question"],
        "answer": "" if entry["answer"] is None else as_text(entry["answer"]),
        "metadata": encode({**entry["metadata"], "gym_dataset": task.dataset, "gym_params": task.params}),
        "demonstration": demonstration,
    }


def _refuse_broken(task: ReasoningGymTask, total: int, failures: list[Exception]) -> None:
    if len(failures) <= total / 10:
        return
    hint = "; without brackets its operators must be + and - only" if task.dataset == "basic_arithmetic" else ""
    raise UserError(
        f"{task.dataset} generates unusable problems with these options",
        where="task.params",
        got=f"{len(failures)} of {total} unusable; the last: {type(failures[-1]).__name__}: {failures[-1]}",
        expected="problems whose reference answer is right",
        fix=f"change the options{hint}",
    )


@contextlib.contextmanager
def _generating(seed: int) -> Iterator[None]:
    """Seed the global random state and discard what is printed: some generators use the one, and some do the other."""
    import numpy

    states = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _parts(specs: Any) -> list[Any]:
    """The parts of a composite data set, each checked like a task."""
    from reasoning_gym.composite import DatasetSpec

    where, keys = "task.params.datasets", {"name", "weight", "config"}
    if not isinstance(specs, list) or not all(isinstance(s, dict) and "name" in s and s.keys() <= keys for s in specs):
        raise UserError(
            "a composite needs its parts",
            where=where,
            got=specs,
            expected="a list of mappings with name, weight and config",
            fix="list the data sets to mix",
        )
    for spec in specs:
        try:
            gym_dataset(spec["name"], spec.get("config", {}))
        except UserError as error:
            raise UserError(error.what, where=where, got=spec, expected=error.expected, fix=error.fix) from error
    return [DatasetSpec(spec["name"], spec.get("weight", 1.0), spec.get("config", {})) for spec in specs]


@contextlib.contextmanager
def _without_pictures() -> Iterator[None]:
    """Replace matplotlib by stand-ins while cellpylib is imported, unless matplotlib has been imported already."""
    if "matplotlib" in sys.modules or "reasoning_gym" in sys.modules:
        yield
        return
    stand_ins = {name: types.ModuleType(name) for name in (*PICTURES, "matplotlib", "mpl_toolkits")}
    for name in PICTURES:
        parent, _, child = name.rpartition(".")
        setattr(stand_ins[parent], child, stand_ins[name])
    stand_ins["mpl_toolkits.mplot3d"].__dict__["Axes3D"] = None
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def _stand_in_for_pycosat() -> None:
    """Make reasoning_gym importable without pycosat, which exists as C source only and serves a single data set."""
    if importlib.util.find_spec("pycosat") is not None:
        return

    def itersolve(*_: Any) -> None:
        raise RuntimeError("zebra_puzzles needs pycosat: install a C compiler, then `pip install pycosat`")

    module = types.ModuleType("pycosat")
    module.__dict__["itersolve"] = itersolve
    module.__spec__ = importlib.machinery.ModuleSpec("pycosat", None)
    sys.modules["pycosat"] = module
