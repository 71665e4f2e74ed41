"""Ranking: which of a group's completions is better, by an ordered list of keys.

A binary reward leaves most pairs of a group tied; further keys, such as the quality of the reasoning, order those too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gradus.pipeline.advantages import rounding
from gradus.pipeline.common.errors import UserError, closest

if TYPE_CHECKING:
    from torch import Tensor

BUILT_IN = ("reward", "shorter", "longer")
"""Keys that are no reward component: the weighted sum (higher is better) and the number of tokens."""


def check_keys(keys: Sequence[str], labels: Sequence[str]) -> None:
    """Raise UserError where a key is none of the built-in ones nor a reward's label, or can never decide anything."""
    known = [*BUILT_IN, *(label for label in labels if label not in BUILT_IN)]
    for key in keys:
        if key not in known:
            raise UserError(
                f"unknown ranking key {key!r}",
                got=key,
                expected="one of " + ", ".join(known),
                fix=closest(key, known),
            )
        if key in labels and key in BUILT_IN:
            raise UserError(
                f"the ranking key {key!r} is also what a reward is called",
                got=key,
                fix=f"give that reward another `name`: {', '.join(BUILT_IN)} have a meaning of their own in rankings",
            )
    repeated = [key for key in dict.fromkeys(keys) if list(keys).count(key) > 1]
    if repeated:
        raise UserError(f"the ranking key {repeated[0]!r} stands twice", got=list(keys), expected="each key once")
    if "shorter" in keys and "longer" in keys:
        raise UserError("a ranking can't prefer both shorter and longer", got=list(keys), expected="one of the two")


def order_PKK(
    keys: Sequence[str], rewards_PK: Tensor, components: Mapping[str, Tensor], lengths_PK: Tensor, valid_PK: Tensor
) -> Tensor:
    """True at [p, i, j] where completion i of prompt p is better than completion j.

    The first key in which two completions differ decides: ``reward`` (higher), a component's label (higher),
    ``shorter`` or ``longer``. Completions equal in every key make no pair.

    Shapes: rewards_PK, each component, lengths_PK and valid_PK [P, K]; the result is bool [P, K, K].
    Edge: scores that differ by rounding are equal; a completion that is not valid, or without a score (NaN) for one of
    the keys, is in no pair. A key that scored nothing of a group, as another task's reward, decides nothing there.
    """
    usable_PK = valid_PK.bool()
    tied_PKK = better_PKK = None
    for key in keys:
        if key in ("shorter", "longer"):
            value_PK = lengths_PK.double() * (-1 if key == "shorter" else 1)
        else:
            value_PK = (rewards_PK if key == "reward" else components[key]).double()
            value_PK = value_PK.where(~value_PK.isnan().all(-1, keepdim=True), 0)  # another task's: a tie
        usable_PK = usable_PK & value_PK.isfinite()
        ahead_PKK = value_PK.unsqueeze(2) - value_PK.unsqueeze(1)
        tie_P11 = rounding(value_PK, usable_PK).unsqueeze(2)
        wins_PKK, even_PKK = ahead_PKK > tie_P11, ahead_PKK.abs() <= tie_P11
        if better_PKK is None or tied_PKK is None:
            better_PKK, tied_PKK = wins_PKK, even_PKK
        else:
            better_PKK, tied_PKK = better_PKK | (tied_PKK & wins_PKK), tied_PKK & even_PKK
    assert better_PKK is not None, "a ranking needs a key"
    return better_PKK & usable_PK.unsqueeze(2) & usable_PK.unsqueeze(1)
