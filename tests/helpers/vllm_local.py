"""vLLM in one process with a policy: ``python tests/helpers/vllm_local.py FOLDER KIND``, in an environment with vLLM.

Prints its findings as JSON for test_vllm.py. It imports of the project only what vLLM's own environment can import.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from vllm_models import architectures, policy_of, prompts

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.policy.policy import parameters
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.rollouts.external import EngineSampler
from gradus.pipeline.rollouts.factory import sampler_for
from gradus.pipeline.rollouts.sampler import Sampler
from gradus.stages.dapo import DAPOConfig


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    policy = policy_of(kind)
    policy.save(folder)
    policy_config = {"architecture": architectures()[kind], "device": "cpu"}
    raw = {
        "name": "x", "policy": policy_config, "rollouts": {"engine": "vllm", "context": 128},
        "task": {"source": "file", "path": "x.jsonl"}, "rewards": [{"reward": "exact_answer"}],
        "stages": [{"stage": "dapo", "steps": 1}],
    }  # fmt: skip
    config = pipeline_model([DAPOConfig]).model_validate(raw)
    torch.set_num_threads(1)
    state = torch.random.get_rng_state()
    sampler: Sampler = sampler_for(config, policy, folder, folder, 0)
    assert isinstance(sampler, EngineSampler)
    told = {"threads": torch.get_num_threads(), "random": torch.equal(state, torch.random.get_rng_state())}
    options, draw = SamplingConfig(max_tokens=12, temperature=0.8), DrawKey(0, "x", 1)
    for name, change in (("start", 0.0), ("trained", 0.05)):
        with torch.no_grad():
            for parameter in parameters(policy).values():
                parameter += change * torch.randn(parameter.shape)
        with sampler.weights_of(policy):
            found = sampler(policy, prompts(), 4, options, draw)
            again = sampler(policy, prompts()[::-1], 4, options, draw)
            greedy = sampler(policy, prompts(), 1, options, None, without_logprobs=True)
        assert found.engine_logprobs_PKT is not None
        differences = (found.rollout_logprobs_PKT - found.engine_logprobs_PKT)[found.mask_PKT].abs()
        lasts = found.tokens_PKT.gather(-1, (found.lengths_PK - 1)[..., None])[..., 0]
        told[name] = {
            "mismatch": float(differences.max()),
            "repeats": [*reversed(again.texts)] == found.texts,
            "different": len({text for group in found.texts for text in group}),
            "greedy": greedy.texts == sample(policy, prompts(), 1, options, None).texts,
            "ends": torch.equal(found.truncated_PK, lasts != policy.template.eos_ids[0]),
        }
    print("RESULT " + json.dumps(told))


if __name__ == "__main__":
    main()
