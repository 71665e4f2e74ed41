"""The engines behind the sampler: whichever is chosen, and however rows come and go, the logits are the model's own."""

from __future__ import annotations

import pytest
import torch
from sampled_models import ARCHITECTURES, DRAW, make_endings_likely, policy_with
from tiny_policies import TEXTS, tiny_policy

from gradus.pipeline.config import PolicyConfig, SamplingConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.forward import packable
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.rollouts.builtin import lean_engine, sample
from gradus.pipeline.rollouts.builtin.decoder import Decoder
from gradus.pipeline.rollouts.builtin.engines import TransformersEngine, engine_of
from gradus.pipeline.types import Prompt

LEAN = {**ARCHITECTURES, "local-and-global": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 6}}
LEAN["biases"] = {"model_type": "qwen2"}
del LEAN["learned-positions"]


def long_prompts(policy, count: int = 6) -> list[Prompt]:
    """Prompts of 20 to 70 tokens."""
    questions = [" ".join(["Calculate"] + ["1 +"] * (8 + 4 * i) + ["2 ="]) for i in range(count)]
    return [Prompt(id=f"l{i}", question=q, answer="") for i, q in enumerate(questions)]


def engine_for(policy):
    return engine_of(policy, [[1, 2, 3]], 2, 4)


@pytest.mark.parametrize("architecture", LEAN.values(), ids=LEAN.keys())
def test_llama_like_models_are_decoded_lean(architecture):
    assert isinstance(engine_for(tiny_policy(**architecture)), lean_engine.LeanEngine)


def test_tokens_that_pretraining_never_met_have_no_say_in_how_a_model_is_computed():
    """What a deep model makes of special tokens may be inexact; here it is nothing at all."""
    policy = tiny_policy()
    met = {policy.template.pad_id, *policy.ordinary(range(1000))}
    with torch.no_grad():
        unmet = sorted(set(range(len(policy.tokenizer))) - met)
        policy.model.get_input_embeddings().weight[unmet] = torch.nan
    assert len(met) > 8 and 1 not in met
    assert isinstance(engine_for(policy), lean_engine.LeanEngine)
    assert can_pack(policy)


def test_a_model_of_other_parts_is_sampled_through_transformers():
    engine = engine_for(policy_with(ARCHITECTURES["learned-positions"]))
    assert isinstance(engine, TransformersEngine) and engine.cached


def test_a_decoder_that_misunderstands_the_model_is_not_used(monkeypatch):
    real = Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda self, hidden: real(self, hidden) * 1.01)
    assert isinstance(engine_for(tiny_policy()), TransformersEngine)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: x")]
)
@pytest.mark.parametrize(
    ("where", "name", "kind", "tried"),
    [
        (Decoder, "fused", "tied", engine_for),
        (TransformersEngine, "_forward", "learned-positions", engine_for),
        (packable, "logprobs_from_states", "tied", can_pack),
    ],
)
def test_memory_that_runs_out_while_a_way_is_tried_is_no_verdict_on_the_model(
    where, name, kind, tried, error, monkeypatch
):
    """The model would be computed in a slower way from then on, without a word."""

    def run_out(*_: object, **__: object) -> None:
        raise error

    policy = policy_with(ARCHITECTURES[kind])
    monkeypatch.setattr(where, name, run_out)
    with pytest.raises(type(error)):
        tried(policy)
    assert policy.packs is None and policy.decoder is None


def test_a_model_without_a_cache_is_sampled_with_a_warning(prompts):
    mamba = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    policy = create_policy(PolicyConfig(architecture=mamba, device="cpu"), TEXTS, 0)
    with pytest.warns(UserWarning, match="mamba has no usable key-value cache"):
        rollouts = sample(policy, prompts, 3, SamplingConfig(max_tokens=5), DRAW)
    assert rollouts.tokens_PKT.shape[:2] == (4, 3)


@pytest.mark.parametrize("architecture", LEAN.values(), ids=LEAN.keys())
@pytest.mark.parametrize("budget", [65_536, 400])
@pytest.mark.parametrize("share_from", [8, 10_000])
def test_logprobs_hold_when_prompts_are_shared_and_rows_join_late(architecture, budget, share_from, monkeypatch):
    monkeypatch.setattr(lean_engine, "SHARE_FROM", share_from)
    policy = tiny_policy(max_position_embeddings=256, **architecture)
    make_endings_likely(policy)
    prompts = long_prompts(policy)
    options = SamplingConfig(max_tokens=20, token_budget=budget)
    rollouts = sample(policy, prompts, 4, options, DRAW)
    again = batch_logprobs(policy, rollouts, 1.0, token_budget=3000)
    torch.testing.assert_close(again, rollouts.rollout_logprobs_PKT, rtol=0, atol=1e-4)
    assert len(set(rollouts.lengths_PK.flatten().tolist())) > 3


def test_rows_that_join_late_draw_the_same_tokens(monkeypatch):
    monkeypatch.setattr(lean_engine, "SHARE_FROM", 8)
    policy = tiny_policy(max_position_embeddings=256)
    make_endings_likely(policy)
    prompts = long_prompts(policy)
    together = sample(policy, prompts, 4, SamplingConfig(max_tokens=20), DRAW)
    admitted = []
    real = lean_engine.LeanEngine.admit

    def counting(self, taken):
        admitted.append((len(taken), len(self.position)))
        return real(self, taken)

    monkeypatch.setattr(lean_engine.LeanEngine, "admit", counting)
    refilled = sample(policy, prompts, 4, SamplingConfig(max_tokens=20, token_budget=260), DRAW)
    assert refilled.texts == together.texts
    assert any(there for _, there in admitted), "some must have joined rows that were growing"


def test_the_weights_are_those_of_the_moment(policy, prompts):
    options = SamplingConfig(max_tokens=8)
    before = sample(policy, prompts, 4, options, DRAW)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.5)
    after = sample(policy, prompts, 4, options, DRAW)
    again = batch_logprobs(policy, after, 1.0, token_budget=3000)
    torch.testing.assert_close(again, after.rollout_logprobs_PKT, rtol=0, atol=1e-4)
    assert before.texts != after.texts


def test_bfloat16_stays_near_a_training_forward(prompts):
    policy = tiny_policy()
    policy.model.to(torch.bfloat16)
    assert isinstance(engine_for(policy), lean_engine.LeanEngine)
    rollouts = sample(policy, prompts, 4, SamplingConfig(max_tokens=8), DRAW)
    again = batch_logprobs(policy, rollouts, 1.0, token_budget=3000)
    torch.testing.assert_close(again, rollouts.rollout_logprobs_PKT, rtol=0, atol=0.1)


def test_groups_are_told_of_as_they_end(policy, prompts):
    make_endings_likely(policy)
    told: dict[int, list[str]] = {}
    rollouts = sample(policy, prompts, 4, SamplingConfig(max_tokens=12), DRAW, on_group=told.__setitem__)
    assert [told[p] for p in range(len(prompts))] == rollouts.texts
