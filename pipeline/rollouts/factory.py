"""The sampler that a configuration asks for. An external engine is started once per process, for all its stages."""

from __future__ import annotations

from pathlib import Path

from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.policy.devices import autocasts
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.external import EngineSampler
from gradus.pipeline.rollouts.sampler import BUILT_IN, RolloutEngine, Sampler
from gradus.pipeline.rollouts.vllm.checks import logprobs_mode

_ENGINES: dict[str, RolloutEngine] = {}
"""The engine that was started, under a key of everything that it was started with."""


def sampler_for(pipeline: PipelineConfig, policy: Policy, model: Path, run: Path, stage: int | None = None) -> Sampler:
    """The sampler of a stage, or the one for the policy before any stage where ``stage`` is None.

    ``model``: a folder with a model of the policy's kind, from which an engine starts. ``run``: the run folder, where
    weights are written for a server to read.
    """
    if not pipeline.rollouts.external:
        return BUILT_IN
    config = pipeline.stages[stage or 0]
    engine = _engine(pipeline, model, run)
    return EngineSampler(engine, pipeline.rollouts, config.token_budget, autocasts(policy, pipeline.policy))


def _engine(pipeline: PipelineConfig, model: Path, run: Path) -> RolloutEngine:
    key = f"{run} {pipeline.rollouts.model_dump_json()}"
    if key not in _ENGINES:
        _ENGINES.clear()
        if pipeline.rollouts.engine == "vllm":
            from gradus.pipeline.rollouts.vllm.local import LocalVllm

            _ENGINES[key] = LocalVllm(pipeline, model, logprobs_mode(pipeline))
        else:
            from gradus.pipeline.rollouts.vllm.server import VllmServer

            folder = pipeline.rollouts.weights_folder
            _ENGINES[key] = VllmServer(pipeline.rollouts, Path(folder) if folder else run / "rollout-weights")
    return _ENGINES[key]
