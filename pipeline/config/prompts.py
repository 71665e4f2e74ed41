"""Which prompts a stage trains on, by what earlier stages found out about them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gradus.pipeline.config.options import Name, Options

Share = Annotated[float, Field(ge=0, le=1)]


class PromptsConfig(Options):
    """The prompts that a stage trains on, chosen by pass rate: the share of their completions that was correct."""

    pass_rate: tuple[Share, Share] | None = None
    """[lowest, highest]: only prompts whose pass rate lies between, both included; [0, 0.9] drops what is nearly
    solved. Needed, except where ``profile`` finds pass rates for the stage's ``curriculum`` or ``order``."""
    profile: int | None = Field(None, ge=1, le=1000)
    """Before its first step the stage answers each of its training prompts so many times, with the policy that it
    starts from and its own sampling options; its pass rates, also those of ``curriculum`` and ``order``, are what this
    finds. Default: pass rates are those that earlier stages found while they trained."""
    from_: Name | None = Field(None, alias="from")
    """The stage whose completions are counted; default: for each prompt the newest earlier stage that scored it."""
    unseen: bool = True
    """Whether prompts are trained on that no such stage, or the profile, could score."""

    @model_validator(mode="after")
    def _makes_sense(self) -> PromptsConfig:
        if self.pass_rate is None and self.profile is None:
            raise ValueError("`prompts` chooses nothing without a `pass_rate: [lowest, highest]`")
        if self.pass_rate is not None and self.pass_rate[0] > self.pass_rate[1]:
            raise ValueError(f"`pass_rate` is [lowest, highest], and {self.pass_rate[0]} is more than its highest")
        if self.profile is not None and self.from_ is not None:
            raise ValueError(
                f"`profile` finds pass rates at the stage's start, and `from: {self.from_}` takes those of another "
                "stage; leave one of them out"
            )
        return self


class CurriculumConfig(Options):
    """How likely each prompt is to be drawn, by its pass rate and the progress of the stage.

    The prompts of a batch are drawn without replacement with weights exp(-(p - m)^2 / (2 width^2)), where p is a
    prompt's pass rate and m moves in equal steps from the first ``mean`` to the last (Nemotron 3 Nano, arXiv
    2512.20848).
    """

    pass_rate: Literal["gaussian"]
    """The form of the weights over the pass rate."""
    mean: tuple[Share, Share] = (0.8, 0.2)
    """[at the first step, at the last step]: the pass rate that is drawn most; a falling one goes from easy to hard."""
    width: float = Field(0.15, gt=0)
    """The standard deviation of the weights."""
    from_: Name | None = Field(None, alias="from")
    """The stage whose completions are counted; default: as in ``prompts``."""
    unseen: Share | None = None
    """The pass rate that a prompt is taken to have which no such stage has scored; null leaves these prompts out."""


class OrderConfig(Options):
    """The order in which each epoch visits the prompts; equal ones come in another order each time."""

    by: str = Field(min_length=1)
    """``length`` (of the question), ``pass_rate`` (as in ``prompts``; unseen ones last), or the name of a
    column of the task that has a number, or a text, in every row."""
    descending: bool = False
    """Whether the largest come first: with ``pass_rate``, the easiest."""
    from_: Name | None = Field(None, alias="from")
    """With ``pass_rate``: the stage whose completions are counted, as in ``prompts``."""

    @model_validator(mode="after")
    def _from_goes_with_pass_rates(self) -> OrderConfig:
        if self.from_ is not None and self.by != "pass_rate":
            raise ValueError(
                f"`from` names a stage whose pass rates count, and the order is by {self.by}; leave it out"
            )
        return self


class DemonstrationsConfig(Options):
    """Demonstrations that an earlier stage wrote: its own completions (rejection sampling)."""

    from_: Name = Field(alias="from")
    """The stage whose completions, written while it trained, are learned from."""
    keep: Literal["correct", "pairs"] = "correct"
    """Which of them: the correct ones that ended by themselves; or, for a stage that learns from pairs, of each group
    whose rewards differ one with the highest reward (chosen) and one with the lowest (rejected)."""
    per_prompt: int = Field(1, ge=1)
    """How many of each prompt at most, the newest first; a prompt is a demonstration as often."""
