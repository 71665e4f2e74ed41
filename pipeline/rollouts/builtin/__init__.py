"""Sampling: ``sample`` grows groups of completions on the fastest engine that gives the model's own logits."""

from gradus.pipeline.rollouts.builtin.draw import DrawKey, draw_tokens, truncate
from gradus.pipeline.rollouts.builtin.sample import sample

__all__ = ["DrawKey", "draw_tokens", "sample", "truncate"]
