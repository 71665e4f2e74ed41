"""The line of stages behind a pipeline's curves: which metrics they have, at which steps, and what is delivered.

A stage's curves begin where those of the stage before it in the list end, and the stages follow each other in the order
of the list, side by side or not: one waits until those before it are done. A stage that is trained again follows what
is there already. So no step is used twice, whatever ends a stage early.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gradus.pipeline.common.files import write_json
from gradus.pipeline.tracking.curves.places import StagePlace, find_attempt, stage_places
from gradus.pipeline.tracking.journal import JournalEvent, iter_events

LINE_FILE = "mlflow-curves.json"
"""In the run folder: how far the pipeline's curves have been delivered."""
CURVES = {
    "reward/mean": "reward/mean",
    "validation/accuracy": "validation/accuracy",
    "policy/entropy": "policy/entropy",
    "policy/kl_to_start": "policy/kl",
    "completion/length": "completion/length",
    "time/step": "time/step",
}
"""Metric of a stage -> curve of the pipeline."""
BY_TASK = "validation/accuracy/"
"""The beginning of the metrics of single tasks, which keep their names."""
TOTALS = ("progress/rollouts", "progress/tokens")
"""Metrics of a stage that count on over the pipeline; success records have them as ``rollouts`` and ``tokens``."""
STEP, STAGE = "time/step", "stage/index"
"""The metric that every step of training has, and the curve that is the stage's number at each of these steps."""

Point = tuple[str, float, int, int]
"""Name, value, time (ms), step."""


@dataclass
class Line:
    """How far the curves have come: the content of ``mlflow-curves.json``."""

    run_id: str = ""
    """The pipeline's MLflow run."""
    done: dict[str, str] = field(default_factory=dict)
    """Stage -> the attempt at it that is delivered."""
    label: str = ""
    """The stage that is being delivered, with its attempt; empty between two stages."""
    key: str = ""
    begin: dict[str, float] = field(default_factory=dict)
    """``step`` and each of TOTALS before its first step."""
    reached: dict[str, float] = field(default_factory=dict)
    """The same after the last step delivered."""
    offset: int = 0
    """Bytes of its journal that are delivered."""
    seen: dict[str, int] = field(default_factory=dict)
    """Curve -> highest step of the stage delivered."""
    floor: dict[str, int] = field(default_factory=dict)
    """Curve -> highest step before the stage was last resumed; repeated steps up to it are not delivered again."""
    drawn: dict[str, str] = field(default_factory=dict)
    """``done`` as it was when the figure was last drawn and sent."""

    @classmethod
    def of_run(cls, run_dir: Path, run_id: str) -> Line:
        """The line of a run folder; a new one where nothing has been delivered to this MLflow run."""
        try:
            raw = json.loads((run_dir / LINE_FILE).read_text(encoding="utf-8"))
            line = cls(**{name: raw[name] for name in cls.__dataclass_fields__ if name in raw})
        except (OSError, ValueError, TypeError):
            return cls(run_id)
        return line if line.run_id == run_id else cls(run_id)

    def write(self, run_dir: Path) -> None:
        """Replace the line of a run folder atomically."""
        write_json(run_dir / LINE_FILE, asdict(self))

    def left(self, run_dir: Path) -> Iterator[tuple[StagePlace, int]]:
        """The attempts that can be delivered now, in order, and the offset in the journal to go on from."""
        if self.key and (now := find_attempt(run_dir, self.label, self.key)) is not None:
            yield now, self.offset
            if not now.closed:
                return
        for place in stage_places(run_dir):
            if place.key == self.done.get(place.label) or (place.label, place.key) == (self.label, self.key):
                continue
            yield place, 0
            if not place.closed:
                return

    def open(self, place: StagePlace) -> None:
        """Begin to deliver an attempt, unless it has begun already."""
        if (self.label, self.key) != (place.label, place.key):
            self.label, self.key, self.begin = place.label, place.key, dict(self.reached)
            self.offset, self.seen, self.floor = 0, {}, {}

    def points(self, place: StagePlace, event: JournalEvent) -> list[Point]:
        """What an event adds to the curves.

        The step before a stage's first one is the last one of the stage before, which has its points already.
        """
        if event["kind"] == "start":
            self.floor = dict(self.seen)
        values, step, begin = event.get("values"), int(event.get("step", 0)), int(self.begin.get("step", 0))
        if event["kind"] != "metrics" or not isinstance(values, dict) or (step == 0 and begin):
            return []
        values = {name: value for name, value in values.items() if isinstance(value, int | float)}
        found = {CURVES.get(name, name): values[name] for name in values if name in CURVES or name.startswith(BY_TASK)}
        found |= {name: self.begin.get(name, 0) + values[name] for name in TOTALS if name in values}
        found |= {STAGE: float(place.number)} if STEP in values else {}
        at = int(event.get("time", 0))
        return [(name, value, at, begin + step) for name, value in found.items() if step > self.floor.get(name, -1)]

    def confirm(self, points: list[Point], offset: int) -> None:
        """These points, and with them the journal up to ``offset``, are delivered."""
        begin = int(self.begin.get("step", 0))
        for name, value, _, step in points:
            self.seen[name] = max(step - begin, self.seen.get(name, 0))
            self._reach({"step": step} | ({name: value} if name in TOTALS else {}))
        self.offset = offset

    def close(self, place: StagePlace) -> None:
        """All of an attempt is delivered; the next one begins behind it."""
        if place.result:
            self.done[place.label] = place.key
            spent = {"step": place.result.get("steps"), **{n: place.result.get(n.split("/")[1]) for n in TOTALS}}
            self._reach({name: self.begin.get(name, 0) + (value or 0) for name, value in spent.items()})
        self.label, self.key = "", ""

    def _reach(self, place: Mapping[str, float]) -> None:
        for name, value in place.items():
            self.reached[name] = max(value, self.reached.get(name, 0))


def pending(run_dir: Path, run_id: str) -> Iterator[tuple[Path, int]]:
    """(journal, offset) of each journal that the curves of the MLflow run ``run_id`` have not got to the end of."""
    for place, offset in Line.of_run(run_dir, run_id).left(run_dir):
        yield place.journal, offset


def waiting(run_dir: Path, run_id: str) -> bool:
    """Whether there is anything to deliver of a pipeline's curves, or a stage's end."""
    for place, offset in Line.of_run(run_dir, run_id).left(run_dir):
        if place.closed or next(iter_events(place.journal, offset), None) is not None:
            return True
    return False
