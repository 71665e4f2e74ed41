"""Adapters: sampling includes them, nothing else is trained, and the saved model does not need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_policies import adapted, stir
from killed_runs import assert_same, run_lives
from small_pipeline import STAGE_CONFIGS, launch, pipeline, write_task
from tiny_policies import tiny_policy
from transformers import AutoModelForCausalLM

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig, SamplingConfig
from gradus.pipeline.config.policy import LoraConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.lora import ADAPTER, add_adapters, merged_state
from gradus.pipeline.policy.policy import frozen_copy, parameters
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.rollouts.builtin.decoder import Decoder
from gradus.pipeline.runs.checkpoint import verified_record
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.types import Prompt

GEMMA_LAYERS = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"model_type": "qwen3", "head_dim": 8},
        {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 6, "layer_types": GEMMA_LAYERS},
    ],
    ids=["llama", "qwen3", "gemma3"],
)
def test_the_sampler_draws_from_the_adapted_policy(architecture: dict[str, Any], prompts: list[Prompt]) -> None:
    """Even if the sampler was prepared before training changed the adapters."""
    policy = adapted(**architecture)
    options = SamplingConfig(max_tokens=8)
    before = sample(policy, prompts, 3, options, DrawKey(0, "s", 1))
    assert isinstance(policy.decoder, Decoder), "the lean sampler understands it"
    stir(policy)
    rollouts = sample(policy, prompts, 3, options, DrawKey(0, "s", 1))
    assert (rollouts.rollout_logprobs_PKT[..., 0] - before.rollout_logprobs_PKT[..., 0]).abs().max() > 1e-3
    forward = batch_logprobs(policy, rollouts, 1.0, 10_000)
    torch.testing.assert_close(forward, rollouts.rollout_logprobs_PKT, rtol=1e-4, atol=1e-4)


def test_only_adapters_train(prompts: list[Prompt]) -> None:
    policy = adapted()
    weights = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    rollouts = sample(policy, prompts, 3, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))
    stage = pipeline([{"stage": "dapo", "prompts_per_step": 4, "lr": 1e-2}]).stages[0]
    learner = Learner(policy, stage, temperature=1.0)
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for step in (1, 2):
        learner.update(rollouts, step, lambda update, groups: table)
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, weights[name])}
    assert moved == set(parameters(policy)) and all(".lora_" in name for name in moved)
    assert set(learner.state()["optimizer"]) == moved
    trained = sum(p.numel() for p in parameters(policy).values())
    assert trained < 0.5 * sum(p.numel() for p in policy.model.parameters())


def test_a_copy_shares_what_never_changes() -> None:
    policy = adapted()
    copy = frozen_copy(policy)
    theirs = dict(copy.model.named_parameters())
    for name, value in policy.model.named_parameters():
        assert (theirs[name].data_ptr() == value.data_ptr()) == (".lora_" not in name), name
    assert not any(p.requires_grad for p in copy.model.parameters())
    assert all(value.requires_grad for value in parameters(policy).values()), "the original trains on"


def test_what_is_saved_is_an_ordinary_model_with_the_adapters_beside_it(tmp_path: Path, prompts: list[Prompt]) -> None:
    from peft import PeftModel

    plain, policy = tiny_policy(), adapted()
    stir(policy)
    ids = torch.tensor([policy.encode_prompt(prompts[1].question)])
    wanted = policy.model(ids).logits
    policy.save(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert set(merged.state_dict()) == set(plain.model.state_dict()) == set(merged_state(policy.model))
    torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-4, atol=1e-5)
    again = PeftModel.from_pretrained(plain.model, tmp_path / "merged" / ADAPTER)
    torch.testing.assert_close(again(ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_names_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(UserError, match="the adapters fit nowhere") as failure:
        add_adapters(tiny_policy().model, LoraConfig(targets=["c_attn"]), seed=0)
    assert "q_proj" in (failure.value.expected or "")


def with_adapters(folder: Path, stages: list[dict[str, Any]], **options: Any) -> PipelineConfig:
    """A pipeline from a model in a folder."""
    if not (folder / "model").exists():
        tiny_policy().save(folder / "model")
    policy = {"path": "model", "device": "cpu", "lora": {"rank": 4, "alpha": 8}}
    return pipeline(stages, policy=policy, **options)


def test_a_chain_hands_merged_weights_over(tmp_path: Path) -> None:
    stages = [{"stage": "sft", "lr": 1e-2}, {"stage": "gfpo", "group_size": 3}, {"stage": "srpo", "group_size": 2}]
    config = with_adapters(tmp_path, stages, rewards=[{"reward": "length", "params": {"max": 5, "falloff": 15}}])
    run = launch(tmp_path, config)
    for index in range(3):
        result = run.result(index)
        assert result is not None
        folder = Path(result["checkpoint"])
        assert verified_record(folder).content == result["content"]
        policy = load_policy(folder, config.policy)
        assert policy.adapters is None and not any("lora" in name for name, _ in policy.model.named_parameters())
    ends = [load_policy(Path((run.result(i) or {})["checkpoint"]), config.policy).model.state_dict() for i in range(3)]
    key = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(ends[0][key], ends[1][key]) and not torch.equal(ends[1][key], ends[2][key])
    assert torch.equal(ends[0]["model.embed_tokens.weight"], ends[2]["model.embed_tokens.weight"])


def test_killed_and_gone_on_with_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    stages = [
        {"stage": "sft", "lr": 1e-2, "eval_every": 2, "handover": "best"},
        {"stage": "vapo", "variant": "paper", "group_size": 3, "critic_warmup": 1},
        {"stage": "srpo", "group_size": 2, "refresh": 2, "async": 1},
    ]
    write_task(tmp_path)
    graded = [{"reward": "length", "params": {"max": 5, "falloff": 15}}]
    steps = [{**stage, "steps": 5} for stage in stages]
    config = with_adapters(tmp_path, steps, rewards=graded, checkpoints={"every_steps": 2})
    (tmp_path / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    assert isinstance(RunFolder(undisturbed.path, STAGE_CONFIGS).result(2), dict)
    lives = [f"{stage['stage']}:{step}:0.5:9" for stage in stages for step in (1, 3)]
    assert_same(undisturbed, run_lives(tmp_path, "killed", *lives, "-"))
