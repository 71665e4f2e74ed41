"""What every arm of a comparison may spend, in rollouts, tokens or seconds, and how an arm's stages share it."""

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
MANY = 1_000_000
"""Steps of a stage that something else ends."""


@dataclass(frozen=True)
class Budget:
    """An amount of one unit. Rollouts are counted as the trainer counts them: those of a reference policy too."""

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
            raise UserError("this is no budget", where="--budget", got=text, expected=expected)
        return cls(amount, str(unit))

    @classmethod
    def of(cls, after: Sequence[StageConfig], stages: Mapping[str, Stage]) -> Budget:
        """What these stages spend, each with all its steps."""
        return cls(float(sum(each.steps * rollouts_per_step(each, stages) for each in after)))

    def __str__(self) -> str:
        return f"{self.amount:,.0f} {self.unit}"


def rollouts_per_step(config: StageConfig, stages: Mapping[str, Stage]) -> int:
    """Completions that one step samples, by the policy and, where the stage asks for it, by its reference too."""
    passes = 2 if stages[config.stage].needs(config).reference_rewards else 1
    return config.prompts_per_step * config.group_size * passes


def divide_budget(
    budget: Budget, label: str, own: Sequence[StageConfig], shares: Sequence[float], stages: Mapping[str, Stage]
) -> list[dict[str, Any]]:
    """``steps`` of each stage of an arm and, where steps alone do not say it, the rule of ``until`` that ends it.

    Stages get their shares in whole steps; the last one gets what is left. A stage that samples further groups in the
    place of others spends more than its steps tell, and ends by what it has spent.
    Raises: UserError where that is no step.
    """
    parts: list[dict[str, Any]] = []
    left = budget.amount
    for index, (config, share) in enumerate(zip(own, shares, strict=True)):
        last = index + 1 == len(own)
        amount = left if last else budget.amount * share
        if budget.unit != "rollouts":
            limit = amount if budget.unit == "seconds" else int(amount)
            parts.append({"steps": MANY, **_ended_by(config, {budget.unit: limit})})
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
    """``until`` of a stage with one rule more than its own."""
    own = getattr(config, "until", None)
    return {"until": (own.model_dump(mode="json", exclude_unset=True) if own is not None else {}) | limit}
