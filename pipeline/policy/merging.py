"""Weights made out of those of several models of one architecture, tensor by tensor, from their files.

    average    W = sum_i w_i W_i
    slerp      W = (sin((1 - t) o) W_1 + sin(t o) W_2) / sin(o),   cos(o) = <W_1, W_2> / (|W_1| |W_2|),   t = w_2

with weights w_i > 0 that sum to 1. The average is that of "model soups" (arXiv 2203.05482); the arc is Shoemake's
(Animating rotation with quaternion curves, SIGGRAPH 1985), of each tensor as one vector. The arithmetic is in float32,
and at most one tensor of each model is in memory beside the file that is being written.

A checkpoint that was trained with adapters has them in its weights already, so that nothing is different for it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.policy.merge_checks import refuse_others
from gradus.pipeline.policy.prompts import Template
from gradus.pipeline.policy.stored_weights import stored_files

PARALLEL = 0.9995
"""Where the cosine of two tensors is beyond this, on either side, the arc is taken to be a straight line."""
Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean, as W_1 + sum_i w_i (W_i - W_1), which of equal tensors is exactly that tensor."""
    first = tensors[0]
    return sum((weight * (other - first) for other, weight in zip(tensors[1:], weights[1:], strict=True)), first)


def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The point on the arc between two tensors, at the weight of the second."""
    one, two = tensors
    length = math.sqrt(_dot(one, one) * _dot(two, two))
    cosine = _dot(one, two) / length if length else 1.0
    if abs(cosine) > PARALLEL:
        return average(tensors, weights)
    angle = math.acos(cosine)
    return (math.sin(weights[0] * angle) * one + math.sin(weights[1] * angle) * two) / math.sin(angle)


def _dot(one: Tensor, two: Tensor) -> float:
    return float((one * two).sum(dtype=torch.float64))


METHODS: dict[str, Combine] = {"average": average, "slerp": slerp}


@dataclass(frozen=True)
class Merged:
    """A model that is written out of the files of others."""

    like: Path
    """The model whose description, tokenizer, template and layout of files are kept."""
    models: Sequence[Path]
    """Those that the weights are made of."""
    weights: Sequence[float]
    method: str
    dtype: torch.dtype
    template: Template

    def save(self, folder: Path) -> None:
        """Write the model's files. Raises: UserError where the models are not of one architecture."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        like, models = self.like, self.models
        refuse_others(like, models)
        for file in sorted(like.iterdir()):
            if file.is_file() and file.suffix != ".safetensors" and file.name != "gradus.json":
                shutil.copyfile(file, folder / file.name)
        places = [stored_files(model) for model in models]
        with contextlib.ExitStack() as held:
            opened = {
                (model, name): held.enter_context(safe_open(model / name, "pt"))
                for model, place in zip(models, places, strict=True)
                for name in sorted(set(place.values()))
            }

            def read(name: str) -> list[Tensor]:
                pairs = zip(models, places, strict=True)
                return [opened[model, place[name]].get_tensor(name) for model, place in pairs]

            layout = stored_files(like)
            for file in sorted(set(layout.values())):
                names = [name for name, place in layout.items() if place == file]
                save_file({name: self._combined(name, read(name)) for name in names}, folder / file, {"format": "pt"})

    def _combined(self, name: str, tensors: list[Tensor]) -> Tensor:
        if not tensors[0].is_floating_point():
            if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
                raise UserError(f"the models differ in {name}, which is no weight that could be merged")
            return tensors[0]
        found = METHODS[self.method]([tensor.float() for tensor in tensors], self.weights)
        return found.to(self.dtype).contiguous()
