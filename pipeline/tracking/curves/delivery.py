"""Delivers a pipeline's curves to its MLflow run, every point exactly once, and its figure whenever a stage ends.

As with a journal, how far delivery has come is saved after every batch, and MLflow ignores the batch that is sent twice
because its points have the same time, step and value.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gradus.pipeline.tracking.curves.figure import draw
from gradus.pipeline.tracking.curves.line import Line, Point
from gradus.pipeline.tracking.curves.places import StagePlace
from gradus.pipeline.tracking.delivery import RunDelivery
from gradus.pipeline.tracking.events import Target
from gradus.pipeline.tracking.failures import Undeliverable, Unreachable
from gradus.pipeline.tracking.journal import iter_events
from gradus.pipeline.tracking.position import Report
from gradus.pipeline.tracking.sending import MAX_METRICS, Sender


def deliver_curves(parent: RunDelivery, report: Report, deadline: float | None = None) -> None:
    """Send what the stages' journals have for the run of the pipeline, until the end or the deadline.

    Raises: Unreachable and Undeliverable.
    """
    more = parent.refresh()
    try:
        parent.open("")
    except Undeliverable:
        if more:
            raise
        return pass_over(parent)  # a run of an earlier version, complete and deleted there: nobody waits for its curves
    run_id = parent.position.run_id
    if not run_id:
        return
    sender = Sender(Target(parent.store, parent.position, parent.run.title), parent.run_dir, parent.journal, report)
    _Curves(Line.of_run(parent.run_dir, run_id), sender).deliver(deadline)


def pass_over(parent: RunDelivery) -> None:
    """Count the stages that are done as delivered."""
    line = Line.of_run(parent.run_dir, parent.position.run_id)
    while (found := next(line.left(parent.run_dir), None)) is not None and found[0].closed:
        line.open(found[0])
        line.close(found[0])
    line.drawn = dict(line.done)
    line.write(parent.run_dir)


@dataclass(frozen=True)
class _Curves:
    """The line of stages of a run, and the MLflow run that gets it."""

    line: Line
    sender: Sender

    def deliver(self, deadline: float | None) -> None:
        """Deliver one attempt at a stage after the other."""
        line, run_dir = self.line, self.sender.run_dir
        while (found := next(line.left(run_dir), None)) is not None:
            place, _ = found
            line.open(place)
            for points, offset in self._batches(place):
                self._send(place, points, offset)
                if deadline is not None and time.monotonic() > deadline:
                    return
            if not place.closed:
                break
            line.close(place)
            line.write(run_dir)
        if line.drawn != line.done:
            self._send_figure()

    def _batches(self, place: StagePlace) -> Iterator[tuple[list[Point], int]]:
        """The points of what is left of a journal, and the offset behind them, in pieces that fit in a request.

        What was seen before a stage was resumed must be confirmed before the points after it are chosen.
        """
        points: list[Point] = []
        reached = self.line.offset
        for event, behind in iter_events(place.journal, reached):
            if event and event["kind"] == "start" and points:
                yield points, reached
                points = []
            new = self.line.points(place, event) if event else []
            if len(points) + len(new) > MAX_METRICS:
                yield points, reached
                points = []
            points += new
            reached = behind
        if reached != self.line.offset:
            yield points, reached

    def _send(self, place: StagePlace, points: list[Point], offset: int) -> None:
        now = next(self.line.left(self.sender.run_dir), None)
        if now is None or (now[0].journal, now[0].key) != (place.journal, place.key):
            raise Unreachable("the folder was set aside meanwhile; both are delivered at the next pass")
        self.sender.send_metrics(points)
        self.line.confirm(points, offset)
        self.line.write(self.sender.run_dir)

    def _send_figure(self) -> None:
        """A figure that fails is no reason to hold anything back; the next end of a stage draws it again."""
        run_dir, line = self.sender.run_dir, self.line
        try:
            files = draw(run_dir)
        except Exception:
            logging.getLogger(__name__).debug("the figure of the pipeline", exc_info=True)
            files = []
        for file in files:
            self.sender.send_event({"kind": "artifact", "path": str(file)})
        line.drawn = dict(line.done)
        line.write(run_dir)
