"""The budget of every arm, in rollouts, tokens or seconds, and its division among the arm's stages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import StageConfig
from gradus.pipeline.stage import Stage

UNITS = ("rollouts", "tokens", "seconds")
UNLIMITED_STEPS = 1_000_000
"""Steps of a stage that another rule ends."""


@dataclass(frozen=True)
class Budget:
    """An amount of one unit. Rollouts include those of a reference policy, as the trainer counts them."""

    amount: float
    unit: str = "rollouts"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``46080``, ``46080rollouts``, ``1e6 tokens`` or ``600s``. Raises: UserError.

        >>> Budget.parse("600s")
        Budget(amount=600.0, unit='seconds')
        """
        found = re.fullmatch(r"\s*([\d._]+(?:e\d+)?)\s*([a-z]*)\s*", text.lower())
        unit = found and {"": "rollouts", "s": "seconds"}.get(found[2], found[2])
        try:
            amount = float(found[1]) if found else 0.0
        except ValueError:
            amount = 0.0
        if unit not in UNITS or amount <= 0:
            expected = "a number above zero and, unless it counts rollouts, its unit: 40000, 1e6tokens or 600seconds"
            raise UserError("this is not a budget", where="--budget", got=text, expected=expected)
        return cls(amount, str(unit))

    @classmethod
    def of(cls, after: Sequence[StageConfig], stages: Mapping[str, Stage]) -> Budget:
        """What these stages spend if each trains all its steps."""
        return cls(float(sum(each.steps * rollouts_per_step(each, stages) for each in after)))

    def __str__(self) -> str:
        return f"{self.amount:,.0f} {self.unit}"


def rollouts_per_step(config: StageConfig, stages: Mapping[str, Stage]) -> int:
    """Completions that one step samples, with those of the reference policy if the stage asks for them."""
    passes = 2 if stages[config.stage].needs(config).reference_rewards else 1
    return config.prompts_per_step * config.group_size * passes


def divide_budget(
    budget: Budget, label: str, own: Sequence[StageConfig], shares: Sequence[float], stages: Mapping[str, Stage]
) -> list[dict[str, Any]]:
    """``steps`` of each stage of an arm and, if steps alone do not express its part, the rule in ``until`` to end it.

    Stages get their shares in whole steps; the last one gets what is left. A stage that replaces groups by further ones
    spends more than its steps show, so that the rollouts that it has spent end it.
    Raises: UserError if the budget does not pay for one step of each stage.
    """
    parts: list[dict[str, Any]] = []
    left = budget.amount
    for index, (config, share) in enumerate(zip(own, shares, strict=True)):
        last = index + 1 == len(own)
        amount = left if last else budget.amount * share
        if budget.unit != "rollouts":
            limit = amount if budget.unit == "seconds" else int(amount)
            parts.append({"steps": UNLIMITED_STEPS, **_ended_by(config, {budget.unit: limit})})
            left -= amount
            continue
        cost = rollouts_per_step(config, stages)
        steps = math.floor(amount / cost) if last else max(1, round(amount / cost))
        left -= steps * cost
        if steps < 1 or left < 0:
            least = sum(rollouts_per_step(each, stages) for each in own)
            raise UserError(
                f"the budget is too small for the arm `{label}`",
                where="--budget",
                got=str(budget),
                expected=f"at least {least:,} rollouts: one step of each of its stages, and more to learn something",
                fix="raise --budget, or lower prompts_per_step or group_size",
            )
        refills = getattr(stages[config.stage].needs(config), "refills", 0)
        parts.append({"steps": steps, **(_ended_by(config, {"rollouts": steps * cost}) if refills else {})})
    return parts


def _ended_by(config: StageConfig, limit: dict[str, float]) -> dict[str, Any]:
    """A stage's ``until`` with this limit added."""
    own = getattr(config, "until", None)
    return {"until": (own.model_dump(mode="json", exclude_unset=True) if own is not None else {}) | limit}
