"""The learner: how a batch is cut changes nothing, zero weights cost nothing, broken gradients never get through."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sampled_models import ARCHITECTURES
from tiny_policies import TEXTS, tiny_policy

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.config import PolicyConfig, SamplingConfig, StageConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.forward import lm_head
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.forward.packing import Pack, computing, hidden_states
from gradus.pipeline.policy.policy import copied
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.training.given_batches import written
from gradus.pipeline.training.learner import passes
from gradus.pipeline.training.learner.learner import CompletionRows, Learner, learning_rate
from gradus.pipeline.types import Prompt

SIZES = {"hidden_size": 32, "num_hidden_layers": 2}
MAMBA = {"model_type": "mamba", "state_size": 8}
WEIGHTS = torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [2.0, 0.0, -0.5], [0.1, 0.2, 0.3]])


def config(**options) -> StageConfig:
    return StageConfig(stage="x", steps=10, lr=1e-3, warmup=0, **options)


def sampled(policy, prompts, groups: int = 3):
    return sample(policy, prompts, groups, SamplingConfig(max_tokens=8), DrawKey(0, "s", 1))


def state(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def after_one_update(prompts, weights=WEIGHTS, autocast=False, **options):
    policy = tiny_policy()
    rollouts = sampled(policy, prompts)
    learner = Learner(policy, config(**options), temperature=1.0, autocast=autocast)
    metrics, _ = learner.update(rollouts, 1, lambda update, groups: weights)
    return state(policy), metrics


def test_micro_batches_change_nothing(prompts):
    whole, metrics = after_one_update(prompts, token_budget=100_000)
    pieces, metrics_of_pieces = after_one_update(prompts, token_budget=1)
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-6)
    assert metrics_of_pieces["update/loss"] == pytest.approx(metrics["update/loss"], rel=1e-4)
    assert metrics_of_pieces["update/gradient_norm"] == pytest.approx(metrics["update/gradient_norm"], rel=1e-4)


def test_micro_batches_respect_the_budget_and_cover_every_row_once(policy, prompts):
    rows = CompletionRows.of(sampled(policy, prompts))
    batches = list(rows.micro_batches(list(range(12)), token_budget=60))
    assert sorted(r for batch in batches for r in batch) == list(range(12))
    for batch in batches:
        padded = (max(len(rows.prompts[r]) for r in batch) + max(rows.lengths[r] for r in batch)) * len(batch)
        assert padded <= 60 or len(batch) == 1
    assert len(batches) > 2


@pytest.mark.parametrize("score", ["sum", "mean", "batch"])
def test_gradient_is_that_of_the_literal_loss(policy, prompts, score):
    rollouts = sampled(policy, prompts)
    lengths = rollouts.lengths_PK.float()
    divisor = {"sum": torch.ones_like(lengths), "mean": lengths, "batch": lengths.mean().expand_as(lengths)}[score]
    loss = torch.zeros(())
    for p in range(4):
        for k in range(3):
            tokens = rollouts.tokens_PKT[p, k, : int(lengths[p, k])]
            ids = torch.cat([torch.tensor(rollouts.prompt_tokens[p]), tokens])[None]
            logp = policy.model(ids).logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
            loss = loss - WEIGHTS[p, k] * logp.gather(-1, tokens[:, None]).sum() / divisor[p, k] / 12
    parameters = list(policy.model.parameters())
    expected = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected))
    subject = Learner(policy, config(score=score, grad_clip=1e9), temperature=1.0)
    seen: list[torch.Tensor] = []
    subject._apply = lambda finite, metrics: seen.extend(
        p.grad.clone() for p in parameters
    )  # before the step clears them
    metrics, _ = subject.update(rollouts, 1, lambda update, groups: WEIGHTS)
    assert metrics["update/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["update/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    for got, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_rows_of_zero_weight_are_never_computed_and_prompts_once(prompts, monkeypatch):
    packs: list[Pack] = []
    real = passes.hidden_states
    monkeypatch.setattr(passes, "hidden_states", lambda policy, pack: packs.append(pack) or real(policy, pack))
    after_one_update(prompts)
    rollouts = sampled(tiny_policy(), prompts)
    (pack,) = packs
    assert int((WEIGHTS != 0).sum()) == 8
    assert len(pack.targets) == int(rollouts.lengths_PK[WEIGHTS != 0].sum())
    lengths = [len(tokens) for p, tokens in enumerate(rollouts.prompt_tokens) if (WEIGHTS[p] != 0).any()]
    assert len(pack.ids) == sum(lengths) + len(pack.targets) - 8  # a completion's last token predicts nothing


PACKED = {
    **{name: options for name, options in ARCHITECTURES.items() if name not in ("learned-positions", "soft-capped")},
    "local-and-global": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 6},
    "biases": {"model_type": "qwen2"},
    "capped-head": {"model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 3.0},
}


@pytest.mark.parametrize("architecture", PACKED.values(), ids=PACKED.keys())
@pytest.mark.parametrize("clip", [None, (0.2, 0.28)])
def test_packed_gradients_are_those_of_the_padded_pass(architecture, clip, prompts, monkeypatch):
    def gradients(pack: bool, budget: int) -> list[torch.Tensor]:
        policy = tiny_policy(**architecture)
        rollouts = sampled(policy, prompts)
        assert can_pack(policy)
        policy.packs = pack
        parameters = list(policy.model.parameters())
        seen: list[torch.Tensor] = []
        subject = Learner(policy, config(clip=clip, token_budget=budget), temperature=0.7)
        subject._apply = lambda finite, metrics: seen.extend(p.grad.clone() for p in parameters)
        # The sampler's temperature was another, so that ratios differ from one and the clip takes part.
        subject.update(rollouts, 1, lambda update, groups: WEIGHTS)
        return seen

    monkeypatch.setattr(lm_head, "CELLS", 1)
    monkeypatch.setattr(lm_head, "FEWEST", 5)
    wanted = gradients(pack=False, budget=10_000)
    for budget in (10_000, 40):
        for got, expected in zip(gradients(pack=True, budget=budget), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", [{"model_type": "gemma2", "head_dim": 8}, MAMBA], ids=["soft-capped", "mamba"])
def test_a_model_that_cannot_be_packed_is_padded(architecture, prompts):
    policy = create_policy(PolicyConfig(architecture=architecture | SIZES, device="cpu"), TEXTS, 0)
    assert not can_pack(policy)
    rollouts = written(policy, [Prompt("a", "1 + 2 =", "3")], [["1+2=3; answer: 3"]])
    metrics, _ = Learner(policy, config(), 1.0).update(rollouts, 1, lambda *_: torch.ones(1, 1))
    assert metrics["update/gradient_norm"] > 0


def test_packs_respect_the_budget_and_cover_every_row_once(policy, prompts):
    packs = list(CompletionRows.of(sampled(policy, prompts)).packs(list(range(12)), 60, policy.device))
    assert sorted(r for batch, _ in packs for r in batch) == list(range(12))
    assert all(len(pack.ids) <= 60 or len(batch) == 1 for batch, pack in packs)
    assert len(packs) > 2


@torch.no_grad()
def test_models_that_compute_at_a_time_keep_to_their_own_packs(policy):
    """As the sampler's copy, which reads what an engine drew, and the learner do with ``async``."""
    other = replace(policy, model=copied(policy))
    mine = Pack.of([[1, 2, 3], [4, 5]], [0, 1, 1], [[6, 7], [8, 9, 1], [2]], policy.device)
    its = Pack.of([[3, 1]], [0], [[2, 2, 2, 2]], policy.device)
    with computing(policy, mine):
        wanted = hidden_states(policy, mine)
    with computing(policy, mine), computing(other, its):
        found = hidden_states(policy, mine)
        assert hidden_states(other, its).shape != found.shape
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("architecture", [{}, {"model_type": "gemma2", "head_dim": 8}], ids=["packed", "padded"])
def test_checkpointed_layers_give_the_same_gradient_and_are_computed_again(architecture, prompts):
    updated, calls = [], []
    for checkpointing in (False, True):
        policy = tiny_policy(**architecture)
        rollouts = sampled(policy, prompts)
        subject = Learner(policy, config(gradient_checkpointing=checkpointing), temperature=1.0)
        seen: list[int] = []
        policy.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        subject.update(rollouts, 1, lambda update, groups: WEIGHTS)
        updated.append(state(policy))
        calls.append(len(seen))
    torch.testing.assert_close(updated[1], updated[0], rtol=1e-5, atol=1e-7)
    assert calls[1] > calls[0]


def test_old_logprobs_can_be_computed_again(policy, prompts):
    rollouts = sampled(policy, prompts)
    wrong = replace(rollouts, rollout_logprobs_PKT=rollouts.rollout_logprobs_PKT - 0.5 * rollouts.mask_PKT)
    measured = []
    for source in ("sampler", "recompute"):
        subject = Learner(tiny_policy(), config(old_logprobs=source, clip=(0.2, 0.28)), temperature=1.0)
        metrics, _ = subject.update(subject.prepared(wrong, 1), 1, lambda update, groups: WEIGHTS)
        measured.append(metrics["update/train_sample_mismatch"])
    assert measured[0] == pytest.approx(0.5, abs=1e-4) and measured[1] < 1e-5


def test_a_batch_without_weight_leaves_the_policy_alone(prompts):
    untouched, metrics = after_one_update(prompts, weights=torch.zeros(4, 3))
    assert torch.equal(untouched, state(tiny_policy())) and metrics["update/rows"] == 0


def test_padding_changes_nothing(prompts):
    policy = tiny_policy()
    rollouts = sampled(policy, prompts)
    wider = replace(
        rollouts,
        **{
            name: torch.nn.functional.pad(getattr(rollouts, name), (0, 5))
            for name in ("tokens_PKT", "mask_PKT", "rollout_logprobs_PKT", "entropy_PKT")
        },
    )
    subject = Learner(policy, config(), temperature=1.0)
    subject.update(wider, 1, lambda update, groups: WEIGHTS)
    torch.testing.assert_close(state(policy), after_one_update(prompts)[0], rtol=1e-5, atol=1e-7)


def test_training_sees_the_sampler_s_logprobs(prompts):
    _, metrics = after_one_update(prompts)
    assert 0 <= metrics["update/train_sample_mismatch"] < 1e-5


def test_updates_move_the_likelihood_the_way_the_weights_say(policy, prompts):
    rollouts = sampled(policy, prompts)
    subject = Learner(policy, config(), temperature=1.0)
    for step in range(1, 4):
        subject.update(rollouts, step, lambda update, groups: WEIGHTS)
    now = batch_logprobs(policy, rollouts, 1.0, 10_000).sum(-1)
    gain = now - rollouts.rollout_logprobs_PKT.sum(-1)
    assert gain[2, 0] > 0 > gain[0, 1]


def test_a_gradient_that_is_not_finite_is_skipped_then_fails_the_stage(policy, prompts):
    rollouts = sampled(policy, prompts)
    subject = Learner(policy, config(max_skipped=3), temperature=1.0)
    before = state(policy)
    broken = torch.full((4, 3), float("nan"))
    for _ in range(2):
        metrics, _ = subject.update(rollouts, 1, lambda update, groups: broken)
        assert metrics["update/skipped"] == 1.0
    assert torch.equal(state(policy), before)
    subject.update(rollouts, 1, lambda update, groups: WEIGHTS)  # a good update resets the count
    for _ in range(2):
        subject.update(rollouts, 1, lambda update, groups: broken)
    with pytest.raises(StageFailed, match="3 updates in a row"):
        subject.update(rollouts, 1, lambda update, groups: broken)
    assert torch.isfinite(state(policy)).all()


def test_several_updates_a_batch_weigh_anew(policy, prompts):
    asked = []

    def weigh(update, groups):
        asked.append(update)
        return WEIGHTS

    subject = Learner(policy, config(updates_per_batch=3, clip=(0.2, 0.28)), temperature=1.0)
    metrics, first = subject.update(sampled(policy, prompts), 1, weigh)
    assert asked == [0, 1, 2] and torch.equal(first, WEIGHTS)
    assert metrics["update/train_sample_mismatch"] > 1e-4  # the last update is off-policy, and the metric shows it


def test_autocast_trains_in_bfloat16_and_agrees_roughly(prompts):
    exact, metrics = after_one_update(prompts)
    rough, rough_metrics = after_one_update(prompts, autocast=True)
    assert not torch.equal(exact, rough) and torch.isfinite(rough).all()
    assert rough_metrics["update/gradient_norm"] == pytest.approx(metrics["update/gradient_norm"], rel=0.1)


def test_weight_decay_spares_vectors(policy):
    decayed, spared = Learner(policy, config(weight_decay=0.1), 1.0).optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in spared["params"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),  # (1 + cos(pi * passed)) / 2 at 0, 1/4, 1/2, 3/4
    ],
)
def test_learning_rate(schedule, expected):
    options = StageConfig(stage="x", steps=6, lr=1.0, warmup=2, schedule=schedule)
    assert [learning_rate(step, options) for step in range(1, 7)] == pytest.approx(expected, rel=1e-5)


def test_demonstrations_become_rollouts_that_end(policy):
    prompts = [
        Prompt("a", "1 + 2 =", "3", demonstration="1+2=3; answer: 3"),
        Prompt("b", "7 =", "7", demonstration="7"),
    ]
    rollouts = written(policy, prompts, [[prompt.demonstration or ""] for prompt in prompts])
    assert rollouts.tokens_PKT.shape[:2] == (2, 1)
    for p in range(2):
        tokens = rollouts.tokens_PKT[p, 0, : int(rollouts.lengths_PK[p, 0])].tolist()
        assert tokens[-1] == policy.template.eos_ids[0]
        assert policy.decode(tokens) == prompts[p].demonstration
