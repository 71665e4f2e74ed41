"""The published algorithms against their formulas: golden numbers by hand, independent float64 loops, and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gradus.pipeline.advantages import best_kept, gae, length_adaptive_lambda, overlong_penalty, standardise
from gradus.pipeline.stage import Signals
from gradus.pipeline.training.learner.critics import explained_variance, value_loss
from gradus.pipeline.training.learner.losses import token_weights, weighted_likelihood
from gradus.pipeline.training.signals import difficulty
from gradus.stages import discover

GENERATOR = torch.Generator().manual_seed(11)
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
LENGTHS = torch.tensor([[3, 1, 2, 4], [2, 3, 4, 1]])
MASK = torch.arange(4) < LENGTHS[..., None]
VALUES = torch.rand(2, 4, 4, dtype=torch.float64, generator=GENERATOR)
LOGITS = torch.randn(2, 4, 4, 7, dtype=torch.float64, generator=GENERATOR)
TOKENS = torch.randint(7, (2, 4, 4), generator=GENERATOR)
# Some ratios are far outside of any clip, on both sides.
OLD = torch.randn(2, 4, 4, dtype=torch.float64, generator=GENERATOR) * 0.5


def make(name: str, **options):
    stage = discover()[name]
    return stage, stage.config(**{"stage": name, "steps": 20, "variant": "paper", **options})


def logprobs_of(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0] * MASK


OLD_LOGPROBS = logprobs_of(LOGITS) + OLD * MASK


def gradient_through_the_core(name: str, **options) -> torch.Tensor:
    stage, config = make(name, **options)
    logits = LOGITS.clone().requires_grad_()
    signals = Signals(
        rewards_PK=REWARDS,
        lengths_PK=LENGTHS,
        mask_PKT=MASK,
        longest=4,
        values_PKT=VALUES,
        difficulty_P=torch.tensor([0.1, 0.9]),
    )
    coefficients = token_weights(stage.weigh(signals, config), MASK, config.score)
    loss = -weighted_likelihood(logprobs_of(logits), coefficients, OLD_LOGPROBS, config.clip) / REWARDS.numel()
    return torch.autograd.grad(loss, logits)[0]


def clipped_token_loss(advantage, low: float, high: float) -> torch.Tensor:
    """The papers' surrogate, token by token: ``advantage(p, i, t)``."""
    logits = LOGITS.clone().requires_grad_()
    logprobs, total = logprobs_of(logits), 0.0
    for p in range(2):
        for i in range(4):
            for t in range(int(LENGTHS[p, i])):
                ratio = (logprobs[p, i, t] - OLD_LOGPROBS[p, i, t]).exp()
                held = min(max(float(ratio.detach()), 1 - low), 1 + high)
                a = float(advantage(p, i, t))
                # min over the two; where the constant one is smaller, nothing is left to differentiate
                total = total + (ratio * a if float(ratio.detach()) * a <= held * a else torch.tensor(held * a))
    return torch.autograd.grad(-total / int(LENGTHS.sum()), logits)[0]


def sample_std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def test_dapo_gradient_equals_the_published_formula():
    # the last half of 4 tokens: length 3 pays 0.5, length 4 pays 1
    shaped = REWARDS - torch.tensor([[0.5, 0, 0, 1.0], [0, 0.5, 1.0, 0]], dtype=torch.float64)

    def advantage(p, i, t):
        group = shaped[p].tolist()
        return (group[i] - sum(group) / 4) / sample_std(group)

    found = gradient_through_the_core("dapo", overlong=0.5)
    torch.testing.assert_close(found, clipped_token_loss(advantage, 0.2, 0.28), rtol=1e-9, atol=1e-12)


def gae_by_sums(p: int, i: int, t: int, lambda_: float) -> float:
    """A_t = sum over l of lambda^l delta_(t+l), each delta written out."""
    length = int(LENGTHS[p, i])
    total = 0.0
    for step in range(t, length):
        following = float(VALUES[p, i, step + 1]) if step + 1 < length else 0.0
        reward = float(REWARDS[p, i]) if step + 1 == length else 0.0
        total += lambda_ ** (step - t) * (reward + following - float(VALUES[p, i, step]))
    return total


def test_vapo_gradient_equals_the_published_formula():
    def advantage(p, i, t):
        return gae_by_sums(p, i, t, max(0.0, 1 - 1 / (0.5 * int(LENGTHS[p, i]))))

    found = gradient_through_the_core("vapo", length_alpha=0.5)
    # the coefficients are float32 where lambda is
    torch.testing.assert_close(found, clipped_token_loss(advantage, 0.2, 0.28), rtol=1e-6, atol=1e-8)


def test_gfpo_gradient_equals_the_published_formula():
    # easy prompt: the 2 shortest of lengths 3 1 2 4 are 1 and 2; hard prompt: the 3 shortest of 2 3 4 1 are 0, 1 and 3
    kept = [[1, 2], [0, 1, 3]]

    def advantage(p, i, t):
        group = [float(REWARDS[p, j]) for j in kept[p]]
        if i not in kept[p] or len(set(group)) == 1:
            return 0.0
        return (float(REWARDS[p, i]) - sum(group) / len(group)) / sample_std(group)

    found = gradient_through_the_core("gfpo", keep=(2, 2, 3, 3), group_size=4)
    assert found[1].abs().sum() > 0, "the hard prompt's kept part is mixed"
    torch.testing.assert_close(found, clipped_token_loss(advantage, 0.2, 0.2), rtol=1e-9, atol=1e-12)


def test_srpo_gradient_equals_the_published_formula():
    def advantage(p, i, t):
        group = REWARDS[p].tolist()
        return (group[i] - sum(group) / 4) / sample_std(group)

    found = gradient_through_the_core("srpo")
    torch.testing.assert_close(found, clipped_token_loss(advantage, 0.2, 0.2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_gae_equals_its_sums(lambda_):
    found = gae(REWARDS, VALUES, MASK, torch.full((2, 4), lambda_, dtype=torch.float64))
    wanted = torch.zeros_like(VALUES)
    for p in range(2):
        for i in range(4):
            for t in range(int(LENGTHS[p, i])):
                wanted[p, i, t] = gae_by_sums(p, i, t, lambda_)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


# Golden values by hand.


def test_standardise_golden():
    # 1 0 0 1: mean 1/2, variance (4 * 1/4) / 3 = 1/3, so +-(1/2) * sqrt(3) = +-0.866025
    # 1 0 0 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4, so (3/4) / (1/2) = 1.5 and -0.5
    # equal rewards: exactly 0, though 0.1 has no exact mean
    found = standardise(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]))
    root = 0.8660254
    torch.testing.assert_close(found, torch.tensor([[root, -root, -root, root], [1.5, -0.5, -0.5, -0.5], [0.0] * 4]))
    assert (found[2] == 0).all()


def test_standardise_within_the_kept():
    # kept 1 and 0: mean 1/2, variance (1/4 + 1/4) / 1 = 1/2, so 0.5 / 0.7071068 = 0.7071068; the third is not looked at
    kept = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    found = standardise(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), kept)
    torch.testing.assert_close(found, torch.tensor([[0.7071068, -0.7071068, 0.0], [0.0] * 3, [0.0] * 3]))


def test_overlong_penalty_golden():
    # 100 tokens, buffer 20: free up to 80; 85 pays 5/20; 100 pays 1
    found = overlong_penalty(torch.tensor([[10, 80, 85, 100]]), longest=100, buffer=20)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, -0.25, -1.0]]))


def test_length_adaptive_lambda_golden():
    # 1 - 1 / (0.05 * 100) = 0.8; 1 - 1 / (0.05 * 1000) = 0.98; below 20 tokens it would be negative
    found = length_adaptive_lambda(torch.tensor([[100, 1000, 5]]), alpha=0.05)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.98, 0.0]]))


def test_gae_golden():
    # values 0.5 0.75, reward 1, lambda 0.5: delta_2 = 1 - 0.75 = 0.25; delta_1 = 0.75 - 0.5 = 0.25
    # A_2 = 0.25, A_1 = 0.25 + 0.5 * 0.25 = 0.375; behind the end stands nothing, whatever the critic says there
    values, mask = torch.tensor([[[0.5, 0.75, 9.0]]]), torch.tensor([[[True, True, False]]])
    found = gae(torch.tensor([[1.0]]), values, mask, torch.tensor([[0.5]]))
    torch.testing.assert_close(found, torch.tensor([[[0.375, 0.25, 0.0]]]))


def test_best_kept_golden():
    # the two shortest of 4 1 3 2 are 1 and 2; with 3 3 tied for the second place both stay
    lengths = torch.tensor([[4, 1, 3, 2], [4, 1, 3, 3]])
    wanted = torch.tensor([[False, True, False, True], [False, True, True, True]])
    assert torch.equal(best_kept(-lengths, torch.tensor([2, 2])), wanted)
    assert best_kept(-lengths, torch.tensor([9, 9])).all()


def test_gfpo_keeps_more_of_hard_prompts():
    stage, config = make("gfpo", keep=(2, 3, 4, 4), group_size=4)
    lengths = torch.tensor([[1, 2, 3, 4]] * 4)
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 4)
    difficulty = torch.tensor([0.0, 0.3, 0.6, 1.0])
    signals = Signals(rewards_PK=rewards, lengths_PK=lengths, difficulty_P=difficulty)
    assert (stage.weigh(signals, config) != 0).sum(-1).tolist() == [2, 3, 4, 4]


def test_gfpo_by_efficiency():
    # reward a token: 1/4, 0/1, 1/2, 0/2: the best two are the right ones, which are equal: nothing to learn; of three,
    # tied at 0 stand both wrong ones: all four stay
    signals = Signals(rewards_PK=torch.tensor([[1.0, 0.0, 1.0, 0.0]]), lengths_PK=torch.tensor([[4, 1, 2, 2]]))
    stage, two = make("gfpo", keep=2, keep_by="efficiency")
    assert (stage.weigh(signals, two) == 0).all()
    _, three = make("gfpo", keep=3, keep_by="efficiency")
    torch.testing.assert_close(stage.weigh(signals, three), standardise(signals.rewards_PK))


def test_difficulty_golden():
    # first batch: means 1 and 0. Of two, none is above the 1 and it is equal to itself: (0 + 1/2) / 2 = 0.25;
    # one is above the 0: (1 + 1/2) / 2 = 0.75
    # second batch, mean 0.5, among 0 0.5 1: (1 + 1/2) / 3 = 0.5
    first, second = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert difficulty(first, None, torch.tensor([1.0, 0.0])).tolist() == [0.25, 0.75]
    assert difficulty(second, None, torch.tensor([1.0, 0.0, 0.5])).tolist() == [0.5]


def test_value_loss_golden():
    # V 0.9 from 0.5, return 1, clip 0.1: unclipped 0.5 * 0.01 = 0.005; held at 0.6: 0.5 * 0.16 = 0.08, the larger
    # V 0.3 from 0.5: unclipped 0.5 * 0.49 = 0.245; held at 0.4: 0.5 * 0.36 = 0.18: the error counts in full
    found = value_loss(torch.tensor([0.9, 0.3]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]), clip=0.1)
    torch.testing.assert_close(found, torch.tensor([0.08, 0.245]))


def test_explained_variance_golden():
    # returns 0 1 have variance 1/4; errors 0 0.5 have variance 1/16: 1 - 1/4
    assert explained_variance(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 1.0])) == pytest.approx(0.75)


# Presets.


@pytest.mark.parametrize("name", [name for name, stage in discover().items() if stage.config.presets])
def test_each_value_of_a_preset_can_be_set_by_itself(name):
    stage, paper = make(name)
    for key, value in stage.config.presets["paper"].items():
        assert getattr(paper, key) == value, "the preset applies"
        manual = stage.config(stage=name, steps=20, **({"group_size": 16} if key == "keep" else {}))
        assert getattr(make(name, **{key: getattr(manual, key)})[1], key) == getattr(manual, key), (
            "what is given counts"
        )
        assert getattr(stage.config(**{"stage": name, "steps": 20, "group_size": 16, key: value}), key) == value


def test_a_stage_without_a_published_variant_says_so():
    with pytest.raises(ValueError, match="sft has no published variant"):
        make("sft")


def test_a_resolved_configuration_means_the_same_again():
    for name, stage in discover().items():
        if stage.config.presets:
            config = make(name)[1]
            assert stage.config(**config.model_dump()) == config
            assert replace(stage.needs(config)) == stage.needs(stage.config(**config.model_dump(mode="json")))
