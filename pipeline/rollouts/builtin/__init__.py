"""Sampling: ``sample`` grows groups of completions on the fastest engine that gives the model's own logits."""

from pipeline.sampler.draw import DrawKey, draw_tokens, truncate
from pipeline.sampler.loop import sample

__all__ = ["DrawKey", "draw_tokens", "sample", "truncate"]
