"""GSPO, CISPO, DPO, on-policy distillation and SRPO reweighted, each against its literal formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradus.pipeline.stage import Signals
from gradus.pipeline.training.learner.losses import token_weights, weighted_likelihood
from gradus.stages import discover

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 0.25]], dtype=torch.float64)
LENGTHS = torch.tensor([[3, 1, 2, 4], [2, 2, 4, 1]])
MASK = torch.arange(4) < LENGTHS[..., None]
LOGITS = torch.randn(2, 4, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
OLD = LOGITS + 0.4 * torch.randn(LOGITS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
OTHER = torch.randn(2, 4, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
TOKENS = torch.randint(7, (2, 4, 4), generator=torch.Generator().manual_seed(2))
CLIP = (0.1, 0.15)


def logprobs_of(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0] * MASK


def config_of(name: str, **options):
    return discover()[name].config(**{"stage": name, "steps": 20, **options})


def through_the_core(name: str, columns: int = 4, **options) -> Tensor:
    """The gradient of the shared objective with this stage's weights, of the first completions of each group."""
    config, stage = config_of(name, **options), discover()[name]
    logits = LOGITS[:, :columns].clone().requires_grad_()
    mask = MASK[:, :columns]
    logprobs = logits.log_softmax(-1).gather(-1, TOKENS[:, :columns, :, None])[..., 0] * mask
    spread = token_weights(torch.ones(mask.shape[:2], dtype=torch.float64), mask, config.score)
    old, other = logprobs_of(OLD)[:, :columns], logprobs_of(OTHER)[:, :columns]
    rewards = REWARDS[:, :columns]
    signals = Signals(
        rewards_PK=rewards,
        lengths_PK=LENGTHS[:, :columns],
        mask_PKT=mask,
        order_PKK=rewards[:, :, None] > rewards[:, None, :],
        policy_scores_PK=(logprobs.detach() * spread).sum(-1),
        policy_logprobs_PKT=logprobs.detach(),
        rollout_scores_PK=(old * spread).sum(-1),
        rollout_logprobs_PKT=old,
        reference_scores_PK=(other * spread).sum(-1),
        reference_logprobs_PKT=other,
        teacher_logprobs_PKT=other,
    )
    coefficients = token_weights(stage.weigh(signals, config), mask, config.score)
    loss = -weighted_likelihood(logprobs, coefficients, torch.zeros(()), None) / rewards.numel()
    return torch.autograd.grad(loss, logits)[0]


def advantages(p: int) -> Tensor:
    return (REWARDS[p] - REWARDS[p].mean()) / REWARDS[p].std()


def gspo(logprobs: Tensor) -> Tensor:
    total, held = torch.zeros((), dtype=torch.float64), 0
    for p in range(2):
        for i in range(4):
            ratio = ((logprobs[p, i] - logprobs_of(OLD)[p, i]).sum() / LENGTHS[p, i]).exp()
            bounded = ratio.clamp(1 - CLIP[0], 1 + CLIP[1])
            A = advantages(p)[i]
            held += bool(bounded * A < ratio * A)
            total = total - torch.minimum(ratio * A, bounded * A) / 4
    assert 0 < held < 8, "or the test would not see the clip"
    return total / 2


def cispo(logprobs: Tensor) -> Tensor:
    ratio = (logprobs - logprobs_of(OLD)).exp().clamp(max=1.1).detach()
    assert ratio[MASK].max() == 1.1
    weighed = torch.stack([advantages(p) for p in range(2)])[..., None] * ratio * logprobs
    return -(weighed * MASK).sum() / MASK.sum()


def srpo_reweighted(logprobs: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p in range(2):
        w = [(logprobs_of(OTHER)[p, i] - logprobs_of(OLD)[p, i]).sum().exp() for i in range(4)]
        baseline = sum(w[i] * REWARDS[p, i] for i in range(4)) / sum(w)
        total = total - sum((REWARDS[p, i] - baseline) * logprobs[p, i].sum() for i in range(4)) / 4
    return total / 2


def opd(logprobs: Tensor) -> Tensor:
    weights = (logprobs_of(OTHER) - logprobs.detach()).clamp(-1.5, 1.5)
    assert weights.abs().max() == 1.5
    return -(weights * logprobs * MASK).sum() / MASK.sum()


@pytest.mark.parametrize(
    ("name", "options", "literal"),
    [
        ("gspo", {"sequence_clip": CLIP}, gspo),
        ("cispo", {"ratio_cap": 1.1}, cispo),
        ("srpo", {"score": "sum"}, srpo_reweighted),
        ("opd", {"teacher": "start", "bound": 1.5}, opd),
    ],
)
def test_gradient_equals_the_literal_formula(name, options, literal):
    logits = LOGITS.clone().requires_grad_()
    wanted = torch.autograd.grad(literal(logprobs_of(logits)), logits)[0]
    torch.testing.assert_close(through_the_core(name, **options), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", ["sum", "mean"])
@pytest.mark.parametrize("loss", ["sigmoid", "apo_zero", "apo_down"])
def test_preference_losses_equal_their_literal_formulas(loss, score):
    beta, logits = 0.7, LOGITS[:, :2].clone().requires_grad_()
    own = (logits.log_softmax(-1).gather(-1, TOKENS[:, :2, :, None])[..., 0] * MASK[:, :2]).sum(-1)
    ratio = beta * (own - logprobs_of(OTHER)[:, :2].sum(-1)) / (LENGTHS[:, :2] if score == "mean" else 1)
    total = torch.zeros((), dtype=torch.float64)
    for p in range(2):
        chosen = int(REWARDS[p, 1] > REWARDS[p, 0])
        c, r = ratio[p, chosen], ratio[p, 1 - chosen]
        literal = {
            "sigmoid": -(c - r).sigmoid().log(),
            "apo_zero": -c.sigmoid() + r.sigmoid(),
            "apo_down": c.sigmoid() - (c - r).sigmoid(),
        }
        total = total + literal[loss] / 2
    wanted = torch.autograd.grad(total, logits)[0]
    found = through_the_core("dpo", columns=2, loss=loss, beta=beta, score=score)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_distillation_follows_the_reverse_divergence():
    """Its expected gradient at a position, over all tokens that the student may write, is that of KL(pi || teacher)."""
    student = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    teacher = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).log_softmax(-1)
    logprobs = student.log_softmax(-1)
    divergence = (logprobs.exp() * (logprobs - teacher)).sum()
    wanted = torch.autograd.grad(divergence, student, retain_graph=True)[0]
    signals = Signals(
        rewards_PK=torch.zeros(1, 7),
        lengths_PK=torch.ones(1, 7),
        policy_logprobs_PKT=logprobs.detach()[None, :, None],
        teacher_logprobs_PKT=teacher[None, :, None],
    )
    weights = discover()["opd"].weigh(signals, config_of("opd", teacher="start", bound=50.0))[0, :, 0]
    loss = -(logprobs.detach().exp() * weights * logprobs).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], wanted, rtol=1e-9, atol=1e-12)


def test_gspo_golden():
    # mean log-ratios of two tokens: (0.2 + 0.4)/2 = 0.3, (-0.5 + 0.1)/2 = -0.2, 0.0, 0.0; ratios e^0.3 = 1.349859,
    # e^-0.2 = 0.818731, 1, 1; rewards 1, 0, 1, 0: A = +-0.5 / 0.57735 = +-0.866025
    # bounds 0.9 and 1.2: the first is above with A > 0: 0; the second below with A < 0: 0; 0.866025; -0.866025
    scores = torch.tensor([[0.3, -0.2, 0.0, 0.0]])
    signals = Signals(
        torch.tensor([[1.0, 0.0, 1.0, 0.0]]),
        torch.full((1, 4), 2),
        policy_scores_PK=scores,
        rollout_scores_PK=torch.zeros(1, 4),
    )
    weights = discover()["gspo"].weigh(signals, config_of("gspo", sequence_clip=(0.1, 0.2)))[0]
    assert weights.tolist() == pytest.approx([0.0, 0.0, 0.866025, -0.866025], rel=1e-5)
    wide = discover()["gspo"].weigh(signals, config_of("gspo", sequence_clip=(0.5, 0.5)))[0]
    assert wide.tolist() == pytest.approx([1.169013, -0.709042, 0.866025, -0.866025], rel=1e-5)


def test_dpo_golden():
    # d = 0.5 * (2 - 0) = 1 and 0.5 * (0 - 1) = -0.5; -dL/dd = sigmoid(-(1 + 0.5)) = 0.182426, times beta K = 1
    order = torch.tensor([[[False, True], [False, False]]])
    signals = Signals(
        torch.tensor([[1.0, 0.0]]),
        torch.ones(1, 2),
        order_PKK=order,
        policy_scores_PK=torch.tensor([[2.0, 0.0]]),
        reference_scores_PK=torch.tensor([[0.0, 1.0]]),
    )
    found = discover()["dpo"].weigh(signals, config_of("dpo", beta=0.5))[0]
    assert found.tolist() == pytest.approx([0.182426, -0.182426], rel=1e-5)


def test_a_ratio_of_one_s_own_takes_the_place_of_the_clip():
    assert config_of("gspo", **{"async": 1}).clip is None
    with pytest.raises(ValueError, match="sequence_clip"):
        config_of("gspo", clip=(0.2, 0.2))
    with pytest.raises(ValueError, match="ratio_cap"):
        config_of("cispo", clip=(0.2, 0.2))


def test_a_reference_for_each_task_is_not_sampled_from():
    reference = {"a": "start", "b": "previous"}
    with pytest.raises(ValueError, match="leave `baseline` out"):
        config_of("srpo", baseline="mean", reference=reference)
    assert not discover()["srpo"].needs(config_of("srpo", reference=reference)).reference_rewards
