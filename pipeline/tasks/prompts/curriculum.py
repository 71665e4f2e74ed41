"""A curriculum: which prompts are drawn moves over their pass rates with the progress of the stage."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from gradus.pipeline.tasks.prompt_order import PromptStream, Schedule

if TYPE_CHECKING:
    from gradus.pipeline.config.prompts import CurriculumConfig
    from gradus.pipeline.types import Prompt


class Curriculum(Schedule):
    """Draws the prompts of each step without replacement, by weights over their pass rates.

    What a step draws is a pure function of (seed, stage, step), so a resume needs no state. Further prompts of the same
    step, such as refills, are those that come next in its draw.
    """

    def __init__(self, stream: PromptStream, rates: Any, options: CurriculumConfig, steps: int):
        """``rates``: the pass rate of each row of the stream's data."""
        super().__init__(stream)
        self.rates, self.options, self.steps = rates, options, steps
        self._drawn: Any = None

    def begin(self, step: int) -> None:
        self.place, self._drawn = 0, self.order(step)

    def take(self, size: int) -> list[Prompt]:
        places = [(self.place + offset) % len(self._drawn) for offset in range(size)]
        self.place += size
        return self.stream.rows([self._drawn[place] for place in places])

    def order(self, step: int) -> Any:
        """All rows in the order in which this step draws them.

        The largest of log-weights with Gumbel noise are a weighted draw without replacement. As the order of an epoch,
        the noise comes from raw bits, whose stream will never change.
        """
        import numpy

        key = f"{self.stream.seed}\0{self.stream.stage_label}\0curriculum\0{step}"
        digest = hashlib.sha256(key.encode()).digest()
        bits = numpy.random.Philox(key=int.from_bytes(digest[:16], "big")).random_raw(len(self.rates))
        uniform = ((bits >> numpy.uint64(11)) + 0.5) * 2.0**-53
        first, last = self.options.mean
        mean = first + (last - first) * (step - 1) / max(self.steps - 1, 1)
        weights = -((self.rates - mean) ** 2) / (2 * self.options.width**2)
        return numpy.argsort(-(weights - numpy.log(-numpy.log(uniform))), kind="stable")
