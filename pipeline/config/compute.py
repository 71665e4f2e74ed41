"""The options of a launch on several devices: how many processes train a stage, and what each of them holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gradus.pipeline.config.options import Options


class LaunchConfig(Options):
    """How many processes train a stage together. None of it changes what a run is: it may go on with other values."""

    processes: int = Field(1, ge=1)
    """Processes on this machine, started by torchrun, one a GPU where the policy is on GPUs. They share out the prompts
    to sample and to score, and the rows to train on."""
    shard: Literal["none", "fsdp"] = "none"
    """fsdp: each process keeps and trains its part of every layer's weights, gradients and optimizer state (FSDP2); a
    whole copy of the weights, without gradients, remains for sampling. none: each process trains a whole copy. With one
    process there is nothing to share out."""
    time_limit: float = Field(1800.0, gt=0)
    """Seconds that a process waits for the others before the stage fails."""


class RolloutConfig(Options):
    """Who samples. None of it changes what a run is: it may go on with another engine, as with another seed's draws."""

    engine: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """transformers: the built-in sampler, on the weights that train. vllm: vLLM in the training process, on the same
    device. vllm-server: a vLLM server, which gets the weights before each batch."""
    url: str = "http://127.0.0.1:8000"
    """Address of the server; ``python -m gradus.pipeline.rollouts.vllm.serve MODEL`` starts one."""
    weights_folder: str | None = None
    """Folder that the weights are left in for the server; default: in the run's folder. The server must see it under
    the same path."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in the training process's vLLM; auto: bfloat16 on cuda, else the policy's."""
    memory: float = Field(0.4, gt=0, lt=1)
    """Share of the GPU's memory that vLLM in the training process takes, weights and cache."""
    context: int | None = Field(None, ge=2)
    """Longest prompt and completion together that it makes room for; default: the model's."""
    tolerance: float = Field(0.1, gt=0)
    """Mean difference, in nats a token, between the engine's log-probabilities and the policy's own above which the
    stage fails: they cannot be of the same weights."""
    time_limit: float = Field(600.0, gt=0)
    """Seconds that an answer may take, and that a server which has gone is waited for, before the stage fails."""

    @model_validator(mode="after")
    def _url(self) -> RolloutConfig:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"`url` must begin with http:// or https://, and is {self.url!r}")
        return self

    @property
    def external(self) -> bool:
        """Whether completions come from another engine than the one that trains."""
        return self.engine != "transformers"
