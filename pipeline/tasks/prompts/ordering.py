"""An order of prompts by what they are: the length of their questions, a column, or how often they were solved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.prompt_order import PromptStream
from gradus.pipeline.tasks.prompts.rates import keys_of, rates

if TYPE_CHECKING:
    from gradus.pipeline.config import StageConfig
    from gradus.pipeline.tasks.prompts.selection import Earlier


class OrderedStream(PromptStream):
    """Every epoch goes through the prompts by their ranks, equal ones in the order of a permutation of its own."""

    def __init__(self, stream: PromptStream, ranks: Any):
        """``ranks``: of each row of the stream's data, the smallest first."""
        super().__init__(stream.dataset, stream.seed, "", stream.given)
        self.stage_label, self.ranks = stream.stage_label, ranks

    def permutation(self, epoch: int) -> Any:
        import numpy

        shuffled = super().permutation(epoch)
        return shuffled[numpy.argsort(self.ranks[shuffled], kind="stable")]


def ordered(stream: PromptStream, stage: StageConfig, earlier: Earlier) -> PromptStream:
    """The stream in the order that a stage asks for. Raises: UserError where the task has no such column."""
    import numpy

    if (order := stage.order) is None:
        return stream
    if order.by == "pass_rate":
        memories = list(earlier.values()) if order.from_ is None else [earlier[order.from_]]
        values = rates(keys_of(list(stream.dataset["id"])), memories)
    elif order.by == "length":
        values = numpy.array([len(question) for question in stream.dataset["question"]])
    else:
        values = numpy.array(_column(stream, stage, order.by))
    _, ranks = numpy.unique(values, return_inverse=True)
    ranks = -ranks.astype(float) if order.descending else ranks.astype(float)
    if order.by == "pass_rate":
        ranks[numpy.isnan(values)] = numpy.inf
    return OrderedStream(stream, ranks)


def _column(stream: PromptStream, stage: StageConfig, name: str) -> list[Any]:
    """The values of a column, all numbers or all texts. Raises: UserError."""
    prompts = stream.rows(range(len(stream.dataset)))
    found = [prompt.metadata.get(name) for prompt in prompts]
    numbers = sum(isinstance(value, int | float) and value == value for value in found)
    if len(found) in (numbers, sum(isinstance(value, str) for value in found)):
        return found
    columns = sorted({key for prompt in prompts[:1] for key in prompt.metadata})
    raise UserError(
        f"the stage `{stage.label}` cannot order its prompts by {name!r}",
        where=f"stages.{stage.label}.order.by",
        got=f"a number in {numbers:,} of {len(found):,} rows",
        expected=", ".join(["length", "pass_rate", *columns]),
        fix="name a column that has a number, or a text, in every row",
    )
