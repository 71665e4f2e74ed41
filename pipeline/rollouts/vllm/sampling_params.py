"""Sampling options in the terms of vLLM."""

from __future__ import annotations

from typing import Any

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.rollouts.sampler import Request


def drawing(request: Request, options: SamplingConfig, ends: tuple[int, ...]) -> dict[str, Any]:
    """The sampling options of a request, under the names of vLLM's SamplingParams and of its completions API."""
    greedy = request.seed is None
    return {
        "n": request.group_size,
        "max_tokens": options.max_tokens,
        "temperature": 0.0 if greedy else options.temperature,
        "top_p": 1.0 if greedy else options.top_p,
        "top_k": 0 if greedy else options.top_k,
        "seed": request.seed,
        "stop_token_ids": [*ends],
        "ignore_eos": True,  # only the end tokens above end a completion
        "logprobs": 0,  # only that of the sampled token
        # What a model's generation_config.json may set otherwise:
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
