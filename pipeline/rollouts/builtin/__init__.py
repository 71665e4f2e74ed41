"""The built-in sampler, which samples with the weights that are being trained, in the training process.

Gives: ``sample``, which grows groups of completions on the fastest engine that reproduces the model's own logits;
``DrawKey``, ``draw_tokens`` and ``truncate``.
Must not know: rewards, the training loop, or external engines.
"""

from gradus.pipeline.rollouts.builtin.draw import DrawKey, draw_tokens, truncate
from gradus.pipeline.rollouts.builtin.sample import sample

__all__ = ["DrawKey", "draw_tokens", "sample", "truncate"]
