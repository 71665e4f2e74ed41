"""The laws of stages catch what they are for: each of these stages breaks one of them, which the message names."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from gradus.pipeline.advantages import centre
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Critic, Needs, Signals, Stage
from gradus.pipeline.stage_laws import LAWS, better_completions_never_weigh_less, check_stage


class OwnConfig(StageConfig):
    """Options of a made-up stage."""

    presets = {"paper": {"scale": 2.0}}  # noqa: RUF012 - as an author may write it
    stage: Literal["own"]
    scale: float = 1.0


def sound(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return config.scale * centre(signals.rewards_PK, signals.valid_PK)


def uses_what_it_does_not_declare(signals: Signals, config: OwnConfig) -> torch.Tensor:
    assert signals.values_P is not None
    return signals.rewards_PK - signals.values_P[:, None]


def changes_its_input(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return signals.rewards_PK.sub_(signals.rewards_PK.mean(-1, keepdim=True)).clone()


def counts_failed_ones(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return signals.rewards_PK - signals.rewards_PK.mean(-1, keepdim=True)


def draws(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return sound(signals, config) + torch.rand(())


def one_weight_a_group(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return signals.rewards_PK.mean(-1)


def no_tensor(signals: Signals, config: OwnConfig) -> list:
    return signals.rewards_PK.tolist()


def divides_by_zero(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return signals.rewards_PK / (signals.rewards_PK - signals.rewards_PK.max(-1, keepdim=True).values)


def keeps_the_graph(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return sound(signals, config) * torch.ones((), requires_grad=True)


def goes_by_the_place(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return signals.rewards_PK * torch.arange(signals.rewards_PK.shape[-1])


def subtracts_the_mean_of_the_batch(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return signals.rewards_PK - signals.rewards_PK.mean()


def averages_over_padding(signals: Signals, config: OwnConfig) -> torch.Tensor:
    assert signals.values_PKT is not None
    return signals.rewards_PK - signals.values_PKT.mean(-1)


def flipped(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return -sound(signals, config)


def only_the_preset_is_wrong(signals: Signals, config: OwnConfig) -> torch.Tensor:
    return goes_by_the_place(signals, config) if config.scale == 2 else sound(signals, config)


def stage_of(weigh, needs: Needs = Needs()) -> Stage:  # noqa: B008 - frozen
    return Stage("own", "made up", OwnConfig, weigh, lambda config: needs)


TOKENS = Needs(critic=Critic("token", lr=1e-4))
SHAPED = "weights_are_detached_finite_and_shaped_like_the_rewards"
BROKEN = [
    (stage_of(uses_what_it_does_not_declare), "it_declares_its_needs"),
    (replace(stage_of(sound), needs=lambda config: {}), "it_declares_its_needs"),
    (stage_of(changes_its_input), "it_is_a_pure_function"),
    (stage_of(draws), "it_is_a_pure_function"),
    (stage_of(one_weight_a_group), SHAPED),
    (stage_of(no_tensor), SHAPED),
    (stage_of(divides_by_zero), SHAPED),
    (stage_of(keeps_the_graph), SHAPED),
    (stage_of(goes_by_the_place), "permuting_a_group_permutes_its_weights"),
    (stage_of(subtracts_the_mean_of_the_batch), "groups_do_not_see_each_other"),
    (stage_of(averages_over_padding, TOKENS), "padding_changes_nothing"),
    (stage_of(counts_failed_ones), "failed_completions_count_for_nothing"),
    (stage_of(only_the_preset_is_wrong), "permuting_a_group_permutes_its_weights"),
    (stage_of(flipped), "better_completions_never_weigh_less"),
]


@pytest.mark.parametrize(("stage", "law"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_law_is_named(stage: Stage, law: str) -> None:
    with pytest.raises(AssertionError, match=rf"the stage `own` breaks the law `{law}`: \w"):
        check_stage(stage)


def test_a_sound_stage_passes() -> None:
    check_stage(stage_of(sound))
    check_stage(stage_of(sound), scale=3.0)


def test_every_law_is_shown_to_catch_something() -> None:
    assert {law.__name__ for law in (*LAWS, better_completions_never_weigh_less)} == {law for _, law in BROKEN}
