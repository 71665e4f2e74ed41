"""What the public functions return: plain frozen objects, read from the files that a run leaves."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradus.pipeline.config import PipelineConfig
    from gradus.pipeline.runs.run_folder import RunFolder


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C (SIGINT), SIGTERM or SIGHUP stopped a run. What was finished is kept; the message says how to continue.

    It is a ``KeyboardInterrupt``: a notebook shows it as an interrupted cell, ``except Exception`` does not catch it,
    and a script that does not catch it ends, as it does after Ctrl-C.
    """


@dataclass(frozen=True)
class StageResult:
    """A stage that is done."""

    name: str
    algorithm: str
    steps: int
    """Training steps that were done; fewer than were asked for where a rule of ``until`` ended the stage."""
    accuracy_before: float | None
    """Held-out accuracy of the checkpoint that the stage started from; None where no completion could be scored."""
    accuracy_after: float | None
    """Held-out accuracy of the checkpoint that the stage hands over."""
    interval: tuple[float, float] | None
    """95 % interval of ``accuracy_after``."""
    rollouts: int
    """Completions that were sampled for training; 0 for a stage on demonstrations."""
    tokens: int
    """Tokens that were trained on."""
    seconds: float
    checkpoint: Path
    """A Hugging Face folder: weights, tokenizer, and the template of the prompts."""
    events: tuple[dict[str, Any], ...]
    """What ``until`` and the collapse guard did: step, rule, action and reason of each."""
    started_from: tuple[str, ...]
    """The name of the stage whose checkpoint it started from, ``start`` for the policy before any; of a merge, of all
    that it is made of."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> accuracy, interval, prompts, and ``fell``, the p-value of "no worse than before the stage", of every task
    that was measured after it; empty where the pipeline has one task."""


@dataclass(frozen=True)
class Run:
    """One run, as its folder described it when this object was made; :func:`gradus.load_run` reads it again."""

    name: str
    path: Path
    state: str
    """``done``, ``stopped``, ``running``, or ``failed: `` and the reason."""
    config: PipelineConfig = field(repr=False)
    """What was asked for, with every default filled in."""
    stages: tuple[StageResult, ...] = field(repr=False)
    """The stages that are done, in order. ``config.stages`` has all of them."""
    summary: dict[str, Any] | None = field(repr=False)
    """The content of ``summary.json``: accuracy at the start and at the end, seconds, and a record for every stage.

    None until the run is complete.
    """

    def curves(self) -> list[dict[str, Any]]:
        """Every metric of every step, one row each: ``pandas.DataFrame(run.curves())`` is a table of them.

        The columns are run, stage, algorithm, step, metric and value. Rows are in the order of the stages, and within
        one by metric and step. The files are read at every call, so that a run that is being trained can be watched.
        Raises: UserError where the run no longer exists.
        """
        from gradus.pipeline.tracking.journal import metric_history

        folder, rows = _open(self.path), list[dict[str, Any]]()
        for index, stage in enumerate(folder.config.stages):
            done, place = folder.result(index) or {}, folder.stage_dir(index)
            if "shared" in done:  # a fork reads what its origin recorded
                place = Path(done["checkpoint"]).parent.parent
            named = {"run": self.name, "stage": stage.label, "algorithm": done.get("algorithm", stage.stage)}
            for metric, values in metric_history(place / "journal.jsonl").items():
                rows += [{**named, "step": step, "metric": metric, "value": values[step]} for step in sorted(values)]
        return rows


@dataclass(frozen=True)
class Evaluation:
    """The held-out accuracy of a checkpoint."""

    checkpoint: Path
    stage: str
    """The stage that made the checkpoint; ``start`` for the policy before any stage."""
    step: int
    accuracy: float | None
    interval: tuple[float, float] | None
    """95 % interval of the accuracy."""
    prompts: int
    """Held-out prompts, each of which was answered once, greedily."""
    errors: int
    """Completions that the verifier failed on; they count as wrong."""
    seconds: float
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> accuracy, interval and prompts of every task; empty where the pipeline has one."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of arms over seeds."""

    name: str
    path: Path
    """The folder: ``report.html``, ``report.md``, ``report.json``, and the runs."""
    report: dict[str, Any] = field(repr=False)
    """The content of ``report.json``."""
    runs: tuple[Run, ...] = field(repr=False)
    """The run of every arm and seed, and those that the arms of a seed start from."""

    def curves(self) -> list[dict[str, Any]]:
        """The rows of :meth:`Run.curves` of all runs. Raises: UserError where a run no longer exists."""
        return [row for run in self.runs for row in run.curves()]


def run_of(folder: RunFolder) -> Run:
    """What a run's folder says now."""
    from gradus.pipeline.config.graph.inputs import origins

    every = folder.config.stages
    made = {index: folder.result(index) for index in range(len(every))}
    stages = tuple(_stage_result(result, origins(every, index)) for index, result in made.items() if result is not None)
    return Run(folder.name, folder.path, folder.state(), folder.config, stages, folder.summary())


def run_at(path: Path) -> Run:
    """The run in a folder. Raises: UserError."""
    return run_of(_open(path))


def evaluation_of(found: dict[str, Any]) -> Evaluation:
    """An evaluation from its record."""
    return Evaluation(**_fields(Evaluation, found))


def _stage_result(result: dict[str, Any], origins: list[str]) -> StageResult:
    more = {"events": tuple(result.get("events", ())), "started_from": tuple(origins)}
    return StageResult(**_fields(StageResult, {**result, **more}))


def _fields(kind: type, record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the fields of a result."""
    typed = {
        **record,
        "checkpoint": Path(record["checkpoint"]),
        "interval": record["interval"] and tuple(record["interval"]),
    }
    return {each.name: typed[each.name] for each in fields(kind) if each.name != "tasks" or "tasks" in typed}


def _open(path: Path) -> RunFolder:
    from gradus.pipeline.runs.run_folder import RunFolder
    from gradus.stages import discover

    return RunFolder(path, [stage.config for stage in discover().values()])
