"""Which training prompts of a task a stage may draw, by the pass rates that earlier stages found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.prompts.rates import keys_of, rates

if TYPE_CHECKING:
    from datasets import Dataset

    from gradus.pipeline.config import StageConfig

Earlier = Mapping[str, Any]
"""Label of an earlier stage -> its records, the newest stage first."""


class Selected(NamedTuple):
    """The prompts that a stage may draw."""

    dataset: Dataset
    rates: Any
    """The pass rate that a curriculum goes by, of each of its rows; None without a curriculum."""
    told: list[str]
    """What was left out and why, for the user."""


def selected(dataset: Dataset, stage: StageConfig, needed: int, earlier: Earlier) -> Selected:
    """The prompts that a stage's ``prompts`` and ``curriculum`` leave of a task's training prompts.

    Raises: UserError where fewer are left than the ``needed`` of a batch.
    """
    import numpy

    if stage.prompts is None and stage.curriculum is None:
        return Selected(dataset, None, [])
    keys, told, found = keys_of(list(dataset["id"])), list[str](), None
    keep = numpy.ones(len(keys), bool)
    if (prompts := stage.prompts) is not None and prompts.pass_rate is not None:
        rate = rates(keys, _from(prompts.from_, earlier))
        low, high = prompts.pass_rate
        unseen, below, above = numpy.isnan(rate), rate < low, rate > high
        keep = ~below & ~above & (~unseen | prompts.unseen)
        out = {f"below {low:g}": below.sum(), f"above {high:g}": above.sum()}
        out |= {} if prompts.unseen else {"never scored": unseen.sum()}
        told.append(_told(stage, "prompts.pass_rate", keep, out, needed))
    if (curriculum := stage.curriculum) is not None:
        rate = rates(keys, _from(curriculum.from_, earlier))
        unseen = numpy.isnan(rate)
        if curriculum.unseen is None:
            out = {"never scored": (keep & unseen).sum()}
            keep = keep & ~unseen
            told.append(_told(stage, "curriculum.unseen", keep, out, needed))
        found = numpy.where(unseen, curriculum.unseen or 0.0, rate)[keep]
    left: Any = dataset.select(numpy.flatnonzero(keep))
    return Selected(left, found, told)


def _from(label: str | None, earlier: Earlier) -> list[Any]:
    return list(earlier.values()) if label is None else [earlier[label]]


def _told(stage: StageConfig, key: str, keep: Any, out: Mapping[str, int], needed: int) -> str:
    """A line about what is left. Raises: UserError where it is too little."""
    left, parts = int(keep.sum()), ", ".join(f"{count:,} {why}" for why, count in out.items() if count)
    what = f"{left:,} of {len(keep):,} prompts are left" + (f", without {parts}" if parts else "")
    if left < needed:
        raise UserError(
            f"the stage `{stage.label}` has too few prompts left to train on",
            where=f"stages.{stage.label}.{key}",
            got=what,
            expected=f"at least the {needed:,} of a batch",
            fix="widen the range of pass rates, let unseen prompts in, or lower prompts_per_step, in a fork or new run",
        )
    return f"{stage.label}: {what} ({key})"
