"""Each algorithm against its formula: golden numbers by hand, and float64 gradients against autograd through it.

The literal losses below are written straight from the operating manual, as functions of a completion's log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from gradus.pipeline.rewards.ranking import order_PKK
from gradus.pipeline.stage import Signals
from gradus.pipeline.stage_laws import LAWS, check_stage, some_signals
from gradus.pipeline.training.learner.losses import token_weights, weighted_likelihood
from gradus.stages import discover

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
REFERENCE_REWARDS = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
VALUES = torch.tensor([0.25, 0.75], dtype=torch.float64)
LENGTHS = torch.tensor([[3, 1, 2, 4], [2, 2, 4, 1]])
MASK = torch.arange(4) < LENGTHS[..., None]
LOGITS = torch.randn(2, 4, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(7, (2, 4, 4), generator=torch.Generator().manual_seed(2))
REFERENCE_LOGPROBS = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 2


REQUIRED = {"opd": {"teacher": "start"}}
"""Options without a default."""


def make(name: str, **options):
    stage = discover()[name]
    return stage, stage.config(**{"stage": name, "steps": 20, **REQUIRED.get(name, {}), **options})


def order_by(rewards: torch.Tensor) -> torch.Tensor:
    return rewards[:, :, None] > rewards[:, None, :]


def logprobs_of(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0] * MASK


def gradient_through_the_core(name: str, **options) -> torch.Tensor:
    """The gradient that the shared learner's objective gives with this stage's weights."""
    stage, config = make(name, **options)
    logits = LOGITS.clone().requires_grad_()
    logprobs = logprobs_of(logits)
    scores = (logprobs * token_weights(torch.ones_like(REWARDS), MASK, config.score)).sum(-1).detach()
    signals = Signals(
        rewards_PK=REWARDS,
        lengths_PK=LENGTHS,
        order_PKK=order_by(REWARDS),
        policy_scores_PK=scores,
        log_ratio_PK=(logprobs.detach() - REFERENCE_LOGPROBS * MASK).sum(-1),
        reference_rewards_PK=REFERENCE_REWARDS,
        values_P=VALUES,
    )
    needs = stage.needs(config)
    if not needs.log_ratio:
        signals = replace(signals, log_ratio_PK=None)
    if not needs.reference_rewards:
        signals = replace(signals, reference_rewards_PK=None)
    coefficients = token_weights(stage.weigh(signals, config), MASK, config.score)
    loss = -weighted_likelihood(logprobs, coefficients, torch.zeros(()), None) / REWARDS.numel()
    return torch.autograd.grad(loss, logits)[0]


def literal_gradient(loss_of_group) -> torch.Tensor:
    """Autograd through a loss of one group, averaged over the prompts; ``loss_of_group(p, logp_K)``."""
    logits = LOGITS.clone().requires_grad_()
    summed = logprobs_of(logits).sum(-1)
    loss = sum(loss_of_group(p, summed[p]) for p in range(2)) / 2
    return torch.autograd.grad(loss, logits)[0]


def dapo(p, logp):
    K = len(logp)
    return -sum((REWARDS[p, i] - REWARDS[p].mean()) * logp[i] for i in range(K)) / K


def vapo(alpha):
    def loss(p, logp):
        K, baseline = len(logp), alpha * REWARDS[p].mean() + (1 - alpha) * VALUES[p]
        return -sum((REWARDS[p, i] - baseline) * logp[i] for i in range(K)) / K

    return loss


def gfpo(temperature=1.0, mean=False):
    def loss(p, logp):
        s = logp / LENGTHS[p] if mean else logp
        pairs = [(i, j) for i in range(4) for j in range(4) if REWARDS[p, i] > REWARDS[p, j]]
        return -sum(torch.nn.functional.logsigmoid((s[i] - s[j]) / temperature) for i, j in pairs)

    return loss


def srpo_gap(p, logp):
    return -sum((REWARDS[p, i] - REFERENCE_REWARDS[p, i]) * logp[i] for i in range(4))


def srpo_log_ratio(p, logp):
    reference = (REFERENCE_LOGPROBS * MASK).sum(-1)
    return -sum((logp[i].detach() - reference[p, i]) * logp[i] for i in range(4))


def srpo_combined(beta):
    def loss(p, logp):
        reference = (REFERENCE_LOGPROBS * MASK).sum(-1)
        gap = REWARDS[p] - REFERENCE_REWARDS[p].mean()
        return -sum((gap[i] - beta * (logp[i].detach() - reference[p, i])) * logp[i] for i in range(4)) / 4

    return loss


@pytest.mark.parametrize(
    ("name", "options", "literal"),
    [
        ("dapo", {"score": "sum"}, dapo),
        ("dapo", {"score": "mean"}, lambda p, logp: dapo(p, logp / LENGTHS[p])),
        ("vapo", {"score": "sum", "alpha": 0.0}, vapo(0.0)),
        ("vapo", {"score": "sum", "alpha": 0.3}, vapo(0.3)),
        ("gfpo", {"score": "sum", "normalise": "none"}, gfpo()),
        ("gfpo", {"score": "sum", "normalise": "none", "temperature": 0.5}, gfpo(0.5)),
        ("gfpo", {"score": "mean"}, lambda p, logp: gfpo(mean=True)(p, logp) / 4),
        ("srpo", {"score": "sum", "normalise": "none", "baseline": "paired"}, srpo_gap),
        ("srpo", {"score": "sum", "normalise": "none", "advantage": "log_ratio"}, srpo_log_ratio),
        ("srpo", {"score": "sum", "baseline": "mean", "advantage": "combined", "beta": 0.2}, srpo_combined(0.2)),
        ("sft", {"score": "sum", "group_size": 1}, lambda p, logp: -logp.sum() / 4),
    ],
)
def test_gradient_equals_the_literal_formula(name, options, literal):
    torch.testing.assert_close(
        gradient_through_the_core(name, **options), literal_gradient(literal), rtol=1e-9, atol=1e-12
    )


def test_sft_with_batch_score_is_cross_entropy_over_completion_tokens():
    logits = LOGITS.clone().requires_grad_()
    loss = -logprobs_of(logits).sum() / MASK.sum()  # mean over all completion tokens of the batch
    expected = torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(gradient_through_the_core("sft"), expected, rtol=1e-9, atol=1e-12)


# Golden values: the arithmetic stands in the comment; a flipped sign anywhere fails them.


def weights(name, *, rewards=None, options=None, **signals):
    stage, config = make(name, **(options or {}))
    rewards = torch.tensor(rewards if rewards is not None else [[0.0, 0.0]])
    return stage.weigh(Signals(rewards_PK=rewards, lengths_PK=torch.ones_like(rewards), **signals), config)


def test_dapo_golden():
    # mean 0.25: 1 - 0.25 = 0.75, 0 - 0.25 = -0.25
    # the second group is uniform: exactly 0, although 0.1 has no exact mean
    result = weights("dapo", rewards=[[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(result, torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]]))
    assert (result[1] == 0).all()


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.0, [[0.7, -0.3]]),  # 1 - 0.3, 0 - 0.3
        (1.0, [[0.5, -0.5]]),  # mean 0.5
        (0.25, [[0.65, -0.35]]),  # 0.25 * 0.5 + 0.75 * 0.3 = 0.35
    ],
)
def test_vapo_golden(alpha, expected):
    result = weights("vapo", rewards=[[1.0, 0.0]], options={"alpha": alpha}, values_P=torch.tensor([0.3]))
    torch.testing.assert_close(result, torch.tensor(expected))


def test_gfpo_golden_on_the_manual_order():
    # y1 > y3 > y2 > y4 with equal scores: every pair pulls by sigmoid(0) = 1/2.
    # y1 wins 3: 1.5; y3 wins 2, loses 1: 0.5; y2 wins 1, loses 2: -0.5; y4 loses 3: -1.5
    quality = torch.tensor([[4.0, 2.0, 3.0, 1.0]])
    result = weights("gfpo", rewards=[[0.0] * 4], order_PKK=order_by(quality), policy_scores_PK=torch.zeros(1, 4))
    torch.testing.assert_close(result, torch.tensor([[1.5, -0.5, 0.5, -1.5]]))


def test_gfpo_golden_with_scores_and_temperature():
    # one pair, s = (-2, -1), temperature 0.5: sigmoid((s_j - s_i) / 0.5) / 0.5 = sigmoid(2) / 0.5 = 0.880797 / 0.5
    order = torch.tensor([[[False, True], [False, False]]])
    result = weights(
        "gfpo", options={"temperature": 0.5}, order_PKK=order, policy_scores_PK=torch.tensor([[-2.0, -1.0]])
    )
    torch.testing.assert_close(result, torch.tensor([[1.761594, -1.761594]]))


def test_srpo_golden():
    rewards, reference = [[1.0, 0.0]], torch.tensor([[0.0, 0.5]])
    ratio = torch.tensor([[0.2, -0.4]])
    # paired: 1 - 0, 0 - 0.5; against the mean 0.25: 1 - 0.25, 0 - 0.25
    paired = weights("srpo", rewards=rewards, options={"baseline": "paired"}, reference_rewards_PK=reference)
    torch.testing.assert_close(paired, torch.tensor([[1.0, -0.5]]))
    mean = weights("srpo", rewards=rewards, options={"baseline": "mean"}, reference_rewards_PK=reference)
    torch.testing.assert_close(mean, torch.tensor([[0.75, -0.25]]))
    literal = weights("srpo", rewards=rewards, options={"advantage": "log_ratio"}, log_ratio_PK=ratio)
    torch.testing.assert_close(literal, ratio)
    # 0.75 - 0.5 * 0.2 = 0.65; -0.25 + 0.5 * 0.4 = -0.05
    options = {"advantage": "combined", "baseline": "mean", "beta": 0.5}
    both = weights("srpo", rewards=rewards, options=options, reference_rewards_PK=reference, log_ratio_PK=ratio)
    torch.testing.assert_close(both, torch.tensor([[0.65, -0.05]]))


def test_srpo_golden_without_a_second_group():
    # the reference writes the first completion 3 times as often: it would score (3 * 1 + 1 * 0) / 4 = 0.75
    given = {"rollout_logprobs_PKT": torch.zeros(1, 2, 2)}
    given["reference_logprobs_PKT"] = torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]).log()
    gap = weights("srpo", rewards=[[1.0, 0.0]], **given)
    torch.testing.assert_close(gap, torch.tensor([[0.25, -0.75]]))
    # 0.25 - 0.5 * 0.2 = 0.15; -0.75 + 0.5 * 0.4 = -0.55
    options, ratio = {"advantage": "combined", "beta": 0.5}, torch.tensor([[0.2, -0.4]])
    both = weights("srpo", rewards=[[1.0, 0.0]], options=options, log_ratio_PK=ratio, **given)
    torch.testing.assert_close(both, torch.tensor([[0.15, -0.55]]))


def test_srpo_log_ratio_never_moves_a_policy_that_is_its_reference():
    result = weights("srpo", rewards=[[1.0, 0.0]], options={"advantage": "log_ratio"}, log_ratio_PK=torch.zeros(1, 2))
    assert (result == 0).all()


# Laws that every stage obeys, those still to be written included: pipeline/stage_laws.py.


EVERY_VARIANT = [
    pytest.param(name, options, id="-".join([name, *options.values()]))
    for name, stage in discover().items()
    for options in [{}, *({"variant": variant} for variant in stage.config.presets)]
]


@pytest.mark.parametrize(("name", "options"), EVERY_VARIANT)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, name, options):
    stage, config = make(name, **options)
    law(stage, config)


@pytest.mark.parametrize("name", list(discover()))
def test_check_stage_finds_nothing_wrong(name):
    check_stage(discover()[name], **REQUIRED.get(name, {}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dapo", {}),
        ("dapo", {"variant": "paper", "overlong": 0.0}),
        ("gfpo", {}),
        ("gfpo", {"variant": "paper"}),
        ("srpo", {"variant": "paper"}),
    ],
)
def test_law_equal_rewards_weigh_nothing_where_the_formula_says_so(name, options):
    stage, config = make(name, **options)
    assert (stage.weigh(some_signals(torch.full((2, 5), 0.3)), config) == 0).all()


def gfpo_state(
    rewards: list[float], quality: list[float], before: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What GFPO makes of a batch of one group that is ranked by the reward and by the quality."""
    keys = {"quality": torch.tensor([quality])}
    rewards_PK, lengths_PK, valid_PK = torch.tensor([rewards]), torch.ones(1, len(rewards)), torch.ones(1, len(rewards))
    order, alone = (
        order_PKK(by, rewards_PK, keys, lengths_PK, valid_PK) for by in (["reward", "quality"], ["quality"])
    )
    stage = discover()["gfpo"]
    assert stage.observe is not None
    signals = replace(some_signals(rewards_PK), order_PKK=order, quality_PKK=alone)
    return dict(stage.observe(signals, before or {}, stage.config(stage="gfpo", steps=1)))


def test_gfpo_believes_further_keys_as_far_as_they_agree_with_the_reward():
    # The reward puts 0 above 1, 2 and 3; the quality is right about 2 of these 3 pairs: (2 - 1) / 3, a third.
    # It orders 3 pairs of equal reward, as many as the reward orders, so that the bound takes nothing off.
    assert gfpo_state([1, 0, 0, 0], [2, 3, 1, 0])["tie_weight"] == pytest.approx(1 / 3)
    # right twice out of four: a coin; right about none: no more than that
    assert gfpo_state([1, 0, 0, 0, 0], [3, 5, 4, 2, 1])["tie_weight"] == 0
    assert gfpo_state([1, 0, 0], [0, 1, 2])["tie_weight"] == 0
    # right about all of 4 pairs, and 6 pairs of equal reward: 4 / 6
    state = gfpo_state([1, 0, 0, 0, 0], [9, 4, 3, 2, 1])
    assert state["agreement"] == 1 and state["tie_weight"] == pytest.approx(4 / 6)
    # then a group without a right one: 10 further pairs of equal reward, while the earlier pairs count 0.9
    state = gfpo_state([0, 0, 0, 0, 0], [5, 4, 3, 2, 1], state)
    assert state["tie_weight"] == pytest.approx(0.9 * 4 / (0.9 * 6 + 10))
    assert gfpo_state([0, 0], [1, 2])["tie_weight"] == 0, "where nothing was ever right, nothing is known of the key"


def test_gfpo_s_pairs_of_equal_reward_weigh_what_they_are_worth():
    # rewards 1, 1, 0, 0: 0 and 1 win both pairs across: 2/2; the key puts 0 above 1, and 2 above 3: 1/2 each
    given = {"order_PKK": order_by(torch.tensor([[4.0, 3.0, 2.0, 1.0]])), "policy_scores_PK": torch.zeros(1, 4)}
    rewards = [[1.0, 1.0, 0.0, 0.0]]
    for options, state, wanted in (
        ({"ties": "all"}, {"tie_weight": 0.5}, [1.5, 0.5, -0.5, -1.5]),
        ({}, {"tie_weight": 1.0}, [1.5, 0.5, -0.5, -1.5]),
        ({}, {"tie_weight": 0.5}, [1.25, 0.75, -0.75, -1.25]),
        ({}, {"tie_weight": 0.0}, [1.0, 1.0, -1.0, -1.0]),
    ):
        assert weights("gfpo", rewards=rewards, options=options, state=state, **given).tolist() == [wanted]
    none = weights("gfpo", rewards=[[0.0] * 4], state={"tie_weight": 0.0}, **given)
    assert none.tolist() == [[0.0] * 4], "a group without a right completion teaches nothing"


def test_preference_scores_saturate():
    # far on the right side of the order nothing is left to pull
    order = torch.tensor([[[False, True], [False, False]]])
    result = weights("gfpo", order_PKK=order, policy_scores_PK=torch.tensor([[30.0, -30.0]]))
    assert result.abs().max() < math.exp(-50)
