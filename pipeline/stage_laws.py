"""The laws that every stage must obey, for the author of one: ``check_stage(STAGE)`` checks them all.

The core relies on them: it may order the completions of a group, pad them and cut a batch into groups as it likes. A
law is a function of a stage and its options that raises AssertionError where the stage breaks it. The signals that the
laws are checked on are made up and always the same. Torch is imported when a law is checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from gradus.pipeline.config import StageConfig
from gradus.pipeline.config.outside import tag_of
from gradus.pipeline.stage import Needs, Signals, Stage

if TYPE_CHECKING:
    from torch import Tensor

Law = Callable[[Stage, Any], None]
OF_TOKENS = ("policy_logprobs_PKT", "rollout_logprobs_PKT", "reference_logprobs_PKT", "teacher_logprobs_PKT")
"""Signals of every token that are log-probabilities."""
TOLERANCE = 1e-5
"""Largest difference of two weights that are the same but for rounding."""


def check_stage(stage: Stage, **options: Any) -> None:
    """Check every law on a stage, with its default options and with those of each of its presets.

    ``options`` are given besides: those that have no default, for example. Raises: AssertionError that names the law
    which is broken; whatever the stage's own functions raise.
    """
    variants: list[dict[str, Any]] = [{}, *({"variant": variant} for variant in stage.config.presets)]
    for variant in variants:
        for law in LAWS:
            law(stage, options_of(stage, **variant, **options))
    better_completions_never_weigh_less(stage, options_of(stage, **options))


def options_of(stage: Stage, **options: Any) -> StageConfig:
    """The stage's options with these values, and steps enough for a warm-up of the critic."""
    return stage.config.model_validate({"stage": tag_of(stage.config) or stage.name, "steps": 20, **options})


def it_declares_its_needs(stage: Stage, config: StageConfig) -> None:
    """What a stage needs is a Needs, and its `weigh` uses no signal that these do not ask for."""
    needs = stage.needs(config)
    _require(stage, it_declares_its_needs, isinstance(needs, Needs), f"`needs` gave {needs!r}")
    signals = only_declared(some_signals(_rewards()), needs)
    try:
        stage.weigh(signals, config)
    except Exception as error:
        missing = ", ".join(field.name for field in fields(signals) if getattr(signals, field.name) is None)
        said = f"`weigh` raised {type(error).__name__}: {error}; its Needs do not ask for {missing}"
        raise _broken(stage, it_declares_its_needs, said) from error


def it_is_a_pure_function(stage: Stage, config: StageConfig) -> None:
    """The same signals give the same weights, and stay as they are."""
    import torch

    signals = some_signals(_rewards())
    before = copy.deepcopy(signals)
    first, second = stage.weigh(signals, config), stage.weigh(signals, config)
    _require(stage, it_is_a_pure_function, torch.equal(first, second), "two calls gave different weights")
    for field in fields(signals):
        old, new = getattr(before, field.name), getattr(signals, field.name)
        same = torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new
        _require(stage, it_is_a_pure_function, same, f"`weigh` changed {field.name} in place")


def weights_are_detached_finite_and_shaped_like_the_rewards(stage: Stage, config: StageConfig) -> None:
    """Weights are [P, K] or [P, K, T], numbers, and outside of the gradient's graph."""
    import torch

    law, signals = weights_are_detached_finite_and_shaped_like_the_rewards, some_signals(_rewards())
    result = stage.weigh(signals, config)
    _require(stage, law, isinstance(result, torch.Tensor), f"{result!r}, which is no tensor")
    shapes = (signals.rewards_PK.shape, signals.values_PKT.shape if signals.values_PKT is not None else ())
    _require(stage, law, result.shape in shapes, f"weights of the shape {list(result.shape)} for {list(shapes[0])}")
    _require(stage, law, not result.requires_grad, "the weights require a gradient")
    _require(stage, law, bool(torch.isfinite(result).all()), "some weights are infinite or not a number")


def permuting_a_group_permutes_its_weights(stage: Stage, config: StageConfig) -> None:
    """The order in which completions were sampled means nothing."""
    import torch

    signals, order = some_signals(_rewards()), torch.tensor([2, 0, 3, 1])
    found, wanted = stage.weigh(permuted(signals, order), config), stage.weigh(signals, config)[:, order]
    same = _close(found, wanted)
    _require(stage, permuting_a_group_permutes_its_weights, same, f"weights {found.tolist()}, not {wanted.tolist()}")


def groups_do_not_see_each_other(stage: Stage, config: StageConfig) -> None:
    """A group's weights depend on that group alone: batches are cut into groups."""
    import torch

    rewards = _rewards()
    alone = some_signals(rewards)
    assert alone.values_P is not None
    changed = replace(
        alone,
        rewards_PK=torch.cat([rewards[:1], 1 - rewards[1:]]),
        values_P=alone.values_P + torch.tensor([0.0, 1.0, 1.0]),
    )
    found, wanted = stage.weigh(changed, config)[0], stage.weigh(alone, config)[0]
    same = _close(found, wanted, relative=1.3e-6)
    _require(stage, groups_do_not_see_each_other, same, f"weights {found.tolist()}, not {wanted.tolist()}")


def padding_changes_nothing(stage: Stage, config: StageConfig) -> None:
    """Completions are padded to the longest of their batch, and what lies beyond their end has no meaning."""
    import torch

    signals = some_signals(_rewards())
    assert signals.mask_PKT is not None
    more = (*signals.mask_PKT.shape[:2], 3)
    longer: dict[str, Any] = {
        name: torch.cat([getattr(signals, name), torch.zeros(more)], -1) for name in (*OF_TOKENS, "values_PKT")
    }
    padded = replace(
        signals,
        mask_PKT=torch.cat([signals.mask_PKT, torch.zeros(more, dtype=torch.bool)], -1),
        **longer,
    )
    found, wanted = stage.weigh(padded, config), stage.weigh(signals, config)
    if wanted.dim() == 3:
        found, wanted = found[..., : wanted.shape[-1]] * signals.mask_PKT, wanted * signals.mask_PKT
    same = _close(found, wanted)
    _require(stage, padding_changes_nothing, same, f"weights {found.tolist()}, not {wanted.tolist()}")


def failed_completions_count_for_nothing(stage: Stage, config: StageConfig) -> None:
    """A completion that could not be scored changes no other weight, whatever its reward field holds."""
    import torch

    law, rewards = failed_completions_count_for_nothing, _rewards()
    valid = torch.ones_like(rewards, dtype=torch.bool)
    valid[:, -1] = False
    found = []
    for nonsense in (0.0, 9.0):
        signals = some_signals(rewards.where(valid, nonsense))
        assert signals.order_PKK is not None
        order = signals.order_PKK & valid[:, :, None] & valid[:, None, :]
        found.append(stage.weigh(replace(signals, valid_PK=valid, order_PKK=order), config)[:, :-1])
    said = f"weights {found[0].tolist()} with a failed reward of 0 and {found[1].tolist()} with one of 9"
    _require(stage, law, _close(found[1], found[0]), said)


def better_completions_never_weigh_less(stage: Stage, config: StageConfig) -> None:
    """Of two completions that differ in their reward alone, the one with more weighs at least as much.

    It holds for weights of whole completions; a preset may ignore rewards, so only default options are checked.
    """
    import torch

    signals = some_signals(torch.tensor([[0.0, 1.0]]))
    weights = stage.weigh(replace(signals, policy_scores_PK=torch.zeros(1, 2), log_ratio_PK=None), config)
    if weights.dim() == 2:
        low, high = weights[0].tolist()
        said = f"reward 0 weighs {low:g} and reward 1 weighs {high:g}"
        _require(stage, better_completions_never_weigh_less, low <= high, said)


LAWS: tuple[Law, ...] = (
    it_declares_its_needs,
    weights_are_detached_finite_and_shaped_like_the_rewards,
    it_is_a_pure_function,
    permuting_a_group_permutes_its_weights,
    groups_do_not_see_each_other,
    padding_changes_nothing,
    failed_completions_count_for_nothing,
)
"""The laws that hold with any options."""


def some_signals(rewards_PK: Tensor) -> Signals:
    """Signals of a batch with these rewards, all of them filled. Shapes: [P, K]."""
    import torch

    generator = torch.Generator().manual_seed(5)
    scores = -torch.rand(rewards_PK.shape, generator=generator)
    lengths = torch.randint(1, 9, rewards_PK.shape, generator=generator)
    mask, shape = torch.arange(8) < lengths[..., None], (*rewards_PK.shape, 8)
    of_tokens: dict[str, Any] = {name: -torch.rand(shape, generator=generator) * mask for name in OF_TOKENS}
    return Signals(
        rewards_PK=rewards_PK,
        lengths_PK=lengths,
        mask_PKT=mask,
        longest=8,
        values_PKT=torch.rand((*rewards_PK.shape, 8), generator=generator),
        difficulty_P=torch.linspace(0, 1, len(rewards_PK)),
        order_PKK=rewards_PK[:, :, None] > rewards_PK[:, None, :],
        correct_PK=rewards_PK > 0.5,
        rollout_scores_PK=scores - 0.1 * scores.square(),
        reference_scores_PK=scores + 0.1,
        policy_scores_PK=scores,
        **of_tokens,
        log_ratio_PK=torch.randn(rewards_PK.shape, generator=generator),
        reference_rewards_PK=torch.rand(rewards_PK.shape, generator=generator),
        values_P=torch.rand(len(rewards_PK), generator=generator),
    )


def permuted(signals: Signals, order: Tensor) -> Signals:
    """The signals with the completions of each group in another order."""
    of_completions = (
        *(
            "rewards_PK",
            "correct_PK",
            "lengths_PK",
            "mask_PKT",
            "policy_scores_PK",
            "rollout_scores_PK",
            "reference_scores_PK",
        ),
        *("log_ratio_PK", "values_PKT", "reference_rewards_PK", *OF_TOKENS),
    )
    changed = {name: getattr(signals, name)[:, order] for name in of_completions}
    assert signals.order_PKK is not None
    return replace(signals, **changed, order_PKK=signals.order_PKK[:, order][:, :, order])


def only_declared(signals: Signals, needs: Needs) -> Signals:
    """The signals that a stage with these needs is given by the core."""
    kind = needs.critic.kind if needs.critic is not None else None
    declared = {
        "order_PKK": bool(needs.ranking),
        "quality_PKK": len(needs.ranking) > 1 and "reward" in needs.ranking,
        "policy_scores_PK": needs.policy_scores,
        "policy_logprobs_PKT": needs.policy_logprobs,
        "log_ratio_PK": needs.log_ratio,
        "reference_logprobs_PKT": needs.reference_logprobs,
        "reference_scores_PK": needs.reference_logprobs,
        "teacher_logprobs_PKT": needs.teacher_logprobs,
        "reference_rewards_PK": needs.reference_rewards,
        "values_P": kind == "prompt",
        "values_PKT": kind == "token",
        "difficulty_P": needs.difficulty,
    }
    absent: dict[str, Any] = {name: None for name, is_declared in declared.items() if not is_declared}
    return replace(signals, **absent)


def _rewards() -> Tensor:
    """Three groups of four different rewards."""
    import torch

    return torch.rand(3, 4, generator=torch.Generator().manual_seed(7))


def _close(found: Tensor, wanted: Tensor, relative: float = TOLERANCE) -> bool:
    """Whether two tensors have the same shape and, but for rounding, the same values."""
    import torch

    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=relative, atol=TOLERANCE)


def _require(stage: Stage, law: Law, holds: bool, said: str) -> None:
    """Raises: AssertionError that names the law, where it does not hold."""
    if not holds:
        raise _broken(stage, law, said)


def _broken(stage: Stage, law: Law, said: str) -> AssertionError:
    """Which law is broken, what it says, and what was found."""
    meaning = (law.__doc__ or "").partition("\n")[0]
    return AssertionError(f"the stage `{stage.name}` breaks the law `{law.__name__}`: {meaning} Found: {said}")
