"""Options of the computation: the processes that train a stage, and the engine that generates completions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gradus.pipeline.config.options import Options


class LaunchConfig(Options):
    """The processes that train a stage together. No option here is part of a run's identity: a run may be resumed with
    other values."""

    processes: int = Field(1, ge=1)
    """Processes on this machine, started by torchrun, one for each GPU where the policy is on GPUs. They share the
    prompts to sample and to score, and the rows to train on."""
    shard: Literal["none", "fsdp"] = "none"
    """fsdp: each process keeps and trains its part of every layer's weights, gradients and optimizer state (FSDP2); a
    whole copy of the weights, without gradients, remains for sampling. none: each process trains a whole copy. With one
    process there is nothing to share out."""
    side_by_side: int = Field(1, ge=1)
    """Stages that do not depend on each other that are trained at the same time, each in a process of its own; 1: one
    after the other, in the order of the list. The result is the same."""
    time_limit: float = Field(1800.0, gt=0)
    """Seconds that a process waits for the others before the stage fails."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> LaunchConfig:
        if self.processes > 1 and self.side_by_side > 1:
            raise ValueError(
                f"`processes: {self.processes}` and `side_by_side: {self.side_by_side}` would both share out this "
                "machine: set one of them to 1"
            )
        return self


class RolloutConfig(Options):
    """The engine that generates completions. No option here is part of a run's identity: a run may be resumed with
    another engine, whose samples differ as those of another seed do."""

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
    """Share of the GPU's memory that vLLM in the training process takes for weights and cache."""
    context: int | None = Field(None, ge=2)
    """Longest prompt and completion together, in tokens, that vLLM reserves memory for; default: the model's."""
    tolerance: float = Field(0.1, gt=0)
    """Mean difference, in nats a token, between the engine's log-probabilities and the policy's own above which the
    stage fails: they cannot be of the same weights."""
    time_limit: float = Field(600.0, gt=0)
    """Seconds to wait for an answer, and for a server that is down, before the stage fails."""

    @model_validator(mode="after")
    def _url(self) -> RolloutConfig:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"`url` must begin with http:// or https://, and is {self.url!r}")
        return self

    @property
    def external(self) -> bool:
        """Whether another engine than the built-in sampler generates the completions."""
        return self.engine != "transformers"
