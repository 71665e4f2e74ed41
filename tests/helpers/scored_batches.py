"""Streams of made-up prompts, and batches with made-up scores."""

from __future__ import annotations

import datasets
import torch

from gradus.pipeline.tasks.prompt_order import PromptStream
from gradus.pipeline.types import Prompt, Rollouts


def stream_of(count: int, task: str = "") -> PromptStream:
    rows = [
        {"id": f"p{n}", "question": f"{n} + {n} =", "answer": str(2 * n), "metadata": "{}", "demonstration": None}
        for n in range(count)
    ]
    return PromptStream(datasets.Dataset.from_list(rows), seed=0, stage_label="x", given={"task": task} if task else {})


def scored(prompts: list[Prompt], correct: list[list[bool]], valid: list[list[bool]] | None = None) -> Rollouts:
    right = torch.tensor(correct)
    shape = right.shape
    return Rollouts(
        prompts=prompts,
        prompt_tokens=[[1]] * len(prompts),
        tokens_PKT=torch.zeros((*shape, 2), dtype=torch.long),
        mask_PKT=torch.ones((*shape, 2), dtype=torch.bool),
        rollout_logprobs_PKT=torch.zeros((*shape, 2)),
        truncated_PK=torch.zeros(shape, dtype=torch.bool),
        texts=[["t"] * shape[1]] * len(prompts),
        rewards_PK=right.float(),
        components={"exact_answer": right.float()},
        valid_PK=torch.ones(shape, dtype=torch.bool) if valid is None else torch.tensor(valid),
        correct_PK=right,
    )
