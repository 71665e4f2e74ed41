"""The arms of a comparison: the stages that each one trains after the stages that all arms share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config.outside import default_label

STAGED = "staged"
"""The arm that trains the configuration's own stages."""
BASE = "base"
"""The name of the starting point that all arms share."""
ALL = "all"
"""In ``--set-arm``: every arm."""

StageOptions = dict[str, Any]
"""Options of one stage as they were given, without defaults."""


@dataclass(frozen=True)
class Arm:
    """One arm: the stages to train after the shared ones."""

    label: str
    source: str
    stages: tuple[StageOptions, ...]
    """Without ``name``, and with the steps of the configuration that they come from."""
    shares: tuple[float, ...] = (1.0,)
    """Each stage's share of the budget."""
    changes: tuple[str, ...] = ()
    """``KEY=VALUE`` of ``--set-arm`` and of tuning."""
    rewards: Any = None
    """The rewards of another configuration; None: those of the comparison's configuration."""


def with_own_changes(arms: Sequence[Arm], changes: Sequence[str]) -> list[Arm]:
    """The arms, each with its part of ``--set-arm ARM.KEY=VALUE``. Raises: UserError."""
    own: dict[str, list[str]] = {arm.label: [] for arm in arms}
    for change in changes:
        key, equals, _ = change.partition("=")
        label = next((each for each in (*own, ALL) if key.startswith(f"{each}.")), None)
        if not equals or label is None:
            near = did_you_mean(key.partition(".")[0], [*own, ALL])
            expected = "ARM.KEY=VALUE, such as gfpo.lr=5e-5, or staged.srpo.refresh=10; ARM `all` means every arm"
            raise UserError("this is not an option of an arm", where=f"--set-arm {change}", expected=expected, fix=near)
        for each in own if label == ALL else (label,):
            own[each].append(change.removeprefix(f"{label}."))
    return [replace(arm, changes=(*arm.changes, *own[arm.label])) for arm in arms]


def changed_stages(arm: Arm) -> list[StageOptions]:
    """The arm's stages with its changes: ``STAGE.KEY=VALUE`` changes one stage, ``KEY=VALUE`` all of them.

    Raises: UserError.
    """
    stages = [dict(options) for options in arm.stages]
    names = [default_label(stage["stage"]) for stage in stages]
    for change in arm.changes:
        key, _, text = change.partition("=")
        name, dot, rest = key.partition(".")
        if dot and name not in names:
            where, fix = f"--set-arm {arm.label}.{change}", did_you_mean(name, names)
            raise UserError(f"the arm `{arm.label}` has no stage `{name}`", where=where, fix=fix)
        value = yaml_text.parse(text, f"--set-arm {arm.label}.{change}").data
        for stage in stages:
            if not dot or default_label(stage["stage"]) == name:
                stage[rest if dot else key] = value
    return stages


def named_stages(stages: Sequence[StageOptions], taken: set[Any]) -> list[StageOptions]:
    """The stages, each with a name that is not ``taken`` by a shared stage or an earlier one."""
    named = []
    for stage in stages:
        name, number = (base := default_label(stage["stage"])), 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        named.append({**stage, "name": name})
    return named
