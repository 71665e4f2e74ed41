"""A stage that takes no steps: it makes its checkpoint out of those of earlier stages."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from gradus.pipeline.config.stage import StageOptions


class MergeConfig(StageOptions):
    """Options of a merge: the weighted mean of several models' weights, or the arc between two."""

    trains: ClassVar[bool] = False
    other_policies: ClassVar[tuple[str, ...]] = ("of",)
    steps: ClassVar[int] = 0
    variant: ClassVar[str] = "manual"
    guard: ClassVar[Any] = None
    carry: ClassVar[tuple[str, ...]] = ()
    token_budget: ClassVar[int] = 16_384

    stage: Literal["merge"]
    """Discriminator: selects a merge."""
    of: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)
    """Earlier stages by name, ``start`` for the policy before any stage, or models of the same architecture: folders
    (written with a slash, such as ./soup) or Hub ids. The first stage among them is the parent: its tokenizer and
    template are kept, and the accuracies after the merge are compared with it."""
    weights: list[Annotated[float, Field(gt=0)]] | None = None
    """The weight of each, in the same order, divided by their sum; default: equal ones."""
    method: Literal["average", "slerp"] = "average"
    """average: the weighted mean of each tensor. slerp: of two models, the point on the arc between each pair of
    tensors that the weight of the second says."""

    @model_validator(mode="after")
    def _as_many_weights(self) -> MergeConfig:
        if len(set(self.of)) < len(self.of):
            raise ValueError("`of` names one model twice; give it more weight instead")
        if self.weights is not None and len(self.weights) != len(self.of):
            raise ValueError(f"`weights` has {len(self.weights)} numbers for the {len(self.of)} models of `of`")
        if self.method == "slerp" and len(self.of) != 2:
            raise ValueError(f"`method: slerp` is an arc between two models, and `of` has {len(self.of)}")
        return self

    @property
    def shares(self) -> list[float]:
        """The weight of each model; they sum to 1."""
        given = self.weights or [1.0] * len(self.of)
        return [each / sum(given) for each in given]


class Listed(NamedTuple):
    """What a listing of stages says of it."""

    name: str
    summary: str
    config: type[StageOptions]


LISTED = Listed("merge", "no training: averages the weights of earlier stages, or goes along the arc", MergeConfig)
