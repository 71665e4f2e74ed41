"""Options of a stage's objective besides its algorithm: penalties, and which tokens take part."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from gradus.pipeline.config.options import Name, Options

PolicyName = Annotated[str, Field(min_length=1)]
"""Another policy than the one that trains: ``start`` (the pipeline's starting policy), ``previous`` (the policy that
this stage starts from), the name of an earlier stage, a folder or a Hub id."""
PolicyChoice = PolicyName | Annotated[dict[Name, PolicyName], Field(min_length=1)]
"""One such policy for all prompts, or one for each task of a mixture."""
RatioBounds = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(gt=1)]]
"""[low, high] of a probability ratio, 1 between them."""

START, PREVIOUS = "start", "previous"


def chosen_policies(stage: Any) -> dict[str, dict[str, str]]:
    """option -> task -> the policy that it chooses, of a stage's options that choose other policies; the empty task
    stands for all of them."""
    chosen = {option: getattr(stage, option) for option in stage.other_policies}
    given = {option: choice for option, choice in chosen.items() if choice is not None}
    return {option: choice if isinstance(choice, dict) else {"": choice} for option, choice in given.items()}


class EntropyConfig(Options):
    """A term that rewards entropy: ``weight`` times the entropy of every token's distribution, in nats."""

    weight: float = Field(0.0, ge=0)
    """Its factor; with a ``target``, at the stage's first step."""
    target: float | None = Field(None, gt=0)
    """Entropy, in nats a token, that is held: the factor grows by ``step`` after a batch below it and shrinks after one
    above it, where the term rests."""
    step: float = Field(0.005, gt=0)
    """Change of the factor by one batch, with a ``target``."""

    @model_validator(mode="after")
    def _does_something(self) -> EntropyConfig:
        if self.target is None and not self.weight:
            raise ValueError("give a `weight`, or a `target` to hold")
        return self
